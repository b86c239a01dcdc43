"""Fine-tuning beside training from scratch: Imagenette, from a network that was trained on CIFAR-10.

    python -m alexnet_jax.main --config experiments/sweep_small.py:cifar10 --config.epochs=8 \\
        --config.optimizer.drop_epochs="(6,)" --config.evaluation.views=1 --workdir runs/cifar10_small
    python -m experiments.ablations --sweep finetune             # all photos, four epochs
    python -m experiments.ablations --sweep finetune:long        # twelve
    python -m experiments.ablations --sweep finetune:tenth       # a tenth of the photos, forty epochs

The base is that of sweep_small.py, from its initial values; the others begin with the CIFAR-10 network, fc8 anew, and
run as many steps on the same crops. Caffe's rates are Caffe's; the base's was chosen for networks that start anew, by
looking at the validation split that measures the error here (see sweep_small.py).
"""

from ml_collections import ConfigDict

from experiments import sweep_small
from experiments.changes import Change

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
EPOCHS = {"": (4, (3,)), "long": (12, (9, 11)), "tenth": (40, (30, 37))}  # of sweep_small.py's 12 and (9, 11)


def _from_cifar10(rate: float, *layer_rates: tuple):
    """Fields that start from the CIFAR-10 network, with a learning rate and its multiples, ((layer, multiple), ...)."""
    fields = {
        "start.workdir": "runs/cifar10_small",
        "start.fresh": ("fc8",),
        "optimizer.learning_rate": rate,
        "optimizer.layer_rates": tuple((0, layer, multiple) for layer, multiple in layer_rates),
    }
    return lambda base: dict(fields)


ABLATIONS = {
    "all_caffe": Change("all layers, at Caffe's rates: 0.001, fc8 0.01", _from_cifar10(0.001, ("fc8", 10.0))),
    "all_base": Change("all layers, at the base's rate", _from_cifar10(0.005)),
    "fc6_fc8": Change("fc6, fc7 and fc8 alone", _from_cifar10(0.005, *((name, 0.0) for name in CONVOLUTIONS))),
    "fc8": Change("fc8 alone", _from_cifar10(0.005, *((name, 0.0) for name in (*CONVOLUTIONS, "fc6", "fc7")))),
}


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg is "", "long" or "tenth"."""
    c = sweep_small.get_config()
    c.name = "_".join(filter(None, ["scratch", arg]))
    c.epochs, c.optimizer.drop_epochs = EPOCHS[arg]
    if arg == "tenth":
        c.data.train_split = "train[:10%]"
        c.evaluation.every_epochs = 10
    return c
