"""Prepared sets on disk: opening them, reading their images, and the frame around each record.

    prepared = open_prepared(directory)      # a folder that prepare.py made
    prepared.train.images([0, 7])            # uint8 (2, 256, 256, 3)

This requires neither the images' source nor TensorFlow. prepare.py says what the files are. Images are stored as JPEGs
or as pixels ("raw"), in the same files otherwise. As all records of a raw file have one length, NumPy can map it too:

    row = np.dtype([("head", "V12"), ("image", "u1", (256, 256, 3)), ("tail", "V4")])
    np.memmap(directory / "train.tfrecord", row, "r")["image"]      # uint8 (n, 256, 256, 3), read as it is touched
"""

import dataclasses
import functools
import io
import json
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError, may_pass
from alexnet_jax.data.host import in_threads
from alexnet_jax.files import slug

META = "meta.json"  # of a prepared set, written last
STORED = ("jpeg", "raw")  # the forms in which images are stored
ANOTHER_FOLDER = "another folder with --config.data.prepared_dir=..., or, for a trained run, in its config.json"
BEFORE, AFTER = 12, 4  # bytes of a record around its data: the length and its checksum; the data's checksum


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split, stored as JPEGs. Any thread can read any image at any time."""

    name: str
    size: int
    labels: np.ndarray  # int32 (n,)
    ids: list[str]  # the source's names
    offsets: np.ndarray  # int64 (n,): the byte of the file where each image begins
    lengths: np.ndarray  # int64 (n,): bytes
    file: BinaryIO

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Iterable[int]) -> list[bytes]:
        """Returns the images at the indices, as stored. Raises UserError if even one bit of them changed on disk."""
        found = []
        for i in indices:
            record = os.pread(self.file.fileno(), BEFORE + self.lengths[i] + AFTER, self.offsets[i] - BEFORE)
            if not _is_whole(record, self.lengths[i]):
                raise self.damaged()
            found.append(record[BEFORE:-AFTER])
        return found

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 (size, size, 3). Raises UserError if the file is damaged there."""
        [jpeg] = self.read([index])
        try:
            return decode(jpeg)
        except (OSError, SyntaxError, ValueError) as error:
            raise self.damaged() from error

    def images(self, indices: Iterable[int] | None = None, progress: bool = False) -> np.ndarray:
        """Returns the images at the indices, or all of them, uint8 (n, size, size, 3), decoded on all cores.

        progress: show a progress bar. Raises UserError as `image` does.
        """
        chosen = range(len(self)) if indices is None else list(indices)
        images = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
        with tqdm(
            desc=f"reading {self.name}", total=len(chosen), unit=" images", dynamic_ncols=True, disable=not progress
        ) as bar:
            for row, image in enumerate(in_threads(self.image, chosen)):
                images[row] = image
                bar.update()
        return images

    def damaged(self) -> UserError:
        """Returns the error to raise when an image cannot be read."""
        return _damaged(Path(self.file.name).parent)


