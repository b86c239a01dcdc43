"""Pictures for a README or a report: conv1's kernels, training curves, predictions. Everything is a plain PNG.

    kernels(params["conv1"]["kernel"], "kernels.png")                        # the paper's figure 3
    curves({"paper": read_metrics("run/metrics.jsonl")}, "curves.png")
    predictions(images, labels, probabilities, classes, "predictions.png")   # the paper's figure 4, left

Figures are drawn on objects of their own, never through pyplot: nothing global changes, no window is needed, and a
notebook's own figures stay as they are.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from alexnet_jax import UserError, checkpoint
from alexnet_jax.evaluate import make_probabilities
from alexnet_jax.prepare import prepare
from alexnet_jax.records import Split

WIDTH = 1150  # pixels
DPI = 150
GREY = "#666666"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito: for every eye
MARKERS = "os^Dv"  # as many as share no factor with COLORS: 35 runs before two look the same


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the figure as a PNG, whole or not at all."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi, facecolor="white")
    partial = Path(f"{path}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(png.getbuffer())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): name a file in a folder you can write to") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return Path(path)


# --- Kernels ----------------------------------------------------------------------------------------------------------


def colorfulness(kernel: np.ndarray) -> np.ndarray:
    """The share of each kernel's energy that is colour rather than grey: 0 for a grey kernel, 1 for opponent colours.

    kernel: float (height, width, 3, n). Returns float64 (n,) in 0..1, where w is one kernel and the mean is over RGB:

        sum((w - mean(w))^2) / sum(w^2)

    A kernel of one colour, red alone, has 2/3: a third of it is the grey of its brightness. One of zeros has 0.
    """
    kernel = np.asarray(kernel, np.float64)
    color = np.square(kernel - kernel.mean(axis=2, keepdims=True)).sum(axis=(0, 1, 2))
    energy = np.square(kernel).sum(axis=(0, 1, 2))
    return np.divide(color, energy, out=np.zeros_like(energy), where=energy > 0)


def kernels(kernel: np.ndarray, path: str | Path, towers: int = 2) -> Path:
    """Draws conv1's kernels, tower by tower from the top, each title with the mean `colorfulness` of the tower.

    kernel: float (height, width, 3, n), n a multiple of `towers`, tower by tower. Each kernel is scaled on its own,
    0.5 + w / (2 max|w|), so that mid-grey is zero. A weight is a square of whole pixels.
    """
    kernel = np.asarray(kernel, np.float64)
    height, width, _, n = kernel.shape
    peak = np.abs(kernel).max(axis=(0, 1, 2))
    levels = np.rint(255 * (0.5 + kernel / (2 * np.where(peak > 0, peak, 1)))).astype(np.uint8)

    gap, margin, title = 4, 14, 40  # pixels
    rows = -(-(n // towers) // 16)  # the paper's figure has 16 kernels in a row
    columns = -(-(n // towers) // rows)
    zoom = max(1, min(12, ((WIDTH - 2 * margin + gap) // columns - gap) // width))
    step_y, step_x = height * zoom + gap, width * zoom + gap
    block = rows * step_y - gap
    total_y = towers * (title + block) + margin
    total_x = max(640, columns * step_x - gap + 2 * margin)  # narrower, the title would not fit
    figure = Figure(figsize=(total_x / DPI, total_y / DPI), dpi=DPI)
    shares = np.split(colorfulness(kernel), towers)
    for tower, (part, share) in enumerate(zip(np.split(levels, towers, axis=3), shares, strict=True)):
        canvas = np.full((block, columns * step_x - gap, 3), 255, np.uint8)
        for i, tile in enumerate(np.moveaxis(part, 3, 0)):
            y, x = i // columns * step_y, i % columns * step_x
            canvas[y : y + height * zoom, x : x + width * zoom] = tile.repeat(zoom, axis=0).repeat(zoom, axis=1)
        bottom = total_y - (tower + 1) * (title + block)
        figure.figimage(canvas[::-1], margin, bottom, origin="lower")  # pixel by pixel: imshow would resample
        y = (bottom + block + 10) / total_y
        figure.text(margin / total_x, y, f"tower {tower + 1}", size=10, weight="bold")
        note = f"{len(share)} kernels, on average {share.mean():.0%} of their energy is colour"
        figure.text(1 - margin / total_x, y, note, size=9, color=GREY, ha="right")
    return save(figure, path)


# --- Curves -----------------------------------------------------------------------------------------------------------


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, in its order. A last line that a killed run left unfinished is ignored."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name the metrics.jsonl of a run") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):  # behind the last newline there is nothing, or what a kill cut off
            raise UserError(f"line {number} of {path} is damaged: delete that line")
    return records


def _kind(record: Mapping) -> str:
    if record["split"] == "train":
        return "train"
    return "evaluation" if record.get("views") in (None, 1) else "several views"


def _points(records: Sequence[Mapping], key: str, kind: str, scale: float = 1) -> np.ndarray:
    """float64 (2, points): epochs and values by step. A resumed run repeats steps: the last record of each counts."""
    points = {r["step"]: (r["epoch"], scale * r[key]) for r in records if r.get(key) is not None and _kind(r) == kind}
    return np.array([points[step] for step in sorted(points)], np.float64).reshape(-1, 2).T


def _thinned(points: np.ndarray, most: int = 400) -> np.ndarray:
    """Means over equal stretches: drawn one by one, 20,000 noisy steps are a band that hides the evaluations."""
    if points.shape[1] <= most:
        return points
    return np.stack([part.mean(axis=1) for part in np.array_split(points, most, axis=1)], axis=1)


def _legend(axes: Axes, entries: Mapping[str, Mapping]) -> None:
    """A legend of lines by label. Its texts are set afterwards: legend() itself drops "_run" and typesets "$run$"."""
    handles = [Line2D([], [], **style) for style in entries.values()]
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # inside it would cover somebody's curve
    legend = axes.legend(handles, [" "] * len(handles), fontsize=8, frameon=False, **beside)
    for text, label in zip(legend.get_texts(), entries, strict=True):
        text.set(text=label, parse_math=False)


def curves(runs: Mapping[str, Sequence[Mapping]], path: str | Path, top5: bool = True) -> Path:
    """Draws loss, error in percent and learning rate over epochs, one colour a run.

    runs: by label, the records of metrics.jsonl: step, epoch (float), split ("train"; any other is an evaluation) and,
    as far as they are there, loss, top1_error and top5_error (fractions), learning_rate (of training), views. At most
    400 points of training are drawn, each the mean over its stretch; evaluations are all in their line, one of several
    views is a star. Hairlines mark where a rate fell by a quarter or more at once, grey ones where several runs' did.
    top5: draw the top-5 error too, where there is one; of ten classes it says little.
    """
    figure = Figure(figsize=(WIDTH / DPI, 5.6), dpi=DPI, layout="constrained")
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1.5))
    by_run, by_line, drops, all_rates = {}, {}, {}, []

    def draw(axes, name, points, **style):
        count = points.shape[1]
        if count:
            style = {"ms": 3.5, "marker": "o" if count == 1 else None} | style  # of one point there is no line to see
            axes.plot(*points, markevery=count // 25 + 1, **style)
            by_line.setdefault(name, style | {"color": GREY})

    for i, (label, records) in enumerate(runs.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        by_run[label] = {"color": color, "lw": 1.5, "marker": marker, "ms": 4}
        for axes, key, scale in ((loss, "loss", 1), (error, "top1_error", 100)):
            train = _thinned(_points(records, key, "train", scale))
            centre = _points(records, key, "evaluation", scale)
            several = _points(records, key, "several views", scale)
            draw(axes, "train", train, color=color, lw=0.9, alpha=0.5)
            draw(axes, "evaluation", centre, color=color, lw=1.5, marker=marker)
            draw(axes, "several views", several, color=color, lw=0, marker="*", ms=9)
        if top5:
            five = _points(records, "top5_error", "evaluation", 100)
            draw(error, "evaluation, top-5", five, color=color, lw=1.2, ls="--", mfc="white")
        epochs, rates = _points(records, "learning_rate", "train")
        first = {"marker": ".", "ms": 4, "markevery": slice(1)}  # seen even where it is the only one
        rate.plot(epochs, rates, color=color, lw=1.5, drawstyle="steps-post", **first)
        all_rates.extend(rates[rates > 0])
        for epoch in epochs[1:][rates[1:] < 0.75 * rates[:-1]]:
            drops[epoch] = GREY if epoch in drops else color
    # The loss can shoot far above chance in the first steps: that spike leaves the panel rather than flatten the rest.
    levels = [y[np.isfinite(y)] for y in (line.get_ydata() for line in loss.lines)]
    top = max((1.3 * np.percentile(y, 97) for y in levels if y.size), default=0) or 1
    loss.set(ylabel="loss", ylim=(0, min(loss.get_ylim()[1], top)))
    for axes in (loss, error, rate):
        for epoch, color in drops.items():
            axes.axvline(epoch, color=color, lw=0.6, alpha=0.7, zorder=0)
        axes.grid(axis="y", color="#e8e8e8", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.01)
    _legend(loss, by_run)
    _legend(error, by_line)
    error.set(ylabel="top-1 error, %", ylim=(0, None))
    rate.set(ylabel="learning\nrate", xlabel="epoch", xlim=(0, None), yticks=[])
    rate.locator_params(axis="x", steps=(1, 2, 5, 10))
    if all_rates:  # a log axis cannot be drawn without a value; a factor of 16 always holds a power of ten to tick
        rate.set(yscale="log", ylim=(min(all_rates) / 4, max(all_rates) * 4))
        rate.yaxis.set_major_locator(LogLocator(numticks=6))
        rate.yaxis.set_minor_locator(NullLocator())
    figure.align_ylabels()
    return save(figure, path)


# --- Predictions ------------------------------------------------------------------------------------------------------


def predictions(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    top: int = 5,
) -> Path:
    """Draws up to eight images, each over the bars of its `top` most probable classes.

    images: uint8 (height, width, 3) each; labels: the true classes' numbers; probabilities: float (b, len(classes)), in
    0..1. A title is the true class and a tick where it came first; among the bars it is orange, bold and has an arrow.
    """
    probabilities = np.asarray(probabilities)
    count = min(8, len(images))
    columns = min(4, count)
    top = min(top, len(classes))
    gap, title, bar = 14, 40, 27  # pixels
    side = (WIDTH - 5 * gap) // 4
    cell = title + side + gap // 2 + top * bar
    total_x, total_y = columns * (side + gap) + gap, -(-count // columns) * cell + gap
    figure = Figure(figsize=(total_x / DPI, total_y / DPI), dpi=DPI)
    for i, (image, label, shares) in enumerate(zip(images[:8], labels[:8], probabilities[:8], strict=True)):
        left, bottom = gap + i % columns * (side + gap), total_y - (i // columns + 1) * cell
        box = np.array([total_x, total_y, total_x, total_y])
        photo = figure.add_axes(np.array([left, bottom + cell - title - side, side, side]) / box)
        bars = figure.add_axes(np.array([left, bottom, side, top * bar]) / box)
        order = np.argsort(-shares, kind="stable")[:top]
        mark = "✓" if order[0] == label else "✗"
        photo.imshow(image)
        photo.set_title(f"{mark} {_short(classes[label])}", size=9, weight="bold", pad=4, parse_math=False)
        bars.set(xlim=(0, 1), ylim=(top - 0.5, -0.5))
        for y, (k, share) in enumerate(zip(order, shares[order], strict=True)):
            true = k == label
            bars.barh(y, share, height=0.84, color="#F0A030" if true else "#BCD3E6")
            style = {"size": 7, "va": "center_baseline", "weight": "bold" if true else "normal", "parse_math": False}
            bars.text(0.02, y, f"{'▸ ' if true else ''}{_short(classes[k])}", **style)
            bars.text(0.98, y, "<1%" if share < 0.01 else f"{share:.0%}", ha="right", **style)
        photo.set_axis_off()
        bars.set_axis_off()
    return save(figure, path)


def _short(name: str, length: int = 20) -> str:
    """A class's first name ("goldfish, Carassius auratus"), cut to `length` letters."""
    name = name.split(",")[0]
    return name if len(name) <= length else f"{name[: length - 1]}…"


