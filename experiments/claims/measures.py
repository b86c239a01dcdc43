"""What the records say of a claim: each function returns a measure, which reads the records and finds a number or None.

    measure = difference("ablations", "lrn_off")
    found = measure({"ablations": record})       # None if nothing is recorded of it

Differences are between means over seeds. Those of one study hold at once: their intervals are wider by the number of
differences that it is to measure (see report/intervals.py), measured already or not, so that no verdict depends on how
far it is.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from experiments.record.file import Record
from experiments.report import intervals
from experiments.report.intervals import Interval
from experiments.report.table import signed

Records = dict[str, Record]
Run = dict  # an entry of a record, see record/entry.py
Values = Callable[[Run], float | None]


@dataclass(frozen=True)
class Found:
    """What was found."""

    ours: str  # in words and numbers
    n: int  # seeds
    verdict: str
    scale: str  # on what: the data, its size, the network's width, the epochs
    runs: Sequence[Run]  # that it is computed from
    interval: Interval | None = None  # for the picture


Measure = Callable[[Records], Found | None]

# What is looked at of each ablation is its error, or else, by study, the function of a run below.
INSTEAD = {"towers": "apart"}
# The differences that are looked at beside those: cells, and the function of a run below.
BESIDE = {
    "ablations": (
        ("pooling", "overfit"),
        ("crops_off", "training"),
        ("dropout_off", "training"),
        ("decay_off", "training"),
    )
}


# --- Values of a run, in percent --------------------------------------------------------------------------------------


def error(run: Run) -> float | None:
    """The top-1 error in the views of its config."""
    return percent(run.get("top1"))


def training(run: Run) -> float | None:
    """The top-1 training error of the last epoch."""
    return percent((run.get("training") or [None])[-1])


def overfit(run: Run) -> float | None:
    """How much higher the error is than the training error."""
    test, train = error(run), training(run)
    return None if test is None or train is None else test - train


def apart(run: Run) -> float | None:
    """How far apart two towers are in colour: the difference of their shares of colour kernels, in points."""
    shares = run.get("color") or ()
    return 100 * abs(shares[0] - shares[1]) if len(shares) == 2 else None


def percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


# --- Differences ------------------------------------------------------------------------------------------------------


def difference(study: str, cell: str, of: Values = error, *, noise: bool = False, claimed: bool = True) -> Measure:
    """A cell's difference to the base, which the paper says is positive, unless it says nothing: then not `claimed`.

    noise: the number of 2012 compares two single runs and is too small for its sign to mean anything.
    """

    def measure(records: Records) -> Found | None:
        groups = compared(records, study, cell, of)
        found = intervals.difference(*groups)
        if found is None:
            return None
        verdict = "2012's number is within noise" if noise else judge(found, seen=intervals.detectable(*groups))
        if not claimed and found.counts and found.excludes_zero:
            verdict = "significant; no claim of 2012"
        return _found(records[study], cell, points(found), verdict, found)

    return measure


def overfitting(study: str, cell: str) -> Measure:
    """Overfitting without a cell's remedy: the training error is lower, and the error is higher."""

    def measure(records: Records) -> Found | None:
        found, trained = (intervals.difference(*compared(records, study, cell, of)) for of in (error, training))
        if found is None or trained is None:
            return None
        verdicts = {judge(found, 1), judge(trained, -1)}
        order = ("too few seeds", "contradicts", "not significant", "agrees")
        verdict = next(word for word in order if word in verdicts)
        ours = f"error {points(found)}; training error {points(trained)}"
        return _found(records[study], cell, ours, verdict, found)

    return measure


def compared(records: Records, study: str, cell: str, of: Values) -> tuple[list[float], list[float], int]:
    """(a number of each finished run of a cell, that of the base's runs, how many differences hold at once)."""
    ours, base = (
        [value for value in map(of, first_cell(records.get(study), (name,)).values()) if value is not None]
        for name in (cell, "base")
    )
    return ours, base, comparisons(study)


def _found(record: Record, cell: str, ours: str, verdict: str, found: Interval) -> Found:
    runs = [run for name in ("base", cell) for run in record.of_cell(name).values()]
    return Found(ours, found.n, verdict, scale_of(record, "base"), runs, found)


def comparisons(study: str) -> int:
    """How many differences a study is to measure: one for each ablation of its sweep (INSTEAD), and those of BESIDE."""
    sweep = importlib.import_module(f"experiments.sweeps.{study}")
    return len(sweep.ABLATIONS) + len(BESIDE.get(study, ()))


def first_cell(record: Record | None, names: Sequence[str]) -> dict[int, Run]:
    """The finished runs of the first of some cells that has any, by seed."""
    return next((runs for name in names if record and (runs := record.of_cell(name))), {})


# --- Ratios ----------------------------------------------------------------------------------------------------------


def ratio(values: Sequence[float], base: Sequence[float]) -> Interval:
    """How many times as large as `base` the values are: geometric means, and Welch's interval of their logarithms."""
    logs = intervals.difference(*([math.log(value) for value in group] for group in (values, base)))
    assert logs is not None
    ends = (None, None) if logs.low is None else (math.exp(logs.low), math.exp(logs.high))
    return Interval(logs.n, math.exp(logs.mean), *ends)


def times(found: Interval) -> str:
    """A ratio in words."""
    ends = f" ({found.low:.1f} to {found.high:.1f})" if found.counts else ""
    return f"{found.mean:.1f} times{ends}"


def judge_ratio(found: Interval, then: float, says: str) -> str:
    """A verdict on a ratio that the paper says is `then`, above 1; `says` is what a ratio above 1 means."""
    if not found.counts or found.low is None or found.high is None:
        return "too few seeds"
    if found.low <= 1 <= found.high:
        return "not significant"
    if found.mean < 1:
        return "contradicts"
    return "agrees" if found.low <= then <= found.high else f"agrees that {says}, but not {then:g} times"


# --- In words ---------------------------------------------------------------------------------------------------------


def points(found: Interval) -> str:
    """A difference in percentage points with its interval, if that of so few seeds says anything."""
    text = signed(found.mean)
    if found.counts:
        text += f" ({signed(found.low)} to {signed(found.high)})"
    return text


def judge(found: Interval, sign: int = 1, seen: float | None = None) -> str:
    """A verdict on a difference that the paper says is positive, or negative with sign -1.

    seen: the smallest difference that these seeds would have seen with probability 0.8.
    """
    verdict = intervals.judge(found, sign)
    if verdict == "not significant" and seen is not None:
        return f"{verdict}: {math.ceil(10 * seen) / 10:.1f} would have been seen"
    return verdict


def scale_of(record: Record, cell: str) -> str:
    """What the runs of a cell were trained on and how long, and the network's width."""
    settings, runs = record.settings_of(cell), record.of_cell(cell)
    images = next((run["images"][0] for run in runs.values() if run.get("images", [None])[0]), None)
    words = [settings["data.name"].partition("/")[0]]
    if images:
        words.append(f"{images:,} images")
    if not settings.get("model.layers"):
        width = Fraction(settings["model.conv_widths"][1], 256)
        words.append("full width" if width == 1 else f"{width} of the width")
    return ", ".join([*words, f"{settings['epochs']} epochs"])
