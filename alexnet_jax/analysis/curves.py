"""Training curves from the records of one or more runs.

curves({"paper": metrics.read_metrics("run/metrics.jsonl")}, "curves.png")
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from alexnet_jax.analysis.plots import COLORS, DPI, GREY, WIDTH, save

TOP5 = "validation, top-5"
MARKERS = "os^Dv"  # five, which shares no factor with the seven COLORS: the 36th run is the first to look like another


def _kind(record: Mapping) -> str:
    if record.get("split") == "train":
        return "train"
    return "evaluation" if record.get("views") in (None, 1) else "several views"


def _is_number(value) -> bool:
    """Whether a record's value can be drawn. NaN and infinity can: they leave a gap."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63  # a larger one may not fit into any float
    return isinstance(value, float)


def _points(records: Sequence[Mapping], key: str, kind: str, scale: float = 1) -> np.ndarray:
    """float64 (2, points): epochs and values by step. A resumed run can repeat steps; the last record counts."""
    of_kind = [r for r in records if _kind(r) == kind and all(_is_number(r.get(n)) for n in ("step", "epoch", key))]
    points = {r["step"]: (r["epoch"], scale * r[key]) for r in of_kind}
    return np.array([points[step] for step in sorted(points)], np.float64).reshape(-1, 2).T


def _thinned(points: np.ndarray, most: int = 400) -> np.ndarray:
    """Means over equal stretches: 20,000 noisy steps, drawn one by one, are a band that hides the evaluations."""
    if points.shape[1] <= most:
        return points
    return np.stack([part.mean(axis=1) for part in np.array_split(points, most, axis=1)], axis=1)


def _legend(axes: Axes, entries: Mapping[str, Mapping]) -> None:
    """A legend of lines by label. Its texts are set afterwards, because legend() drops "_run" and typesets "$run$"."""
    handles = [Line2D([], [], **style) for style in entries.values()]
    # Beside the axes: inside it would cover a curve.
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    legend = axes.legend(handles, [" "] * len(handles), fontsize=8, frameon=False, **beside)
    for text, label in zip(legend.get_texts(), entries, strict=True):
        text.set(text=label.encode("utf-8", "backslashreplace").decode(), parse_math=False)  # may be no UTF-8


def curves(runs: Mapping[str, Sequence[Mapping]], path: str | Path, classes: int | None = None) -> Path:
    """Draws loss, error in percent and learning rate over epochs, with one colour for each run.

    runs: by label, the records of metrics.jsonl: step, epoch (float), split ("train"; any other is an evaluation) and,
    if they are there, loss, top1_error and top5_error (fractions), learning_rate (of training), views. At most 400
    points of training are drawn, each the mean over its stretch. All evaluations are drawn; one of several views is a
    star. Thin lines mark where a rate fell by a quarter or more at once; grey ones, where several runs' rates did.
    classes: how many the runs tell apart, None if not known or not the same: draws the loss and the error of guessing;
      the top-5 error, if there is one, is left out of ten classes or fewer, where it says little.
    Raises UserError if the picture cannot be written.
    """
    figure = Figure(figsize=(WIDTH / DPI, 5.6), dpi=DPI, layout="constrained")
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1.5))
    by_run: dict[str, dict] = {}
    by_line: dict[str, dict] = {}
    drops: dict[float, str] = {}
    all_rates: list[float] = []

    def draw(axes, name, points, **style):
        count = points.shape[1]
        if count:
            style = {"ms": 3.5, "marker": "o" if count == 1 else None} | style  # a single point has no line
            axes.plot(*points, markevery=count // 25 + 1, **style)
            by_line.setdefault(name, style | {"color": GREY})

    for i, (label, records) in enumerate(runs.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        by_run[label] = {"color": color, "lw": 1.5, "marker": marker, "ms": 4}
        for axes, key, scale in ((loss, "loss", 1), (error, "top1_error", 100)):
            train = _thinned(_points(records, key, "train", scale))
            centre = _points(records, key, "evaluation", scale)
            several = _points(records, key, "several views", scale)
            draw(axes, "training", train, color=color, lw=0.9, alpha=0.5)
            draw(axes, "validation, centre crop", centre, color=color, lw=1.5, marker=marker)
            draw(axes, "validation, several views", several, color=color, lw=0, marker="*", ms=9)
        if classes is None or classes > 10:
            five = _points(records, "top5_error", "evaluation", 100)
            draw(error, TOP5, five, color=color, lw=1.2, ls="--", mfc="white")
        epochs, rates = _points(records, "learning_rate", "train")
        first = {"marker": ".", "ms": 4, "markevery": slice(1)}  # visible even if it is the only one
        rate.plot(epochs, rates, color=color, lw=1.5, drawstyle="steps-post", **first)
        all_rates.extend(rates[rates > 0])
        for epoch in epochs[1:][rates[1:] < 0.75 * rates[:-1]]:
            drops[epoch] = GREY if epoch in drops else color
    # In the first steps the loss can rise far above that of guessing. This spike is cut off: it would flatten the rest.
    levels = [y[np.isfinite(y)] for y in (line.get_ydata() for line in loss.lines)]
    usual = max((np.percentile(y, 97 if classes is None else 50) for y in levels if y.size), default=0)
    top = 1.3 * max(usual, math.log(classes or 1)) or 1
    loss.set(ylabel="loss", ylim=(0, min(loss.get_ylim()[1], top)))
    if classes and by_line:
        by_line["guessing"] = {"color": GREY, "lw": 0.9, "ls": ":", "zorder": 0}
        loss.axhline(math.log(classes), **by_line["guessing"])
        error.axhline(100 * (1 - 1 / classes), **by_line["guessing"])
    for axes in (loss, error, rate):
        for epoch, color in drops.items():
            axes.axvline(epoch, color=color, lw=0.6, alpha=0.7, zorder=0)
        axes.grid(axis="y", color="#e8e8e8", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.01)
    _legend(loss, by_run)
    _legend(error, by_line)
    error.set(ylabel="error, %" if TOP5 in by_line else "top-1 error, %", ylim=(0, None))
    rate.set(ylabel="learning\nrate", xlabel="epoch", xlim=(0, None), yticks=[])
    rate.locator_params(axis="x", steps=(1, 2, 5, 10))
    if all_rates:  # a log axis requires a value; a factor of 16 always includes a power of ten to label
        rate.set(yscale="log", ylim=(min(all_rates) / 4, max(all_rates) * 4))
        rate.yaxis.set_major_locator(LogLocator(numticks=6))
        rate.yaxis.set_minor_locator(NullLocator())
    figure.align_ylabels()
    return save(figure, path)
