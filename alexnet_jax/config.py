"""What every field of a config may hold, and whether its fields fit each other: checked before anything is written.

    check(config)      # raises UserError, in one line, naming the field and what it takes

configs/paper.py says what the fields mean. What only the images can tell, such as a batch larger than the data set,
main.py checks once it has them, still before the workdir is claimed. The upper bounds of numbers are far beyond any
use: they keep a slip of the finger from filling the memory, or from compiling for hours.
"""

import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, model, optimizer
from alexnet_jax.data import augment
from alexnet_jax.data.prepare import MAX_SIZE

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
LAYERS = (*CONVOLUTIONS, *model.FULLY_CONNECTED)


class Rule(NamedTuple):
    """What a field may hold."""

    says: str  # in words, after "must be"
    holds: Callable[[object], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number, both bounds among them."""
    return Rule(
        f"a whole number from {low:,} to {high:,}",
        lambda v: isinstance(v, Integral) and not isinstance(v, bool) and low <= v <= high,
    )


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number, both bounds among them unless it must be `above` the one or `below` the other."""
    says = f"a number {'above' if above else 'of at least'} {low:g} and {'below' if below else 'at most'} {high:g}"

    def holds(v):
        real = isinstance(v, Real) and not isinstance(v, bool)
        return real and low <= v <= high and not (above and v == low) and not (below and v == high)  # NaN fails

    return Rule(says, holds)


def one_of(*choices) -> Rule:
    """One of a few values."""
    return Rule(f"one of {', '.join(map(str, choices))}", lambda v: type(v) in map(type, choices) and v in choices)


def text(empty: bool = False) -> Rule:
    """A line of text, which may be empty."""
    return Rule(
        "one line of text" + ("" if empty else ", not empty"),
        lambda v: isinstance(v, str) and v.isprintable() and (empty or bool(v.strip())),
    )


def several(rule: Rule, *counts: int) -> Rule:
    """A tuple whose every entry keeps a rule, of any length or of one of `counts`."""
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
    """A tuple of tuples whose every place keeps its own rule."""

    def holds(v):
        return isinstance(v, (tuple, list)) and all(
            isinstance(e, (tuple, list))
            and len(e) == len(rules)
            and all(r.holds(x) for r, x in zip(rules, e, strict=True))
            for e in v
        )

    return Rule(f"a tuple of entries {form}", holds)


FLAG = one_of(True, False)
COUNT = whole(1, 2**16)  # of images in a batch, of copies; nobody trained ImageNet with more than half of it
EPOCHS = 10**6
FREQUENCY = whole(1, 10**9)  # steps from one record to the next
STRENGTH = number(0, 1e6)
# A norm adds up so many shifted copies of its maps, each of which is compiled.
WINDOW = whole(1, 255)

FIELDS = {
    "name": text(),
    "seed": whole(0, 2**32 - 1),  # what jax.random.key takes
    "batch_size": COUNT,
    "epochs": whole(1, EPOCHS),
    "model.num_classes": whole(0, 10**6),
    "model.towers": whole(1, 2**10),
    "model.exchange": some_of(*model.EXCHANGES),
    "model.conv_widths": several(whole(1, 2**14), 5, 6),
    "model.fc_widths": several(whole(1, 2**16), 2),
    "model.removed": some_of("conv3", "conv4"),
    "model.conv1_padding": several(whole(0, 64), 2),
    "model.activation": one_of(*model.ACTIVATIONS),
    "model.pool_size": whole(1, 64),
    "model.pool_stride": whole(1, 64),
    "model.average_pool": whole(0, 64),
    "model.dropout": number(0, 1, below=True),
    "model.dropout_before": some_of(*model.FULLY_CONNECTED),
    "model.dtype": one_of("float32", "bfloat16"),
    "model.lrn.layers": some_of(*CONVOLUTIONS),
    "model.lrn.size": WINDOW,
    "model.lrn.k": number(0, 1e6, above=True),
    "model.lrn.alpha": STRENGTH,
    "model.lrn.beta": number(0, 100),
    "model.lrn.divide_by_size": FLAG,
    "model.lrn.per_tower": FLAG,
    "model.lrn.before_activation": some_of(*CONVOLUTIONS),
    "model.lrn.after_pool": some_of(*CONVOLUTIONS),
    "model.spatial_norm.layers": some_of(*CONVOLUTIONS),
    "model.spatial_norm.size": WINDOW,
    "model.spatial_norm.k": number(0, 1e6, above=True),
    "model.spatial_norm.alpha": STRENGTH,
    "model.spatial_norm.beta": number(0, 100),
    "model.init": one_of("normal", "uniform"),
    **{f"model.init_std.{layer}": STRENGTH for layer in LAYERS},
    **{f"model.init_bias.{layer}": number(-1e6, 1e6) for layer in LAYERS},
    "optimizer.algorithm": one_of(*optimizer.ALGORITHMS),
    "optimizer.learning_rate": number(0, 1e9, above=True),
    "optimizer.momentum": number(0, 1, below=True),
    "optimizer.weight_decay": STRENGTH,
    "optimizer.decay_biases": FLAG,
    "optimizer.bias_rate": STRENGTH,
    "optimizer.bias_rule": one_of(*optimizer.BIAS_RULES),
    "optimizer.bias_drop_epochs": several(whole(0, EPOCHS)),
    "optimizer.rule": one_of(*optimizer.RULES),
    "optimizer.factor": number(0, 1, above=True),
    "optimizer.drops": whole(0, 1000),
    "optimizer.patience": whole(1, EPOCHS),
    "optimizer.min_improvement": number(0, 1),
    "optimizer.drop_epochs": several(whole(0, EPOCHS)),
    "optimizer.stages": whole(1, EPOCHS),
    "optimizer.stages_total": number(1, 1e12),
    "optimizer.layer_rates": entries(
        "(epoch, layer, multiple), as in \"((0,'conv1',0.0),(5,'fc8/bias',0.5))\"", whole(0, EPOCHS), text(), STRENGTH
    ),
    "data.name": Rule("a TFDS name, or a folder of class folders, as in --config.data.name=~/photos", text().holds),
    "data.train_split": text(),
    "data.eval_split": text(),
    "data.validation_fraction": number(0, 1, above=True, below=True),
    "data.data_dir": text(empty=True),
    "data.prepared_dir": text(empty=True),
    "data.size": whole(1, MAX_SIZE),
    "data.resize": one_of("shorter", "warp"),
    "data.crop": whole(1, MAX_SIZE),
    "data.random_crop": FLAG,
    "data.flip": FLAG,
    "data.crop_chunk": whole(1, 2**20),
    "data.mean": one_of(*augment.MEANS),
    "data.mean_value": several(number(-1e6, 1e6), 3),
    "data.deviation": several(number(0, 1e6, above=True), 0, 3),
    "data.color_noise": number(0, 1000),
    "data.color_noise_epochs": whole(-1, EPOCHS),
    "data.divide_by_noise": FLAG,
    "data.on_device": FLAG,
    "start.workdir": text(empty=True),
    "start.fresh": some_of(*LAYERS),
    "evaluation.every_epochs": whole(1, EPOCHS),
    "evaluation.batch_size": COUNT,
    "evaluation.views": one_of(1, 10),
    "devices.data": COUNT,
    "devices.tower": whole(0, 2**10),
    "checkpoint_every_steps": FREQUENCY,
    "log_every_steps": FREQUENCY,
}
OPTIONAL = {"model.init_std.conv6", "model.init_bias.conv6"}  # the values of a layer that most networks lack


def check(config: ConfigDict):
    """Raises UserError, naming the field, if a config makes no run; what only the data can tell comes later."""
    there = dict(fields(config))
    if unknown := there.keys() - FIELDS.keys():
        raise UserError(f"--config.{min(unknown)} is no field of a config: configs/paper.py has them all")
    if missing := FIELDS.keys() - there.keys() - OPTIONAL:
        raise UserError(f"the config has no field {min(missing)}: begin with a copy of configs/paper.py's")
    for field, value in there.items():
        if not FIELDS[field].holds(value):
            raise _wrong(field, value, f"must be {FIELDS[field].says}")
    _check_together(config)


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The fields of a config, (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, (ConfigDict, FrozenConfigDict)):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _wrong(field: str, value, must: str) -> UserError:
    shown = repr(value)
    return UserError(f"--config.{field} is {shown if len(shown) < 80 else shown[:77] + '...'} and {must}")


def _check_together(config: ConfigDict):
    """Fields that hold what they may, and do not go together."""
    m, d = config.model, config.data
    convolutions = CONVOLUTIONS[: len(m.conv_widths)]
    layers = (*convolutions, *model.FULLY_CONNECTED)
    for field in ("conv_widths", "fc_widths"):
        if any(width % m.towers for width in m[field]):
            raise _wrong(f"model.{field}", m[field], f"must divide into {m.towers} towers")
    if "fc8" not in m.exchange:
        raise _wrong("model.exchange", m.exchange, "must hold fc8: the classifier reads every tower")
    norms = [("lrn", field) for field in ("layers", "before_activation", "after_pool")] + [("spatial_norm", "layers")]
    for section, field in norms:
        if not set(m[section][field]) <= set(convolutions):
            raise _wrong(f"model.{section}.{field}", m[section][field], f"takes conv1 to {convolutions[-1]} here")
    if both := set(m.lrn.before_activation) & set(m.lrn.after_pool):
        raise UserError(
            f"--config.model.lrn.before_activation and after_pool both name {sorted(both)}: a layer has its norm once"
        )
    for field in ("init_std", "init_bias"):
        if lacks := [layer for layer in layers if layer not in m[field]]:
            raise UserError(f"--config.model.{field} has no value for {', '.join(lacks)}: add it to the config")
    if not set(config.start.fresh) <= set(layers):
        raise _wrong("start.fresh", config.start.fresh, f"must be out of {', '.join(layers)}")
    if d.crop > d.size:
        raise _wrong("data.crop", d.crop, f"must be at most data.size, {d.size}")
    for field, size in (("batch_size", config.batch_size), ("evaluation.batch_size", config.evaluation.batch_size)):
        if size % config.devices.data:
            raise _wrong(field, size, f"must divide over the {config.devices.data} copies of --config.devices.data")
    shapes = _shapes(config)
    optimizer.frozen(config.optimizer, shapes, config.epochs)  # which knows what layer_rates can name


def _shapes(config: ConfigDict) -> dict:
    """The parameters' shapes. Raises UserError if images are so small that maps come to nothing."""
    try:
        shapes = model.shapes(config.model, config.data.crop)
    except (ValueError, TypeError, ZeroDivisionError) as e:  # jax's own, of maps without a pixel
        raise UserError(
            f"the network does not fit images of {config.data.crop} pixels ({' '.join(str(e).split())[:200]}): raise "
            "--config.data.crop, or lower model.pool_size and model.pool_stride"
        ) from e
    if empty := [name for name, layer in shapes.items() if not math.prod(layer["kernel"].shape[:-1])]:
        raise UserError(f"{empty[0]} sees nothing of images of {config.data.crop} pixels: raise --config.data.crop")
    return shapes
