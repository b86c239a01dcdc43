"""The runs of an ablation sweep as they are on disk: which are finished, which belong together, which is the base."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from alexnet_jax import UserError, one_line
from alexnet_jax.config import FREE, fields_of, flat
from alexnet_jax.metrics import METRICS, read_metrics
from alexnet_jax.runs.run import CONFIG, renewed
from experiments.changes import CHANGES, Change

PLAN = "sweep.json"  # in the folder of a sweep: its base, seeds and cells
FAILED = "failed.txt"  # in the folder of a run that failed: why
NEEDED = {"name": str, "seed": int, "epochs": int, "evaluation.views": int, "model.num_classes": int, "data.name": str}


# --- Runs -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How far a run came, as it is on disk."""

    folder: Path
    state: str  # finished, unfinished, failed, missing or left out
    reason: str = ""  # why it is not in the numbers, and how far it came; empty if finished
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # its config, flat; empty if it has none
    records: Sequence[dict] = ()
    # The last epoch's validation record in all views, if it is finished.
    final: dict = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")


def read(folder: Path) -> Outcome:
    """Reads a run's folder. What is wrong with it becomes its state and reason, not an error."""
    try:
        settings = _settings(folder / CONFIG) if (folder / CONFIG).exists() else {}
        records = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
        failure = folder / FAILED
        failed = printable(failure.read_text(errors="replace"))[:300] if failure.exists() else None
    except UserError as error:
        return Outcome(folder, "left out", printable(str(error)))
    except OSError as error:
        return Outcome(folder, "left out", f"cannot be read ({error.strerror})")
    if settings and (wrong := missing(settings)):
        return Outcome(folder, "left out", f"its config.json has no usable {', '.join(wrong)}")
    progress = _progress(settings, records)
    views = settings.get("evaluation.views")
    last = [r for r in records if r.get("split") == "validation" and r.get("epoch") == settings.get("epochs")]
    in_all_views = [r for r in last if r.get("views", 1) == views]
    if failed is not None and not in_all_views:  # what fails after the last evaluation costs no number
        return Outcome(folder, "failed", f"{failed or f'{FAILED} is empty'} ({progress})", settings, records)
    if not settings:
        return Outcome(folder, "missing", "not started")
    if not in_all_views:
        lacks = f", without the evaluation in {views} views" if last else ""
        return Outcome(folder, "unfinished", progress + lacks, settings, records)
    final = in_all_views[-1]
    if not number(final, "step") or number(final, "top1_error") is None or number(final, "top5_error") is None:
        return Outcome(folder, "left out", "its last validation record has no step or no error", settings, records)
    return Outcome(folder, "finished", "", settings, records, final)


def training_records(run: Outcome) -> list[dict]:
    """A run's training records, one for each step: a resumed run repeats some, and the last one counts."""
    by_step = {r["step"]: r for r in run.records if r.get("split") == "train" and (number(r, "step") or 0) > 0}
    return [by_step[step] for step in sorted(by_step)]


def training_errors(run: Outcome) -> list[float]:
    """The top-1 training error of each epoch of a finished run, fractions; nan where an epoch has no record.

    A record is the mean since the record before it, so an epoch's error is the mean of its records, weighted by their
    numbers of steps.
    """
    epochs = run.settings["epochs"]
    sums, steps, before = [0.0] * epochs, [0] * epochs, 0
    for record in training_records(run):
        step, error = record["step"], number(record, "top1_error")
        epoch = min(math.ceil(step * epochs / run.final["step"]), epochs)
        if error is not None:
            sums[epoch - 1] += error * (step - before)
            steps[epoch - 1] += step - before
        before = step
    return [total / count if count else math.nan for total, count in zip(sums, steps, strict=True)]


def validation_errors(run: Outcome) -> list[float]:
    """The centre crop's top-1 error after each epoch of a finished run, fractions; nan where it was not evaluated."""
    errors = [math.nan] * run.settings["epochs"]
    for r in run.records:
        if r.get("split") != "validation" or r.get("views", 1) != 1 or r.get("epoch") not in range(1, len(errors) + 1):
            continue
        error = number(r, "top1_error")
        if error is not None:
            errors[int(r["epoch"]) - 1] = error
    return errors


