"""What a run was trained on, its data and its machines, as its workdir records it in provenance.json.

A run is not resumed on other data: the result would be a network of neither set. On another machine it is resumed with
a warning: the program rounds differently there, and the result no longer equals an uninterrupted run's bit for bit.
"""

import hashlib
import json
import os
import platform
from pathlib import Path

import flax
import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import UserError, one_line
from alexnet_jax.data.host import cores
from alexnet_jax.data.records import Prepared, statistics_shapes

FILE = "provenance.json"  # {"data": {what: number or digest}, "machines": [{what: value}, ...], in order of use}


def of_data(prepared: Prepared) -> dict[str, int | str]:
    """What tells a prepared set from another: its classes, its statistics, and the names and labels of both splits.

    Not the pixels, which would take long; but every pixel of the training split counts in the statistics.
    """
    facts: dict[str, int | str] = {}
    facts["classes"] = _digest(*map(_encoded, prepared.classes))
    facts |= of_statistics(prepared)
    for role, split in (("training", prepared.train), ("validation", prepared.evaluation)):
        facts[f"number of {role} images"] = len(split)
        facts[f"names of {role} images"] = _digest(*map(_encoded, split.ids))
        facts[f"labels of {role} images"] = _digest(np.ascontiguousarray(split.labels, "<i4").tobytes())
    return facts


def of_statistics(prepared: Prepared) -> dict[str, int | str]:
    """What tells the statistics that a network takes from its images from others: `statistics`, a digest."""
    names = statistics_shapes(prepared.train.size)
    return {"statistics": _digest(*(np.ascontiguousarray(prepared.statistics[n], "<f4").tobytes() for n in names))}


def of_machine(mesh: Mesh) -> dict[str, int | str]:
    """All that changes a run's numbers: how they are rounded, and which random numbers it draws."""
    return {
        "CPU": _cpu(),
        "cores": cores(),  # XLA splits its sums by them
        "devices": f"{mesh.shape['data']} x {mesh.shape['tower']} {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,  # dropout's keys
        "numpy": np.__version__,  # the order, crops and noise of an epoch
    }


def differences(theirs: dict, mine: dict) -> str:
    """What differs, in words, with the values if they are readable; "" if nothing differs that both record."""

    def said(name):
        a, b = theirs.get(name), mine.get(name)
        return name if _is_digest(a) or _is_digest(b) else f"{name}: {a} there, {b} here"

    return "; ".join(said(name) for name in mine if theirs.get(name, mine[name]) != mine[name])


def refuse_changed_data(facts: dict, workdir: Path):
    """Raises UserError if a run that is to be resumed was trained on other data; an older run has no record of it."""
    recorded = read(workdir).get("data")
    if recorded and (differ := differences(recorded, facts)):
        raise UserError(
            f"the data set is not the one that {workdir} was trained on ({differ}): put that one's prepared folder "
            "back where --config.data.prepared_dir says, or name another --workdir"
        )


def warning(machine: dict, workdir: Path) -> str | None:
    """One line if a run that is to be resumed was, in part, trained on another machine; else None."""
    for other in read(workdir).get("machines", []):
        if differ := differences(other, machine):
            return (
                f"warning: {workdir} was trained on other hardware or releases ({differ}): the result will not equal "
                "an uninterrupted run's bit for bit"
            )
    return None


def text(facts: dict, machine: dict, workdir: Path, fresh: bool) -> str:
    """The file's new content: of a fresh run, or of a resumed one, whose earlier machines are kept."""
    machines = [] if fresh else read(workdir).get("machines", [])
    machines = machines if machine in machines else [*machines, machine]
    return json.dumps({"data": facts, "machines": machines}, indent=2) + "\n"


def read(workdir: Path) -> dict:
    """The file's content; {} if there is no file, as in older runs. Raises UserError if it is damaged."""
    path = workdir / FILE
    try:
        found = json.loads(path.read_text())
        good = isinstance(found["data"], dict) and all(isinstance(m, dict) for m in found["machines"])
        reason = "it has another form"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        good, reason = False, one_line(e)
    if not good:
        raise UserError(f"{path} is damaged ({reason}): remove it, and the run resumes without comparing its data")
    return found


def digest(facts: dict) -> bytes:
    """A hash, 32 bytes, of what of_data returns."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)  # with their lengths: "ab", "c" is not "a", "bc"
    return total.hexdigest()


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _is_digest(value) -> bool:
    return isinstance(value, str) and len(value) == 64


def _cpu() -> str:
    """The CPU's type, and its vector instructions, as XLA compiles for these and a cloud's CPU names hide them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    fields = {name.strip(): value for name, _, value in (line.partition(": ") for line in reversed(lines))}
    name = fields.get("model name") or platform.processor() or platform.machine()
    vectors = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in fields.get("flags", "").split()]
    return " ".join([*name.split(), *vectors])
