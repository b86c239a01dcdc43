"""Weights of other frameworks, in and out: a converted run computes what the original network computes."""

import dataclasses
import hashlib
import importlib
import json
import operator
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from helpers import foreign
from helpers.foreign import CROP, FCS, SIDE, SIZE, WIDTHS, caffe_net, preset, refuse, write
from helpers.origins import ORIGINS, network, randomize, torchvision
from PIL import Image

from alexnet_jax import UserError, evaluate, files, main
from alexnet_jax.analysis.specialisation import color_blindness
from alexnet_jax.cli import config_file
from alexnet_jax.cli.verbs import run as run_verb
from alexnet_jax.config import FUNCTION, fields_of
from alexnet_jax.data import classes
from alexnet_jax.runs.run import load_run
from alexnet_jax.weights import convert, npy, pytorch
from alexnet_jax.weights.layouts import PYTORCH, fc6_maps, from_ours, to_ours

SHARED = Path(os.environ.get("TFDS_DATA_DIR", "nowhere")).parent


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def mean():
    """Caffe's mean image: float32 (3, SIZE, SIZE), BGR."""
    return np.random.default_rng(1).uniform(80, 140, (3, SIZE, SIZE)).astype(np.float32)


def as_caffe(net, images, mean):
    """Logits as Caffe computes them: BGR planes, mean removed, centre crop. The PyTorch network reads RGB."""
    at = (SIZE - CROP) // 2
    planes = images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - mean
    planes = planes[:, :, at : at + CROP, at : at + CROP]
    with torch.no_grad():
        return net(torch.tensor(planes[:, ::-1].copy())).numpy()


def close(actual, expected):
    scale = np.abs(expected).max()
    assert actual.shape == expected.shape and expected.std() > 0.01 * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale)


def same(one, other):
    assert one.keys() == other.keys()
    for layer in one:
        for kind in ("kernel", "bias"):
            np.testing.assert_array_equal(one[layer][kind], other[layer][kind], err_msg=f"{layer} {kind}")


# Weights that come in.


@pytest.mark.parametrize("kind", ["V1", "V2", "pairs", "names", "python 2"])
def test_caffe_in_every_format(kind, images, mean, tmp_path):
    net, layers = caffe_net()
    origin, path = write(tmp_path, kind, layers)
    blob = foreign.fill(foreign.CAFFE["BlobProto"](), mean, old=True)
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    convert.import_weights(origin, path, preset("caffe"), tmp_path / "run", tmp_path / "mean.binaryproto")
    close(np.asarray(load_run(tmp_path / "run")(images)[0]), as_caffe(net, images, mean))


def test_caffenet_by_its_config(images, mean, tmp_path):
    """It has the shapes of caffe and another order. The mean image is in an .npz with an array of another shape."""
    net, layers = caffe_net("caffenet")
    origin, path = write(tmp_path, "V2", layers)
    refuse("normalizes conv1 before its pool; add --config configs/caffe.py", origin, path, preset("caffenet"))
    for old in (True, False):
        path.write_bytes(foreign.caffemodel(layers, old, order=("pool", "norm")))
        refuse("normalizes conv1 after its pool; add --config configs/caffenet.py", origin, path)
    path.write_bytes(foreign.caffemodel(layers, old=False, order=()))
    np.savez(tmp_path / "mean.npz", mean=mean.astype(np.float64), channels=mean.mean((1, 2)))
    convert.import_weights(origin, path, preset("caffenet"), tmp_path / "run", tmp_path / "mean.npz")
    close(np.asarray(load_run(tmp_path / "run")(images)[0]), as_caffe(net, images, mean))


