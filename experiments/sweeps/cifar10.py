"""Krizhevsky's four networks for CIFAR-10, each with its own training, over seeds; the base is the 80-second one.

alexnet sweep --sweep cifar10 --seeds 3 --only cifar10_18pct
"""

import importlib

from ml_collections import ConfigDict

from alexnet_jax.config import fields
from configs import cifar10_80sec
from experiments.changes import Change


def _preset(name: str, title: str) -> Change:
    """The fields in which another preset differs from the base."""

    def changed(base: ConfigDict) -> dict:
        there = fields(base)
        other = fields(importlib.import_module(f"configs.{name}").get_config())
        return {field: value for field, value in other.items() if field != "name" and there[field] != value}

    return Change(title, changed, source="cuda-convnet")


ABLATIONS = {
    "cifar10_18pct": _preset("cifar10_18pct", "18 % network: norms within maps"),
    "cifar10_13pct": _preset("cifar10_13pct", "13 % network: locally connected, crops, ten views"),
    "cifar10_11pct": _preset("cifar10_11pct", "11 % network: the same with norms across maps, and larger"),
}


def get_config(arg: str = "") -> ConfigDict:
    """The base. It takes no arg: the changes are whole presets, and would undo it. Raises ValueError."""
    if arg:
        raise ValueError(f"'{arg}' after the sweep's colon: cifar10 takes none")
    return cifar10_80sec.get_config()
