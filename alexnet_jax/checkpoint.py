"""Checkpoints: saving, restoring, and what to do about a damaged one. Everything that knows Orbax.

A checkpoint is workdir/checkpoints/step_<step>, with the training state and the host's part: JSON of the plateau, the
running sums, the last result, and a checksum of every array of the state.

A run that was killed and resumed equals one that was not, and one whose epochs were raised later equals one that had
them from the start. On one CPU type with the same number of cores that means: the checkpoints at the same step contain
the same bits, parameters, velocity, plateau and running sums, and metrics.jsonl the same records, except for
images_per_second and, where epochs were raised, the last evaluation at the former end, which stays. If no evaluation
was due there (evaluation.every_epochs), its checkpoint can still be the best one. TensorBoard's events may repeat
steps.
"""

import contextlib
import gc
import io
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax import UserError, may_pass, one_line, out_of_memory, towers

FOLDER = "checkpoints"
PREFIX = "step"  # of a checkpoint's folder, step_<step>
CHECKSUMS = "checksums"  # their key in the host's part
NONE_YET = "{} has no checkpoint yet: let alexnet train reach its first one"
ERROR = "top1_error"  # the metric that is saved with a checkpoint at the end of an epoch


def manager(workdir: Path) -> ocp.CheckpointManager:
    """Opens a run's checkpoints. The latest one and the one with the lowest validation error are kept.

    Raises UserError, saying what to do, if they cannot be listed.
    """
    # Orbax logs twenty lines for each save, and a hundred for each error before raising it; UserError says it in one.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    best = policies.BestN(get_metric_fn=lambda m: -m[ERROR], n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
        best_fn=lambda m: m[ERROR],
        best_mode="min",
        step_prefix=PREFIX,
    )
    directory = (workdir / FOLDER).absolute()

    def opened():
        found = ocp.CheckpointManager(directory, options=options)
        found.best_step()  # reads the errors of all of them
        return found

    return _tried(opened, f"the checkpoints in {directory} cannot be listed", lambda: _way_out(workdir, None))


def latest_step(workdir: Path) -> int | None:
    """Returns the step of the latest checkpoint, from the folders' names alone; None if there is none."""
    return max(_steps(workdir), default=None)


def _steps(workdir: Path) -> list[int]:
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    found = [re.fullmatch(rf"{PREFIX}_(\d+)", path.name) for path in folder.iterdir()]
    return [int(match[1]) for match in found if match]


# ---------------------------------------------------------------- saving


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any, host: dict, error: float | None = None) -> None:
    """Writes a checkpoint at `step`, in the background. If it is killed, the previous checkpoint stays the latest.

    Args:
      state: a tree of arrays of 4-byte numbers.
      host: the host's part, JSON; floats may be infinite or NaN.
      error: the validation top-1 error, 0..1, if the step ends an epoch that was evaluated.
    Raises UserError if the disk is full or not writable.
    """
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    host = host | {CHECKSUMS: checksums(state)}  # Orbax's files have none
    try:
        free = shutil.disk_usage(checkpoints.directory).free
        if free < needed:  # checked first, because Orbax's threads fail in a hundred lines
            raise OSError(f"it requires {needed:,} bytes and the disk has {free:,} left")
        checkpoints.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(_to_json(host))),
            metrics=None if error is None else {ERROR: error},
            force=True,
        )
    except (OSError, ValueError) as e:
        raise _write_error(checkpoints, e) from e


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Waits for saves in progress, and removes old checkpoints that a kill kept from being removed after a save.

    Raises UserError if a save failed.
    """
    try:
        checkpoints.wait_until_finished()
        for step in set(checkpoints.all_steps()) - {checkpoints.latest_step(), checkpoints.best_step()}:
            checkpoints.delete(step)
    except (OSError, ValueError) as e:
        raise _write_error(checkpoints, e) from e


@contextlib.contextmanager
def ending(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Lets a save in progress finish if an error ends the run. If it were cut off, its threads would print errors."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:  # several would wait for a lost one
            _attempt(checkpoints.close)  # any error of its own would only hide the first one
        raise


def _write_error(checkpoints: ocp.CheckpointManager, e: Exception) -> Exception:
    if towers.lost(e):  # not the disk's fault
        return jax.errors.JaxRuntimeError(str(e))
    reason = str(e).splitlines()[0]
    return UserError(
        f"the checkpoint could not be written to {checkpoints.directory}: {reason}; make room, then start the same "
        "command again: it resumes from the last complete checkpoint"
    )


# ---------------------------------------------------------------- restoring


def restore(checkpoints: ocp.CheckpointManager, like: Any, needs: Sequence[str] = ()) -> tuple[int, Any, dict] | None:
    """Returns the latest (step, state, host), or None if there is none.

    like: the state's shapes, dtypes and shardings. needs: the dicts that host must have.
    Raises UserError, saying what to do, if it cannot be read.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore())

    def read():
        found = checkpoints.restore(step, args=args)
        host = _from_json(found["host"])
        if not isinstance(host, dict) or not all(isinstance(host.get(name), dict) for name in needs):
            raise ValueError("its host part is not what a run writes")
        _compare(found["state"], host.pop(CHECKSUMS, {}))
        return step, found["state"], host

    return _read(read, Path(checkpoints.directory).parent, step)


