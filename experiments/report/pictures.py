"""The pictures of a report: differences with their intervals, training curves, conv1's kernels. Each is a PNG."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alexnet_jax import UserError
from alexnet_jax.analysis import plots
from alexnet_jax.files import slug
from experiments.record.kernels import read_kernels
from experiments.report.rows import Curves, Report, Row
from experiments.results import printable

INCHES, DPI = 4.8, 300  # narrow, so that its text can be read on a phone; fine, so that it is sharp on a desk
ROW = 0.5  # inches: an ablation in the picture of differences
BLUE, ORANGE = plots.COLORS[:2]
PALE = "#999999"  # the base in another's panel
MEAN: dict[str, Any] = {"marker": "o", "color": BLUE, "ms": 6, "lw": 0}
SEED: dict[str, Any] = {"marker": "o", "color": BLUE, "ms": 3.5, "lw": 0, "alpha": 0.5, "mec": "none"}
NUMBER_OF_2012: dict[str, Any] = {"marker": "D", "color": ORANGE, "ms": 6, "lw": 0, "mfc": "none", "mew": 1.5}


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    path: Path
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """All of them."""

    differences: Picture | None
    curves: Picture | None
    kernels: list[Picture]
    without_kernels: dict[str, list[str]]  # the titles of rows, by the reason


def draw(report: Report, folder: Path) -> Pictures:
    """Draws what the report has into a folder. Raises UserError if it cannot be written."""
    finished = [row for row in (report.base, *report.rows) if row.group.finished]
    kernels, without = _kernels(finished, folder)
    return Pictures(_differences(report, folder), _curves(report, finished, folder), kernels, without)


def _differences(report: Report, folder: Path) -> Picture | None:
    means = {row.title: row.difference.mean for row in report.rows if row.difference}
    if not means:
        return None
    said = "; ".join(f"{title}: {mean:+.2f}" for title, mean in means.items())
    alt = f"Differences from the base in top-1 error, in percentage points, with their intervals. {said}."
    caption = (
        "Above zero, the change hurts. A bar is the interval of one difference alone, its whisker that for all at "
        "once. An arrow marks what lies outside the picture."
    )
    rows = [row for row in report.rows if row.difference]
    return Picture(draw_differences(rows, folder / "differences.png"), alt, caption)


def _curves(report: Report, rows: Sequence[Row], folder: Path) -> Picture | None:
    if not rows:
        return None
    alt = "Training and validation error of each epoch, one panel for each ablation. The table has the last ones."
    caption = "Lines are means over seeds; bands reach from the lowest to the highest seed."
    return Picture(draw_curves(report.base, rows, folder / "curves.png"), alt, caption)


def _kernels(rows: Sequence[Row], folder: Path) -> tuple[list[Picture], dict[str, list[str]]]:
    """(a picture for each row, the titles of the rows without one by the reason)."""
    drawn: list[Picture] = []
    without: dict[str, list[str]] = {}
    for index, row in enumerate(rows):
        seed, run = next(iter(row.group.finished.items()))
        try:
            kernel, towers = read_kernels(run)
        except UserError as error:
            without.setdefault(printable(str(error)), []).append(row.title)
            continue
        path = plots.kernels(kernel, folder / f"kernels_{index:02}_{slug(row.title)[:40]}.png", towers)
        drawn.append(Picture(path, f"Kernels of conv1: {row.title}, seed {seed}.", f"{row.title}, seed {seed}"))
    return drawn, without


# --- Differences ------------------------------------------------------------------------------------------------------


def draw_differences(rows: Sequence[Row], path: Path) -> Path:
    """Draws each ablation: a dot for the mean, small dots below for each seed's error to the base's mean, a diamond for
    the number of 2012. A bar is its interval alone, with whiskers to the ends of the one for all at once.

    A value so large that it would squeeze all others together is outside the picture: an arrow at the edge stands for
    it, and next to the arrow the mean, as a number, if that is outside too. rows: those with a difference.
    """
    above, below = 0.52, 0.5  # inches
    height = above + len(rows) * ROW + below
    figure = Figure(figsize=(INCHES, height), dpi=DPI)
    axes = figure.add_axes((0.04, below / height, 0.92, len(rows) * ROW / height))
    low, high = _range(rows)
    axes.set(xlim=(low, high), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    for y, row in enumerate(rows):
        if y:
            axes.axhline(y - 0.5, color="#dddddd", lw=0.6, zorder=0)
        label = textwrap.shorten(row.title, 62, placeholder=" ...")
        axes.text(low, y - 0.24, label, size=8, va="center", parse_math=False)
        axes.plot((0, 0), (y - 0.06, y + 0.5), color="#444444", lw=1, zorder=1)  # zero, below the label
        _draw_difference(axes, row, y + 0.12, low, high)
    names = {"mean, 95 % intervals": MEAN | {"lw": 3}, "one seed": SEED, "2012, on ImageNet": NUMBER_OF_2012}
    handles = [Line2D([], [], label=name, **style) for name, style in names.items()]
    figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=7.5, frameon=False, columnspacing=1.2)
    axes.set_xlabel("difference from the base in top-1 error, percentage points", size=8)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for word, side, shift in (("\u2190 better", "right", -4), ("worse \u2192", "left", 4)):
        at = {"xy": (0, -0.5), "xytext": (shift, 2), "textcoords": "offset points"}
        axes.annotate(word, **at, ha=side, size=7.5, color=plots.GREY)
    return plots.save(figure, path)


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    """The lowest and the highest difference to show: at most four times as far from zero as most of the means are."""
    means = [row.difference.mean for row in rows]
    then = [row.change.top1 for row in rows if row.change and row.change.top1 is not None]
    most = max(1, 4 * np.quantile(np.abs(means), 0.75, method="lower"), *map(abs, then))
    shown = [*means, *then]
    for row in rows:
        shown += [*row.differences.values(), *(row.simultaneous.ends if row.simultaneous else [])]
    within = np.clip(shown, -most, most)
    low, high = min(0, *within), max(0, *within)
    width = (high - low) or 1.0
    # Room for "better" and "worse", which stand to the left and the right of zero.
    return min(low - 0.05 * width, -0.15 * width), max(high + 0.05 * width, 0.15 * width)


def _draw_difference(axes: Axes, row: Row, y: float, low: float, high: float):
    """One ablation at the height y, between the edges low and high."""
    found = row.difference
    ends = row.simultaneous.ends if row.simultaneous else []
    if ends:
        axes.plot(np.clip(found.ends, low, high), (y, y), color=BLUE, lw=3, solid_capstyle="butt")
        axes.plot(np.clip(ends, low, high), (y, y), color=BLUE, lw=1, solid_capstyle="butt")
        for end in ends:
            axes.plot(end, y, color=BLUE, marker="|", ms=8, mew=1)  # not drawn outside the axes
    if min([found.mean, *ends]) < low:
        _leads_out(axes, low, y, "<", found.mean if found.mean < low else None)
    if max([found.mean, *ends]) > high:
        _leads_out(axes, high, y, ">", found.mean if found.mean > high else None)
    axes.plot(list(row.differences.values()), [y + 0.24] * len(row.differences), **SEED)
    axes.plot(found.mean, y, **MEAN)
    if row.change and row.change.top1 is not None:
        axes.plot(row.change.top1, y, zorder=4, **NUMBER_OF_2012)


def _leads_out(axes: Axes, edge: float, y: float, arrow: str, mean: float | None):
    """An arrow at an edge of the picture, and next to it the mean if that is outside too."""
    axes.plot(edge, y, color=BLUE, marker=arrow, ms=7, clip_on=False)
    if mean is not None:
        word = f"{mean:+.1f}".replace("-", "\u2212")
        place: dict[str, Any] = {"xytext": (8, 0), "ha": "left"} if arrow == "<" else {"xytext": (-8, 0), "ha": "right"}
        box = {"fc": "white", "ec": "none", "pad": 1}  # over the whisker
        axes.annotate(word, (edge, y), textcoords="offset points", va="center", size=8, color=BLUE, bbox=box, **place)


# --- Curves -----------------------------------------------------------------------------------------------------------


def draw_curves(base: Row, rows: Sequence[Row], path: Path) -> Path:
    """Draws the errors of every epoch, a panel for each row: the mean over seeds, and a band from lowest to highest.

    The base is grey in every panel except its own.
    """
    columns = min(2, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(INCHES, 0.75 + 1.55 * lines), dpi=DPI, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, row in zip(panels, rows, strict=False):
        if row is not base:
            _draw_errors(axes, base, PALE)
        _draw_errors(axes, row, BLUE)
        title = textwrap.shorten(row.title, 60, placeholder=" ...")
        axes.set_title(textwrap.fill(title, 32), size=8, pad=3, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7.5, labelbottom=True)
        axes.grid(axis="y", color="#e8e8e8", lw=0.6)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    panels[0].set(ylim=(0, None))
    panels[0].locator_params(axis="x", integer=True)
    figure.supylabel("top-1 error, %", size=8)
    figure.supxlabel("epoch", size=8)
    names: dict[str, dict[str, Any]] = {"validation, centre": {"color": BLUE}, "training": {"color": BLUE, "ls": "--"}}
    if base in rows:
        names["the base"] = {"color": PALE}
    handles = [Line2D([], [], label=name, lw=1.3, **style) for name, style in names.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=7.5, frameon=False)
    return plots.save(figure, path)


def _draw_errors(axes: Axes, row: Row, color: str):
    for curves, style in ((row.training_curves, "--"), (row.validation_curves, "-")):
        epochs, low, mean, high = _band(curves)
        dot: dict[str, Any] = {"marker": "o", "ms": 3} if len(epochs) == 1 else {}
        axes.plot(epochs, mean, style, color=color, lw=1.3, **dot)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, lw=0)


def _band(curves: Curves) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The epochs that all curves have, and the lowest, the mean and the highest value there; empty without curves."""
    values = np.array(list(curves.values()), np.float64)
    if not values.size:
        nothing = np.empty(0)
        return nothing, nothing, nothing, nothing
    known = np.isfinite(values).all(axis=0)
    values = values[:, known]
    return 1 + np.flatnonzero(known), values.min(axis=0), values.mean(axis=0), values.max(axis=0)
