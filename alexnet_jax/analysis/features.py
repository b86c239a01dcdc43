"""Activations of any layer, of photos or of a split, into one .npz.

    alexnet features --workdir runs/mine --images validation --layer fc7 --out fc7.npz
    alexnet features --workdir runs/mine --images ~/photos --layer pool5 --layer fc6 --out photos.npz

    with np.load("fc7.npz") as file:
        file["fc7"]      # float32 (n, 4096), of the centre crop; an array for each layer
        file["ids"]      # str (n,): the split's names, or the photos' paths
        file["labels"]   # int32 (n,) into file["classes"]; of a photo by its folder's name, -1 if that is no class

It also says what it came from: workdir, step, config (JSON). It is written as the images go by and takes its name when
it is whole; until then it needs the room of the largest layer twice. Photos that cannot be read are named on standard
error and left out, and the exit status is 1.
"""

import argparse
import contextlib
import functools
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from alexnet_jax import UserError, metrics, towers
from alexnet_jax.cli.commands import command
from alexnet_jax.data import augment, photos
from alexnet_jax.data.batches import eval_batches, filled
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Split
from alexnet_jax.files import alone, close
from alexnet_jax.runs.run import Run, load_run

SPLITS = ("validation", "train")


def shapes(run: Run, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of one image's activations. Raises UserError, listing the layers, if the network lacks one."""
    side = run.config.data.crop
    image = jax.ShapeDtypeStruct((run.mesh.shape[towers.DATA], side, side, 3), np.float32)
    there = jax.eval_shape(run.apply, run.params, image)[1]
    if unknown := [name for name in layers if name not in there]:
        raise UserError(f"the network has no layer {', '.join(unknown)}: it has {', '.join(there)}")
    return {name: there[name].shape[1:] for name in layers}


def batches(run: Run, source: Split | Sequence[Path], batch_size: int) -> Iterator[tuple]:
    """Yields (images uint8 (batch_size, size, size, 3), ids, labels int32); ids and labels without the padding."""
    if isinstance(source, Split):
        for start, batch in zip(range(0, len(source), batch_size), eval_batches(source, batch_size), strict=True):
            rows = slice(start, start + batch_size)
            yield batch["image"], source.ids[rows], source.labels[rows]
        return
    number = {name: i for i, name in enumerate(run.classes)}
    for images, paths in photos.batches(source, run.config.data.size, batch_size, run.config.data.resize):
        labels = [number.get(path.absolute().parent.name, -1) for path in paths]
        yield images, [str(path) for path in paths], np.array(labels, np.int32)


def extract(run: Run, layers: Sequence[str], images: Iterable[tuple]) -> Iterator[tuple]:
    """Yields (ids, labels, {layer: float32 (n, ...)}) for `batches`; only as much of the network runs as they need."""
    d = run.config.data

    @functools.partial(jax.jit, compiler_options=towers.compiler_options(run.mesh.devices.flat[0].platform))
    def compute(params, statistics, images):
        [crop] = augment.views(images, statistics, d, 1)
        activations = run.apply(params, crop)[1]
        return {name: activations[name] for name in layers}

    def fetch(ids, labels, found):
        return ids, labels, {name: np.asarray(a, np.float32)[: len(ids)] for name, a in found.items()}

    pending = None
    for batch, ids, labels in images:
        found = compute(run.params, run.statistics, towers.place(batch, towers.batch_sharding(run.mesh)))
        if pending:
            yield fetch(*pending)  # a batch late: the device never waits
        pending = ids, labels, found
    if pending:
        yield fetch(*pending)


def write(
    path: str | Path, layers: Sequence[str], rows: Iterable[tuple], about: dict[str, np.ndarray],
    progress: tqdm | None = None,
) -> int:  # fmt: skip
    """Writes what `extract` yields, and the arrays `about` beside it, into a .npz, one batch in memory at a time.

    Returns the number of images; of none it writes nothing. Raises UserError if the path cannot be written. Whatever
    is raised, here or in `rows`, leaves the path as it was.
    """
    path, ids, labels = Path(path), [], []
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():  # which the file would replace
        raise UserError(f"{path} is a device or a pipe: name a file")

    def busy():
        raise UserError(f"another process writes {path}: wait for it, or name another file")

    with contextlib.ExitStack() as held:
        parts = {}
        for name in layers:
            with _writing(path):  # a file without a name: nothing is left of it, whatever happens
                parts[name] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
            held.callback(close, parts[name])
        for some_ids, some_labels, activations in rows:
            ids += some_ids
            labels.append(some_labels)
            shape = {name: a.shape[1:] for name, a in activations.items()}
            with _writing(path):
                for name, part in parts.items():
                    part.write(np.ascontiguousarray(activations[name], "<f4"))
            if progress is not None:
                progress.update(len(some_ids))
        if not ids:
            return 0
        partial = Path(f"{path}.tmp")
        with _writing(path):
            whole = held.enter_context(alone(partial, busy))
        with _writing(path), zipfile.ZipFile(whole, "w") as file:
            for name, part in parts.items():
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), *shape[name])}
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    part.seek(0)
                    shutil.copyfileobj(part, member, 2**20)
                part.close()  # and its room is free
            small = {"ids": np.array(ids), "labels": np.concatenate(labels).astype(np.int32)} | about
            for name, array in small.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        with _writing(path):
            whole.flush()
            partial.replace(path)
    return len(ids)


