"""What makes one tower take the colour and the other the grey (section 6.1)?

    alexnet sweep --sweep towers --seeds 8 --at-once 2

According to the paper it "occurs during every run and is independent of any particular random weight initialization",
and is "a result of the restricted connectivity". Here are the ablations for that: more exchange, less of it, and the
norm within a tower, which restricts what its kernels compete with.

conv1 has all its 96 kernels, so that there are enough to count, and all other layers have a quarter of their width.
What counts is not the error but the share of colour kernels in each tower (alexnet_jax/analysis/specialisation.py).
Photos and rates are those of small.py.

How many of a tower's 48 kernels are mostly colour, less how many of the other's, seeds 0 to 7
(experiments/records/towers.json):

    base                  9  8  4  3 16  8  5  1    mean 6.8: 16 and 25 of seed 0, 15 and 31 of seed 4
    exchange_conv2        1  1  3  7  2  2  1  1         2.2
    no_exchange_narrow   12 10  3 13  7  3 12  8         8.5
    lrn_across            7 17  6  7  3  3  3  7         6.6
    lrn_off               5  7  0  3 16  9 10  1         6.4
    long                 10  8  3  3 12  3  0  4         5.4

Kernels dealt at random would be 4 apart on average. The means of the first three are in the order that the paper
gives a reason for, the less exchange the further apart, but no difference to the base is significant. One tower is
colour-blind in one of the 48 runs: lrn_across, seed 1, with 29 and 12. All have the base's learning rate, with which
lrn_off has an error of 40.1 % instead of 34.2 %; in ablations.py it has its own, and there is no such difference.

A run takes four to six minutes on one core of an AMD EPYC (the first two, 2026-11-28), and about as long on one core of
an Intel Xeon with AVX-512 (the others, 2026-12-01); long twice that.
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
