"""Save, restore, resume. A run is a workdir: config.json, statistics.npz, provenance.json, metrics.jsonl, checkpoints/.

One that convert.py made has a converted.json in place of metrics.jsonl and provenance.json.

A run that was killed and resumed equals one that was not, and one whose epochs were raised later equals one that had
them from the start. On one CPU type with as many cores that means: the checkpoints at the same step hold the same
bits, parameters, velocity, plateau and running sums, and metrics.jsonl the same records but for images_per_second and,
where epochs were raised, the last evaluation at the former end, which stays. TensorBoard's events may repeat steps.
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax import UserError, one_line, towers

FOLDER = "checkpoints"
CHECKSUMS = "checksums"  # in the host's part of a checkpoint


def manager(workdir: Path) -> ocp.CheckpointManager:
    """The run's checkpoints: the latest and the one of the lowest validation error are kept."""
    # Orbax reports each save in twenty lines, and each error in a hundred before it raises it, for us to say.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(1),
            policies.BestN(get_metric_fn=lambda m: -m["top1_error"], n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep, best_fn=lambda m: m["top1_error"], best_mode="min", step_prefix="step"
    )
    directory = (workdir / FOLDER).absolute()

    def opened():
        found = ocp.CheckpointManager(directory, options=options)
        found.best_step()  # which reads the errors of all
        return found

    found, reason = _attempt(opened)
    if reason is not None:
        raise UserError(f"the checkpoints in {directory} cannot be listed ({reason}): {_way_out(workdir, None)}")
    return found


def save(checkpoints: ocp.CheckpointManager, step: int, state, host: dict, error: float | None = None):
    """Writes a training state and the host's own (JSON) at `step`, in the background.

    `error` is the validation top-1 error where the step ends an epoch. A kill while it writes leaves the previous
    checkpoint as the latest. With the host's part goes a checksum of every array: the store has none. Raises UserError
    if the disk is full or not writable.
    """
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    host = host | {CHECKSUMS: checksums(state)}
    try:
        free = shutil.disk_usage(checkpoints.directory).free
        if free < needed:  # asked beforehand: orbax's threads fail in a hundred lines
            raise OSError(f"it takes {needed:,} bytes and the disk has {free:,} left")
        checkpoints.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(_strict(host))),
            metrics=None if error is None else {"top1_error": error},
            force=True,
        )
    except (OSError, ValueError) as e:
        raise _write_error(checkpoints, e) from e


def finish(checkpoints: ocp.CheckpointManager):
    """Waits for saves that are under way, and removes what a kill between a save and its tidying left behind.

    Raises UserError if one failed.
    """
    try:
        checkpoints.wait_until_finished()
        for step in set(checkpoints.all_steps()) - {checkpoints.latest_step(), checkpoints.best_step()}:
            checkpoints.delete(step)
    except (OSError, ValueError) as e:
        raise _write_error(checkpoints, e) from e


@contextlib.contextmanager
def ending(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Lets a save under way come to its end where an error ends the run: cut off, its threads would complain."""
    try:
        yield
    except Exception:
        if jax.process_count() == 1:  # of several, a lost one would be waited for
            _attempt(checkpoints.close)  # the error has said what is wrong
        raise


def _write_error(checkpoints, e: Exception) -> Exception:
    if towers.lost(e):  # no fault of the disk
        return jax.errors.JaxRuntimeError(str(e))
    reason = str(e).splitlines()[0]
    return UserError(
        f"the checkpoint could not be written to {checkpoints.directory}: {reason}; make room, then start the same "
        "command again: it goes on from the last whole checkpoint"
    )


def restore(checkpoints: ocp.CheckpointManager, like) -> tuple[int, object, dict] | None:
    """The latest (step, state, host), or None. `like` gives the state's shapes, dtypes and shardings.

    Raises UserError, saying how to go on, if it cannot be read.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore())

    def read():
        found = checkpoints.restore(step, args=args)
        host = _loose(found["host"])
        if not isinstance(host, dict):
            raise ValueError("its host part is not what a run writes")
        _compare(found["state"], host.pop(CHECKSUMS, {}))
        return step, found["state"], host

    return _read(read, Path(checkpoints.directory).parent, step)


def checksums(state) -> dict[str, int]:
    """A number for each array of a tree of 4-byte numbers, {path: number}, of whatever devices it lies on."""
    named = jax.tree_util.tree_flatten_with_path(_sums(state))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(number) for path, number in named}


@jax.jit
def _sums(state):
    """Of each array's bits, each number times its place: sums modulo 2^32 are the same in any order."""

    def one(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32).ravel()
        return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

    return jax.tree.map(one, state)


