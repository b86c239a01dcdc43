"""Trains a config, or resumes its run.

    alexnet train --config configs/quickstart.py [--workdir DIR] [--config.FIELD=VALUE ...]
    python -m alexnet_jax.main --config configs/quickstart.py        # the same

Several processes, on one machine or many, train together with --distributed.

Exit status: 0 when the run is complete; 130 when SIGTERM or Ctrl-C stopped it, once it trains in any of the processes;
1 when there is something to fix or another process is lost. The same command resumes from the last checkpoint.
"""

import sys

if __name__ == "__main__":  # as `alexnet train`, which watches for signals before the slow imports below
    from alexnet_jax.cli import verbs

    verbs.program("train")

import contextlib
import dataclasses
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint, network, one_line, out_of_memory, towers
from alexnet_jax.analysis import figures
from alexnet_jax.cli import commands, stopping
from alexnet_jax.config import check, flat, refuse_idle
from alexnet_jax.data.batches import steps_in_epoch
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Prepared
from alexnet_jax.files import expanded
from alexnet_jax.metrics import METRICS
from alexnet_jax.runs import finetune, ownership, provenance
from alexnet_jax.runs.run import load_run
from alexnet_jax.train import train

MOST_STEPS = 2**31  # the training state counts steps in int32
LESS_MEMORY = (
    "lower --config.evaluation.batch_size, give each tower its own device, or in a new --workdir lower "
    "--config.batch_size or keep the images off the device with --config.data.on_device=False"
)
LOST_AFTER = 20  # seconds without a sign of life; a process that waits for a lost one in a step notices at once
# Fields in which the processes of one run may differ: each has its own file system, and the data itself is compared.
PATHS = ("name", "data.name", "data.data_dir", "data.prepared_dir", "start.workdir")
Result = TypeVar("Result")


def add_flags(parser: ArgumentParser) -> None:
    """The flags of `alexnet train`."""
    commands.add_config(parser)
    commands.add_workdir(parser, required=False, help="the run's folder (default: runs/ and the config's name)")
    group = parser.add_argument_group("several processes", "a cluster manager sets the last three where there is one")
    group.add_argument("--distributed", action="store_true", help="this is one of several processes of one run")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="an address on process 0's machine")
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process", type=int, metavar="I", help="the number of this one, from 0")


def main(flags: Namespace) -> int:
    """Trains flags.config and returns the exit status. Raises UserError on what the user can fix."""
    config = flags.config
    workdir = expanded(flags.workdir or Path("runs") / str(config.get("name")))
    if flags.distributed:
        join(flags.coordinator, flags.processes, flags.process)
    elif (flags.coordinator, flags.processes, flags.process) != (None, None, None):
        raise UserError("--coordinator, --processes and --process require --distributed")
    try:
        status = run(config, workdir, flags.given)
    except KeyboardInterrupt:  # the second Ctrl-C: the first one lets a step finish
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return stopping.STOPPED
    except Exception as error:
        failure = what_to_fix(error, flags.distributed)
        if failure is None:
            raise
        if flags.distributed:  # each process ends by itself, because the others may be lost
            stopping.leave(f"error: {failure}", towers.leads())
        raise failure from error
    if status == stopping.STOPPED and towers.leads():
        print(f"stopped and saved; the same command resumes from here: {flags.command}")
    return status


def what_to_fix(error: Exception, several: bool) -> UserError | None:
    """What to tell the user of an exception that ended the run; None if it is a bug."""
    if isinstance(error, UserError):
        return error
    if out_of_memory(error):
        return UserError(f"not enough memory ({one_line(error)[:200]}): {LESS_MEMORY}")
    if isinstance(error, OSError):  # a full disk, a folder that went away
        return UserError(f"{error}: fix that, and the same command resumes from the last checkpoint")
    if several and isinstance(error, jax.errors.JaxRuntimeError | ValueError) and towers.lost(error):
        return UserError(stopping.LOST.format(f" ({one_line(error)[:200]})"))
    return None


