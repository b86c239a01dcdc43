"""A sweep of ablations: the base and each change of it, over several seeds, one resumable run a cell.

    python -m experiments.ablations --sweep small --seeds 3 --only lrn_off,pooling [--workdir DIR] [--dry-run]
    python -m experiments.ablations --sweep paper --launcher slurm --slurm partition=gpu --slurm gpus_per_node=2

A sweep is a short Python file with get_config(), the base, and ABLATIONS (see changes.py): sweep_small.py is "small";
the path of another file does too. Cell c with seed s trains in DIR/c/seeds, DIR being runs/sweep_small by default. A
killed sweep goes on by the same command; a cell that fails is named at the end and leaves its reason in failed.txt.
Locally one cell runs after the other; under SLURM each is a job.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import submitit
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, main, one_line
from alexnet_jax.cli import config_file
from alexnet_jax.cli.commands import command
from alexnet_jax.config import check
from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs import claims
from experiments import results
from experiments.changes import Change
from experiments.steps import stepper

DAYS = 7  # after which a job is given up
BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} epochs [{elapsed}<{remaining}]{postfix}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep."""

    name: str
    seed: int
    config: ConfigDict
    workdir: Path

    def __str__(self):
        return f"{self.name}, seed {self.seed}"

    def epochs_done(self) -> float:
        """How far the run is; all its epochs once its last evaluation is recorded."""
        run = results.read(self.workdir)
        if run.state == "finished":
            return float(self.config.epochs)
        furthest = max((results.number(r, "epoch") or 0.0 for r in run.records), default=0.0)
        return min(furthest, self.config.epochs - 0.01)


def read_sweep(name: str) -> tuple[ConfigDict, dict[str, Change]]:
    """(the base config, ABLATIONS) of a sweep: small, small:ARG, or a file, or file:ARG. Raises UserError."""
    name, _, arg = name.partition(":")
    here = Path(__file__).parent
    path = Path(name).expanduser() if "/" in name or name.endswith(".py") else here / f"sweep_{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem.removeprefix("sweep_") for p in here.glob("sweep_*.py")))
        what = f"{path} is a folder, and no sweep" if path.is_dir() else f"there is no sweep '{name}'"
        whole = Path(f"{name}.py").expanduser()
        raise UserError(f"{what}: there are {known}, or give {whole if whole.is_file() else 'a file.py'}")
    module = config_file.load(path)
    base = config_file.call(module, path, arg)
    ablations = getattr(module, "ABLATIONS", None)
    if not isinstance(ablations, dict) or not all(isinstance(c, Change) for c in ablations.values()):
        raise UserError(f"{path} must have ABLATIONS, a dict of experiments.changes.Change by name")
    for word in ablations:
        if word == "base" or not re.fullmatch(r"\w[\w.-]*", str(word)):
            raise UserError(f"{path} names an ablation '{word}': it becomes a folder's name, of letters, digits and _")
    return base, ablations


def choose(ablations: dict, only: str) -> dict:
    """The ablations that `only` names, all if it is empty: "lrn" is lrn_off, lrn_across, ... Raises UserError."""
    words = [w.strip() for w in only.split(",") if w.strip()]
    for word in words:
        if not any(name == word or name.startswith(f"{word}_") for name in ablations):
            raise UserError(f"--only: no ablation '{word}'; there are {', '.join(ablations)}")
    return {
        name: change
        for name, change in ablations.items()
        if not words or any(name == w or name.startswith(f"{w}_") for w in words)
    }


def make_cells(base: ConfigDict, ablations: dict, seeds: int, workdir: Path) -> list[Cell]:
    """The base and the ablations, seed by seed, so that a sweep that is cut short has whole rows. Raises UserError."""
    cells = []
    for seed in range(seeds):
        for name in ("base", *ablations):
            config = base.copy_and_resolve_references()
            known = flatten_dict(config.to_dict(), sep=".")
            try:
                fields = ablations[name].fields(base) if name != "base" else {}
                if strange := [field for field in fields if field not in known]:
                    raise UserError(f"{strange[0]}: {config_file.unknown(str(strange[0]), known, 'the base')}")
                config.lock().update_from_flattened_dict(fields | {"seed": seed})
                check(config)
            except UserError as e:
                raise UserError(f"ablation {name} makes no config: {e}") from e
            except Exception as e:  # of its fields(), the user's own code, or of a value of another type
                raise UserError(f"ablation {name} makes no config: {one_line(e)}") from e
            cells.append(Cell(name, seed, config, workdir / name / f"seed{seed}"))
    return cells


