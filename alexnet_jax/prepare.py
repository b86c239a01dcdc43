"""From a source of images to a prepared set on disk, once per data set, as the paper did (section 2).

    prepared = prepare(config.data)          # minutes the first time, then milliseconds
    prepared.train.images([0, 7])            # uint8 (2, 256, 256, 3)
    prepared.statistics["mean"]              # float32 (256, 256, 3), of the training split

A prepared set is a folder: per split the images as a TFRecord file of plain JPEGs, where each begins, the labels and
the names; the statistics of the training split; meta.json. It needs neither its source nor TensorFlow any more, and one
made from a TFDS set works anywhere once copied into the `prepared_dir` there. A set is known by what was asked for, not
by what the source held: delete its folder to prepare a changed source anew.
"""

import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError, __version__, one_line, photos
from alexnet_jax.records import Prepared, decode, frame, in_threads, open_prepared, slug, tensorflow

FORMAT = 1  # raise it when the same source would be prepared differently


def prepare(config: ConfigDict) -> Prepared:
    """Opens the prepared set of the config's `data` section (see configs/paper.py), preparing it first if need be.

    A source is the name of a TFDS set that is on disk, "glyphs", or the path of a folder: root/train/<class>/<image>
    with root/validation or root/val beside it, or root/<class>/<image>; without a validation folder a share
    `validation_fraction` of the images, picked by a hash of their names, is held out.

    Each image's shorter side is scaled to `size` (bicubic, antialiased) and its centre cut out, or, where `resize` is
    "warp", both sides are; it is kept as a JPEG of quality 95 with full colour resolution. Grey, palette and CMYK
    images become RGB; transparent ones are laid on white; EXIF orientation is ignored, as in the 2012 code. Damaged
    images are named and left out.

    Raises UserError: nothing by that name, not downloaded, no images, an unknown split, nowhere to write.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "alexnet_jax"
    cache = Path(config.prepared_dir or default).expanduser().absolute()
    root = _folder(config.name)
    if config.size < 1:
        raise UserError(f"data.size is {config.size}: it must be at least 1")
    if config.resize not in ("shorter", "warp"):
        raise UserError(f"data.resize is '{config.resize}': it must be shorter or warp")
    # Nothing of the machine goes into the name of a TFDS set, so that it can be carried.
    asked = [FORMAT, str(root or config.name), config.train_split, config.eval_split, config.size]
    asked.append(config.validation_fraction if root else None)
    asked += [config.resize] if config.resize != "shorter" else []
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    directory = cache / f"{slug(root.name if root else config.name)}-{config.size}px-{digest[:10]}"
    if not directory.exists():
        if root and cache.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{cache} lies inside the images' own folder: choose another --config.data.prepared_dir")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TFDS reports what it finds and reads
        try:
            _prepare_once(config, cache, directory)
        except OSError as error:
            hint = "choose another folder with --config.data.prepared_dir=..."
            raise UserError(f"cannot prepare {config.name} in {cache} ({error}): {hint}") from error
        finally:
            logging.set_verbosity(verbosity)
    return open_prepared(directory)


def _folder(name: str) -> Path | None:
    """The folder a source's name means, or None for a TFDS name."""
    is_path = name.startswith(("/", "./", "../", "~")) or Path(name).is_dir()
    return Path(os.path.abspath(os.path.expanduser(name))) if is_path else None


# ---------------------------------------------------------------- sources


class Source(NamedTuple):
    """Where images come from."""

    version: str
    classes: list[str]
    counts: dict[str, int]  # by split
    examples: Callable[[str], Iterator[tuple[str, int, bytes | Path]]]  # split -> (id, label, encoded image) ...


def open_source(config: ConfigDict, cache: Path) -> Source:
    """Returns the source of the config's `data` section; glyphs are drawn in the folder `cache` if need be.

    Raises UserError: nothing by that name, not downloaded, no images, an unknown split.
    """
    root = _folder(config.name)
    return _open_folder(config, root) if root else _open_tfds(config, cache)


