"""Trains a config.

python -m alexnet_jax.main --config configs/quickstart.py [--workdir DIR] [--config.FIELD=VALUE ...]

Several processes, on one machine or many, train together with --distributed: see "Several processes" in the README.

Exit status: 0 when the run has come to its end, 130 when SIGTERM or Ctrl-C stopped it, in any of the processes, and 1
when something is to be mended or another process is lost. The same command goes on from the last checkpoint.
"""

from alexnet_jax.cli import stopping

if __name__ == "__main__":
    stopping.watch()  # first of all: what is imported below takes seconds

import contextlib
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from alexnet_jax import UserError, checkpoint, model, one_line, towers
from alexnet_jax.analysis import figures
from alexnet_jax.cli import config_file
from alexnet_jax.config import check
from alexnet_jax.data.batches import steps_in_epoch
from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs import claims, finetune, provenance
from alexnet_jax.train import train

CONFIG = config_flags.DEFINE_config_file("config", None, "the config's file, e.g. configs/paper.py", lock_config=True)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "this is one of several processes that train together")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no cluster manager tells it")
PROCESSES = flags.DEFINE_integer("processes", None, "how many there are, where no cluster manager tells it")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")
WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives; default: runs/ and the config's name")

MOST_STEPS = 2**31  # a state counts them in int32
LESS_MEMORY = (
    "lower --config.batch_size or --config.evaluation.batch_size, keep the images off the device by "
    "--config.data.on_device=False, or give the towers a device each"
)
LOST_AFTER = 20  # seconds without a sign of life; a process that waits for a lost one in a step learns of it at once


def run(config, workdir: Path, given: Collection[str] = ()) -> int:
    """Prepares, trains or resumes, draws the figures and says where everything is. Returns the exit status.

    given: dotted names of the fields that the command line sets, which fine-tuning does not take from its start.
    """
    config = together(lambda: finetune.resolved(config, workdir, given))
    check(config)
    claims.refuse_converted(workdir)
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    config, prepared, facts = together(lambda: ready(config, mesh, workdir))
    refuse_other_data(facts)
    with contextlib.ExitStack() as held:

        def claim():
            machine = provenance.of_machine(mesh)
            statistics, classes = prepared.statistics, prepared.classes
            held.enter_context(claims.claim(workdir, config, statistics, classes, facts, machine))
            if checkpoint.trained(workdir) is not None and (warning := provenance.warning(machine, workdir)):
                print(warning, file=sys.stderr)

        together(claim if towers.leads() else lambda: None)  # nobody goes on before the workdir is ours
        if towers.leads():
            introduce(config, prepared, mesh, workdir)
        result = train(config, prepared, mesh, workdir)
    if not towers.leads():
        return stopping.STOPPED if result is None else 0
    if result is None:
        command = f"python -m alexnet_jax.main {shlex.join(sys.argv[1:])}"
        print(f"stopped and saved; the same command goes on from here: {command}")
        return stopping.STOPPED
    drawn, latest = {}, checkpoint.trained(workdir)
    best = latest
    if jax.process_count() == 1:  # a run is read back, and drawn, by one process
        drawn = figures.draw_run(workdir, prepared.evaluation)
        best = checkpoint.best_step(workdir)
    print(
        f"validation, {result['views']} view(s), {result['images']} images, latest checkpoint (step {latest}): "
        f"top-1 error {result['top1_error']:.2%}, top-5 error {result['top5_error']:.2%}"
    )
    if best != latest:
        print(f"  the best in one view is step {best}: evaluate takes it unless told --which latest")
    for what, path in {"checkpoints": workdir / "checkpoints", "metrics": workdir / "metrics.jsonl", **drawn}.items():
        print(f"  {what + ':':22} {path}")
    if not drawn:
        print(f"  pictures:              alexnet figures --workdir {workdir}")
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
        if checkpoint.trained(workdir) is None:
            finetune.refuse_other_function(config)
        prepared = dataclasses.replace(prepared, statistics=finetune.statistics(config, workdir, prepared.statistics))
    return config, prepared, facts


def refuse_other_data(facts: dict):
    """Raises UserError in all processes if one has prepared another data set than process 0."""
    digests = towers.gather(np.frombuffer(provenance.digest(facts), np.uint8))
    if other := [str(i) for i, digest in enumerate(digests) if (digest != digests[0]).any()]:
        raise UserError(
            f"process {', '.join(other)} has prepared another data set than process 0, from other images or by another "
            "Pillow: give all the same --config.data.prepared_dir, or a copy of one's folder there"
        )


def together(step: Callable):
    """What a step returns. Raises UserError in all processes if it does in one: none waits for it in vain."""
    if jax.process_count() == 1:
        return step()
    found, failure = None, None
    try:
        found = step()
    except UserError as e:
        failure = e
    if towers.any_process(failure is not None):
        raise failure or UserError("another process cannot start: mend what it says, then start all again")
    return found


