"""Who owns a workdir: a run claims it for its config before it trains, so that nobody's files are lost."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint, optimizer
from alexnet_jax.config import FREE, fields_of, flat, refuse_wrong_values
from alexnet_jax.files import replacing, try_lock, write_text
from alexnet_jax.metrics import METRICS
from alexnet_jax.network import shapes
from alexnet_jax.runs import provenance
from alexnet_jax.runs.run import CONFIG, CONVERTED, STATISTICS, read_config

LOCK = ".lock"
WRITTEN = (STATISTICS, provenance.FILE, CONFIG)  # by a claim, in this order
# What a killed claim leaves: files.replacing's temporary files, and those of earlier versions.
LEFT = re.compile(
    rf"({'|'.join(map(re.escape, WRITTEN))})\.tmp|partial\.({'|'.join(map(re.escape, WRITTEN))})"
    r"|config\.tmp|statistics\.tmp\.npz"
)


def sign(lock: TextIO, word: str):
    """Writes a word into a workdir's lock, by which the other processes of the run know that they see this workdir."""
    lock.truncate(0)
    lock.write(word)
    lock.flush()
    os.fsync(lock.fileno())


def refuse_unsigned(workdir: Path, word: str):
    """Raises UserError if a workdir's lock does not show a word within ten seconds: processes must share the folder."""
    for _ in range(100):  # a file system of a network may take its time
        with contextlib.suppress(OSError):
            if (workdir / LOCK).read_text(errors="replace") == word:
                return
        time.sleep(0.1)
    raise UserError(
        f"this process does not see the workdir {workdir} of process 0: give all of them the same --workdir, in a file "
        "system that they share"
    )


class Busy(UserError):
    """Another process trains in the workdir."""


def claim(
    workdir: Path, config: ConfigDict, statistics: dict, classes: list[str],
    data: dict | None = None, machine: dict | None = None,
) -> TextIO:  # fmt: skip
    """Makes workdir this config's own, or checks that it is; returns the lock to hold while the run lasts.

    A run without a checkpoint or a record has nothing to lose, and another may take its place. Everything is checked
    before anything is written, and config.json, which makes the folder a run, comes last: a killed claim can be made
    again.

    Args: statistics, classes: of the training set. data, machine: provenance.of_data and of_machine, None for converted
    weights.
    Raises UserError if workdir has a run of another config, naming the fields that differ, or on other data, if another
    process trains in it, or if it cannot be written.
    """
    refuse_wrong_values(config)
    with contextlib.ExitStack() as held, _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _refuse_foreign_files(workdir)
        if (lock := try_lock(workdir / LOCK)) is None:
            raise Busy(f"another process trains in {workdir}: wait for it, or name another --workdir")
        held.enter_context(lock)
        trained = checkpoint.latest_step(workdir) is not None
        if trained or _has_records(workdir):
            _refuse_other_config(workdir, config, data)
        if trained and data:
            provenance.refuse_changed_data(data, workdir)
        with replacing(workdir / STATISTICS) as path, path.open("wb") as file:
            np.savez(file, **statistics, classes=np.array(classes))
        if data and machine:
            write_text(workdir / provenance.FILE, provenance.text(data, machine, workdir, fresh=not trained))
        write_text(workdir / CONFIG, json.dumps(json.loads(config.to_json()), indent=2, allow_nan=False) + "\n")
        for left in [path for path in workdir.iterdir() if LEFT.fullmatch(path.name)]:
            left.unlink(missing_ok=True)
        held.pop_all()  # the lock is kept only if nothing was raised
        return lock


def refuse_unusable(workdir: Path, config: ConfigDict):
    """Raises UserError where `claim` will, as far as that shows before the data is prepared. Writes nothing."""
    with _writing(workdir):
        there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = "may not be written to" if there.is_dir() else "is a file"
            raise UserError(f"cannot write to the workdir {workdir} ({there} {what}): name another --workdir")
        if there != workdir:
            return
        _refuse_foreign_files(workdir)
        if checkpoint.latest_step(workdir) is None and not _has_records(workdir):
            return
        if config.model.num_classes == 0:  # as many as the data has
            config = config.copy_and_resolve_references()
            config.model.num_classes = read_config(workdir).model.num_classes
        _refuse_other_config(workdir, config, data=None)


def _has_records(workdir: Path) -> bool:
    log = workdir / METRICS
    return log.exists() and log.stat().st_size > 0


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write to the workdir {workdir} ({e.strerror or e}): name another --workdir") from e


def _refuse_foreign_files(workdir: Path):
    """Raises UserError if a folder without a run has files that no killed claim leaves."""
    names = {path.name for path in workdir.iterdir()}
    if CONFIG in names:
        return
    ours = {LOCK, *WRITTEN} if LOCK in names else set()  # a claim takes its lock first
    if strange := [name for name in names if name not in ours and not LEFT.fullmatch(name)]:
        raise UserError(f"{workdir} is not empty ({min(strange)}) and holds no run: name another --workdir")


def _refuse_other_config(workdir: Path, config: ConfigDict, data: dict | None):
    """Raises UserError if the run in workdir cannot be resumed with this config."""
    theirs = read_config(workdir)
    there, here = flat(theirs), flat(config)
    free = fields_of(FREE) | {"epochs"}
    differ = [
        f"{name}: {there.get(name)} there, {value} here"
        for name, value in here.items()
        if name not in free
        and (name not in there or there[name] != value)
        and not (name == "data.name" and value == f"./{there[name]}")  # a folder, until 2026-11-28 also without ./
    ]
    if differ:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(differ)}): "
            "name another --workdir, or remove it to start over"
        )
    step = checkpoint.latest_step(workdir)
    if theirs.epochs != config.epochs and step is not None and data:
        _refuse_other_epochs(workdir, theirs, config, step, data["number of training images"])


def _refuse_other_epochs(workdir: Path, theirs: ConfigDict, config: ConfigDict, step: int, images: int):
    """Raises UserError if the steps so far would have been different with the config's epochs from the start."""
    said = f"{workdir} holds a run of {theirs.epochs} epochs and --config.epochs is {config.epochs}"
    instead = "take the number there, or name another --workdir"
    if config.optimizer.rule == "stages":
        raise UserError(f"{said}: with --config.optimizer.rule=stages the rates depend on it from the start; {instead}")
    steps = images // config.batch_size
    if config.epochs * steps <= step:
        raise UserError(f"{said}, of which {step / steps:g} are trained already: ask for more, or {instead}")
    layers = shapes(config.model, config.data.crop)
    frozen, then = (optimizer.frozen(config.optimizer, layers, c.epochs) for c in (config, theirs))
    if frozen != then:
        changed = ", ".join(sorted(frozen ^ then))
        raise UserError(
            f"{said}: --config.optimizer.layer_rates freezes {changed} throughout the one and not the other, and what "
            f"is frozen throughout has no velocity; {instead}"
        )


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
        write_text(workdir / CONVERTED, json.dumps(origin, indent=2) + "\n")


def refuse_converted(workdir: Path):
    """Raises UserError if workdir holds converted weights, which another run may start from but are not trained."""
    if (workdir / CONVERTED).exists():
        raise UserError(
            f"{workdir} holds converted weights, which are not trained in place: start from them in another --workdir "
            f"with --config configs/finetune.py --config.start.workdir={workdir}"
        )
