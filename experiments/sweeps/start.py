"""Which one change lets the network of the paper start to learn? The full network on ten classes of ImageNet.

    alexnet sweep --sweep start --seeds 1

As written the loss falls to ln 10 = 2.303, that of guessing, and was still there after 511 steps, where the network of
configs/imagenette.py had left it after 45 (docs/departures.md). Each ablation changes one thing; "code" changes three
that the 2012 code has. A run ends after 146 steps of 128 images. `leaves_chance` says when its loss leaves ln 10. The
error is that of 256 photos and says little.

Caffe's authors met the same: "initializing non-zero biases to 0.1 instead of 1 (found necessary for training, as
initialization to 1 gave flat loss)" is one of the two differences from the paper that they list (BVLC/caffe,
models/bvlc_alexnet/readme.md).
"""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import paper
from experiments.changes import Change

MARGIN = 0.05  # below the loss of guessing: 2.25 for ten classes


def _biases(value: float) -> dict:
    """What the paper starts at 1, at another value."""
    return {f"model.init_bias.{layer}": value for layer in ("conv2", "conv4", "conv5", "fc6", "fc7")}


def _std(std: dict[str, float]) -> dict:
    return {f"model.init_std.{layer}": value for layer, value in std.items()}


CODE = _std(dict.fromkeys(("conv3", "conv4", "conv5"), 0.03))  # layers-145.cfg
NORM = {"model.lrn.before_activation": ("conv1",)}  # layers-145.cfg, see configs/source.py
# What a kernel reads at full width. conv1, whose inputs are grey levels, and fc8 keep 0.01.
INPUTS = {"conv2": 25 * 48, "conv3": 9 * 256, "conv4": 9 * 192, "conv5": 9 * 192, "fc6": 36 * 256, "fc7": 4096}


def _change(title: str, fields: dict, source: str) -> Change:
    return Change(title, lambda base: dict(fields), source=source)


ABLATIONS = {
    "std": _change("N(0, 0.03) in conv3 to conv5", CODE, "layers-145.cfg"),
    "biases_0": _change("biases of 0", _biases(0.0), "ours"),
    "biases_01": _change("biases of 0.1", _biases(0.1), "Caffe, models/bvlc_alexnet"),
    "he": _change(
        "N(0, sqrt(2 / inputs)) in conv2 to fc7", _std({name: (2 / n) ** 0.5 for name, n in INPUTS.items()}),
        "He et al. (2015)",
    ),
    "fc_std": _change("N(0, 0.005) in fc6 and fc7", _std({"fc6": 0.005, "fc7": 0.005}), "Caffe, models/bvlc_alexnet"),
    "alpha": _change("alpha divided by n", {"model.lrn.divide_by_size": True}, "layer.py:1183"),
    "norm": _change("conv1's norm before its ReLU", NORM, "layers-145.cfg"),
    "bias_rate": _change("biases at twice the rate", {"optimizer.bias_rate": 2.0}, "layer-params-153.cfg"),
    "rate_half": _change("learning rate 0.005", {"optimizer.learning_rate": 0.005}, "ours"),
    "rate_double": _change("learning rate 0.02", {"optimizer.learning_rate": 0.02}, "ours"),
    "code": _change("std, norm and bias_rate together", CODE | NORM | {"optimizer.bias_rate": 2.0}, "the 2012 code"),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The paper's network as written. It takes no arg. Raises ValueError."""
    if arg:
        raise ValueError(f"'{arg}' after the sweep's colon: start takes none")
    c = paper.get_config("imagenette")
    c.name = "start"
    c.epochs = 2  # of 73 steps
    c.log_every_steps = 5
    c.data.eval_split = "validation[:256]"
    c.evaluation.every_epochs = 2
    c.evaluation.views = 1
    return c


def leaves_chance(points: Iterable[tuple[int, float]], classes: int = 10, over: int = 20) -> int | None:
    """The first step at which the mean training loss of at least `over` steps is 0.05 below that of guessing.

    points: (step, loss), each loss the mean since the point before, in any order; of equal steps the last one counts,
    since a resumed run repeats steps.
    Returns: the step of the point that ends those steps; None if there is none.
    """
    limit = math.log(classes) - MARGIN
    steps, sums = [0], [0.0]  # the sum of all losses up to each step
    for step, loss in sorted(dict(points).items()):
        sums.append(sums[-1] + loss * (step - steps[-1]))
        steps.append(step)
        begun = max((i for i, at in enumerate(steps) if at <= step - over), default=None)
        if begun is not None and sums[-1] - sums[begun] < limit * (step - steps[begun]):
            return step
    return None
