"""The ungrouped network on the paper's images: 224 pixels of 256, colour noise, ten views.

    alexnet train --config configs/ungrouped_224.py

The network and the rates are those of configs/ungrouped.py; the images and how they are augmented, configs/paper.py's.
Ports differ in how 224 pixels make 55 x 55 maps, and in the widths of fc6 and fc7 after the 256 maps:

    --config.model.conv1_padding="(1,2)" --config.model.fc_widths="(2048,2048)"

pads by one pixel before and two after, which shifts the grid by a pixel, and leaves 28,868,968 of 62,378,344
parameters. Both work with every config of 224 pixels. Here: not run.
"""

from ml_collections import ConfigDict

from configs import paper, ungrouped, variants


def get_config(arg: str = "") -> ConfigDict:
    """The config; arg as in configs/paper.py."""
    c, original = ungrouped.get_config(), paper.get_config()
    c.name = "ungrouped_224"
    c.model.conv1_padding = original.model.conv1_padding
    c.data.update(original.data)
    c.evaluation.update(original.evaluation)
    return variants.select(c, arg)