def number(record: dict, name: str) -> float | None:
    """A finite number of a record, or None."""
    value = record.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return value
    return None


def printable(text: str) -> str:
    """A file's text on one line, without what controls a terminal or cannot be written."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _progress(settings: dict, records: Iterable[dict]) -> str:
    last = max((epoch for r in records if (epoch := number(r, "epoch"))), default=0)
    return f"epoch {last:.4g} of {settings['epochs']}" if settings and last else "no record yet"


def _settings(path: Path) -> dict:
    try:
        return completed(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from error


def missing(settings: dict) -> list[str]:
    """The fields of NEEDED that a config lacks, or whose values make no sense."""
    wrong = [name for name, kind in NEEDED.items() if not isinstance(settings.get(name), kind)]
    if not wrong and settings["epochs"] <= 0:
        wrong = ["epochs"]
    return wrong


def completed(tree: dict) -> dict[str, Any]:
    """A config of any version as flat settings, so that old and new runs compare.

    Raises ValueError if it is not a tree of fields.
    """
    return renewed(flat(tree))


def computes(settings: dict) -> dict:
    """The settings that determine what a run computes, apart from its seed."""
    others = {"name", "seed", *fields_of(FREE)}
    return {k: v for k, v in settings.items() if k not in others}


def differing(settings: dict, other: dict) -> list[str]:
    """The fields in which two configs differ."""
    both = settings.keys() | other.keys()
    return sorted(f for f in both if f not in settings or f not in other or settings[f] != other[f])


def departing(settings: dict, plan: dict) -> list[str]:
    """The fields in which a run's config is not the planned one, which may leave the number of classes to the data."""
    counted = {"model.num_classes"} if plan.get("model.num_classes") == 0 else set()
    return [field for field in differing(settings, plan) if field not in counted]


def values(fields: Iterable[str], settings: dict) -> str:
    """Some fields of a config as text: a=1, b="x"; numbers to six digits."""

    def six_digits(text: str) -> float:
        return float(f"{float(text):.6g}")

    def value(field: str) -> str:
        if field not in settings:
            return f"no {field}"
        short = json.loads(json.dumps(settings[field]), parse_float=six_digits)
        return f"{field}={json.dumps(short)}"

    return printable(", ".join(map(value, fields)))


