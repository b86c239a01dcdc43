"""Table 2's "1 CNN*", its last training: from the weights of configs/six_conv.py on other images to ILSVRC-2012.

    alexnet train --config configs/six_conv_2012.py --config.start.workdir=runs/six_conv
    alexnet train --config configs/six_conv_2012.py:imagenette --config.start.workdir=runs/six_conv

start.workdir names the run to start from. The code's #146-2012-2011, by the notes of
layer-params-146-2012-2011.cfg:181-195: a new fc8, conv1 slow and soon frozen, 54 epochs. Error noted there on
ILSVRC-2012 validation (line 195): 38.99 % top-1, 16.62 % top-5 in ten views. Here: not run.
"""

from ml_collections import ConfigDict

from configs import six_conv, variants


def get_config(arg: str = "") -> ConfigDict:
    """The config; arg as in configs/paper.py."""
    c = six_conv.get_config()
    c.name = "six_conv_2012"
    c.epochs = 54
    c.start.workdir = ""  # the command line's
    c.start.fresh = ("fc8",)  # layers-146-2012-2011.cfg: every other layer has an initWFunc

    o = c.optimizer
    o.learning_rate = 0.001
    o.drop_epochs = (22, 42)
    o.bias_rate = 20.0  # epsB 0.02
    o.layer_rates = (
        (0, "conv1/kernel", 0.1), (5, "conv1/kernel", 0.01), (7, "conv1", 0.0),
        (0, "conv6/bias", 1.1),  # epsB 0.022
        (0, "fc8/kernel", 10.0), (9, "fc8/kernel", 1.0),  # there from step 300 on
    )  # fmt: skip
    c.data.color_noise_epochs = 38
    return variants.select(c, arg)