def run(config: ConfigDict, workdir: Path, given: Collection[str] = ()) -> int:
    """Prepares the data, trains or resumes, draws the figures and says where everything is.

    given: dotted names of the fields that the command line sets, which fine-tuning does not take from its start.
    Returns the exit status: 0, or stopping.STOPPED after a signal. Raises UserError.
    """
    config = together(lambda: finetune.resolved(config, workdir, given))
    own_classes(config, given)
    check(config)
    refuse_idle(config, given)
    refuse_other_config(config)
    ownership.refuse_converted(workdir)
    together(lambda: ownership.refuse_unusable(workdir, config) if towers.leads() else None)
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    config, prepared, facts = together(lambda: ready(config, mesh, workdir))
    refuse_other_data(facts)
    refuse_other_start(config, prepared, workdir)
    with claimed(workdir, config, prepared, facts, mesh):
        if towers.leads():
            introduce(config, prepared, mesh, workdir)
        result = train(config, prepared, mesh, workdir)
    if result is None:
        return stopping.STOPPED
    if towers.leads():
        conclude(result, prepared, workdir)
    return 0


def ready(config, mesh, workdir: Path):
    """All that can be checked before anything is written to the workdir.

    Returns: the config with its number of classes; the prepared set, with the statistics that the network takes from
    images; what tells the set from others (provenance.of_data). Raises UserError.
    """
    prepared = prepare(config.data, config.model.num_classes)
    facts = provenance.of_data(prepared)
    config = config.copy_and_resolve_references()  # the caller's stays as it is
    config.model.num_classes = len(prepared.classes)
    check_against_data(config, prepared, mesh)
    if config.start.workdir:
        if checkpoint.latest_step(workdir) is None:
            finetune.refuse_other_function(config)
        prepared = dataclasses.replace(prepared, statistics=finetune.statistics(config, workdir, prepared.statistics))
    return config, prepared, facts


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict, prepared: Prepared, facts: dict, mesh: Mesh) -> Iterator[None]:
    """The workdir is this run's until the context ends. Process 0 claims it; no process continues before that."""
    word = towers.gather(np.frombuffer(os.urandom(16), np.uint8))[0].tobytes().hex()  # the same in all processes
    with contextlib.ExitStack() as held:

        def claim() -> None:
            machine = provenance.of_machine(mesh)
            statistics, classes = prepared.statistics, prepared.classes
            lock = held.enter_context(ownership.claim(workdir, config, statistics, classes, facts, machine))
            if jax.process_count() > 1:
                ownership.sign(lock, word)
            if checkpoint.latest_step(workdir) is not None and (warning := provenance.warning(machine, workdir)):
                print(warning, file=sys.stderr)

        together(claim if towers.leads() else lambda: None)
        if jax.process_count() > 1:
            together(lambda: ownership.refuse_unsigned(workdir, word))
        yield


def refuse_other_config(config: ConfigDict) -> None:
    """Raises UserError in all processes if one was started with another config than process 0; only paths may differ.

    Each would train at its own rates, say, and what should be copies of one network would drift apart.
    """
    if other := unlike_first({name: value for name, value in flat(config).items() if name not in PATHS}):
        raise UserError(
            f"process {other} was started with another config than process 0: give all of them the same --config and "
            "the same fields"
        )


def refuse_other_data(facts: dict) -> None:
    """Raises UserError in all processes if one has prepared another data set than process 0."""
    if other := unlike_first(facts):
        raise UserError(
            f"process {other} has prepared another data set than process 0, from other images or with "
            "another Pillow: give all of them the same --config.data.prepared_dir, or copies of one such folder"
        )


def refuse_other_start(config: ConfigDict, prepared: Prepared, workdir: Path) -> None:
    """Raises UserError in all processes if one begins from other weights than process 0, or with another mean image."""
    if not config.start.workdir or jax.process_count() == 1:
        return
    facts: dict[str, Any] = provenance.of_statistics(prepared)
    if checkpoint.latest_step(workdir) is None:
        facts |= together(lambda: checkpoint.identity(expanded(config.start.workdir)))
    if other := unlike_first(facts):
        raise UserError(
            f"process {other} starts from another run than process 0: give all of them the same "
            "--config.start.workdir, or copies of one"
        )


