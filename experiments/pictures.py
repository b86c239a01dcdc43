"""The pictures of a report: differences with their intervals, training curves, conv1's kernels. Each is a PNG."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alexnet_jax import UserError, one_line
from alexnet_jax.analysis import plots
from alexnet_jax.files import slug
from alexnet_jax.runs.run import load_run
from experiments.results import printable

if TYPE_CHECKING:  # report.py imports this file
    from experiments.report import Report, Row
    from experiments.results import Run

INCHES, DPI = 4.8, 300  # narrow, so that its letters can be read on a phone; fine, so that they are sharp on a desk
BLUE, ORANGE = plots.COLORS[:2]
PALE = "#999999"  # the base in another's panel


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
    without_kernels: dict[str, list[str]]  # titles of rows, by the reason


def draw(report: "Report", folder: Path) -> Pictures:
    """Draws what there is to draw into a folder. Raises UserError if it cannot be written."""
    rows = [row for row in (report.base, *report.rows) if row.group.finished]
    measured = [row for row in report.rows if row.difference]
    differences = curves = None
    if measured:
        said = "; ".join(f"{row.title}: {row.difference.mean:+.2f}" for row in measured)
        alt = f"Differences to the base in top-1 error, percentage points, with their intervals. {said}."
        caption = "Above zero, the change hurts. An arrow leads out of the picture."
        differences = Picture(draw_differences(measured, folder / "differences.png"), alt, caption)
    if rows:
        alt = "Training and validation error of each epoch, a panel for each ablation. The last ones are in the table."
        caption = "Lines are means over seeds, bands reach from the lowest to the highest."
        curves = Picture(draw_curves(report.base, rows, folder / "curves.png"), alt, caption)
    kernels, without = [], {}
    for index, row in enumerate(rows):
        seed, run = next(iter(row.group.finished.items()))
        try:
            kernel, towers = read_kernels(run)
        except UserError as error:
            without.setdefault(printable(str(error)), []).append(row.title)
            continue
        path = plots.kernels(kernel, folder / f"kernels_{index:02}_{slug(row.title)[:40]}.png", towers)
        kernels.append(Picture(path, f"Kernels of conv1: {row.title}, seed {seed}.", f"{row.title}, seed {seed}"))
    return Pictures(differences, curves, kernels, without)


def draw_differences(rows: Sequence["Row"], path: Path) -> Path:
    """A dot and a whisker for each ablation, its seeds as small dots below, the number of 2012 as a diamond.

    What would squeeze all others to a dot runs out of the picture: an arrow at its edge, with the mean as a number.
    """
    row_height, above, below = 0.5, 0.52, 0.5  # inches
    height = above + len(rows) * row_height + below
    figure = Figure(figsize=(INCHES, height), dpi=DPI)
    axes = figure.add_axes((0.04, below / height, 0.92, len(rows) * row_height / height))
    then = [row.change.top1 if row.change else None for row in rows]
    means = [row.difference.mean for row in rows]
    most = max(1, 4 * np.quantile(np.abs(means), 0.75, method="lower"), *(abs(t) for t in then if t is not None))
    every = [*means, *(d for row in rows for d in row.differences.values()), *(t for t in then if t is not None)]
    every += [end for row in rows for end in row.difference[2:] if end is not None]
    low, high = (f(0, *np.clip(every, -most, most)) for f in (min, max))
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    axes.set(xlim=(low, high), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    dot = {"marker": "o", "color": BLUE, "ms": 6, "lw": 0}
    seed = {"marker": "o", "color": BLUE, "ms": 3.5, "lw": 0, "alpha": 0.5, "mec": "none"}
    diamond = {"marker": "D", "color": ORANGE, "ms": 6, "lw": 0, "mfc": "none", "mew": 1.5}
    for y, (row, number) in enumerate(zip(rows, then, strict=True)):
        found, at = row.difference, y + 0.12
        if y:
            axes.axhline(y - 0.5, color="#dddddd", lw=0.6, zorder=0)
        label = textwrap.shorten(row.title, 62, placeholder=" ...")
        axes.text(low, y - 0.24, label, size=8, va="center", parse_math=False)
        axes.plot((0, 0), (y - 0.06, y + 0.5), color="#444444", lw=1, zorder=1)  # zero, below the label
        if found.low is not None:
            axes.plot(np.clip((found.low, found.high), low, high), (at, at), color=BLUE, lw=1.8, solid_capstyle="butt")
            for end in found[2:]:
                axes.plot(end, at, color=BLUE, marker="|", ms=8, mew=1.8)  # outside the axes it is not drawn
        reach = [end for end in found[1:] if end is not None]
        if min(reach) < low:
            _leads_out(axes, low, at, "<", found.mean if found.mean < low else None)
        if max(reach) > high:
            _leads_out(axes, high, at, ">", found.mean if found.mean > high else None)
        axes.plot(list(row.differences.values()), [at + 0.24] * len(row.differences), **seed)
        axes.plot(found.mean, at, **dot)
        if number is not None:
            axes.plot(number, at, zorder=4, **diamond)
    names = {"mean, with its 95 % interval": dot | {"lw": 1.8}, "one seed": seed, "2012, on ImageNet": diamond}
    handles = [Line2D([], [], label=name, **style) for name, style in names.items()]
    figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=7.5, frameon=False, columnspacing=1.2)
    axes.set_xlabel("difference to the base in top-1 error, points", size=8)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for word, side, shift in (("\u2190 better", "right", -4), ("worse \u2192", "left", 4)):
        at = {"xy": (0, -0.5), "xytext": (shift, 2), "textcoords": "offset points"}
        axes.annotate(word, **at, ha=side, size=7.5, color=plots.GREY)
    return plots.save(figure, path)


def _leads_out(axes: Axes, edge: float, y: float, arrow: str, mean: float | None) -> None:
    """An arrow at an edge of the picture, and beside it the mean, if that is outside too."""
    axes.plot(edge, y, color=BLUE, marker=arrow, ms=7, clip_on=False)
    if mean is not None:
        word = f"{mean:+.1f}".replace("-", "\u2212")
        place = {"xytext": (8, 0), "ha": "left"} if arrow == "<" else {"xytext": (-8, 0), "ha": "right"}
        box = {"fc": "white", "ec": "none", "pad": 1}  # over the whisker
        axes.annotate(word, (edge, y), textcoords="offset points", va="center", size=8, color=BLUE, bbox=box, **place)


def draw_curves(base: "Row", rows: Sequence["Row"], path: Path) -> Path:
    """The errors of every epoch, a panel a row: the mean over seeds, and from the lowest to the highest a band.

    The base is grey in every panel but its own.
    """
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(INCHES, 0.75 + 1.55 * lines), dpi=DPI, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, row in zip(panels, rows, strict=False):
        for shown, color in [(base, PALE), (row, BLUE)][row is base :]:
            for curves, style in ((shown.training_curves, "--"), (shown.validation_curves, "-")):
                epochs, low, mean, high = _band(curves.values())
                one = {"marker": "o", "ms": 3} if len(epochs) == 1 else {}
                axes.plot(epochs, mean, style, color=color, lw=1.3, **one)
                axes.fill_between(epochs, low, high, color=color, alpha=0.2, lw=0)
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
    names = {"validation, centre": {"color": BLUE}, "training": {"color": BLUE, "ls": "--"}}
    names |= {"the base": {"color": PALE}} if base in rows else {}
    handles = [Line2D([], [], label=name, lw=1.3, **style) for name, style in names.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=7.5, frameon=False)
    return plots.save(figure, path)


def _band(curves: Iterable[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that all curves have, and their lowest, mean and highest there; of no curve, nothing."""
    curves = np.array(list(curves), np.float64)
    if not curves.size:
        return (np.empty(0),) * 4
    known = np.isfinite(curves).all(axis=0)
    epochs, curves = 1 + np.flatnonzero(known), curves[:, known]
    return epochs, curves.min(axis=0), curves.mean(axis=0), curves.max(axis=0)


def read_kernels(run: "Run") -> tuple[np.ndarray, int]:
    """Conv1's kernels at a run's end, float32 (height, width, 3, n), and its towers.

    Raises UserError if there is no checkpoint that can be read.
    """
    if not (run.folder / "checkpoints").is_dir():
        raise UserError("no checkpoint")
    try:
        loaded = load_run(run.folder, "latest")
        return np.asarray(loaded.params["conv1"]["kernel"]), loaded.config.model.towers
    except UserError:
        raise
    except Exception as error:  # a checkpoint of other code, or a damaged one, raises nearly anything
        raise UserError(f"its checkpoint cannot be read ({one_line(error)})") from error
