"""Krizhevsky's network for CIFAR-10 with 13 % error: cuda-convnet's layers-conv-local-13pct, locally connected.

    tfds build cifar10      # once
    alexnet train --config configs/cifar10_13pct.py

1,116,490 parameters on crops of 24 from 32 pixels; ten views at the end. The numbers are from the files
layers-conv-local-13pct.cfg and layer-params-conv-local-13pct.cfg, and the wiki's page Methodology. That trained 100
epochs on four fifths of the images, to see when to stop, then 40 + 10 + 10 on all of them. Here all images are used
from the start, and the first part is 80 epochs, which is as many steps. The order of the images is as in
configs/cifar10_80sec.py.
"""

from ml_collections import ConfigDict

from configs import cifar10_80sec, variants


def get_config(arg: str = "") -> ConfigDict:
    """The network and its training; arg as in configs/paper.py."""
    c = cifar10_80sec.get_config()
    c.name = "cifar10_13pct"
    c.epochs = 140  # 80 + 40 + 10 + 10

    c.model.layers = (
        ("conv1", "conv", 64, 5, 0.0001),
        ("relu1", "relu"),
        ("pool1", "max_pool"),
        ("conv2", "conv", 64, 5, 0.01),
        ("relu2", "relu"),
        ("pool2", "max_pool"),
        ("local3", "local", 32, 3, 0.04),
        ("relu3", "relu"),
        ("local4", "local", 32, 3, 0.04),
        ("relu4", "relu"),
        ("fc10", "dense", 0, 0.01),
    )

    o = c.optimizer
    o.weight_decay = 0.0  # of the convolutions
    o.layer_decays = (("local3", 0.004), ("local4", 0.004), ("fc10", 0.004))
    o.drop_epochs = (120, 130)
    o.bias_rule = "epochs"  # the rates of biases stay

    d = c.data
    d.crop = 24
    d.mean = "centre"  # the centre of the mean image from every crop, convdata.py
    d.random_crop = d.flip = True
    c.evaluation.views = 10
    return variants.select(c, arg)