def read_params(workdir: Path, like: dict, which: str = "best") -> tuple[int, dict]:
    """Returns the step of a run's checkpoint and its parameters, on any devices.

    Args:
      like: shapes, dtypes and shardings, {layer: {"kernel", "bias"}}, of some layers or of all.
      which: "best" (the lowest validation error; the latest if none was measured) or "latest".
    Raises UserError if there is no checkpoint yet, or if it cannot be read.
    """
    if latest_step(workdir) is None:
        raise UserError(NONE_YET.format(workdir))
    checkpoints = manager(workdir)
    step = checkpoints.best_step() if which == "best" else None
    if step is None:
        step = checkpoints.latest_step()
    wanted = {"params": like}
    how = ocp.checkpoint_utils.construct_restore_args(wanted)
    state = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
    args = ocp.args.Composite(state=state, host=ocp.args.JsonRestore())

    def read():
        found = checkpoints.restore(step, args=args)
        _compare(found["state"], found["host"].get(CHECKSUMS, {}))
        return found["state"]["params"]

    return step, _read(read, workdir, step)


def identity(workdir: Path) -> dict[str, Any]:
    """What tells a run's checkpoints from others, by step: the checksums of their state, and their errors.

    Read from files alone, without Orbax, whose processes wait for one another.
    Raises UserError if there is none yet, or if one cannot be read.
    """
    if not (steps := _steps(workdir)):
        raise UserError(NONE_YET.format(workdir))
    found: dict[str, Any] = {}
    for step in sorted(steps):
        folder = workdir / FOLDER / f"{PREFIX}_{step}"
        parts = [folder / "host" / "metadata", *sorted(folder.glob("metrics/metrics"))]
        host, *errors = _read(partial(_json_of, parts), workdir, step)
        found[str(step)] = [host.get(CHECKSUMS), *errors]
    return found


def _json_of(parts: list[Path]) -> list[dict]:
    return [json.loads(part.read_text()) for part in parts]


def read_whole(folder: Path) -> tuple[dict, dict]:
    """Returns a checkpoint's state, as NumPy arrays, and its host part. Raises anything if it is damaged."""
    if not isinstance(json.loads((folder / "_CHECKPOINT_METADATA").read_text()), dict):
        raise ValueError("_CHECKPOINT_METADATA is not a JSON object")
    if (folder / "metrics").is_dir():  # only at the end of an epoch
        json.loads((folder / "metrics" / "metrics").read_text())[ERROR]
    host = json.loads((folder / "host" / "metadata").read_text())
    with ocp.PyTreeCheckpointer() as reader:
        state = (folder / "state").absolute()
        tree = reader.metadata(state).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = reader.restore(state, restore_args=arrays)
    _compare(found, host.pop(CHECKSUMS, {}))
    return found, _from_json(host)


# ---------------------------------------------------------------- what is stored


