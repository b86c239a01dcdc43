"""Fine-tuning: what a run takes from its start, which layers it leaves alone, and PyTorch's optimizers."""

import importlib
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from helpers.runs import check_equal, records
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import UserError, main, optimizer, towers
from alexnet_jax.analysis import cost as step_cost
from alexnet_jax.config import check, flat
from alexnet_jax.data.prepare import prepare
from alexnet_jax.network import shapes
from alexnet_jax.runs import finetune
from alexnet_jax.runs.run import load_run
from alexnet_jax.train import program
from configs import finetune as preset

FROM_FC8 = ((0, "conv1", 0.0), (0, "conv2", 0.0), (0, "conv3", 0.0), (0, "conv4", 0.0), (0, "conv5", 0.0),
            (0, "fc6", 0.0), (0, "fc7", 0.0))  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two classes of 24 photos each without a validation folder: RGB, grey and CMYK, and one cut short."""
    root = tmp_path_factory.mktemp("own") / "photos"
    rng = np.random.default_rng(1)
    for i, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for n in range(24):
            pixels = rng.normal(70 + 110 * i, 25, (90, 75, 3)).clip(0, 255).astype(np.uint8)
            mode = ("RGB", "L", "CMYK")[n % 3]
            Image.fromarray(pixels).convert(mode).save(root / name / f"{n}.jpg")
    whole = (root / "dark" / "0.jpg").read_bytes()
    (root / "dark" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture
def tuned(tiny_run, folder):
    """A config that fine-tunes tiny_run on the folder."""
    c = preset.get_config()
    c.start.workdir = str(tiny_run)
    c.data.name, c.data.prepared_dir = str(folder), str(folder.parent / "prepared")
    c.data.validation_fraction = 0.25
    c.batch_size = c.evaluation.batch_size = 12
    c.epochs, c.devices.tower = 2, 1
    c.optimizer.drop_epochs, c.evaluation.views = (), 1
    return c


@pytest.fixture
def network(tuned):
    """The same, with the network of tiny_run filled in, and two classes."""
    c = finetune.resolved(tuned)
    c.model.num_classes = 2
    return c


def mesh_of(data, tower):
    return towers.make_mesh(ConfigDict({"data": data, "tower": tower}), 2, batch_size=12)


def assert_same(one, other, layers=None):
    for layer in layers or one:
        for kind in ("kernel", "bias"):
            np.testing.assert_array_equal(one[layer][kind], other[layer][kind], err_msg=f"{layer} {kind}")


@pytest.mark.parametrize(("data", "tower"), [(1, 1), (1, 2), (2, 2)])
def test_all_layers_but_the_fresh_ones_are_the_starts(network, tiny_run, data, tower):
    """On any devices, each holding its part; fc8 keeps its initial values and has the data's classes."""
    net = program(network, mesh_of(data, tower))
    initial, theirs = net.new_state()["params"], load_run(tiny_run).params
    found = initial | finetune.parameters(network, net.state["params"])
    assert_same(found, theirs, [name for name in theirs if name != "fc8"])
    assert found["fc8"]["kernel"].shape == (128, 2)
    assert_same(found, initial, ["fc8"])
    jax.tree.map(lambda a, like: a.sharding.is_equivalent_to(like.sharding, a.ndim) or pytest.fail(str(a.sharding)),
                 found, net.state["params"])  # fmt: skip


@pytest.mark.slow
def test_the_statistics_are_the_starts(tuned, tiny_run, tmp_path):
    """The network has learned from images minus that mean."""
    theirs = load_run(tiny_run).statistics
    found = finetune.statistics(tuned, tmp_path / "run", {name: array + 1 for name, array in theirs.items()})
    mesh = towers.make_mesh(ConfigDict({"data": 1, "tower": 1}), 2, tuned.batch_size)
    _, prepared, _ = main.ready(finetune.resolved(tuned), mesh, tmp_path / "run")
    for name, array in theirs.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(prepared.statistics[name], array)


