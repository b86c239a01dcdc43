"""One GPU and every kernel connected to every map: how the first ports without groups read the paper.

    python -m alexnet_jax.main --config configs/ungrouped.py

The widths of both towers, 1.57 times the multiply-accumulates, and CaffeNet's order, pooling before normalization, with
the paper's k of 2: MXNet's first AlexNet (example/image-classification/symbols/alexnet.py; later it went back to the
paper's order, --config.model.lrn.after_pool=False). Its recipe changed from version to version; this is CaffeNet's.
Here: not run.
"""

from ml_collections import ConfigDict

from configs import caffenet, variants


def get_config(arg: str = "") -> ConfigDict:
    """The ungrouped network's config; arg as in configs/paper.py."""
    c = caffenet.get_config()
    c.name = "ungrouped"
    c.model.towers = 1
    c.model.lrn.k = 2.0
    return variants.select(c, arg)
