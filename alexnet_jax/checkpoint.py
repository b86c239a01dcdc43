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
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax import UserError, augment, one_line, towers
from alexnet_jax.model import AlexNet, shapes
from configs import paper

FOLDER = "checkpoints"
CONFIG, STATISTICS = "config.json", "statistics.npz"
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


def flat(tree: dict | ConfigDict, prefix: str = "") -> dict:
    """A config, or what was read from its JSON, as {dotted field: value}, the values as JSON has them."""
    tree = json.loads(tree.to_json()) if isinstance(tree, ConfigDict) else tree
    out = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


@dataclass(frozen=True)
class Run:
    """A trained network and what it needs to be used."""

    workdir: Path
    step: int
    config: ConfigDict
    mesh: Mesh
    apply: Callable  # (params, images float32, mean removed) -> (logits, activations by name)
    params: dict  # {layer: {"kernel", "bias"}}, float32
    statistics: dict[str, np.ndarray]  # of its training set: mean, channel_mean, stdevs, vectors
    classes: list[str]  # as the data set has them; classes.words makes synsets readable

    def __call__(self, images: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the network says of prepared images, seen through their centre crop.

        Args: images uint8 (b, size, size, 3), size that of the config's data; on copies of the network b must divide.
        Returns: logits float32 (b, classes); activations by name, as model.AlexNet returns them.
        Raises ValueError if the images have another shape.
        """
        size = self.config.data.size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape} and must be (b, {size}, {size}, 3)")
        return self._compiled(self.params, self.statistics, towers.place(images, towers.batch_sharding(self.mesh)))

    @cached_property
    def _compiled(self) -> Callable:
        d = self.config.data

        def call(params, statistics, images):
            [crop] = augment.views(images, statistics, d, 1)
            return self.apply(params, crop)

        return jax.jit(call, compiler_options=towers.compiler_options(self.mesh.devices.flat[0].platform))


def load(workdir: str | Path, which: str = "best", data: int = 1, tower: int = 1) -> Run:
    """Reads a run back.

    Args:
      which: "best" (the lowest validation error; the latest if none was measured) or "latest".
      data, tower: copies of the network, and devices that each is split over; of whatever mesh it was trained on.
    Raises UserError if workdir holds no run, or no checkpoint yet, or if the devices are too few.
    """
    workdir = Path(workdir).expanduser()
    config = read_config(workdir)
    statistics, classes = read_statistics(workdir)
    mesh = towers.make_mesh(ConfigDict({"data": data, "tower": tower}), config.model.towers, batch_size=data)
    parameters = shapes(config.model, config.data.crop)
    like = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        parameters,
        towers.shardings(parameters, mesh),
    )
    step, params = read_params(workdir, like, which)
    apply = towers.split(AlexNet(FrozenConfigDict(config.model)), mesh)
    return Run(workdir, step, config, mesh, apply, params, statistics, classes)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run; fields newer than the run have the paper's values, which leave it as it was.

    Raises UserError if workdir holds none, or none that is whole.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json): train one with python -m alexnet_jax.main, or make one of "
            "weights with python -m alexnet_jax.convert"
        )
    default = json.loads(paper.get_config().to_json())
    try:
        found = paper.renewed(json.loads(path.read_text()))
        if wrong := _wrong(found, default):
            raise ValueError(wrong)
        return ConfigDict(_filled(found, default))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is not whole ({one_line(e)}): the workdir is no run; name another --workdir") from e


NEWER = ("start",)  # sections that a run of 0.1.0 may lack


def _wrong(found, default, name: str = "") -> str | None:
    """What is wrong with a config that was read from JSON, the paper's beside it: a section that lacks, or a type."""
    kinds = {bool: bool, int: int, float: (int, float), str: str, list: list, dict: dict}[type(default)]
    if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(default, bool):
        return f"{name or 'it'} is {json.dumps(found)[:40]} and not of the type {type(default).__name__}"
    if isinstance(default, list):
        pairs = [(f"an entry of {name}", value, default[0]) for value in found if default]
    elif isinstance(default, dict):
        if lacks := [n for n, value in default.items() if isinstance(value, dict) and n not in (*found, *NEWER)]:
            return f"it lacks {f'{name}.' * bool(name)}{lacks[0]}"
        pairs = [(f"{name}.{n}".lstrip("."), value, default[n]) for n, value in found.items() if n in default]
    else:
        return None
    return next(filter(None, (_wrong(value, like, where) for where, value, like in pairs)), None)


def _filled(theirs: dict, default: dict) -> dict:
    missing = {name: value for name, value in default.items() if name not in theirs}
    held = {n: _filled(v, default[n]) if isinstance(v, dict) and n in default else v for n, v in theirs.items()}
    return held | missing


def read_statistics(workdir: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of a run's training set, float32 arrays by name, and the names of its classes.

    Raises UserError if they cannot be read, or are not those of the run's config.
    """
    config = read_config(workdir)
    side = config.data.size
    wanted = {"mean": (side, side, 3), "channel_mean": (3,), "stdevs": (3,), "vectors": (3, 3)}
    wanted["classes"] = (config.model.num_classes,)
    try:
        with np.load(workdir / STATISTICS, allow_pickle=False) as file:
            found = dict(file)
        for name, shape in wanted.items():
            array, kind = found[name], "U" if name == "classes" else "f"
            if array.shape != shape or array.dtype.kind != kind:
                raise ValueError(f"{name} is {array.dtype} {array.shape} where the run's is {shape}")
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zlib.error, zipfile.BadZipFile) as e:
        raise UserError(
            f"{workdir / STATISTICS} cannot be read ({one_line(e)}): the same command that trained the run, "
            "python -m alexnet_jax.main, writes it anew"
        ) from e
    return {name: found[name] for name in wanted if name != "classes"}, [str(c) for c in found["classes"]]


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
