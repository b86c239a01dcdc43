"""What makes one tower take the colour and the other the grey (section 6.1)?

    alexnet sweep --sweep towers --seeds 8 --at-once 2

According to the paper it "occurs during every run and is independent of any particular random weight initialization",
and is "a result of the restricted connectivity". Here are the ablations for that: more exchange, less of it, and the
norm within a tower, which restricts what its kernels compete with.

conv1 has all its 96 kernels, so that there are enough to count, and all other layers have a quarter of their width.
What counts is not the error but the share of colour kernels in each tower (alexnet_jax/analysis/specialisation.py).
Photos and rates are those of small.py.

A run takes four to six minutes on one core of an AMD EPYC. In eight of the base, 16 and 25 of 48 kernels are of colour,
23 and 15, 26 and 22, 21 and 24, 15 and 31, 15 and 23, 22 and 17, 23 and 22: only the fifth is a difference that kernels
dealt at random would rarely show. With the exchange at conv2 too, the differences are 1, 1, 3, 7, 2, 2, 1 and 1 kernels
(experiments/records/towers.json).
"""

from ml_collections import ConfigDict

from experiments.changes import CHANGES, Change
from experiments.sweeps import small


def _long(base: ConfigDict) -> dict:
    """Twice the epochs, with the drops at the same parts."""
    return {"epochs": 2 * base.epochs, "optimizer.drop_epochs": tuple(2 * e for e in base.optimizer.drop_epochs)}


ABLATIONS = {
    "lrn_across": CHANGES["lrn_across"],
    "lrn_off": CHANGES["lrn_off"],
    "exchange_conv2": Change(
        "exchange at conv2 too", lambda base: {"model.exchange": ("conv2", *base.model.exchange)},
        source="not measured in 2012",
    ),
    "no_exchange_narrow": CHANGES["no_exchange_narrow"],
    "long": Change("twice as long", _long, source="not measured in 2012"),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg as in configs/paper.py."""
    c = small.get_config(arg)
    c.name = c.name.replace("small", "towers")
    c.model.conv_widths = (96, *c.model.conv_widths[1:])
    c.model.init_std.conv2 /= small.NARROW**0.5  # it has all its inputs, see small.py
    c.evaluation.every_epochs = 12
    c.evaluation.views = 1
    return c
