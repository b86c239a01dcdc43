"""How fast images reach the network: the prepared path next to PyTorch's DataLoader with Pillow, on the same photos.

python -m experiments.pipeline [--data imagenette/160px-v2] [--seconds 10] [--repeats 5]

The three take turns, each on all cores, with batches of 128 crops of 224 x 224 in bytes and files in the page cache:
- prepared: train_batches, as in training;
- torch, source photos: decode, shorter side to 256, random crop, flip, as AlexNet is usually fed;
- torch, prepared images: the same on the prepared set's 256 x 256 JPEGs, which need no scaling.
Prints a table, then a line of JSON. It copies the training split into a temporary folder, so take a small set, which
TFDS must have in TFDS_DATA_DIR.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.cli.commands import command
from alexnet_jax.data.batches import train_batches
from alexnet_jax.data.host import cores
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Prepared
from alexnet_jax.data.sources import open_source
from configs import paper

BATCH, SIZE, CROP = 128, 256, 224
WARM_UP = 3.0  # seconds: PyTorch's queues fill, and tf.data settles how many threads each stage gets


class Photos:
    """The files of a folder as DataLoader takes them: item i is uint8 (3, 224, 224), made by Pillow."""

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


def write_photos(config, prepared: Prepared, source: Path, square: Path):
    """Writes each photo of the training split as it came into `source`, and as it was prepared into `square`."""
    kept = set(prepared.train.ids)  # without those too damaged to read
    photos = open_source(config, prepared.directory.parent).examples(config.train_split)
    photos = tqdm(photos, "copying photos", len(kept), unit=" images", dynamic_ncols=True)
    for index, (name, _, photo) in enumerate(photos):
        if name in kept:
            (source / f"{index:08}.jpg").write_bytes(photo.read_bytes() if isinstance(photo, Path) else photo)
    for index in range(len(prepared.train)):
        (square / f"{index:08}.jpg").write_bytes(prepared.train.read([index])[0])


def torch_batches(photos: Photos) -> Iterable:
    """PyTorch's batches without end, uint8 (128, 3, 224, 224), from one worker per core."""
    from torch.utils.data import DataLoader, RandomSampler

    endless = RandomSampler(photos, replacement=True, num_samples=10**9)
    # Spawned: a process that runs TensorFlow's and JAX's threads cannot be forked safely.
    return DataLoader(photos, BATCH, sampler=endless, num_workers=cores(), multiprocessing_context="spawn")


def speed(batches: Iterable, seconds: float) -> float:
    """Images per second once the first batch is there and the warm-up is over."""
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


def measure(args: argparse.Namespace):
    """Prepares, measures in turns and prints. Raises UserError if PyTorch or the data are missing."""
    if find_spec("torch") is None:
        raise UserError("this compares with PyTorch, which is not installed: pip install -e .[dev]")
    config = paper.get_config().data
    config.update(name=args.data, size=SIZE, crop=CROP)
    prepared = prepare(config)
    span = {"seed": 0, "batch_size": BATCH, "first_step": 0, "last_step": 10**9}
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as square:
        write_photos(config, prepared, Path(source), Path(square))
        paths = {
            "prepared": lambda: train_batches(prepared.train, config, **span),
            "torch, source photos": lambda: torch_batches(Photos(Path(source))),
            "torch, prepared images": lambda: torch_batches(Photos(Path(square))),
        }
        speeds = {name: [] for name in paths}
        for _ in tqdm(range(args.repeats), "measuring", unit=" rounds", dynamic_ncols=True):
            for name, batches in paths.items():
                speeds[name].append(round(speed(batches(), args.seconds) / cores(), 1))
        medians = {name: round(statistics.median(found), 1) for name, found in speeds.items()}
        ratios = {name: round(medians["prepared"] / median, 3) for name, median in medians.items()}
        print(f"{'images/s per core':30} {'median':>8} {'lowest':>8} {'highest':>8} {'prepared is':>12}")
        for name, found in speeds.items():
            print(f"{name:30} {medians[name]:8.0f} {min(found):8.0f} {max(found):8.0f} {ratios[name]:11.2f}x")
        print(json.dumps({"cores": cores(), "images_per_second_per_core": medians, "ratios": ratios}), flush=True)


def main(argv: list[str]):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pipeline", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="imagenette/160px-v2", help="a TFDS name on disk, glyphs, or a folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each path")
    flags = parser.parse_args(argv)
    if not 0 < flags.seconds < float("inf"):
        raise UserError(f"--seconds is {flags.seconds} and must be a number above 0")
    if flags.repeats < 1:
        raise UserError(f"--repeats is {flags.repeats} and must be 1 or more")
    measure(flags)


if __name__ == "__main__":
    command(main)
