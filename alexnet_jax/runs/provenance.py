"""What a run was trained on: its data, and the machines. Kept beside it, in provenance.json.

Other data would end in a network of neither set, so they are refused. Another machine is only warned of: the same
program rounds otherwise there, and a resumed run no longer ends bit for bit where an undisturbed one would.
"""

import hashlib
import json
import os
import platform
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import UserError, one_line
from alexnet_jax.data.host import cores
from alexnet_jax.data.records import Prepared

FILE = "provenance.json"  # {"data": {what: number or digest}, "machines": [{what: value}, ...], in order of use}


def of_data(prepared: Prepared) -> dict[str, int | str]:
    """What tells a prepared set from another: its classes, its statistics, and of both splits the names and labels.

    Not the pixels, of which there are too many; but every pixel of the training split counts in the statistics.
    """
    statistics = [np.ascontiguousarray(prepared.statistics[name], "<f4").tobytes() for name in _STATISTICS]
    facts = {"classes": _digest(*map(_encoded, prepared.classes)), "statistics": _digest(*statistics)}
    for role, split in (("training", prepared.train), ("validation", prepared.evaluation)):
        facts[f"number of {role} images"] = len(split)
        facts[f"names of {role} images"] = _digest(*map(_encoded, split.ids))
        facts[f"labels of {role} images"] = _digest(np.ascontiguousarray(split.labels, "<i4").tobytes())
    return facts


_STATISTICS = ("mean", "channel_mean", "stdevs", "vectors")


def of_machine(mesh: Mesh) -> dict[str, int | str]:
    """What decides how a run's numbers are rounded."""
    return {
        "CPU": _cpu(),
        "cores": cores(),  # XLA splits its sums by them
        "devices": f"{mesh.shape['data']} x {mesh.shape['tower']} {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def differences(theirs: dict, mine: dict) -> str:
    """What differs, in words, the values too where they say something; "" if nothing does that both record."""

    def said(name):
        a, b = theirs.get(name), mine.get(name)
        return name if _is_digest(a) or _is_digest(b) else f"{name}: {a} there, {b} here"

    return "; ".join(said(name) for name in mine if theirs.get(name, mine[name]) != mine[name])


def check(facts: dict, workdir: Path):
    """Raises UserError if a run that is to go on was trained on other data; an older run, without a record, may."""
    recorded = read(workdir).get("data")
    if recorded and (differ := differences(recorded, facts)):
        raise UserError(
            f"the data set is not the one that {workdir} was trained on ({differ}): put that one's prepared folder "
            "back where --config.data.prepared_dir says, or name another --workdir"
        )


def warning(machine: dict, workdir: Path) -> str | None:
    """One line if a run that is to go on was, in part, trained on another machine; else None."""
    for other in read(workdir).get("machines", []):
        if differ := differences(other, machine):
            return (
                f"warning: {workdir} was trained on other hardware or releases ({differ}): it no longer ends bit for "
                "bit where an undisturbed run would"
            )
    return None


def text(facts: dict, machine: dict, workdir: Path, fresh: bool) -> str:
    """The file to be written: of a fresh run, or of one that goes on, whose machines are kept."""
    machines = [] if fresh else read(workdir).get("machines", [])
    machines = machines if machine in machines else [*machines, machine]
    return json.dumps({"data": facts, "machines": machines}, indent=2) + "\n"


def read(workdir: Path) -> dict:
    """What the file holds; {} if there is none, as in runs older than it. Raises UserError if it is damaged."""
    path = workdir / FILE
    try:
        found = json.loads(path.read_text())
        good = isinstance(found["data"], dict) and all(isinstance(m, dict) for m in found["machines"])
        reason = "not what this writes"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as e:
        good, reason = False, one_line(e)
    if not good:
        raise UserError(f"{path} is damaged ({reason}): remove it, and the run goes on without a look at what it says")
    return found


def digest(facts: dict) -> bytes:
    """32 bytes that tell `of_data` of one set from another's."""
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
    """The CPU's type, with its vector instructions, by which XLA chooses its code; a cloud's names say little."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    fields = {name.strip(): value for name, _, value in (line.partition(": ") for line in reversed(lines))}
    name = fields.get("model name") or platform.processor() or platform.machine()
    vectors = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in fields.get("flags", "").split()]
    return " ".join([*name.split(), *vectors])
