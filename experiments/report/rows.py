"""The numbers of a report: each ablation's mean error, and its difference to the base with a confidence interval."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_jax import UserError
from experiments import results
from experiments.changes import CHANGES, Change
from experiments.record import file
from experiments.report.intervals import (
    Interval,
    SeedEffect,
    Spread,
    detectable,
    difference,
    holm,
    judge,
    p_value,
    seed_effect,
    spread,
)
from experiments.results import Group, Outcome, printable

Curves = dict[int, list[float]]  # by seed: a number for each epoch


@dataclass(frozen=True)
class Row:
    """What the runs of a group give: errors in percent, differences in percentage points."""

    title: str
    fields: str  # what it changes in the base, as field=value
    group: Group
    change: Change | None  # the entry of CHANGES, if it is one
    training_curves: Curves  # top-1 error of the crops of each epoch, with dropout
    validation_curves: Curves  # top-1 error of the centre crop after each epoch; nan where it was not measured
    top1: Spread | None  # after the last epoch, as the next two; None if no run counts
    top5: Spread | None
    training: Spread | None
    errors: dict[int, float]  # top-1, by seed
    differences: dict[int, float]  # of each error to the mean of the base; none for the base
    difference: Interval | None  # their mean; None if there are none, and for the base
    is_base: bool
    # Known once all rows are measured, see compare:
    simultaneous: Interval | None = None  # the difference with the interval that holds for all rows at once
    p: float | None = None  # Holm's; None for fewer seeds than a verdict needs, as the next one
    detectable: float | None = None  # the smallest difference that these seeds would have seen with probability 0.8
    verdict: str = ""


@dataclass(frozen=True)
class Report:
    """What the table and the page show."""

    name: str  # of the sweep, or of the base's config
    config_name: str
    base: Row
    rows: list[Row]  # the ablations
    others: list[tuple[str, Outcome]]  # runs that are not in the numbers, each with the title of its row if it has one

    @property
    def comparisons(self) -> int:
        """How many differences share the confidence, measured already or not, so that no verdict depends on that."""
        return len(self.rows)

    @property
    def seed_effect(self) -> SeedEffect | None:
        """Whether the same seed makes the errors of several rows alike; None if too few runs could tell."""
        return seed_effect([row.errors for row in (self.base, *self.rows)])

    @property
    def finished(self) -> int:
        """How many runs are in the numbers."""
        return sum(len(row.group.finished) for row in (self.base, *self.rows))

    @property
    def seeds(self) -> list[int]:
        """The seeds with a finished run."""
        return sorted({seed for row in (self.base, *self.rows) for seed in row.group.finished})


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def verdict(found: Interval | None, change: Change | None) -> str:
    """How a measured difference compares with the number of 2012, in words.

    found: the difference with its simultaneous interval, if it is one of several.
    """
    if found is None:
        return "not measured"
    if change is None or change.top1 is None:
        return "no number to compare"
    if change.noise and found.counts:
        return "2012's number is within noise"
    return judge(found, change.top1)


# --- Rows -------------------------------------------------------------------------------------------------------------


def measure(group: Group, base: Group) -> Row:
    """The row of a group. The base's own row has no difference and no verdict."""
    change = results.find_change(group, base)
    fields = results.values(results.differing(group.settings, base.settings), group.settings)
    top1, theirs = _final(group, "top1_error"), list(_final(base, "top1_error").values())
    compared = {} if group is base or not theirs else top1
    training = _curves(group, results.training_errors)
    return Row(
        title=group.title or _title(group, base, change, fields),
        fields=fields,
        group=group,
        change=change,
        training_curves=training,
        validation_curves=_curves(group, results.validation_errors),
        top1=spread(list(top1.values())),
        top5=spread(list(_final(group, "top5_error").values())),
        training=spread([curve[-1] for curve in training.values()]),
        errors=top1,
        differences={seed: error - statistics.fmean(theirs) for seed, error in compared.items()},
        difference=difference(list(compared.values()), theirs),
        is_base=group is base,
    )


