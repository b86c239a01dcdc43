"""How fast images reach the network: prepared data compared with PyTorch's DataLoader and Pillow on the same photos.

The candidates take turns, each on all cores, with batches of 128 crops of 224 x 224 in bytes and the files in the page
cache:
- prepared: train_batches, as in training;
- torch, source photos: decode, scale the shorter side to 256, random crop, flip, as is usual for AlexNet;
- torch, prepared images: the same on the prepared set's 256 x 256 JPEGs, which need no scaling.
Prints a table, then a line of JSON. The training split is copied into a temporary folder, so choose a small set. TFDS
must already have it in TFDS_DATA_DIR.
"""

import json
import random
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.data.batches import train_batches
from alexnet_jax.data.host import cores
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Prepared
from alexnet_jax.data.sources import open_source
from configs import paper

BATCH, SIZE, CROP = 128, 256, 224
WARM_UP = 3.0  # seconds in which PyTorch's queues fill and tf.data chooses the number of threads of each stage
REPEATS = 5
Candidates = dict[str, Callable[[], Iterable]]  # by name: a function that starts a stream of batches


class Photos:
    """The files of a folder for DataLoader: item i is uint8 (3, 224, 224), made by Pillow."""

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
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


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


def torch_batches(photos: Photos) -> Iterable:
    """An endless stream of PyTorch's batches, uint8 (128, 3, 224, 224), from one worker per core."""
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


def measure(flags: Namespace):
    """Prepares, measures in turns and prints. Raises UserError if PyTorch or the data are missing."""
    if not 0 < flags.seconds < float("inf"):
        raise UserError(f"--seconds is {flags.seconds} and must be a number above 0")
    if find_spec("torch") is None:
        raise UserError("this compares with PyTorch, which is not installed: pip install -e .[dev]")
    config = paper.get_config().data
    config.update(name=flags.data, size=SIZE, crop=CROP)
    prepared = prepare(config)
    span = {"seed": 0, "batch_size": BATCH, "first_step": 0, "last_step": 10**9}
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as square:
        write_photos(config, prepared, Path(source), Path(square))
        candidates: Candidates = {
            "prepared": lambda: train_batches(prepared.train, config, **span),
            "torch, source photos": lambda: torch_batches(Photos(Path(source))),
            "torch, prepared images": lambda: torch_batches(Photos(Path(square))),
        }
        report(take_turns(candidates, flags.seconds, flags.repeats or REPEATS))


def take_turns(candidates: Candidates, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Images per second and core of each candidate, in turns, so that other work on the machine slows them all."""
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(repeats), "measuring", unit=" rounds", dynamic_ncols=True):
        for name, batches in candidates.items():
            speeds[name].append(round(speed(batches(), seconds) / cores(), 1))
    return speeds


def report(speeds: dict[str, list[float]]):
    """Prints the table, with how many times as fast the prepared data are, and the JSON."""
    medians = {name: round(statistics.median(found), 1) for name, found in speeds.items()}
    ratios = {name: round(medians["prepared"] / median, 3) for name, median in medians.items()}
    print(f"{'images/s per core':30} {'median':>8} {'lowest':>8} {'highest':>8} {'prepared is':>12}")
    for name, found in speeds.items():
        print(f"{name:30} {medians[name]:8.0f} {min(found):8.0f} {max(found):8.0f} {ratios[name]:11.2f}x")
    print(json.dumps({"cores": cores(), "images_per_second_per_core": medians, "ratios": ratios}), flush=True)
