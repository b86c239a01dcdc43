"""Nonsense of every type in every field of the config: refused in one line that names it, or accepted and sound.

Each value goes through main as a flag, in a process of its own, in which training is replaced by what comes before its
first step: tracing it, and the first batches. What was refused must leave the workdir fit for the corrected command.
NaN and infinity are never accepted.
"""

import json
import shutil
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path

from alexnet_jax.runs.run import flat
from experiments.torture.cases import Case, Outcome
from experiments.torture.processes import Process, crash, lines
from experiments.torture.trials import Failed, Kind, Trial, reference

NONSENSE = (
    "-1", "0", "1000000000", "100000000000000000000", "-100000000000000000000", "-0.5", "1e400", "nan", "inf", "-inf",
    "", "None", "True", "hello", "[]", "{}", "()", "(-1,)", "(0,0,0)", "(nan,nan,nan)", "(1e400,1,1)", "('hello',)",
    "((0,'conv1',-1),)", "((1,(2,(3,))),)", "\x00", "é" * 300,
)  # fmt: skip
KIND = "photos, tf.data"
SECONDS, MEMORY = 60, 8 * 2**30


class Accepted(BaseException):
    """Training would begin."""


def cases(kinds: dict[str, Kind], out: Path) -> list[Case]:
    """Every field with every value."""
    from alexnet_jax.data.records import tensorflow

    tensorflow()
    kind = kinds[KIND]
    return [
        Case(
            "fields",
            field.rpartition(".")[0] or "top level",
            name(field, value),
            partial(play, kind, field, value, out),
        )
        for field in flat(kind.config)
        for value in NONSENSE
    ]


def name(field: str, value: str) -> str:
    """A case's, short enough for a folder."""
    return f"{field}={value!r}"[:60]


def play(kind: Kind, field: str, value: str, out: Path, folder: Path) -> Generator[None, None, Outcome]:
    """One value in one field."""
    try:
        known = yield from reference(kind, out)
    except Failed as e:
        return Outcome([f"no reference: {e}"])
    cache = out / "fields" / "cache"
    if not cache.exists():
        shutil.copytree(known.cache, cache)
    trial = Trial(kind, folder, out)
    with Process(partial(rehearse, trial, field, value, cache, out), folder / "output.txt", MEMORY) as process:
        if not (yield from process.wait(SECONDS)):
            return Outcome([f"it hung for {SECONDS} s"])
        text = process.text()
        said = lines(text)
        verdict = said[-1] if said and said[-1].startswith("VERDICT ") else ""
        if not verdict:
            why = crash(process.status, text) or f"no verdict: {said[-1] if said else ''}"
            return Outcome([why])
    accepted, troubles = json.loads(verdict.removeprefix("VERDICT "))
    troubles += [why] if (why := crash(process.status, text)) else []
    return Outcome(troubles, note="accepted" if accepted else "refused")


def rehearse(trial: Trial, field: str, value: str, cache: Path, out: Path):
    """In a child: the command, then the corrected one if it was refused; prints the verdict."""
    import os

    from alexnet_jax import main

    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.chdir(trial.workdir.parent)  # a value may be taken for a folder's name
    main.settle()
    main.train = before_training
    troubles = []
    error = _said(trial, f"--config.{field}={value}")
    if error is None:
        if any(word in value for word in ("nan", "inf", "1e400")) and isinstance(_held(main, field), (float, tuple)):
            troubles.append("accepted")
    else:
        print(error)
        if len(error.strip().splitlines()) != 1 or not error.startswith("error: "):
            troubles.append(f"not one line 'error: ...': {error.strip().splitlines()[-1][:200] if error else 'empty'}")
        elif field not in error and f"'{value}'" not in error and not (len(value) > 3 and value in error):
            troubles.append(f"the line does not name the field: {error[:200]}")
        if trial.workdir.exists() and (again := _said(trial)) is not None:
            troubles.append(f"the corrected command was refused: {again[:200]}")
    print("VERDICT " + json.dumps([error is None, troubles]))


def _said(trial: Trial, *flags: str) -> str | None:
    """What main ends with, None if training would begin."""
    from absl import flags as absl_flags

    from alexnet_jax import main

    sys.argv = argv = ["main", *trial.flags(), *flags]  # where ml_collections looks for what is overridden
    try:
        absl_flags.FLAGS.unparse_flags()
        main.main(main.parse(argv))
    except Accepted:
        return None
    except SystemExit as end:
        return str(end.code)
    return "main returned"


def _held(main, field: str):
    value = main.CONFIG.value
    for name in field.split("."):
        value = value[name]
    return value


def before_training(config, prepared, mesh, workdir):
    """In place of train.train: all that it does before its first step is computed. Raises Accepted."""
    import jax
    import numpy as np

    from alexnet_jax import optimizer
    from alexnet_jax.data import augment
    from alexnet_jax.data.batches import eval_batches, resident_batches, train_batches
    from alexnet_jax.train import program

    net = program(config, mesh)
    span = {"seed": config.seed, "batch_size": config.batch_size, "first_step": 0, "last_step": 1}
    if config.data.on_device:
        batches = resident_batches(len(prepared.train), prepared.train.labels, config.data, **span)
        images = prepared.train.images()
    else:
        batches, images = train_batches(prepared.train, config.data, **span), None
    batch = next(iter(batches))
    for batch_of_images in eval_batches(prepared.evaluation, config.evaluation.batch_size):
        assert batch_of_images["mask"].any()
        break
    rate = optimizer.learning_rate(config.optimizer, 0, config.epochs, optimizer.new_plateau())
    epoch = {"rates": optimizer.rates(config.optimizer, net.state["params"], rate, 0)}
    epoch["noise"] = np.float32(augment.noise_strength(config.data, 0))
    constants = {"statistics": prepared.statistics, "key": jax.random.key(config.seed), "images": images}
    jax.eval_shape(net.step, net.state, batch, epoch, constants)
    views = partial(augment.views, config=config.data, count=config.evaluation.views)
    jax.eval_shape(views, batch_of_images["image"], prepared.statistics)
    raise Accepted