def test_a_folder_of_ones_own(tuned, tiny_run, folder, tmp_path, capsys):
    """Grey, CMYK and damaged photos, split by their names; classes counted, statistics the start's; it learns."""
    tuned.epochs = 6
    tuned.optimizer.layer_rates = ((0, "fc8", 10.0), (0, "conv1", 0.0))
    assert main.run(tuned, tmp_path / "run") == 0
    assert tuned.model.num_classes == 0
    said = capsys.readouterr()
    assert f"start:    {tiny_run}, fc8 from scratch" in said.out and "2 classes" in said.out
    run, base = load_run(tmp_path / "run"), load_run(tiny_run)
    assert run.config.model.num_classes == 2 and run.classes == ["dark", "light"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["num_classes"] == 2
    for name, array in base.statistics.items():
        np.testing.assert_array_equal(run.statistics[name], array)
    last = [r for r in records(tmp_path / "run") if r["split"] == "validation"][-1]
    meta = prepare(run.config.data).directory / "meta.json"
    splits = json.loads(meta.read_text())["splits"]
    assert splits["train"]["count"] + splits["validation"]["count"] == 47
    assert {**splits["train"]["damaged"], **splits["validation"]["damaged"]}.keys() == {"dark/0.jpg"}
    assert last["images"] == splits["validation"]["count"] and last["top1_error"] < 0.2
    assert_same(run.params, base.params, ["conv1"])
    assert np.any(run.params["conv2"]["kernel"] != base.params["conv2"]["kernel"])
    stored = run.config
    assert (stored.start.workdir, stored.start.adopt, stored.name) == (str(tiny_run), False, "finetune")
    assert main.run(tuned, tmp_path / "run") == 0  # 0 classes and the number written are the same


@pytest.mark.slow
def test_resumed_equals_uninterrupted_without_its_start(tuned, tiny_run, tmp_path, monkeypatch):
    """With Adam's moments and a layer that thaws; stopped in mid-epoch, and the start, no longer needed, is gone.

    What the run stored is as version 0.1.0 stored it, and its name is another: a run by an earlier preset resumes too.
    """
    base = shutil.copytree(tiny_run, tmp_path / "base")
    tuned.start.workdir = str(base)
    tuned.optimizer.algorithm, tuned.optimizer.learning_rate = "adam", 1e-4
    tuned.optimizer.layer_rates = ((0, "conv1", 0.0), (0, "conv2", 0.0), (1, "conv2", 1.0))
    main.run(tuned, tmp_path / "whole")
    asked = iter([False, True])
    with monkeypatch.context() as m:
        m.setattr(towers, "any_process", lambda flag: flag or next(asked, False))
        assert main.run(tuned, tmp_path / "broken") == 130
    step = load_run(tmp_path / "broken", "latest").step
    shutil.rmtree(base)
    path = tmp_path / "broken" / "config.json"
    stored = json.loads(path.read_text()) | {"name": "finetune_fc8"}
    for section, field in (("model", "conv_sizes"), ("model", "pooled"), ("start", "adopt"), ("start", "learned")):
        del stored[section][field]
    path.write_text(json.dumps(stored))
    assert main.run(tuned, tmp_path / "broken") == 0
    last = load_run(tmp_path / "whole", "latest").step
    assert 0 < step < last
    check_equal(tmp_path / "whole", tmp_path / "broken", last)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", optimizer.ALGORITHMS)
def test_frozen_layers_cost_no_gradient_and_no_velocity(network, algorithm):
    """Before the compiler removes anything."""
    network.optimizer.algorithm, mesh = algorithm, mesh_of(1, 1)
    cost, held = {}, {}
    for name, layer_rates in {"all": (), "fc8": FROM_FC8}.items():
        network.optimizer.layer_rates = layer_rates
        net = program(network, mesh)
        cost[name] = net.step.lower(*step_cost.inputs(network, mesh, net)).cost_analysis()["flops"]
        held[name] = sum(v.size for v in jax.tree.leaves(net.state["velocity"]) if v.ndim)
    assert cost["fc8"] < 0.5 * cost["all"]  # forward alone is a third
    assert held["fc8"] == (128 * 2 + 2) * {"momentum": 1, "sgd": 1, "adam": 2}[algorithm] < held["all"]


@pytest.mark.slow
def test_frozen_layers_stay_bit_for_bit(tuned, tiny_run, tmp_path):
    """With a tower on each of two devices."""
    tuned.epochs, tuned.devices.tower = 1, 2
    tuned.optimizer.layer_rates = FROM_FC8
    main.run(tuned, tmp_path / "run")
    run, base = load_run(tmp_path / "run"), load_run(tiny_run)
    assert_same(run.params, base.params, [layer for _, layer, _ in FROM_FC8])
    assert np.abs(run.params["fc8"]["kernel"]).max() > 0


def test_what_counts_as_frozen(tuned):
    o, layers = tuned.optimizer, ("conv1", "conv2", "fc8")

    def frozen(*layer_rates, epochs=10):
        o.layer_rates = layer_rates
        return optimizer.frozen(o, layers, epochs)

    assert frozen() == frozen((1, "conv1", 0.0)) == frozen((0, "conv1", 0.0), (9, "conv1", 0.1)) == set()
    assert frozen((0, "conv1", 0.0)) == frozen((0, "conv1", 0.0), (10, "conv1", 1.0)) == {"conv1"}
    assert frozen((5, "conv1", 0.0), (0, "conv2", 0.0), (0, "conv1", 0.0)) == {"conv1", "conv2"}
    with pytest.raises(UserError, match="every layer"):
        frozen(*((0, name, 0.0) for name in layers))
    with pytest.raises(UserError, match="conv9.*fc8"):
        frozen((0, "conv9", 0.0))


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_adam_and_sgd_are_torchs(tuned, algorithm):
    """Over a drop; one layer is frozen and thaws twice: torch skips it while it has no gradient."""
    o = tuned.optimizer
    o.algorithm, o.weight_decay, o.bias_rate = algorithm, 0.05, 2.0
    o.layer_rates = ((0, "conv1", 0.0), (8, "conv1", 1.0), (16, "conv1", 0.0), (22, "conv1", 0.5))
    rng = np.random.default_rng(0)

    def tree():
        return {n: {"kernel": np.float32(rng.normal(size=(4, 3))), "bias": np.float32(rng.normal(size=3))}
                for n in ("conv1", "fc8")}  # fmt: skip

    params = tree()
    theirs = jax.tree.map(lambda p: torch.nn.Parameter(torch.tensor(p)), params)
    leaves = [(n, k) for n in theirs for k in ("kernel", "bias")]
    groups = [{"params": [theirs[n][k]], "weight_decay": 0.05 if k == "kernel" else 0.0} for n, k in leaves]
    twin = torch.optim.Adam(groups, lr=1.0) if algorithm == "adam" else torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    rule = optimizer.update_rule(o)
    state, update = rule.init(params), jax.jit(rule.update)
    for step in range(30):
        gradients = tree()
        rates = optimizer.rates(o, params, 0.01 if step < 10 else 0.001, step)
        before = params
        updates, state = update(gradients, state, params, rates=rates)
        params = jax.tree.map(np.add, params, updates)
        for group, (n, k) in zip(twin.param_groups, leaves, strict=True):
            group["lr"] = float(rates[n][k])
            theirs[n][k].grad = torch.tensor(gradients[n][k]) if rates[n][k] else None
        twin.step()
        for n, k in leaves:
            np.testing.assert_allclose(params[n][k], theirs[n][k].detach(), rtol=1e-5, atol=1e-6, err_msg=f"{step}")
        if rates["conv1"]["kernel"] == 0:
            assert_same(before, params, ["conv1"])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("start.workdir", "/no/run", "--config.start.workdir=/no/run: /no/run holds no run"),
        ("start.workdir", "", "name the run to start from, as in --config.start.workdir=runs/base"),
        ("start.learned", ("fc9",), "start.learned is ('fc9',)"),
        ("start.learned", ("conv6",), "start.learned is ('conv6',) and must be out of conv1, "),
        ("start.fresh", (), "fc8's bias is (2,) here and (3,)"),
        ("start.fresh", ("fc9",), "fc9"),
        ("model.fc_widths", (64, 128), "fc6's bias is (64,) here and (128,)"),
        ("model.exchange", ("conv2", "conv3", "fc6", "fc7", "fc8"), "conv2's kernel"),
        ("model.lrn.k", 1.0, "model.lrn.k: 2.0 there, 1.0 here"),
        ("model.removed", ("conv3",), "model.removed"),
        ("model.pooled", ("conv5",), "model.pooled: ['conv1', 'conv2', 'conv5'] there, ['conv5'] here"),
        ("model.conv_sizes", (11, 3, 3, 3, 3), "conv2's kernel"),
        ("data.size", 80, "data.size: 72 there, 80 here"),
        ("data.mean", "none", "data.mean: pixel there, none here"),
        ("optimizer.algorithm", "adagrad", "optimizer.algorithm"),
        ("optimizer.layer_rates", (("fc8", 0.0),), "optimizer.layer_rates"),
        ("optimizer.layer_rates", ((0, "fc9", 0.0),), "optimizer.layer_rates names 'fc9'"),
        ("data.name", "", "data.name"),
        ("model.num_classes", -1, "model.num_classes"),
    ],
)
def test_what_is_no_start_is_refused_in_one_line(tuned, tmp_path, field, value, says):
    """And before the workdir is claimed, so that the corrected command can have it."""
    tuned.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as e:
        main.run(tuned, tmp_path / "run", given={field: value})
    assert says in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_other_dropout_and_fresh_layers_of_other_widths_are_fine(network):
    network.model.dropout, network.model.fc_widths, network.start.fresh = 0.1, (64, 32), ("fc6", "fc7", "fc8")
    finetune.refuse_other_function(network)


