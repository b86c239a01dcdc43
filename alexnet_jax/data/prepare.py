"""From a source of images to a prepared set on disk, once per data set, as the paper did (section 2).

    prepared = prepare(config.data)          # minutes the first time, then milliseconds
    prepared.train.images([0, 7])            # uint8 (2, 256, 256, 3)
    prepared.statistics["mean"]              # float32 (256, 256, 3), of the training split

A prepared set is a folder. For each split it has the images as a TFRecord file, of plain JPEGs or of pixels, an index
of where each one begins, the labels and the names; then the statistics of the training split, and meta.json. It
requires neither its source nor TensorFlow any more, and one made from a TFDS set works on any machine once copied into
the `prepared_dir` there. A set is known by the settings it was made with, not by what the source contained: delete its
folder to prepare a changed source again.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError, __version__, may_pass
from alexnet_jax.data import photos
from alexnet_jax.data.host import in_threads
from alexnet_jax.data.records import (
    AFTER,
    ANOTHER_FOLDER,
    BEFORE,
    META,
    Prepared,
    decode,
    frame,
    open_prepared,
    raw_length,
    starts,
)
from alexnet_jax.data.sources import Example, Source, folder_of, has_more, open_source, refuse_classes, some, warn
from alexnet_jax.files import alone, cache_folder, expanded, slug

FORMAT = 1  # increase it when the same source would be prepared differently
MAX_SIZE = 4096  # pixels: the sums over larger images would not fit into memory
CHUNK = 16  # images that a thread prepares at a time
LOCKS = "*px-" + 10 * "[0-9a-f]" + ".lock"  # and no other files: the folder may have other users


def prepare(config: ConfigDict, num_classes: int | None = None) -> Prepared:
    """Opens the prepared set of the config's `data` section, preparing it first if it does not exist yet.

    A source is the name of a TFDS set that is on disk, "glyphs", or the path of a folder: root/train/<class>/<image>
    with root/validation, root/val or root/valid beside it, or root/<class>/<image>. Without a validation folder the
    share `validation_fraction` of the images, picked by a hash of their names, is held out. Tiny-ImageNet is taken as
    it is. Photos that are added to a folder later are not used, and a warning says so.

    Each image's shorter side is scaled to `size` (bicubic, antialiased) and its centre cut out; if `resize` is "warp",
    both sides are scaled. It is stored as a JPEG of quality 95 with full colour resolution or, if `stored` is "raw",
    uncompressed: larger, and faster to read. These are two sets, whose pixels and statistics differ by what JPEG loses.
    Grey, palette and CMYK images become RGB, transparent ones are laid on white, and EXIF orientation is ignored, as in
    the 2012 code, except that of TIFF. Damaged images are reported and left out.

    Args:
      config: the `data` section of a config that has passed config.check.
      num_classes: of the network that is to learn from the set; 0 if it has as many as the data. None if nothing learns
        from it: then one class is enough, and some classes may have no images.
    Raises UserError, before anything is written, if the source does not exist, is not downloaded, has no images, no
      such split or photos in the wrong places, if the classes are not the network's, or if a raw set does not fit on
      the disk; if the disk refuses a write; or if a network is to learn from images that its error is measured on.
    """
    _refuse_nonsense(config, num_classes)
    cache = _cache(config)
    root = folder_of(config.name)
    directory = cache / _folder_name(config, root)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS logs what it finds and reads
    try:
        _tidy(cache)
        if not directory.exists():
            if root and Path(os.path.realpath(cache)).is_relative_to(os.path.realpath(root)):
                raise UserError(f"{cache} is inside the images' own folder: choose {ANOTHER_FOLDER}")
            _prepare_once(config, num_classes, cache, directory)
        elif root:
            _warn_of_changes(root, directory)
    except OSError as error:
        hint = f"make room, or choose {ANOTHER_FOLDER}"
        raise UserError(f"cannot prepare {config.name} in {cache} ({error}): {hint}") from error
    finally:
        logging.set_verbosity(verbosity)
    prepared = open_prepared(directory)
    refuse_classes(config.name, prepared.classes, num_classes)
    if num_classes is not None and not root:
        _refuse_shared_images(config, prepared)
    return prepared


def _refuse_shared_images(config: ConfigDict, prepared: Prepared) -> None:
    """Raises UserError if the two splits of a TFDS set share images, as train and train[90%:] do."""
    train, evaluation = (set(re.findall(r"[A-Za-z_]\w*", s)) for s in (config.train_split, config.eval_split))
    if not train & evaluation:  # ImageNet has a million names to compare
        return
    names = [set(zip(split.ids, split.labels.tolist(), strict=True)) for split in (prepared.train, prepared.evaluation)]
    if shared := len(names[0] & names[1]):
        raise UserError(
            f"data.train_split '{config.train_split}' and data.eval_split '{config.eval_split}' share {shared} images: "
            "the error would be measured on images that it learns from"
        )


def _warn_of_changes(root: Path, directory: Path) -> None:
    """Says if photos were added after a folder was prepared; it may also be gone, or unreadable by now."""
    with contextlib.suppress(OSError):
        if has_more(root, since=(directory / META).stat().st_mtime):
            warn(
                f"{root} has photos that were added since it was prepared: to use them, delete {directory} and train "
                "in a new --workdir"
            )


def _refuse_nonsense(config: ConfigDict, num_classes: int | None) -> None:
    """Raises UserError on what config.check does not see: a name from a flag, and a split that is both of the two."""
    if config.name.splitlines() != [config.name] or "\0" in config.name:
        raise UserError(f"data.name is {config.name!r}: give a folder of class folders, or the name of a TFDS set")
    if num_classes is not None and slug(config.train_split) == slug(config.eval_split):
        raise UserError(
            f"data.train_split '{config.train_split}' and data.eval_split '{config.eval_split}' are the same: the "
            "error would be measured on the images that it learns from"
        )


def _cache(config: ConfigDict) -> Path:
    """The folder of the prepared sets. Raises UserError if it is in a home folder that does not exist."""
    return (expanded(config.prepared_dir) if config.prepared_dir else cache_folder()).absolute()


def _folder_name(config: ConfigDict, root: Path | None) -> str:
    """The name of a set's folder, which differs wherever its content would.

    For a TFDS set nothing in it depends on the machine, so that the folder can be copied to another one.
    """
    made_with = [FORMAT, str(root or config.name), config.train_split, config.eval_split, config.size]
    may_hold_out = root and "validation" in (config.train_split, config.eval_split)
    made_with.append(config.validation_fraction if may_hold_out else None)
    if config.resize != "shorter":
        made_with.append(config.resize)
    label = slug(root.name if root else config.name)[:100]
    if config.stored != "jpeg":
        made_with.append(config.stored)
        label += f"-{config.stored}"
    digest = hashlib.sha256(json.dumps(made_with).encode()).hexdigest()
    return f"{label}-{config.size}px-{digest[:10]}"


# ---------------------------------------------------------------- a whole set or none


def _prepare_once(config: ConfigDict, num_classes: int | None, cache: Path, directory: Path) -> None:
    """Prepares into a sibling folder, renamed when everything is on disk. Other processes wait meanwhile."""
    source = open_source(config, cache, num_classes)  # before the first write: it refuses unsuitable sources
    cache.mkdir(parents=True, exist_ok=True)

    def waits():
        tqdm.write(f"waiting for another process to prepare {config.name} in {cache}", file=sys.stderr)

    with alone(Path(f"{directory}.lock"), waits):
        if directory.exists():
            return
        partial = Path(f"{directory}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        _refuse_small_disk(config, source, cache)
        partial.mkdir()
        try:
            _write_set(config, source, partial, learns=num_classes is not None)
            for path in (*partial.iterdir(), partial):
                _sync(path)
            partial.rename(directory)
            _sync(cache)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_small_disk(config: ConfigDict, source: Source, cache: Path) -> None:
    """Raises UserError if a raw set does not fit on the disk. How large JPEGs will be is not known beforehand."""
    if config.stored != "raw":
        return
    images = sum(source.counts.values())
    needed, free = images * (BEFORE + raw_length(config.size) + AFTER), shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"the {images:,} images of {config.name} take {needed / 1e9:,.1f} GB with data.stored=raw, and {cache} has "
            f"{free / 1e9:,.1f} GB free: make room, choose another folder with --config.data.prepared_dir=..., or "
            "prepare JPEGs with --config.data.stored=jpeg"
        )


def _tidy(cache: Path) -> None:
    """Removes what killed processes left of other sets: nobody holds their locks any more."""
    for lock in cache.glob(LOCKS):
        with contextlib.suppress(OSError), alone(lock):
            shutil.rmtree(lock.with_suffix(".partial"), ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the files of a set


def _write_set(config: ConfigDict, source: Source, folder: Path, learns: bool) -> None:
    splits = {}
    for split in source.counts:
        training = split == config.train_split
        splits[split], statistics = _write_split(config, source, split, folder, must_have_all=learns and training)
        if training:
            np.savez(folder / "statistics.npz", **statistics)
    libraries = {"alexnet_jax": __version__, "numpy": np.__version__, "Pillow": Image.__version__}
    meta = {
        "name": config.name,
        "version": source.version,
        "size": config.size,
        "stored": config.stored,
        "classes": source.classes,
        "splits": splits,
        "train_split": config.train_split,
        "eval_split": config.eval_split,
        "format": FORMAT,
        "libraries": libraries,
    }
    (folder / META).write_text(json.dumps(meta, indent=1))


def _write_split(
    config: ConfigDict, source: Source, split: str, folder: Path, must_have_all: bool
) -> tuple[dict, dict]:
    """Writes a split's files. Returns its entry in meta.json and its statistics (_statistics).

    Raises UserError if an image has no label, or if none can be read, or, where it must have all, none of a class.
    """
    stem = folder / slug(split)
    examples = source.examples(split)
    chunks = iter(lambda: list(itertools.islice(examples, CHUNK)), [])
    settings = {"size": config.size, "resize": config.resize, "stored": config.stored}
    prepared = in_threads(functools.partial(_prepare_chunk, **settings), chunks)
    whole: list[Row] = []
    damaged: list[Row] = []
    pixels, products = np.zeros((config.size, config.size, 3), np.int64), np.zeros((3, 3), np.int64)
    bar = tqdm(desc=f"preparing {config.name} {split}", total=source.counts[split], unit=" images", dynamic_ncols=True)
    with bar, contextlib.closing(prepared), open(f"{stem}.tfrecord", "wb") as file:
        for chunk in prepared:
            pixels += chunk.pixels
            products += chunk.products
            bar.update(len(chunk.rows))
            for row, record in zip(chunk.rows, chunk.records, strict=True):
                if not 0 <= row.label < len(source.classes):
                    raise UserError(f"split '{split}' of {config.name} has images without a label, such as {row.name}")
                if row.damage:
                    tqdm.write(f"left out {row.name} of {split}, which is damaged: {row.damage}", file=sys.stderr)
                    damaged.append(row)
                else:
                    file.write(record)
                    whole.append(row)
    _report(config.name, source, split, whole, damaged, must_have_all)
    lengths = np.array([row.length for row in whole], np.int64)
    labels = np.array([row.label for row in whole], np.int32)
    np.savez(f"{stem}.npz", offsets=starts(lengths), lengths=lengths, labels=labels)
    with open(f"{stem}.ids.txt", "w", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for row in whole:
            lines.write(row.name.replace("\n", "\\n") + "\n")
    entry = {"count": len(whole), "damaged": {row.name: row.damage for row in damaged}}
    return entry, _statistics(len(whole), pixels, products)


def _report(
    name: str, source: Source, split: str, whole: list["Row"], damaged: list["Row"], must_have_all: bool
) -> None:
    """Says what a split lacks. Raises UserError as _write_split does."""
    count = len(whole) + len(damaged)
    if count != source.counts[split]:
        found = f"{count:,} images instead of {source.counts[split]:,}"
        raise UserError(f"split '{split}' of {name} has {found}: its files are cut short")
    if damaged:
        tqdm.write(f"left out {len(damaged)} damaged images of {count} in {split}", file=sys.stderr)
    if not whole:
        raise UserError(f"split '{split}' of {name} has only damaged images")
    if lost := {source.classes[label] for label in {row.label for row in damaged} - {row.label for row in whole}}:
        said = f"all photos of {len(lost)} classes in {split} are damaged ({some(lost)})"
        if must_have_all:
            raise UserError(f"{said}: fix them, or remove these classes from {name}")
        warn(said)
    if slivers := [row.name for row in whole if row.sliver]:
        warn(
            f"{len(slivers)} photos of {split} have a side of less than {photos.MIN_SIDE} pixels, or one of more than "
            f"{photos.MAX_ASPECT} times the other, and show almost nothing in a square: {some(slivers)}"
        )


# ---------------------------------------------------------------- images


class Row(NamedTuple):
    """An image of a split."""

    name: str
    label: int
    length: int = 0  # bytes, as it is stored
    sliver: bool = False  # whether its square shows almost nothing
    damage: str = ""  # why it cannot be read, if it cannot


class Chunk(NamedTuple):
    """Prepared images: their rows and records, and the integer sums of their pixels and of the products of RGB.

    Sums of integers do not depend on the order in which they are added up.
    """

    rows: list[Row]
    records: list[bytes]  # b"" for a damaged image
    pixels: np.ndarray  # int64 (size, size, 3)
    products: np.ndarray  # int64 (3, 3)


def _prepare_chunk(examples: list[Example], size: int, resize: str, stored: str) -> Chunk:
    chunk = Chunk([], [], np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64))
    for name, label, encoded in examples:
        try:
            image = photos.opened(encoded)
            sliver = photos.is_sliver(image.size)
            data = (_to_raw if stored == "raw" else _to_jpeg)(image, size, resize)
        except PermissionError as error:
            raise UserError(f"{name} may not be read: make it readable, or remove it from the folder") from error
        except Exception as error:  # Pillow raises almost anything on broken files
            if may_pass(error):
                said = photos.why(error)
                raise UserError(
                    f"{name} cannot be read ({said}), which may pass: start the same command again"
                ) from error
            chunk.rows.append(Row(name, label, damage=photos.why(error)))
            chunk.records.append(b"")
            continue
        chunk.rows.append(Row(name, label, len(data), sliver))
        chunk.records.append(frame(data))
        # The statistics are those of the images that training sees.
        pixels = np.frombuffer(data, np.uint8).reshape(size, size, 3) if stored == "raw" else decode(data)
        chunk.pixels[:] += pixels
        colours = pixels.reshape(-1, 3).astype(np.float64)
        chunk.products[:] += (colours.T @ colours).astype(np.int64)  # below 2**53, so exact
    return chunk


def _to_jpeg(image: Image.Image, size: int, resize: str) -> bytes:
    buffer = io.BytesIO()
    photos.square(image, size, resize=resize).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _to_raw(image: Image.Image, size: int, resize: str) -> bytes:
    return photos.square(image, size, resize=resize).tobytes()


def _statistics(count: int, pixels: np.ndarray, products: np.ndarray) -> dict[str, np.ndarray]:
    """The mean image, the mean colour, and the principal components of RGB with their standard deviations.

    Args: the number of images; the sums of their pixels (size, size, 3) and of the products of their RGB (3, 3), int64.
    Returns: float32 mean (size, size, 3), channel_mean (3,), stdevs (3,), vectors (3, 3) with components as columns.
    """
    n = count * pixels.shape[0] * pixels.shape[1]
    total = pixels.sum((0, 1)).astype(object)  # Python's integers: these products exceed 2**63
    covariance = (n * products.astype(object) - np.outer(total, total)) / n**2
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    stdevs = np.sqrt(values.clip(0))
    arrays = {"mean": pixels / count, "channel_mean": total / n, "stdevs": stdevs, "vectors": vectors}
    return {name: array.astype(np.float32) for name, array in arrays.items()}
