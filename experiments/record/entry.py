"""One run in a record: what is kept of its folder, and the run as the report reads it.

An entry is a dict, one line of JSON:

    cell, seed      which run it is
    state, reason   finished, unfinished or failed, and why: a run that failed is kept as well
    views, top1, top5, centre_top1, centre_top5
                    the errors after the last epoch, fractions, in `views` views and of the centre crop
    images          [trained on, measured on]
    mean            of the training images' red, green and blue, 0 to 255; runs recorded before it was kept lack it
    training, validation
                    the top-1 errors of each epoch, fractions, or null: of its training crops, and of the centre crop
    points          the training records, neighbours averaged so that there are at most 200: epoch, loss (nats) and
                    top1 (fraction), a list each
    steps           of training
    hours           of training, without the evaluations; images_per_second is the mean
    machine         the last machine's CPU, cores, devices, jax
    date            on which its records were last written
    color           the share of colour kernels among conv1's kernels, for each tower
"""

import datetime
import math
from pathlib import Path
from typing import Any

from alexnet_jax import UserError
from alexnet_jax.metrics import METRICS
from alexnet_jax.runs import provenance
from alexnet_jax.runs.run import read_statistics
from experiments import results
from experiments.results import Outcome, number, printable

POINTS = 200  # kept of a run's training records
MACHINE = ("CPU", "cores", "devices", "jax")
RESULTS = (
    "views", "top1", "top5", "centre_top1", "centre_top5", "images", "training", "validation", "points", "steps",
)  # fmt: skip
PROGRESS = ("unfinished", "failed", "finished")  # states, from that which says least


def of_run(run: Outcome, cell: str, seed: int) -> dict[str, Any]:
    """The entry of a run that is finished, unfinished or failed. Raises UserError if its provenance is damaged."""
    entry: dict[str, Any] = {"cell": cell, "seed": seed, "state": run.state}
    if run.reason:
        entry["reason"] = run.reason
    came_from = provenance.read(run.folder)
    if run.state == "finished":
        last = [r for r in run.records if r.get("split") == "validation" and r.get("epoch") == run.final["epoch"]]
        centre = next((r for r in reversed(last) if r.get("views", 1) == 1), {})
        entry |= {
            "views": run.final.get("views", 1),
            "top1": _rounded(run.final["top1_error"]),
            "top5": _rounded(run.final["top5_error"]),
            "centre_top1": _rounded(centre.get("top1_error")),
            "centre_top5": _rounded(centre.get("top5_error")),
            "images": [came_from.get("data", {}).get("number of training images"), number(run.final, "images")],
            "training": [_rounded(error) for error in results.training_errors(run)],
            "validation": [_rounded(error) for error in results.validation_errors(run)],
        }
    train = results.training_records(run)
    if train:
        entry |= {"steps": train[-1]["step"], "points": points(train)} | _speed(train, run.settings.get("batch_size"))
    if mean := _mean(run.folder):
        entry["mean"] = mean
    if machines := came_from.get("machines"):
        entry["machine"] = {name: machines[-1].get(name) for name in MACHINE}
    if date := _date(run.folder / METRICS):
        entry["date"] = date
    return entry


