"""The one-GPU network that section 3.2 of the paper compares its two towers with: the code's #145-half.

    alexnet train --config configs/one_column.py

Every convolution but the last has half the kernels. The last one and the fully connected layers keep their width, which
keeps the number of parameters about the same. The rest is configs/source.py, with the schedule of its own notes, on
ILSVRC-2010 (layer-params-145-half.cfg). Error noted there on ILSVRC-2010 test (line 100): 39.17 % top-1, 18.23 % top-5
in ten views, 1.70 and 1.23 points above the two towers. Here: not run on ImageNet.
"""

from ml_collections import ConfigDict

from configs import source, variants


def get_config(arg: str = "") -> ConfigDict:
    """The one-GPU network's config; arg as in configs/paper.py."""
    c = source.get_config()
    c.name = "one_column"
    c.epochs = 96  # layer-params-145-half.cfg:95-99, as is all that follows
    c.model.towers = 1
    c.model.conv_widths = (48, 128, 192, 192, 256)  # layers-145-half.cfg

    o = c.optimizer
    # All rates end at 0.00001, and no note says since when: the third drop, at configs/source.py's epoch, is ours.
    o.drop_epochs = (20, 48, 79)
    # conv1 is slowed at 66 and frozen at 72. Its epsB and conv2's end at 0.002 (lines 3 and 11); since when is not
    # noted, and 66 is ours.
    o.layer_rates = ((66, "conv1", 0.1), (66, "conv2/bias", 0.1), (72, "conv1/kernel", 0.0))
    c.data.color_noise_epochs = 66
    return variants.select(c, arg)
