"""One GPU and every kernel connected to every map: how the first ports without groups read the paper.

    python -m alexnet_jax.main --config configs/ungrouped.py

The widths of both towers, 1.57 times the multiply-accumulates, and CaffeNet's order, pooling before normalization:
MXNet's first AlexNet (example/image-classification/symbols/alexnet.py). Later it went back to the paper's order and k,
--config.model.lrn.after_pool=False --config.model.lrn.k=2. Its recipe changed from version to version; this is
CaffeNet's. Here: not run.
"""

from ml_collections import ConfigDict

from configs import caffenet, variants


def get_config(arg: str = "") -> ConfigDict:
    """The ungrouped network's config; arg as in configs/paper.py."""
    c = caffenet.get_config()
    c.name = "ungrouped"
    c.model.towers = 1
    return variants.select(c, arg)