def _open_folder(config: ConfigDict, root: Path) -> Source:
    if not root.is_dir():
        raise UserError(f"there is no folder {root} (data.name): give a folder of class folders, or a TFDS name")
    folders = _subfolders(root)
    if "train" not in folders:
        folders = {"train": root}
    if "val" in folders:
        folders.setdefault("validation", folders["val"])
    held_out = "validation" not in folders
    folders.setdefault("validation", folders["train"])
    classes = list(_subfolders(folders["train"]))
    files = {}
    for split in (config.train_split, config.eval_split):
        if split not in folders:
            raise UserError(f"{root} has no split '{split}': its splits are {', '.join(folders)}, without slices")
        if strange := _subfolders(folders[split]).keys() - set(classes):
            raise UserError(f"{folders[split]} has classes that {folders['train']} lacks: {', '.join(sorted(strange))}")
        files[split] = [
            (f"{name}/{path.name}", classes.index(name), path)
            for name, folder in _subfolders(folders[split]).items()
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in photos.SUFFIXES
        ]
        if held_out and split in ("train", "validation"):
            chosen = split == "validation"
            files[split] = [f for f in files[split] if (_chance(f[0]) < config.validation_fraction) == chosen]
        if not files[split]:
            hint = ", or change data.validation_fraction" if held_out else ""
            raise UserError(
                f"no images for split '{split}' in {folders[split]}: it takes a folder for each class{hint}"
            )
    return Source("", classes, {split: len(found) for split, found in files.items()}, lambda split: iter(files[split]))