@pytest.mark.parametrize("kind", ["pth", "data parallel", "safetensors"])
def test_torchvision(kind, images, tmp_path, monkeypatch):
    net = foreign.TorchVision(WIDTHS, FCS, 7)
    randomize(net)
    net.eval()
    path = tmp_path / f"net.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "pth":
        torch.save(net.state_dict(), path)
    elif kind == "data parallel":  # as pytorch/examples wraps it: the convolutions alone
        state = {name.replace("features.", "features.module."): p for name, p in net.state_dict().items()}
        torch.save({"epoch": 90, "state_dict": state}, path)
    else:
        safetensors.numpy.save_file({name: p.numpy() for name, p in net.state_dict().items()}, path)
    convert.import_weights("torchvision", path, preset("one_weird_trick"), tmp_path / "run")
    run = load_run(tmp_path / "run")
    at = (SIZE - CROP) // 2
    scaled = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    planes = torch.tensor(scaled[:, at : at + CROP, at : at + CROP], dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        close(np.asarray(run(images)[0]), net(planes).numpy())
    np.testing.assert_allclose(run.statistics["mean"][5, 7], [123.675, 116.28, 103.53], atol=1e-3)
    ours = {layer: p["kernel"].shape for layer, p in run.params.items()} | {"fc8": (FCS[1], None)}
    monkeypatch.setattr(pytorch, "TORCHVISION_KERNELS", ours)  # which are those of the full width
    pytorch.write_torchvision(run, out := tmp_path / f"out{path.suffix}")
    back = torch.load(out, weights_only=True) if path.suffix == ".pth" else safetensors.torch.load_file(out)
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[name], p) for name, p in net.state_dict().items())


