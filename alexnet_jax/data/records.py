"""Prepared sets on disk: what reads and frames them.

    prepared = open_prepared(directory)      # a folder that prepare.py made
    prepared.train.images([0, 7])            # uint8 (2, 256, 256, 3)

Needs neither the images' source nor TensorFlow.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split, at random access from any thread."""

    name: str
    size: int
    labels: np.ndarray  # int32 (n,)
    ids: list[str]  # the source's names
    offsets: np.ndarray  # int64 (n,): where in the file each JPEG begins
    lengths: np.ndarray  # int64 (n,)
    file: BinaryIO

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Iterable[int]) -> list[bytes]:
        """Returns the JPEGs at the indices. Raises UserError if the file is damaged there, be it by a bit."""
        records = [os.pread(self.file.fileno(), self.lengths[i] + 16, self.offsets[i] - 12) for i in indices]
        jpegs = [record[12:-4] for record in records]
        if any(frame(jpeg) != record for jpeg, record in zip(jpegs, records, strict=True)):
            raise self.damaged()
        return jpegs

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 (size, size, 3). Raises UserError if the file is damaged there."""
        [jpeg] = self.read([index])
        try:
            return decode(jpeg)
        except (OSError, SyntaxError, ValueError) as error:
            raise self.damaged() from error

    def images(self, indices: Iterable[int] | None = None, progress: bool = False) -> np.ndarray:
        """Returns the images at the indices, or all, uint8 (n, size, size, 3), decoded on all cores."""
        indices = range(len(self)) if indices is None else list(indices)
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        decoded = in_threads(self.image, indices)
        settings = {"unit": " images", "dynamic_ncols": True, "disable": not progress}
        for row, image in enumerate(tqdm(decoded, f"reading {self.name}", len(indices), **settings)):
            images[row] = image
        return images

    def damaged(self) -> UserError:
        """Returns the error to raise when an image does not decode."""
        return _damaged(Path(self.file.name).parent)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared set: all that training and evaluation know of their data."""

    directory: Path
    classes: list[str]
    statistics: dict[str, np.ndarray]  # float32: mean (size, size, 3), channel_mean (3,), stdevs (3,), vectors (3, 3)
    train: Split
    evaluation: Split


def open_prepared(directory: Path) -> Prepared:
    """Opens the prepared set in a folder.

    Raises UserError if it may not be read, or if files are missing, cut short or not as prepare.py writes them; what is
    wrong within an image shows when it is read.
    """
    try:
        meta = json.loads((directory / "meta.json").read_text())
        size, classes = meta["size"], meta["classes"]
        _require(isinstance(size, int) and isinstance(classes, list) and all(isinstance(c, str) for c in classes))
        shapes = {"mean": (size, size, 3), "channel_mean": (3,), "stdevs": (3,), "vectors": (3, 3)}
        statistics = _arrays(directory / "statistics.npz", {name: (np.float32, s) for name, s in shapes.items()})
        _require(all(np.isfinite(array).all() for array in statistics.values()))
        train, evaluation = (_open_split(directory, meta, meta[role]) for role in ("train_split", "eval_split"))
    except PermissionError as error:
        hint = "make it yours, or choose another folder with --config.data.prepared_dir=..."
        raise UserError(f"the prepared set {directory} cannot be read ({error.strerror}): {hint}") from error
    except Exception as error:  # NumPy and zipfile raise nearly anything on bytes that are none of theirs
        raise _damaged(directory) from error
    return Prepared(directory, classes, statistics, train, evaluation)


def in_threads(function: Callable, items: Iterable, ahead: int = 0) -> Iterator:
    """Yields function(item) in the items' order, computed on all cores, `ahead` of them or more in advance.

    Closing the iterator early stops the threads.
    """
    pool, waiting = ThreadPoolExecutor(cores()), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > max(ahead, 2 * cores()):  # bounded, so that memory is
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def alone(path: Path, busy: Callable[[], object] | None = None) -> Iterator[BinaryIO]:
    """Makes the file `path`, empty, and holds it, one process at a time; removes it at the end, unless it was renamed.

    What a killed process left under that name is taken over: the lock ended with it. Where another holds it, `busy` is
    called, and what it raises is raised; else one waits. Without `busy` that is BlockingIOError.
    """
    while True:
        with contextlib.ExitStack() as held:
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: SIM115
            held.callback(close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy is None:
                    raise
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):  # its holder removed it while we waited
                continue
            try:
                file.truncate()
                yield file
            finally:
                if _is_at(path, file):
                    path.unlink()
            return


def close(file: BinaryIO):
    """Closes a file that nobody will read: what a full disk would not take of it does not matter."""
    with contextlib.suppress(OSError):
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def tensorflow():
    """Returns TensorFlow, kept off the accelerators, whose memory JAX needs. Raises UserError if it is missing."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"this needs TensorFlow ({error}); sets prepared before and data.on_device do not") from error
    with contextlib.suppress(RuntimeError):  # the caller has used it already: too late
        tf.config.set_visible_devices([], "GPU")
    tf.get_logger().setLevel("ERROR")  # TFDS calls what TensorFlow deprecates
    return tf


def decode(jpeg: bytes) -> np.ndarray:
    """Returns a prepared image, uint8 (size, size, 3), read-only."""
    return np.asarray(Image.open(io.BytesIO(jpeg), formats=("JPEG",)))


def frame(data: bytes) -> bytes:
    """Returns a TFRecord, made without TensorFlow: length, its checksum, the data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def slug(name: str) -> str:
    """Returns the name as it stands in names of files."""
    return re.sub(r"[^\w.-]", "_", name)


def _checksum(data: bytes) -> bytes:
    """The CRC-32C, masked as TFRecord asks: a checksum of data that hold checksums would be weak."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _damaged(directory: Path) -> UserError:
    return UserError(f"the prepared set {directory} is damaged: delete that folder and it is prepared anew")


def _open_split(directory: Path, meta: dict, name: str) -> Split:
    stem, n = directory / slug(name), meta["splits"][name]["count"]
    _require(isinstance(n, int) and n > 0)
    index = _arrays(
        f"{stem}.npz", {"offsets": (np.int64, (n,)), "lengths": (np.int64, (n,)), "labels": (np.int32, (n,))}
    )
    with open(f"{stem}.ids.txt", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        *ids, rest = lines.read().split("\n")
    _require(len(ids) == n and not rest)
    labels, lengths = index["labels"], index["lengths"]
    _require(labels.min() >= 0 and labels.max() < len(meta["classes"]))
    _require(lengths.min() > 0 and np.array_equal(index["offsets"], starts(lengths)))
    _require(os.path.getsize(f"{stem}.tfrecord") == index["offsets"][-1] + lengths[-1] + 4)
    file = open(f"{stem}.tfrecord", "rb", buffering=0)  # noqa: SIM115 - stays open as long as the Split
    return Split(name, meta["size"], ids=ids, file=file, **index)


def starts(lengths: np.ndarray) -> np.ndarray:
    """Where in a file of records data of these lengths begin, int64 (n,): each has 12 bytes before and 4 behind it."""
    return np.cumsum(lengths + 16) - lengths - 4


def _arrays(path: str | Path, expected: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The arrays of a .npz. Raises ValueError where they are not of the expected names, {name: (dtype, shape)}."""
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    _require({name: (array.dtype, array.shape) for name, array in found.items()} == expected)
    return found


def _require(holds: bool):
    if not holds:
        raise ValueError("this is not what prepare.py writes")
