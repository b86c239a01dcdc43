"""The pictures of the claims: ours beside the paper's numbers, and the paper's Figure 1 drawn again. Each is a PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alexnet_jax.analysis import plots
from experiments.claims import figure1
from experiments.claims.measures import Records, Run, of_cell
from experiments.claims.page import Row, rows

WIDTH, DPI = 7.2, 200  # inches; pixels per inch
ROW = 0.36  # inches
LABELS = 0.5  # the part of the width that they take
BLUE, ORANGE = plots.COLORS[:2]
OURS: dict[str, Any] = {"marker": "o", "color": BLUE, "ms": 6, "lw": 2}
ALONE: dict[str, Any] = OURS | {"mfc": "white", "lw": 0}
THEIRS: dict[str, Any] = {"marker": "D", "color": ORANGE, "ms": 6, "lw": 0, "mfc": "none", "mew": 1.5}


def draw(records: Records, folder: Path) -> list[Path]:
    """Draws what there is: claims.png if a claim with a number is measured, figure1.png if its runs are recorded."""
    measured = [
        row for row in rows(records) if row[1] and row[1].interval and row[0].unit and row[0].number is not None
    ]
    drawn = [draw_claims(measured, folder / "claims.png")] if measured else []
    record = records.get("figure1")
    relu, tanh = (of_cell(record, cell) for cell in (figure1.RELU, figure1.TANH))
    if relu and tanh:
        drawn.append(draw_figure1(list(relu.values()), list(tanh.values()), folder / "figure1.png"))
    return drawn


# --- Claims -----------------------------------------------------------------------------------------------------------


def draw_claims(found: Sequence[Row], path: Path) -> Path:
    """Draws measured claims that have a number: ours with its interval, if it has one, the paper's as a diamond.

    Differences are above, errors of published networks below.
    """
    panels = {
        "difference in top-1 error, percentage points": [row for row in found if row[0].unit == "points"],
        "test error on CIFAR-10, %, of one more run": [row for row in found if row[0].unit == "percent"],
    }
    panels = {label: shown for label, shown in panels.items() if shown}
    above, under = 0.45, 0.6  # inches: of the legend, and of each panel's axis
    height = above + len(found) * ROW + len(panels) * under
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    for label, shown in panels.items():
        above += len(shown) * ROW
        axes = figure.add_axes((LABELS, 1 - above / height, 0.98 - LABELS, len(shown) * ROW / height))
        _draw_rows(axes, shown, label)
        above += under
        if shown[0][0].unit == "points":
            axes.axvline(0, color="#444444", lw=1, zorder=1)
    names = {"ours, mean with 95 % interval": OURS, "ours, no interval": ALONE, "published": THEIRS}
    handles = [Line2D([], [], label=name, **style) for name, style in names.items()]
    figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=8.5, frameon=False)
    return plots.save(figure, path)


def _draw_rows(axes: Axes, found: Sequence[Row], label: str):
    """One claim below the other, each with its words to the left. An interval that is cut off ends in an arrow."""
    axes.set(ylim=(len(found) - 0.5, -0.5), yticks=[])
    low, high = _limits(found)
    axes.set_xlim(low, high)
    for y, (claim, there) in enumerate(found):
        if y:
            axes.axhline(y - 0.5, color="#e4e4e4", lw=0.6, zorder=0)
        axes.plot(claim.number, y, zorder=4, **THEIRS)
        words = f"{claim.section.partition(',')[0]}  {claim.says}"
        if there is not None and there.interval is not None:
            ends = there.interval.ends
            axes.plot(there.interval.mean, y, **(OURS if ends else ALONE))
            axes.plot(np.clip(ends, low, high), [y] * len(ends), color=BLUE, lw=2, solid_capstyle="butt")
            for end, edge, arrow in zip(ends, (low, high), "<>", strict=False):
                within = low <= end <= high
                axes.plot(end if within else edge, y, color=BLUE, marker="|" if within else arrow, ms=8, clip_on=False)
        lines = textwrap.wrap(words, 56, max_lines=2, placeholder=" ...")
        axes.annotate(
            "\n".join(lines), (0, y), (-6, 0), ("axes fraction", "data"), "offset points",
            ha="right", va="center", size=8, parse_math=False,
        )  # fmt: skip
    axes.set_xlabel(label, size=8.5)
    axes.tick_params(labelsize=8.5)
    axes.spines[["left", "top", "right"]].set_visible(False)


def _limits(found: Sequence[Row]) -> tuple[float, float]:
    """From the lowest to the highest number, with room for intervals at most as long as all of that on either side."""
    shown = [claim.number for claim, _ in found if claim.number is not None]
    shown += [there.interval.mean for _, there in found if there and there.interval]
    if found[0][0].unit == "points":
        shown.append(0.0)
    lowest, highest = min(shown), max(shown)
    room = max(highest - lowest, 1.0)
    ends = [end for _, there in found if there and there.interval for end in there.interval.ends]
    low, high = max(lowest - room, min([lowest, *ends])), min(highest + room, max([highest, *ends]))
    margin = 0.06 * (high - low) or room
    return low - margin, high + margin


# --- Figure 1 ---------------------------------------------------------------------------------------------------------


def draw_figure1(relu: Sequence[Run], tanh: Sequence[Run], path: Path) -> Path:
    """Draws training error over epochs, ReLU solid, tanh dashed, as in the paper; seeds are thin, their mean thick."""
    figure = Figure(figsize=(5.4, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for runs, color, style, name in ((relu, BLUE, "-", "ReLU"), (tanh, ORANGE, "--", "tanh")):
        curves = [
            (run["points"]["epoch"], [np.nan if e is None else 100 * e for e in run["points"]["top1"]]) for run in runs
        ]
        for epochs, errors in curves:
            axes.plot(epochs, errors, style, color=color, lw=0.6, alpha=0.5)
        common = min((epochs for epochs, _ in curves), key=len)
        mean = np.mean([np.interp(common, epochs, errors) for epochs, errors in curves], axis=0)
        seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
        axes.plot(common, mean, style, color=color, lw=2.2, label=f"{name}, {seeds}")
    axes.axhline(100 * figure1.LEVEL, color="#444444", lw=0.8)
    axes.annotate(
        "25 %", (1, 100 * figure1.LEVEL), (-2, 3), ("axes fraction", "data"), "offset points", ha="right", size=8.5
    )
    axes.set_xlabel("epochs", size=9)
    axes.set_ylabel("training error on CIFAR-10, %", size=9)
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False)
    return plots.save(figure, path)
