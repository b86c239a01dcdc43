"""Adds finished runs to a record: a small file that stays when the runs' folders are gone.

    alexnet record runs/sweep_ablations --to ablations        # a sweep: experiments/records/ablations.json
    alexnet record runs/imagenette --to full                  # one run; its cell is named after its folder
    alexnet record runs/x --to full --cell source             # or as you say
    alexnet record runs/sweep_ablations/base --to ablations --ensemble 5    # also five runs averaged: minutes

Runs that failed or are unfinished are recorded as such, and of a sweep also the ablations that have not been started:
they count among the comparisons. Recording a run twice changes nothing, and the records of another machine's runs add
up; a run that is recorded with other results is named and left out. alexnet report experiments/records/ablations.json
shows a record as it shows a sweep.
"""

import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import jax

from alexnet_jax import UserError
from alexnet_jax.files import expanded, locked
from experiments import results
from experiments.record import ensemble, entry, file, kernels
from experiments.results import Outcome, printable


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet record`."""
    parser.add_argument("runs", nargs="+", type=Path, help="runs, sweeps, or folders that contain them at any depth")
    parser.add_argument("--to", required=True, metavar="NAME", help="the record: experiments/records/NAME.json")
    parser.add_argument("--cell", default="", help="the name of the runs' cell (default: that of the sweep or folder)")
    says = "evaluate the first N finished runs of each cell as an ensemble, their probabilities averaged"
    parser.add_argument("--ensemble", type=int, default=0, metavar="N", help=says)
    says = "where records are kept (default: the checkout's experiments/records)"
    parser.add_argument("--records", type=Path, default=file.RECORDS, metavar="FOLDER", help=says)


def main(flags: Namespace):
    """Adds the runs to the record. Raises UserError if there are none, or if they contradict it."""
    if not flags.ensemble:
        jax.config.update("jax_platforms", "cpu")  # kernels are only looked at: accelerators are left to training
    flags.runs, flags.records = [expanded(path) for path in flags.runs], expanded(flags.records)
    if not re.fullmatch(r"\w[\w-]*", flags.to):
        raise UserError(f"--to is '{flags.to}' and must be letters, digits, _ and -: a file gets this name")
    path = flags.records / f"{flags.to}.json"
    flags.records.mkdir(parents=True, exist_ok=True)
    with locked(flags.records):
        done = _add(flags, path)
    print(f"{path}: {', '.join(f'{count} {word}' for word, count in sorted(done.items()))}")


def _add(flags: Namespace, path: Path) -> dict[str, int]:
    """Reads the record, adds the runs and writes it; returns how many were added, known, ... Raises UserError."""
    record = file.read(path) if path.exists() else file.Record(flags.to)
    done: dict[str, int] = {}
    finished: dict[str, dict[int, Outcome]] = {}
    refused: list[UserError] = []
    found = _found(flags.runs, flags.cell)
    found.sort(key=lambda each: not each[0].settings)  # runs with a config first: they say what their cell is
    for run, cell, title, planned in found:
        if run.state == "missing" and planned and record.fields and cell not in record.fields:
            file.add_cell(record, cell, title, planned)
        if run.state not in entry.PROGRESS:
            if run.state != "missing":
                print(f"not recorded: {run.folder}: {run.reason}", file=sys.stderr)
            continue
        settings = run.settings or planned or _settings_of(record, cell)
        if not settings:
            print(f"not recorded: {run.folder}: {run.reason}, and no config.json says of what", file=sys.stderr)
            continue
        seed = _seed(run)
        try:
            ours = entry.of_run(run, cell, seed)
            entry.check(ours, settings)
        except (UserError, ValueError) as error:
            print(f"not recorded: {run.folder}: {printable(str(error))}", file=sys.stderr)
            continue
        record.config = record.config or settings["name"]
        try:
            cell = ours["cell"] = file.add_cell(record, cell, title, settings)
            word = file.add_run(record, ours)
        except UserError as error:
            refused.append(error)
            print(f"not recorded: {run.folder}: {error}", file=sys.stderr)
            continue
        known = record.runs[cell, seed]
        if run.state == "finished" and "color" not in known and (shares := kernels.colors(run)):
            known["color"] = shares
        done[word] = done.get(word, 0) + 1
        if run.state == "finished":
            finished.setdefault(cell, {})[seed] = run
    if refused and not done:
        raise refused[0]
    if not done:
        raise UserError(f"no run to record in {', '.join(map(str, flags.runs))}: name folders of runs or sweeps")
    if flags.ensemble:
        _add_ensembles(record, finished, flags.ensemble)
    file.write(record, path)
    if refused:
        raise UserError(f"{len(refused)} runs were not recorded, as said above; the others are in {path}")
    return done


def _add_ensembles(record: file.Record, finished: dict[str, dict[int, Outcome]], count: int):
    """Adds that of the first runs of each cell that has as many. Raises UserError if none has."""
    enough = {cell: runs for cell, runs in finished.items() if len(runs) >= count}
    if count < 2 or not enough:
        most = max(map(len, finished.values()), default=0)
        raise UserError(f"--ensemble is {count} and must be from 2 to {most}, as many as a cell here has finished runs")
    for cell, runs in enough.items():
        file.add_ensemble(record, ensemble.of_runs(cell, [runs[seed] for seed in sorted(runs)[:count]]))


def _found(paths: list[Path], cell: str) -> list[tuple[Outcome, str, str, dict]]:
    """Each run with the name and the title of its cell and what it is planned to compute, those of sweeps first.

    Raises UserError.
    """
    folders, sweeps = results.find(paths)
    if sweeps and cell:
        raise UserError(f"--cell {cell}: {sweeps[0]} is a sweep, which names its cells: leave --cell out")
    found = []
    planned = set()
    for sweep in sweeps:
        _, config, groups = results.planned(sweep)
        for group in groups:
            found += [(run, group.name, group.title, group.settings | {"name": config}) for run in group.runs]
            planned |= {run.folder.resolve() for run in group.runs}
    for folder in folders:
        if folder.resolve() not in planned:
            name = cell or _cell(folder.resolve())
            found.append((results.read(folder), name, name, {}))
    return found


def _cell(folder: Path) -> str:
    """The name of a run's cell: that of its folder, or of the folder above if that one names its seed."""
    return folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name


def _seed(run: Outcome) -> int:
    """The seed of a run; of one that failed before it had a config, what its folder says."""
    if run.seed is not None:
        return run.seed
    said = re.fullmatch(r"seed(\d+)", run.folder.name)
    return int(said[1]) if said else 0


def _settings_of(record: file.Record, cell: str) -> dict:
    """The settings of a run that failed before it had a config: those of its cell, if another run of it is recorded."""
    return record.settings_of(cell) | {"name": record.config} if cell in record.fields else {}
