"""Nonsense of every type in every field of the config: refused in one line that names it, or accepted and usable.

Each value is a flag of `alexnet train` in a process of its own, in which training is replaced by what comes before its
first step: tracing it, and the first batches. After a refusal the corrected command must work in the same workdir. NaN
and infinity are never accepted.
"""

import json
import os
import shutil
from collections.abc import Generator
from functools import partial
from pathlib import Path

from alexnet_jax.config import flat
from experiments.torture.cases import Case, Result
from experiments.torture.processes import Process, crash, lines
from experiments.torture.trials import Kind, Trial, reference

NONSENSE = (
    "-1", "0", "1000000000", "100000000000000000000", "-100000000000000000000", "-0.5", "1e400", "nan", "inf", "-inf",
    "", "None", "True", "hello", "[]", "{}", "()", "(-1,)", "(0,0,0)", "(nan,nan,nan)", "(1e400,1,1)", "('hello',)",
    "((0,'conv1',-1),)", "((1,(2,(3,))),)", "\x00", "é" * 300,
)  # fmt: skip
KIND = "photos, tf.data"
SECONDS, MEMORY = 60, 8 * 2**30


class Accepted(BaseException):
    """Training would begin, with the config that is the argument."""


def cases(kinds: dict[str, Kind], out: Path) -> list[Case]:
    """Every field with every value."""
    from alexnet_jax.data.host import tensorflow

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
    """The name of a case, short enough for a folder."""
    return f"{field}={value!r}"[:60]


def play(kind: Kind, field: str, value: str, out: Path, folder: Path) -> Generator[None, None, Result]:
    """Tries one value in one field."""
    known = yield from reference(kind, out)
    cache = out / "fields" / "cache"
    if not cache.exists():
        shutil.copytree(known.cache, cache)
    trial = Trial(kind, folder, out)
    with Process(partial(rehearse, trial, field, value, cache), folder / "output.txt", MEMORY) as process:
        if not (yield from process.wait(SECONDS)):
            return Result([f"it hung for {SECONDS} s"])
        text = process.text()
        said = lines(text)
        verdict = said[-1] if said and said[-1].startswith("VERDICT ") else ""
        if not verdict:
            why = crash(process.status, text) or f"no verdict: {said[-1] if said else ''}"
            return Result([why])
    accepted, troubles = json.loads(verdict.removeprefix("VERDICT "))
    troubles += [why] if (why := crash(process.status, text)) else []
    return Result(troubles, note="accepted" if accepted else "refused")


def rehearse(trial: Trial, field: str, value: str, cache: Path):
    """In a child: the command, and the corrected one if it was refused. Prints the verdict."""
    from alexnet_jax import main
    from alexnet_jax.cli import commands

    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.chdir(trial.workdir.parent)  # a value may be taken for the name of a folder
    commands.set_up_libraries()
    main.train = before_training
    error, accepted = attempt(trial, f"--config.{field}={value}")
    troubles = []
    if error:
        print(error)
        if "\n" in error:
            troubles.append(f"more than one line: {error.splitlines()[-1][:200]}")
        elif field not in error and f"'{value}'" not in error and not (len(value) > 3 and value in error):
            troubles.append(f"the line does not name the field: {error[:200]}")
        if trial.workdir.exists() and (again := attempt(trial)[0]):
            troubles.append(f"the corrected command was refused: {again[:200]}")
    elif isinstance(accepted[field], (float, list)) and any(word in value for word in ("nan", "inf", "1e400")):
        troubles.append("accepted")
    print("VERDICT " + json.dumps([not error, troubles]))


def attempt(trial: Trial, *flags: str) -> tuple[str, dict]:
    """Runs `alexnet train` up to its first step.

    Returns: (what it refuses, {}), or ("", the flat config that it would train).
    """
    from alexnet_jax import UserError, main
    from alexnet_jax.cli import commands

    try:
        main.main(commands.parse(main, [*trial.flags(), *flags], "alexnet train"))
    except Accepted as end:
        return "", flat(end.args[0])
    except UserError as error:
        return str(error), {}
    return "main returned without training", {}


def before_training(config, prepared, mesh, workdir):
    """Does what train.train does before it computes its first step. Raises Accepted."""
    import jax
    import numpy as np

    from alexnet_jax import optimizer
    from alexnet_jax.data import augment
    from alexnet_jax.data.batches import eval_batches, resident_batches, train_batches
    from alexnet_jax.train import program

    net = program(config, mesh)
    span = {"seed": config.seed, "batch_size": config.batch_size, "first_step": 0, "last_step": 1}
    if config.data.on_device:
        batches = resident_batches(prepared.train.labels, config.data, **span)
        images = prepared.train.images()
    else:
        batches, images = train_batches(prepared.train, config.data, **span), None
    batch = next(iter(batches))
    for batch_of_images in eval_batches(prepared.evaluation, config.evaluation.batch_size):
        assert batch_of_images.mask.any()
        break
    rate = optimizer.learning_rate(config.optimizer, 0, config.epochs, optimizer.new_plateau())
    epoch = {"rates": optimizer.rates(config.optimizer, net.state["params"], rate, 0)}
    epoch["noise"] = np.float32(augment.noise_strength(config.data, 0))
    constants = {"statistics": prepared.statistics, "key": jax.random.key(config.seed), "images": images}
    jax.eval_shape(net.step, net.state, batch, epoch, constants)
    views = partial(augment.views, config=config.data, count=config.evaluation.views)
    jax.eval_shape(views, batch_of_images.images, prepared.statistics)
    raise Accepted(config)
