"""Whole-set error against brute force: every image once, ten views, several runs together."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import verbs
from helpers.images import Given, run_of
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, evaluate, main, metrics
from alexnet_jax.analysis import features, figures, predict
from alexnet_jax.data import augment
from alexnet_jax.data.images import PhotoImages, SplitImages
from alexnet_jax.data.prepare import prepare
from alexnet_jax.inference import LOGS, dense_apply, make_forward
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.network import network
from alexnet_jax.runs.run import load_run
from alexnet_jax.towers import make_mesh
from alexnet_jax.towers import split as over_devices


def brute_force(run, images, labels, views):
    """Loss, top-1 and top-5 error from the crops cut in NumPy, image by image."""
    size, crop = run.config.data.size, run.config.data.crop
    far, mid = size - crop, (size - crop) // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (mid, mid)]
    probabilities = []
    for image in images:
        pixels = image.astype(np.float32) - run.statistics["mean"]
        cuts = [pixels[y : y + crop, x : x + crop] for y, x in (corners if views == 10 else corners[4:])]
        if views == 10:
            cuts += [c[:, ::-1] for c in cuts]
        logits = run.apply(run.params, np.stack(cuts))[0]
        probabilities.append(np.asarray(jax.nn.softmax(logits)).mean(axis=0))
    return score(np.stack(probabilities), labels)


def score(probabilities, labels):
    own = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities > own[:, None]).sum(axis=1)
    return {"loss": -np.log(own).mean(), "top1_error": (rank >= 1).mean(), "top5_error": (rank >= 5).mean()}


def probabilities(run):
    """Of the validation split's centre crops, all at once: float32 (n, classes)."""
    split = prepare(run.config.data).evaluation
    forward = make_forward(run)
    return np.exp(np.asarray(forward(run.params, run.statistics, split.images())[LOGS]))


@pytest.mark.parametrize("views", [1, 10])
def test_equals_brute_force(tiny_run, run, views):
    """33 images in batches of 10: the last batch is padded, and the padding does not count."""
    split = prepare(run.config.data).evaluation
    found = evaluate.evaluate_runs([str(tiny_run)], views, "validation")
    assert found["images"] == 33
    for name, wanted in brute_force(run, split.images(), split.labels, views).items():
        assert found[name] == pytest.approx(wanted, rel=1e-4), name


def test_a_run_with_itself_is_itself(tiny_run):
    alone = evaluate.evaluate_runs([str(tiny_run)], 1, "validation")
    twice = evaluate.evaluate_runs([str(tiny_run)] * 2, 1, "validation")
    assert {k: twice[k] for k in ("loss", "top1_error")} == pytest.approx({k: alone[k] for k in ("loss", "top1_error")})


