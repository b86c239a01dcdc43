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

# What is looked at of each ablation is its error, or, in the study `towers`, how far apart they are. Here are the
# differences that are looked at beside those: cells, and the function of a run below.
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


def difference(study: str, cell: str, of: Values = error, *, sign: int = 1, noise: bool = False) -> Measure:
    """A cell's difference to the base.

    sign: 1 if the paper says that it is positive, -1 if negative, 0 if it says nothing.
    noise: the number of 2012 compares two single runs and is too small for its sign to mean anything.
    """

    def measure(records: Records) -> Found | None:
        groups = compared(records, study, cell, of)
        found = intervals.difference(*groups)
        if found is None:
            return None
        verdict = judge(found, sign, seen=intervals.detectable(*groups))
        if found.counts and found.excludes_zero and (noise or not sign):
            verdict = f"significant; {'the number of 2012 is within noise' if noise else 'no claim of 2012'}"
        return _found(records[study], cell, points(found), verdict, found)

    return measure


def overfitting(study: str, cell: str) -> Measure:
    """Overfitting without a cell's remedy: the training error is lower, and the error is higher."""

    def measure(records: Records) -> Found | None:
        found, trained = (intervals.difference(*compared(records, study, cell, of)) for of in (error, training))
        if found is None or trained is None:
            return None
        verdicts = {intervals.judge(found), intervals.judge(trained, -1)}
        order = ("too few seeds", "contradicts", "not significant", "agrees")
        verdict = next(word for word in order if word in verdicts)
        ours = f"error {points(found)}; training error {points(trained)}"
        return _found(records[study], cell, ours, verdict, found)

    return measure


def compared(records: Records, study: str, cell: str, of: Values) -> tuple[list[float], list[float], int]:
    """(a number of each finished run of a cell, that of the base's runs, how many differences hold at once)."""
    ours, base = (
        [value for value in map(of, of_cell(records.get(study), name).values()) if value is not None]
        for name in (cell, "base")
    )
    return ours, base, comparisons(study)


def _found(record: Record, cell: str, ours: str, verdict: str, found: Interval) -> Found:
    runs = [run for name in ("base", cell) for run in record.of_cell(name).values()]
    return Found(ours, found.n, verdict, scale_of(record, "base", cell), runs, found)


def comparisons(study: str) -> int:
    """How many differences a study is to measure: one for each ablation of its sweep, and those of BESIDE."""
    sweep = importlib.import_module(f"experiments.sweeps.{study}")
    return len(sweep.ABLATIONS) + len(BESIDE.get(study, ()))


def of_cell(record: Record | None, cell: str) -> dict[int, Run]:
    """The finished runs of a cell, by seed; none without the record."""
    return record.of_cell(cell) if record else {}


# --- Ratios ----------------------------------------------------------------------------------------------------------


def ratio(values: Sequence[float], base: Sequence[float]) -> Interval:
    """How many times as large as `base` the values are: geometric means, and Welch's interval of their logarithms."""
    logs = intervals.difference(*([math.log(value) for value in group] for group in (values, base)))
    assert logs is not None
    ends = (None, None) if logs.low is None else (math.exp(logs.low), math.exp(logs.high))
    return Interval(logs.n, math.exp(logs.mean), *ends)


def times(found: Interval) -> str:
    """A ratio in words."""
    ends = f" ({found.low:.3g} to {found.high:.3g})" if found.counts else ""
    return f"{found.mean:.3g} times{ends}"


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
        return f"{verdict}: {seen:.2f} would have been seen"
    return verdict


def scale_of(record: Record, *cells: str) -> str:
    """What the runs of some cells were trained on and how long, and the width of the first one's network."""
    settings, runs = record.settings_of(cells[0]), record.of_cell(cells[0])
    images = next((run["images"][0] for run in runs.values() if run.get("images", [None])[0]), None)
    words = [settings["data.name"].partition("/")[0]]
    if images:
        words.append(f"{images:,} images")
    if not settings.get("model.layers"):
        width = Fraction(settings["model.conv_widths"][1], 256)
        words.append("full width" if width == 1 else f"{width} of the width")
    epochs = sorted({record.settings_of(cell)["epochs"] for cell in cells})
    return ", ".join([*words, f"{' and '.join(map(str, epochs))} epochs"])
