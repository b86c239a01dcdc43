"""Save, restore, resume. A run is a workdir: config.json, statistics.npz, metrics.jsonl, checkpoints/.

One that convert.py made has a converted.json in place of metrics.jsonl.
"""

import fcntl
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax import UserError, augment, one_line, towers
from alexnet_jax.model import AlexNet, shapes
from configs import paper

# Fields that a resumed run may change: they say how and where it runs, not what it computes.
FREE = (
    "devices.", "checkpoint_every_steps", "log_every_steps", "evaluation.batch_size", "data.data_dir",
    "data.prepared_dir",
)  # fmt: skip
LOCK = ".lock"
CONVERTED = "converted.json"  # in the workdir of weights that come from elsewhere: where from


class Busy(UserError):
    """Another process trains in the workdir."""


def manager(workdir: Path) -> ocp.CheckpointManager:
    """The run's checkpoints: the latest and the one of the lowest validation error are kept."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each save in twenty lines
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(1),
            policies.BestN(get_metric_fn=lambda m: -m["top1_error"], n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep, best_fn=lambda m: m["top1_error"], best_mode="min", step_prefix="step"
    )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state, host: dict, error: float | None = None):
    """Writes a training state and the host's own (JSON) at `step`, in the background.

    `error` is the validation top-1 error where the step ends an epoch. A kill while it writes leaves the previous
    checkpoint as the latest. Raises UserError if the disk is full or not writable.
    """
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    try:
        free = shutil.disk_usage(checkpoints.directory).free
        if free < needed:  # asked beforehand: orbax's threads fail in a hundred lines
            raise OSError(f"it takes {needed:,} bytes and the disk has {free:,} left")
        checkpoints.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)),
            metrics=None if error is None else {"top1_error": error},
            force=True,
        )
    except (OSError, ValueError) as e:
        raise _write_error(checkpoints, e) from e


def finish(checkpoints: ocp.CheckpointManager):
    """Waits for saves that are under way. Raises UserError if one failed."""
    try:
        checkpoints.wait_until_finished()
    except (OSError, ValueError) as e:
        raise _write_error(checkpoints, e) from e


def _write_error(checkpoints, e: Exception) -> UserError:
    reason = str(e).splitlines()[0]
    return UserError(
        f"the checkpoint could not be written to {checkpoints.directory}: {reason}; make room, then start the same "
        "command again: it goes on from the last whole checkpoint"
    )


def restore(checkpoints: ocp.CheckpointManager, like) -> tuple[int, object, dict] | None:
    """The latest (step, state, host), or None. `like` gives the state's shapes, dtypes and shardings."""
    step = checkpoints.latest_step()
    if step is None:
        return None
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore())
    try:
        found = checkpoints.restore(step, args=args)
    except Exception as e:  # orbax raises many kinds for a damaged checkpoint
        raise UserError(
            f"checkpoint {step} in {checkpoints.directory} cannot be read ({str(e).splitlines()[0]}): "
            f"remove its folder to resume from an earlier one, or start over in another --workdir"
        ) from e
    return step, found["state"], found["host"]


