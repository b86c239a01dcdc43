"""The config: every field, what it is by default, what it may hold, what it is for, and the one check of them all.

    c = default()      # every field at its default, to be changed; configs/ has the presets
    check(c)           # raises UserError, in one line, naming the field and what it takes
    fields_of(FREE)    # the names of the fields that may change when a run resumes

A default leaves its field without effect: no norm, no dropout, no noise, one tower, a constant learning rate. Where no
value could (a width, a batch size) it is AlexNet's. A field that was added after version 0.1.0 is marked `newer`: runs
older than it get its default, which must leave them as they were.

`check` needs no data. What only the images can tell, such as a batch larger than the data set, is found once they are
there, still before anything is written to the workdir. The upper bounds of numbers are far beyond any use: they keep a
slip of the finger from filling the memory, or from compiling for hours.
"""

import json
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from alexnet_jax import UserError, cifar, model, network, optimizer
from alexnet_jax.data import augment
from alexnet_jax.data.prepare import MAX_SIZE
from alexnet_jax.data.records import STORED

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
LAYERS = (*CONVOLUTIONS, *model.FULLY_CONNECTED)

# What a field is for. Resuming, fine-tuning, conversion and reports choose their fields by these.
FUNCTION = "function"  # which function of its parameters the network computes
SHAPE = "shape"  # the shapes of the parameters, which show it
INPUT = "input"  # the numbers that an image becomes: kernels are trained for them
VIEW = "view"  # which part of a photo the network sees
ROUNDING = "rounding"  # how it is computed; results differ by rounding alone
DATA = "data"  # which images it is trained and measured on
TRAINING = "training"  # how parameters begin and change, and how the error is measured
FREE = "free"  # how and where a run works, not what it computes: may change when it resumes

