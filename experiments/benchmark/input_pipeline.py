"""How fast images reach the network: both forms of prepared data, and PyTorch's DataLoader on the same photos.

The candidates take turns, each on all cores, with batches of 128 crops of 224 x 224 in bytes and the files in the page
cache:
- JPEG, raw: train_batches, as in training, on prepared sets of both forms (data.stored);
- torch, source photos: Pillow decodes, scales the shorter side to 256, crops at random and flips, as is usual for
  AlexNet;
- torch, JPEG: the same on the prepared 256 x 256 JPEGs, which need no scaling;
- torch, raw: NumPy crops and flips the prepared raw images, whose file is mapped into memory.
DataLoader's images keep their channels last, as ours do, which saves it a copy.

Prints what is measured, what ImageNet would take in each form and how many cores would feed a fast GPU. The training
split is prepared twice and copied into a temporary folder, so choose a small set. A set of TFDS must be in
TFDS_DATA_DIR already.
"""

import math
import random
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.data.batches import cut, train_batches
from alexnet_jax.data.host import cores
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import AFTER, BEFORE, STORED, Prepared
from alexnet_jax.data.sources import open_source
from configs import paper

BATCH, SIZE, CROP = 128, 256, 224
WARM_UP = 3.0  # seconds in which PyTorch's queues fill and tf.data chooses the number of threads of each stage
REPEATS = 5
IMAGENET = 1_281_167 + 50_000  # training and validation images of ILSVRC 2012
GOAL = 32_000  # images/s: ours, to feed a fast GPU
Candidates = dict[str, Callable[[], Iterable]]  # by name: a function that starts a stream of batches


class Photos:
    """The files of a folder for DataLoader: item i is uint8 (224, 224, 3), made by Pillow."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        import torch

        image = Image.open(self.paths[index]).convert("RGB")
        shorter = min(image.size)
        if shorter != SIZE:
            image = image.resize([round(side * SIZE / shorter) for side in image.size], Image.Resampling.BICUBIC)
        x, y = (random.randint(0, side - CROP) for side in image.size)
        image = image.crop((x, y, x + CROP, y + CROP))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image))


class Rows:
    """A file of raw images for DataLoader: item i is uint8 (224, 224, 3), made by NumPy."""

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count
        self.images: np.ndarray | None = None  # mapped by each worker: pickled, it would be read whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        import torch

        if self.images is None:
            row = np.dtype([("head", f"V{BEFORE}"), ("image", "u1", (SIZE, SIZE, 3)), ("tail", f"V{AFTER}")])
            self.images = np.asarray(np.memmap(self.path, row, "r"))["image"]
        out = np.empty((CROP, CROP, 3), np.uint8)
        at = [random.randint(0, SIZE - CROP) for _ in range(2)]
        cut(self.images[index], at, random.random() < 0.5, out)
        return torch.from_numpy(out)


def write_photos(config: ConfigDict, prepared: Prepared, source: Path, square: Path):
    """Writes each photo of the training split to `source` as it came, and to `square` as it was prepared."""
    kept = set(prepared.train.ids)  # without photos that are too damaged to read
    photos = open_source(config, prepared.directory.parent).examples(config.train_split)
    photos = tqdm(photos, "copying photos", len(kept), unit=" images", dynamic_ncols=True)
    for index, (name, _, photo) in enumerate(photos):
        if name in kept:
            (source / f"{index:08}.jpg").write_bytes(photo.read_bytes() if isinstance(photo, Path) else photo)
    for index in range(len(prepared.train)):
        (square / f"{index:08}.jpg").write_bytes(prepared.train.read([index])[0])


def torch_batches(photos: Photos | Rows) -> Iterable:
    """An endless stream of PyTorch's batches, uint8 (128, 224, 224, 3), from one worker per core."""
    from torch.utils.data import DataLoader, RandomSampler

    endless = RandomSampler(photos, replacement=True, num_samples=10**9)
    # A process that runs TensorFlow's and JAX's threads cannot be forked safely.
    return DataLoader(photos, BATCH, sampler=endless, num_workers=cores(), multiprocessing_context="spawn")