def unlike_first(facts: dict) -> str:
    """The numbers of the processes whose facts are not those of process 0; "" if there are none. All must ask."""
    digests = towers.gather(np.frombuffer(provenance.digest(facts), np.uint8))
    return ", ".join(str(i) for i, digest in enumerate(digests) if (digest != digests[0]).any())


def together(step: Callable[[], Result]) -> Result:
    """What `step` returns. If it raises UserError in one process, all raise one: none waits for another for ever."""
    if jax.process_count() == 1:
        return step()
    failure: UserError | None = None
    try:
        found = step()
    except UserError as e:
        failure = e
    if towers.any_process(failure is not None):
        raise failure or UserError("another process cannot start: fix what it reports, then start all of them again")
    return found


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meets the other processes, at an address or as the cluster manager says. Raises UserError if that fails."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=LOST_AFTER, shutdown_timeout_seconds=LOST_AFTER
        )
    except (ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(
            f"the processes cannot meet ({reason}): start them under SLURM, Open MPI, Kubernetes or on a TPU slice, "
            "or give each --coordinator=HOST:PORT --processes=N --process=I"
        ) from e
    stopping.expect_losses()


def check_against_data(config: ConfigDict, prepared: Prepared, mesh: Mesh) -> None:
    """Checks what depends on the images and the devices, before anything is written. Raises UserError."""
    images = len(prepared.train)
    steps = config.epochs * steps_in_epoch(images, config.batch_size)
    if steps >= MOST_STEPS:
        raise UserError(
            f"--config.epochs={config.epochs} makes {steps:,} steps, and at most {MOST_STEPS - 1:,} are possible: "
            "lower it"
        )
    towers.share(mesh)


def introduce(config: ConfigDict, prepared: Prepared, mesh: Mesh, workdir: Path) -> None:
    """Says what is about to run, and where things go."""
    steps = steps_in_epoch(len(prepared.train), config.batch_size)
    parameters = network.parameter_count(network.shapes(config.model, config.data.crop))
    kind = mesh.devices.flat[0].device_kind
    start = ""
    if config.start.workdir:
        fresh = f", {', '.join(config.start.fresh)} from scratch" if config.start.fresh else ""
        start = f"start:    {config.start.workdir}{fresh}\n"
    print(
        f"network:  {parameters:,} parameters, {config.model.towers} tower(s), {config.model.dtype}\n"
        f"devices:  {mesh.shape['data']} x {mesh.shape['tower']} (data x tower) of {len(jax.devices())} {kind}, "
        f"{jax.process_count()} process(es)\n"
        f"data:     {config.data.name}: {len(prepared.train):,} training and {len(prepared.evaluation):,} validation "
        f"images, {len(prepared.classes)} classes, in {prepared.directory}\n"
        f"{start}training: {config.epochs} epochs x {steps} steps of {config.batch_size} images, learning rate "
        f"{config.optimizer.learning_rate:g}\n"
        f"workdir:  {workdir}",
        flush=True,
    )


def conclude(result: dict[str, Any], prepared: Prepared, workdir: Path) -> None:
    """Draws the figures, and says how good the network is and where everything is."""
    latest = checkpoint.latest_step(workdir)
    drawn: dict[str, Path] = {}
    best = latest
    if jax.process_count() == 1:  # only a single process can read a run back and draw it
        run = load_run(workdir)
        drawn, best = figures.draw(run, prepared.evaluation, figures.QUICK, workdir), run.step
    print(
        f"validation, {result['views']} view(s), {result['images']} images, latest checkpoint (step {latest}): "
        f"top-1 error {result['top1_error']:.2%}, top-5 error {result['top5_error']:.2%}"
    )
    if best != latest:
        print(f"  the best checkpoint in one view is step {best}: alexnet evaluate uses it, or --which latest")
    for what, path in {"checkpoints": workdir / "checkpoints", "metrics": workdir / METRICS, **drawn}.items():
        print(f"  {what + ':':22} {path}")
    if not drawn:
        print(f"  pictures:              alexnet figures --workdir {workdir}")


def own_classes(config: ConfigDict, given: Collection[str]) -> None:
    """A data set that the command line names comes with its own number of classes, unless it names that too.

    given: dotted names of the fields that the command line sets.
    """
    if "data.name" in given and "model.num_classes" not in given:
        config.model.num_classes = 0
