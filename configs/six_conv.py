"""Table 2's "1 CNN*": a sixth convolution over the last pooled maps, which the paper pretrained on all of ImageNet.

    alexnet train --config configs/six_conv.py
    alexnet train --config configs/six_conv_2012.py --config.start.workdir=runs/six_conv   # then on ILSVRC-2012

The network of the code's #146; conv6 reads both towers. The authors trained it on the Fall 2011 release, 15 million
images of 22,000 classes, and then on ILSVRC-2012 (section 6); configs/six_conv_2012.py is that last training, with its
error. They never trained it from scratch: its first convolutions came from #145, then from a run on the Fall 2009
release (layer-params-146-2009.cfg, layer-params-146-2011.cfg). This config does, by the rules of configs/source.py: a
choice of ours. Here: not run.
"""

from ml_collections import ConfigDict

from configs import source, variants


def get_config(arg: str = "") -> ConfigDict:
    """The six convolutions' config; arg as in configs/paper.py."""
    c = source.get_config()
    c.name = "six_conv"
    m = c.model
    m.conv_widths = (96, 256, 384, 384, 256, 256)  # layers-146-2012-2011.cfg, as the next two
    m.conv_sizes = (11, 5, 3, 3, 3, 3)
    m.conv_strides = (4, 1, 1, 1, 1, 1)
    m.exchange = ("conv3", "conv6", "fc6", "fc7", "fc8")  # layers-146-2012-2011.cfg:260
    m.init_std.conv6 = 0.03  # layers-146-2012-2011.cfg:266
    m.init_bias.conv6 = 1.0  # layers-146-2012-2011.cfg:267
    return variants.select(c, arg)
