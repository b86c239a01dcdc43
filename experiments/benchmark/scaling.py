"""How the time of a training step grows with batch, width, image side and number of devices, beside its arithmetic.

Each point is the paper's network in a process of its own, on random images. Devices are virtual on CPU: they share the
cores, and each copy of the network brings its own part of the batch, so time should grow with the number of copies and
not with the number of devices that a copy is split over.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.analysis import plots
from alexnet_jax.files import expanded
from configs import paper
from experiments.benchmark import machine, table, turns
from experiments.benchmark.steps import prepared
from experiments.benchmark.turns import OURS, Side

AXES: dict[str, Sequence[float]] = {
    "batch": (8, 16, 32, 64, 128),  # images
    "width": (0.25, 0.5, 1, 1.5, 2),  # times the paper's, in every layer
    "side": (128, 160, 224, 288, 384),  # pixels
    "devices": (1, 2, 4),  # copies of the network, each on one device and on two
}
BATCHES = {"width": 32, "side": 32, "devices": 16}  # images; of devices: of each copy of the network
LABELS = {
    "batch": "batch, images",
    "width": "width, times the paper's",
    "side": "side of the images, pixels",
    "devices": "virtual devices",
}
TURNS = 2
TOLERANCE = 1.15  # time may grow by so much more than the arithmetic before we call it faster


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet benchmark scaling`."""
    group = parser.add_argument_group("scaling")
    group.add_argument("--axis", default=",".join(AXES), metavar="NAME,...", help="what to vary (default: all)")
    says = "a picture of all axes, also of those that --save's file has from earlier runs"
    group.add_argument("--out", metavar="PNG", help=says)


def measure(flags: Namespace, before: Mapping[str, Any]) -> dict[str, Any]:
    """Measures flags.axis, prints the table and draws. Returns scaling, {axis: rows}, and machine. Raises UserError.

    before: of `earlier`; its axes are kept.
    """
    names = [name.strip() for name in flags.axis.split(",")]
    if unknown := [name for name in names if name not in AXES]:
        raise UserError(f"--axis names '{unknown[0]}', and there are {', '.join(AXES)}")
    if flags.out and not flags.out.endswith(".png"):
        raise UserError(f"--out is {flags.out} and must end with .png")
    axes = dict(before.get("scaling", {}))
    about: dict[str, Any] = {}
    here: dict[str, Any] = {}
    for name in names:
        axes[name] = []
        for label, config in tqdm(points(name, flags.dtype), name, unit=" points", leave=False):
            needed = config.devices.data * config.devices.tower
            if about and about["platform"] != "cpu" and needed > about["count"]:
                tqdm.write(f"left out: {name} {label} needs {needed} accelerators, and there are {about['count']}")
                continue
            found = turns.compare({"ours": Side(OURS, {"what": "train", "config": config.to_dict()})}, TURNS)
            seconds, about = found["seconds"]["ours"], found["about"]["ours"]
            here = machine.facts(found["about"])
            machine.refuse_other(before.get("machine", {}), here, flags.save)
            axes[name].append(
                {
                    "point": label,
                    "batch": config.batch_size,
                    "devices": [config.devices.data, config.devices.tower],
                    "seconds": turns.spread(seconds)["median"],
                    "operations": about["operations"],
                    "peak_bytes": machine.peak_bytes(about),
                }
            )
    axes = {name: axes[name] for name in AXES if axes.get(name)}
    print(text(axes))
    if flags.out:
        draw(axes, flags.out)
    return {"scaling": axes, "machine": here}


