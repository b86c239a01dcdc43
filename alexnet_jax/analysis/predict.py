"""The most probable classes of photos.

    alexnet predict --workdir runs/mine photo.jpg folder/ [--views 10] [--top 3]
    alexnet predict --workdir runs/mine folder/ --json > predictions.jsonl

With --json each photo is a line on standard output: {"path", "top": [{"class", "name", "probability"}, ...]}. The class
is the data set's own name, the name is for people. Photos that cannot be read are named on standard error and left out,
and the exit status is then 1.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from alexnet_jax import UserError, inference, metrics
from alexnet_jax.cli.commands import add_batch_size, add_devices, add_json, add_which, add_workdir, use_devices
from alexnet_jax.data import photos
from alexnet_jax.data.classes import words
from alexnet_jax.data.images import Images, PhotoImages
from alexnet_jax.runs.run import Run, load_run

BAR = 20  # characters


def predict(
    run: Run, images: Images, views: int = 1, batch_size: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (id, probabilities float32 (classes,)) of every image, in order.

    views: 1, the centre crop, or 10, whose probabilities are averaged (section 4.1). batch_size: see
    inference.batch_size. Raises UserError if the network gives NaN or infinity.
    """
    forward = inference.make_forward(run)
    size = inference.batch_size(run, len(images), batch_size)
    for batch, found in inference.rows(run, forward, images, size, views):
        yield from zip(batch.ids, np.exp(found[inference.LOGS]), strict=True)


def best(probabilities: np.ndarray, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The `top` most probable classes, or all if there are fewer, with their probabilities, the most probable first."""
    return [(classes[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:top]]


def text(path: str, found: Sequence[tuple[str, float]]) -> str:
    """A photo's classes for people: percentages, bars and readable names."""
    lines = [path]
    for name, share in found:
        halves = round(2 * BAR * share)
        bar = "█" * (halves // 2)
        if halves % 2:
            bar += "▌"
        [readable] = words([name])
        lines.append(f"  {share:7.2%}  {bar:{BAR}}  {readable}")
    return "\n".join(lines)


def json_line(path: str, found: Sequence[tuple[str, float]]) -> str:
    """A photo's classes as one JSON object."""
    names = words([name for name, _ in found])
    top = [{"class": own, "name": name, "probability": share} for (own, share), name in zip(found, names, strict=True)]
    return json.dumps({"path": path, "top": top})


def add_flags(parser: ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="photos, or folders of them")
    add_workdir(parser)
    parser.add_argument("--views", type=int, choices=(1, 10), default=1, help="crops of each photo (default: 1)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many classes (default: 5)")
    add_which(parser)
    add_devices(parser)
    add_batch_size(parser)
    add_json(parser)


def main(flags: Namespace) -> int:
    """The command. Returns the exit status: 1 if a photo could not be read."""
    if flags.top < 1:
        raise UserError(f"--top is {flags.top} and must be 1 or more")
    use_devices(flags.devices)
    run = load_run(flags.workdir, flags.which, *flags.devices)
    paths, bare = photos.gather(flags.images)
    images, read = PhotoImages(paths, run.config.data, run.classes), 0
    size = inference.batch_size(run, max(len(paths), 1), flags.batch_size)
    quiet = len(paths) <= size or not sys.stderr.isatty()
    with metrics.bar(len(paths), f"{flags.views} view(s)", quiet) as progress:
        for path, probabilities in predict(run, images, flags.views, size):
            found = best(probabilities, run.classes, flags.top)
            if flags.json:
                line = json_line(path, found)
            else:
                blank = "\n" if read else ""
                line = blank + text(path, found)
            tqdm.write(line)  # above the progress line
            sys.stdout.flush()
            progress.update()
            read += 1
    if not read:
        raise UserError(photos.NONE)
    return int(bare > 0 or read < len(paths))
