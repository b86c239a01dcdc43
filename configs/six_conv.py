"""Table 2's "1 CNN*": a sixth convolution over the last pooled maps, made to be pretrained on all of ImageNet.

    python -m alexnet_jax.main --config configs/six_conv.py

The code's #146; the rest is configs/source.py. conv6 reads both towers, as the code's parameters and
multiply-accumulates say; its initial values, those of conv4 and conv5, are ours. The authors trained it on the Fall
2011 release, 15 million images of 22,000 classes, and then on ILSVRC-2012 (section 6): train it on the one set, then
configs/finetune.py on the other. Error noted in the code on ILSVRC-2012 validation
(layer-params-146-2012-2011.cfg:195): 38.99 % top-1, 16.62 % top-5 in ten views. Here: not run.
"""

from ml_collections import ConfigDict

from configs import source, variants


def get_config(arg: str = "") -> ConfigDict:
    """The six convolutions' config; arg as in configs/paper.py."""
    c = source.get_config()
    c.name = "six_conv"
    m = c.model
    m.conv_widths = (96, 256, 384, 384, 256, 256)
    m.exchange = ("conv3", "conv6", "fc6", "fc7", "fc8")
    m.init_std.conv6 = 0.03
    m.init_bias.conv6 = 1.0
    return variants.select(c, arg)
