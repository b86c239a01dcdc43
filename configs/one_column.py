"""The paper's one-GPU control, which section 3.2 compares its two towers with: the code's #145-half.

    python -m alexnet_jax.main --config configs/one_column.py

Half of the kernels in every convolution but the last; that and the fully connected layers keep their width, so that the
parameters are about as many. The rest is configs/source.py, with the schedule of its own notes, on ILSVRC-2010
(layer-params-145-half.cfg). Error noted there on ILSVRC-2010 test (line 100): 39.17 % top-1, 18.23 % top-5 in ten
views, 1.70 and 1.23 points above the two towers. Here: not run on ImageNet.
"""

from ml_collections import ConfigDict

from configs import source, variants


def get_config(arg: str = "") -> ConfigDict:
    """The control's config; arg as in configs/paper.py."""
    c = source.get_config()
    c.name = "one_column"
    c.epochs = 96  # layer-params-145-half.cfg:95-99, as what follows
    c.model.towers = 1
    c.model.conv_widths = (48, 128, 192, 192, 256)  # layers-145-half.cfg

    o = c.optimizer
    # All end at 0.00001, and no note says since when: the third drop is configs/source.py's, ours here.
    o.drop_epochs = (20, 48, 79)
    # conv1 is slowed at 66 and frozen at 72. Its epsB and conv2's end at 0.002, line 3 and 11; that they do from 66 on
    # is ours.
    o.layer_rates = ((66, "conv1", 0.1), (66, "conv2/bias", 0.1), (72, "conv1/kernel", 0.0))
    c.data.color_noise_epochs = 66
    return variants.select(c, arg)
