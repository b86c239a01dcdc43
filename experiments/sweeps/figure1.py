"""Figure 1: how soon a four-layer network reaches 25 % training error on CIFAR-10, with ReLU and with tanh.

    alexnet sweep --sweep figure1 --seeds 5
    alexnet train --config experiments/sweeps/figure1.py --config.optimizer.learning_rate=0.002     # a rate, to compare

The paper does not say which network of four layers it was. This one is that of configs/cifar10_18pct.py without its
norms: three convolutions and a fully connected layer. As in the paper nothing regularizes: no weight decay, no
augmentation, no norm.

Its rate is still cuda-convnet's, for both. In the record figure1_rates a few others are compared, by the error of a
training epoch: for ReLU 0.004 is the best of three in the third epoch (34.6 %), for tanh 0.016 is the best of five
(48.7 %), and both are the highest that were tried.
"""

from ml_collections import ConfigDict

from configs import cifar10_18pct, variants
from experiments.changes import Change


def _tanh(base: ConfigDict) -> dict:
    """tanh where there is a ReLU, and its own rate."""
    layers = tuple((name, "tanh") if rest == ["relu"] else (name, *rest) for name, *rest in base.model.layers)
    return {"model.layers": layers}


ABLATIONS = {
    "tanh": Change("tanh instead of ReLU", _tanh, says="six times as many epochs", source="section 3.1, figure 1"),
}


def get_config(arg: str = "") -> ConfigDict:
    """The base, with ReLU; arg as in configs/paper.py, or with "tanh" among its words."""
    words = [word.strip() for word in arg.split(",") if word.strip()]
    c = cifar10_18pct.get_config()
    c.name = "figure1"
    c.epochs = 6
    c.model.layers = tuple(entry for entry in c.model.layers if entry[1] != "spatial_norm")
    c.optimizer.weight_decay, c.optimizer.layer_decays = 0.0, ()
    c.optimizer.drop_epochs = ()
    c.log_every_steps = 39  # ten records an epoch
    if "tanh" in words:
        words.remove("tanh")
        c.update_from_flattened_dict(_tanh(c))
        c.name = "figure1_tanh"
    return variants.select(c, ",".join(words))
