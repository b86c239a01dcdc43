"""The paper's network and rules on Imagenette: ten classes of ImageNet, 9,469 training photos.

    TFDS_DATA_DIR=... python -m alexnet_jax.main --config configs/imagenette.py

The initial values are the code's, not the paper's. Hardware, time and error: not run.
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
