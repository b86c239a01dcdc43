"""The learning rates of ablations.py, each trained as there and measured on the photos that it holds out.

    alexnet sweep --sweep ablation_rates --seeds 1 --at-once 2

The error is that of the centre crop on train[70%:], 2,841 photos that ablations.py neither trains on nor measures
errors on. The ablations here are those whose best rate could differ: they change the size of activations or gradients,
or how much regularizes. The others keep the base's rate.
"""

from ml_collections import ConfigDict

from experiments.changes import CHANGES, Change
from experiments.sweeps import ablations

HELD_OUT = "train[70%:]"
FACTORS = (0.5, 2.0)  # beside 1
NAMES = ("tanh", "lrn_off", "dropout_off", "paper_init", "ungrouped")


def _rates() -> dict[str, Change]:
    """base_0.0025, base_0.01, tanh_0.0025, tanh_0.005, ...; the base itself has ablations.RATE."""
    same = Change("base", lambda base: {})
    found = {}
    for name in ("base", *NAMES):
        change = same if name == "base" else CHANGES[name]
        for factor in FACTORS if name == "base" else (1.0, *FACTORS):
            rate = factor * ablations.RATE
            found[f"{name}_{rate:g}"] = ablations.at_rate(change, rate)
    return found


ABLATIONS = _rates()


def get_config(arg: str = "") -> ConfigDict:
    """The base, measured on photos that are held out; arg as in ablations.py."""
    c = ablations.get_config(arg)
    c.name = "ablation_rates"
    c.data.eval_split = HELD_OUT
    c.evaluation.views = 1
    return c
