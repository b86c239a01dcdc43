"""Figure 1: how soon a four-layer network reaches 25 % training error on CIFAR-10, with ReLU and with tanh.

    alexnet sweep --sweep figure1 --seeds 5
    alexnet train --config experiments/sweeps/figure1.py:tanh --config.optimizer.learning_rate=0.032     # another rate

The paper does not say which network of four layers it was. This one is that of configs/cifar10_18pct.py without its
norms: three convolutions and a fully connected layer. As in the paper nothing regularizes: no weight decay, no
augmentation, no norm.

As the paper says, each has the rate that makes it train fastest: of those in the record figure1_rates, the one with the
lowest error of the third training epoch. For ReLU that is 0.004 (34.6 %; 0.002 and 0.008 have 35.2 and 41.7), for tanh
0.016 (48.7 %; 0.008 and 0.032 have 51.2 and 49.7), one seed each.

tanh trains for 50 epochs, eight times as long as ReLU takes to 25 %. An epoch takes a minute on
one core of an AMD EPYC.
"""

from ml_collections import ConfigDict

from configs import cifar10_18pct
from experiments.changes import Change


def _tanh(base: ConfigDict) -> dict:
    """tanh where there is a ReLU, its own rate, and more epochs."""
    layers = tuple((name, "tanh") if rest == ["relu"] else (name, *rest) for name, *rest in base.model.layers)
    return {"model.layers": layers, "optimizer.learning_rate": 0.016, "epochs": 50}


ABLATIONS = {
    "tanh": Change("tanh instead of ReLU", _tanh, says="six times as many epochs", source="section 3.1, figure 1"),
}


def get_config(arg: str = "") -> ConfigDict:
    """The base, with ReLU; with arg "tanh" that of the other network. Raises ValueError for any other arg."""
    if arg not in ("", "tanh"):
        raise ValueError(f"'{arg}' after the colon: figure1 takes only tanh")
    c = cifar10_18pct.get_config()
    c.name = "figure1"
    c.epochs = 10
    c.model.layers = tuple(entry for entry in c.model.layers if entry[1] != "spatial_norm")
    c.optimizer.learning_rate = 0.004
    c.optimizer.weight_decay, c.optimizer.layer_decays = 0.0, ()
    c.optimizer.drop_epochs = ()
    c.evaluation.every_epochs = 10
    c.log_every_steps = 39  # ten records an epoch
    if arg:
        c.update_from_flattened_dict(_tanh(c))
        c.name = "figure1_tanh"
    return c
