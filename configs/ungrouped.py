"""One GPU, and every kernel connected to every map: how the first ports without groups read the paper.

    alexnet train --config configs/ungrouped.py

It has the widths of both towers together, and 1.57 times the multiply-accumulates. The network is that of MXNet's first
AlexNet (apache/mxnet, example/image-classification/symbol_alexnet.py): one column of 96-256-384-384-256 and 4096-4096,
with norms after the pool, k 1 and alpha / n. These norms are CaffeNet's too, so this is configs/caffenet.py in one
tower. What MXNet's file does not say is Caffe's: initial values, batch, rates and drops, and images of 227 pixels,
warped from 256 x 256, without colour noise, in one view. MXNet's own recipe changed from version to version; later it
returned to the paper's order and k, --config.model.lrn.after_pool="()" --config.model.lrn.k=2.

configs/ungrouped_224.py takes the paper's images instead. Here: not run.
"""

from ml_collections import ConfigDict

from configs import caffenet, variants


def get_config(arg: str = "") -> ConfigDict:
    """The ungrouped network's config; arg as in configs/paper.py."""
    c = caffenet.get_config()
    c.name = "ungrouped"
    c.model.towers = 1
    return variants.select(c, arg)
