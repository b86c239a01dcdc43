"""Compares two runs that should be the same, and finds files that should have been removed.

"Equal" covers every array and every value of every checkpoint, bit for bit; all records except `images_per_second`;
config, statistics and every other JSON and .npz file; the pixels of the pictures; and the prepared set, byte for byte.
TensorBoard's files are left out because their names and records contain the time, and so are locks.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

VARIABLE = ("images_per_second",)  # differs from run to run
TEMPORARY = ("partial.*", "*.tmp", "*.tmp.*", "*.partial", "incomplete.*", "*orbax-checkpoint-tmp*")


def leftovers(*folders: Path) -> list[str]:
    """Temporary files that a kill has left and nothing has removed."""
    return [
        f"left over: {p.relative_to(f)}" for f in folders for pattern in TEMPORARY for p in sorted(f.rglob(pattern))
    ]


def runs(ours: Path, theirs: Path) -> list[str]:
    """The differences between two workdirs, one line each."""
    troubles = _names("files", *({n for n in _files(w) if not n.startswith("checkpoints/")} for w in (ours, theirs)))
    for name in sorted(_files(ours) & _files(theirs)):
        if not name.startswith("checkpoints/"):
            troubles += _file(ours / name, theirs / name, name)
    steps = [{p.name for p in (w / "checkpoints").iterdir() if p.is_dir()} for w in (ours, theirs)]
    troubles += _names("checkpoints", *steps)
    for step in sorted(steps[0] & steps[1]):
        one, other = (read_checkpoint(w / "checkpoints" / step) for w in (ours, theirs))
        troubles += arrays(one, other, step)
    return troubles


def prepared(ours: Path, theirs: Path) -> list[str]:
    """The differences between two caches: prepared sets and drawn glyphs."""
    names = [{n for n in _files(c) if not n.startswith("xla/")} for c in (ours, theirs)]
    troubles = _names("cached files", *names)
    for name in sorted(names[0] & names[1]):
        # TFDS's files contain dates, and the fields of an example in any order; what is prepared from them is compared.
        if "/tfds/" not in name:
            troubles += _file(ours / name, theirs / name, name)
    return troubles


def _files(folder: Path) -> set[str]:
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    # metrics.old is that of a run that was killed while it saved for the first time.
    ignored = ("events.out.tfevents", "metrics.old")
    return {n for n in found if not n.endswith(".lock") and not Path(n).name.startswith(ignored)}


def _names(what: str, ours: set[str], theirs: set[str]) -> list[str]:
    extra = [f"{what}: {name} is not in the reference" for name in sorted(ours - theirs)]
    return extra + [f"{what}: {name} is missing" for name in sorted(theirs - ours)]


def _file(ours: Path, theirs: Path, name: str) -> list[str]:
    if ours.suffix == ".npz":
        return arrays(*(dict(np.load(p, allow_pickle=False)) for p in (ours, theirs)), name)
    if ours.suffix == ".png":
        return arrays(*({"pixels": np.asarray(Image.open(p))} for p in (ours, theirs)), name)
    if ours.suffix == ".jsonl":
        one, other = (records(p) for p in (ours, theirs))
        if one == other:
            return []
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        return [f"{name}: {len(one)} records, {len(other)} in the reference; the first to differ is number {at}"]
    one, other = (json.loads(p.read_text()) if p.suffix == ".json" else p.read_bytes() for p in (ours, theirs))
    return [] if one == other else [f"{name} differs"]


def records(path: Path) -> list[dict]:
    """The records of a metrics.jsonl, without the fields that differ from run to run."""
    return [{k: v for k, v in json.loads(li).items() if k not in VARIABLE} for li in path.read_text().splitlines()]


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Everything in a checkpoint, by name: arrays, and the host's values as text."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder / "state").item_metadata.tree
        plain = ocp.checkpoint_utils.construct_restore_args(tree)
        as_numpy = _mapped(plain, lambda _: ocp.RestoreArgs(restore_type=np.ndarray))
        state = reader.restore(folder / "state", restore_args=as_numpy)
    found = {f"state/{name}": np.asarray(value) for name, value in _leaves(state)}
    for path in (folder / "host" / "metadata", folder / "metrics" / "metrics"):
        if path.exists():
            values = json.loads(path.read_text())
            found |= {f"{path.parent.name}/{name}": np.array(json.dumps(v)) for name, v in _leaves(values)}
    return found


def _mapped(tree, function):
    if isinstance(tree, dict):
        return {k: _mapped(v, function) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(v, function) for v in tree)
    return function(tree)


def _leaves(tree, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{prefix}/{key}" if prefix else str(key))
    elif tree is not None:
        yield prefix, tree


def arrays(ours: dict, theirs: dict, where: str) -> list[str]:
    """The differences between two sets of arrays by name, one line each."""
    troubles = _names(where, set(ours), set(theirs))
    for name in sorted(set(ours) & set(theirs)):
        a, b = ours[name], theirs[name]
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            troubles.append(f"{where}: {name} differs from the reference")
    return troubles
