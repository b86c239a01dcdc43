"""Runs a sweep of ablations: a base config and each change to it, over several seeds.

    alexnet sweep --sweep small --seeds 3 --only lrn_off,pooling [--workdir DIR] [--dry-run]
    alexnet sweep --sweep paper --launcher slurm --slurm partition=gpu --slurm gpus_per_node=2
    python -m experiments.sweep --sweep small            # the same

A sweep is a short Python file with get_config(), the base, and ABLATIONS, its changes by name (see changes.py).
--sweep small is the file experiments/sweeps/small.py; it also takes the path of a file of your own. ARG in small:ARG
is passed to get_config().

Each cell of the sweep is a run: ablation NAME with seed S trains in DIR/NAME/seedS. DIR is runs/sweep_small for the
sweep small. Locally the cells run one after the other, or --at-once N of them, each on its share of the cores; under
SLURM each is a job. A cell that fails does not stop the others: it is named at the end, and the reason is in its
folder, in failed.txt. A stopped or killed sweep is resumed by the same command. The same command, started twice on one
machine, shares the cells. With --skip-recorded NAME it leaves out the runs that are in experiments/records/NAME.json.
"""

import json
import math
import re
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.cli import config_file
from alexnet_jax.cli.commands import add_workdir
from alexnet_jax.config import check, fields, flat
from alexnet_jax.data.prepare import prepare
from alexnet_jax.files import expanded, locked, write_text
from alexnet_jax.runs import finetune
from experiments import results
from experiments.benchmark.stepper import stepper
from experiments.changes import Change
from experiments.jobs import Cell, launch, make_executor
from experiments.record import file