# --- What a field may hold --------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What a field may hold."""

    says: str  # in words, after "must be"
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`, both included."""
    return Rule(f"a whole number from {low:,} to {high:,}", lambda v: _is(v, int) and low <= v <= high)


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number from `low` to `high`, both included unless it must be `above` the one or `below` the other."""
    says = f"a number {'above' if above else 'of at least'} {low:g} and {'below' if below else 'at most'} {high:g}"

    def holds(v: Any) -> bool:
        if not _is(v, int | float) or not low <= v <= high:  # NaN fails the comparison
            return False
        return not (above and v == low) and not (below and v == high)

    return Rule(says, holds)


def _is(value: Any, kind: Any) -> bool:
    """Python's own numbers, not True or False, and of NumPy's only those that JSON takes."""
    return isinstance(value, kind) and not isinstance(value, bool)


def one_of(*choices: Any) -> Rule:
    """One of a few values, of the same type: 1 is not True."""
    return Rule(f"one of {', '.join(map(str, choices))}", lambda v: any(type(v) is type(c) and v == c for c in choices))


def text(empty: bool = False) -> Rule:
    """A line of text, which may be empty."""
    return Rule(
        "one line of text" + ("" if empty else ", not empty"),
        lambda v: isinstance(v, str) and v.isprintable() and (empty or bool(v.strip())),
    )


def several(rule: Rule, *counts: int) -> Rule:
    """A tuple (a list, once read from JSON) whose every entry keeps a rule, of any length or of one of `counts`."""
    many = f"{' or '.join(map(str, counts))} entries" if counts else "entries"
    return Rule(
        f"a tuple of {many}, each {rule.says}",
        lambda v: isinstance(v, (tuple, list)) and (not counts or len(v) in counts) and all(map(rule.holds, v)),
    )


def some_of(*names: str) -> Rule:
    """A tuple of some of the names, none twice."""
    one = one_of(*names)
    return Rule(
        f"a tuple out of {', '.join(names)}, such as ('{names[0]}',)",
        lambda v: isinstance(v, (tuple, list)) and all(map(one.holds, v)) and len(set(v)) == len(v),
    )


def entries(form: str, *rules: Rule) -> Rule:
    """A tuple of tuples of len(rules) entries, each of which keeps its own rule."""

    def keeps(entry: Any) -> bool:
        if not isinstance(entry, (tuple, list)) or len(entry) != len(rules):
            return False
        return all(rule.holds(value) for rule, value in zip(rules, entry, strict=True))

    return Rule(f"a tuple of entries {form}", lambda v: isinstance(v, (tuple, list)) and all(map(keeps, v)))


def chain() -> Rule:
    """A tuple of entries (name, kind, what cifar.ENTRIES says)."""
    rules = {"units": whole(0, 2**16), "size": whole(1, 63), "std": STRENGTH}

    def keeps(entry: Any) -> bool:
        if not isinstance(entry, (tuple, list)) or len(entry) < 2 or not all(isinstance(e, str) for e in entry[:2]):
            return False
        name, kind, *rest = entry
        wanted = [rules[what] for what in cifar.ENTRIES.get(kind, ())]
        if kind not in cifar.ENTRIES or not name.isidentifier() or len(rest) != len(wanted):
            return False
        return all(rule.holds(value) for rule, value in zip(wanted, rest, strict=True))

    return Rule(
        "a tuple of entries such as ('conv1', 'conv', 32, 5, 0.01), ('pool1', 'max_pool'), ('fc10', 'dense', 0, 0.1), "
        f"of the kinds {', '.join(cifar.ENTRIES)}",
        lambda v: isinstance(v, (tuple, list)) and all(map(keeps, v)),
    )


FLAG = one_of(True, False)
COUNT = whole(1, 2**16)  # images in a batch, copies of the network; no ImageNet training used more than half of it
EPOCHS = 10**6
FREQUENCY = whole(1, 10**9)  # steps from one record to the next
STRENGTH = number(0, 1e6)
WINDOW = whole(1, 255)  # a norm adds up this many shifted copies of its maps, and each is compiled
PATH = text(empty=True)

# --- The fields -------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A row of the table."""

    default: Any
    rule: Rule
    purpose: str
    newer: bool = False  # than version 0.1.0: runs older than the field get its default


FIELDS = {
    "name": Field("", text(), FREE),  # a label; without --workdir a run's folder is runs/ and this
    "seed": Field(0, whole(0, 2**32 - 1), TRAINING),  # of initial values, order, crops and dropout
    "batch_size": Field(128, COUNT, TRAINING),  # images in a step, over all devices
    "epochs": Field(90, whole(1, EPOCHS), TRAINING),  # may be raised when a run resumes, see ownership.py
    #
    # The network.
    "model.num_classes": Field(0, whole(0, 10**6), SHAPE),  # 0: as many as the data has
    "model.towers": Field(1, whole(1, 2**10), FUNCTION),  # into how many the widths are divided
    "model.exchange": Field(("fc8",), some_of(*model.EXCHANGES), SHAPE),  # layers that read every tower, not their own
    # A chain of layers instead of AlexNet, as cifar.py takes it; (): AlexNet. Of the network's fields a chain reads
    # num_classes, towers, pool_size, pool_stride, dtype, and of the norms all but where they are; the others stay at
    # their defaults.
    "model.layers": Field((), chain(), SHAPE, newer=True),
    # Kernels over all towers. A sixth convolution sees the pooled maps of the fifth.
    "model.conv_widths": Field((96, 256, 384, 384, 256), several(whole(1, 2**14), 5, 6), SHAPE),
    "model.conv_sizes": Field((11, 5, 3, 3, 3), several(whole(1, 64), 5, 6), SHAPE, newer=True),  # kernels' sides
    "model.conv_strides": Field((4, 1, 1, 1, 1), several(whole(1, 64), 5, 6), FUNCTION, newer=True),
    # Before and after the image; the other convolutions pad by half their kernels' side, rounded down.
    "model.conv1_padding": Field((0, 0), several(whole(0, 64), 2), FUNCTION),
    "model.fc_widths": Field((4096, 4096), several(whole(1, 2**16), 2), SHAPE),  # of fc6 and fc7, over all towers
    "model.removed": Field((), some_of("conv3", "conv4"), FUNCTION, newer=True),  # layers that are left out
    "model.activation": Field("relu", one_of(*model.ACTIVATIONS), FUNCTION),
    "model.pooled": Field(("conv1", "conv2", "conv5"), some_of(*CONVOLUTIONS), FUNCTION, newer=True),
    "model.pool_size": Field(3, whole(1, 64), FUNCTION),
    "model.pool_stride": Field(2, whole(1, 64), FUNCTION),
    # fc6 sees maps averaged to this side, whatever the size of the images; 0: the maps as they are.
    "model.average_pool": Field(0, whole(0, 64), FUNCTION, newer=True),
    "model.dropout": Field(0.0, number(0, 1, below=True), TRAINING),  # the share of units that are dropped
    "model.dropout_before": Field(("fc7", "fc8"), some_of(*model.FULLY_CONNECTED), TRAINING, newer=True),  # on inputs
    # Of the computation. Parameters, logits and loss are float32 always.
    "model.dtype": Field("float32", one_of("float32", "bfloat16"), ROUNDING),
    #
    # The norm over neighbouring maps: x / (k + alpha * sum of squares)^beta.
    "model.lrn.layers": Field((), some_of(*CONVOLUTIONS), FUNCTION),
    "model.lrn.size": Field(5, WINDOW, FUNCTION),  # maps in the sum
    "model.lrn.k": Field(2.0, number(0, 1e6, above=True), FUNCTION),
    "model.lrn.alpha": Field(1e-4, STRENGTH, FUNCTION),
    "model.lrn.beta": Field(0.75, number(0, 100), FUNCTION),
    "model.lrn.divide_by_size": Field(False, FLAG, FUNCTION),  # alpha by size
    "model.lrn.per_tower": Field(False, FLAG, FUNCTION),  # over a tower's own maps, or over all
    # Layers whose norm precedes the nonlinearity, and layers whose norm follows the pool. Elsewhere it is in between.
    "model.lrn.before_activation": Field((), some_of(*CONVOLUTIONS), FUNCTION),
    "model.lrn.after_pool": Field((), some_of(*CONVOLUTIONS), FUNCTION),
    #
    # The norm over neighbouring places of the same map: x / (k + alpha * mean of squares)^beta.
    "model.spatial_norm.layers": Field((), some_of(*CONVOLUTIONS), FUNCTION),
    "model.spatial_norm.size": Field(5, WINDOW, FUNCTION),  # the side of the square of places
    "model.spatial_norm.k": Field(1.0, number(0, 1e6, above=True), FUNCTION),
    "model.spatial_norm.alpha": Field(1e-3, STRENGTH, FUNCTION),
    "model.spatial_norm.beta": Field(0.75, number(0, 100), FUNCTION),
    #
    # Initial values: N(0, init_std) and init_bias, or both uniform within 1 / sqrt(inputs of a kernel), as in PyTorch.
    "model.init": Field("normal", one_of("normal", "uniform"), TRAINING, newer=True),
    **{f"model.init_std.{layer}": Field(0.01, STRENGTH, TRAINING) for layer in LAYERS},
    **{f"model.init_bias.{layer}": Field(0.0, number(-1e6, 1e6), TRAINING) for layer in LAYERS},
    #
    # The update. "sgd" is PyTorch's momentum, whose velocity holds no learning rate; "adam" is PyTorch's too.
    "optimizer.algorithm": Field("momentum", one_of(*optimizer.ALGORITHMS), TRAINING, newer=True),
    "optimizer.learning_rate": Field(0.01, number(0, 1e9, above=True), TRAINING),
    "optimizer.momentum": Field(0.0, number(0, 1, below=True), TRAINING),
    "optimizer.weight_decay": Field(0.0, STRENGTH, TRAINING),
    "optimizer.decay_biases": Field(False, FLAG, TRAINING),
    "optimizer.layer_decays": Field(  # a layer's own weight decay
        (), entries("(layer, decay), as in \"(('fc10',0.03),)\"", text(), STRENGTH), TRAINING, newer=True
    ),
    "optimizer.bias_rate": Field(1.0, STRENGTH, TRAINING),  # biases' learning rate, in multiples of the weights'
    # Biases' rates fall with the weights' or, "epochs", by factor at the start of each of bias_drop_epochs alone.
    "optimizer.bias_rule": Field("weights", one_of(*optimizer.BIAS_RULES), TRAINING, newer=True),
    "optimizer.bias_drop_epochs": Field((), several(whole(0, EPOCHS)), TRAINING, newer=True),
    "optimizer.rule": Field("epochs", one_of(*optimizer.RULES), TRAINING),  # by which the learning rate falls
    "optimizer.factor": Field(0.1, number(0, 1, above=True), TRAINING),  # what a drop multiplies it by
    "optimizer.drop_epochs": Field((), several(whole(0, EPOCHS)), TRAINING),  # "epochs": a drop at the start of each
    # "plateau": a drop after `patience` epochs in which the top-1 validation error did not fall by `min_improvement`.
    "optimizer.drops": Field(3, whole(0, 1000), TRAINING),  # at most this many
    "optimizer.patience": Field(5, whole(1, EPOCHS), TRAINING),
    "optimizer.min_improvement": Field(0.001, number(0, 1), TRAINING),
    # "stages": this many of equal length, which divide the rate by `stages_total` in total.
    "optimizer.stages": Field(4, whole(1, EPOCHS), TRAINING),
    "optimizer.stages_total": Field(250.0, number(1, 1e12), TRAINING),
    # Multiples of a layer's rates from an epoch on; 0 freezes it. "conv1/bias" is its bias alone.
    "optimizer.layer_rates": Field(
        (),
        entries(
            "(epoch, layer, multiple), as in \"((0,'conv1',0.0),(5,'fc8/bias',0.5))\"",
            whole(0, EPOCHS), text(), STRENGTH,
        ),
        TRAINING,
    ),
    #
    # The images.
    "data.name": Field(
        "", Rule("a TFDS name, or a folder of class folders, as in --config.data.name=~/photos", text().holds), DATA
    ),
    "data.train_split": Field("train", text(), DATA),  # as TFDS writes it: train, train[:10%]
    "data.eval_split": Field("validation", text(), DATA),
    "data.validation_fraction": Field(0.1, number(0, 1, above=True, below=True), DATA),  # of a folder that has none
    "data.data_dir": Field("", PATH, FREE),  # where TFDS keeps its data sets; "": $TFDS_DATA_DIR, else TFDS's own
    "data.prepared_dir": Field("", PATH, FREE),  # where prepared sets are written; "": the user's cache folder
    # How prepared images are stored: as JPEGs, or uncompressed, "raw": several times as large, and as fast to read.
    "data.stored": Field("jpeg", one_of(*STORED), DATA, newer=True),
    "data.on_device": Field(False, FLAG, ROUNDING),  # hold the training set on the device as uint8, and augment there
    "data.size": Field(256, whole(1, MAX_SIZE), INPUT),  # the side of prepared images, and of the mean image
    # The shorter side to `size` and then the centre square, or both sides to `size`, which warps the photo.
    "data.resize": Field("shorter", one_of("shorter", "warp"), VIEW, newer=True),
    "data.crop": Field(224, whole(1, MAX_SIZE), VIEW),  # the side of what the network sees
    # What is removed: pixel, each pixel's mean; centre, its centre window wherever the crop is; channel, each channel's
    # mean; value, mean_value; none.
    "data.mean": Field("none", one_of(*augment.MEANS), INPUT),
    "data.mean_value": Field((0.0, 0.0, 0.0), several(number(-1e6, 1e6), 3), INPUT, newer=True),  # of R, G, B, 0 to 255
    # What is left of R, G and B is divided by these; (): it stays in grey levels.
    "data.deviation": Field((), several(number(0, 1e6, above=True), 0, 3), INPUT, newer=True),
    "data.random_crop": Field(False, FLAG, TRAINING),  # else the centre
    "data.flip": Field(False, FLAG, TRAINING),  # half of the crops, left to right
    "data.crop_chunk": Field(1, whole(1, 2**20), TRAINING),  # consecutive images that share one offset and flip
    "data.color_noise": Field(0.0, number(0, 1000), TRAINING),  # the standard deviation of the alphas, section 4.1
    "data.color_noise_epochs": Field(-1, whole(-1, EPOCHS), TRAINING),  # it stops at this epoch; -1: never
    "data.divide_by_noise": Field(False, FLAG, TRAINING, newer=True),  # training images by 1 + color_noise
    #
    # Fine-tuning, see configs/finetune.py: a run that begins with the parameters of another run, its start.
    "start.workdir": Field("", PATH, TRAINING, newer=True),  # a run's, or that of converted weights; "": initial values
    "start.fresh": Field((), several(text()), TRAINING, newer=True),  # layers that keep their initial values
    # Take the network and its inputs from the start's config; False again once they are taken.
    "start.adopt": Field(False, FLAG, FREE, newer=True),
    # Freeze all layers but these and the fresh ones, by optimizer.layer_rates; (): freeze none.
    "start.learned": Field((), several(text()), FREE, newer=True),
    #
    # Evaluation, devices, and what a run writes.
    "evaluation.every_epochs": Field(1, whole(1, EPOCHS), TRAINING),  # the plateau rule looks at each
    "evaluation.batch_size": Field(128, COUNT, FREE),
    "evaluation.views": Field(1, one_of(1, 10), TRAINING),  # of the last one; the others see the centre crop alone
    "devices.data": Field(1, COUNT, FREE),  # copies of the network, each on its share of the batch
    "devices.tower": Field(0, whole(0, 2**10), FREE),  # devices of a copy; 0: one per tower if they are there, else one
    "checkpoint_every_steps": Field(1000, FREQUENCY, FREE),
    "log_every_steps": Field(20, FREQUENCY, FREE),
}  # fmt: skip
IN_CHAINS = {"layers", "num_classes", "towers", "pool_size", "pool_stride", "dtype"}  # what a chain of layers reads
IN_CHAINS |= {f"{norm}.{name}" for norm in ("lrn", "spatial_norm") for name in ("size", "k", "alpha", "beta")}
IN_CHAINS.add("lrn.divide_by_size")
# Fields that are read only where another field has one of some values; a section stands for all its fields.
READ_IF = {
    "model.init_std": ("model.init", ("normal",)),
    "model.init_bias": ("model.init", ("normal",)),
    "optimizer.momentum": ("optimizer.algorithm", ("momentum", "sgd")),
    "optimizer.bias_drop_epochs": ("optimizer.bias_rule", ("epochs",)),
    "optimizer.drop_epochs": ("optimizer.rule", ("epochs",)),
    "optimizer.drops": ("optimizer.rule", ("plateau",)),
    "optimizer.patience": ("optimizer.rule", ("plateau",)),
    "optimizer.min_improvement": ("optimizer.rule", ("plateau",)),
    "optimizer.stages": ("optimizer.rule", ("stages",)),
    "optimizer.stages_total": ("optimizer.rule", ("stages",)),
    "data.mean_value": ("data.mean", ("value",)),
}
OPTIONAL = {"model.init_std.conv6", "model.init_bias.conv6"}  # initial values of a layer that most networks lack


def default() -> ConfigDict:
    """Every field at its default, in sections. It has no name and no data, and check refuses it without them."""
    return unflat({name: field.default for name, field in FIELDS.items() if name not in OPTIONAL})


def fields_of(*purposes: str) -> frozenset[str]:
    """The dotted names of the fields of some purposes."""
    return frozenset(name for name, field in FIELDS.items() if field.purpose in purposes)


def fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of a config, {dotted name: value}."""
    return flatten_dict(config.to_dict(), sep=".")


def flat(tree: Any) -> dict[str, Any]:
    """A config, or what was read from its JSON, as {dotted name: value}, the values as JSON has them: lists.

    Raises ValueError if it is no tree of fields.
    """
    tree = json.loads(tree.to_json() if isinstance(tree, ConfigDict) else json.dumps(tree))
    if not isinstance(tree, dict):
        raise ValueError(f"it is {json.dumps(tree)[:40]} and must be an object")
    return flatten_dict(tree, sep=".")


def unflat(values: dict[str, Any]) -> ConfigDict:
    """A config of {dotted name: value}."""
    return ConfigDict(unflatten_dict(values, sep="."))


# --- The check --------------------------------------------------------------------------------------------------------


def check(config: ConfigDict):
    """Raises UserError, naming the field, if a config makes no run; what only the data can tell comes later."""
    refuse_wrong_values(config)
    _refuse_misfits(config)


def check_without_data(config: ConfigDict):
    """`check`, for what no data will tell how many classes there are. Raises UserError."""
    check(config)
    if config.model.num_classes == 0:
        raise UserError("the config has as many classes as its data: say how many, --config.model.num_classes=10")


def refuse_wrong_values(config: ConfigDict):
    """Raises UserError if a field is missing, is none of FIELDS, or holds what it may not; each is judged alone."""
    there = fields(config)
    if unknown := there.keys() - FIELDS.keys():
        raise UserError(f"--config.{min(unknown)} is no field of a config: alexnet_jax/config.py has them all")
    if missing := FIELDS.keys() - there.keys() - OPTIONAL:
        raise UserError(f"the config has no field {min(missing)}: begin with config.default(), as configs/paper.py")
    for name, value in there.items():
        if says := wrong(name, value):
            raise UserError(f"--config.{says}")


def wrong(name: str, value: Any) -> str | None:
    """What is wrong with the value of a field, in words that begin with its name; None if nothing is."""
    rule = FIELDS[name].rule
    return None if rule.holds(value) else f"{name} is {_shown(value)} and must be {rule.says}"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 80 else f"{shown[:77]}..."


def _misfit(name: str, value: Any, must: str) -> UserError:
    return UserError(f"--config.{name} is {_shown(value)} and {must}")


def refuse_idle(config: ConfigDict, given: Collection[str]):
    """Raises UserError if a field that the command line sets has no effect because of another field.

    given: dotted names of these fields. Others may be idle, as those that a preset took over from another one.
    """
    there = fields(config)
    for name in sorted(given):
        section = name.rpartition(".")[0]
        other, values = READ_IF.get(name) or READ_IF.get(section) or ("", ())
        if other and there[other] not in values:
            raise UserError(
                f"--config.{name} has no effect while {other} is {there[other]}: set --config.{other}={values[0]} too, "
                "or leave it out"
            )


def refuse_misfits_of_network(config: ConfigDict):
    """Raises UserError if fields that are each allowed make no network, or none for the images."""
    if config.model.layers:
        _refuse_chain(config.model)
    else:
        _refuse_network(config.model)
    d = config.data
    if d.crop > d.size:
        raise _misfit("data.crop", d.crop, f"must be at most data.size, {d.size}")


def _refuse_misfits(config: ConfigDict):
    """Raises UserError if fields that are each allowed do not fit each other."""
    refuse_misfits_of_network(config)
    m = config.model
    there = {*CONVOLUTIONS[: len(m.conv_widths)], *model.FULLY_CONNECTED} - {*m.removed}
    if absent := [name for name in m.exchange if name not in there]:
        why = f"must not name {absent[0]}, which model.removed or conv_widths leaves out"
        raise _misfit("model.exchange", m.exchange, why)
    _refuse_start(config)
    for name, size in (("batch_size", config.batch_size), ("evaluation.batch_size", config.evaluation.batch_size)):
        if size % config.devices.data:
            raise _misfit(name, size, f"must divide over the {config.devices.data} copies of --config.devices.data")
    layers = _shapes(config)
    optimizer.frozen(config.optimizer, layers, config.epochs)  # which knows what layer_rates can name
    if strange := [name for name, _ in config.optimizer.layer_decays if name not in layers]:
        raise _misfit("optimizer.layer_decays", strange[0], f"must name layers out of {', '.join(layers)}")


def _refuse_network(m: ConfigDict):
    convolutions = CONVOLUTIONS[: len(m.conv_widths)]
    for name in ("conv_sizes", "conv_strides"):
        if len(m[name]) != len(convolutions):
            raise _misfit(f"model.{name}", m[name], f"must have {len(convolutions)} entries, as model.conv_widths has")
    for name in ("conv_widths", "fc_widths"):
        if any(width % m.towers for width in m[name]):
            raise _misfit(f"model.{name}", m[name], f"must divide into {m.towers} towers")
    if "fc8" not in m.exchange:
        raise _misfit("model.exchange", m.exchange, "must hold fc8: the classifier reads every tower")
    named = {
        "pooled": m.pooled,
        "lrn.layers": m.lrn.layers,
        "lrn.before_activation": m.lrn.before_activation,
        "lrn.after_pool": m.lrn.after_pool,
        "spatial_norm.layers": m.spatial_norm.layers,
    }
    for name, layers in named.items():
        if not set(layers) <= set(convolutions):
            raise _misfit(f"model.{name}", layers, f"takes conv1 to {convolutions[-1]} here")
    if both := set(m.lrn.before_activation) & set(m.lrn.after_pool):
        raise UserError(
            f"--config.model.lrn.before_activation and after_pool both name {sorted(both)}: a layer has its norm once"
        )
    for name in ("init_std", "init_bias"):
        if lacks := [layer for layer in (*convolutions, *model.FULLY_CONNECTED) if layer not in m[name]]:
            raise UserError(f"--config.model.{name} has no value for {', '.join(lacks)}: add it to the config")


def layers_of(m: ConfigDict) -> tuple[str, ...]:
    """The layers with weights of a `model` section, in order; those that it removes are among them."""
    if m.layers:
        return tuple(name for name, kind, *_ in m.layers if cifar.ENTRIES[kind])
    return (*CONVOLUTIONS[: len(m.conv_widths)], *model.FULLY_CONNECTED)


TAKEN = ("params", "ids", "labels", "classes", "workdir", "step", "config")  # by Flax, and in a file of features


def _refuse_chain(m: ConfigDict):
    for name, value in flat(m).items():
        default = json.loads(json.dumps(FIELDS[f"model.{name}"].default))
        if name not in IN_CHAINS and value != default:
            raise _misfit(f"model.{name}", value, f"has no effect on a network of model.layers: leave it at {default}")
    names, kinds = zip(*(entry[:2] for entry in m.layers), strict=True)
    if twice := [name for name in names if names.count(name) > 1]:
        raise _misfit("model.layers", names, f"names {twice[0]} twice")
    if taken := [name for name in names if name in TAKEN]:
        raise _misfit("model.layers", taken[0], f"must not name a layer, as {', '.join(TAKEN)} have other meanings")
    if not cifar.ENTRIES[kinds[0]] or kinds[-1] != "dense":
        raise _misfit("model.layers", kinds, "must begin with a layer with weights, and end with a dense one")
    after = [(name, kind) for name, kind in zip(names, kinds, strict=True)][kinds.index("dense") :]
    if maps := [name for name, kind in after if kind not in ("dense", "relu", "tanh")]:
        raise _misfit("model.layers", maps[0], "needs maps, and follows a dense layer, which has none")
    units = [rest[0] for _, _, *rest in m.layers if rest]
    if units[-1] or not all(units[:-1]):
        raise _misfit("model.layers", m.layers, "must give the last layer 0 units, as many as classes, and no other")
    if even := [name for name, kind, *rest in m.layers if kind == "local" and rest[1] % 2 == 0]:
        raise _misfit("model.layers", even[0], "is locally connected, and its size must be odd")
    if m.towers != 1:
        raise _misfit("model.towers", m.towers, "must be 1 for a network of model.layers")
    if m.pool_stride > m.pool_size:
        raise _misfit("model.pool_stride", m.pool_stride, f"must be at most model.pool_size, {m.pool_size}, there")


def _refuse_start(config: ConfigDict):
    start, layers = config.start, layers_of(config.model)
    for name in ("fresh", "learned"):
        if not set(start[name]) <= set(layers):
            raise _misfit(f"start.{name}", start[name], f"must be out of {', '.join(layers)}")
    if not start.workdir and (start.fresh or start.learned or start.adopt):
        raise UserError("name the run to start from, as in --config.start.workdir=runs/base")


def _shapes(config: ConfigDict) -> dict:
    """The parameters' shapes. Raises UserError if images are so small that maps have no pixel left."""
    crop = config.data.crop
    try:
        shapes = network.shapes(config.model, crop)
    except (ValueError, TypeError, ZeroDivisionError) as e:  # jax's own, of maps without a pixel
        fields = "the sizes in model.layers" if config.model.layers else "model.conv_sizes, model.conv_strides"
        raise UserError(
            f"the network does not fit images of {crop} pixels ({' '.join(str(e).split())[:200]}): raise "
            f"--config.data.crop, or lower {fields}, model.pool_size and model.pool_stride"
        ) from e
    if empty := [name for name, layer in shapes.items() if not math.prod(layer["kernel"].shape[:-1])]:
        raise UserError(f"{empty[0]} sees nothing of images of {crop} pixels: raise --config.data.crop")
    return shapes