# --- A run's own pictures ---------------------------------------------------------------------------------------------


def draw_run(workdir: str | Path, split: Split) -> dict[str, Path]:
    """Draws a run's kernels, curves and predictions for eight images of `split` into its workdir; returns the paths."""
    run = checkpoint.load(workdir)
    folder = Path(workdir)
    kernel = np.asarray(run.params["conv1"]["kernel"])
    records = read_metrics(folder / "metrics.jsonl")
    shown = np.linspace(0, len(split) - 1, min(8, len(split))).astype(int)
    images = split.images(shown)
    predict = make_probabilities(run.apply, run.config.data)
    probabilities = np.asarray(predict(run.params, run.statistics, images))
    return {
        "conv1 kernels": kernels(kernel, folder / "kernels.png", run.config.model.towers),
        "training curves": curves({run.config.name: records}, folder / "curves.png", top5=len(run.classes) > 10),
        "predictions": predictions(images, split.labels[shown], probabilities, run.classes, folder / "predictions.png"),
    }


def main(argv: list[str]) -> None:
    """The command line: a run's pictures, or the curves of several runs in one."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action="append", required=True, help="a run; several are drawn into one picture")
    parser.add_argument("--out", default="curves.png", help="where the curves of several runs go")
    flags = parser.parse_args(argv)
    if len(flags.workdir) > 1:
        runs = {Path(w).name: read_metrics(Path(w) / "metrics.jsonl") for w in flags.workdir}
        print(curves(runs, flags.out))
        return
    run = checkpoint.load(flags.workdir[0])
    for name, path in draw_run(run.workdir, prepare(run.config.data).evaluation).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
