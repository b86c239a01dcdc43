"""The paper's network with every ablation, on ImageNet, or on ten of its classes with `--sweep paper:imagenette`.

The base uses the 2012 code's initial values: from the paper's own values the network has not begun to learn after
511 steps (see docs/departures.md). "paper_init" is the ablation that uses them. Everything else is the paper's, even
where the code differs and a number comes from one of its notes: one learning rate for weights and biases, norms after
the ReLU, alpha not divided.
"""

from ml_collections import ConfigDict

from configs import paper, variants
from experiments.changes import CHANGES

ABLATIONS = CHANGES


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg as in configs/paper.py."""
    c = paper.get_config()
    for name in ("conv3", "conv4", "conv5"):
        c.model.init_std[name] = 0.03  # layers-145.cfg
    return variants.select(c, arg)
