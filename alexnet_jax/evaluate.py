"""Top-1 and top-5 error over a whole split: centre crop, ten views, or dense; of one run or several together.

    alexnet evaluate --workdir runs/paper --views 10
    alexnet evaluate --workdir runs/paper --dense           # over all of each image; --dense 320: larger
    alexnet evaluate --workdir runs/a --workdir runs/b      # the mean of their probabilities (table 2)
    alexnet evaluate --workdir runs/caffe --data imagenette/160px-v2    # other images of classes it knows

Several runs can be of different networks, sizes and inputs, of the same images. The last line on standard output is one
JSON object: split, views (or dense, the images' sides), images, loss, top1_error, top5_error, which (best or latest),
runs, and the step of each one's checkpoint. What a run says at its end is of the latest checkpoint: --which latest.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, metrics, towers
from alexnet_jax.cli.commands import command
from alexnet_jax.data import augment
from alexnet_jax.data.batches import eval_batches, filled
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Split
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.runs.run import Run, load_run

LARGEST = 1024  # pixels a side: of 128 such images conv1's 96 maps are 3.2 GB
NO_NUMBERS = (
    "gives no numbers (NaN): its training went astray, so train anew with a lower --config.optimizer.learning_rate"
)


def log_mean(log_probabilities: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """The logarithm of the mean of probabilities, from their logarithms; nothing underflows on the way."""
    count = np.prod([log_probabilities.shape[i] for i in np.atleast_1d(axis)])
    return jax.nn.logsumexp(log_probabilities, axis=axis) - np.log(count, dtype=np.float32)


@jax.jit
def _log_mean_of(parts: list) -> jax.Array:
    return log_mean(jnp.stack(parts), axis=0)


def make_log_probabilities(apply: Callable, config: ConfigDict) -> Callable:
    """A function (params, statistics, images uint8 (b, size, size, 3), views=1) -> logarithms float32 (b, classes).

    They are of the mean of all views' softmax outputs (section 4.1; the code averages probabilities, not logits:
    layer.cu:1805). `apply` maps (params, images) to (logits, activations), and is compiled once for all views.

    Probabilities themselves would not do for the loss: float32 has none between 0 and 1e-45, the infinite loss of a
    network that is wrong and sure by a hundred nats.
    """

    @partial(jax.jit, compiler_options=towers.compiler_options(jax.default_backend()))
    def one(params, crop):
        return jax.nn.log_softmax(apply(params, crop)[0])

    cut = jax.jit(partial(augment.views, config=config), static_argnames="count")

    def log_probabilities(params, statistics, images, views=1):
        return _log_mean_of([one(params, crop) for crop in cut(images, statistics, count=views)])

    return log_probabilities


def make_probabilities(apply: Callable, config: ConfigDict) -> Callable:
    """make_log_probabilities for people to look at: probabilities float32 (b, classes), NaN for what is no number."""
    log_probabilities = make_log_probabilities(apply, config)

    def probabilities(params, statistics, images, views=1):
        found = log_probabilities(params, statistics, images, views)
        return jnp.where(jnp.isfinite(found), jnp.exp(found), jnp.nan)

    return probabilities


def make_dense(run: Run) -> Callable:
    """A function from images uint8 (b, side, side, 3), side at least the crop, to logarithms float32 (b, classes).

    The fully connected layers slide over whole images, and the softmax outputs of all places are averaged.
    """
    net = AlexNet(FrozenConfigDict(run.config.model), dense=fc6_side(run.config.model, run.params))
    apply = towers.split(net, run.mesh)

    @partial(jax.jit, compiler_options=towers.compiler_options(run.mesh.devices.flat[0].platform))
    def mean(params, statistics, images):
        maps = apply(params, augment.whole(images, statistics, run.config.data))[0]
        return log_mean(jax.nn.log_softmax(maps), axis=(1, 2))

    return partial(mean, run.params, run.statistics)


@jax.jit
def _sums(parts: list, labels, mask):
    """metrics.sums of the mean, and of each part how many images have what is no number, padding left out."""
    strange = [jnp.sum((mask > 0) & ~jnp.isfinite(part).all(axis=1)) for part in parts]
    return metrics.sums(_log_mean_of(parts), labels, mask), strange


def evaluate(
    predictors: list[Callable], batches: list[Iterable[dict]], progress: tqdm | None = None,
    names: Sequence[str] | None = None,
) -> dict:  # fmt: skip
    """Error of the mean prediction over every image once.

    Args:
      predictors: functions images uint8 (b, size, size, 3) -> log-probabilities (b, classes).
      batches: for each predictor its own batches of the same images (data.eval_batches).
      progress: a bar to advance by images.
      names: what each predictor is called if it fails; default: the network.
    Returns: images, loss (nats), top1_error and top5_error (0..1); all finite.
    Raises UserError if a predictor gives what is no number.
    """
    names = names or ["the network"] * len(predictors)
    totals, pending = dict.fromkeys(("loss", "top1_error", "top5_error", "images"), 0.0), None
    for together in zip(*batches, strict=True):
        found = [predict(batch["image"]) for predict, batch in zip(predictors, together, strict=True)]
        sums = _sums(found, together[0]["label"], together[0]["mask"])
        totals, pending = _add(totals, pending, progress, names), sums  # fetched a batch late: the device never waits
    totals = _add(totals, pending, progress, names)
    return {"images": int(totals["images"])} | metrics.means(totals)


def _add(totals, pending, progress, names):
    """Adds up in Python's own floats, float64: only within a batch are sums of float32."""
    if pending is None:
        return totals
    sums, strange = pending
    if astray := [name for name, count in zip(names, strange, strict=True) if count]:
        raise UserError(f"{astray[0]} {NO_NUMBERS}")
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
    the runs do not share classes or images, if a network is larger than `dense`, or if one gives no numbers.
    """
    runs = [load_run(w, which) for w in workdirs]
    predictors, sets = [], []
    for run in runs:
        if dense and dense < run.config.data.crop:
            crop = run.config.data.crop
            raise UserError(f"--dense={dense} is less than the {crop} pixels that {run.workdir} sees: raise it")
        sets.append(images_for(run, split, data, dense or 0))
        if run.classes != runs[0].classes or sets[-1].ids != sets[0].ids:
            raise UserError(f"{run.workdir} and {runs[0].workdir} differ in classes or images: evaluate each alone")
        if dense is None:
            logarithms = make_log_probabilities(run.apply, run.config.data)
            predictors.append(partial(logarithms, run.params, run.statistics, views=views))
        else:
            predictors.append(make_dense(run))
    size = filled(runs[0].config.evaluation.batch_size, len(sets[0]), copies=1)
    how = {"views": views} if dense is None else {"dense": [images.size for images in sets]}
    with metrics.bar(len(sets[0]), f"{split}, {'dense' if dense is not None else f'{views} view(s)'}") as progress:
        names = [f"step {run.step} of {run.workdir}" for run in runs]
        found = evaluate(predictors, [eval_batches(images, size) for images in sets], progress, names)
    named = {"data": data} if data else {}
    whose = {"which": which, "runs": [str(r.workdir) for r in runs], "step": [r.step for r in runs]}
    return named | {"split": split} | how | found | whose


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="alexnet evaluate", description=__doc__.splitlines()[0])
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
    if not 0 <= (flags.dense or 0) <= LARGEST:
        raise UserError(f"--dense is {flags.dense} and must be from the run's crop to {LARGEST} pixels a side")
    found = evaluate_runs(flags.workdir, flags.views, flags.split, flags.dense, flags.data, flags.which)
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    command(main)