def claim(workdir: Path, config: ConfigDict, statistics: dict, classes: list[str]) -> TextIO:
    """Makes workdir this config's own, or checks that it is; returns the lock to hold while the run lasts.

    Raises UserError if it holds a run of another config, naming the fields that differ, if another process trains in
    it, or if it cannot be written.
    """
    path = workdir / "config.json"
    mine = json.loads(config.to_json())
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(p.name != LOCK for p in workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and holds no run: name another --workdir")
        lock = (workdir / LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Busy(f"another process trains in {workdir}: wait for it, or name another --workdir") from e
        if path.exists():
            theirs = flat(read_config(workdir))
            differ = [
                f"{name}: {theirs.get(name)} there, {value} here"
                for name, value in flat(mine).items()
                if (name not in theirs or theirs[name] != value) and not name.startswith(FREE)
            ]
            if differ:
                raise UserError(
                    f"{workdir} holds a run of another config ({'; '.join(differ)}): "
                    "name another --workdir, or remove it to start over"
                )
        whole = workdir / "statistics.tmp.npz"
        np.savez(whole, **statistics, classes=np.array(classes))
        os.replace(whole, workdir / "statistics.npz")
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(mine, indent=2) + "\n")
        os.replace(fresh, path)
        return lock
    except OSError as e:
        raise UserError(f"cannot write to the workdir {workdir} ({e.strerror or e}): name another --workdir") from e


def flat(tree: dict | ConfigDict, prefix: str = "") -> dict:
    """A config, or what was read from its JSON, as {dotted field: value}, the values as JSON has them."""
    tree = json.loads(tree.to_json()) if isinstance(tree, ConfigDict) else tree
    out = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


def write_converted(
    workdir: Path, config: ConfigDict, statistics: dict, classes: list[str], params: dict, origin: dict
):
    """Makes workdir a run whose weights, at step 0, come from elsewhere; origin (JSON) says where from.

    Raises UserError if it cannot be written.
    """
    with claim(workdir, config, statistics, classes):
        checkpoints = manager(workdir)
        save(checkpoints, 0, {"params": params}, host={})
        finish(checkpoints)
        checkpoints.close()
        (workdir / CONVERTED).write_text(json.dumps(origin, indent=2) + "\n")


def refuse_converted(workdir: Path):
    """Raises UserError if workdir holds converted weights: they are to be started from, not trained in place."""
    if (workdir / CONVERTED).exists():
        raise UserError(
            f"{workdir} holds converted weights, which are not trained in place: start from them in another --workdir "
            f"with --config configs/finetune.py:{workdir}"
        )


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


def holds_run(workdir: Path) -> bool:
    """Whether a run was begun in the workdir."""
    return (workdir / "config.json").exists()


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run; fields newer than the run have the paper's values, which leave it as it was.

    Raises UserError if workdir holds none, or none that is whole.
    """
    path = workdir / "config.json"
    if not holds_run(workdir):
        raise UserError(
            f"{workdir} holds no run (no config.json): train one with python -m alexnet_jax.main, or make one of "
            "weights with python -m alexnet_jax.convert"
        )
    try:
        held = _filled(json.loads(path.read_text()), json.loads(paper.get_config().to_json()))
        return ConfigDict(paper.renewed(held))
    except ValueError as e:
        raise UserError(f"{path} is not whole ({e}): the workdir is no run; name another --workdir") from e


def _filled(theirs: dict, default: dict) -> dict:
    missing = {name: value for name, value in default.items() if name not in theirs}
    held = {n: _filled(v, default[n]) if isinstance(v, dict) and n in default else v for n, v in theirs.items()}
    return held | missing


def read_statistics(workdir: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of a run's training set, float32 arrays by name, and the names of its classes.

    Raises UserError if they cannot be read.
    """
    try:
        with np.load(workdir / "statistics.npz", allow_pickle=False) as file:
            statistics = dict(file)
        return statistics, [str(c) for c in statistics.pop("classes")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{workdir}/statistics.npz cannot be read ({one_line(e)}): the workdir is no whole run") from e


def read_params(workdir: Path, like: dict, which: str = "best") -> tuple[int, dict]:
    """The step of a run's checkpoint and the parameters in it, on other devices than it was trained on if need be.

    Args: like: shapes, dtypes and shardings, {layer: {"kernel", "bias"}}; of some layers, or of all. which: as in load.
    Raises UserError if there is no checkpoint yet, or if it cannot be read.
    """
    checkpoints = manager(workdir)
    step = checkpoints.best_step() if which == "best" else None
    step = checkpoints.latest_step() if step is None else step
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let python -m alexnet_jax.main reach its first one")
    like = {"params": like}
    how = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True))
    try:
        return step, checkpoints.restore(step, args=args)["state"]["params"]
    except Exception as e:
        raise UserError(f"checkpoint {step} of {workdir} cannot be read: {str(e).splitlines()[0]}") from e
