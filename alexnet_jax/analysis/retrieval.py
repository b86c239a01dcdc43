"""Images alike to the network: nearest neighbours by the Euclidean distance of their last hidden layer (section 6.1).

    alexnet retrieve --workdir runs/paper                         # precision@6 and the paper's figure 4
    alexnet retrieve --workdir runs/paper --query photo.jpg       # what the training set has like it
    nearest(queries, gallery, k=6)                                               # in Python, on any vectors

What of the photos cannot be read is named on standard error and the rest goes on; the exit status is then 1.

precision@6 is the share of an image's six nearest in the gallery that are of its class, beside that of the six nearest
by raw pixels and that of six drawn at random. The gallery is the training set, as in the paper, unless told otherwise.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from alexnet_jax import UserError, metrics
from alexnet_jax.analysis import plots
from alexnet_jax.cli.commands import command
from alexnet_jax.data import photos
from alexnet_jax.data.batches import eval_batches
from alexnet_jax.data.host import in_threads
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Prepared, Split
from alexnet_jax.runs.run import Run, load_run

K = 6  # figure 4 shows six
ROWS = 100  # of a picture that can still be opened
SPARE = 10  # candidates beyond k that the device hands over
NOT_FINITE = "the vectors hold what is no number, or numbers whose squares pass float32"

# --- Search -----------------------------------------------------------------------------------------------------------


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int = K,
    *,
    own: np.ndarray | None = None,
    block: int | None = None,
    progress: tqdm | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of the gallery for each query by Euclidean distance, exactly.

    Args:
      queries, gallery: (q, d) and (n, d), float32 or uint8, finite; they stay in the host's memory.
      own: int32 (q,), where a query stands in the gallery itself, which it then does not find; -1: nowhere.
      block: rows of either that are multiplied at a time; default: 2**26 numbers' worth, 4096 at most.
      progress: a bar to advance by n.
    Returns: distances float32 (q, k), ascending, and indices int32 (q, k); of equal distances the lower index first.
    Raises UserError if the gallery holds fewer than k others, ValueError if a number is not finite or near 1e19.

    The device compares blocks by |a|^2 + |b|^2 - 2ab, a matrix product. Two large numbers' small difference loses its
    digits, so (1) vectors are taken from the queries' mean, which leaves distances alone and makes a and b short,
    (2) products are of full float32, not an accelerator's short default, (3) the device only names k + SPARE
    candidates, which are ranked by their true difference in float64, and (4) what rounding can have hidden is bounded:
    it moves the formula by no more than e (|a| + |b|)^2, so a row that was left out at value v has |a - b|^2 of at
    least (v - 8e |a|^2) / (1 + 2e), for |b| <= |a| + |a - b|. Queries whose k-th neighbour is not nearer than that are
    asked again, from their own mean, for four times the candidates.
    """
    n, d = gallery.shape
    own = np.full(len(queries), -1, np.int32) if own is None else np.asarray(own, np.int32)
    others = n - bool((own >= 0).any())
    if not 1 <= k <= others:
        raise UserError(f"{k} neighbours are asked for and the gallery has {others} images beside the query's own")
    block = block or max(1, min(4096, 2**26 // d))
    distances, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
    # Of a sum of d: 8 standard deviations, if roundings are independent (Higham and Mary, 2019).
    error = 8 * d**0.5 * 2**-24
    left, m = np.arange(len(queries)), min(n, k + SPARE)
    while len(left):
        asked = queries[left]
        centre = asked.mean(axis=0, dtype=np.float64).astype(np.float32)
        values, candidates = _candidates(asked, gallery, centre, own[left], m, block, progress)
        squares, lengths = _true_squares(asked, gallery, centre, candidates)
        squares[(candidates < 0) | (candidates == own[left, None])] = np.inf
        order = np.lexsort((candidates, squares))[:, :k]
        squares = np.take_along_axis(squares, order, axis=1)
        if not np.isfinite(squares).all():
            raise ValueError(NOT_FINITE)
        distances[left], indices[left] = np.sqrt(squares), np.take_along_axis(candidates, order, axis=1)
        reach = values[:, -1]
        certain = np.isfinite(reach) & (squares[:, -1] * (1 + 2 * error) <= reach - 8 * error * lengths)
        left, m, progress = left[~certain & (m < n)], min(n, 4 * m), None
    return distances, indices


def _candidates(queries, gallery, centre, own, m, block, progress) -> tuple[np.ndarray, np.ndarray]:
    """The m nearest by the device's formula: its values float32 (q, m), ascending, inf for none, and indices int32."""
    starts = range(0, len(queries), block)
    parts = [jax.device_put((queries[s : s + block], own[s : s + block])) for s in starts]
    best = [(jnp.full((len(o), m), jnp.inf), jnp.full((len(o), m), -1, jnp.int32)) for _, o in parts]
    for start in range(0, len(gallery), block):
        rows = _centred(gallery[start : start + block], centre)
        for i, (part, numbers) in enumerate(parts):
            best[i] = _merge(best[i], _centred(part, centre), rows, numbers, start, m)
        jax.block_until_ready(best)  # or all blocks of the gallery would queue up on the device
        if not np.isfinite(rows[1]).all():
            raise ValueError(NOT_FINITE)
        if progress is not None:
            progress.update(len(rows[1]))
    values, indices = (np.concatenate(arrays) for arrays in zip(*jax.device_get(best), strict=True))
    return values, indices


@jax.jit  # apart from _merge: XLA:CPU sums many times slower where it fuses the sum with the product
def _centred(rows, centre):
    rows = rows.astype(jnp.float32) - centre
    return rows, jnp.sum(rows * rows, axis=1)


@partial(jax.jit, static_argnames="m")
def _merge(best, queries, rows, own, start, m):
    """The m nearest of those so far and of a block; of equal ones those so far, whose indices are lower, come first."""
    (a, a_squared), (b, b_squared) = queries, rows
    squares = a_squared[:, None] + b_squared - 2 * jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    index = start + jnp.arange(len(b), dtype=jnp.int32)
    squares = jnp.where(index == own[:, None], jnp.inf, squares)
    values = jnp.concatenate([best[0], squares], axis=1)
    indices = jnp.concatenate([best[1], jnp.broadcast_to(index, squares.shape)], axis=1)
    values, at = lax.top_k(-values, m)
    return -values, jnp.take_along_axis(indices, at, axis=1)


def _true_squares(queries, gallery, centre, candidates) -> tuple[np.ndarray, np.ndarray]:
    """|a - b|^2 of the candidates, float64 (q, m), and |a|^2 of the queries from the centre, float64 (q,)."""

    def part(at):
        a = queries[at].astype(np.float64)
        difference = gallery[candidates[at]] - a[:, None]
        return np.square(difference, out=difference).sum(axis=2), np.square(a - centre).sum(axis=1)

    rows = max(1, 2**22 // (candidates.shape[1] * queries.shape[1]))  # at a time: 32 MB a thread
    parts = in_threads(part, [slice(start, start + rows) for start in range(0, len(queries), rows)])
    squares, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return squares, lengths


def precision(indices: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """The share of each query's neighbours, `indices` (q, k), that are of its class: float64 (q,)."""
    return (gallery_labels[indices] == labels[:, None]).mean(axis=1)


# --- A run's images ---------------------------------------------------------------------------------------------------


def features(run: Run, images: np.ndarray, layer: str = "fc7") -> np.ndarray:
    """A layer's activations for images uint8 (n, size, size, 3), flat: float32 (n, d).

    Raises UserError if there is no such layer, or if the network gives what is no number.
    """
    n, size, found = len(images), run.config.evaluation.batch_size, []
    fill = np.zeros((-n % size, *images.shape[1:]), np.uint8)  # whole batches alone: each other size would be compiled
    images = np.concatenate([images, fill]) if len(fill) else images
    for start in range(0, n, size):
        activations = run(images[start : start + size])[1]
        if layer not in activations:
            raise UserError(f"the network has no layer {layer}: its layers are {', '.join(activations)}")
        found.append(np.asarray(activations[layer]).astype(np.float32).reshape(size, -1))
    found = np.concatenate(found)[:n]
    if not np.isfinite(found).all():
        raise UserError(f"{layer} of {run.workdir} has values that are no numbers: its training diverged")
    return found


def describe(run: Run, split: Split, layer: str = "fc7", pixels: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """All of a split: `features` float32 (n, d), and the centre crops' pixels uint8 (n, 3 * crop^2) or None.

    Raises UserError as `features` does, and if this machine's memory cannot hold them.
    """
    n, crop, size = len(split), run.config.data.crop, run.config.evaluation.batch_size
    at, found, crops = (split.size - crop) // 2, None, None
    with metrics.bar(n, f"{layer} of {split.name}") as progress:
        for start, batch in zip(range(0, n, size), eval_batches(split, size), strict=True):
            images = batch["image"][: n - start]  # without what fills up the last batch
            rows = features(run, images, layer)
            if found is None:
                found, crops = _room(n, rows.shape[1], 3 * crop**2 if pixels else 0)
            found[start : start + size] = rows
            if pixels:
                crops[start : start + size] = images[:, at : at + crop, at : at + crop].reshape(len(images), -1)
            progress.update(len(images))
    return found, crops if pixels else None


def _room(n: int, numbers: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    needed, there = n * (4 * numbers + pixels), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * there:
        hint = "choose a layer of fewer numbers" + (", or leave the pixels out with --no-pixels" if pixels else "")
        raise UserError(
            f"{n:,} images of {numbers:,} float32 and {pixels:,} bytes are {needed / 1e9:.0f} GB, more than this "
            f"machine's {there / 1e9:.0f} GB hold: {hint}"
        )
    return np.empty((n, numbers), np.float32), np.empty((n, pixels), np.uint8)


def pick(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` images at equal steps through the images sorted by class, so evenly over classes: int64 indices."""
    order = np.argsort(labels, kind="stable")
    return order[np.linspace(0, len(order), 2 * min(count, len(order)) + 1)[1::2].astype(int)]


def draw(images: np.ndarray, names: Sequence[str], indices: np.ndarray, labels: np.ndarray | None,
         gallery: Split, classes: Sequence[str], path: str | Path) -> Path:  # fmt: skip
    """Draws queries and their neighbours, `indices` (q, k) in the gallery; labels: the queries', None if unknown."""
    hits = gallery.images(indices.ravel()).reshape(*indices.shape, *images.shape[1:])
    found = gallery.labels[indices]
    same = None if labels is None else found == np.asarray(labels)[:, None]
    return plots.neighbours(images, names, hits, [[classes[i] for i in row] for row in found], same, path)


def draw_run(run: Run, prepared: Prepared, path: str | Path, queries: int = 5) -> Path:
    """Draws the right half of figure 4: validation images and their nearest in the training set by fc7."""
    split, chosen = prepared.evaluation, pick(prepared.evaluation.labels, queries)
    images, labels = split.images(chosen), split.labels[chosen]
    own = chosen if split.name == prepared.train.name else None
    gallery = describe(run, prepared.train, pixels=False)[0]
    _, indices = nearest(features(run, images), gallery, own=own)
    return draw(images, [run.classes[i] for i in labels], indices, labels, prepared.train, run.classes, path)


# --- The command line -------------------------------------------------------------------------------------------------


def measure(run: Run, queries: Split, gallery: Split, layer: str, pixels: bool) -> tuple[dict, np.ndarray]:
    """precision@6 of a split in a gallery, by class and over all images, and how fast it was found.

    Returns: what --json prints, and the neighbours by `layer`, int32 (q, 6).
    """
    same = queries.name == gallery.name
    asked = describe(run, queries, layer, pixels)
    given = asked if same else describe(run, gallery, layer, pixels)
    own = np.arange(len(queries)) if same else None
    shares, speed, found = {}, {}, {}
    for name, a, b in zip((layer, "pixels"), asked, given, strict=True):
        if a is not None:
            with metrics.bar(len(gallery), f"search by {name}") as progress:
                start = time.perf_counter()
                found[name] = nearest(a, b, own=own, progress=progress)[1]
                speed[name] = round(len(queries) / (time.perf_counter() - start), 1)
            shares[name] = precision(found[name], queries.labels, gallery.labels)
    counts = np.bincount(gallery.labels, minlength=len(run.classes)) - same  # without the query's own
    shares["chance"] = (counts / (len(gallery) - same))[queries.labels]

    def mean(rows):
        return {"images": int(rows.sum())} | {name: round(float(s[rows].mean()), 4) for name, s in shares.items()}

    by_class = {name: queries.labels == i for i, name in enumerate(run.classes)}
    return {
        "workdir": str(run.workdir), "split": queries.name, "gallery": gallery.name, "gallery_images": len(gallery),
        "layer": layer, "k": K, "precision": mean(np.ones(len(queries), bool)), "queries_per_second": speed,
        "classes": {name: mean(rows) for name, rows in by_class.items() if rows.any()},
    }, found[layer]  # fmt: skip


def table(result: dict) -> str:
    """What `measure` found as lines of text; of more than 20 classes the ten best and the ten worst."""
    rows = list(result["classes"].items())
    if len(rows) > 20:
        rows.sort(key=lambda row: -row[1][result["layer"]])
        rows = [*rows[:10], *rows[-10:]]
    columns = [name for name in result["precision"] if name != "images"]
    lines = [f"precision@{K} of {result['split']} in {result['gallery']} ({result['gallery_images']:,} images)"]
    lines.append(f"{'':22}{'images':>8}" + "".join(f"{name:>10}" for name in columns))
    for name, row in [*rows, ("all", result["precision"])]:
        lines.append(f"{plots.short(name):22}{row['images']:>8,}" + "".join(f"{row[c]:>10.1%}" for c in columns))
    speeds = (f"{speed:,.0f} images/s by {name}" for name, speed in result["queries_per_second"].items())
    return "\n".join([*lines, f"search: {', '.join(speeds)}"])


def find(run: Run, paths: Sequence[Path], gallery: Split, layer: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """The neighbours of photos in a gallery: what --json prints, the photos uint8, and the indices int32 (q, 6).

    Names on stderr what it cannot read. Raises UserError if that is all.
    """
    d, found = run.config.data, []
    for some, read in photos.batches(paths, d.size, min(len(paths), run.config.evaluation.batch_size), d.resize):
        found += zip(read, some, strict=False)  # without what fills up the last batch
    if not found:
        raise UserError("there was no photo to be read")
    paths, images = [path for path, _ in found], np.stack([image for _, image in found])
    asked = features(run, images, layer)
    distances, indices = nearest(asked, describe(run, gallery, layer, pixels=False)[0])

    def row(i, distance):
        return {"class": run.classes[gallery.labels[i]], "image": gallery.ids[i], "distance": round(float(distance), 4)}

    result = {"workdir": str(run.workdir), "gallery": gallery.name, "layer": layer, "k": K, "photos": []}
    for path, near, at in zip(paths, distances, indices, strict=True):
        found = [row(i, distance) for i, distance in zip(at, near, strict=True)]
        result["photos"].append({"photo": str(path), "neighbours": found})
    return result, images, indices


def main(argv: list[str]) -> int:
    """The command line. Returns the exit status: 1 if something could not be read."""
    parser = argparse.ArgumentParser(prog="alexnet retrieve", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run")
    parser.add_argument(
        "--split", choices=("validation", "train"), default="validation", help="where queries come from"
    )
    parser.add_argument("--gallery", choices=("train", "validation"), default="train", help="where neighbours are")
    parser.add_argument("--layer", default="fc7")
    parser.add_argument("--query", nargs="+", help="photos, or folders of them, in place of the split's images")
    parser.add_argument("--queries", type=int, default=5, help="rows of the picture, evenly over classes")
    parser.add_argument("--no-pixels", action="store_true", help="leave out the search by raw pixels")
    parser.add_argument("--out", help="the picture; default: neighbours.png in the workdir")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    flags = parser.parse_args(argv)
    if not 1 <= flags.queries <= ROWS:
        raise UserError(f"--queries is {flags.queries} and must be from 1 to {ROWS}: a row of the picture each")
    paths, bare = photos.gather(flags.query or ())
    if flags.query and not paths:
        raise UserError("there was no photo to be read")
    run = load_run(flags.workdir)
    prepared = prepare(run.config.data)
    splits = {"train": prepared.train, "validation": prepared.evaluation}
    gallery, split = splits[flags.gallery], splits[flags.split]
    out = Path(flags.out or run.workdir / "neighbours.png")
    if paths:
        result, images, indices = find(run, paths, gallery, flags.layer)
        names, labels = [Path(photo["photo"]).stem for photo in result["photos"]], None
        lines = []
        for photo in result["photos"]:
            lines.append(photo["photo"])
            lines += [
                f"  {f['distance']:>12g}  {plots.short(f['class']):20}  {f['image']}" for f in photo["neighbours"]
            ]
        text = "\n".join(lines)
    else:
        result, indices = measure(run, split, gallery, flags.layer, not flags.no_pixels)
        chosen = pick(split.labels, flags.queries)
        images, labels, indices = split.images(chosen), split.labels[chosen], indices[chosen]
        names, text = [run.classes[i] for i in labels], table(result)
    shown = slice(20 if paths else None)  # a folder of photos would make a picture that nobody opens
    draw(images[shown], names[shown], indices[shown], labels, gallery, run.classes, out)
    result["picture"] = str(out)
    print(json.dumps(result) if flags.json else f"{text}\npicture: {out}")
    return int(bare > 0 or len(result.get("photos", ())) < len(paths))


if __name__ == "__main__":
    command(main)
