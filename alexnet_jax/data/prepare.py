"""From a source of images to a prepared set on disk, once per data set, as the paper did (section 2).

    prepared = prepare(config.data)          # minutes the first time, then milliseconds
    prepared.train.images([0, 7])            # uint8 (2, 256, 256, 3)
    prepared.statistics["mean"]              # float32 (256, 256, 3), of the training split

A prepared set is a folder: per split the images as a TFRecord file of plain JPEGs, where each begins, the labels and
the names; the statistics of the training split; meta.json. It needs neither its source nor TensorFlow any more, and one
made from a TFDS set works anywhere once copied into the `prepared_dir` there. A set is known by what was asked for, not
by what the source held: delete its folder to prepare a changed source anew.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError, __version__
from alexnet_jax.data import photos
from alexnet_jax.data.records import Prepared, alone, decode, frame, in_threads, open_prepared, slug, starts
from alexnet_jax.data.sources import Source, check_classes, folder_of, open_source, some, warn

FORMAT = 1  # raise it when the same source would be prepared differently
MAX_SIZE = 4096  # pixels: the sums over images of more than this would not fit into memory
LOCKS = "*px-" + 10 * "[0-9a-f]" + ".lock"  # and nothing else: the folder may be anybody's


def prepare(config: ConfigDict, num_classes: int | None = None) -> Prepared:
    """Opens the prepared set of the config's `data` section (see configs/paper.py), preparing it first if need be.

    A source is the name of a TFDS set that is on disk, "glyphs", or the path of a folder: root/train/<class>/<image>
    with root/validation or root/val beside it, or root/<class>/<image>; without a validation folder a share
    `validation_fraction` of the images, picked by a hash of their names, is held out. Tiny-ImageNet is taken as it is.

    num_classes: of the network that is to learn from it, 0 if it has as many as the data; None: nothing learns from it,
    so that one class is enough, and some may have no images.

    Each image's shorter side is scaled to `size` (bicubic, antialiased) and its centre cut out, or, where `resize` is
    "warp", both sides are; it is kept as a JPEG of quality 95 with full colour resolution. Grey, palette and CMYK
    images become RGB; transparent ones are laid on white; EXIF orientation is ignored, as in the 2012 code. Damaged
    images are named and left out.

    Raises UserError, before anything is written: nothing by that name, not downloaded, no images, an unknown split,
    photos where they would not be found, other classes than the network's; or nowhere to write.
    """
    _check(config, num_classes)
    cache = _cache(config)
    root = folder_of(config.name)
    # Nothing of the machine goes into the name of a TFDS set, so that it can be carried.
    asked = [FORMAT, str(root or config.name), config.train_split, config.eval_split, config.size]
    asked.append(config.validation_fraction if root and "validation" in asked else None)
    asked += [config.resize] if config.resize != "shorter" else []
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    directory = cache / f"{slug(root.name if root else config.name)[:100]}-{config.size}px-{digest[:10]}"
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS reports what it finds and reads
    try:
        _tidy(cache)
        if not directory.exists():
            if root and Path(os.path.realpath(cache)).is_relative_to(os.path.realpath(root)):
                raise UserError(f"{cache} lies in the images' own folder: choose another --config.data.prepared_dir")
            _prepare_once(config, num_classes, cache, directory)
    except OSError as error:
        hint = "make room, or choose another folder with --config.data.prepared_dir=..."
        raise UserError(f"cannot prepare {config.name} in {cache} ({error}): {hint}") from error
    finally:
        logging.set_verbosity(verbosity)
    prepared = open_prepared(directory)
    check_classes(config.name, prepared.classes, num_classes)
    return prepared


def _check(config: ConfigDict, num_classes: int | None):
    """Raises UserError on fields that no data could fit."""
    for field in ("name", "train_split", "eval_split", "data_dir", "prepared_dir"):
        value = config[field]
        if value.splitlines() not in ([value], []) or "\0" in value:
            raise UserError(f"data.{field} is {value!r}: it must be one line of text")
    if not config.name:
        raise UserError("data.name is empty: give ~/photos, a folder of class folders, or the name of a TFDS set")
    if not 1 <= config.size <= MAX_SIZE:
        raise UserError(f"data.size is {config.size}: it must be from 1 to {MAX_SIZE}")
    if config.resize not in ("shorter", "warp"):
        raise UserError(f"data.resize is '{config.resize}': it must be shorter or warp")
    if num_classes is not None and slug(config.train_split) == slug(config.eval_split):
        raise UserError(
            f"data.train_split '{config.train_split}' and data.eval_split '{config.eval_split}' are one: the error "
            "would be that of images it learns from"
        )


def _cache(config: ConfigDict) -> Path:
    """The folder of the prepared sets."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "alexnet_jax")
    cache = os.path.expanduser(config.prepared_dir or default)
    if cache.startswith("~"):
        raise UserError(f"{cache} is nobody's home: choose a folder with --config.data.prepared_dir=...")
    return Path(cache).absolute()


