"""Pictures of arrays: conv1's kernels, photos with the network's answers, a confusion matrix. All are PNG files.

    kernels(params["conv1"]["kernel"], "kernels.png")                                # the paper's figure 3
    predictions(images, labels, probabilities, classes, "predictions.png")           # figure 4, left
    neighbours(queries, [0, 7], hits, labels, ["ant", "bee"], "neighbours.png")      # figure 4, right

Figures are drawn without pyplot: nothing global changes, no window is needed, and a notebook's own figures stay as they
are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet_jax.analysis.specialisation import towers_colors
from alexnet_jax.data.classes import words
from alexnet_jax.files import replacing

WIDTH = 1150  # pixels
DPI = 150
BAR = 27  # pixels: the height of a bar with its text
GREY = "#666666"
BLUE, ORANGE = "#0072B2", "#E69F00"
# Okabe and Ito: for colour-blind readers too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the figure as a PNG. Raises UserError if it cannot be written; then what was there before is kept."""
    path = Path(path)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=figure.dpi, facecolor="white")
    return path


# --- Kernels ----------------------------------------------------------------------------------------------------------


def kernels(kernel: np.ndarray, path: str | Path, towers: int = 2) -> Path:
    """Draws conv1's kernels, tower by tower from the top, with each tower's `towers_colors` in its title.

    kernel: float (height, width, 3, n), n a multiple of `towers`, tower by tower. Each kernel is scaled by itself,
    0.5 + w / (2 max|w|), so that mid-grey is zero. Each weight is a square of whole pixels.
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
    colors = towers_colors(kernel, towers)
    for tower, (part, (count, mostly, mean)) in enumerate(zip(np.split(levels, towers, axis=3), colors, strict=True)):
        canvas = np.full((block, columns * step_x - gap, 3), 255, np.uint8)
        for i, tile in enumerate(np.moveaxis(part, 3, 0)):
            y, x = i // columns * step_y, i % columns * step_x
            canvas[y : y + height * zoom, x : x + width * zoom] = tile.repeat(zoom, axis=0).repeat(zoom, axis=1)
        bottom = total_y - (tower + 1) * (title + block)
        figure.figimage(canvas[::-1], margin, bottom, origin="lower")  # pixel by pixel: imshow would resample
        y = (bottom + block + 10) / total_y
        figure.text(margin / total_x, y, f"tower {tower + 1}" if towers > 1 else "conv1", size=10, weight="bold")
        note = f"{mostly} of {count} kernels mostly colour, mean share {mean:.0%}"
        figure.text(1 - margin / total_x, y, note, size=9, color=GREY, ha="right")
    return save(figure, path)


# --- Photos -----------------------------------------------------------------------------------------------------------


def predictions(
    images: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray | Sequence[int],
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    top: int = 5,
) -> Path:
    """Draws up to eight images, each over the bars of its `top` most probable classes.

    images: uint8 (height, width, 3) each; labels: the true classes' numbers; probabilities: float (b, len(classes)), in
    0..1. The title is the true class, with a tick if it came first; its bar is orange, and its name bold with an arrow.
    """
    probabilities = np.asarray(probabilities)
    count = min(8, len(images))
    columns = min(4, count)
    top = min(top, len(classes))
    gap, title = 14, 40  # pixels
    side = (WIDTH - 5 * gap) // 4
    cell = title + side + gap // 2 + top * BAR
    total_x, total_y = columns * (side + gap) + gap, -(-count // columns) * cell + gap
    figure = Figure(figsize=(total_x / DPI, total_y / DPI), dpi=DPI)
    for i, (image, label, shares) in enumerate(zip(images[:8], labels[:8], probabilities[:8], strict=True)):
        left, above = gap + i % columns * (side + gap), i // columns * cell
        order = np.argsort(-shares, kind="stable")[:top]
        mark = "✓" if order[0] == label else "✗"
        photo = _photo(figure, image, left, above + title, side)
        photo.set_title(f"{mark} {short(classes[label])}", size=9, weight="bold", pad=4, parse_math=False)
        _bars(figure, order, shares, label, classes, left, above + title + side + gap // 2, side)
    return save(figure, path)


def mistakes(
    images: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray | Sequence[int],
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
) -> Path:
    """Draws wrongly classified images in two rows, each over the bars of the predicted and of the true class.

    images, labels, probabilities: as in `predictions`. The most certain mistakes come first, in their order, then as
    many of the least certain (one less if their number is odd). The true class is orange and bold with an arrow. If
    there are no images the picture says so.
    """
    probabilities = np.asarray(probabilities)
    first = -(-len(images) // 2)
    columns = max(1, first)
    gap, title = 14, 46  # pixels
    side = (WIDTH - gap) // max(5, columns) - gap
    cell = title + side + gap // 2 + 2 * BAR
    rows = {"most certain mistakes": range(first), "least certain mistakes": range(first, len(images))}
    rows = {name: row for name, row in rows.items() if row} or {"no mistakes": range(0)}
    total_x = max(440, columns * (side + gap) + gap)  # narrower, the title would not fit
    total_y = len(rows) * (cell if len(images) else title) + gap
    figure = Figure(figsize=(total_x / DPI, total_y / DPI), dpi=DPI)
    for r, (name, row) in enumerate(rows.items()):
        y = 1 - (r * cell + title - 12) / total_y
        figure.text(gap / total_x, y, name, size=10, weight="bold")
        for column, i in enumerate(row):
            left, top = gap + column * (side + gap), r * cell + title
            _photo(figure, images[i], left, top, side)
            shown = [probabilities[i].argmax(), labels[i]]
            _bars(figure, shown, probabilities[i], labels[i], classes, left, top + side + gap // 2, side)
    return save(figure, path)


def neighbours(
    queries: np.ndarray | Sequence[np.ndarray],
    names: Sequence[str],
    hits: np.ndarray | Sequence[Sequence[np.ndarray]],
    hit_names: Sequence[Sequence[str]],
    same: np.ndarray | None,
    path: str | Path,
) -> Path:
    """Draws each query in a row of its own, followed by its nearest neighbours in their order.

    Args:
      queries: uint8 (height, width, 3) each; names: the text under each.
      hits, hit_names: for each query its neighbours' images and classes, the same number for all.
      same: bool (queries, neighbours), whether a neighbour is of its query's class. If so it has a tick and a blue
        frame, otherwise a cross and an orange frame. None: not known, all frames are grey.
    """
    count = len(hits[0])
    gap, title, caption = 12, 40, 34  # pixels
    side = (WIDTH - 3 * gap) // (count + 1) - gap
    cell = side + caption
    total_x, total_y = (count + 1) * (side + gap) + 3 * gap, title + len(queries) * cell + gap
    figure = Figure(figsize=(total_x / DPI, total_y / DPI), dpi=DPI)
    first = 3 * gap + side + gap  # a wider gap parts the query from its neighbours
    for left, text in ((gap, "query"), (first, "nearest first")):
        figure.text(left / total_x, 1 - (title - 12) / total_y, text, size=10, weight="bold")

    def draw(image, name, left, top, color=None, mark="", **style):
        photo = _photo(figure, image, left, top, side)
        if color:
            photo.set_axis_on()
            photo.set(xticks=[], yticks=[])
            photo.spines[:].set(color=color, linewidth=2.5)
        photo.set_title(
            mark + short(name, side // 10 - len(mark)), size=7, y=0, pad=-6, va="top", parse_math=False, **style
        )

    for i, (query, name, images, theirs) in enumerate(zip(queries, names, hits, hit_names, strict=True)):
        top = title + i * cell
        draw(query, name, gap, top, weight="bold")
        for j, (image, hit_name) in enumerate(zip(images, theirs, strict=True)):
            if same is None:
                mark, color = "", "#999999"
            elif same[i][j]:
                mark, color = "✓ ", BLUE
            else:
                mark, color = "✗ ", ORANGE
            draw(image, hit_name, first + j * (side + gap), top, color, mark)
    return save(figure, path)


def short(name: str, length: int = 20) -> str:
    """A class's name for pictures and tables: the first of its names, a synset's in words, cut to `length` letters.

    Bytes of a folder's name that are no UTF-8 cannot be drawn: b"\\xe9" is shown as "\\udce9".
    """
    [name] = words([name.split(",")[0]])
    name = name.encode("utf-8", "backslashreplace").decode()
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels from the figure's top left corner."""
    total_x, total_y = figure.get_size_inches() * DPI
    return figure.add_axes((left / total_x, 1 - (top + height) / total_y, width / total_x, height / total_y))


