"""The network of 2012 on Imagenette: ten classes of ImageNet, 9,469 training photos.

    tfds build imagenette/160px-v2      # once
    alexnet train --config configs/imagenette.py

The rules are those of the 2012 code, configs/source.py, with its initial values. The first 6 epochs took 53 minutes on
two cores of an Intel Xeon (AVX-512), shared with other work, at 20 images/s; top-1 error was then 66.9 %, top-5 18.0 %,
centre (2026-11-23, seed 0). The rest: not run.
"""

from ml_collections import ConfigDict

from configs import source, variants


def get_config(arg: str = "") -> ConfigDict:
    """The full network on Imagenette; arg as in configs/paper.py."""
    c = variants.select(source.get_config(), "imagenette")
    c.name = "imagenette"
    c.checkpoint_every_steps = 100
    c.log_every_steps = 5
    return variants.select(c, arg)
