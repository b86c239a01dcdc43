"""Krizhevsky's network for CIFAR-10 with 11 % error: cuda-convnet's layers-conv-local-11pct, with norms across maps.

    tfds build cifar10      # once
    alexnet train --config configs/cifar10_11pct.py

2,112,970 parameters. The numbers are from layers-conv-local-11pct.cfg and layer-params-conv-local-11pct.cfg, which
trained about 350 epochs on four fifths of the images and 150 + 10 + 10 on all of them: see configs/cifar10_13pct.py.

Section 3.3 of the paper compares the two: 13 % without the norm, 11 % with it. They differ in more than that: here
local3 has twice the kernels, fc10 more decay, and training is three times as long. For the norm alone, there is a sweep
that trains this network with and without it, experiments/sweeps/cifar10_norm.py.
"""

from ml_collections import ConfigDict

from configs import cifar10_13pct, variants


def get_config(arg: str = "") -> ConfigDict:
    """The network and its training; arg as in configs/paper.py."""
    c = cifar10_13pct.get_config()
    c.name = "cifar10_11pct"
    c.epochs = 450  # 280 + 150 + 10 + 10

    c.model.layers = (
        ("conv1", "conv", 64, 5, 0.0001),
        ("relu1", "relu"),
        ("pool1", "max_pool"),
        ("norm1", "lrn"),
        ("conv2", "conv", 64, 5, 0.01),
        ("relu2", "relu"),
        ("norm2", "lrn"),
        ("pool2", "max_pool"),
        ("local3", "local", 64, 3, 0.04),
        ("relu3", "relu"),
        ("local4", "local", 32, 3, 0.04),
        ("relu4", "relu"),
        ("fc10", "dense", 0, 0.01),
    )
    norm = c.model.lrn
    norm.size, norm.k, norm.alpha, norm.beta = 9, 1.0, 0.001, 0.75
    norm.divide_by_size = True

    c.optimizer.layer_decays = (("local3", 0.004), ("local4", 0.004), ("fc10", 0.01))
    c.optimizer.drop_epochs = (430, 440)
    return variants.select(c, arg)
