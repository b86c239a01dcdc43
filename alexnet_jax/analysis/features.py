"""Activations of any layer, of photos or of a split, in one .npz.

    alexnet features --workdir runs/mine --images validation --layer fc7 --out fc7.npz
    alexnet features --workdir runs/mine --images ~/photos --layer pool5 --layer fc6 --out photos.npz

    with np.load("fc7.npz") as file:
        file["fc7"]      # float32 (n, 4096), of the centre crop; one array for each layer
        file["ids"]      # str (n,): the split's names, or the photos' paths
        file["labels"]   # int32 (n,) into file["classes"]; a photo's by its folder's name, -1 if that is no class

The file also says where it came from: workdir, step, config (JSON). It is written batch by batch and gets its name when
it is complete; until then it needs the space of the largest layer twice. Photos that cannot be read are named on
standard error and left out, and the exit status is then 1.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import zipfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from alexnet_jax import UserError, files, inference, metrics
from alexnet_jax.cli.commands import add_batch_size, add_devices, add_which, add_workdir, use_devices
from alexnet_jax.data import photos
from alexnet_jax.data.images import Images, PhotoImages, SplitImages
from alexnet_jax.runs.run import Run, data_of, load_run

SPLITS = ("validation", "train")
Rows = tuple[list[str], np.ndarray, dict[str, np.ndarray]]  # ids, labels int32 (n,), {layer: float32 (n, ...)}


def extract(run: Run, layers: Sequence[str], images: Images, batch_size: int) -> Iterator[Rows]:
    """Yields the Rows of each batch. Raises UserError if a layer is unknown, or contains NaN or infinity."""
    forward = inference.make_forward(run, layers=layers)
    for batch, found in inference.rows(run, forward, images, batch_size):
        yield batch.ids, batch.labels[: len(batch.ids)], found


def write(
    path: Path,
    layers: Sequence[str],
    rows: Iterable[Rows],
    about: dict[str, np.ndarray],
    progress: tqdm | None = None,
) -> int:
    """Writes the rows, and the arrays `about` beside them, to a .npz, with one batch in memory at a time.

    Returns: the number of images; if there are none it writes nothing.
    Raises UserError if the path cannot be written, or another process writes it. If anything is raised, here or in
    `rows`, the path stays as it was.
    """
    files.refuse_no_file(path)
    ids: list[str] = []
    labels: list[np.ndarray] = []
    shapes: dict[str, tuple[int, ...]] = {}
    with contextlib.ExitStack() as held:
        parts: dict[str, BinaryIO] = {}
        for name in layers:
            with files.writing(path):  # files without names: nothing is left of them, whatever happens
                parts[name] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
            held.callback(files.close, parts[name])
        for some_ids, some_labels, activations in rows:
            ids += some_ids
            labels.append(some_labels)
            shapes = {name: array.shape[1:] for name, array in activations.items()}
            with files.writing(path):
                for name, part in parts.items():
                    part.write(np.ascontiguousarray(activations[name], "<f4").data)
            if progress is not None:
                progress.update(len(some_ids))
        if not ids:
            return 0
        small = {"ids": np.array(ids), "labels": np.concatenate(labels).astype(np.int32)} | about
        with files.replacing(path) as partial, zipfile.ZipFile(partial, "w") as file:
            for name, part in parts.items():
                _add_part(file, name, (len(ids), *shapes[name]), part)
            for name, array in small.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return len(ids)


def _add_part(file: zipfile.ZipFile, name: str, shape: tuple[int, ...], part: BinaryIO) -> None:
    """Moves a layer's rows from their own file into the .npz."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        part.seek(0)
        shutil.copyfileobj(part, member, 2**20)
    part.close()  # which frees its space


def save(run: Run, layers: Sequence[str], images: Images, path: Path, batch_size: int | None = None) -> int:
    """Writes the layers' activations to a .npz; the top of this file says what it contains.

    batch_size: see inference.batch_size. Returns: the number of images, less than len(images) if photos could not be
    read. Raises UserError: an unknown layer, a batch that does not divide over the copies, no readable photo, no space,
    a path that cannot be written, NaN or infinity.
    """
    shapes = inference.layer_shapes(run, layers)
    size = inference.batch_size(run, len(images), batch_size)
    bytes_each = [4 * len(images) * int(np.prod(shape)) for shape in shapes.values()]
    needed = sum(bytes_each) + max(bytes_each)
    with files.writing(path):
        free = shutil.disk_usage(path.parent).free
    if free < needed:  # said now, not when the disk is full after hours
        raise UserError(
            f"cannot write {path}: it needs {needed:,} bytes while it is written, and the disk has {free:,} left"
        )
    about = {
        "classes": np.array(run.classes),
        "workdir": np.array(str(run.workdir)),
        "step": np.array(run.step),
        "config": np.array(run.config.to_json()),
    }
    with metrics.bar(len(images), ", ".join(layers)) as progress:
        count = write(path, layers, extract(run, layers, images, size), about, progress)
    if not count:
        raise UserError(f"none of the {len(images)} photos can be read: nothing was written")
    return count


def images_of(run: Run, name: str) -> Images:
    """The run's own split of this name, or the photos at this path. Raises UserError if there are none."""
    if name in SPLITS:
        prepared = data_of(run)
        return SplitImages(prepared.train if name == "train" else prepared.evaluation)
    if not os.path.lexists(os.path.expanduser(name)):
        raise UserError(f"there is no file or folder {name}; the run's own splits are {' and '.join(SPLITS)}")
    return PhotoImages(photos.find(name), run.config.data, run.classes)


def add_flags(parser: ArgumentParser) -> None:
    """The command's flags."""
    add_workdir(parser)
    parser.add_argument(
        "--images", required=True, help="a photo, a folder of photos, or the run's own split: validation or train"
    )
    parser.add_argument("--layer", action="append", required=True, help="such as fc7; give several for several arrays")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .npz")
    add_which(parser)
    add_devices(parser)
    add_batch_size(parser)


def main(flags: Namespace) -> int:
    """The command. Returns the exit status: 1 if a photo could not be read."""
    use_devices(flags.devices)
    run = load_run(flags.workdir, flags.which, *flags.devices)
    layers = list(dict.fromkeys(flags.layer))
    shapes = inference.layer_shapes(run, layers)  # checked before images are looked for
    images = images_of(run, flags.images)
    out = files.expanded(flags.out)
    count = save(run, layers, images, out, flags.batch_size)
    print(f"{out}: {count:,} images, step {run.step} of {run.workdir}")
    for name, shape in shapes.items():
        print(f"  {name:8} float32 {(count, *shape)}")
    if count < len(images):
        print(f"{len(images) - count:,} of {len(images):,} photos could not be read", file=sys.stderr)
        return 1
    return 0
