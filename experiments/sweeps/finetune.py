"""Fine-tuning compared with training from scratch: Imagenette, starting from a network trained on CIFAR-10.

    alexnet train --config experiments/sweeps/small.py:cifar10 --config.epochs=8 \\
        --config.optimizer.drop_epochs="(6,)" --config.evaluation.views=1 --workdir runs/cifar10_small
    alexnet sweep --sweep finetune             # all photos, 4 epochs
    alexnet sweep --sweep finetune:long        # all photos, 12 epochs
    alexnet sweep --sweep finetune:tenth       # a tenth of the photos, 40 epochs

The base is small.py's and trains from scratch. The ablations start from the CIFAR-10 network with a new fc8, and train
for the same number of steps on the same crops. The rates of "all_caffe" are Caffe's. The base's rate was chosen for
networks that train from scratch, on the validation split that also measures the error here (see small.py).
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.changes import Change
from experiments.sweeps import small

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
# arg: (epochs, the epochs at which the rate drops), in the proportions of small.py's 12 and (9, 11)
EPOCHS = {"": (4, (3,)), "long": (12, (9, 11)), "tenth": (40, (30, 37))}


def _from_cifar10(rate: float, multiples: dict[str, float]) -> Callable[[ConfigDict], dict]:
    """Fields that start from the CIFAR-10 network, with a learning rate and what it is multiplied by in some layers."""
    fields = {
        "start.workdir": "runs/cifar10_small",
        "start.fresh": ("fc8",),
        "optimizer.learning_rate": rate,
        "optimizer.layer_rates": tuple((0, layer, multiple) for layer, multiple in multiples.items()),
    }
    return lambda base: dict(fields)


def _frozen(*layers: str) -> dict[str, float]:
    return dict.fromkeys(layers, 0.0)


ABLATIONS = {
    "all_caffe": Change("all layers, at Caffe's rates: 0.001, fc8 0.01", _from_cifar10(0.001, {"fc8": 10.0})),
    "all_base": Change("all layers, at the base's rate", _from_cifar10(0.005, {})),
    "fc6_fc8": Change("only fc6, fc7 and fc8", _from_cifar10(0.005, _frozen(*CONVOLUTIONS))),
    "fc8": Change("only fc8", _from_cifar10(0.005, _frozen(*CONVOLUTIONS, "fc6", "fc7"))),
}


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg is "", "long" or "tenth"."""
    if arg not in EPOCHS:
        raise ValueError(f"'{arg}' after the sweep's colon is neither long nor tenth")
    c = small.get_config()
    c.name = "_".join(filter(None, ["scratch", arg]))
    c.epochs, c.optimizer.drop_epochs = EPOCHS[arg]
    if arg == "tenth":
        c.data.train_split = "train[:10%]"
        c.evaluation.every_epochs = 10
    return c