def record(workdir: Path, sweep: str, base: ConfigDict, ablations: dict, seeds: int):
    """Writes the plan, sweep.json, for report.py, or adds to it. Raises UserError if another base stands there."""
    path = workdir / "sweep.json"
    mine = json.loads(base.to_json())
    cells = {"base": {"title": "base", "fields": {}}}
    cells |= {name: {"title": c.title, "fields": c.fields(base)} for name, c in ablations.items()}
    plan = {"sweep": sweep, "config": mine, "seeds": list(range(seeds)), "cells": cells}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            old = json.loads(path.read_text())
            if old["config"] != mine:
                raise UserError(f"{workdir} holds a sweep of another base: name another --workdir")
            plan["seeds"] = sorted({*old["seeds"], *plan["seeds"]})
            plan["cells"] = old["cells"] | cells
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(plan, indent=2) + "\n")
        os.replace(fresh, path)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{path} cannot be read or written ({one_line(e)}): name another --workdir") from e


def train_cell(config: str, workdir: str):
    """What a job does: trains a config (JSON) in a workdir, from where it stands. Waits if another job is at it."""
    main.settle()
    path = Path(workdir)
    (path / results.FAILED).unlink(missing_ok=True)
    while True:
        try:
            if main.run(ConfigDict(json.loads(config)), path):
                raise UserError("stopped by a signal")
            return
        except claims.Busy:
            time.sleep(2)
        except Exception as e:
            with contextlib.suppress(OSError):  # then its output tells
                path.mkdir(parents=True, exist_ok=True)
                (path / results.FAILED).write_text(f"{e if isinstance(e, UserError) else one_line(e)}\n")
            raise


