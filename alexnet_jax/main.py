"""Trains a config.

python -m alexnet_jax.main --config configs/quickstart.py [--workdir DIR] [--config.FIELD=VALUE ...]

Several processes, on one machine or many, train together with --distributed: see "Several processes" in the README.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from alexnet_jax import UserError, checkpoint, figures, model, overrides, start, towers
from alexnet_jax.config import check
from alexnet_jax.data import steps_per_epoch
from alexnet_jax.prepare import prepare
from alexnet_jax.train import train

CONFIG = config_flags.DEFINE_config_file("config", None, "the config's file, e.g. configs/paper.py", lock_config=True)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "this is one of several processes that train together")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no cluster manager tells it")
PROCESSES = flags.DEFINE_integer("processes", None, "how many there are, where no cluster manager tells it")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")
WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives; default: runs/ and the config's name")

MOST_STEPS = 2**31  # a state counts them in int32


def run(config, workdir: Path) -> int:
    """Prepares, trains or resumes, draws the figures and says where everything is. Returns the exit status."""
    check(config)
    checkpoint.refuse_converted(workdir)
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    prepared = prepare(config.data, config.model.num_classes)
    config = config.copy_and_resolve_references()  # the caller's stays as it is
    config.model.num_classes = len(prepared.classes)
    check_against_data(config, prepared, mesh)
    if config.start.workdir:
        if not checkpoint.holds_run(workdir):
            start.check(config)  # before anything is written
        prepared = dataclasses.replace(prepared, statistics=start.statistics(config, workdir, prepared.statistics))
    with contextlib.ExitStack() as held:
        if towers.leads():
            held.enter_context(checkpoint.claim(workdir, config, prepared.statistics, prepared.classes))
            introduce(config, prepared, mesh, workdir)
        towers.any_process(False)  # nobody goes on before the workdir is ours
        result = train(config, prepared, mesh, workdir)
    if not towers.leads():
        return 130 if result is None else 0
    if result is None:
        command = f"python -m alexnet_jax.main {shlex.join(sys.argv[1:])}"
        print(f"stopped and saved; the same command goes on from here: {command}")
        return 130
    drawn = {}
    if jax.process_count() == 1:  # a run is read back, and drawn, by one process
        drawn = figures.draw_run(workdir, prepared.evaluation)
    print(
        f"validation, {result['views']} view(s), {result['images']} images: "
        f"top-1 error {result['top1_error']:.2%}, top-5 error {result['top5_error']:.2%}"
    )
    for what, path in {"checkpoints": workdir / "checkpoints", "metrics": workdir / "metrics.jsonl", **drawn}.items():
        print(f"  {what + ':':22} {path}")
    if not drawn:
        print(f"  pictures:              python -m alexnet_jax.figures --workdir {workdir}")
    return 0


def join():
    """Meets the other processes. Raises UserError if they do not come, or if nothing tells where they are."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    except (ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(
            f"the processes cannot meet ({reason}): start them under SLURM, Open MPI, Kubernetes or on a TPU slice, "
            "or give each --coordinator=HOST:PORT --processes=N --process=I"
        ) from e


def check_against_data(config, prepared, mesh):
    """Raises UserError, naming the field, on what only the images and the devices tell; nothing is written yet."""
    images = len(prepared.train)
    steps = config.epochs * steps_per_epoch(images, config.batch_size)
    if steps >= MOST_STEPS:
        raise UserError(f"--config.epochs={config.epochs} makes {steps:,} steps, of {MOST_STEPS:,} at most: lower it")
    towers.share(mesh)


def introduce(config, prepared, mesh, workdir: Path):
    """Says what is about to run, and where things go."""
    steps = steps_per_epoch(len(prepared.train), config.batch_size)
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
    try:
        if CONFIG.value is None:
            raise UserError("name a config: python -m alexnet_jax.main --config configs/quickstart.py")
        config = CONFIG.value
        own_classes(config, config_flags.get_override_values(flags.FLAGS["config"]))
        if DISTRIBUTED.value:
            join()
        elif (COORDINATOR.value, PROCESSES.value, PROCESS.value) != (None, None, None):
            raise UserError("--coordinator, --processes and --process want --distributed beside them")
        sys.exit(run(config, Path(WORKDIR.value or Path("runs") / config.name).expanduser()))
    except UserError as e:
        sys.exit(f"error: {e}")
    except OSError as e:  # a full disk, a folder that went away
        sys.exit(f"error: {e}: mend that, and the same command goes on from the last checkpoint")
    except jax.errors.JaxRuntimeError as e:
        if not DISTRIBUTED.value:
            raise
        reason = str(e).strip().splitlines()[0][:200]
        sys.exit(f"error: another process is lost ({reason}): start all again, they go on from the last checkpoint")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them ends in one line. CONFIG then is None or a ConfigDict."""
    try:
        argv = overrides.located(argv)
    except UserError as e:
        sys.exit(f"error: {e}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # ml_collections prints a traceback of its own
            rest = flags.FLAGS(argv)
        named = overrides.given(argv)[0] is not None
        if named and not isinstance(CONFIG.value, ConfigDict):  # None, or how ml_collections says OSError
            raise TypeError("the config cannot be read")
        return rest
    except Exception as e:  # ml_collections raises whatever the config file or an override raises
        sys.exit(f"error: {overrides.explain(argv, e)}")


def settle():
    """What a process that trains does first: less talk from the libraries, and a cache of what it compiles."""
    if not jax.config.jax_compilation_cache_dir:  # $JAX_COMPILATION_CACHE_DIR
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    logging.set_verbosity(logging.ERROR)  # TFDS and orbax report every file at the level below


if __name__ == "__main__":
    settle()
    app.run(main, flags_parser=parse)
