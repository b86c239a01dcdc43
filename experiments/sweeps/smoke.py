"""Every ablation in seconds, to see that the sweep works: an eighth of the paper's width on a few drawn letters."""

from ml_collections import ConfigDict

from experiments.changes import CHANGES
from experiments.sweeps import paper

ABLATIONS = CHANGES


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg as in configs/paper.py."""
    return paper.get_config(f"{arg},smoke")
