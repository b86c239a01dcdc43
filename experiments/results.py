"""The runs of an ablation sweep as they lie on disk: which are finished, which belong together, which is the base."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from alexnet_jax import UserError, one_line
from alexnet_jax.config import FREE, fields_of
from alexnet_jax.metrics import read_metrics
from experiments.changes import CHANGES, Change

FAILED = "failed.txt"  # in the folder of a run that failed: why
NEEDED = {"name": str, "seed": int, "epochs": int, "evaluation.views": int, "model.num_classes": int, "data.name": str}


# --- Runs -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as it lies on disk."""

    folder: Path
    state: str  # finished, unfinished, failed, missing or left out
    reason: str = ""  # why it does not count, and how far it came; empty if finished
    settings: dict = dataclasses.field(default_factory=dict)  # its config, {"model.dropout": 0.5, ...}; {} without one
    records: Sequence[dict] = ()
    final: dict | None = None  # the last epoch's validation record, in as many views as the config asks

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")


def read(folder: Path) -> Run:
    """Reads a run's folder. What is wrong with it becomes its state and reason, not an error."""
    try:
        settings = _settings(folder / "config.json") if (folder / "config.json").exists() else {}
        records = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
        failure = folder / FAILED
        failed = printable(failure.read_text(errors="replace"))[:300] if failure.exists() else None
    except UserError as error:
        return Run(folder, "left out", printable(str(error)))
    except OSError as error:
        return Run(folder, "left out", f"cannot be read ({error.strerror})")
    if settings and (wrong := _lacking(settings)):
        return Run(folder, "left out", f"its config.json has no {', '.join(wrong)} as a run has")
    epochs, views = settings.get("epochs"), settings.get("evaluation.views")
    last = max((e for r in records if (e := number(r, "epoch"))), default=0)
    came = f"epoch {last:.4g} of {epochs}" if settings and last else "no record yet"
    if failed is not None:
        return Run(folder, "failed", f"{failed or f'{FAILED} is empty'} ({came})", settings, records)
    if not settings:
        return Run(folder, "missing", "not started")
    results = [r for r in records if r.get("split") == "validation" and r.get("epoch") == epochs]
    wanted = [r for r in results if r.get("views", 1) == views]
    if not wanted:
        came += f", without the evaluation in {views} views" if results else ""
        return Run(folder, "unfinished", came, settings, records)
    final = wanted[-1]
    if not number(final, "step") or None in (number(final, "top1_error"), number(final, "top5_error")):
        return Run(folder, "left out", "its last validation record lacks a step or an error", settings, records)
    return Run(folder, "finished", "", settings, records, final)


def training_errors(run: Run) -> list[float]:
    """The top-1 training error of each epoch of a finished run, fractions; nan where an epoch has no record.

    A record is the mean since the one before it, so an epoch's is the mean of its records, weighted by their steps.
    """
    epochs = run.settings["epochs"]
    train = [r for r in run.records if r.get("split") == "train" and number(r, "step")]
    records = {r["step"]: number(r, "top1_error") for r in train}  # a resumed run repeats steps: the last counts
    totals, before = [[0.0, 0] for _ in range(epochs)], 0
    for step in sorted(records):
        epoch = min(math.ceil(step * epochs / run.final["step"]), epochs)
        if records[step] is not None:
            totals[epoch - 1][0] += records[step] * (step - before)
            totals[epoch - 1][1] += step - before
        before = step
    return [error / steps if steps else math.nan for error, steps in totals]


def validation_errors(run: Run) -> list[float]:
    """The centre crop's top-1 error after each epoch of a finished run, fractions; nan where it was not evaluated."""
    errors = [math.nan] * run.settings["epochs"]
    for r in run.records:
        error, centre = number(r, "top1_error"), r.get("split") == "validation" and r.get("views", 1) == 1
        if centre and error is not None and r.get("epoch") in range(1, len(errors) + 1):
            errors[int(r["epoch"]) - 1] = error
    return errors


def number(record: dict, name: str) -> float | None:
    """A finite number of a record, or None."""
    value = record.get(name)
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if right else None


def printable(text: str) -> str:
    """Text of a file in one line, without what steers a terminal or cannot be written."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _settings(path: Path) -> dict:
    try:
        return _flat(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not whole ({error})") from error


def _lacking(settings: dict) -> list[str]:
    """Fields that a run's config has, and that this one has not, or as nonsense."""
    wrong = [name for name, kind in NEEDED.items() if not isinstance(settings.get(name), kind)]
    return wrong or ([] if settings["epochs"] > 0 else ["epochs"])


def _flat(tree: dict) -> dict:
    """{"model": {"dropout": 0.5}} as {"model.dropout": 0.5}, with JSON's lists for tuples. Raises TypeError."""
    if not isinstance(tree, dict):
        raise TypeError(f"{tree!r:.40} is not a tree of fields")
    return flatten_dict(json.loads(json.dumps(tree)), sep=".")


def _computes(settings: dict) -> dict:
    """The settings that say what a run computes, whatever its seed."""
    return {k: v for k, v in settings.items() if k not in {"seed", *fields_of(FREE)}}


def differing(settings: dict, other: dict) -> list[str]:
    """The fields in which two configs differ."""
    both = settings.keys() | other.keys()
    return sorted(f for f in both if f not in settings or f not in other or settings[f] != other[f])


