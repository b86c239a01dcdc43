"""Every ablation in seconds: an eighth of the paper's width on a few drawn letters. It shows that the sweep works."""

from ml_collections import ConfigDict

from experiments import sweep_paper
from experiments.changes import CHANGES

ABLATIONS = CHANGES


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg as in configs/paper.py."""
    return sweep_paper.get_config(f"{arg},smoke")
