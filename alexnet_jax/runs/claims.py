"""Whose a workdir is: claiming one for a config, so that nothing of another run, or of anybody's, is lost."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint, optimizer
from alexnet_jax.model import shapes
from alexnet_jax.runs import provenance
from alexnet_jax.runs.run import CONFIG, STATISTICS, flat, read_config

# Fields that a resumed run may change: they say how and where it runs, not what it computes.
FREE = (
    "devices.", "checkpoint_every_steps", "log_every_steps", "evaluation.batch_size", "data.data_dir",
    "data.prepared_dir",
)  # fmt: skip
METRICS = "metrics.jsonl"
LOCK = ".lock"
PARTIAL = "partial."  # before a file's name until it is whole
FORMER = ("config.tmp", "statistics.tmp.npz")  # what version 0.1.0 called them
CONVERTED = "converted.json"  # in the workdir of weights that come from elsewhere: where from


class Busy(UserError):
    """Another process trains in the workdir."""


def claim(
    workdir: Path, config: ConfigDict, statistics: dict, classes: list[str],
    data: dict | None = None, machine: dict | None = None,
) -> TextIO:  # fmt: skip
    """Makes workdir this config's own, or checks that it is; returns the lock to hold while the run lasts.

    A run without a checkpoint or a record has nothing to lose: any other may take its place. Nothing is written before
    all is checked, and config.json, which makes it a run, last: a claim that is killed is made anew.

    Args: data, machine: provenance.of_data and of_machine; converted weights have neither.
    Raises UserError if it holds a run of another config, naming the fields that differ, or on other data, if another
    process trains in it, or if it cannot be written.
    """
    mine = json.loads(config.to_json())
    if strange := [name for name, value in flat(mine).items() if not _is_finite(value)]:
        raise UserError(f"--config.{strange[0]} is {flat(mine)[strange[0]]} and must be finite")
    with contextlib.ExitStack() as held, _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _refuse_strangers(workdir)
        lock = held.enter_context((workdir / LOCK).open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Busy(f"another process trains in {workdir}: wait for it, or name another --workdir") from e
        going_on, log = checkpoint.trained(workdir) is not None, workdir / METRICS
        if going_on or log.exists() and log.stat().st_size:
            _check_config(workdir, config, data)
        if going_on and data:
            provenance.check(data, workdir)
        _write(workdir / STATISTICS, lambda file: np.savez(file, **statistics, classes=np.array(classes)))
        if data:
            text = provenance.text(data, machine, workdir, fresh=not going_on)
            _write(workdir / provenance.FILE, lambda file: file.write(text.encode()))
        text = json.dumps(mine, indent=2, allow_nan=False) + "\n"
        _write(workdir / CONFIG, lambda file: file.write(text.encode()))
        for name in FORMER:
            (workdir / name).unlink(missing_ok=True)
        held.pop_all()  # the lock outlives this only where nothing was raised
        return lock


@contextlib.contextmanager
def _writing(workdir: Path):
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write to the workdir {workdir} ({e.strerror or e}): name another --workdir") from e


def _refuse_strangers(workdir: Path):
    """Raises UserError if a folder that holds no run holds more than what a killed claim leaves."""
    names, written = {p.name for p in workdir.iterdir()}, {STATISTICS, provenance.FILE}
    ours = {LOCK, *FORMER, *(PARTIAL + name for name in (*written, CONFIG))} | (written if LOCK in names else set())
    if CONFIG not in names and (strange := names - ours):
        raise UserError(f"{workdir} is not empty ({min(strange)}) and holds no run: name another --workdir")


def _write(path: Path, write: Callable):
    """Writes a file that is whole or not there at all."""
    fresh = path.with_name(PARTIAL + path.name)
    with fresh.open("wb") as file:
        write(file)
    os.replace(fresh, path)


def _check_config(workdir: Path, config: ConfigDict, data: dict):
    """Raises UserError if a config cannot go on with the run that workdir holds."""
    theirs = read_config(workdir)
    there, here = flat(theirs), flat(config)
    differ = [
        f"{name}: {there.get(name)} there, {value} here"
        for name, value in here.items()
        if (name not in there or there[name] != value) and not name.startswith(FREE) and name != "epochs"
    ]
    if differ:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(differ)}): "
            "name another --workdir, or remove it to start over"
        )
    if theirs.epochs != config.epochs and checkpoint.trained(workdir) is not None:
        _check_epochs(workdir, theirs, config, data)


def _check_epochs(workdir: Path, theirs: ConfigDict, config: ConfigDict, data: dict):
    """Raises UserError if the epochs run so far would have been others, had the run had the config's from the start."""
    said = f"{workdir} holds a run of {theirs.epochs} epochs and --config.epochs is {config.epochs}"
    anew = "take the number there, or name another --workdir"
    if config.optimizer.rule == "stages":
        raise UserError(f"{said}: with --config.optimizer.rule=stages the rates depend on it from the start; {anew}")
    step, steps = checkpoint.trained(workdir), data["number of training images"] // config.batch_size
    if config.epochs * steps <= step:
        raise UserError(f"{said}, of which {step / steps:g} are trained already: ask for more, or {anew}")
    layers = shapes(config.model, config.data.crop)
    frozen, then = (optimizer.frozen(config.optimizer, layers, c.epochs) for c in (config, theirs))
    if frozen != then:
        changed = ", ".join(sorted(frozen ^ then))
        raise UserError(
            f"{said}: --config.optimizer.layer_rates freezes {changed} throughout the one and not the other, and what "
            f"is frozen throughout has no velocity; {anew}"
        )


def _is_finite(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def write_converted(
    workdir: Path, config: ConfigDict, statistics: dict, classes: list[str], params: dict, origin: dict
):
    """Makes workdir a run whose weights, at step 0, come from elsewhere; origin (JSON) says where from.

    Raises UserError if it cannot be written.
    """
    with claim(workdir, config, statistics, classes):
        checkpoints = checkpoint.manager(workdir)
        checkpoint.save(checkpoints, 0, {"params": params}, host={})
        checkpoint.finish(checkpoints)
        checkpoints.close()
        (workdir / CONVERTED).write_text(json.dumps(origin, indent=2) + "\n")


def refuse_converted(workdir: Path):
    """Raises UserError if workdir holds converted weights: they are to be started from, not trained in place."""
    if (workdir / CONVERTED).exists():
        raise UserError(
            f"{workdir} holds converted weights, which are not trained in place: start from them in another --workdir "
            f"with --config configs/finetune.py:{workdir}"
        )
