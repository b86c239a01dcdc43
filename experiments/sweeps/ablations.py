"""The ablations with eight seeds, on a part of Imagenette small enough to overfit: three minutes a run on one CPU core.

    alexnet sweep --sweep ablations --seeds 8 --at-once 2
    alexnet sweep --sweep ablation_rates --seeds 1 --at-once 2     # the rates, measured on other images

The network is that of small.py, a quarter of the paper's width on crops of 96 pixels. It trains on the first 30 % of
the training split, 2,841 photos, for 48 epochs: as many steps as 14 epochs of all photos. Crops, colour noise and
dropout are there against overfitting, and after 12 epochs of all photos there was hardly any (docs/ablations.md).

Two lengths of as many steps were compared, one run each (experiments/records/ablation_candidates.json):

    photos, epochs    training error    error, ten views    the same without crops and flips
    30 %, 48          24.6 %            34.2 %              3.1 %, 36.3 %
    15 %, 96          13.8 %            40.4 %              0.1 %, 44.7 %

Both overfit. With 15 % the network knows its photos by heart without crops, so that other changes could not lower the
training error any more, and its error is that of too few photos. Weight decay shrinks the weights by about a fiftieth
in so few steps, so "decay_off" can hardly show what it does in 90 epochs of ImageNet.

RATE is the best of four for the base on photos that are held out (ablation_rates.py, one run each): 0.0025 has 34.2 %
error there, 0.00125, 0.005 and 0.01 have 34.7, 37.5 and 41.8. The comparison above was at 0.005. RATES has the
ablations that were better at another rate, each with a worse one on either side. tanh is at chance below 0.01.

The paper's claims are about the error of ten views; that of the centre crop is recorded too.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.changes import CHANGES, Change
from experiments.sweeps import small

TRAIN = "train[:30%]"
RATE = 0.0025
RATES = {"lrn_off": 0.00125, "tanh": 0.02, "dropout_off": 0.00125, "ungrouped": 0.00125, "paper_init": 0.01}
NAMES = (
    "lrn_off", "lrn_across", "lrn_after_pool", "pooling", "tanh", "dropout_off", "noise_off", "crops_off", "decay_off",
    "one_column", "ungrouped", "no_exchange", "no_exchange_narrow", "exchange_conv4", "conv3_removed", "conv4_removed",
    "conv34_removed", "paper_init", "lrn_before_relu", "lrn_caffe",
)  # fmt: skip


def at_rate(change: Change, rate: float) -> Change:
    """The change with a learning rate of its own, which its fields then name."""
    return dataclasses.replace(change, fields=lambda base: change.fields(base) | {"optimizer.learning_rate": rate})


ABLATIONS = {name: at_rate(CHANGES[name], RATES[name]) if name in RATES else CHANGES[name] for name in NAMES}


def get_config(arg: str = "") -> ConfigDict:
    """The base. It takes no arg: the part of the photos and the epochs belong together. Raises ValueError."""
    if arg:
        raise ValueError(f"'{arg}' after the sweep's colon: ablations takes none")
    c = small.get_config()
    c.name = "ablations"
    c.data.train_split = TRAIN
    c.epochs = 48
    c.optimizer.learning_rate = RATE
    c.optimizer.drop_epochs = (36, 44)  # of 48, as small.py's (9, 11) of 12
    c.evaluation.every_epochs = 12  # each costs as much as half an epoch
    c.checkpoint_every_steps = 1000
    return c
