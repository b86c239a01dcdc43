"""Caffe's AlexNet, bvlc_alexnet: for years the weights that most people meant by this name.

    alexnet train --config configs/caffe.py
    alexnet convert --from caffe --weights bvlc_alexnet.caffemodel --workdir runs/caffe

What differs from configs/paper.py. Files are those of BVLC/caffe, models/bvlc_alexnet. Error noted there on ILSVRC-2012
validation (readme.md): 42.9 % top-1, 19.8 % top-5, centre. Here: not run.
"""

from ml_collections import ConfigDict

from configs import paper, variants


def get_config(arg: str = "") -> ConfigDict:
    """Caffe's config; arg as in configs/paper.py."""
    c = paper.get_config()
    c.name = "caffe"
    c.batch_size = 256  # train_val.prototxt

    m = c.model
    m.conv1_padding = (0, 0)
    m.lrn.k = 1.0  # caffe.proto's default; the prototxt sets none
    m.lrn.divide_by_size = True  # lrn_layer.cpp:115
    m.lrn.per_tower = False
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        m.init_bias[name] = 0.1  # readme.md: with biases of 1 the loss stayed flat
    m.init_std.fc6 = m.init_std.fc7 = 0.005

    o = c.optimizer  # solver.prototxt
    o.bias_rate = 2.0
    o.rule = "epochs"
    o.drop_epochs = (20, 40, 60, 80)  # every 100,000 of 450,000 steps; an epoch is 5,004

    d = c.data
    d.crop = 227
    d.resize = "warp"  # its instructions resize images to 256 x 256 without keeping their aspect
    d.color_noise = 0.0

    c.evaluation.views = 1
    return variants.select(c, arg)
