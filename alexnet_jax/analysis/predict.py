"""The most probable classes of photos.

    alexnet predict --workdir runs/mine photo.jpg folder/ [--views 10] [--top 3]
    alexnet predict --workdir runs/mine folder/ --json > predictions.jsonl

With --json each photo is a line on standard output: {"path", "top": [{"class", "name", "probability"}, ...]}; the class
is the data set's word, the name is for people. What cannot be read is named on standard error and the rest goes on; the
exit status is then 1.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alexnet_jax import UserError, metrics
from alexnet_jax.cli.commands import command
from alexnet_jax.data import photos
from alexnet_jax.data.classes import words
from alexnet_jax.evaluate import NO_NUMBERS, make_probabilities
from alexnet_jax.runs.run import Run, load_run

BATCH = 32
BAR = 20  # characters


def predict(run: Run, paths: Sequence[Path], views: int = 1) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields (path, probabilities float32 (classes,)) of photos, in order; names on stderr what it cannot read.

    views: 1, the centre crop, or 10, whose probabilities are averaged (section 4.1). Raises UserError if the network
    gives no numbers.
    """
    probabilities = make_probabilities(run.apply, run.config.data)
    d = run.config.data
    for images, read in photos.batches(paths, d.size, min(BATCH, len(paths)), d.resize):
        found = np.asarray(probabilities(run.params, run.statistics, images, views=views))[: len(read)]
        if not np.isfinite(found).all():
            raise UserError(f"step {run.step} of {run.workdir} {NO_NUMBERS}")
        yield from zip(read, found, strict=True)


def best(probabilities: np.ndarray, classes: list[str], top: int) -> list[tuple[str, float]]:
    """The `top` most probable classes, or all there are, with their probabilities, the first first."""
    return [(classes[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:top]]


def text(path: Path, found: list[tuple[str, float]]) -> str:
    """A photo's classes for reading: percentages, bars and names, of synsets in words."""
    lines = [str(path)]
    for name, share in zip(words([name for name, _ in found]), (share for _, share in found), strict=True):
        halves = round(2 * BAR * share)
        lines.append(f"  {share:7.2%}  {'█' * (halves // 2) + '▌' * (halves % 2):{BAR}}  {name}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The command line. Returns the exit status: 1 if something could not be read."""
    parser = argparse.ArgumentParser(prog="alexnet predict", description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="photos, or folders of them")
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--views", type=int, choices=(1, 10), default=1, help="crops of each (default: 1, the centre)")
    parser.add_argument("--top", type=int, default=5, help="how many classes (default: 5)")
    parser.add_argument("--json", action="store_true", help="a JSON object on a line for each photo")
    parser.add_argument("--which", choices=("best", "latest"), default="best", help="the checkpoint (default: best)")
    flags = parser.parse_args(argv)
    if flags.top < 1:
        raise UserError(f"--top is {flags.top} and must be 1 or more")
    run = load_run(flags.workdir, flags.which)
    (paths, bare), read = photos.gather(flags.images), 0
    quiet = len(paths) <= BATCH or not sys.stderr.isatty()
    with metrics.bar(len(paths), f"{flags.views} view(s)", quiet) as progress:
        for path, probabilities in predict(run, paths, flags.views):
            found = best(probabilities, run.classes, flags.top)
            if flags.json:
                names = words([name for name, _ in found])
                top = [
                    {"class": c, "name": name, "probability": share}
                    for (c, share), name in zip(found, names, strict=True)
                ]
                line = json.dumps({"path": str(path), "top": top})
            else:
                line = "\n" * (read > 0) + text(path, found)
            tqdm.write(line)  # above the progress line
            sys.stdout.flush()
            progress.update()
            read += 1
    if not read:
        raise UserError("there was no photo to be read")
    return int(bare > 0 or read < len(paths))


if __name__ == "__main__":
    command(main)
