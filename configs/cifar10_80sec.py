"""Krizhevsky's network for CIFAR-10 with 26 % error after 80 seconds: cuda-convnet's layers-80sec.

    tfds build cifar10      # once
    alexnet train --config configs/cifar10_80sec.py

145,578 parameters, no augmentation. Where a number has no other source it is layers-80sec.cfg's or its
layer-params-80sec.cfg's. Those say to lower the rate after 8 epochs, and not how long to go on: 2 epochs, as Caffe does
(examples/cifar10/cifar10_quick_solver*.prototxt). cuda-convnet showed the images in a fixed order, in files of 78
batches of 128 and one of 16; here they are shuffled, and the last 80 of an epoch are left out.
"""

from ml_collections import ConfigDict

from alexnet_jax import config
from configs import variants


def get_config(arg: str = "") -> ConfigDict:
    """The network and its training; arg as in configs/paper.py."""
    c = config.default()
    c.name = "cifar10_80sec"
    c.batch_size = 128  # convnet.py's option mini
    c.epochs = 10

    m = c.model
    m.layers = (
        ("conv1", "conv", 32, 5, 0.0001),
        ("pool1", "max_pool"),
        ("relu1", "relu"),
        ("conv2", "conv", 32, 5, 0.01),
        ("relu2", "relu"),
        ("pool2", "average_pool"),
        ("conv3", "conv", 64, 5, 0.01),
        ("relu3", "relu"),
        ("pool3", "average_pool"),
        ("fc64", "dense", 64, 0.1),
        ("relu64", "relu"),
        ("fc10", "dense", 0, 0.1),
    )
    m.pool_size, m.pool_stride = 3, 2

    o = c.optimizer
    o.learning_rate = 0.001  # epsW
    o.bias_rate = 2.0  # epsB is 0.002
    o.momentum = 0.9
    o.weight_decay = 0.004  # wc of the convolutions
    o.layer_decays = (("fc64", 0.03), ("fc10", 0.03))
    o.rule = "epochs"
    o.drop_epochs = (8,)

    variants.data_set(c, "cifar10")
    c.data.size = c.data.crop = 32
    c.data.mean = "pixel"
    c.data.stored = "raw"  # JPEGs would not be CIFAR-10's pixels
    return variants.select(c, arg)