def test_the_network_and_its_inputs_are_the_starts(tiny_run, photos):
    theirs = load_run(tiny_run).config
    c = preset.get_config("cifar10,smoke")
    c.start.workdir, c.start.learned = str(tiny_run), ("fc6", "fc7")
    mine = finetune.resolved(c)
    assert (mine.data.name, mine.data.eval_split, mine.model.num_classes) == ("cifar10", "test[:256]", 0)
    here, there = (flat(s) for s in (mine.model, theirs.model))
    assert {k for k in there if here[k] != there[k]} == {"num_classes"}
    assert (mine.data.size, mine.data.crop, mine.epochs, mine.name) == (72, 64, 2, "finetune_cifar10_smoke")
    layers = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    assert optimizer.frozen(mine.optimizer, layers, mine.epochs) == set(layers[:5])
    rates = optimizer.rates(mine.optimizer, load_run(tiny_run).params, 0.001, 0)
    assert (rates["fc7"]["kernel"], rates["fc8"]["kernel"], rates["fc8"]["bias"]) == pytest.approx((1e-3, 1e-2, 2e-2))
    assert c.start.adopt and c.data.size == 96 and len(c.optimizer.layer_rates) == 1  # the caller's is as it was


def test_what_is_not_learned_stays_whatever_its_rates_were(tiny_run):
    """Of two entries of the same layer the later one counts, and lists are as good as tuples."""
    c = preset.get_config("glyphs,smoke")
    c.start.workdir, c.start.fresh, c.start.learned = str(tiny_run), (), ("fc6",)
    c.optimizer.layer_rates = [[0, "fc8", 10.0], (0, "fc7/bias", 3.0)]
    mine = finetune.resolved(c)
    layers = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    assert optimizer.frozen(mine.optimizer, layers, mine.epochs) == {*layers} - {"fc6"}
    assert flat(finetune.resolved(mine)) == flat(mine)