# --- Groups of runs ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Group:
    """The runs of one config: an ablation, or the base."""

    title: str
    settings: dict[str, Any]  # the flat config that they share
    runs: list[Outcome] = dataclasses.field(default_factory=list)
    name: str = ""  # of its cell in the plan or the record; empty if there is neither

    @property
    def finished(self) -> dict[int, Outcome]:
        """The runs that count, by seed."""
        by_seed = sorted(self.runs, key=lambda r: r.seed or 0)
        return {r.seed: r for r in by_seed if r.state == "finished" and r.seed is not None}


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders of runs and the folders of sweeps at any depth in the given folders.

    The shell expands runs/sweep/* to files and folders without runs too. They are skipped; the folders are named on
    standard error. Raises UserError if a folder does not exist or cannot be read.
    """
    runs: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    empty = []

    def unreadable(error: OSError):
        raise UserError(f"cannot read {error.filename} ({error.strerror})")

    for path in paths:
        if path.is_file():
            continue
        if not path.is_dir():
            raise UserError(f"there is no folder {path}: name runs, or folders that contain runs")
        found = False
        for folder, below, files in os.walk(path, onerror=unreadable):
            below.sort()
            if PLAN in files:
                sweeps.setdefault(Path(folder).resolve(), Path(folder))
                found = True
            elif "config.json" in files or FAILED in files:
                runs.setdefault(Path(folder).resolve(), Path(folder))
                found = True
                below.clear()
        if not found:
            empty.append(path)
    if runs or sweeps:  # otherwise the caller raises an error
        for path in empty:
            print(f"skipped: {path} contains no run", file=sys.stderr)
    return list(runs.values()), list(sweeps.values())


def planned(sweep: Path) -> tuple[str, str, list[Group]]:
    """The name of a sweep, the name of its base config, and its groups with every run that sweep.json plans.

    Raises UserError if sweep.json cannot be read.
    """
    path = sweep / PLAN
    try:
        plan = json.loads(path.read_bytes())
        base = completed(plan["config"])
        if wrong := missing(base):
            raise ValueError(f"its config has no usable {', '.join(wrong)}")
        groups = []
        for cell, what in plan["cells"].items():
            group = Group(printable(what["title"]), computes(base | flat(what["fields"])))
            group.name = printable(cell)
            seeds = [int(seed) for seed in what.get("seeds", plan.get("seeds"))]  # the plan's, until 2026-11-28
            group.runs = [_planned_run(sweep / cell / f"seed{seed}", seed, group) for seed in seeds]
            groups.append(group)
        if not groups:
            raise ValueError("it plans no run")
        _count_classes(groups)
        return printable(plan["sweep"]), printable(base["name"]), groups
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): start the sweep again, which writes it") from error


def _planned_run(folder: Path, seed: int, group: Group) -> Outcome:
    """Reads a run; it is left out if its config is not the planned one."""
    run = read(folder)
    fields = departing(computes(run.settings), group.settings)
    if run.seed != seed:
        fields.append("seed")
    if fields and run.state in ("finished", "unfinished"):
        reason = f"not what sweep.json plans: {values(fields, run.settings)}"
        return dataclasses.replace(run, state="left out", reason=reason)
    return run


def _count_classes(groups: list[Group]):
    """Puts the number of classes into a plan that leaves it to the data, once a run on the same data has it."""
    runs = [run for group in groups for run in group.runs if run.settings]
    counted = {run.settings["data.name"]: run.settings["model.num_classes"] for run in runs}
    for group in groups:
        if group.settings["model.num_classes"] == 0:
            group.settings["model.num_classes"] = counted.get(group.settings["data.name"], 0)


def gather(folders: Sequence[Path], groups: list[Group]) -> list[Outcome]:
    """Adds runs that no sweep has planned to the groups, by their configs; returns the runs that have no config."""
    without = []
    for run in map(read, folders):
        settings = computes(run.settings)
        group = next((g for g in groups if g.settings == settings), None)
        if not settings:
            without.append(run)
        elif group is None:
            groups.append(Group("", settings, [run]))
        else:
            group.runs.append(run)
    return without


def leave_out_duplicates(group: Group):
    """Leaves out finished runs that share a seed: nothing says which of them is right."""
    for seed in {run.seed for run in group.runs if run.state == "finished"}:
        same = [r for r in group.runs if r.state == "finished" and r.seed == seed]
        if len(same) == 1:
            continue
        for run in same:
            others = ", ".join(str(r.folder) for r in same if r is not run)
            reason = printable(f"seed {seed} occurs twice, here and in {others}: keep one")
            group.runs[group.runs.index(run)] = dataclasses.replace(run, state="left out", reason=reason)


def find_base(groups: Sequence[Group], base: Path | None) -> Group:
    """The group whose runs are in the folder `base`; without it, in a folder called base or directly below one.

    Raises UserError if that is not exactly one group.
    """
    if base is not None:
        inside = [g for g in groups if any(r.folder.resolve().is_relative_to(base.resolve()) for r in g.runs)]
        if len(inside) != 1:
            raise UserError(f"--base {base} contains runs of {len(inside)} configs: name a folder with one")
        return inside[0]
    named = [g for g in groups if any("base" in (r.folder.name, r.folder.parent.name) for r in g.runs)]
    if len(named) == 1:
        return named[0]
    if len(groups) == 1:
        return groups[0]
    count = len(named) or "no"
    raise UserError(f"{count} configs have runs in a folder named base: name the folder of the base with --base")


def find_change(group: Group, base: Group) -> Change | None:
    """The entry of CHANGES that a group makes to the base, if it is one of them, also at a learning rate of its own."""
    fields = {f: group.settings.get(f) for f in differing(group.settings, base.settings)}
    at_its_rate = {f: value for f, value in fields.items() if f != "optimizer.learning_rate"}
    try:
        config = ConfigDict(unflatten_dict(base.settings, sep="."))
    except TypeError:  # an edited base
        return None
    for change in CHANGES.values():
        try:
            changed = flat(change.fields(config))
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):  # an older base, or an edited one
            continue
        effect = {f: v for f, v in changed.items() if f not in base.settings or base.settings[f] != v}
        if effect and effect in (fields, at_its_rate):
            return change
    return None
