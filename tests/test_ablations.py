"""The built-in sweeps: each change is the network of its note, and changes nothing else."""

import pytest

from alexnet_jax.config import check
from alexnet_jax.data.batches import steps_in_epoch
from alexnet_jax.network import parameter_count, shapes
from alexnet_jax.runs.run import flat
from configs import paper, source
from experiments import sweep
from experiments.changes import CHANGES
from experiments.sweeps import ablations, start


def changed(cell, base):
    """The fields of a cell's config that differ from the base's, but for its name, which must be the cell's."""
    differ = {field: value for field, value in flat(cell.config).items() if value != flat(base)[field]}
    assert differ.pop("name", "base") == cell.name
    return differ


@pytest.mark.parametrize("name", ["paper", "paper:imagenette", "small", "smoke"])
def test_built_in_sweeps_are_all_networks(name, tmp_path):
    """Every ablation changes something and makes a valid config."""
    base, chosen = sweep.read_sweep(name)
    cells = sweep.make_cells(base, chosen, 1, tmp_path)
    assert [c.name for c in cells] == ["base", *CHANGES]
    changes = [repr(changed(c, base)) for c in cells]
    assert changes[0] == "{}" and len(set(changes)) == len(cells)


NOTES = {  # how the network of a note differs from #145, and its number of parameters
    "lrn_off": ({"lrn.layers": [], "spatial_norm.layers": []}, 60_965_224),  # #148
    "lrn_before_relu": ({"lrn.before_activation": ["conv1", "conv2"]}, 60_965_224),  # #166, but for its second norm
    "lrn_after_pool": ({"lrn.after_pool": ["conv1"], "lrn.before_activation": []}, 60_965_224),  # #120, as far as #131
    "lrn_caffe": ({"lrn.k": 1.0}, 60_965_224),  # #131, as far as #135
    "pooling": ({"pool_size": 2}, 60_965_224),  # #147
    "one_column": ({"towers": 1, "conv_widths": [48, 128, 192, 192, 256]}, 59_798_312),  # #145-half
    "no_exchange": (  # #150: layers-150.cfg
        {"exchange": ["fc8"], "conv_widths": [96, 320, 384, 384, 256], "fc_widths": [8192, 4096]}, 60_714_408,
    ),
    "exchange_conv4": ({"exchange": ["conv4", "fc6", "fc7", "fc8"]}, 61_186_408),  # #132 and #133
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_an_ablation_is_the_network_of_its_note(name):
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES[name].fields(c))
    check(c)
    there, here = flat(source.get_config()), flat(c)
    changed = {field.removeprefix("model."): value for field, value in here.items() if value != there[field]}
    assert (changed, parameter_count(shapes(c.model, c.data.crop))) == NOTES[name]


def test_what_2012_says_that_a_change_costs():
    assert {name: change.top1 for name, change in CHANGES.items() if change.top1 is not None} == {
        "lrn_off": 1.4, "lrn_after_pool": 0.11, "lrn_caffe": -0.14, "pooling": 0.4, "noise_off": 1.0, "one_column": 1.7,
        "no_exchange": 1.17, "conv3_removed": 2.0, "conv4_removed": 2.0,
    }  # fmt: skip


def test_every_ablation_that_cites_a_note_is_compared_with_it():
    assert {name for name, change in CHANGES.items() if "note" in change.source} == set(NOTES)


def test_without_exchange_the_towers_are_narrow_unless_they_are_widened():
    """Without the exchange fc6, fc7 and conv3 lose half of their parameters. Only #150 makes up for that."""
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES["no_exchange_narrow"].fields(c))
    assert parameter_count(shapes(c.model, c.data.crop)) == 33_259_880
    assert CHANGES["no_exchange_narrow"].top1 is None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the 2012 code's network, 60,965,224
        ("conv3_removed", 60_965_224 - 663_936),  # conv4 reads 256 maps instead of 192, as many weights as conv3 had
        ("conv4_removed", 60_965_224 - 663_936),
        ("conv34_removed", 60_965_224 - 885_120 - 663_936 + 9 * (256 - 192) * 256),
        ("ungrouped", 62_378_344),  # MXNet's and other ports without groups
        ("decay_off", 60_965_224),
    ],
)
def test_ablations_without_a_note_have_the_parameters_of_their_networks(name, parameters):
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES[name].fields(c))
    check(c)
    assert parameter_count(shapes(c.model, c.data.crop)) == parameters


@pytest.mark.parametrize(("name", "reads"), [("conv3_removed", "conv4"), ("conv34_removed", "conv5")])
def test_without_conv3_the_next_layer_reads_both_towers(name, reads):
    """Else a loss of layers would be one of exchange too. A base that exchanges there already names it once."""
    c = source.get_config()
    assert CHANGES[name].fields(c)["model.exchange"] == (reads, "fc6", "fc7", "fc8")
    c.model.exchange = ("conv3", reads, "fc8")
    assert CHANGES[name].fields(c)["model.exchange"] == (reads, "fc8")