def values(fields: Iterable[str], settings: dict) -> str:
    """Fields of a config in words, a=1, b="x"; numbers to six digits."""

    def value(field: str) -> str:
        if field not in settings:
            return f"no {field}"
        short = json.loads(json.dumps(settings[field]), parse_float=lambda x: float(f"{float(x):.6g}"))
        return f"{field}={json.dumps(short)}"

    return printable(", ".join(map(value, fields)))


# --- Groups of runs ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Group:
    """The runs of one config: an ablation, or the base."""

    title: str
    settings: dict  # what they compute, flat
    runs: list[Run] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> dict[int, Run]:
        """Those that count, by seed."""
        return {r.seed: r for r in sorted(self.runs, key=lambda r: r.seed or 0) if r.state == "finished"}


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders of runs, and of sweeps, in the given folders at any depth. Raises UserError if one is not there.

    Of runs/sweep/* the shell makes files and folders without runs too: those are passed over, these said on stderr.
    """
    runs, sweeps, bare = {}, {}, []

    def unreadable(error: OSError):
        raise UserError(f"cannot read {error.filename} ({error.strerror})")

    for path in paths:
        if path.is_file():
            continue
        if not path.is_dir():
            raise UserError(f"there is no folder {path}: name runs, or folders that hold runs")
        holds = False
        for folder, below, files in os.walk(path, onerror=unreadable):
            below.sort()
            if "sweep.json" in files:
                sweeps.setdefault(Path(folder).resolve(), Path(folder))
                holds = True
            elif "config.json" in files or FAILED in files:
                runs.setdefault(Path(folder).resolve(), Path(folder))
                holds = True
                below.clear()
        if not holds:
            bare.append(path)
    for path in bare if runs or sweeps else []:  # else it is an error
        print(f"passed over: {path} holds no run", file=sys.stderr)
    return list(runs.values()), list(sweeps.values())


def planned(sweep: Path) -> tuple[str, str, list[Group]]:
    """A sweep's name, its config's, and its groups with every run that sweep.json plans. Raises UserError."""
    path = sweep / "sweep.json"
    try:
        plan, groups = json.loads(path.read_bytes()), []
        base, seeds = _flat(plan["config"]), [int(seed) for seed in plan["seeds"]]
        if wrong := _lacking(base):
            raise ValueError(f"its config has no {', '.join(wrong)}")
        for cell, what in plan["cells"].items():
            group = Group(printable(what["title"]), _computes(base | _flat(what["fields"])))
            groups.append(group)
            for seed in seeds:
                run = read(sweep / cell / f"seed{seed}")
                fields = differing(_computes(run.settings), group.settings)
                fields += ["seed"] if run.seed != seed else []
                if fields and run.state in ("finished", "unfinished"):
                    reason = f"not what sweep.json plans: {values(fields, run.settings)}"
                    run = dataclasses.replace(run, state="left out", reason=reason)
                group.runs.append(run)
        return printable(plan["sweep"]), printable(base["name"]), groups
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): plan the sweep again") from error


def gather(folders: Sequence[Path], groups: list[Group]) -> list[Run]:
    """Puts runs that no sweep has planned into groups by their configs; returns those that have none."""
    strangers = []
    for run in map(read, folders):
        computes = _computes(run.settings)
        group = next((g for g in groups if g.settings == computes), None)
        if not computes:
            strangers.append(run)
        elif group is None:
            groups.append(Group("", computes, [run]))
        else:
            group.runs.append(run)
    return strangers


def leave_out_doubles(group: Group):
    """Two finished runs of one seed: nothing says which is right, so neither counts."""
    for seed in {run.seed for run in group.runs if run.state == "finished"}:
        same = [r for r in group.runs if r.state == "finished" and r.seed == seed]
        for run in same if len(same) > 1 else []:
            others = ", ".join(str(r.folder) for r in same if r is not run)
            reason = printable(f"seed {seed} occurs twice, here and in {others}: keep one")
            group.runs[group.runs.index(run)] = dataclasses.replace(run, state="left out", reason=reason)


def find_base(groups: Sequence[Group], base: Path | None) -> Group:
    """The group of the runs in the folder `base`, or of those whose folder or its parent is named base."""
    if base is not None:
        inside = [g for g in groups if any(r.folder.resolve().is_relative_to(base.resolve()) for r in g.runs)]
        if len(inside) != 1:
            raise UserError(f"--base {base} holds runs of {len(inside)} configs: name a folder of one")
        return inside[0]
    named = [g for g in groups if any("base" in (r.folder.name, r.folder.parent.name) for r in g.runs)]
    if len(groups) == 1 or len(named) == 1:
        return [*named, *groups][0]
    count = len(named) or "no"
    raise UserError(f"{count} configs have runs in a folder named base: name the folder of the base with --base")


def find_change(group: Group, base: Group) -> Change | None:
    """What the group changes in the base, if that is one of CHANGES."""
    fields = {f: group.settings.get(f) for f in differing(group.settings, base.settings)}
    config = ConfigDict(unflatten_dict(base.settings, sep="."))
    for change in CHANGES.values():
        try:
            changed = _flat(change.fields(config))
        except (AttributeError, KeyError, TypeError, ValueError):  # a base of other code, which lacks what it changes
            continue
        effect = {f: v for f, v in changed.items() if f not in base.settings or base.settings[f] != v}
        if effect and effect == fields:
            return change
    return None