def check(entry: dict, settings: dict):
    """Raises ValueError, naming the run and the field, unless an entry has what its state promises.

    settings: the flat config of its cell.
    """
    finished, epochs, points = entry["state"] == "finished", settings["epochs"], entry.get("points")
    machine = entry.get("machine", {})

    def errors(value, count: int | None) -> bool:
        """A list of numbers or null, `count` of them, or any number but none."""
        numbers = isinstance(value, list) and all(v is None or number({"": v}, "") is not None for v in value)
        return numbers and (len(value) == count if count else bool(value))

    def curve() -> bool:
        """Lists of one length; an epoch is a number, since a step is computed from it."""
        if not isinstance(points, dict) or not errors(points.get("epoch"), None):
            return False
        within = all(at is not None and 0 < at <= epochs for at in points["epoch"])
        return within and all(errors(points.get(name), len(points["epoch"])) for name in ("loss", "top1"))

    good = {
        "seed": type(entry.get("seed")) is int,
        "hours": number(entry, "hours") is not None or "hours" not in entry,
        "color": errors(entry.get("color", [0.0]), None),
        "mean": errors(entry.get("mean", [0.0] * 3), 3),
        "date": isinstance(entry.get("date", ""), str),
        "reason": isinstance(entry.get("reason", ""), str),
        "machine": isinstance(machine, dict) and isinstance(machine.get("CPU") or "", str),
        "points": curve() or not (finished or points),
    }
    if finished:
        good |= {name: number(entry, name) is not None for name in ("top1", "top5", "views", "steps")}
        good |= {name: errors([entry.get(name, "")], 1) for name in ("centre_top1", "centre_top5")}
        good |= {name: errors(entry.get(name), epochs) for name in ("training", "validation")}
        good["images"] = errors(entry.get("images"), 2)
    if wrong := [name for name, fine in good.items() if not fine]:
        raise ValueError(f"its run {entry['cell']}, seed {entry.get('seed')}, has no usable {', '.join(wrong)}")


def outcome(entry: dict, settings: dict, folder: Path) -> Outcome:
    """The run of an entry as the report reads it; its records are one for each epoch.

    settings: the flat config of its cell. folder: what to call it.
    """
    settings = settings | {"seed": entry["seed"]}
    if entry["state"] != "finished":
        return Outcome(folder, entry["state"], printable(entry.get("reason", "")), settings)
    epochs = settings["epochs"]

    def record(split: str, epoch: int, error: float) -> dict:
        return {"step": epoch, "epoch": float(epoch), "split": split, "views": 1, "top1_error": error}

    records = [
        record(split, epoch, error)
        for split, errors in (("train", entry["training"]), ("validation", entry["validation"]))
        for epoch, error in enumerate(errors, start=1)
        if error is not None
    ]
    final = record("validation", epochs, entry["top1"])
    final |= {"views": entry["views"], "top5_error": entry["top5"], "images": entry["images"][1]}
    return Outcome(folder, "finished", "", settings, records, final)


def points(train: list[dict]) -> dict[str, list]:
    """At most POINTS means over neighbouring records of training, weighted by their steps.

    train: records with distinct steps, in order, each the mean since the one before it.
    """
    width = math.ceil(len(train) / POINTS)
    found: dict[str, list] = {"epoch": [], "loss": [], "top1": []}
    before = 0
    for start in range(0, len(train), width):
        group = train[start : start + width]
        weights = [b["step"] - a for a, b in zip([before, *(r["step"] for r in group)], group, strict=False)]
        found["epoch"].append(number(group[-1], "epoch"))
        for name, ours in (("loss", "loss"), ("top1_error", "top1")):
            values = [number(r, name) for r in group]
            finite = None not in values
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if finite else math.nan
            found[ours].append(_rounded(mean, 4))
        before = group[-1]["step"]
    return found


def _mean(folder: Path) -> list[float] | None:
    """The mean colour of a run's training images; None if it cannot be read."""
    try:
        return [round(float(value), 2) for value in read_statistics(folder)[0]["channel_mean"]]
    except UserError:
        return None


def _speed(train: list[dict], batch_size: int | None) -> dict[str, float]:
    """Hours of training, and images per second; {} if a record has no speed."""
    seconds, before = 0.0, 0
    for record in train:
        speed = number(record, "images_per_second")
        if not speed or not batch_size:
            return {}
        seconds += (record["step"] - before) * batch_size / speed
        before = record["step"]
    return {"hours": round(seconds / 3600, 4), "images_per_second": round(before * batch_size / seconds, 1)}


def _date(path: Path) -> str | None:
    """The day on which a file was last written, UTC."""
    if not path.exists():
        return None
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat()


def _rounded(value: float | None, decimals: int = 6) -> float | None:
    """To six decimals, far below what one image of a test set changes; None for nan and infinity."""
    return round(float(value), decimals) if value is not None and math.isfinite(value) else None
