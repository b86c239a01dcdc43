"""Top-1 and top-5 error over a whole split: centre crop, or the paper's ten views; of one run or several together.

    python -m alexnet_jax.evaluate --workdir runs/paper --views 10
    python -m alexnet_jax.evaluate --workdir runs/a --workdir runs/b      # the mean of their probabilities

The last line on standard output is one JSON object: split, views, images, loss, top1_error, top5_error, runs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, augment, checkpoint, metrics, towers
from alexnet_jax.data import eval_batches
from alexnet_jax.prepare import prepare


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


def evaluate_runs(workdirs: list[str], views: int, split: str) -> dict:
    """Evaluates one run, or the mean of several, on "validation" or "train" (without augmentation).

    Raises UserError if the runs do not share their classes or their images.
    """
    runs = [checkpoint.load(w) for w in workdirs]
    prepared = [prepare(run.config.data) for run in runs]
    sets = [p.train if split == "train" else p.evaluation for p in prepared]
    for run, images in zip(runs, sets, strict=True):
        if run.classes != runs[0].classes or not np.array_equal(images.labels, sets[0].labels):
            raise UserError(f"{run.workdir} and {runs[0].workdir} differ in classes or images: evaluate each alone")
    predictors = []
    for run in runs:
        probabilities = make_probabilities(run.apply, run.config.data)
        predictors.append(partial(probabilities, run.params, run.statistics, views=views))
    size = runs[0].config.evaluation.batch_size
    with metrics.bar(len(sets[0]), f"{split}, {views} view(s)") as progress:
        found = evaluate(predictors, [eval_batches(images, size) for images in sets], progress)
    return {"split": split, "views": views} | found | {"runs": [str(r.workdir) for r in runs]}


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action="append", required=True, help="a run; several are averaged")
    parser.add_argument("--views", type=int, choices=(1, 10), default=10)
    parser.add_argument("--split", choices=("validation", "train"), default="validation")
    flags = parser.parse_args(argv)
    print(json.dumps(evaluate_runs(flags.workdir, flags.views, flags.split)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