def test_a_run_of_it_says_where_it_came_from(tmp_path):
    """And has the statistics of ILSVRC by default, numbered classes, and the digest of the file."""
    origin, path = write(tmp_path, "V2", caffe_net()[1])
    convert.import_weights(origin, path, preset("caffe"), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.step == 0 and run.classes == [f"class {i}" for i in range(7)]
    assert run.statistics["mean"].shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(run.statistics["mean"][0, 0], [122.679, 116.669, 104.007], rtol=1e-6)
    vectors = run.statistics["vectors"]
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-4)
    assert np.all(vectors[:, 2] < 0) and run.statistics["stdevs"].argmax() == 2  # brightness varies most
    said = json.loads((tmp_path / "run" / "converted.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (said["from"], said["file"], said["sha256"]) == ("caffe", path.name, digest) and said["date"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.caffemodel", "run"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted run whose classes are those of the photos, in another order, and four more."""
    folder = tmp_path_factory.mktemp("converted")
    _, path = write(folder, "V2", caffe_net()[1])
    (folder / "names.txt").write_text("n01440764\nred\ngrey\nblue\n\nn03126707\ngreen\nn02012849\n", "utf-8-sig")
    c = preset("caffe")
    c.data.prepared_dir = str(folder / "prepared")
    convert.import_weights("caffe", path, c, folder / "run", names=folder / "names.txt")
    return folder / "run"


# Weights that go out.


@pytest.mark.parametrize(
    "to, suffix, back", [("safetensors", "safetensors", "safetensors"), ("caffe-npy", "npy", "npy")]
)
def test_out_and_in_again_is_exact(converted, tmp_path, to, suffix, back):
    run, path = load_run(converted), tmp_path / f"out.{suffix}"
    convert.TARGETS[to].write(run, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    convert.import_weights(back, path, preset("caffe"), tmp_path / "run")
    same(load_run(tmp_path / "run").params, run.params)


def test_pytorch_loads_what_is_written(converted, images, tmp_path):
    """A grouped network with the paper's names loads every array, and gives the same logits."""
    run = load_run(converted)
    pytorch.write_safetensors(run, tmp_path / "out.safetensors")
    net = network(WIDTHS, FCS, SIDE, **ORIGINS["caffe"]).eval()
    state = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    net.load_state_dict({name: torch.tensor(a) for name, a in state.items()}, strict=True)
    channels = run.statistics["channel_mean"][::-1, None, None]
    close(np.asarray(run(images)[0]), as_caffe(net, images, channels))


def test_a_trained_run_of_two_towers_goes_out_and_in(tiny_run, tmp_path):
    """fc6 reads the maps of both towers, in PyTorch's order."""
    run = load_run(tiny_run)
    pytorch.write_safetensors(run, tmp_path / "out.safetensors")
    state = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    side = round((state["fc6.weight"].shape[1] / state["conv5.bias"].size) ** 0.5)
    assert side > 0
    kernel = np.asarray(run.params["fc6"]["kernel"]).reshape(side, side, -1, state["fc6.weight"].shape[0])
    there = state["fc6.weight"].reshape(-1, kernel.shape[2], side, side)
    np.testing.assert_array_equal(there[3, 5, 0, -1], kernel[0, -1, 5, 3])
    np.testing.assert_array_equal(state["conv2.weight"][3, 2, 0, 4], run.params["conv2"]["kernel"][0, 4, 2, 3])
    convert.import_weights("safetensors", tmp_path / "out.safetensors", run.config, tmp_path / "run")
    same(load_run(tmp_path / "run").params, run.params)


def test_fc6_of_each_towers_own_maps(narrow, draw):
    """Two fully connected layers side by side, each over its tower's maps by channel, row and column."""
    m = narrow(exchange=("conv3", "fc7", "fc8"))
    params, _ = draw(m, 1, 64 + 35)
    count = fc6_maps(m, params)
    assert count == m.conv_widths[4] // 2
    kernel = params["fc6"]["kernel"]
    side = round((len(kernel) / count) ** 0.5)
    there = from_ours(params, PYTORCH, count)
    assert (
        there["fc6"]["kernel"].reshape(-1, count, side, side)[5, 1, 1, 0]
        == kernel.reshape(side, side, count, -1)[1, 0, 1, 5]
    )
    same(to_ours(there, PYTORCH, count), params)


def test_torchvision_is_one_weird_trick():
    """What pytorch.py states of torchvision's network is what the config says, and nothing that matters is missing."""
    c = importlib.import_module("configs.one_weird_trick").get_config()
    kernels = {layer: p["kernel"] for layer, p in convert.network_shapes(c).items()}
    assert kernels | {"fc8": (4096, None)} == pytorch.TORCHVISION_KERNELS
    fields = pytorch.TORCHVISION_FIELDS
    assert {field: operator.attrgetter(field)(c.model) for field in fields} == fields
    of_norms = ("model.lrn.", "model.spatial_norm.")  # it has none, so that only their layers matter
    missing = fields_of(FUNCTION) - {f"model.{field}" for field in fields}
    assert all(field.startswith(of_norms) for field in missing)


def test_other_networks_are_not_written_for_torchvision(converted, tmp_path):
    run = load_run(converted)
    with pytest.raises(UserError, match=r"model\.towers is 2 here and 1 there; --to safetensors"):
        pytorch.write_torchvision(run, tmp_path / "out.pth")
    with pytest.raises(UserError, match="is a folder"):
        pytorch.write_safetensors(run, tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        npy.write(run, tmp_path / "none" / "out.npy")
    config = preset("one_weird_trick")
    narrow = dataclasses.replace(run, config=config)
    with pytest.raises(UserError, match=r"the kernel of conv1 is \(11, 11, 3, 8\) here and \(11, 11, 3, 64\) there"):
        pytorch.write_torchvision(narrow, tmp_path / "out.pth")
    assert not list(tmp_path.iterdir())


# Real weights and photos.

samples = pytest.mark.skipif(
    not (SHARED / "imagenet_samples").is_dir(), reason="no imagenet_samples beside TFDS_DATA_DIR"
)
kernels = pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="no weights beside TFDS_DATA_DIR")


def photo(folder):
    [path] = (SHARED / "imagenet_samples" / folder).iterdir()
    return path


@samples
@pytest.mark.real_data
def test_full_size_on_photos(tmp_path):
    """torchvision's network with its preprocessing gives the run's logits on photos, and loads what is written back."""
    torch.manual_seed(0)
    net = torchvision.models.alexnet().eval()
    with torch.no_grad():
        net.classifier[6].weight *= 30  # for logits that tell photos apart
    torch.save(net.state_dict(), tmp_path / "alexnet.pth")
    c = importlib.import_module("configs.one_weird_trick").get_config()
    convert.import_weights("torchvision", tmp_path / "alexnet.pth", c, tmp_path / "run")
    run = load_run(tmp_path / "run")
    paths = [photo(folder) for folder in ("n01443537", "n02099712", "n01770393")]
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(256, bicubic), transforms.CenterCrop(256)]
    squares = [transforms.Compose(steps)(Image.open(path).convert("RGB")) for path in paths]
    scale = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    after = transforms.Compose([transforms.CenterCrop(224), transforms.ToTensor(), scale])
    with torch.no_grad():
        expected = net(torch.stack([after(s) for s in squares])).numpy()
    close(np.asarray(run(np.stack([np.asarray(s) for s in squares]))[0]), expected)
    assert run.classes == classes.SYNSETS
    pytorch.write_torchvision(run, tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    with torch.device("meta"):
        again = torchvision.models.alexnet()
    again.load_state_dict(state, strict=True, assign=True)
    assert all(torch.equal(p, net.state_dict()[name]) for name, p in again.state_dict().items())


@samples
@kernels
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["bvlc", "torchvision"])
def test_real_kernels_on_a_real_photo(name, tmp_path):
    """Trained kernels in a network that is narrow after them: their responses to a photo are PyTorch's, and towers
    specialise on colour as they are known to.
    """
    file = {"bvlc": "alexnet_bvlc_conv1.npz", "torchvision": "alexnet_torchvision_conv123.npz"}[name]
    with np.load(SHARED / "weights" / file, allow_pickle=False) as held:
        trained = {key: torch.tensor(held[key]) for key in held.files}
    with Image.open(photo("n01443537")) as opened:
        image = np.asarray(opened.convert("RGB").resize((SIZE, SIZE)))
    at = slice((SIZE - CROP) // 2, (SIZE - CROP) // 2 + CROP)
    if name == "bvlc":
        net = network((96, *WIDTHS[1:]), FCS, SIDE, **ORIGINS["caffe"])
        layers = {layer: net.get_submodule(layer) for layer in foreign.LAYERS}
        layers["conv1"].weight.data = trained["conv1_w"].flip(1)  # the writer turns RGB to BGR
        layers["conv1"].bias.data = trained["conv1_b"]
        (tmp_path / "w").write_bytes(foreign.caffemodel(layers, old=False))
        convert.import_weights("caffe", tmp_path / "w", preset("caffe", (96, *WIDTHS[1:])), tmp_path / "run")
        planes = torch.tensor(image[..., ::-1].astype(np.float32)).permute(2, 0, 1)[:, at, at]
        planes = planes - torch.tensor([104.007, 116.669, 122.679])[:, None, None]
        expected = torch.relu(torch.conv2d(planes[None], trained["conv1_w"], trained["conv1_b"], stride=4))
        layer, wanted = "conv1", (r"^tower 1: 39 of 48", r"tower 2: 5 of 48", r"\? yes, tower 2$")
    else:
        net = foreign.TorchVision((64, 192, 384, 8, 8), FCS, 7)
        for i, n in ((0, 1), (3, 2), (6, 3)):
            net.features[i].weight.data, net.features[i].bias.data = trained[f"conv{n}_w"], trained[f"conv{n}_b"]
        torch.save(net.state_dict(), tmp_path / "w.pth")
        config = preset("one_weird_trick", (64, 192, 384, 8, 8))
        convert.import_weights("torchvision", tmp_path / "w.pth", config, tmp_path / "run")
        planes = (torch.tensor(image[at, at].copy()) / 255 - torch.tensor([0.485, 0.456, 0.406])).permute(2, 0, 1)
        planes = planes / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        with torch.no_grad():
            expected = net.features[:8](planes[None])
        layer, wanted = "conv3", (r"^conv1: \d+ of 64 kernels",)
    run = load_run(tmp_path / "run")
    close(np.asarray(run(image[None])[1][layer]), expected.numpy().transpose(0, 2, 3, 1))
    said = color_blindness(np.asarray(run.params["conv1"]["kernel"]), run.config.model.towers)
    for line in wanted:
        assert re.search(line, said, re.MULTILINE), said


# Refusals.


def test_another_network_is_named_with_what_would_fit(tmp_path):
    net = foreign.TorchVision((64, 192, 384, 256, 256), (20, 16), 7)
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file({name: p.numpy() for name, p in net.state_dict().items()}, path)
    differs = "conv1 is 11 x 11 x 3 x 64 .* there, 11 x 11 x 3 x 8 .* here; name a config of its network with --config"
    refuse(differs, "torchvision", path)
    fits = preset("one_weird_trick", (64, 192, 384, 256, 256))
    fits.model.num_classes = 10
    refuse(r"fc8 is 16 x 7 .* 16 x 10 .*; --config\.model\.num_classes=7 fits", "torchvision", path, fits)


def test_a_config_of_the_family_is_named(monkeypatch):
    """By shapes alone, so that no full-size arrays are made."""
    found = convert.network_shapes(importlib.import_module("configs.six_conv").get_config())
    expected = convert.network_shapes(preset("caffe"))
    assert convert.what_fits(found, expected) == "--config configs/six_conv.py fits"
    found["fc8"] = {"kernel": (4096, 10), "bias": (10,)}
    fits = "--config configs/six_conv.py --config.model.num_classes=10 fits"
    assert convert.what_fits(found, expected) == fits
    monkeypatch.setattr(config_file, "checkout", lambda: None)
    assert "name a config" in convert.what_fits(found, expected)


def test_means_and_names_that_do_not_fit(mean, tmp_path):
    origin, path = write(tmp_path, "V2", caffe_net()[1])
    np.save(tmp_path / "small.npy", mean[:, :50, :50])
    np.save(tmp_path / "flat.npy", mean[0])
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.binaryproto").write_text("no mean image")
    (tmp_path / "zip.npz").write_bytes(b"PK")
    np.savez(tmp_path / "two.npz", mean, mean)
    for name, match in (
        ("small.npy", r"is 50 pixels wide and must be as wide as --config\.data\.size, 112"),
        ("flat.npy", "holds no such arrays"),
        ("two.npz", "holds 2 such arrays"),
        ("objects.npy", "plain arrays"),
        ("none.npy", "no file"),
        ("text.binaryproto", "cannot be read"),
        ("zip.npz", "cannot be read"),
    ):
        refuse(match, origin, path, mean=tmp_path / name)
    config = preset("caffe")
    config.data.mean = "value"
    np.save(tmp_path / "mean.npy", mean)
    refuse("--mean is not used", origin, path, config, mean=tmp_path / "mean.npy")
    (tmp_path / "names.txt").write_text("a\nb\nb\nc\nd\ne\nf\n")
    refuse("has 7 lines with 6 different names, and there are 7 classes", origin, path, names=tmp_path / "names.txt")
    refuse("cannot be read", origin, path, names=tmp_path / "none.txt")


def test_workdirs_are_not_overwritten_nor_trained_in_place(converted, photos, config):
    with pytest.raises(UserError, match="is not empty"):
        convert.import_weights("caffe", converted.parent / "net.caffemodel", preset("caffe"), converted)
    with pytest.raises(UserError, match=r"converted weights.*--config configs/finetune\.py --config\.start\.workdir="):
        main.run(config, converted)


def test_one_conversion_at_a_time_writes_a_workdir(converted, tmp_path):
    """Each would remove what the other has written so far."""
    whole = converted.parent / "net.caffemodel"
    with files.alone(tmp_path / ".run.lock"), pytest.raises(UserError, match="another conversion writes .*run: wait"):
        convert.import_weights("caffe", whole, preset("caffe"), tmp_path / "run")
    convert.import_weights("caffe", whole, preset("caffe"), tmp_path / "run")
    convert.import_weights("caffe", whole, preset("caffe"), tmp_path / "runs" / "caffe")  # whose folder is new too
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.json")) == [
        "run/config.json", "run/converted.json",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["caffe"]


# How converted runs are used.


def test_words_for_synsets():
    assert (
        len(classes.SYNSETS) == len(set(classes.WORDS.values())) == 1000 and sorted(classes.SYNSETS) == classes.SYNSETS
    )
    assert classes.words(["n01440764", "red", "n03888257"]) == ["tench", "red", "parachute"]
    assert classes.words(["n03126707", "n02012849"]) == ["crane (n03126707)", "crane (n02012849)"]


def test_predictions_have_ids_and_words(converted, photos, capsys):
    path = photos / "validation" / "red" / "0.png"
    assert run_verb(["predict", f"--workdir={converted}", "--json", "--top=7", str(path)]) == 0
    top = json.loads(capsys.readouterr().out)["top"]
    names = {entry["class"]: entry["name"] for entry in top}
    assert names["n01440764"] == "tench" and names["red"] == "red" and names["n02012849"] == "crane (n02012849)"
    assert run_verb(["predict", f"--workdir={converted}", "--top=7", str(path)]) == 0
    out = capsys.readouterr().out
    assert "tench" in out and "n01440764" not in out


def test_other_data_is_labelled_by_name(converted, photos, tmp_path):
    """Classes match by name, not by index; a folder without validation images is used whole."""
    run = load_run(converted)
    for split, count in (("validation", 33), ("train", 96)):
        images = evaluate.images_for(run, split, str(photos))
        assert len(images) == count
        assert [run.classes[i] for i in images.labels] == [name.split("/")[0] for name in images.ids]
    for split in ("validation", "train"):
        assert len(evaluate.images_for(run, split, str(photos / "validation"))) == 33
    found = evaluate.evaluate_runs([str(converted)], 1, "validation", data=str(photos))
    split = evaluate.images_for(run, "validation", str(photos))
    predicted = np.asarray(run(split.images())[0]).argmax(axis=1)
    assert found["images"] == 33 and found["top1_error"] == pytest.approx(np.mean(predicted != [
        run.classes.index(name.split("/")[0]) for name in split.ids
    ]))  # fmt: skip
    (tmp_path / "purple").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "purple" / "a.png")
    with pytest.raises(UserError, match="has the class purple, which"):
        evaluate.images_for(run, "validation", str(tmp_path))


def test_figures_of_converted_weights(converted, photos, tmp_path, capsys):
    """Kernels without images; with a folder of photos, the figures that show photos; never curves. It says why."""
    run = ["--workdir", str(converted), "--out", str(tmp_path)]
    run_verb(["figures", *run])
    out, err = capsys.readouterr()
    assert [p.name for p in tmp_path.iterdir()] == ["kernels.png"] and "tower 1" in out
    no_curves, no_images = err.splitlines()
    assert "was not trained here and has no curves" in no_curves
    assert no_images.startswith("no predictions, confusion, mistakes: ") and "--data" in no_images
    run_verb(["figures", *run, "--data", str(photos)])
    names = ["confusion", "kernels", "mistakes", "predictions"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.png" for name in names]
    for flags, match in ((["--what", "curves"], "has no curves"), (["--what", "confusion"], "imagenet2012"),
                         (["--what", "neighbours", "--data", str(photos)], "leave out --data")):  # fmt: skip
        with pytest.raises(UserError, match=match):
            run_verb(["figures", *run, *flags])


def call(*words):
    return run_verb(["convert", *map(str, words)])


def test_the_command_line(tmp_path, capsys):
    """The origin's own config is the default, and its fields can be set."""
    _, path = write(tmp_path, "V1", caffe_net()[1])
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    fields = [
        f"--config.model.conv_widths={WIDTHS}",
        f"--config.model.fc_widths={FCS}",
        "--config.model.num_classes=7",
        f"--config.data.size={SIZE}",
        f"--config.data.crop={CROP}",
    ]
    assert not call("--from", "caffe", "--weights", path, "--workdir", run, *fields)
    assert f"alexnet predict --workdir {run}" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())
    assert config["name"] == "caffe" and config["model"]["num_classes"] == 7
    assert not call("--to", "safetensors", "--workdir", run, "--out", out)
    assert str(out) in capsys.readouterr().out and out.is_file()


def test_flags_that_do_not_go_together(tmp_path, monkeypatch):
    workdir, net = ("--workdir", tmp_path / "run"), ("--weights", tmp_path / "net.pth")
    onnx = ("--to", "onnx", "--out", tmp_path / "net.onnx")
    for words, match in (
        (workdir, "--from --to"),
        (("--from", "caffe", "--to", "onnx", *workdir), "not allowed with"),
        (("--from", "caffe", *net), "--workdir"),
        (("--from", "caffe", *workdir), "name the file of weights with --weights"),
        (("--from", "caffe", *workdir, *net, "--out", "net.npy"), "--out is for --to"),
        (("--from", "safetensors", *workdir, *net), "name the config of the network"),
        (("--to", "onnx", *workdir), "name the file to write with --out"),
        ((*onnx, *workdir, *net), "--weights is for --from"),
        ((*onnx, *workdir, "--config", "configs/paper.py"), "--config is for --from"),
        (("--to", "torchvision", *workdir, "--out", tmp_path / "net.npy"), r"writes \.pth or \.pt or \.safetensors"),
        ((*onnx, *workdir), "holds no run"),
    ):
        with pytest.raises(UserError, match=match) as raised:
            call(*words)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(config_file, "checkout", lambda: None)
    with pytest.raises(UserError, match="name the config of the network"):
        call("--from", "caffe", *workdir, *net)
    assert not list(tmp_path.iterdir())
