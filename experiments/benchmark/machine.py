"""How fast this machine multiplies matrices and moves memory: the best of JAX and PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax import UserError
from alexnet_jax.runs import provenance
from experiments.benchmark import turns
from experiments.benchmark.limits import Cost
from experiments.benchmark.turns import Side

SIDES = (2048, 4096)  # of the matrices
ARRAY = 2**30  # bytes of the arrays that are copied: beyond the caches
TURNS, LEAST = 3, 0.5  # turns, and seconds of each


def rates(modules: Mapping[str, str], dtypes: Sequence[str]) -> dict[str, Any]:
    """Measures on all cores, or on the accelerator.

    modules: {side: the module of its worker}. Returns: operations_per_second, {dtype: of matrix products};
    bytes_per_second, read and written in copies; measured, every median by what and side; platform, what computes.
    """
    measured: dict[str, dict[str, float]] = {}
    platforms: set[str] = set()

    def best(what: str, request: dict, work: float) -> float:
        found = turns.compare({name: Side(module, request) for name, module in modules.items()}, TURNS, LEAST)
        speeds = {name: work / turns.spread(seconds)["median"] for name, seconds in found["seconds"].items()}
        measured[what] = speeds
        platforms.update(facts["platform"] for facts in found["about"].values())
        return max(speeds.values())

    operations = {
        dtype: max(
            best(f"matmul {side} {dtype}", {"what": "matmul", "side": side, "dtype": dtype}, 2 * side**3)
            for side in SIDES
        )
        for dtype in dict.fromkeys(dtypes)
    }
    copied = best("copy", {"what": "copy", "bytes": ARRAY}, 2 * ARRAY)
    found = {"operations_per_second": operations, "bytes_per_second": copied, "measured": measured}
    return found | {"platform": " and ".join(sorted(platforms))}


def facts(about: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The hardware and the versions, from what workers say about themselves, {side: facts}.

    Its device is what computes, a GPU's name or "cpu"; how many there are is of one measurement.
    """
    found: dict[str, Any] = {}
    for side in about.values():
        found |= side.get("machine", {}) | {name: side[name] for name in ("torch", "cuda", "device") if name in side}
    found.pop("devices", None)
    return found


def refuse_other(there: Mapping[str, Any], here: Mapping[str, Any], path: str | None):
    """Raises UserError if the machine of earlier measurements in a file is not this one. there, here: of `facts`."""
    if differ := provenance.differences(dict(there), dict(here)):
        raise UserError(f"{path} is of another machine ({differ}): name another --save")


def peak_bytes(about: Mapping[str, Any]) -> int:
    """The peak memory of a worker: that of its accelerator if it has one, else that of its process."""
    return about.get("device_peak_bytes", about["peak_bytes"])


def limit(cost: Cost, rates: Mapping[str, Any], dtype: str) -> dict[str, float]:
    """Seconds that a step takes at the least, if arithmetic and memory overlap; and `sum`, if they do not."""
    arithmetic = cost.operations / rates["operations_per_second"][dtype]
    memory = cost.bytes / rates["bytes_per_second"]
    return {"arithmetic": arithmetic, "memory": memory, "seconds": max(arithmetic, memory), "sum": arithmetic + memory}
