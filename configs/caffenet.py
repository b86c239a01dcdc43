"""Caffe's second AlexNet, bvlc_reference_caffenet, which pools before it normalises, by mistake (caffe#4202).

    alexnet train --config configs/caffenet.py

What differs from configs/caffe.py. Files are those of BVLC/caffe, models/bvlc_reference_caffenet. Error noted there on
ILSVRC-2012 validation (readme.md): 42.6 % top-1, 19.6 % top-5, centre. Here: not run.
"""

from ml_collections import ConfigDict

from configs import caffe, variants


def get_config(arg: str = "") -> ConfigDict:
    """CaffeNet's config; arg as in configs/paper.py."""
    c = caffe.get_config()
    c.name = "caffenet"
    c.model.lrn.after_pool = ("conv1", "conv2")  # train_val.prototxt: pool1 feeds norm1, pool2 norm2
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        c.model.init_bias[name] = 1.0  # train_val.prototxt
    return variants.select(c, arg)