def cost(base: ConfigDict) -> float:
    """The seconds that a run of the base takes here, from a few steps; of the evaluations, a third of a step's."""
    prepared = prepare(base.data)
    start = time.perf_counter()
    step, _ = stepper(base)
    step()
    compiling, seconds = time.perf_counter() - start, []
    for _ in tqdm(range(5), "measuring the base", unit=" steps", leave=False):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    steps = base.epochs * (len(prepared.train) // base.batch_size)
    views = len(range(0, base.epochs, base.evaluation.every_epochs)) + base.evaluation.views
    steps += views * len(prepared.evaluation) / base.batch_size / 3
    return compiling + steps * statistics.median(seconds)


def print_plan(cells: list[Cell], base: ConfigDict, ablations: dict):
    """The cells and what they will cost."""
    width = max(len(c.name) for c in cells)
    for name in dict.fromkeys(c.name for c in cells):
        fields = ablations[name].fields(base) if name != "base" else {"": base.name}
        done = [c.epochs_done() / base.epochs for c in cells if c.name == name]
        left = "".join("x" if d == 1 else "-" if d == 0 else "~" for d in done)
        print(f"{name:{width}}  {left}  {', '.join(f'{f}={v}' if f else v for f, v in fields.items())}")
    print("each seed: x finished, ~ begun, - to come")
    seconds = cost(base)
    left = sum(1 - c.epochs_done() / base.epochs for c in cells)
    print(
        f"a run of the base takes about {_time(seconds)} here, the {left:.1f} runs to come {_time(left * seconds)} "
        "if the others cost as much, one after the other"
    )


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def launch(cells: list[Cell], executor: submitit.Executor) -> dict[str, str]:
    """Runs the cells that are not finished: here one after the other, on a cluster each as a job, all at once.

    Returns {cell: why} of those that failed.
    """
    here = isinstance(executor, submitit.LocalExecutor)
    waiting = [c for c in cells if c.epochs_done() < c.config.epochs]
    running, failed = {}, {}
    total = sum(c.config.epochs for c in cells)
    with tqdm(total=total, unit=" epochs", dynamic_ncols=True, bar_format=BAR) as bar:
        bar.write(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished", file=sys.stderr)
        try:
            while waiting or running:
                while waiting and not (here and running):
                    cell = waiting.pop(0)
                    job = executor.submit(train_cell, cell.config.to_json(), str(cell.workdir))
                    running[cell] = job
                for cell, job in list(running.items()):
                    if not job.done():
                        continue
                    del running[cell]
                    if cell.epochs_done() < cell.config.epochs:
                        failed[str(cell)] = _reason(cell, job)
                        bar.write(f"failed: {cell}: {failed[str(cell)]}", file=sys.stderr)
                bar.set_postfix_str("; ".join(map(str, running)) if len(running) < 3 else f"{len(running)} jobs")
                bar.update(sum(c.epochs_done() for c in cells) - bar.n)
                time.sleep(1 if here else 10)
        finally:
            if here:  # a sweep that is stopped stops its run; jobs of a cluster go on, and are waited for
                for job in running.values():
                    job.cancel()
    return failed


def _reason(cell: Cell, job: submitit.Job) -> str:
    path = cell.workdir / results.FAILED
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"ended without a word; its output: {job.paths.stderr}\n")
    return path.read_text().strip()


def make_executor(launcher: str, folder: Path, options: list[str]) -> submitit.Executor:
    """Submitit's executor, its files in `folder`. Raises UserError where there is no such launcher."""
    parameters = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--slurm {option} is not KEY=VALUE, as in --slurm partition=gpu")
        parameters[f"slurm_{key}"] = int(value) if value.isdigit() else value
    try:
        if launcher == "slurm":
            executor = submitit.AutoExecutor(folder, cluster="slurm")
            executor.update_parameters(timeout_min=60 * 24 * DAYS)
            executor.update_parameters(**parameters)
            return executor
        # Submitit hides the GPUs from a job that does not ask for them.
        gpus = [int(g) for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g.isdigit()]
        gpus = gpus or list(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=60 * 24 * DAYS, gpus_per_node=len(gpus), visible_gpus=tuple(gpus))
        return executor
    except OSError as e:
        raise UserError(f"cannot write to {folder} ({e.strerror or e}): name another --workdir") from e
    except Exception as e:  # submitit raises many kinds
        raise UserError(f"--launcher {launcher} cannot be used here: {one_line(e)}") from e


def run(argv: list[str]) -> int:
    """The command line. Returns 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", required=True, help="paper, small, smoke, or a file; a config's arg after a colon")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N - 1")
    parser.add_argument("--only", default="", help="ablations, comma-separated; the base always runs")
    parser.add_argument("--workdir", help="default: runs/sweep_NAME")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help="a parameter of sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what they will cost")
    flags = parser.parse_args(argv)
    if not 1 <= flags.seeds <= 1000:
        raise UserError(f"--seeds is {flags.seeds} and must be from 1 to 1000")
    base, ablations = read_sweep(flags.sweep)
    ablations = choose(ablations, flags.only)
    stem = Path(flags.sweep).stem.replace(":", "_")
    workdir = Path(flags.workdir or f"runs/sweep_{stem}").expanduser()
    cells = make_cells(base, ablations, flags.seeds, workdir)
    if flags.dry_run:
        print_plan(cells, base, ablations)
        return 0
    executor = make_executor(flags.launcher, workdir / "jobs", flags.slurm)
    record(workdir, flags.sweep, base, ablations, flags.seeds)
    prepare(base.data)  # once, before the runs ask for it
    failed = launch(cells, executor)
    for cell, reason in failed.items():
        print(f"failed: {cell}: {reason}", file=sys.stderr)
    print(f"{len(cells) - len(failed)} of {len(cells)} cells finished: python -m experiments.report {workdir}")
    return 1 if failed else 0


if __name__ == "__main__":
    main.settle()
    command(run, "stopped; the same command goes on from here")