def _photo(figure: Figure, image: np.ndarray, left: float, top: float, side: float) -> Axes:
    photo = _axes(figure, left, top, side, side)
    photo.imshow(image)
    photo.set_axis_off()
    return photo


def _bars(
    figure: Figure,
    shown: np.ndarray | Sequence[int],
    shares: np.ndarray,
    label: int,
    classes: Sequence[str],
    left: float,
    top: float,
    side: float,
) -> None:
    """The shares of the classes `shown` as bars with names. The true class is orange and bold with an arrow."""
    bars = _axes(figure, left, top, side, len(shown) * BAR)
    bars.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5))
    length = int(side / 9.4) - 6  # letters of this size that fit beside the number
    for y, k in enumerate(shown):
        true = k == label
        bars.barh(y, shares[k], height=0.84, color="#F0A030" if true else "#BCD3E6")
        weight = "bold" if true else "normal"
        style: dict[str, Any] = {"size": 7, "va": "center_baseline", "weight": weight, "parse_math": False}
        arrow = "▸ " if true else ""
        bars.text(0.02, y, arrow + short(classes[k], length), **style)
        bars.text(0.98, y, "<1%" if shares[k] < 0.01 else f"{shares[k]:.0%}", ha="right", **style)
    bars.set_axis_off()