def speed(batches: Iterable, seconds: float) -> float:
    """Images per second after the first batch and the warm-up."""
    batches, count = iter(batches), 0
    next(batches)
    start = time.perf_counter()
    while time.perf_counter() < start + WARM_UP:
        next(batches)
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        next(batches)
        count += BATCH
    return count / spent


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet benchmark input`."""
    group = parser.add_argument_group("input")
    says = "a TFDS name on disk, glyphs, or a folder (default: imagenette/160px-v2)"
    group.add_argument("--data", default="imagenette/160px-v2", metavar="NAME", help=says)
    says = "length of each measurement (default: 10)"
    group.add_argument("--seconds", type=float, default=10.0, metavar="S", help=says)


def measure(flags: Namespace) -> dict[str, Any]:
    """Prepares, measures in turns, prints a table and returns its numbers.

    Raises UserError if PyTorch or the data are missing.
    """
    if not 0.1 <= flags.seconds < float("inf"):
        raise UserError(f"--seconds is {flags.seconds} and must be a number from 0.1 on")
    if find_spec("torch") is None:
        raise UserError("this compares with PyTorch, which is not installed: pip install -e .[dev]")
    sets, configs = {}, {}
    for form in STORED:
        configs[form] = paper.get_config().data
        configs[form].update(name=flags.data, size=SIZE, crop=CROP, stored=form)
        sets[form] = prepare(configs[form])
    raw = sets["raw"]
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as square:
        write_photos(configs["jpeg"], sets["jpeg"], Path(source), Path(square))
        candidates: Candidates = {
            "JPEG": lambda: ours(sets["jpeg"], configs["jpeg"]),
            "raw": lambda: ours(raw, configs["raw"]),
            "torch, source photos": lambda: torch_batches(Photos(Path(source))),
            "torch, JPEG": lambda: torch_batches(Photos(Path(square))),
            "torch, raw": lambda: torch_batches(Rows(Path(raw.train.file.name), len(raw.train))),
        }
        speeds = take_turns(candidates, flags.seconds, flags.repeats or REPEATS)
    bytes_per_image = {form: int(made.train.lengths.mean()) + BEFORE + AFTER for form, made in sets.items()}
    return report(speeds, bytes_per_image, flags.data)


def ours(prepared: Prepared, config: ConfigDict) -> Iterable:
    """The batches of a training run on a prepared set."""
    return train_batches(prepared.train, config, seed=0, batch_size=BATCH, first_step=0, last_step=10**9)


def take_turns(candidates: Candidates, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Images per second and core of each candidate, in turns, so that other work on the machine slows them all."""
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(repeats), "measuring", unit=" rounds", dynamic_ncols=True):
        for name, batches in candidates.items():
            speeds[name].append(round(speed(batches(), seconds) / cores(), 1))
    return speeds


def report(speeds: dict[str, list[float]], bytes_per_image: dict[str, int], name: str) -> dict[str, Any]:
    """Prints the tables and returns their numbers.

    Args:
      speeds: images per second and core of each candidate.
      bytes_per_image: on disk, of the training images of the set called `name`, in each form.
    """
    medians = {candidate: round(statistics.median(found), 1) for candidate, found in speeds.items()}
    needed = {candidate: math.ceil(GOAL / median) for candidate, median in medians.items()}
    print(f"{'images/s per core':22} {'median':>8} {'lowest':>8} {'highest':>8}   cores for {GOAL:,} images/s")
    for candidate, found in speeds.items():
        low, middle, high = min(found), medians[candidate], max(found)
        print(f"{candidate:22} {middle:8,.0f} {low:8,.0f} {high:8,.0f} {needed[candidate]:12}")
    pairs = [("raw", "JPEG"), ("JPEG", "torch, source photos"), ("JPEG", "torch, JPEG"), ("raw", "torch, raw")]
    ratios = {f"{a} / {b}": round(medians[a] / medians[b], 2) for a, b in pairs}
    print(*(f"{pair}: {ratio:.2f}" for pair, ratio in ratios.items()), sep="\n")
    gigabytes = {form: round(IMAGENET * each / 1e9, 1) for form, each in bytes_per_image.items()}
    print(f"bytes per image, the mean of {name}, and what {IMAGENET:,} images of ImageNet take at that:")
    for form, each in bytes_per_image.items():
        print(f"{form:22} {each:8,} bytes {gigabytes[form]:8} GB")
    return {
        "cores": cores(),
        "images_per_second_per_core": medians,
        "cores_needed": needed,
        "ratios": ratios,
        "bytes_per_image": bytes_per_image,
        "imagenet_gigabytes": gigabytes,
    }
