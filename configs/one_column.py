"""The paper's one-GPU control, which section 3.2 compares its two towers with: the code's #145-half.

    python -m alexnet_jax.main --config configs/one_column.py

Half of the kernels in every convolution but the last; that and the fully connected layers keep their width, so that the
parameters are about as many. The rest is configs/source.py. Error noted in the code on ILSVRC-2010 test
(layer-params-145-half.cfg:100): 39.17 % top-1, 18.23 % top-5 in ten views, 1.70 and 1.23 points above the two towers.
Here: not run on ImageNet.
"""

from ml_collections import ConfigDict

from configs import source, variants


def get_config(arg: str = "") -> ConfigDict:
    """The control's config; arg as in configs/paper.py."""
    c = source.get_config()
    c.name = "one_column"
    c.model.towers = 1
    c.model.conv_widths = (48, 128, 192, 192, 256)
    return variants.select(c, arg)
