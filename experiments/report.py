"""The report of an ablation sweep: what each change costs, with error bars, beside what 2012 says that it costs.

    python -m experiments.report runs/small --out report              # a sweep of experiments/ablations.py
    python -m experiments.report runs/a runs/b --base runs/a          # runs that no sweep has planned

Prints the table and writes report.html (one file, to be opened or sent as it is), table.md and the pictures. Only runs
that are finished and are what was planned are averaged; every other one is named, with the reason.
"""

import argparse
import dataclasses
import math
import os
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from scipy import stats

from alexnet_jax import UserError
from alexnet_jax.cli.commands import command
from experiments import page, pictures, results
from experiments.changes import CHANGES, Change
from experiments.results import Group, Run

CONFIDENCE = 0.95


# --- Numbers ----------------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Of one number over seeds."""

    mean: float
    std: float | None  # of the sample (n - 1); None of one seed


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    n: int
    mean: float
    low: float | None  # None of one seed
    high: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """What a group gives: errors in percent, differences in percentage points."""

    title: str
    fields: str  # what it changes in the base, as field=value
    group: Group
    change: Change | None  # of changes.py, where it is one
    training_curves: dict[int, list[float]]  # by seed, of each epoch: top-1 error of its crops, under dropout
    validation_curves: dict[int, list[float]]  # by seed, of each epoch: of the centre crop; nan where not measured
    top1: Spread | None  # of the last epoch, as the next two; None where no run counts
    top5: Spread | None
    training: Spread | None
    differences: dict[int, float]  # in top-1 error, by seed, of the seeds that the base has too
    difference: Interval | None  # their mean; None where there is none, and of the base
    verdict: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What the table and the page show."""

    name: str  # of the sweep, else of the base's config
    config_name: str
    base: Row
    rows: list[Row]  # the ablations
    others: list[tuple[str, Run]]  # what is not averaged: the title of its row, where it has one, and the run


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None of nothing, or where a value is not known."""
    if not values or any(map(math.isnan, values)):
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and its 95 % interval by Student's t with n - 1 degrees of freedom; None of nothing."""
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(n, mean, None, None)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * statistics.stdev(values) / n**0.5
    return Interval(n, mean, mean - half, mean + half)


def verdict(difference: Interval | None, change: Change | None) -> str:
    """How a difference and the number of 2012 go together, in words."""
    then = change and change.top1
    if then is None:
        return "no number to compare"
    if change.noise:
        return "2012's is noise"
    if difference is None or difference.low is None:
        return "no interval"
    if difference.low <= 0 <= difference.high:
        return "interval holds zero"
    return "agrees" if (difference.mean > 0) == (then > 0) else "differs"


def measure(group: Group, base: Group) -> Row:
    """A group's row; the base's own has no difference and no verdict."""
    runs, change = group.finished, results.find_change(group, base)
    fields = results.values(results.differing(group.settings, base.settings), group.settings)
    title = group.title or ("base" if group is base else change.title if change else fields)
    training = {seed: [100 * error for error in results.training_errors(run)] for seed, run in runs.items()}
    validation = {seed: [100 * error for error in results.validation_errors(run)] for seed, run in runs.items()}
    top1, top5 = ({s: 100 * r.final[key] for s, r in runs.items()} for key in ("top1_error", "top5_error"))
    there = {} if group is base else base.finished
    differences = {s: error - 100 * there[s].final["top1_error"] for s, error in top1.items() if s in there}
    difference = interval(list(differences.values()))
    return Row(
        title, fields, group, change, training, validation, spread([*top1.values()]), spread([*top5.values()]),
        spread([curve[-1] for curve in training.values()]), differences, difference,
        "" if group is base else verdict(difference, change),
    )  # fmt: skip


def make_report(paths: Sequence[Path], base: Path | None = None) -> Report:
    """Reads, groups and measures. Raises UserError if there is no run or no base, or more than one sweep."""
    folders, sweeps = results.find([*paths, base] if base else paths)
    if len(sweeps) > 1:
        raise UserError(f"{' and '.join(map(str, sweeps))} are sweeps of their own: report each alone")
    if not folders and not sweeps:
        raise UserError(f"no run in {', '.join(map(str, paths))}: name folders with a config.json in them or below")
    name, config_name, groups, others = "", "", [], []
    for sweep in sweeps:
        name, config_name, groups = results.planned(sweep)
        known = {run.folder.resolve() for group in groups for run in group.runs}
        folders = [f for f in folders if f.resolve() not in known]
        strays = [f for f in folders if f.resolve().is_relative_to(sweep.resolve())]
        others = [("", Run(f, "left out", "sweep.json does not plan it")) for f in strays]
        folders = [f for f in folders if f not in strays]
    others += [("", run) for run in results.gather(folders, groups)]
    if not groups:
        raise UserError(f"no run that can be read: {others[0][1].folder} ({others[0][1].reason})")
    for group in groups:
        results.leave_out_doubles(group)
    base_group = results.find_base(groups, base)
    rows = [measure(group, base_group) for group in groups]
    if not sweeps:
        config_name = results.printable(base_group.runs[0].settings["name"])
        order = [change.title for change in CHANGES.values()]
        rows.sort(key=lambda r: (order.index(r.title) if r.title in order else len(order), r.title))
    others = [(r.title, run) for r in rows for run in r.group.runs if run.state != "finished"] + others
    [base_row] = [r for r in rows if r.group is base_group]
    return Report(name or config_name, config_name, base_row, [r for r in rows if r is not base_row], others)


# --- The command line -------------------------------------------------------------------------------------------------


def write(path: Path, text: str):
    """Writes a file whole or not at all. Raises UserError if it cannot."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error.strerror}): name another --out") from error


def main(argv: list[str]):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs, or folders that hold runs at any depth")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the folder for the page and its pictures")
    parser.add_argument("--base", type=Path, help="the folder of the base's runs, where none is called base")
    flags = parser.parse_args(argv)
    report = make_report(flags.runs, flags.base)
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {flags.out} ({error.strerror}): name another --out") from error
    print(page.text(report), flush=True)
    write(flags.out / "table.md", page.markdown(report))
    command = f"python -m experiments.report {shlex.join(argv)}"
    write(flags.out / "report.html", page.html(report, pictures.draw(report, flags.out), command))
    print(f"\n{flags.out / 'report.html'}, table.md and the pictures beside it")


if __name__ == "__main__":
    # The kernels are only looked at: accelerators, and their memory, stay with what trains.
    jax.config.update("jax_platforms", "cpu")
    command(main)