@contextlib.contextmanager
def _writing(path: Path):
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path} ({reason}): name a file where there is room and you can write") from error


def save(run: Run, layers: Sequence[str], source: Split | Sequence[Path], path: str | Path, batch_size: int) -> int:
    """Writes the layers' activations on a split, or on photos, to a .npz (see the head of this file).

    Returns the number of images, less than len(source) if photos could not be read. Raises UserError: an unknown layer,
    a batch that does not divide over the copies, no readable photo, no room, a path that cannot be written.
    """
    copies = run.mesh.shape[towers.DATA]
    if batch_size < 1 or batch_size % copies:
        raise UserError(f"--batch_size={batch_size} must be a multiple of the {copies} data-parallel copies")
    batch_size = filled(batch_size, len(source), copies)
    sizes = [4 * len(source) * int(np.prod(shape)) for shape in shapes(run, layers).values()]
    needed = sum(sizes) + max(sizes)
    with _writing(path):
        free = shutil.disk_usage(Path(path).parent).free
    if free < needed:  # asked now, not when it is full after hours
        raise UserError(f"cannot write {path}: it takes {needed:,} bytes meanwhile, and the disk has {free:,} left")
    about = {
        "classes": np.array(run.classes),
        "workdir": np.array(str(run.workdir)),
        "step": np.array(run.step),
        "config": np.array(run.config.to_json()),
    }
    with metrics.bar(len(source), ", ".join(layers)) as progress:
        rows = extract(run, layers, batches(run, source, batch_size))
        count = write(path, layers, rows, about, progress)
    if not count:
        raise UserError(f"none of the {len(source)} photos can be read: nothing was written")
    return count


def main(argv: list[str]) -> int:
    """The command line. Returns the exit status: 1 if photos were left out."""
    parser = argparse.ArgumentParser(prog="alexnet features", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument(
        "--images", required=True, help="a folder of photos, a photo, or the run's own split: validation or train"
    )
    parser.add_argument("--layer", action="append", required=True, help="such as fc7; several give several arrays")
    parser.add_argument("--out", required=True, help="the .npz")
    parser.add_argument("--which", choices=("best", "latest"), default="best", help="the checkpoint (default: best)")
    parser.add_argument("--devices", default="1x1", help="data x tower, such as 1x2 (default: 1x1)")
    parser.add_argument("--batch_size", type=int, default=128, help="images at a time (default: 128)")
    flags = parser.parse_args(argv)
    data, tower = towers.wanted(flags.devices)
    if jax.config.jax_num_cpu_devices < data * tower != 1:
        jax.config.update("jax_num_cpu_devices", data * tower)
    run = load_run(flags.workdir, flags.which, data, tower)
    layers = list(dict.fromkeys(flags.layer))
    there = shapes(run, layers)  # before the images are looked for
    if flags.images in SPLITS:
        prepared = prepare(run.config.data)
        source = prepared.train if flags.images == "train" else prepared.evaluation
    elif not os.path.lexists(os.path.expanduser(flags.images)):
        raise UserError(f"there is no file or folder {flags.images}; the run's own splits are {' and '.join(SPLITS)}")
    else:
        source = photos.find(flags.images)
    out = Path(os.path.expanduser(flags.out))
    count = save(run, layers, source, out, flags.batch_size)
    print(f"{out}: {count:,} images, step {run.step} of {run.workdir}")
    for name, shape in there.items():
        print(f"  {name:8} float32 {(count, *shape)}")
    if count < len(source):
        print(f"{len(source) - count:,} of {len(source):,} photos could not be read", file=sys.stderr)
    return int(count < len(source))


if __name__ == "__main__":
    command(main, "interrupted: nothing was written")
