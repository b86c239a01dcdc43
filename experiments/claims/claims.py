"""The claims, section by section: what the paper says, and from which runs it is checked.

Numbers are the paper's (NIPS 2012), those of the notes in its code (layers/layer-params-N.cfg in
computerhistory/AlexNet-Source-Code) or cuda-convnet's. Differences are in percentage points of top-1 error.
"""

from dataclasses import dataclass
from typing import Literal

from experiments.changes import CHANGES
from experiments.claims import figure1, studies
from experiments.claims.measures import Measure, apart, difference, overfit, overfitting, training

IMAGENET = "ImageNet's ILSVRC-{} release: 1.2 million images, 90 epochs of the full network"
SWEEP = "alexnet sweep --sweep ablations --seeds {seeds} --only {only}"
ALL = "theirs does, with all changes"
CIFAR = "alexnet sweep --sweep cifar10 --seeds {seeds} --only {only}"


@dataclass(frozen=True)
class Claim:
    """One claim."""

    section: str  # of the paper, or whose note it is
    says: str
    paper: str  # its number, as it is printed
    measure: Measure | None = None  # None: out of reach here
    command: str = ""  # with {seeds}
    takes: str = ""  # what it would take to measure it, if the command is not enough
    number: float | None = None  # the paper's, in the unit of the measure's interval: for the picture
    unit: Literal["points", "percent", ""] = ""  # a difference or an error
    main: bool = False  # among the ten of the README
    seeds: int = 8  # of the command while none is measured


def _ablation(section: str, says: str, paper: str, cell: str, **more) -> Claim:
    """A claim about the error that a change of the ablations costs; its number is that of the change."""
    change = CHANGES[cell]
    measure = difference("ablations", cell, noise=change.noise)
    more = {"measure": measure, "number": change.top1, "unit": "points"} | more
    command = SWEEP.replace("{only}", cell)
    return Claim(section, says, paper, command=command, **more)


def _ours(says: str, cell: str) -> Claim:
    """A change whose error the paper says nothing of."""
    return _ablation("ours", says, "no claim", cell, measure=difference("ablations", cell, sign=0))


def _unreachable(section: str, says: str, paper: str, takes: str, **more) -> Claim:
    return Claim(section, says, paper, takes=takes, **more)


def _cifar(name: str, percent: int, what: str) -> Claim:
    cell = "base" if name == "cifar10_80sec" else name
    measure = studies.published("cifar10", cell, percent)
    command = CIFAR.replace("{only}", cell)
    says = f"CIFAR-10, {what}"
    return Claim("cuda-convnet", says, f"{percent} %", measure, command, "", percent, "percent", seeds=3)


def _apart(what: str, cell: str, paper: str = "no claim", sign: int = 0) -> Claim:
    """What a change of the sweep `towers` does to how far apart the towers are in colour; sign: see difference."""
    measure = difference("towers", cell, apart, sign=sign)
    command = f"alexnet sweep --sweep towers --seeds {{seeds}} --only {cell}"
    return Claim("6.1", f"points between the towers' shares of colour: {what}", paper, measure, command)


def _start(section: str, says: str, paper: str, cell: str, *, later: bool = False) -> Claim:
    """Whether the full network starts to learn, as written or with a change; see studies.first_steps."""
    command = f"alexnet sweep --sweep start --seeds {{seeds}} --only {cell}"
    return Claim(section, says, paper, studies.first_steps(cell, later=later), command)


def _views(study: str, cell: str, what: str, command: str, **more) -> Claim:
    measure = studies.views_gain(study, cell)
    says = f"the centre crop alone has a higher error than ten views: {what}"
    return Claim("4.1", says, "1.5 (39.0 to 37.5 %)", measure, command, "", 1.5, "points", **more)