def earlier(path: str | None) -> dict[str, Any]:
    """What --save's file has from earlier runs: scaling, {axis: rows}, machine and more; {} if there is no file.

    Raises UserError if the file is not this command's.
    """
    if path is None or not expanded(path).exists():
        return {}
    try:
        found = json.loads(expanded(path).read_text())
        axes = {name: found["scaling"][name] for name in AXES if name in found["scaling"]}
        return found | {"scaling": axes, "machine": dict(found["machine"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of alexnet benchmark scaling --save: name another") from error


def points(axis: str, dtype: str) -> list[tuple[str, ConfigDict]]:
    """(label, config) of each point of an axis."""
    found: list[tuple[str, ConfigDict]] = []
    for value in AXES[axis]:
        shapes = [(int(value), 1), (int(value), 2)] if axis == "devices" else [(1, 1)]
        for data, tower in shapes:
            config = prepared(paper.get_config(), BATCHES.get(axis, int(value)), dtype)
            label = f"{value:g}"
            if axis == "width":
                m = config.model
                m.conv_widths, m.fc_widths = (
                    [round(w * value) for w in widths] for widths in (m.conv_widths, m.fc_widths)
                )
            elif axis == "side":
                config.data.crop, config.data.size = int(value), int(value) + 32
            elif axis == "devices":
                config.devices.data, config.devices.tower = data, tower
                config.batch_size *= data
                label = f"{data}x{tower}"
            found.append((label, config))
    return found


def series(rows: Sequence[Mapping]) -> list[list[Mapping]]:
    """The rows of an axis, as lines of a picture: by the number of devices that a copy is split over."""
    towers = sorted({row["devices"][1] for row in rows})
    return [[row for row in rows if row["devices"][1] == tower] for tower in towers]


def growth(rows: Sequence[Mapping]) -> list[float]:
    """Each row's seconds per operation, as a multiple of the least of the rows before it; 1 for the first."""
    found, least = [], float("inf")
    for row in rows:
        rate = row["seconds"] / row["operations"]
        found.append(rate / least if found else 1.0)
        least = min(least, rate)
    return found


def text(axes: Mapping[str, Sequence[Mapping]]) -> str:
    """The table. Rows whose time grew faster than their arithmetic say so."""
    columns = {
        "axis": 8,
        "point": 6,
        "batch": 5,
        "GFLOP": 8,
        "s": 7,
        "GFLOP/s": 8,
        "peak, GB": 8,
        "time / arithmetic": 24,
    }
    lines = [table.heading(columns)]
    for name, rows in axes.items():
        for line in series(rows):
            for row, grown in zip(line, growth(line), strict=True):
                flag = " faster" if grown > TOLERANCE else ""
                work = row["operations"] / 1e9
                cells = [name, row["point"], str(row["batch"]), f"{work:,.0f}", f"{row['seconds']:.3f}"]
                cells += [f"{work / row['seconds']:,.0f}", f"{row['peak_bytes'] / 1e9:.2f}", f"{grown:.2f}{flag}"]
                lines.append(table.line(cells, columns))
    lines.append(
        "time / arithmetic: seconds per operation, as a multiple of the least on the smaller points of the same line; "
        f"above {TOLERANCE} the time grows faster than the arithmetic."
    )
    return "\n".join(lines)


# --- The picture ------------------------------------------------------------------------------------------------------


def draw(axes: Mapping[str, Sequence[Mapping]], path: str | Path) -> Path:
    """Draws a panel for each axis: measured seconds, and what they would be if they grew like the arithmetic."""
    columns = min(2, len(axes))
    rows = -(-len(axes) // columns)
    size = plots.WIDTH / plots.DPI
    figure = Figure(figsize=(size * columns / 2, 0.4 * size * rows), dpi=plots.DPI, layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for panel, (name, found) in zip(panels, axes.items(), strict=False):
        _panel(panel, name, found)
    for panel in panels[len(axes) :]:
        panel.set_axis_off()
    return plots.save(figure, path)


def _panel(panel: Axes, name: str, rows: Sequence[Mapping]) -> None:
    lines = series(rows)
    for color, line in zip(plots.COLORS, lines, strict=False):
        x = [_place(name, row) for row in line]
        seconds = np.array([row["seconds"] for row in line])
        work = np.array([row["operations"] for row in line])
        copies = {1: "one device", 2: "two devices"}[line[0]["devices"][1]]
        label = f"measured, {copies} for each copy" if len(lines) > 1 else "measured"
        panel.loglog(x, seconds, "o-", color=color, ms=4, lw=1.2, label=label)
        proportional = "proportional to its arithmetic" if line is lines[0] else None
        panel.loglog(x, seconds[0] * work / work[0], "--", color=color, lw=0.9, label=proportional)
    ticks = sorted({_place(name, row) for row in rows})
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel(LABELS[name], size=8)
    panel.set_ylabel("seconds per step", size=8)
    panel.tick_params(labelsize=7)
    panel.grid(color="#eeeeee", lw=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_ylim(top=1.5 * panel.get_ylim()[1])  # room for the legend
    panel.legend(fontsize=7, frameon=False, loc="upper left")


def _place(name: str, row: Mapping) -> float:
    return float(np.prod(row["devices"])) if name == "devices" else float(row["point"])
