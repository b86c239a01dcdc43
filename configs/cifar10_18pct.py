"""Krizhevsky's network for CIFAR-10 with 18 % error: cuda-convnet's layers-18pct, with norms within each map.

    tfds build cifar10      # once
    alexnet train --config configs/cifar10_18pct.py

89,578 parameters, no augmentation. The numbers are from layers-18pct.cfg and layer-params-18pct.cfg; the order of the
images as in configs/cifar10_80sec.py.
"""

from ml_collections import ConfigDict

from configs import cifar10_80sec, variants


def get_config(arg: str = "") -> ConfigDict:
    """The network and its training; arg as in configs/paper.py."""
    c = cifar10_80sec.get_config()
    c.name = "cifar10_18pct"
    c.epochs = 140

    c.model.layers = (
        ("conv1", "conv", 32, 5, 0.0001),
        ("pool1", "max_pool"),
        ("relu1", "relu"),
        ("norm1", "spatial_norm"),
        ("conv2", "conv", 32, 5, 0.01),
        ("relu2", "relu"),
        ("pool2", "average_pool"),
        ("norm2", "spatial_norm"),
        ("conv3", "conv", 64, 5, 0.01),
        ("relu3", "relu"),
        ("pool3", "average_pool"),
        ("fc10", "dense", 0, 0.01),
    )
    norm = c.model.spatial_norm  # cuda-convnet divides alpha by size x size, as the field does
    norm.size, norm.k, norm.alpha, norm.beta = 3, 1.0, 5e-5, 0.75

    c.optimizer.layer_decays = (("fc10", 1.0),)
    c.optimizer.drop_epochs = (120, 130)  # "all learning rates": those of biases too
    return variants.select(c, arg)