def _compare(state, saved: dict[str, int]):
    """Raises ValueError if arrays are not those that were saved; an older checkpoint, without checksums, passes."""
    if changed := [name for name, number in checksums(state).items() if saved.get(name, number) != number]:
        raise ValueError(f"{changed[0]} is not what was saved")


def _read(read: Callable, workdir: Path, step: int):
    """What `read` returns of a checkpoint. Raises UserError, saying how to go on, if it raises anything."""
    found, reason = _attempt(read)
    if reason is None:
        return found
    raise UserError(f"checkpoint {step} of {workdir} cannot be read ({reason}): {_way_out(workdir, step)}")


def _attempt(read: Callable) -> tuple:
    """(what `read` returns, None), or (None, why it failed): orbax raises many kinds for a damaged checkpoint."""
    with contextlib.redirect_stderr(io.StringIO()):  # threads of its store print tracebacks when a read is given up
        try:
            return read(), None
        except Exception as e:
            reason = one_line(e)
        sys.unraisablehook = _but_late_reads
        gc.collect()  # so do coroutines that nobody waited for, when they are collected
    return None, reason


def _but_late_reads(unraisable, others=sys.unraisablehook):
    """Other threads of the store go on for a while and find that nobody waits for what they have read."""
    if str(unraisable.exc_value) != "Event loop is closed":
        others(unraisable)


def _strict(value):
    """JSON with words in place of the numbers that it has none for: the plateau begins at infinity."""
    if isinstance(value, dict):
        return {name: _strict(v) for name, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _loose(value):
    """What `_strict` took."""
    if isinstance(value, dict):
        return {name: _loose(v) for name, v in value.items()}
    return float(value) if value in ("inf", "-inf", "nan") else value


def trained(workdir: Path) -> int | None:
    """The step of the latest checkpoint, from the names of folders alone; None if there is nothing to go on from."""
    return max(_steps(workdir), default=None)


def best_step(workdir: Path) -> int:
    """The step of a run's checkpoint of the lowest validation error."""
    with manager(workdir) as checkpoints:
        return checkpoints.best_step()


def _steps(workdir: Path) -> list[int]:
    folder = workdir / FOLDER
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return [int(found[1]) for name in names if (found := re.fullmatch(r"step_(\d+)", name))]


def _way_out(workdir: Path, damaged: int | None) -> str:
    """What to do about a checkpoint that cannot be read, or, None, about some that cannot even be listed."""
    there = {step: workdir / FOLDER / f"step_{step}" for step in sorted(_steps(workdir), reverse=True)}
    for step, folder in there.items():
        if step != damaged and _attempt(partial(read_whole, folder))[1] is None:
            others = [folder for s, folder in there.items() if s == damaged or damaged is None and s != step]
            remove = " and ".join(map(str, others))
            return f"step {step} is whole; remove {remove}, and the same command goes on from there"
    return "no other is whole, so train it anew in another --workdir, or remove this one"


def read_whole(folder: Path) -> tuple[dict, dict]:
    """A checkpoint's state, in NumPy arrays, and the host's part. Raises anything if it is damaged."""
    if not isinstance(json.loads((folder / "_CHECKPOINT_METADATA").read_text()), dict):
        raise ValueError("_CHECKPOINT_METADATA is none")
    if (folder / "metrics").is_dir():  # written at the end of an epoch
        json.loads((folder / "metrics" / "metrics").read_text())["top1_error"]
    host = json.loads((folder / "host" / "metadata").read_text())
    with ocp.PyTreeCheckpointer() as reader:
        state = (folder / "state").absolute()
        tree = reader.metadata(state).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = reader.restore(state, restore_args=arrays)
    _compare(found, host.pop(CHECKSUMS, {}))
    return found, _loose(host)


def read_params(workdir: Path, like: dict, which: str = "best") -> tuple[int, dict]:
    """The step of a run's checkpoint and the parameters in it, on other devices than it was trained on if need be.

    Args: like: shapes, dtypes and shardings, {layer: {"kernel", "bias"}}; of some layers, or of all. which: as in load.
    Raises UserError if there is no checkpoint yet, or if it cannot be read.
    """
    if trained(workdir) is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let python -m alexnet_jax.main reach its first one")
    checkpoints = manager(workdir)
    step = checkpoints.best_step() if which == "best" else None
    step = checkpoints.latest_step() if step is None else step
    like = {"params": like}
    how = ocp.checkpoint_utils.construct_restore_args(like)
    state = ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True)
    args = ocp.args.Composite(state=state, host=ocp.args.JsonRestore())

    def read():
        found = checkpoints.restore(step, args=args)
        _compare(found["state"], found["host"].get(CHECKSUMS, {}))
        return found["state"]["params"]

    return step, _read(read, workdir, step)