@dataclasses.dataclass(frozen=True)
class RawSplit(Split):
    """A split that is stored as pixels, in a file that is mapped into memory: reading an image copies its bytes.

    The system keeps as much of the file in memory as there is room for, and loads the rest as it is read.
    """

    memory: mmap.mmap  # the file

    def image(self, index: int) -> np.ndarray:
        """Returns a copy of one image, uint8 (size, size, 3). Raises UserError if the file is damaged there."""
        start, length = int(self.offsets[index]), int(self.lengths[index])
        # Copied before it is checked: the copy waits for memory without Python's lock, which the checksum holds.
        record = np.frombuffer(self.memory, np.uint8, BEFORE + length + AFTER, start - BEFORE).copy()
        if not _is_whole(record, length):
            raise self.damaged()
        return record[BEFORE:-AFTER].reshape(self.size, self.size, 3)

    def announce(self, indices: np.ndarray) -> None:
        """Asks the system to load the images at the indices from the disk, and returns at once.

        Otherwise each image would be loaded in several parts, one after the other, and much around it with it.
        """
        starts = self.offsets[indices] // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = self.offsets[indices] + self.lengths[indices] - starts
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            self.memory.madvise(mmap.MADV_WILLNEED, start, length)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared set: all that training and evaluation know about their data."""

    directory: Path
    classes: list[str]
    statistics: dict[str, np.ndarray]  # float32: mean (size, size, 3), channel_mean (3,), stdevs (3,), vectors (3, 3)
    train: Split
    evaluation: Split


def statistics_shapes(size: int) -> dict[str, tuple[int, ...]]:
    """The arrays that the network takes from its training images of this side, float32: their shapes by name."""
    return {"mean": (size, size, 3), "channel_mean": (3,), "stdevs": (3,), "vectors": (3, 3)}


def open_prepared(directory: Path) -> Prepared:
    """Opens the prepared set in a folder.

    Raises UserError if the folder cannot be read, or if files are missing, cut short or not as prepare.py writes them.
    Damage inside an image shows when that image is read.
    """
    try:
        meta = json.loads((directory / META).read_text())
        size, classes = meta["size"], meta["classes"]
        _require(isinstance(size, int) and isinstance(classes, list) and all(isinstance(c, str) for c in classes))
        wanted = {name: (np.float32, shape) for name, shape in statistics_shapes(size).items()}
        statistics = _arrays(directory / "statistics.npz", wanted)
        _require(all(np.isfinite(array).all() for array in statistics.values()))
        train, evaluation = (_open_split(directory, meta, meta[role]) for role in ("train_split", "eval_split"))
    except PermissionError as error:
        hint = f"change its permissions, or choose {ANOTHER_FOLDER}"
        raise UserError(f"the prepared set {directory} cannot be read ({error.strerror}): {hint}") from error
    except Exception as error:  # NumPy and zipfile raise almost anything on files that are not theirs
        if may_pass(error):
            raise
        raise _damaged(directory) from error
    return Prepared(directory, classes, statistics, train, evaluation)


def _open_split(directory: Path, meta: dict, name: str) -> Split:
    stem, count, size = directory / slug(name), meta["splits"][name]["count"], meta["size"]
    stored = meta.get("stored", "jpeg")  # sets older than the field are JPEGs
    _require(isinstance(count, int) and count > 0 and stored in STORED)
    kinds = {"offsets": np.int64, "lengths": np.int64, "labels": np.int32}
    index = _arrays(Path(f"{stem}.npz"), {array: (dtype, (count,)) for array, dtype in kinds.items()})
    with open(f"{stem}.ids.txt", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        *ids, rest = lines.read().split("\n")
    _require(len(ids) == count and not rest)
    labels, lengths, offsets = index["labels"], index["lengths"], index["offsets"]
    _require(labels.min() >= 0 and labels.max() < len(meta["classes"]))
    _require(lengths.min() > 0 and np.array_equal(offsets, starts(lengths)))
    _require(os.path.getsize(f"{stem}.tfrecord") == offsets[-1] + lengths[-1] + AFTER)
    file = open(f"{stem}.tfrecord", "rb", buffering=0)  # noqa: SIM115 - open as long as the Split
    if stored == "jpeg":
        return Split(name, size, labels, ids, offsets, lengths, file)
    _require(bool((lengths == raw_length(size)).all()))
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return RawSplit(name, size, labels, ids, offsets, lengths, file, memory)


def _arrays(path: Path, expected: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The arrays of a .npz. Raises ValueError unless they are as expected, {name: (dtype, shape)}."""
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    _require({name: (array.dtype, array.shape) for name, array in found.items()} == expected)
    return found


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("not what prepare.py writes")


def _damaged(directory: Path) -> UserError:
    return UserError(f"the prepared set {directory} is damaged: delete that folder and it is prepared again")


# ---------------------------------------------------------------- records


def decode(jpeg: bytes) -> np.ndarray:
    """Returns the image of a prepared JPEG, uint8 (size, size, 3), read-only."""
    return np.asarray(Image.open(io.BytesIO(jpeg), formats=("JPEG",)))


def raw_length(size: int) -> int:
    """Returns the bytes of a raw image, size x size."""
    return size * size * 3


def frame(data: bytes) -> bytes:
    """Returns the data as a TFRecord, made without TensorFlow: length, its checksum, the data, their checksum."""
    return _head(len(data)) + data + _checksum(data)


def _is_whole(record: bytes | np.ndarray, length: int) -> bool:
    """Whether a record is what `frame` makes of its data, of this length in bytes."""
    head, data, tail = record[:BEFORE], record[BEFORE:-AFTER], record[-AFTER:]
    return bytes(head) == _head(length) and bytes(tail) == _checksum(data)


@functools.lru_cache(maxsize=1)  # raw images all have one length
def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _checksum(packed)


def starts(lengths: np.ndarray) -> np.ndarray:
    """Returns where in a file of records data of these lengths (in bytes) begin, int64 (n,)."""
    ends = np.cumsum(BEFORE + lengths + AFTER)
    return ends - AFTER - lengths


def _checksum(data: bytes | np.ndarray) -> bytes:
    """The CRC-32C, masked as the TFRecord format requires: a CRC of data that contains CRCs would be weak."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