SWEEPS = Path(__file__).parent / "sweeps"


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet sweep`."""
    says = "ablations, start, towers, finetune, paper, ... or a file; the config's argument follows a colon"
    parser.add_argument("--sweep", required=True, metavar="NAME[:ARG]", help=says)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    says = "ablations, comma-separated, lrn for all of lrn_*; the base always runs, base for it alone (default: all)"
    parser.add_argument("--only", default="", metavar="NAME,...", help=says)
    add_workdir(parser, required=False, help="the sweep's folder (default: runs/sweep_NAME)")
    says = "where the runs train: here, or each as a SLURM job (default: local)"
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help=says)
    says = "how many runs train at once here, each on its share of the cores (default: 1)"
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help=says)
    says = "an option of sbatch; repeat it for more"
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=says)
    says = "leave out the finished runs of the record experiments/records/NAME.json (see alexnet record)"
    parser.add_argument("--skip-recorded", default="", metavar="NAME", help=says)
    says = "print the runs and their cost, for which it prepares the data and times a few steps; train nothing"
    parser.add_argument("--dry-run", action="store_true", help=says)


def main(flags: Namespace) -> int:
    """Runs the sweep, or prints its plan. Returns 1 if a cell failed. Raises UserError."""
    if not 1 <= flags.seeds <= 1000:
        raise UserError(f"--seeds is {flags.seeds} and must be from 1 to 1000")
    if not 1 <= flags.at_once <= 1000:
        raise UserError(f"--at-once is {flags.at_once} and must be from 1 to 1000")
    base, ablations = read_sweep(flags.sweep)
    ablations = choose(ablations, flags.only)
    workdir = expanded(flags.workdir or f"runs/sweep_{_label(flags.sweep)}")
    planned = cells = make_cells(base, ablations, flags.seeds, workdir)
    if flags.skip_recorded:
        cells = unrecorded(planned, flags.skip_recorded)
    for cell in cells:
        cell.check()
    if flags.dry_run:
        print_plan(cells, base, ablations)
        return 0
    executor = make_executor(flags.launcher, workdir / "jobs", flags.slurm)
    write_plan(workdir, flags.sweep, base, planned, {name: change.title for name, change in ablations.items()})
    prepare(base.data, base.model.num_classes)  # once, before the runs need it
    try:
        failed = launch(cells, executor, flags.at_once)
    except KeyboardInterrupt:
        print("stopped: the same command resumes the sweep", file=sys.stderr)
        return 130
    for cell, reason in failed.items():
        print(f"failed: {cell}: {reason}", file=sys.stderr)
    print(f"{len(cells) - len(failed)} of {len(cells)} runs finished: alexnet report {workdir}")
    return 1 if failed else 0


# --- What is run ------------------------------------------------------------------------------------------------------


def read_sweep(name: str) -> tuple[ConfigDict, dict[str, Change]]:
    """(the base config, ABLATIONS) of a sweep: small, small:ARG, or a file, or file:ARG. Raises UserError."""
    name, _, arg = name.partition(":")
    path = _find(name)
    module = config_file.load(path)
    base = config_file.call(module, path, arg)
    ablations = getattr(module, "ABLATIONS", None)
    if not isinstance(ablations, dict) or not all(isinstance(c, Change) for c in ablations.values()):
        raise UserError(f"{path} must have ABLATIONS, a dict of experiments.changes.Change by name")
    for word in ablations:
        if word == "base" or not re.fullmatch(r"\w[\w.-]*", str(word)):
            raise UserError(f"{path} names an ablation '{word}': a folder gets this name, so use letters, digits and _")
    return base, ablations


def _label(name: str) -> str:
    """A sweep's name as a part of a folder's: small_cifar10 for small:cifar10, mine for folder/mine.py."""
    name, _, arg = name.partition(":")
    return "_".join(filter(None, (Path(name).stem, re.sub(r"[^\w.-]+", "_", arg))))


def _find(name: str) -> Path:
    """The file of a sweep. Raises UserError if there is none."""
    is_path = "/" in name or name.endswith(".py")
    path = expanded(name) if is_path else SWEEPS / f"{name}.py"
    if path.is_file():
        return path
    what = f"{path} is a folder, not a sweep" if path.is_dir() else f"there is no sweep '{name}'"
    known = ", ".join(sorted(p.stem for p in SWEEPS.glob("*.py") if p.stem != "__init__"))
    with_suffix = expanded(f"{name}.py")
    instead = with_suffix if with_suffix.is_file() else "the path of a file"
    raise UserError(f"{what}: there are {known}, or name {instead}")


def choose(ablations: dict[str, Change], only: str) -> dict[str, Change]:
    """The ablations that `only` names, or all if it is empty: "lrn" is lrn_off, lrn_across, ..., "base" is none.

    An ablation's whole name is that one alone, even if others begin with it. Raises UserError.
    """
    words = [w.strip() for w in only.split(",") if w.strip()]
    if not words:
        return ablations
    chosen = set()
    for word in words:
        if word == "base":
            continue
        named = {word} & ablations.keys() or {name for name in ablations if name.startswith(f"{word}_")}
        if not named:
            raise UserError(f"--only: there is no ablation '{word}'; there are base, {', '.join(ablations)}")
        chosen |= named
    return {name: change for name, change in ablations.items() if name in chosen}


def make_cells(base: ConfigDict, ablations: dict[str, Change], seeds: int, workdir: Path) -> list[Cell]:
    """The base and the ablations for one seed after the other, so that a sweep that is cut short has complete seeds.

    Raises UserError if an ablation makes no valid config.
    """
    configs = {}
    for name in ("base", *ablations):
        try:
            configs[name] = _changed(base, name, ablations.get(name))
        except Exception as e:  # also whatever the user's own fields() raises
            reason = e if isinstance(e, UserError) else one_line(e)
            raise UserError(f"ablation {name} makes no valid config: {reason}") from e
    return [
        Cell(name, seed, _with_seed(config, seed), workdir / name / f"seed{seed}")
        for seed in range(seeds)
        for name, config in configs.items()
    ]


def _changed(base: ConfigDict, name: str, change: Change | None) -> ConfigDict:
    """The base, or with a change and its name. Raises UserError, or what change.fields or ml_collections raises."""
    config = base.copy_and_resolve_references()
    known = fields(config)
    changed = {"name": name} | change.fields(base) if change else {}
    for field in changed:
        if field not in known:
            raise UserError(f"{field}: {config_file.unknown(str(field), known, 'the base')}")
    config.lock().update_from_flattened_dict(changed)
    config = finetune.resolved(config, given=changed)  # here, where the change's own fields are known
    check(config)
    return config


def _with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.seed = seed
    return config


def unrecorded(cells: list[Cell], name: str, folder: Path = file.RECORDS) -> list[Cell]:
    """The cells whose run is not in a record; says on standard error how many are. Raises UserError without the record.

    Only the record that the runs will be added to counts: differences are taken within one.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise UserError(f"--skip-recorded: there is no record '{name}' in {folder}, only {known}")
    recorded = file.finished(path)

    def known(cell: Cell) -> bool:
        mine = results.computes(flat(cell.config))
        return any(seed == cell.seed and not results.departing(settings, mine) for settings, seed in recorded)

    left = [cell for cell in cells if not known(cell)]
    print(f"{len(cells) - len(left)} of {len(cells)} runs are recorded in {path}", file=sys.stderr)
    return left


def write_plan(workdir: Path, sweep: str, base: ConfigDict, cells: list[Cell], titles: dict[str, str]):
    """Writes the plan, sweep.json, for the report, or adds to one that is there. titles: of the ablations, by name.

    Raises UserError if the folder has the plan of another base, or if the plan cannot be read or written.
    """
    path = workdir / results.PLAN
    config = json.loads(base.to_json())
    plan = {"sweep": sweep, "config": config, "cells": _planned(base, cells, titles)}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with locked(workdir):
            if path.exists():
                old = json.loads(path.read_text())
                there, here = (results.computes(results.completed(c)) for c in (old["config"], config))
                if there != here:
                    raise UserError(f"{workdir} contains a sweep of another base: name another --workdir")
                cells_there = {name: {"seeds": old.get("seeds")} | cell for name, cell in old["cells"].items()}
                for name in cells_there.keys() & plan["cells"].keys():
                    cell = plan["cells"][name]
                    cell["seeds"] = sorted({*cells_there[name]["seeds"], *cell["seeds"]})
                plan["cells"] = cells_there | plan["cells"]
            write_text(path, json.dumps(plan, indent=2) + "\n")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path} cannot be read or written ({one_line(e)}): name another --workdir") from e


def _planned(base: ConfigDict, cells: list[Cell], titles: dict[str, str]) -> dict[str, dict]:
    """The cells of a plan: each title, the fields that its runs have otherwise than the base, and their seeds."""
    settings = results.computes(flat(base))
    planned = {}
    for cell in cells:
        ours = results.computes(flat(cell.config))
        changes = {name: ours[name] for name in results.differing(ours, settings)}
        one = planned.setdefault(cell.name, {"title": titles.get(cell.name, cell.name), "fields": changes, "seeds": []})
        one["seeds"].append(cell.seed)
    return planned


# --- What it costs ----------------------------------------------------------------------------------------------------


def print_plan(cells: list[Cell], base: ConfigDict, ablations: dict[str, Change]):
    """Prints the cells and what they will cost."""
    width = max(map(len, ("base", *ablations)))
    trained = {cell: cell.epochs_done() for cell in cells}
    for name in ("base", *ablations):
        progress = [trained[c] / c.config.epochs for c in cells if c.name == name]
        marks = "".join(map(_mark, progress))
        what = base.name
        if name != "base":
            what = ", ".join(f"{field}={value}" for field, value in ablations[name].fields(base).items())
        print(f"{name:{width}}  {marks}  {what}")
    print("one mark for each seed: x finished, ~ started, - not started")
    seconds = run_seconds(base)
    left = sum(1 - trained[c] / c.config.epochs for c in cells)
    epochs = sum(c.config.epochs - trained[c] for c in cells)
    print(
        f"a run of the base takes about {_time(seconds)} here; the {left:.1f} runs that remain take "
        f"{_time(epochs / base.epochs * seconds)}, one after the other, if their epochs cost as much"
    )


def _mark(progress: float) -> str:
    if progress == 1:
        return "x"
    return "~" if progress else "-"


def run_seconds(base: ConfigDict) -> float:
    """The seconds that a run of the base takes here, estimated from a few steps.

    Evaluating a batch is counted as a third of a training step.
    """
    prepared = prepare(base.data, base.model.num_classes)
    base = base.copy_and_resolve_references()
    base.model.num_classes = len(prepared.classes)
    start = time.perf_counter()
    step, _ = stepper(base)
    jax.block_until_ready(step())
    compiling, seconds = time.perf_counter() - start, []
    for _ in tqdm(range(5), "measuring the base", unit=" steps", leave=False):
        start = time.perf_counter()
        jax.block_until_ready(step())
        seconds.append(time.perf_counter() - start)
    steps = base.epochs * (len(prepared.train) // base.batch_size)
    evaluations = math.ceil(base.epochs / base.evaluation.every_epochs)
    evaluations += base.evaluation.views if base.evaluation.views > 1 else 0
    steps += evaluations * len(prepared.evaluation) / base.batch_size / 3
    return compiling + steps * statistics.median(seconds)


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


if __name__ == "__main__":
    from alexnet_jax.cli import verbs

    verbs.program("sweep")