def _subfolders(folder: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _chance(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that new files do not move others between splits."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:4], "big") / 2**32


def _open_tfds(config: ConfigDict, cache: Path) -> Source:
    tf = tensorflow()
    import tensorflow_datasets as tfds

    builder = _tfds_builder(tfds, config, cache)
    features = builder.info.features
    if not {"image", "label"} <= set(getattr(features, "keys", dict)()) or not hasattr(features["label"], "names"):
        raise UserError(f"{config.name} is no set of labelled images: TFDS gives it neither image and label")
    counts = {}
    for split in (config.train_split, config.eval_split):
        try:
            counts[split] = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            here = ", ".join(builder.info.splits)
            raise UserError(
                f"{config.name} has no split '{split}': its splits are {here}, or slices of them"
            ) from error

    def examples(split):
        # Files are not shuffled, so the order is always the same.
        read, skip = tfds.ReadConfig(add_tfds_id=True), {"image": tfds.decode.SkipDecoding()}
        try:
            for example in tfds.as_numpy(builder.as_dataset(split=split, decoders=skip, read_config=read)):
                name = example.get("file_name", example["tfds_id"])
                yield name.decode(), int(example["label"]), example["image"]
        except tf.errors.OpError as error:
            raise UserError(f"TFDS cannot read {config.name} from {builder.data_path}: {one_line(error)}") from error

    version = f"{builder.info.full_name}, TFDS {tfds.__version__}"
    return Source(version, list(features["label"].names), counts, examples)


def _tfds_builder(tfds, config: ConfigDict, cache: Path):
    """The builder of a set that is on disk; nothing here looks at the network."""
    name, _, variant = config.name.partition("/")
    if name == "glyphs":
        from alexnet_jax import glyphs

        return glyphs.builder(variant or "full", str(cache / "tfds"))
    without = "--config configs/paper.py:glyphs runs without any download"
    try:
        if re.match(r"\w+:[^\d*]", config.name):  # such as huggingface:mnist
            raise ValueError("other registers' sets come from the network")
        builder = tfds.builder(config.name, data_dir=config.data_dir or os.environ.get("TFDS_DATA_DIR") or None)
    except Exception as error:  # TFDS raises whatever the set's own code does
        reason = one_line(error).partition(" Available datasets")[0]
        raise UserError(
            f"no TFDS data set '{config.name}' ({reason}); a folder is given as ./folder; {without}"
        ) from error
    if builder.info.splits:
        return builder
    data_dir = builder.data_path.parents[builder.info.full_name.count("/")]
    call = f"tfds.builder('{config.name}', data_dir='{data_dir}').download_and_prepare()"
    how = f'run python -c "import tensorflow_datasets as tfds; {call}"'
    if name == "imagenet2012":
        tars = f"put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in {data_dir}/downloads/manual"
        how = f"{tars}, then: tfds build imagenet2012 --data_dir={data_dir}"
    raise UserError(f"{config.name} is not in {data_dir} (data.data_dir or $TFDS_DATA_DIR): {how}; {without}")


# ---------------------------------------------------------------- preparing


def _prepare_once(config: ConfigDict, cache: Path, directory: Path):
    """Prepares into a sibling folder that takes its name when all is on disk; other processes wait meanwhile."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(f"{directory}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for another process to prepare {config.name} in {cache}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            return
        partial = Path(f"{directory}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        source = open_source(config, cache)
        partial.mkdir()
        try:
            _write_set(config, source, partial)
            for path in (*partial.iterdir(), partial):
                _sync(path)
            partial.rename(directory)
            _sync(cache)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_set(config: ConfigDict, source: Source, folder: Path):
    libraries = {"alexnet_jax": __version__, "numpy": np.__version__, "Pillow": Image.__version__}
    meta = {
        "name": config.name, "version": source.version, "size": config.size, "classes": source.classes, "splits": {},
        "train_split": config.train_split, "eval_split": config.eval_split, "format": FORMAT, "libraries": libraries,
    }  # fmt: skip
    for split in source.counts:
        meta["splits"][split], statistics = _write_split(config, source, split, folder)
        if split == config.train_split:
            np.savez(folder / "statistics.npz", **statistics)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _write_split(config: ConfigDict, source: Source, split: str, folder: Path) -> tuple[dict, dict]:
    """Writes a split's files. Returns its entry in meta.json and its statistics."""
    lengths, labels, ids, damaged, pixels, products = [], [], [], {}, 0, 0
    stem = folder / slug(split)
    examples = source.examples(split)
    chunks = iter(lambda: list(itertools.islice(examples, 16)), [])
    prepared = in_threads(functools.partial(_prepare_chunk, size=config.size, resize=config.resize), chunks)
    settings = {"total": source.counts[split], "unit": " images", "dynamic_ncols": True}
    with tqdm(desc=f"preparing {config.name} {split}", **settings) as bar, open(f"{stem}.tfrecord", "wb") as file:
        for rows, chunk_pixels, chunk_products in prepared:
            pixels, products = pixels + chunk_pixels, products + chunk_products
            bar.update(len(rows))
            for name, label, record, reason in rows:
                if not 0 <= label < len(source.classes):
                    raise UserError(f"split '{split}' of {config.name} has images without a label, such as {name}")
                if reason:
                    damaged[name] = reason
                    tqdm.write(f"left out {name} of {split}, which is damaged: {reason}", file=sys.stderr)
                    continue
                file.write(record)
                lengths.append(len(record) - 16)
                labels.append(label)
                ids.append(name.replace("\n", "\\n"))
    if damaged:
        tqdm.write(f"left out {len(damaged)} damaged images of {source.counts[split]} in {split}", file=sys.stderr)
    if not labels:
        raise UserError(f"split '{split}' of {config.name} has no image that is not damaged")
    lengths = np.array(lengths, np.int64)
    offsets = np.cumsum(lengths + 16) - lengths - 4  # a record: 12 bytes, the JPEG, 4 bytes
    np.savez(f"{stem}.npz", offsets=offsets, lengths=lengths, labels=np.array(labels, np.int32))
    with open(f"{stem}.ids.txt", "w", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        lines.writelines(f"{name}\n" for name in ids)
    return {"count": len(labels), "damaged": damaged}, _statistics(len(labels), pixels, products)


def _prepare_chunk(examples: list, size: int, resize: str) -> tuple[list, np.ndarray, np.ndarray]:
    """Returns rows (id, label, record, why damaged) and the sums of pixels (size, size, 3) and RGB products (3, 3).

    The sums are of integers, so they do not depend on the order in which they are added.
    """
    rows, pixels, products = [], np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64)
    for name, label, encoded in examples:
        try:
            jpeg = _to_jpeg(encoded, size, resize)
        except Exception as error:  # Pillow raises nearly anything on broken files
            rows.append((name, label, b"", one_line(error)))
            continue
        rows.append((name, label, frame(jpeg), ""))
        stored = decode(jpeg)  # the statistics are of what training sees
        pixels += stored
        colours = stored.reshape(-1, 3).astype(np.float64)
        products += (colours.T @ colours).astype(np.int64)  # below 2**53, so exact
    return rows, pixels, products


def _to_jpeg(encoded: bytes | Path, size: int, resize: str) -> bytes:
    buffer = io.BytesIO()
    photos.square(encoded, size, resize=resize).save(buffer, "JPEG", quality=95, subsampling=0)
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