def test_a_resolved_config_stays_as_it_is(tiny_run):
    """Read back from JSON too, and without its start."""
    c = preset.get_config()
    c.start.workdir, c.start.learned, c.data.name = str(tiny_run), ("fc8",), "glyphs"
    once = finetune.resolved(c)
    once.start.workdir = "gone"
    assert once.optimizer.layer_rates == ((0, "fc8", 10.0), *FROM_FC8)
    assert flat(finetune.resolved(once)) == flat(once)
    assert flat(finetune.resolved(ConfigDict(json.loads(once.to_json())))) == flat(once)


def test_what_the_command_line_sets_is_not_the_starts(tiny_run):
    c = preset.get_config()
    c.start.workdir, c.data.name = str(tiny_run), "glyphs"
    c.model.dropout, c.data.crop, c.model.num_classes = 0.25, 63, 5
    given = {"model.dropout": 0.25, "data.crop": 63, "model.num_classes": 5}
    found = finetune.resolved(c, given=given)
    assert (found.model.dropout, found.data.crop, found.model.num_classes, found.data.size) == (0.25, 63, 5, 72)
    assert finetune.resolved(c).model.dropout == 0.5


def test_a_start_of_six_convolutions_and_one_that_lacks_a_layer(tmp_path):
    """Their layers are known from the start's config; a layer that is not there is not frozen."""
    for name, removed in (("six_conv", ()), ("paper", ("conv4",))):
        start = importlib.import_module(f"configs.{name}").get_config()
        start.model.removed = removed
        (tmp_path / "config.json").write_text(start.to_json())
        c = preset.get_config("glyphs").lock()
        c.start.workdir, c.start.learned = str(tmp_path), ("fc7",)
        found = finetune.resolved(c)
        check(found)
        layers = shapes(found.model, found.data.crop).keys()
        assert optimizer.frozen(found.optimizer, layers, 20) == layers - {"fc7", "fc8"}
        assert found.model.conv_widths == start.model.conv_widths


def test_the_preset_opens_no_file_and_takes_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset.get_config("glyphs,smoke").name == "finetune_glyphs_smoke"
    with pytest.raises(ValueError, match="'runs/base' after the config's colon is none of"):
        preset.get_config("runs/base")
