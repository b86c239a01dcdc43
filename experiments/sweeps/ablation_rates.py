"""The learning rates of ablations.py, each trained as there and measured on the photos that it holds out.

    alexnet sweep --sweep ablation_rates --seeds 1 --at-once 2

The error is that of the centre crop on train[70%:], 2,841 photos that ablations.py neither trains on nor measures
errors on. The ablations here are five whose best rate could differ: they change the size of activations or gradients,
or how much regularizes. The others keep the base's rate, also those without crops, noise or decay, of which the same
can be said. Where the best of some rates is the lowest or the highest, another one beyond it is to be tried.
"""

from ml_collections import ConfigDict

from experiments.changes import CHANGES, Change
from experiments.sweeps import ablations

HELD_OUT = "train[70%:]"
FIRST = 0.005  # the base's here, that of small.py
TRIED = {
    "base": (0.00125, 0.0025, 0.01),
    "tanh": (0.0025, 0.005, 0.01, 0.02, 0.04),
    "lrn_off": (0.000625, 0.00125, 0.0025, 0.005, 0.01),
    "dropout_off": (0.000625, 0.00125, 0.0025, 0.005, 0.01),
    "paper_init": (0.0025, 0.005, 0.01, 0.02),
    "ungrouped": (0.000625, 0.00125, 0.0025, 0.005, 0.01),
}


def _rates() -> dict[str, Change]:
    """base_0.00125, base_0.0025, base_0.01, tanh_0.0025, ...; the base itself has FIRST."""
    changes = {"base": Change("base", lambda base: {}), **CHANGES}
    tried = [(name, rate) for name, rates in TRIED.items() for rate in rates]
    return {f"{name}_{rate:g}": ablations.at_rate(changes[name], rate) for name, rate in tried}


ABLATIONS = _rates()


def get_config(arg: str = "") -> ConfigDict:
    """The base, measured on photos that are held out; arg as in ablations.py."""
    c = ablations.get_config(arg)
    c.name = "ablation_rates"
    c.optimizer.learning_rate = FIRST
    c.data.eval_split = HELD_OUT
    c.evaluation.views = 1
    return c
