"""What splitting the network costs: a training step with both towers on one device, and with a tower on each of two.

Each has a process of its own, and they take turns on random images. On CPU the two devices share the cores, so the
split cannot gain anything there. Prints medians, and the memory that the compiler reserves on each device.
"""

import statistics
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.config import flat, unflat
from experiments.benchmark import machine, turns
from experiments.benchmark.turns import OURS, Side


def measure(config: ConfigDict, count: int) -> dict[str, Any]:
    """Measures a network in two towers, in `count` turns, and prints. Returns split and machine. Raises UserError."""
    sides = {}
    for devices in (1, 2):
        one = unflat(flat(config))
        one.devices.data, one.devices.tower = 1, devices
        sides[str(devices)] = Side(OURS, {"what": "train", "config": one.to_dict()})
    found = turns.compare(sides, count)
    for devices, seconds in found["seconds"].items():
        about, median = found["about"][devices], statistics.median(seconds)
        held, more = (about[name] / 1e6 for name in ("state_and_batch_bytes", "temporary_bytes"))
        print(
            f"{devices} device(s): {median:.2f} s a step; {held:.0f} MB of state and batch on each, {more:.0f} MB more"
        )
    ratio = turns.spread([two / one for one, two in zip(*found["seconds"].values(), strict=True)])
    low, middle, high = ratio["lowest"], ratio["median"], ratio["highest"]
    print(f"a step on two devices takes {middle:.2f} times as long as on one (from {low:.2f} to {high:.2f})")
    result = {"network": config.name, "batch": config.batch_size, **found, "ratio": ratio}
    return {"split": result, "machine": machine.facts(found["about"])}
