"""A record: the runs of a sweep or study in one small file, experiments/records/NAME.json, which git keeps.

    record = read(RECORDS / "ablations.json")
    cell = add_cell(record, cell, title, settings)
    add_run(record, entry)
    write(record, path)

The file has the settings of its first cell in full, each other cell as what it changes in them, and one line for each
run (see entry.py). Records of the same study from several machines add up.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_jax import UserError, one_line
from alexnet_jax.config import FIELDS, FREE, fields_of, refuse_wrong_values, unflat
from alexnet_jax.files import write_text
from alexnet_jax.runs.run import renewed
from experiments import results
from experiments.record import entry as entries
from experiments.results import Group, computes, differing, printable

SAME_MEAN = 0.1  # grey levels: room for another Pillow, whose pixels may differ by one here and there
RECORDS = Path(__file__).parent.parent / "records"


@dataclass
class Record:
    """The runs of a sweep or study."""

    name: str
    config: str = ""  # the name of the base config
    settings: dict[str, Any] = field(default_factory=dict)  # flat: what its first cell computes
    titles: dict[str, str] = field(default_factory=dict)  # of its cells
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)  # what each cell changes in the settings
    runs: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # entries by cell and seed
    ensembles: list[dict[str, Any]] = field(default_factory=list)  # see ensemble.py

    def settings_of(self, cell: str) -> dict[str, Any]:
        """The flat settings of a cell, without name and seed; fields newer than the record have their defaults."""
        return renewed(self.settings | self.fields[cell])

    def of_cell(self, cell: str) -> dict[int, dict[str, Any]]:
        """The finished runs of a cell, by seed; none if there is no such cell."""
        runs = sorted(self.runs.items())
        return {seed: run for (name, seed), run in runs if name == cell and run["state"] == "finished"}


def read(path: Path) -> Record:
    """Reads a record. Raises UserError if there is none, or if it is damaged."""
    free = {name: FIELDS[name].default for name in fields_of(FREE)}  # not recorded
    try:
        found = json.loads(path.read_bytes())
        record = Record(found["name"], found["config"], found["settings"])
        for cell, what in found["cells"].items():
            record.titles[cell], record.fields[cell] = what["title"], what["fields"]
            if not isinstance(what["title"], str):
                raise ValueError(f"its cell {cell} has no usable title")
            settings = record.settings_of(cell) | {"name": record.config, "seed": 0}
            if wrong := results.missing(settings):
                raise ValueError(f"its cell {cell} has no usable {', '.join(wrong)}")
            refuse_wrong_values(unflat(free | settings))
        for run in found["runs"]:
            if run["cell"] not in record.fields or run["state"] not in entries.PROGRESS:
                raise ValueError(f"its run {run['cell']} has no cell, or an unknown state")
            entries.check(run, record.settings_of(run["cell"]))
            if (run["cell"], run["seed"]) in record.runs:
                raise ValueError(f"it has two runs {run['cell']}, seed {run['seed']}: remove one")
            record.runs[run["cell"], run["seed"]] = run
        record.ensembles = sorted(found.get("ensembles", []), key=_order)
        for averaged in record.ensembles:
            if results.number(averaged, "top1") is None:
                raise ValueError(f"its ensemble of {averaged['cell']} has no usable top1")
    except OSError as error:
        raise UserError(f"cannot read the record {path} ({error.strerror}): name a file that exists") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"the record {path} is damaged ({one_line(error)}): get it back from git") from error
    return record


def write(record: Record, path: Path):
    """Writes a record, one line for each field of its settings, each cell and each run, in a fixed order."""

    def lines(items: Iterable[str]) -> str:
        return ",\n".join(items)

    def line(value) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    order = list(record.fields)
    runs = sorted(record.runs.values(), key=lambda run: (order.index(run["cell"]), run["seed"]))
    settings = lines(f"{line(name)}: {line(value)}" for name, value in sorted(record.settings.items()))
    cells = lines(
        f"{line(cell)}: {line({'title': record.titles[cell], 'fields': fields})}"
        for cell, fields in record.fields.items()
    )
    text = (
        f'{{"name": {line(record.name)}, "config": {line(record.config)},\n"settings": {{\n{settings}\n}},\n'
        f'"cells": {{\n{cells}\n}},\n"runs": [\n{lines(map(line, runs))}\n]'
    )
    if record.ensembles:
        text += f',\n"ensembles": [\n{lines(map(line, sorted(record.ensembles, key=_order)))}\n]'
    text += "}\n"
    write_text(path, text)


def _order(ensemble: dict) -> tuple[str, list[int]]:
    return ensemble["cell"], list(ensemble["seeds"])


# --- Adding runs ------------------------------------------------------------------------------------------------------


def add_cell(record: Record, cell: str, title: str, settings: dict[str, Any]) -> str:
    """The name of the cell that computes `settings`, which is added if there is none.

    Raises UserError if a cell of this name computes something else.
    """
    settings = computes(settings)
    if not record.fields:
        record.settings, record.fields[cell], record.titles[cell] = settings, {}, title
        return cell
    if cell in record.fields:
        if fields := differing(record.settings_of(cell), renewed(settings)):
            raise UserError(
                f"the record {record.name} has another cell {cell} ({results.values(fields[:3], settings)} here): name "
                "this one with --cell"
            )
        return cell
    for known in record.fields:
        if record.settings_of(known) == renewed(settings):
            return known
    base = computes(renewed(record.settings))
    if lost := base.keys() - settings.keys():
        raise UserError(f"the record {record.name} has {min(lost)}, and a run of {cell} has not: record it by itself")
    record.fields[cell] = {name: settings[name] for name in differing(settings, base)}
    record.titles[cell] = title
    return cell


def add_run(record: Record, run: dict[str, Any]) -> str:
    """Adds a run's entry, and says what that did: "added", "known", or "resumed" if it has come further since.

    Raises UserError if a finished run of this cell and seed is recorded with other results, or if the run was trained
    on other images than those of the record: their mean colours differ.
    """
    _refuse_other_images(record, run)
    key = run["cell"], run["seed"]
    old = record.runs.get(key)
    if old is None:
        record.runs[key] = run
        return "added"
    if old["state"] == run["state"] == "finished":
        if other := [name for name in entries.RESULTS if old.get(name) != run.get(name)]:
            raise UserError(
                f"{run['cell']} seed {run['seed']} is in the record {record.name} with other results (top-1 error "
                f"{old['top1']}, here {run['top1']}; {other[0]} differs): record one of the two, or use another seed"
            )
        missing = {name: value for name, value in run.items() if name not in old}
        record.runs[key] = old | missing
        return "completed" if missing else "known"

    def progress(entry: dict) -> tuple[bool, int, int]:
        return entry["state"] == "finished", entry.get("steps", 0), entries.PROGRESS.index(entry["state"])

    if progress(run) <= progress(old):
        return "known"
    record.runs[key] = run
    return "resumed"


def _refuse_other_images(record: Record, run: dict[str, Any]):
    def images(entry: dict) -> list:
        settings = record.settings_of(entry["cell"])
        return [settings[f"data.{name}"] for name in ("name", "train_split", "size", "resize", "stored")]

    for known in record.runs.values():
        if not run.get("mean") or not known.get("mean") or images(known) != images(run):
            continue
        if max(abs(a - b) for a, b in zip(known["mean"], run["mean"], strict=True)) > SAME_MEAN:
            raise UserError(
                f"{run['cell']} seed {run['seed']} was trained on other images than the record {record.name}: their "
                f"mean colour is {run['mean']}, and {known['mean']} there: give it a record of its own, --to"
            )


def add_ensemble(record: Record, entry: dict[str, Any]):
    """Adds the error of an ensemble, or replaces what was recorded of the same runs."""
    record.ensembles = [known for known in record.ensembles if _order(known) != _order(entry)] + [entry]


# --- Reading runs -----------------------------------------------------------------------------------------------------


def groups(record: Record, path: Path) -> list[Group]:
    """The record's cells as the report reads them. A run's folder is the record's path, its cell and its seed."""
    found = []
    for cell in record.fields:
        settings = record.settings_of(cell)
        runs = [
            entries.outcome(run, settings | {"name": record.config}, path / cell / f"seed{seed}")
            for (name, seed), run in sorted(record.runs.items())
            if name == cell
        ]
        found.append(Group(printable(record.titles[cell]), computes(settings), runs, cell))
    return found


def finished(path: Path) -> list[tuple[dict[str, Any], int]]:
    """(what it computes, its seed) of every finished run of a record.

    A sweep that finds one of its cells here need not run it: compare results.computes of its config, and the seed.
    """
    record = read(path)
    return [(computes(record.settings_of(cell)), seed) for cell in record.fields for seed in record.of_cell(cell)]