def test_no_error_of_the_ablations_is_measured_on_images_that_chose_a_rate(tmp_path):
    """The photos of training, of the choice of rates and of the errors are three sets, and nothing else differs."""
    base, changes = sweep.read_sweep("ablations")
    held, rates = sweep.read_sweep("ablation_rates")
    assert base.data.train_split == held.data.train_split == "train[:30%]"
    assert (base.data.eval_split, held.data.eval_split) == ("validation", "train[70%:]")
    there, here = flat(base), flat(held)
    differ = {f for f in here if there[f] != here[f]}
    assert differ - {"optimizer.learning_rate"} == {"name", "data.eval_split", "evaluation.views"}
    for cell in sweep.make_cells(held, rates, 1, tmp_path)[1:]:
        name, _, rate = cell.name.rpartition("_")
        fields = {} if name == "base" else ablations.CHANGES[name].fields(held)
        assert name in ("base", *changes)
        assert rates[cell.name].fields(held) == fields | {"optimizer.learning_rate": float(rate)}


def test_ablations_have_the_changes_of_their_names(tmp_path):
    """A rate of its own is all that this sweep adds to one."""
    base, changes = sweep.read_sweep("ablations")
    assert set(ablations.RATES) <= set(changes)
    for cell in sweep.make_cells(base, changes, 1, tmp_path)[1:]:
        own = {"optimizer.learning_rate": ablations.RATES[cell.name]} if cell.name in ablations.RATES else {}
        assert changes[cell.name].fields(base) == CHANGES[cell.name].fields(base) | own
        assert changed(cell, base)


def test_each_start_changes_one_thing_of_the_paper(tmp_path):
    """All else is that of configs/paper.py. The three of "code" are those of configs/source.py."""
    base, changes = sweep.read_sweep("start")
    as_written = flat(paper.get_config("imagenette"))
    only_here = {"name", "epochs", "log_every_steps", "data.eval_split", "evaluation.every_epochs", "evaluation.views"}
    assert {f for f, value in flat(base).items() if value != as_written[f]} == only_here
    assert steps_in_epoch(9_469, base.batch_size) * base.epochs == 146
    found = {c.name: changed(c, base) for c in sweep.make_cells(base, changes, 1, tmp_path)[1:]}
    conv = {f"model.init_std.conv{i}": 0.03 for i in (3, 4, 5)}
    biases = [f"model.init_bias.{layer}" for layer in ("conv2", "conv4", "conv5", "fc6", "fc7")]
    assert found["std"] == conv
    assert found["biases_0"] == dict.fromkeys(biases, 0.0) and found["biases_01"] == dict.fromkeys(biases, 0.1)
    assert found["fc_std"] == {"model.init_std.fc6": 0.005, "model.init_std.fc7": 0.005}
    assert found["alpha"] == {"model.lrn.divide_by_size": True}
    assert found["norm"] == {"model.lrn.before_activation": ["conv1"]}
    assert found["bias_rate"] == {"optimizer.bias_rate": 2.0}
    assert found["rate_half"] == {"optimizer.learning_rate": 0.005}
    assert found["rate_double"] == {"optimizer.learning_rate": 0.02}
    assert found["code"] == conv | found["norm"] | found["bias_rate"]
    theirs = flat(source.get_config())
    assert {f: theirs[f] for f in found["code"]} == found["code"]
    kernels = shapes(base.model, base.data.crop)
    inputs = {
        layer: parameter_count(kernels[layer]["kernel"]) / kernels[layer]["kernel"].shape[-1] for layer in kernels
    }
    he = {f"model.init_std.{layer}": (2 / n) ** 0.5 for layer, n in inputs.items() if layer not in ("conv1", "fc8")}
    assert found["he"] == pytest.approx(he) and len(found) == len(changes) == 11


def test_when_a_loss_leaves_chance():
    """The first step that ends at least 20 steps whose mean loss is below ln 10 - 0.05 = 2.2526."""
    level = [(step, 2.30) for step in range(5, 101, 5)]
    assert start.leaves_chance(level) is None and start.leaves_chance([]) is None
    falls = level + [(step, 2.20) for step in range(105, 201, 5)]
    assert start.leaves_chance(falls) == 110  # two low records of four: a mean of 2.25
    assert start.leaves_chance(reversed(falls)) == 110
    assert start.leaves_chance(falls, over=5) == 105
    assert start.leaves_chance(falls, classes=9) is None  # ln 9 = 2.197
    assert start.leaves_chance([(50, 2.3), (100, 2.3), (150, 2.2)]) == 150  # a record may be longer than 20 steps
    assert start.leaves_chance([(1, 0.5), (10, 0.5)]) is None  # too few steps so far
    assert start.leaves_chance([(20, 9.0), (40, 2.2)]) == 40  # what was before the fall does not matter
    assert start.leaves_chance([(20, 2.2), (40, 2.2), (20, 2.3), (40, 2.3)]) is None  # a resumed run's second records


def test_towers_differ_in_what_could_make_them_specialise(tmp_path):
    base, changes = sweep.read_sweep("towers")
    found = {c.name: changed(c, base) for c in sweep.make_cells(base, changes, 1, tmp_path)[1:]}
    assert found == {
        "lrn_across": {"model.lrn.per_tower": False},
        "lrn_off": {"model.lrn.layers": []},
        "exchange_conv2": {"model.exchange": ["conv2", "conv3", "fc6", "fc7", "fc8"]},
        "no_exchange_narrow": {"model.exchange": ["fc8"]},
        "long": {"epochs": 24, "optimizer.drop_epochs": [18, 22]},
    }
    assert base.model.conv_widths == (96, 64, 96, 96, 64) and base.model.init_std.conv2 == 0.01
    assert base.model.lrn.per_tower and base.model.towers == 2