def compare(rows: Sequence[Row]) -> list[Row]:
    """The rows with what depends on how many of them are compared with the base: all, measured already or not."""
    [base] = [list(row.errors.values()) for row in rows if row.is_base]
    others = {id(row): list(row.errors.values()) for row in rows if not row.is_base}
    count = max(1, len(others))
    enough = {id(row) for row in rows if row.difference and row.difference.counts}
    alone = {row: p for row in enough if (p := p_value(others[row], base)) is not None}
    p_values = dict(zip(alone, holm(list(alone.values()), count), strict=True))
    compared = []
    for row in rows:
        if row.is_base:
            compared.append(row)
            continue
        simultaneous = difference(others[id(row)], base, count)
        compared.append(
            dataclasses.replace(
                row,
                simultaneous=simultaneous,
                p=p_values.get(id(row)),
                detectable=detectable(others[id(row)], base, count) if id(row) in enough else None,
                verdict=verdict(simultaneous, row.change),
            )
        )
    return compared


def _title(group: Group, base: Group, change: Change | None, fields: str) -> str:
    if group is base:
        return "base"
    if change is None:
        return fields
    own_rate = {"optimizer.learning_rate"} & set(results.differing(group.settings, base.settings))
    return ", ".join(filter(None, (change.title, results.values(own_rate, group.settings))))


def _final(group: Group, name: str) -> dict[int, float]:
    """An error after the last epoch, in percent, by seed."""
    return {seed: 100 * run.final[name] for seed, run in group.finished.items()}


def _curves(group: Group, errors: Callable[[Outcome], list[float]]) -> Curves:
    return {seed: [100 * error for error in errors(run)] for seed, run in group.finished.items()}


# --- The report -------------------------------------------------------------------------------------------------------


def make_report(paths: Sequence[Path], base: Path | None = None) -> Report:
    """Reads the runs in some folders, groups them and measures each group.

    base: the folder of the base's runs, if it has another name. Raises UserError if there is no run or no base, or if
    there is more than one sweep.
    """
    records = [path for path in paths if path.suffix == ".json" and path.name != results.PLAN]
    if records == [*paths]:  # among folders of runs they are a run's own files, as in runs/mine/*
        if len(paths) > 1:
            raise UserError(f"{records[0]} is a record: report it alone")
        record = file.read(records[0])
        groups = file.groups(record, records[0])
        base_group = results.find_base(groups, base)
        return _assemble(record.name, printable(record.config), [measure(g, base_group) for g in groups], [])
    folders, sweeps = results.find([*paths, base] if base else paths)
    if len(sweeps) > 1:
        raise UserError(f"{' and '.join(map(str, sweeps))} are different sweeps: report each separately")
    if not folders and not sweeps:
        raise UserError(f"no run in {', '.join(map(str, paths))}: name folders with a config.json in or below them")
    name, config_name = "", ""
    groups: list[Group] = []
    others: list[tuple[str, Outcome]] = []
    if sweeps:
        [sweep] = sweeps
        name, config_name, groups = results.planned(sweep)
        folders, strays = _unplanned(folders, sweep, groups)
        others = [("", Outcome(f, "left out", "sweep.json does not plan it")) for f in strays]
    others += [("", run) for run in results.gather(folders, groups)]
    if not groups:
        unreadable = others[0][1]
        raise UserError(f"no run that can be read: {unreadable.folder} ({unreadable.reason})")
    for group in groups:
        results.leave_out_duplicates(group)
    base_group = results.find_base(groups, base)
    rows = [measure(group, base_group) for group in groups]
    if not sweeps:
        config_name = printable(base_group.runs[0].settings["name"])
        rows.sort(key=_order)
    return _assemble(name or config_name, config_name, rows, others)


def _assemble(name: str, config_name: str, rows: list[Row], others: list[tuple[str, Outcome]]) -> Report:
    """The report of rows, of which one is the base's; others: runs that belong to no row."""
    others = [(r.title, run) for r in rows for run in r.group.runs if run.state != "finished"] + others
    rows = compare(rows)
    [base] = [row for row in rows if row.is_base]
    return Report(name, config_name, base, [row for row in rows if row is not base], others)


def _unplanned(folders: Sequence[Path], sweep: Path, groups: Sequence[Group]) -> tuple[list[Path], list[Path]]:
    """The folders of runs that a sweep does not plan: (those outside the sweep's folder, those inside it)."""
    planned = {run.folder.resolve() for group in groups for run in group.runs}
    rest = [f for f in folders if f.resolve() not in planned]
    inside = [f for f in rest if f.resolve().is_relative_to(sweep.resolve())]
    return [f for f in rest if f not in inside], inside


def _order(row: Row) -> tuple[int, str]:
    """Rows that no sweep has ordered: first those of CHANGES, in its order."""
    titles = [change.title for change in CHANGES.values()]
    return titles.index(row.title) if row.title in titles else len(titles), row.title