# ---------------------------------------------------------------- preparing


def _prepare_once(config: ConfigDict, num_classes: int | None, cache: Path, directory: Path):
    """Prepares into a sibling folder that takes its name when all is on disk; other processes wait meanwhile."""
    source = open_source(config, cache, num_classes)  # nothing is written for one that will not do
    cache.mkdir(parents=True, exist_ok=True)

    def waits():
        tqdm.write(f"waiting for another process to prepare {config.name} in {cache}", file=sys.stderr)

    with alone(Path(f"{directory}.lock"), waits):
        if directory.exists():
            return
        partial = Path(f"{directory}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        partial.mkdir()
        try:
            _write_set(config, source, partial, num_classes is not None)
            for path in (*partial.iterdir(), partial):
                _sync(path)
            partial.rename(directory)
            _sync(cache)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _tidy(cache: Path):
    """Removes what killed processes left of other sets: nobody holds their locks any more."""
    for lock in cache.glob(LOCKS):
        with contextlib.suppress(OSError), alone(lock):
            shutil.rmtree(lock.with_suffix(".partial"), ignore_errors=True)


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_set(config: ConfigDict, source: Source, folder: Path, learns: bool):
    libraries = {"alexnet_jax": __version__, "numpy": np.__version__, "Pillow": Image.__version__}
    meta = {
        "name": config.name, "version": source.version, "size": config.size, "classes": source.classes, "splits": {},
        "train_split": config.train_split, "eval_split": config.eval_split, "format": FORMAT, "libraries": libraries,
    }  # fmt: skip
    for split in source.counts:
        strict = learns and split == config.train_split
        meta["splits"][split], statistics = _write_split(config, source, split, folder, strict)
        if split == config.train_split:
            np.savez(folder / "statistics.npz", **statistics)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _write_split(config: ConfigDict, source: Source, split: str, folder: Path, strict: bool) -> tuple[dict, dict]:
    """Writes a split's files. Returns its entry in meta.json and its statistics.

    Raises UserError if no image can be read, or, where it is `strict`, none of a class.
    """
    lengths, labels, ids, damaged, lost, slivers, pixels, products = [], [], [], {}, set(), [], 0, 0
    stem = folder / slug(split)
    examples = source.examples(split)
    chunks = iter(lambda: list(itertools.islice(examples, 16)), [])
    prepared = in_threads(functools.partial(_prepare_chunk, size=config.size, resize=config.resize), chunks)
    settings = {"total": source.counts[split], "unit": " images", "dynamic_ncols": True}
    with tqdm(desc=f"preparing {config.name} {split}", **settings) as bar, open(f"{stem}.tfrecord", "wb") as file:
        for rows, chunk_pixels, chunk_products in prepared:
            pixels, products = pixels + chunk_pixels, products + chunk_products
            bar.update(len(rows))
            for name, label, record, reason, sliver in rows:
                if not 0 <= label < len(source.classes):
                    raise UserError(f"split '{split}' of {config.name} has images without a label, such as {name}")
                if reason:
                    damaged[name] = reason
                    lost.add(label)
                    tqdm.write(f"left out {name} of {split}, which is damaged: {reason}", file=sys.stderr)
                    continue
                if sliver:
                    slivers.append(name)
                file.write(record)
                lengths.append(len(record) - 16)
                labels.append(label)
                ids.append(name.replace("\n", "\\n"))
    if len(labels) + len(damaged) != source.counts[split]:
        found = f"{len(labels) + len(damaged):,} images where there should be {source.counts[split]:,}"
        raise UserError(f"split '{split}' of {config.name} has {found}: its files are cut short")
    if damaged:
        tqdm.write(f"left out {len(damaged)} damaged images of {source.counts[split]} in {split}", file=sys.stderr)
    if not labels:
        raise UserError(f"split '{split}' of {config.name} has no image that is not damaged")
    if lost := {source.classes[label] for label in lost - set(labels)}:
        said = f"all photos of {len(lost)} classes in {split} are damaged ({some(lost)})"
        if strict:
            raise UserError(f"{said}: mend them, or take these classes out of {config.name}")
        warn(said)
    if slivers:
        warn(
            f"{len(slivers)} photos of {split} have a side of less than {photos.MIN_SIDE} pixels, or one of more than "
            f"{photos.MAX_ASPECT} times the other, and show next to nothing in a square: {some(slivers)}"
        )
    lengths = np.array(lengths, np.int64)
    np.savez(f"{stem}.npz", offsets=starts(lengths), lengths=lengths, labels=np.array(labels, np.int32))
    with open(f"{stem}.ids.txt", "w", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        lines.writelines(f"{name}\n" for name in ids)
    return {"count": len(labels), "damaged": damaged}, _statistics(len(labels), pixels, products)


def _prepare_chunk(examples: list, size: int, resize: str) -> tuple[list, np.ndarray, np.ndarray]:
    """Returns rows and the sums of pixels (size, size, 3) and RGB products (3, 3).

    A row is (id, label, record, why damaged, whether there is little to see).

    The sums are of integers, so they do not depend on the order in which they are added.
    """
    rows, pixels, products = [], np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64)
    for name, label, encoded in examples:
        try:
            image = photos.opened(encoded)
            sliver = photos.is_sliver(image.size)
            jpeg = _to_jpeg(image, size, resize)
        except Exception as error:  # Pillow raises nearly anything on broken files
            rows.append((name, label, b"", photos.why(error), False))
            continue
        rows.append((name, label, frame(jpeg), "", sliver))
        stored = decode(jpeg)  # the statistics are of what training sees
        pixels += stored
        colours = stored.reshape(-1, 3).astype(np.float64)
        products += (colours.T @ colours).astype(np.int64)  # below 2**53, so exact
    return rows, pixels, products


def _to_jpeg(image: Image.Image, size: int, resize: str) -> bytes:
    buffer = io.BytesIO()
    photos.square(image, size, resize=resize).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _statistics(count: int, pixels: np.ndarray, products: np.ndarray) -> dict[str, np.ndarray]:
    """Mean image, mean colour, and the principal components of RGB (columns of vectors) with their deviations."""
    n = count * pixels.shape[0] * pixels.shape[1]
    total = pixels.sum((0, 1)).astype(object)  # Python's integers: these products pass 2**63
    covariance = (n * products.astype(object) - np.outer(total, total)) / n**2
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    stdevs = np.sqrt(values.clip(0))
    arrays = {"mean": pixels / count, "channel_mean": total / n, "stdevs": stdevs, "vectors": vectors}
    return {name: array.astype(np.float32) for name, array in arrays.items()}