@pytest.mark.slow
def test_runs_of_different_networks_average_their_probabilities(tiny_run, run, tmp_path):
    """Another width, one tower, another size of images and another scale of inputs: table 2's ensembles."""
    config = run.config.copy_and_resolve_references()
    config.update({"epochs": 1, "seed": 3})
    config.evaluation.views = 1
    config.model.update({"towers": 1, "conv_widths": (8, 8, 8, 8, 8), "fc_widths": (16, 16)})
    config.data.update({"size": 96, "crop": 80, "mean": "value", "mean_value": (120.0,) * 3, "deviation": (60.0,) * 3})
    main.run(config, tmp_path / "other")
    other = load_run(tmp_path / "other")
    labels = prepare(run.config.data).evaluation.labels
    wanted = score((probabilities(run) + probabilities(other)) / 2, labels)
    together = evaluate.evaluate_runs([str(tiny_run), str(tmp_path / "other")], 1, "validation")
    for name, value in wanted.items():
        assert together[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_dense_averages_the_map(tiny_run, run):
    """The mean over places of what the sliding network says; on images of the crop's size that of the centre crop."""
    found = evaluate.evaluate_runs([str(tiny_run)], 1, "validation", dense=run.config.data.crop)
    config = run.config.data.copy_and_resolve_references()
    config.size = config.crop
    split = prepare(config).evaluation
    mean = jax.image.resize(run.statistics["mean"], (config.crop, config.crop, 3), "linear")
    logits = run.apply(run.params, split.images() - np.asarray(mean))[0]
    for name, value in score(np.asarray(jax.nn.softmax(logits)), split.labels).items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["dense"] == [config.crop] and "views" not in found

    large = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    net = AlexNet(FrozenConfigDict(run.config.model), dense=fc6_side(run.config.model, run.params))
    maps = net.apply({"params": run.params}, augment.whole(large, run.statistics, run.config.data))[0]
    assert maps.shape[1:3] == (3, 3)
    expected = np.asarray(jax.nn.softmax(maps)).reshape(2, 9, 3).mean(axis=1)
    forward = make_forward(run, dense=True)
    np.testing.assert_allclose(np.exp(forward(run.params, run.statistics, large)[LOGS]), expected, rtol=1e-4)


# Networks that are sure of themselves.

DATA = FrozenConfigDict({"crop": 1, "mean": "none", "deviation": ()})


def look_up(logits):
    """A network for images (b, 3, 3, 3), whose first number is their row in logits (10, rows, classes), one of a view.

    Each of the ten views shows another corner and side, which says which view it is.
    """

    def apply(params, crop):
        row, view = crop[:, 0, 0, 0].astype(int), crop[:, 0, 0, 1].astype(int)
        return params[view, row], {}

    rows = np.zeros((logits.shape[1], 3, 3, 3), np.uint8)
    rows[..., 0] = np.arange(len(rows))[:, None, None]
    rows[..., 1] = np.arange(9).reshape(3, 3)
    return apply, rows


def mean_log(*logits):
    """The logarithm of the mean of the softmax outputs, in float64's long brother."""
    logits = np.stack(logits).astype(np.longdouble)
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    top = logs.max(0)
    return top + np.log(np.exp(logs - top).mean(0))


@pytest.mark.as_shipped
@pytest.mark.parametrize("scale", [200, 1e4])
@pytest.mark.parametrize("views", [1, 10])
def test_a_loss_of_hundreds_of_nats_is_finite_and_right(views, scale):
    """Of one run and of two, with rows of padding whose probabilities underflow too."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 13).astype(np.int32)
    places = [4] if views == 1 else [0, 0, 2, 2, 6, 6, 8, 8, 4, 4]  # corners, centre; of one pixel a mirror is itself
    members, logs = [], []
    for _ in range(2):
        logits = (scale * rng.choice([-1, 1], (9, 15, 7)) + rng.normal(size=(9, 15, 7))).astype(np.float32)
        logits[:, np.arange(13), labels] = -scale - 1  # wrong in every view
        apply, rows = look_up(logits)
        run = run_of(apply, logits, DATA)
        images = Given(rows, np.append(labels, [0, 0]), padding=2)
        members.append(evaluate.Member(run, make_forward(run), images))
        logs.append(mean_log(*logits[places]))
    for number in (1, 2):
        found = evaluate.evaluate(members[:number], 5, views)
        together = logs[0] if number == 1 else np.logaddexp(*logs) - np.log(2)
        own = together[np.arange(13), labels]
        assert found["images"] == 13 and found["loss"] > scale / 2
        assert found["loss"] == pytest.approx(float(-own.mean()), rel=1e-6)
        above = (together[:13] > own[:, None]).sum(axis=1)
        assert found["top1_error"] == np.mean(above >= 1) and found["top5_error"] == np.mean(above >= 5)


@pytest.mark.parametrize("padding", [np.inf, -np.inf, np.nan])
def test_padding_counts_for_nothing(padding):
    """Whatever the network says of it."""
    logs = np.log(np.random.default_rng(0).dirichlet(np.ones(6), 4)).astype(np.float32)
    logs[2:] = padding
    apply, rows = look_up(np.stack([logs] * 9))
    run, labels = run_of(apply, np.stack([logs] * 9), DATA), np.zeros(4, np.int32)
    member = evaluate.Member(run, make_forward(run), Given(rows, labels, padding=2))
    found = evaluate.evaluate([member] * 2, 4)
    assert found["images"] == 2 and found["loss"] == pytest.approx(-logs[:2, 0].mean(), rel=1e-6)
    found = metrics.sums(logs, labels, np.float32([1, 1, 0, 0]))
    assert float(found["loss"]) == pytest.approx(-logs[:2, 0].sum(), rel=1e-6)


def astray(run, value):
    """The run with a bias of fc8 that is no number."""
    bias = np.array(run.params["fc8"]["bias"])
    bias[1] = value
    return dataclasses.replace(run, params=run.params | {"fc8": run.params["fc8"] | {"bias": bias}})


@pytest.mark.parametrize("dense, value", [(0, np.nan), (None, np.inf), (None, -np.inf)])
def test_a_network_that_gives_no_numbers_is_refused(tiny_run, run, monkeypatch, capsys, value, dense):
    """In one line that names the run, not in a JSON object that contains NaN or Infinity."""
    broken = astray(run, value)
    monkeypatch.setattr(evaluate, "load_run", lambda workdir, *_: broken if "broken" in workdir else run)
    flags = ["--dense"] if dense == 0 else ["--views=1"]
    says = f"step {run.step} of {run.workdir} gives NaN or infinity"
    with pytest.raises(UserError, match=says) as e:
        verbs.run(evaluate, f"--workdir={tiny_run}", "--workdir=broken", *flags)
    assert "\n" not in str(e.value) and not capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_use_refuses_a_network_that_gives_no_numbers(run, tmp_path, value):
    """In the same words."""
    broken, split = astray(run, value), prepare(run.config.data).evaluation
    uses = (
        lambda: list(predict.predict(broken, PhotoImages([run.workdir / "predictions.png"], run.config.data, []))),
        lambda: features.save(broken, ["fc7", "fc8"], SplitImages(split), tmp_path / "f.npz"),
        lambda: figures.probabilities(broken, split),
    )
    for use in uses:
        with pytest.raises(UserError, match=f"step {run.step} of {run.workdir} gives NaN or infinity.*learning_rate"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [["red", "blue", "green"], ["green", "blue", "none", "red"]])
def test_labels_are_those_of_the_runs_classes(run, names):
    """Weights from elsewhere may count the classes of a data set in another order."""
    other = dataclasses.replace(run, classes=names)
    for split in ("train", "validation"):
        here, there = (evaluate.images_for(r, split) for r in (run, other))
        assert [names[label] for label in there.labels] == [run.classes[label] for label in here.labels]
        assert here.ids == there.ids
    with pytest.raises(UserError, match="has the class green, which .* does not know"):
        evaluate.images_for(dataclasses.replace(run, classes=["red", "blue"]), "validation")


def test_dense_is_refused_where_fc6_reads_averages_of_other_maps(run):
    """Their fc6 was made for maps that no place of a larger image has."""
    config = run.config.copy_and_resolve_references()
    config.model.average_pool = 2
    net = network(config.model)
    params = net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))["params"]
    for mesh in (run.mesh, make_mesh(ConfigDict({"data": 2, "tower": 1}), 2, 2)):
        other = dataclasses.replace(run, config=config, mesh=mesh, apply=over_devices(net, mesh), params=params)
        with pytest.raises(UserError, match="averages maps of 1 x 1 to 2 x 2 for fc6"):
            dense_apply(other)
    assert callable(dense_apply(run))


def test_dense_on_less_than_the_crop_is_refused(tiny_run):
    with pytest.raises(UserError, match="--dense=32 is less than the 64 pixels"):
        evaluate.evaluate_runs([str(tiny_run)], 1, "validation", dense=32)


def test_the_last_line_is_json(tiny_run, capsys):
    """And the only one with --json."""
    flags = [f"--workdir={tiny_run}", "--views=1", "--split=train", "--which=latest"]
    assert not verbs.run(evaluate, *flags)
    readable, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["split"] == "train" and found["views"] == 1 and found["images"] == 96
    assert {"top1_error", "top5_error", "loss"} <= set(found)
    assert found["which"] == "latest" and found["step"] == [12]
    assert f"top-1 error {found['top1_error']:.2%}" in readable and "96 images" in readable
    verbs.run(evaluate, *flags, "--json", "--batch-size=7")
    [line] = capsys.readouterr().out.splitlines()
    again = json.loads(line)
    assert again.keys() == found.keys() and again["images"] == 96
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize("devices", ["1x2", "2x2"])
def test_more_devices_find_the_same(tiny_run, capsys, devices):
    """Batches of 10 on two copies; the last one is filled up."""
    found = []
    for how in ("1x1", devices):
        verbs.run(evaluate, f"--workdir={tiny_run}", "--views=10", f"--devices={how}", "--json")
        found.append(json.loads(capsys.readouterr().out))
    losses = [result.pop("loss") for result in found]
    assert found[0] == found[1] and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_no_run_is_one_line(tmp_path):
    command = [sys.executable, "-m", "alexnet_jax", "evaluate", "--workdir", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error:") and "alexnet train" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_progress_counts_every_image_once(tiny_run, run):
    """It moves as results come in, a batch behind the device, and leaves padding out."""
    seen = []

    class Bar:
        n = 0

        def update(self, images):
            self.n += images
            seen.append(self.n)

    split = prepare(run.config.data).evaluation
    member = evaluate.Member(run, make_forward(run), SplitImages(split))
    found = evaluate.evaluate([member], 10, progress=Bar())
    assert seen == [10, 20, 30, 33] and found["images"] == 33
