"""The network's own work, ours beside PyTorch's: a training step, a batch's logits, one image, ten views, the start.

train: a step on a batch of uint8 images: normalize, forward with dropout, backward, update with decay and momentum.
forward: the logits of a batch of normalized images. image: the same of one image.
ten-view: the mean softmax output of ten crops of each image of a batch, from uint8.
start: a fresh process until it has finished its first training step, imports included, with an empty compilation cache
and again with the filled one.
"""

import tempfile
import time
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.config import flat, unflat
from configs import one_weird_trick, paper, ungrouped
from experiments.benchmark import machine, turns
from experiments.benchmark.limits import Cost
from experiments.benchmark.turns import OURS, PEER, Side

NETWORKS = {"paper": paper, "ungrouped": ungrouped, "torchvision": one_weird_trick}
PEERS = ("torch", "torch-tuned")
STARTS = 3  # turns of start, each of which compiles everything
CACHES = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def prepared(config: ConfigDict, batch: int, dtype: str) -> ConfigDict:
    """A config for a batch, on one device."""
    config = unflat(flat(config))
    config.batch_size, config.model.dtype = batch, dtype
    config.devices.data = config.devices.tower = 1
    return config


def sides(what: str, config: ConfigDict, peer: str | None) -> dict[str, Side]:
    """The workers of a measurement. what: as in worker.py; peer: of PEERS, or None."""
    request = {"what": what, "config": config.to_dict()}
    found = {"ours": Side(OURS, request)}
    if peer:
        found[peer] = Side(PEER, request | {"tuned": peer == "torch-tuned"})
    return found


def measure(what: str, config: ConfigDict, peer: str | None, count: int, rates: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: train, forward, image or ten-view of a prepared config, in `count` turns.

    rates: of machine.rates. Raises UserError.
    """
    found = turns.compare(sides("forward" if what == "image" else what, config, peer), count)
    seconds, about = found["seconds"], found["about"]
    cost = Cost(about["ours"]["operations"], about["ours"]["bytes"])
    limit = machine.limit(cost, rates, config.model.dtype)
    row: dict[str, Any] = {
        "network": config.name,
        "what": what,
        "batch": config.batch_size,
        "dtype": config.model.dtype,
        "seconds": {name: turns.spread(values) | {"turns": values} for name, values in seconds.items()},
        "peak_bytes": {name: machine.peak_bytes(facts) for name, facts in about.items()},
        **cost._asdict(),
        "limit": limit,
        "of_limit": {name: limit["seconds"] / turns.spread(values)["median"] for name, values in seconds.items()},
        "machine": machine.facts(about),
    }
    if what == "train":
        row["compiled_bytes"] = {name: about["ours"][name] for name in ("state_and_batch_bytes", "temporary_bytes")}
    if peer:
        row["ratio"] = turns.ratios(seconds["ours"], seconds[peer])
    return row


def measure_start(config: ConfigDict, peer: str | None, count: int) -> dict[str, Any]:
    """A row of the table of starts. Raises UserError."""
    caches = ("empty", "filled")
    found: dict[str, dict[str, list[float]]] = {}
    about = {}
    for _ in range(min(count, STARTS)):
        for name, side in sides("train", config, peer).items():
            with tempfile.TemporaryDirectory() as folder:
                for cache in caches:
                    began = time.perf_counter()
                    with turns.started(side, dict.fromkeys(CACHES, folder)) as ask:
                        spent = time.perf_counter() - began
                        about[name] = ask({"about": True})
                    found.setdefault(cache, {}).setdefault(name, []).append(spent)
    seconds = {c: {name: turns.spread(values) for name, values in found[c].items()} for c in caches}
    row = {"network": config.name, "what": "start", "batch": config.batch_size, "dtype": config.model.dtype}
    return row | {"seconds": seconds, "machine": machine.facts(about)}