# --- Confusion --------------------------------------------------------------------------------------------------------


def confusion(counts: np.ndarray, classes: Sequence[str], path: str | Path) -> Path:
    """Draws a confusion matrix: rows true classes, columns predicted ones, right answers blue, wrong ones orange.

    counts: int (n, n), images by true and predicted class. Up to 20 classes have names, and counts in the cells; more
    have numbers. A cell's depth is the square root of its share of its row, so that rare confusions are visible. With
    more than 20 classes cells are points, so it is the fourth root, in a darker orange.
    """
    counts = np.asarray(counts)
    n, total = len(classes), counts.sum()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = n <= 20
    full = np.where(np.eye(n, dtype=bool)[..., None], (86, 180, 233), (230, 159, 0) if named else (213, 94, 0))
    depth = shares ** (1 / 2 if named else 1 / 4)
    levels = np.rint(255 - depth[..., None] * (255 - full)).astype(np.uint8)

    names = [short(name) for name in classes] if named else []
    label = 12 * max((len(name) for name in names), default=5) + 24  # pixels: the longest name at its size
    title = 46
    cell = min(100, max(1, (WIDTH - label - 60) // n))
    side = n * cell
    total_x, total_y = max(620, label + side + 76), title + side + label + 20  # narrower, the title would not fit
    figure = Figure(figsize=(total_x / DPI, total_y / DPI), dpi=DPI)
    axes = _axes(figure, label + 36, title, side, side)
    axes.imshow(levels, interpolation="nearest")
    right = np.trace(counts) / max(total, 1)
    note = f"{total:,} images, {right:.1%} right"
    figure.text(14 / total_x, 1 - (title - 14) / total_y, note, size=9, weight="bold")
    axes.set_ylabel("true", size=9)
    axes.set_xlabel("predicted", size=9, labelpad=6)
    axes.tick_params(labelsize=8, length=0 if named else 3)
    axes.spines[:].set(color="#cccccc", linewidth=0.6, position=("outward", 1))  # at the edge it would hide cells
    if named:
        style = {"parse_math": False}
        axes.set_yticks(range(n), names, **style)
        axes.set_xticks(range(n), names, rotation=90, **style)
        axes.hlines(np.arange(1, n) - 0.5, -0.5, n - 0.5, color="#e8e8e8", lw=0.6)
        axes.vlines(np.arange(1, n) - 0.5, -0.5, n - 0.5, color="#e8e8e8", lw=0.6)
        size = min(9, 0.8 * cell / (1.3 * len(str(counts.max()))))
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(column, row, counts[row, column], size=size, ha="center", va="center_baseline")
    return save(figure, path)