CLAIMS = (
    _ablation("1", "removing any convolution hurts: without conv3", "worse", "conv3_removed", number=None),
    _ablation("1", "removing any convolution hurts: without conv4", "worse", "conv4_removed", number=None),
    _ours("conv3 and conv4 removed", "conv34_removed"),
    Claim(
        "3.1, figure 1", "a ReLU network reaches 25 % training error sooner than a tanh network, CIFAR-10", "6 times",
        figure1.measure, "alexnet sweep --sweep figure1 --seeds {seeds}", main=True,
    ),
    _ours("tanh instead of ReLU: the error, not the speed", "tanh"),
    _ablation("3.2", "one column of half the kernels raises the error", "1.7", "one_column", main=True),
    _unreachable(
        "3.2", "two GPUs train a little faster than the one column on one GPU", "slightly less time",
        "two accelerators of the same kind",
    ),
    _ablation("3.2, note #150", "towers that meet only at the classifier raise the error", "1.17", "no_exchange"),
    _ablation("3.3", "no response normalization raises the error", "1.4", "lrn_off", main=True),
    Claim(
        "3.3", "CIFAR-10: the network with normalization has a lower error (two published networks)", "2 (13 to 11 %)",
        studies.gap("cifar10", "cifar10_13pct", "cifar10_11pct"),
        CIFAR.replace("{only}", "cifar10_13pct,cifar10_11pct"), "", 2.0, "points", seeds=3,
    ),
    Claim(
        "3.3", "CIFAR-10: the same network without norms has a higher error", "2 (13 to 11 %)",
        difference("cifar10_norm", "norm_off"), "alexnet sweep --sweep cifar10_norm --seeds {seeds}", "",
        2.0, "points", seeds=5,
    ),
    _ablation(
        "3.3, notes #120, #131", "normalizing conv1 after its pool changes little", "0.11, one run each",
        "lrn_after_pool",
    ),
    _ablation("3.3, notes #131, #135", "k = 1 instead of 2 changes little", "-0.14, one run each", "lrn_caffe"),
    _ablation(
        "3.3, note #166", "conv2's norm before the ReLU, like conv1's, gains nothing (the base has both after it)",
        "no gain", "lrn_before_relu",
    ),
    _ablation("3.4", "pooling without overlap raises the error", "0.4", "pooling", main=True),
    _ablation(
        "3.4", "and overfits a little more: error minus training error", "slightly more", "pooling",
        measure=difference("ablations", "pooling", overfit), unit="",
    ),
    _ablation("3.5, notes #132, #133", "exchange at conv4 instead of conv3 is worse", "worse", "exchange_conv4"),
    _ablation(
        "4.1", "without crops and flips the network overfits", "substantial", "crops_off",
        measure=overfitting("ablations", "crops_off"), main=True,
    ),
    _ablation("4.1", "no colour noise raises the error", "over 1", "noise_off", main=True),
    _views("ablations", "base", "a quarter of the width", SWEEP.replace("{only}", "base"), main=True),
    _views("full", "imagenette", "full width", "alexnet train --config configs/imagenette.py"),
    _views("full", "imagenette_small", "half the width", "alexnet train --config configs/imagenette_small.py"),
    _ablation(
        "4.2", "without dropout the network overfits", "substantial", "dropout_off",
        measure=overfitting("ablations", "dropout_off"), main=True,
    ),
    _ablation(
        "4.2", "dropout about doubles the epochs (here: to the training error that it ends with)", "2 times",
        "dropout_off",
        measure=studies.epochs_of_dropout, unit="",
    ),
    _ablation(
        "5", "weight decay lowers the training error too: without it", "higher training error", "decay_off",
        measure=difference("ablations", "decay_off", training), unit="",
    ),
    _start("5", "the network as written starts to learn", "it does", "base"),
    _start(
        "5", "biases of 1 make it learn sooner: with biases of 0 it is later", "1 is sooner", "biases_0", later=True
    ),
    _start("the code", "with its N(0, 0.03) in conv3 to conv5 the network starts to learn", "theirs does", "std"),
    _start("the code", "with its alpha divided by n it starts to learn", ALL, "alpha"),
    _start("the code", "with its norm of conv1 before the ReLU it starts to learn", ALL, "norm"),
    _start("the code", "with its biases at twice the rate it starts to learn", ALL, "bias_rate"),
    _start("the code", "with these initial values, this norm and this rate it starts to learn", ALL, "code"),
    _start("Caffe", "with its biases of 0.1 the network starts to learn", "theirs does", "biases_01"),
    _start("Caffe", "with its N(0, 0.005) in fc6 and fc7 it starts to learn", ALL, "fc_std"),
    _ablation(
        "the code", "a third of its initial values in conv3 to conv5, as the paper has them, raises the error",
        "no claim", "paper_init", measure=difference("ablations", "paper_init", sign=0), unit="",
    ),
    _unreachable("6, table 1", "ILSVRC-2010, top-1 and top-5 error", "37.5 and 17.0 %", IMAGENET.format(2010)),
    _unreachable("6, table 2", "ILSVRC-2012, one network", "40.7 and 18.2 %", IMAGENET.format(2012)),
    Claim(
        "6, table 2", "one network has a higher error than five averaged", "2.6 (40.7 to 38.1 %)",
        studies.ensemble("ablations", "base", 5),
        SWEEP.format(seeds=5, only="base")
        + " && alexnet record runs/sweep_ablations/base --to mine --records records --ensemble 5",
        "", 2.6, "points",
    ),
    _unreachable(
        "6, table 2", "validation and test error are alike", "within 0.1", "ILSVRC-2012's test labels, not published"
    ),
    _unreachable(
        "6, table 2", "a sixth convolution, pretrained on 22,000 classes", "39.0 %: 1.7 less",
        "ImageNet's Fall 2011 release, 15 million images, then ILSVRC-2012",
    ),
    _unreachable(
        "6, table 2", "seven networks, two of them pretrained", "36.7 %",
        "the same two releases, for seven networks",
    ),
    _unreachable("6", "Fall 2009, 10,184 classes", "67.4 and 40.9 %", "ImageNet's Fall 2009 release"),
    Claim(
        "6.1, figure 3", "one tower takes the colour, the other the grey, in every run (96 kernels)",
        "every run (by our count 39 and 5 of 48 in Caffe's later network)", studies.towers("towers", "base"),
        "alexnet sweep --sweep towers --seeds {seeds} --only base", main=True,
    ),
    Claim(
        "6.1, figure 3", "the same in the base of the ablations (24 kernels)", "every run",
        studies.towers("ablations", "base"), SWEEP.replace("{only}", "base"),
    ),
    Claim(
        "6.1, figure 3", "the same at half the width (48 kernels)", "every run",
        studies.towers("full", "imagenette_small"), "alexnet train --config configs/imagenette_small.py",
    ),
    Claim(
        "6.1, figure 3", "the same at full width", "every run", studies.towers("full", "imagenette"),
        "alexnet train --config configs/imagenette.py",
    ),
    _apart("exchange at conv2 too", "exchange_conv2", "fewer: the restricted connectivity does it", -1),
    _apart("no exchange below the classifier", "no_exchange_narrow", "more: the restricted connectivity does it", 1),
    _apart("norms across the towers", "lrn_across"),
    _apart("no norms", "lrn_off"),
    _apart("twice the epochs", "long"),
    _unreachable(
        "6.1, figure 4", "nearest neighbours by fc7 show the same objects", "a picture",
        "a judge: alexnet figures draws the picture, and nothing scores it",
    ),
    _ablation("7", "a middle layer is worth about 2 %: without conv3", "about 2", "conv3_removed"),
    _ablation("7", "a middle layer is worth about 2 %: without conv4", "about 2", "conv4_removed", main=True),
    _cifar("cifar10_80sec", 26, "80 seconds"),
    _cifar("cifar10_18pct", 18, "norms within maps, no augmentation"),
    _cifar("cifar10_13pct", 13, "locally connected layers, crops and flips"),
    _cifar("cifar10_11pct", 11, "the same with norms across maps"),
)  # fmt: skip
