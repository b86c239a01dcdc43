"""Images that look alike to the network: the nearest by Euclidean distance in its last hidden layer (section 6.1).

    alexnet retrieve --workdir runs/paper                         # precision@6, and the right half of figure 4
    alexnet retrieve --workdir runs/paper --query photo.jpg       # the training images nearest to a photo

precision@6 is the share of an image's six nearest in the gallery that are of its class. It is compared with the six
nearest by raw pixels and with six drawn at random. The gallery is the training set by default, as in the paper. Photos
that cannot be read are named on standard error and left out, and the exit status is then 1.
"""

import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet_jax import UserError, inference, metrics
from alexnet_jax.analysis import plots
from alexnet_jax.analysis.neighbours import K, nearest, precision
from alexnet_jax.cli.commands import add_batch_size, add_devices, add_json, add_which, add_workdir, use_devices
from alexnet_jax.data import photos
from alexnet_jax.data.images import Images, PhotoImages, SplitImages, subset
from alexnet_jax.data.records import Prepared, Split
from alexnet_jax.files import expanded, refuse_no_file
from alexnet_jax.inference import Forward
from alexnet_jax.runs.run import Run, data_of, load_run

ROWS = 100  # the most in a picture that can still be opened
SHOWN = 20  # the most photos in a picture: nobody opens one of a whole folder


class Layer(NamedTuple):
    """A layer of a run, ready to be computed for images."""

    run: Run
    name: str
    forward: Forward
    batch_size: int


class Described(NamedTuple):
    """What is compared of n images."""

    ids: list[str]
    vectors: np.ndarray  # float32 (n, d): the layer's activations, flat
    pixels: np.ndarray | None  # uint8 (n, 3 * crop^2): the centre crops


def layer_of(run: Run, name: str, gallery: Split, batch_size: int | None = None) -> Layer:
    """A layer for the gallery's images and for queries. Raises UserError if the network lacks it."""
    forward = inference.make_forward(run, layers=[name])
    # One batch size for queries and gallery: each would be compiled on its own.
    return Layer(run, name, forward, inference.batch_size(run, len(gallery), batch_size))


