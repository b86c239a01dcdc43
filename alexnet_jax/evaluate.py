"""Top-1 and top-5 error over a whole split: centre crop, ten views, or dense; of one run or of several together.

    alexnet evaluate --workdir runs/paper --views 10
    alexnet evaluate --workdir runs/paper --dense           # slide over whole images; --dense 320: over larger ones
    alexnet evaluate --workdir runs/a --workdir runs/b      # the mean of their probabilities (table 2)
    alexnet evaluate --workdir runs/caffe --data imagenette/160px-v2    # other images, of classes that it knows

The networks, their sizes and their inputs may differ; the images must be the same. The last line on standard output is
one JSON object: split, views (or dense, the images' sides), images, loss, top1_error, top5_error, which (best or
latest), runs, and the step of each run's checkpoint. --json prints that line alone. At its end a training run reports
its latest checkpoint: compare it with --which latest.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import NamedTuple

import jax
from tqdm import tqdm

from alexnet_jax import UserError, inference, metrics
from alexnet_jax.cli.commands import (
    add_batch_size,
    add_data,
    add_devices,
    add_json,
    add_which,
    add_workdir,
    use_devices,
)
from alexnet_jax.data.images import Images, SplitImages
from alexnet_jax.data.records import Split
from alexnet_jax.inference import Forward
from alexnet_jax.runs.run import Run, data_of, load_run

LARGEST = 1024  # pixels a side: of 128 such images conv1's 96 maps are 3.2 GB


class Member(NamedTuple):
    """A network whose probabilities are averaged with the others', and the images as it sees them."""

    run: Run
    forward: Forward  # inference.make_forward of the run's network
    images: Images  # the same images for all members, each prepared for its own network