def checksums(state: Any) -> dict[str, int]:
    """Returns a checksum of each array of 4-byte numbers in a tree, {path: number}, on whatever devices it lies."""
    named = jax.tree_util.tree_flatten_with_path(jax.device_get(_sums(state)))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(number) for path, number in named}


@jax.jit
def _sums(state):
    """The sum, modulo 2^32, of each array's numbers, as bits, times their places: the same in any order of adding."""

    def one(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        place, stride = jnp.zeros(x.shape, jnp.uint32), 1  # in the flat array; to flatten it would gather the towers'
        for axis in reversed(range(x.ndim)):
            place += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            stride *= x.shape[axis]
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(one, state)


def _compare(state: Any, saved: dict[str, int]) -> None:
    """Raises ValueError if arrays are not those that were saved. Accepts an older checkpoint, without checksums."""
    for name, number in checksums(state).items():
        if saved.get(name, number) != number:
            raise ValueError(f"{name} is not what was saved")


def _to_json(value: Any) -> Any:
    """The host's part as strict JSON, which has no infinity and no NaN: the plateau begins with infinity."""
    if isinstance(value, dict):
        return {name: _to_json(v) for name, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _from_json(value: Any) -> Any:
    """The host's part that `_to_json` was given."""
    if isinstance(value, dict):
        return {name: _from_json(v) for name, v in value.items()}
    if value in ("inf", "-inf", "nan"):
        return float(value)
    return value


# ---------------------------------------------------------------- damaged checkpoints


def _read(read: Callable[[], Any], workdir: Path, step: int) -> Any:
    """Returns read(), which reads a checkpoint. Raises as _tried."""
    return _tried(read, f"checkpoint {step} of {workdir} cannot be read", lambda: _way_out(workdir, step))


def _tried(read: Callable[[], Any], failed: str, way_out: Callable[[], str]) -> Any:
    """Returns read(). Raises UserError, saying what to do, if it raises anything; MemoryError if memory ran out."""
    found, failure = _attempt(read)
    if failure is None:
        return found
    if failure.memory:
        raise MemoryError(failure.reason)
    what_to_do = "that may pass, so start the same command again" if failure.passes else way_out()
    raise UserError(f"{failed} ({failure.reason}): {what_to_do}")


class Failure(NamedTuple):
    """Why something could not be read."""

    reason: str
    passes: bool  # whether it is not the checkpoint's fault and may pass
    memory: bool  # whether there was too little memory


def _attempt(read: Callable[[], Any]) -> tuple[Any, Failure | None]:
    """(read(), None), or (None, why it failed). Orbax raises many kinds of exceptions for a damaged checkpoint."""
    with contextlib.redirect_stderr(io.StringIO()):  # Orbax's threads print tracebacks when a read is given up
        try:
            return read(), None
        except Exception as e:
            failure = Failure(one_line(e), may_pass(e), out_of_memory(e))
        sys.unraisablehook = _but_late_reads
        gc.collect()  # collects coroutines that nobody awaited now, because they print too
    return None, failure


def _but_late_reads(unraisable, others=sys.unraisablehook):
    """Ignores the errors of Orbax's threads that finish a read after it was given up; passes on all others."""
    if str(unraisable.exc_value) != "Event loop is closed":
        others(unraisable)


def _way_out(workdir: Path, damaged: int | None) -> str:
    """What to do about a checkpoint that cannot be read; None: about checkpoints that cannot even be listed."""
    folders = {step: workdir / FOLDER / f"{PREFIX}_{step}" for step in sorted(_steps(workdir), reverse=True)}
    if damaged is not None and damaged not in folders and folders:
        return "a later one replaced it meanwhile: the same command reads that"
    for step, folder in folders.items():
        if step == damaged or not _is_whole(folder):
            continue
        if damaged is None:
            broken = [str(other) for other in folders.values() if other != folder]
        else:
            broken = [str(folders[damaged])]
        return f"step {step} is whole; remove {' and '.join(broken)}, and the same command resumes from there"
    return "no other is whole, so train it again in another --workdir, or remove this one"


def _is_whole(folder: Path) -> bool:
    return _attempt(lambda: read_whole(folder))[1] is None
