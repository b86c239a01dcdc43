"""Top-1 and top-5 error over a whole split: centre crop, ten views, or dense; of one run or several together.

    python -m alexnet_jax.evaluate --workdir runs/paper --views 10
    python -m alexnet_jax.evaluate --workdir runs/paper --dense           # over all of each image; --dense 320: larger
    python -m alexnet_jax.evaluate --workdir runs/a --workdir runs/b      # the mean of their probabilities (table 2)
    python -m alexnet_jax.evaluate --workdir runs/caffe --data imagenette/160px-v2    # other images of classes it knows

Several runs can be of different networks, sizes and inputs, of the same images. The last line on standard output is one
JSON object: split, views (or dense, the images' sides), images, loss, top1_error, top5_error, which (best or latest),
runs, and the step of each one's checkpoint. What a run says at its end is of the latest checkpoint: --which latest.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, augment, checkpoint, metrics, towers
from alexnet_jax.checkpoint import Run
from alexnet_jax.data import eval_batches
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.prepare import prepare
from alexnet_jax.records import Split


def make_probabilities(apply: Callable, config: ConfigDict) -> Callable:
    """A function (params, statistics, images uint8 (b, size, size, 3), views=1) -> probabilities float32 (b, classes).

    The softmax outputs of all views are averaged (section 4.1; the code averages probabilities, not logits:
    layer.cu:1805). `apply` maps (params, images) to (logits, activations), and is compiled once for all views.
    """

    @partial(jax.jit, compiler_options=towers.compiler_options(jax.default_backend()))
    def one(params, crop):
        return jax.nn.softmax(apply(params, crop)[0])

    cut = jax.jit(partial(augment.views, config=config), static_argnames="count")

    def probabilities(params, statistics, images, views=1):
        return sum(one(params, crop) for crop in cut(images, statistics, count=views)) / views

    return probabilities


def make_dense(run: Run) -> Callable:
    """A function from images uint8 (b, side, side, 3), side at least the crop, to probabilities float32 (b, classes).

    The fully connected layers slide over whole images, and the softmax outputs of all places are averaged.
    """
    net = AlexNet(FrozenConfigDict(run.config.model), dense=fc6_side(run.config.model, run.params))
    apply = towers.split(net, run.mesh)

    @partial(jax.jit, compiler_options=towers.compiler_options(run.mesh.devices.flat[0].platform))
    def mean(params, statistics, images):
        maps = apply(params, augment.whole(images, statistics, run.config.data))[0]
        return jax.nn.softmax(maps).mean(axis=(1, 2))

    return partial(mean, run.params, run.statistics)


@jax.jit
def _sums(probabilities: list, labels, mask):
    return metrics.sums(jnp.log(sum(probabilities) / len(probabilities)), labels, mask)


def evaluate(predictors: list[Callable], batches: list[Iterable[dict]], progress: tqdm | None = None) -> dict:
    """Error of the mean prediction over every image once.

    Args:
      predictors: functions images uint8 (b, size, size, 3) -> probabilities (b, classes).
      batches: for each predictor its own batches of the same images (data.eval_batches).
      progress: a bar to advance by images.
    Returns: images, loss (nats), top1_error and top5_error (0..1).
    """
    totals, pending = dict.fromkeys(("loss", "top1_error", "top5_error", "images"), 0.0), None
    for together in zip(*batches, strict=True):
        found = [predict(batch["image"]) for predict, batch in zip(predictors, together, strict=True)]
        sums = _sums(found, together[0]["label"], together[0]["mask"])
        totals, pending = _add(totals, pending, progress), sums  # fetched a batch late: the device never waits
    totals = _add(totals, pending, progress)
    return {"images": int(totals["images"])} | metrics.means(totals)


def _add(totals, sums, progress):
    if sums is None:
        return totals
    totals = {name: totals[name] + float(sums[name]) for name in totals}
    if progress is not None:
        progress.update(totals["images"] - progress.n)
    return totals


def images_for(run: Run, split: str, source: str | None = None, size: int = 0) -> Split:
    """The images of "validation" or "train" of the run's own data set, or of another, prepared as the run's own.

    source: the TFDS name or the folder of another set, whose classes the run knows by the same names; its labels are
    then the run's. Of a folder without a validation folder either split is all of it. size: their side in pixels, 0 the
    run's own. Raises UserError if the run does not know a class.
    """
    config = run.config.data.copy_and_resolve_references()
    config.size = size or config.size
    if source is None:
        prepared = prepare(config)
        return prepared.train if split == "train" else prepared.evaluation
    config.name, config.train_split, config.eval_split = source, split, split
    config.validation_fraction = float(split == "validation")
    prepared = prepare(config)
    number = {name: i for i, name in enumerate(run.classes)}
    if unknown := [name for name in prepared.classes if name not in number]:
        raise UserError(f"{source} has the class {unknown[0]}, which {run.workdir} does not know: take that folder out")
    labels = np.array([number[name] for name in prepared.classes], np.int32)[prepared.evaluation.labels]
    return dataclasses.replace(prepared.evaluation, labels=labels)


def evaluate_runs(
    workdirs: list[str], views: int, split: str, dense: int | None = None, data: str | None = None, which: str = "best"
) -> dict:
    """Evaluates one run, or the mean of several, on "validation" or "train" (without augmentation).

    dense: the side of the images that the networks slide over, 0 that of their own prepared ones; None: `views`, 1 or
    10. data: another set than the runs' own, see images_for. which: "best" or "latest" checkpoints. Raises UserError if
    the runs do not share their classes or their images, or if a network is larger than `dense`.
    """
    runs = [checkpoint.load(w, which) for w in workdirs]
    predictors, sets = [], []
    for run in runs:
        if dense and dense < run.config.data.crop:
            crop = run.config.data.crop
            raise UserError(f"--dense={dense} is less than the {crop} pixels that {run.workdir} sees: raise it")
        sets.append(images_for(run, split, data, dense or 0))
        if run.classes != runs[0].classes or sets[-1].ids != sets[0].ids:
            raise UserError(f"{run.workdir} and {runs[0].workdir} differ in classes or images: evaluate each alone")
        if dense is None:
            probabilities = make_probabilities(run.apply, run.config.data)
            predictors.append(partial(probabilities, run.params, run.statistics, views=views))
        else:
            predictors.append(make_dense(run))
    size = runs[0].config.evaluation.batch_size
    how = {"views": views} if dense is None else {"dense": [images.size for images in sets]}
    with metrics.bar(len(sets[0]), f"{split}, {'dense' if dense is not None else f'{views} view(s)'}") as progress:
        found = evaluate(predictors, [eval_batches(images, size) for images in sets], progress)
    named = {"data": data} if data else {}
    whose = {"which": which, "runs": [str(r.workdir) for r in runs], "step": [r.step for r in runs]}
    return named | {"split": split} | how | found | whose


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action="append", required=True, help="a run; several are averaged")
    crops = parser.add_mutually_exclusive_group()
    crops.add_argument("--views", type=int, choices=(1, 10), default=10, help="crops of each (default: 10)")
    crops.add_argument(
        "--dense", type=int, nargs="?", const=0, metavar="SIDE",
        help="slide over whole images, of this many pixels a side (default: as many as the run's prepared ones)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("validation", "train"), default="validation")
    parser.add_argument(
        "--data", help="a TFDS name or a folder, of classes that the run knows, in place of its own set"
    )
    parser.add_argument("--which", choices=("best", "latest"), default="best", help="the checkpoint (default: best)")
    flags = parser.parse_args(argv)
    found = evaluate_runs(flags.workdir, flags.views, flags.split, flags.dense, flags.data, flags.which)
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