@jax.jit
def _sums(parts: list[jax.Array], labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    return metrics.sums(inference.log_mean_of(parts), labels, mask)


def evaluate(members: Sequence[Member], batch_size: int, views: int = 1, progress: tqdm | None = None) -> dict:
    """Error of the members' mean prediction over every image once.

    Args: batch_size and views: see inference.on_devices; progress: a bar to advance by images.
    Returns: images, loss (nats), top1_error and top5_error (0..1); all finite.
    Raises UserError, naming the run, if a network gives NaN or infinity.
    """
    streams = [inference.on_devices(m.run, m.forward, m.images, batch_size, views) for m in members]
    batches = (
        (_sums([r.arrays[inference.LOGS] for r in results], results[0].labels, results[0].mask), results)
        for results in zip(*streams, strict=True)
    )
    totals = dict.fromkeys(("loss", "top1_error", "top5_error", "images"), 0.0)
    for sums, results in inference.late(batches):
        for member, result in zip(members, results, strict=True):
            inference.refuse_not_finite(member.run, result.not_finite)
        # Added up in Python's own floats, float64: only within a batch are sums of float32.
        fetched = jax.device_get(sums)  # all in one transfer
        totals = {name: total + float(fetched[name]) for name, total in totals.items()}
        if progress is not None:
            progress.update(totals["images"] - progress.n)
    return {"images": int(totals["images"])} | metrics.means(totals)


def images_for(run: Run, split: str, source: str | None = None, size: int = 0) -> Split:
    """The images of "validation" or "train" of the run's own data set, or of any split of another one.

    They are prepared as the run's own were.

    Args:
      source: the TFDS name or the folder of another set, whose classes the run knows by the same names. Of a folder
        without a validation folder either split is the whole folder.
      size: their side in pixels; 0: the run's own.
    Raises UserError if the run does not know a class.
    """
    config = run.config.data.copy_and_resolve_references()
    config.size = size or config.size
    if source is None:
        prepared = data_of(run, config)
        return prepared.train if split == "train" else prepared.evaluation
    config.name, config.train_split, config.eval_split = source, split, split
    config.validation_fraction = float(split == "validation")
    return data_of(run, config).evaluation


def evaluate_runs(
    workdirs: Sequence[str],
    views: int,
    split: str,
    dense: int | None = None,
    data: str | None = None,
    which: str = "best",
    devices: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
) -> dict:
    """Evaluates one run, or the mean of several, on "validation" or "train" (without augmentation).

    Args:
      workdirs: of the runs.
      views: 1 or 10, if `dense` is None.
      dense: the side of the images that the networks slide over; 0: that of their own prepared images.
      data: a data set other than the runs' own, see images_for.
      which: the "best" or "latest" checkpoints.
      devices: (data, tower), see load_run.
      batch_size: images at a time; None: as the first run's config says.
    Returns: what the command prints as JSON.
    Raises UserError if the runs do not share classes or images, if a network sees more pixels than `dense`, or if a
    network gives NaN or infinity.
    """
    runs = [load_run(workdir, which, *devices) for workdir in workdirs]
    splits: list[Split] = []
    for run in runs:
        crop = run.config.data.crop
        if dense and dense < crop:
            raise UserError(f"--dense={dense} is less than the {crop} pixels that {run.workdir} sees: raise it")
        splits.append(images_for(run, split, data, dense or 0))
        if run.classes != runs[0].classes or splits[-1].ids != splits[0].ids:
            raise UserError(f"{run.workdir} and {runs[0].workdir} differ in classes or images: evaluate each alone")
    if dense is None:
        how: dict = {"views": views}
    else:
        how = {"dense": [images.size for images in splits]}
    forwards = [inference.make_forward(run, dense=dense is not None) for run in runs]
    members = [Member(*parts) for parts in zip(runs, forwards, map(SplitImages, splits), strict=True)]
    size = inference.batch_size(runs[0], len(splits[0]), batch_size)
    with metrics.bar(len(splits[0]), f"{split}, {_how(how)}") as progress:
        found = evaluate(members, size, views, progress)
    named = {"data": data} if data else {}
    whose = {"which": which, "runs": [str(run.workdir) for run in runs], "step": [run.step for run in runs]}
    return named | {"split": split} | how | found | whose


def _how(result: dict) -> str:
    return "dense" if "dense" in result else f"{result['views']} view(s)"


def text(result: dict) -> str:
    """What evaluate_runs returns, as a line for people."""
    steps = [f"step {step} of {workdir}" for step, workdir in zip(result["step"], result["runs"], strict=True)]
    return (
        f"{result['split']}, {_how(result)}, {result['images']:,} images, {' and '.join(steps)}: "
        f"loss {result['loss']:.3f}, top-1 error {result['top1_error']:.2%}, top-5 error {result['top5_error']:.2%}"
    )


def add_flags(parser: ArgumentParser) -> None:
    """The command's flags."""
    add_workdir(parser, action="append", help="the run's folder; give several to average their probabilities")
    crops = parser.add_mutually_exclusive_group()
    crops.add_argument("--views", type=int, choices=(1, 10), default=10, help="crops of each image (default: 10)")
    crops.add_argument(
        "--dense",
        type=int,
        nargs="?",
        const=0,
        metavar="SIDE",
        help="slide over whole images, this many pixels a side (default: as many as the run's prepared images)",
    )
    says = "validation, train or, with --data, any split that the set has (default: validation)"
    parser.add_argument("--split", default="validation", help=says)
    add_data(parser)
    add_which(parser)
    add_devices(parser)
    add_batch_size(parser)
    add_json(parser)


def main(flags: Namespace) -> None:
    """The command."""
    if flags.dense is not None and not 0 <= flags.dense <= LARGEST:
        raise UserError(f"--dense is {flags.dense} and must be from the run's crop to {LARGEST} pixels a side")
    if not flags.data and flags.split not in ("validation", "train"):
        raise UserError(f"--split is '{flags.split}': a run has validation and train; other splits require --data")
    use_devices(flags.devices)
    found = evaluate_runs(
        flags.workdir, flags.views, flags.split, flags.dense, flags.data, flags.which, flags.devices, flags.batch_size
    )
    if not flags.json:
        print(text(found))
    print(json.dumps(found, allow_nan=False))