def describe(layer: Layer, images: Images, pixels: bool = True, beside: int = 0) -> Described:
    """Runs the network over images and keeps the layer's activations, and the pixels if asked.

    beside: how many more images are to be kept in the same way.
    Raises UserError if the network gives NaN or infinity, or if this machine's memory cannot hold the result.
    """
    run, size, crop = layer.run, layer.run.config.data.size, layer.run.config.data.crop
    shape = inference.layer_shapes(run, [layer.name])[layer.name]
    vectors, crops = _room(len(images), int(np.prod(shape)), 3 * crop**2 if pixels else 0, beside)
    ids: list[str] = []
    at = slice((size - crop) // 2, (size - crop) // 2 + crop)
    with metrics.bar(len(images), f"{layer.name} of {images.name}") as progress:
        for batch, found in inference.rows(run, layer.forward, images, layer.batch_size):
            count = len(batch.ids)
            filled = slice(len(ids), len(ids) + count)
            vectors[filled] = found[layer.name].reshape(count, -1)
            if pixels:
                crops[filled] = batch.images[:count, at, at].reshape(count, -1)
            ids += batch.ids
            progress.update(count)
    return Described(ids, vectors[: len(ids)], crops[: len(ids)] if pixels else None)


def _room(n: int, numbers: int, pixels: int, beside: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Arrays float32 (n, numbers) and uint8 (n, pixels).

    Raises UserError if memory is too small for them and for as many of `beside` images.
    """
    needed, there = (n + beside) * (4 * numbers + pixels), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * there:
        hint = "choose a smaller layer" + (", or leave the pixels out with --no-pixels" if pixels else "")
        raise UserError(
            f"{n + beside:,} images of {numbers:,} float32 and {pixels:,} bytes are {needed / 1e9:.0f} GB, more than "
            f"this machine's {there / 1e9:.0f} GB hold: {hint}"
        )
    return np.empty((n, numbers), np.float32), np.empty((n, pixels), np.uint8)


# --- A split's images -------------------------------------------------------------------------------------------------


def measure(layer: Layer, queries: Split, gallery: Split, pixels: bool) -> tuple[dict, np.ndarray]:
    """precision@6 of a split in a gallery, by class and over all images, and how fast the search was.

    Returns: what --json prints, and the neighbours by the layer, int32 (q, 6).
    """
    same = queries.name == gallery.name
    asked = describe(layer, SplitImages(queries), pixels, 0 if same else len(gallery))
    given = asked if same else describe(layer, SplitImages(gallery), pixels)
    own = np.arange(len(queries)) if same else None

    found, shares, speed = {}, {}, {}
    for name, mine, theirs in (
        (layer.name, asked.vectors, given.vectors), ("pixels", asked.pixels, given.pixels),
    ):  # fmt: skip
        if mine is not None and theirs is not None:
            found[name], seconds = _timed_search(name, mine, theirs, own)
            shares[name] = precision(found[name], queries.labels, gallery.labels)
            speed[name] = round(len(queries) / seconds, 1)
    shares["chance"] = chance(queries, gallery, len(layer.run.classes))

    classes = {}
    for number, name in enumerate(layer.run.classes):
        of_class = queries.labels == number
        if of_class.any():
            classes[name] = _means(shares, of_class)
    result = {
        "workdir": str(layer.run.workdir),
        "split": queries.name,
        "gallery": gallery.name,
        "gallery_images": len(gallery),
        "layer": layer.name,
        "k": K,
        "precision": _means(shares, np.ones(len(queries), bool)),
        "queries_per_second": speed,
        "classes": classes,
    }
    return result, found[layer.name]


def _timed_search(
    name: str, queries: np.ndarray, gallery: np.ndarray, own: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """The indices of the nearest, and the seconds that the search took."""
    with metrics.bar(len(gallery), f"search by {name}") as progress:
        start = time.perf_counter()
        indices = nearest(queries, gallery, own=own, progress=progress)[1]
        return indices, time.perf_counter() - start


def chance(queries: Split, gallery: Split, classes: int) -> np.ndarray:
    """The expected precision of images drawn at random from the gallery, without the query itself: float64 (q,)."""
    counts, total = np.bincount(gallery.labels, minlength=classes), len(gallery)
    if queries.name == gallery.name:
        counts, total = counts - 1, total - 1
    return (counts / total)[queries.labels]


def _means(shares: dict[str, np.ndarray], chosen: np.ndarray) -> dict:
    """The mean of each share over the chosen queries, a bool for each, and how many these are."""
    means = {name: round(float(share[chosen].mean()), 4) for name, share in shares.items()}
    return {"images": int(chosen.sum())} | means


def table(result: dict) -> str:
    """What `measure` returns, as lines of text. Of more than 20 classes the ten best and the ten worst are shown."""
    classes = list(result["classes"].items())
    if len(classes) > 20:
        classes.sort(key=lambda item: item[1][result["layer"]], reverse=True)
        classes = classes[:10] + classes[-10:]
    columns = [name for name in result["precision"] if name != "images"]

    def line(name: str, row: dict) -> str:
        shares = "".join(f"{row[column]:>10.1%}" for column in columns)
        return f"{plots.short(name):22}{row['images']:>8,}{shares}"

    lines = [f"precision@{K} of {result['split']} in {result['gallery']} ({result['gallery_images']:,} images)"]
    lines.append(f"{'':22}{'images':>8}" + "".join(f"{name:>10}" for name in columns))
    lines += [line(name, row) for name, row in classes]
    lines.append(line("all", result["precision"]))
    speeds = [f"{speed:,.0f} images/s by {name}" for name, speed in result["queries_per_second"].items()]
    lines.append(f"search: {', '.join(speeds)}")
    return "\n".join(lines)


# --- Photos -----------------------------------------------------------------------------------------------------------


def find(layer: Layer, images: PhotoImages, gallery: Split) -> tuple[dict, np.ndarray]:
    """The neighbours of photos in a gallery.

    Returns: what --json prints, and the neighbours' indices, int32 (photos that can be read, 6).
    Raises UserError if no photo can be read.
    """
    asked = describe(layer, images, pixels=False)
    if not asked.ids:
        raise UserError(photos.NONE)
    distances, indices = nearest(asked.vectors, describe(layer, SplitImages(gallery), pixels=False).vectors)
    found = []
    for path, near, rows in zip(asked.ids, distances, indices, strict=True):
        neighbours = [
            {
                "class": layer.run.classes[gallery.labels[row]],
                "image": gallery.ids[row],
                "distance": round(float(distance), 4),
            }
            for row, distance in zip(rows, near, strict=True)
        ]
        found.append({"photo": path, "neighbours": neighbours})
    result = {"workdir": str(layer.run.workdir), "gallery": gallery.name, "layer": layer.name, "k": K, "photos": found}
    return result, indices


def listing(result: dict) -> str:
    """What `find` returns, as lines of text."""
    lines = []
    for photo in result["photos"]:
        lines.append(photo["photo"])
        lines += [
            f"  {found['distance']:>12g}  {plots.short(found['class']):20}  {found['image']}"
            for found in photo["neighbours"]
        ]
    return "\n".join(lines)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def pick(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` images, or all if there are fewer, spread evenly over the classes: int64 indices.

    Each is the middle of one of `count` equal stretches of the images sorted by class.
    """
    order = np.argsort(labels, kind="stable")
    count = min(count, len(order))
    edges_and_middles = np.linspace(0, len(order), 2 * count + 1)
    return order[edges_and_middles[1::2].astype(int)]


def draw_split(run: Run, queries: Split, indices: np.ndarray, gallery: Split, path: Path) -> Path:
    """Draws images of a split and their neighbours, `indices` int32 (queries, k) in the gallery."""
    same = gallery.labels[indices] == queries.labels[:, None]
    names = [run.classes[label] for label in queries.labels]
    return _draw(run, queries.images(), names, indices, same, gallery, path)


def draw_photos(run: Run, images: PhotoImages, indices: np.ndarray, gallery: Split, path: Path) -> Path:
    """Draws photos, whose classes nobody knows, and their neighbours, `indices` int32 (photos, k) in the gallery."""
    [batch] = images.batches(len(images))
    names = [Path(name).stem for name in batch.ids]
    return _draw(run, batch.images, names, indices, None, gallery, path)


def _draw(
    run: Run,
    queries: np.ndarray,
    names: Sequence[str],
    indices: np.ndarray,
    same: np.ndarray | None,
    gallery: Split,
    path: Path,
) -> Path:
    hits = gallery.images(indices.ravel()).reshape(*indices.shape, *queries.shape[1:])
    hit_names = [[run.classes[label] for label in row] for row in gallery.labels[indices]]
    return plots.neighbours(queries, names, hits, hit_names, same, path)


def last_hidden(run: Run) -> str:
    """The layer before the classifier: fc7, or of a chain of layers the last but one."""
    chain = run.config.model.layers
    if len(chain) == 1:
        raise UserError(f"{run.workdir} has no hidden layer to compare")
    return chain[-2][0] if chain else "fc7"


def draw_neighbours(run: Run, prepared: Prepared, path: Path, queries: int = 5, batch_size: int | None = None) -> Path:
    """Draws the right half of figure 4: validation images and their nearest in the training set by `last_hidden`."""
    chosen = pick(prepared.evaluation.labels, queries)
    split, gallery = subset(prepared.evaluation, chosen), prepared.train
    own = chosen if split.name == gallery.name else None
    layer = layer_of(run, last_hidden(run), gallery, batch_size)
    asked, given = (describe(layer, SplitImages(part), pixels=False).vectors for part in (split, gallery))
    indices = nearest(asked, given, own=own)[1]
    return draw_split(run, split, indices, gallery, path)


# --- The command line -------------------------------------------------------------------------------------------------


def add_flags(parser: ArgumentParser) -> None:
    """The command's flags."""
    add_workdir(parser)
    splits = ("validation", "train")
    parser.add_argument("--split", choices=splits, default="validation", help="the queries (default: validation)")
    parser.add_argument("--gallery", choices=splits, default="train", help="where to search (default: train)")
    parser.add_argument("--layer", help="what to compare (default: fc7, the last hidden layer)")
    parser.add_argument("--query", nargs="+", metavar="PHOTO", help="photos or folders of them, instead of --split")
    parser.add_argument("--queries", type=int, default=5, help="rows of the picture, evenly over classes (default: 5)")
    parser.add_argument("--no-pixels", action="store_true", help="leave out the search by raw pixels")
    parser.add_argument("--out", help="the picture (default: neighbours.png in the workdir)")
    add_which(parser)
    add_devices(parser)
    add_batch_size(parser)
    add_json(parser)


def _of_splits(flags: Namespace) -> list[tuple[str, bool]]:
    """The flags that have no effect on photos, and whether each differs from its default."""
    return [("split", flags.split != "validation"), ("queries", flags.queries != 5), ("no-pixels", flags.no_pixels)]


def main(flags: Namespace) -> int:
    """The command. Returns the exit status: 1 if a photo could not be read."""
    if not 1 <= flags.queries <= ROWS:
        raise UserError(f"--queries is {flags.queries} and must be from 1 to {ROWS}: each is a row of the picture")
    paths, bare = photos.gather(flags.query or ())
    if flags.query and not paths:
        raise UserError(photos.NONE)
    if flags.query and (idle := [name for name, given in _of_splits(flags) if given]):
        raise UserError(f"--{idle[0]} is for the images of a --split: leave it out, or --query")
    workdir = expanded(flags.workdir)
    out = expanded(flags.out) if flags.out else workdir / "neighbours.png"
    refuse_no_file(out)
    if out.suffix != ".png":
        raise UserError(f"--out is {out.name}, and the picture is a PNG: name it .png")
    if flags.out and not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} for the picture: make it, or name another with --out")
    use_devices(flags.devices)
    run = load_run(workdir, flags.which, *flags.devices)
    prepared = data_of(run)
    splits = {"train": prepared.train, "validation": prepared.evaluation}
    split, gallery = splits[flags.split], splits[flags.gallery]
    layer = layer_of(run, flags.layer or last_hidden(run), gallery, flags.batch_size)

    unreadable = bare
    if paths:
        result, indices = find(layer, PhotoImages(paths, run.config.data, run.classes), gallery)
        text, read = listing(result), [Path(photo["photo"]) for photo in result["photos"]]
        unreadable += len(paths) - len(read)
        shown = PhotoImages(read[:SHOWN], run.config.data, run.classes)
        draw = partial(draw_photos, run, shown, indices[:SHOWN], gallery, out)
    else:
        result, indices = measure(layer, split, gallery, pixels=not flags.no_pixels)
        text, chosen = table(result), pick(split.labels, flags.queries)
        draw = partial(draw_split, run, subset(split, chosen), indices[chosen], gallery, out)
    print(json.dumps(result | {"picture": str(out)}) if flags.json else text, flush=True)
    draw()  # what was found is printed: a full disk does not lose it
    if not flags.json:
        print(f"picture: {out}")
    return int(unreadable > 0)
