"""Every field of a config has a row that says what it takes, and nothing is written before all of them are checked."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import UserError, config, main, network
from alexnet_jax.config import (
    FIELDS,
    FREE,
    FUNCTION,
    INPUT,
    OPTIONAL,
    READ_IF,
    SHAPE,
    check,
    default,
    fields,
    fields_of,
    refuse_idle,
)  # fmt: skip
from configs import paper

ROOT = Path(__file__).parents[1]

PRESETS = sorted(p.stem for p in Path(paper.__file__).parent.glob("*.py") if p.stem not in ("__init__", "variants"))
STARTED = ("finetune", "six_conv_2012")  # those that begin with another run, which the command line names
# Fields that two of them decide, where the other may be named.
BLAMED = {
    "model.towers": ("conv_widths",), "model.conv_widths": ("conv_sizes",), "data.size": ("data.crop",),
    "devices.data": ("batch_size",), "model.pool_size": ("data.crop",), "model.pool_stride": ("data.crop",),
    "model.conv_sizes": ("data.crop",), "model.conv_strides": ("data.crop",),
    "start.adopt": ("start.workdir",), "start.fresh": ("start.workdir",), "start.learned": ("start.workdir",),
}  # fmt: skip
NONSENSE = (
    -1, 0, 10**20, -1.5, 0.5, math.nan, math.inf, -math.inf, "", "nonsense", "two\nlines", "\0", None, True, b"x", (),
    (-1,), (0, 0), ("a", "b"), (math.nan,) * 3, (-1, 2, 3), ((),), ((0, "conv1"),), ((0, "conv1", -1),),
    ((0.5, "conv1", 1),), [[]], {}, object(),
)  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_config_keeps_the_rules(name):
    preset = importlib.import_module(f"configs.{name}")
    for arg in ("imagenet2012", "glyphs,smoke"):
        c = preset.get_config(arg)
        c.start.workdir = "runs/base" if name in STARTED else ""
        check(c)


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_has_a_row_and_every_row_is_a_field(name):
    there = fields(importlib.import_module(f"configs.{name}").get_config())
    assert FIELDS.keys() - OPTIONAL <= there.keys() <= FIELDS.keys()


def test_every_field_has_one_of_the_purposes_and_a_default_that_it_may_hold():
    purposes = (FUNCTION, SHAPE, INPUT, config.VIEW, config.ROUNDING, config.DATA, config.TRAINING, FREE)
    assert {row.purpose for row in FIELDS.values()} == set(purposes) and fields_of(*purposes) == FIELDS.keys()
    refused = [name for name, row in FIELDS.items() if not row.rule.holds(row.default)]
    assert refused == ["name", "data.name"]  # only the user knows these
    c = default()
    c.name, c.data.name = "mine", "glyphs"
    check(c)


def test_what_may_change_when_a_run_resumes_and_what_makes_another_function():
    """All of both: whoever gives a field a purpose is to think of what follows from it."""
    assert fields_of(FREE) == {
        "name", "data.data_dir", "data.prepared_dir", "evaluation.batch_size", "devices.data", "devices.tower",
        "checkpoint_every_steps", "log_every_steps", "start.adopt", "start.learned",
    }  # fmt: skip
    model = {name.removeprefix("model.") for name in FIELDS if name.startswith("model.") and ".init_" not in name}
    other = {
        "num_classes",
        "conv_widths",
        "conv_sizes",
        "fc_widths",
        "exchange",
        "dropout",
        "dropout_before",
        "init",
        "layers",
    }
    assert {name.removeprefix("model.") for name in fields_of(FUNCTION)} == model - other - {"dtype"}
    assert fields_of(INPUT) == {"data.size", "data.mean", "data.mean_value", "data.deviation"}


def put(config, field, value):
    """Sets a field to a value of any type, as a config file can."""
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - OPTIONAL))
def test_nonsense_of_every_type_is_refused_by_name_or_makes_a_network(field):
    """What is not refused lets the network be built: nothing else may be raised, and at once."""
    refused = 0
    for value in NONSENSE:
        c = paper.get_config("glyphs,smoke")
        put(c, field, value)
        try:
            check(c)
        except UserError as e:
            refused += 1
            assert "\n" not in str(e) and len(str(e)) < 500
            assert any(name in str(e) for name in (field, *BLAMED.get(field, ()))), (value, str(e))
        else:
            if field.startswith("model.") or field == "data.crop":
                network.shapes(c.model, c.data.crop)
    assert refused >= 15


NUMBERS = sorted(name for name, value in fields(paper.get_config()).items() if type(value) in (int, float))


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", np.int64(32)), ("optimizer.learning_rate", np.float32(0.5)),
     ("optimizer.drop_epochs", tuple(np.arange(3)))],
)  # fmt: skip
def test_numbers_that_no_file_could_hold_are_refused(field, value):
    c = paper.get_config("glyphs,smoke")
    put(c, field, value)
    with pytest.raises(UserError, match=field):
        check(c)


def test_a_field_that_the_command_line_sets_in_vain_is_refused():
    c = paper.get_config("glyphs,smoke")
    refuse_idle(c, {"optimizer.patience", "optimizer.momentum", "batch_size", "model.init_std.conv1", "data.crop"})
    for given, says in (
        ("optimizer.drop_epochs", "drop_epochs has no effect while optimizer.rule is plateau: set --config.optimizer"),
        ("optimizer.bias_drop_epochs", "while optimizer.bias_rule is weights: set --config.optimizer.bias_rule=epochs"),
        ("data.mean_value", "while data.mean is pixel: set --config.data.mean=value too, or leave it out"),
    ):
        with pytest.raises(UserError, match=says):
            refuse_idle(c, {given})
    c.optimizer.algorithm, c.model.init = "adam", "uniform"
    for given in ("optimizer.momentum", "model.init_std.conv1", "model.init_bias.fc6"):
        with pytest.raises(UserError, match=given):
            refuse_idle(c, {given})


def test_what_reads_a_field_is_a_field_that_can_have_the_value():
    for name, (other, values) in READ_IF.items():
        assert name in FIELDS or any(field.startswith(f"{name}.") for field in FIELDS)
        assert all(FIELDS[other].rule.holds(value) for value in values)


@pytest.mark.parametrize("field", NUMBERS)
def test_no_number_may_be_infinite_or_none(field):
    for value in (math.nan, math.inf, -math.inf, 10**20, -(10**20)):
        c = paper.get_config("glyphs,smoke")
        put(c, field, value)
        with pytest.raises(UserError, match=field):
            check(c)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 10**6), ("model.lrn.size", 255), ("model.spatial_norm.size", 255), ("model.average_pool", 64),
     ("data.crop_chunk", 2**20), ("optimizer.drop_epochs", tuple(range(1000)))],
)  # fmt: skip
def test_the_largest_that_is_allowed_is_checked_at_once(field, value):
    c = paper.get_config("glyphs,smoke")
    put(c, field, value)
    check(c)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.towers": 3}, "model.conv_widths is (12, 32, 48, 48, 32) and must divide into 3 towers"),
        ({"model.exchange": ("conv3",)}, "must hold fc8"),
        ({"model.lrn.layers": ("conv6",)}, "model.lrn.layers is ('conv6',) and takes conv1 to conv5 here"),
        ({"model.conv_widths": (8,) * 6}, "model.conv_sizes is (11, 5, 3, 3, 3) and must have 6 entries"),
        (
            {"model.conv_widths": (8,) * 6, "model.conv_sizes": (3,) * 6, "model.conv_strides": (1,) * 6},
            "model.init_std has no value for conv6",
        ),
        ({"model.exchange": ("conv6", "fc8")}, "model.exchange is ('conv6', 'fc8') and must not name conv6"),
        (
            {"model.removed": ("conv3",)},
            "model.exchange is ('conv3', 'fc6', 'fc7', 'fc8') and must not name conv3, which model.removed or ",
        ),
        ({"model.pooled": ("conv6",)}, "model.pooled is ('conv6',) and takes conv1 to conv5 here"),
        ({"model.lrn.before_activation": ("conv1",), "model.lrn.after_pool": ("conv1",)}, "norm once"),
        ({"start.fresh": ("conv6",)}, "start.fresh"),
        ({"start.fresh": ("fc8",)}, "as in --config.start.workdir=runs/base"),
        ({"start.learned": ("fc8",)}, "as in --config.start.workdir=runs/base"),
        ({"data.crop": 97}, "data.crop is 97 and must be at most data.size, 96"),
        ({"data.crop": 12}, "raise --config.data.crop"),
        ({"devices.data": 3}, "batch_size is 32 and must divide over the 3 copies"),
        ({"devices.data": 0}, "devices.data is 0 and must be a whole number from 1"),
        ({"optimizer.layer_rates": ((0, "conv9", 0.0),)}, "names 'conv9'; the layers are"),
        ({"optimizer.factor": -1.0}, "optimizer.factor is -1.0 and must be a number above 0 and at most 1"),
        ({"optimizer.learning_rate": math.nan}, "optimizer.learning_rate is nan and must be"),
        ({"data.name": ""}, "a folder of class folders"),
    ],
)
def test_says_what_a_field_takes(changes, says):
    c = paper.get_config("glyphs,smoke")
    for field, value in changes.items():
        put(c, field, value)
    with pytest.raises(UserError) as e:
        check(c)
    assert says in str(e.value)


def test_a_field_that_is_not_there_and_one_too_many_are_named():
    c = paper.get_config()
    c.optimizer.nesterov = True
    with pytest.raises(UserError, match=r"optimizer\.nesterov is no field"):
        check(c)
    c = paper.get_config()
    del c.model.lrn
    with pytest.raises(UserError, match=r"no field model\.lrn"):
        check(c)


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("data.crop", 73, 64),
        ("optimizer.rule", "cosine", "epochs"),
        ("data.mean", "median", "pixel"),
        ("data.deviation", (60.0, 0.0, 60.0), ()),
        ("data.mean_value", (1.0,), (0.0, 0.0, 0.0)),
        ("data.crop_chunk", 0, 1),
        ("data.size", 0, 72),
        ("data.stored", "png", "jpeg"),
        ("data.train_split", "training", "train"),
        ("batch_size", 97, 16),
        ("seed", -1, 0),
        ("model.num_classes", 4, 3),
        ("optimizer.drop_epochs", ("three",), (3,)),
        ("evaluation.batch_size", 10**9, 10),
        ("epochs", 10**9, 1),
    ],
)
def test_a_wrong_field_costs_nothing(config, tmp_path, monkeypatch, field, wrong, right):
    """The workdir is not touched, and the corrected command can have it."""
    config.epochs = 1
    put(config, field, wrong)
    with pytest.raises(UserError) as e:
        main.run(config, tmp_path / "run")
    assert field in str(e.value) or (field == "data.train_split" and "training" in str(e.value))
    assert not (tmp_path / "run").exists()
    put(config, field, right)
    monkeypatch.setattr(main, "train", lambda *_: None)  # claims the workdir, and stops
    assert main.run(config, tmp_path / "run") == 130
    assert (tmp_path / "run" / "config.json").exists()


def test_a_config_is_checked_without_taking_a_device():
    """The process that plans a sweep or a benchmark would keep an accelerator's memory from those that compute."""
    code = (
        "from jax._src import xla_bridge\nfrom alexnet_jax.config import check\n"
        "from configs import cifar10_80sec, paper\n"
        "check(paper.get_config()); check(cifar10_80sec.get_config()); print(xla_bridge.backends_are_initialized())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "False\n"