def join():
    """Meets the other processes. Raises UserError if they do not come, or if nothing tells where they are."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    known = COORDINATOR.value, PROCESSES.value, PROCESS.value
    try:
        jax.distributed.initialize(*known, heartbeat_timeout_seconds=LOST_AFTER, shutdown_timeout_seconds=LOST_AFTER)
    except (ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(
            f"the processes cannot meet ({reason}): start them under SLURM, Open MPI, Kubernetes or on a TPU slice, "
            "or give each --coordinator=HOST:PORT --processes=N --process=I"
        ) from e
    stopping.expect_losses()


def check_against_data(config, prepared, mesh):
    """Raises UserError, naming the field, on what only the images and the devices tell; nothing is written yet."""
    images = len(prepared.train)
    steps = config.epochs * steps_in_epoch(images, config.batch_size)
    if steps >= MOST_STEPS:
        raise UserError(f"--config.epochs={config.epochs} makes {steps:,} steps, of {MOST_STEPS:,} at most: lower it")
    towers.share(mesh)


def introduce(config, prepared, mesh, workdir: Path):
    """Says what is about to run, and where things go."""
    steps = steps_in_epoch(len(prepared.train), config.batch_size)
    parameters = model.parameter_count(model.shapes(config.model, config.data.crop))
    kind = mesh.devices.flat[0].device_kind
    fresh = f", {', '.join(config.start.fresh)} anew" if config.start.fresh else ""
    begins = f"start:    {config.start.workdir}{fresh}\n" if config.start.workdir else ""
    print(
        f"network:  {parameters:,} parameters, {config.model.towers} tower(s), {config.model.dtype}\n"
        f"devices:  {mesh.shape['data']} x {mesh.shape['tower']} (data x tower) of {len(jax.devices())} {kind}, "
        f"{jax.process_count()} process(es)\n"
        f"data:     {config.data.name}: {len(prepared.train):,} training and {len(prepared.evaluation):,} validation "
        f"images, {len(prepared.classes)} classes, in {prepared.directory}\n"
        f"{begins}training: {config.epochs} epochs x {steps} steps of {config.batch_size} images, learning rate "
        f"{config.optimizer.learning_rate:g}\n"
        f"workdir:  {workdir}",
        flush=True,
    )


def own_classes(config, given: dict):
    """A data set that the command line names comes with its own number of classes, unless it names that too.

    given: the fields that the command line sets, by dotted names.
    """
    if "data.name" in given and "model.num_classes" not in given:
        config.model.num_classes = 0


def main(argv: list[str]):
    """absl's main; the user's mistakes end in one line."""
    if len(argv) > 1:
        sys.exit(f"error: '{argv[1]}' is not a flag; flags start with --, as in --config.batch_size=64")
    several = False
    try:
        if CONFIG.value is None:
            raise UserError("name a config: python -m alexnet_jax.main --config configs/quickstart.py")
        config = CONFIG.value
        given = config_flags.get_override_values(flags.FLAGS["config"])
        own_classes(config, given)
        if DISTRIBUTED.value:
            join()
            several = True
        elif (COORDINATOR.value, PROCESSES.value, PROCESS.value) != (None, None, None):
            raise UserError("--coordinator, --processes and --process want --distributed beside them")
        sys.exit(run(config, Path(WORKDIR.value or Path("runs") / str(config.get("name"))).expanduser(), given))
    except UserError as e:
        end(f"error: {e}", several)
    except OSError as e:  # a full disk, a folder that went away
        end(f"error: {e}: mend that, and the same command goes on from the last checkpoint", several)
    except (jax.errors.JaxRuntimeError, ValueError) as e:
        if isinstance(e, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(e):
            end(f"error: the memory does not suffice ({one_line(e)[:200]}): {LESS_MEMORY}", several)
        if not (several and towers.lost(e)):
            raise
        end(stopping.LOST.format(f" ({one_line(e)[:200]})"), several)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(stopping.STOPPED)


def end(text: str, several: bool):
    """Ends this process with a line and status 1; of several each ends by itself, as others may be lost."""
    if several:
        stopping.leave(text, towers.leads())
    sys.exit(text)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them ends in one line. CONFIG then is None or a ConfigDict."""
    try:
        argv = config_file.located(argv)
    except UserError as e:
        sys.exit(f"error: {e}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # ml_collections prints a traceback of its own
            rest = flags.FLAGS(argv)
        named = config_file.given(argv)[0] is not None
        if named and not isinstance(CONFIG.value, ConfigDict):  # None, or how ml_collections says OSError
            raise TypeError("the config cannot be read")
        return rest
    except Exception as e:  # ml_collections raises whatever the config file or an override raises
        sys.exit(f"error: {config_file.explain(argv, e)}")


def settle():
    """What a process that trains does first: less talk from the libraries, and a cache of what it compiles."""
    if not jax.config.jax_compilation_cache_dir:  # $JAX_COMPILATION_CACHE_DIR
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    logging.set_verbosity(logging.ERROR)  # TFDS and orbax report every file at the level below


if __name__ == "__main__":
    settle()
    app.run(main, flags_parser=parse)
