"""Exported networks, run by other programs, against the network itself."""

import importlib
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, export, towers
from alexnet_jax.checkpoint import Run
from alexnet_jax.model import AlexNet, shapes
from configs import one_weird_trick, paper, source

FAMILY = (
    "paper",
    "source",
    "caffe",
    "caffenet",
    "one_column",
    "half_width",
    "ungrouped",
    "one_weird_trick",
    "six_conv",
)
MESH = towers.make_mesh(ConfigDict({"data": 1, "tower": 1}), 1, 1)


def make_run(c, side=96, **model):
    """A narrow run with random parameters at which every part shows, on images a little larger than it sees."""
    rng, m = np.random.default_rng(0), c.model
    m.conv_widths, m.fc_widths, m.num_classes = (16, 16, 12, 12, 8, 12)[: len(m.conv_widths)], (24, 20), 7
    m.update_from_flattened_dict({name.replace("__", "."): value for name, value in model.items()})
    c.data.crop = side if sum(m.conv1_padding) else side + 3
    c.data.size = c.data.crop + 6

    def value(p):
        return rng.normal(0, 1 if p.ndim == 1 else (2 / (p.size / p.shape[-1])) ** 0.5, p.shape).astype(np.float32)

    size = c.data.size
    statistics = {"mean": rng.uniform(80, 140, (size, size, 3)).astype(np.float32)}
    statistics["channel_mean"] = statistics["mean"].mean((0, 1))
    apply = towers.split(AlexNet(FrozenConfigDict(m)), MESH)
    params = jax.tree.map(value, shapes(m, c.data.crop))
    return Run(Path("run"), 5, c, MESH, apply, params, statistics, [f"class {i}" for i in range(7)])


def photos(run, count):
    """Prepared images, and their centre crops as the exported networks take them."""
    size = run.config.data.size
    images = np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)
    return images, images[:, 3:-3, 3:-3].astype(np.float32)


def close(actual, expected):
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def check_onnx(run, path):
    """One file, batches of one and three, logits and probabilities."""
    export.write_onnx(run, path)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 3):
        images, crops = photos(run, count)
        logits, probabilities = session.run(None, {"images": crops.transpose(0, 3, 1, 2)})
        close(logits, run(images)[0])
        close(probabilities, jax.nn.softmax(run(images)[0]))
    return session


@pytest.mark.parametrize("name", FAMILY)
def test_onnx_runtime_agrees_on_the_family(name, tmp_path):
    check_onnx(make_run(importlib.import_module(f"configs.{name}").get_config()), tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "model",
    [
        {"activation": "tanh", "removed": ("conv4",), "lrn__layers": ("conv2", "conv3")},
        {"exchange": ("conv2", "fc8"), "pool_size": 2, "average_pool": 3},
        {"lrn__after_pool": True, "lrn__per_tower": False, "lrn__size": 3, "average_pool": 6},
    ],
    ids=["activation", "towers to the end", "norm"],
)
def test_onnx_runtime_agrees_on_every_option(model, tmp_path):
    check_onnx(make_run(paper.get_config(), **model), tmp_path / "net.onnx")


@pytest.mark.parametrize("mean", ["centre", "channel", "none"])
def test_onnx_removes_the_mean(mean, tmp_path):
    c = paper.get_config()
    c.data.mean, c.data.deviation = mean, (50.0, 60.0, 70.0)
    check_onnx(make_run(c), tmp_path / "net.onnx")


def test_onnx_says_what_it_is(tmp_path):
    session = check_onnx(make_run(paper.get_config()), tmp_path / "net.onnx")
    about = session.get_modelmeta()
    assert about.producer_name == "alexnet_jax"
    assert '"class 6"' in about.custom_metadata_map["classes"] and about.custom_metadata_map["step"] == "5"


def test_onnx_has_no_norm_of_even_size(tmp_path):
    with pytest.raises(UserError, match="model.lrn.size is 4"):
        export.write_onnx(make_run(paper.get_config(), lrn__size=4), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install"):
        export.write_onnx(make_run(paper.get_config()), tmp_path / "net.onnx")


@pytest.mark.parametrize("write", [export.write_onnx, export.write_stablehlo])
def test_nowhere_to_write(write, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write(make_run(paper.get_config()), tmp_path / "missing" / "net")
    assert not list(tmp_path.iterdir())


ALONE = """
import sys
for name in ("flax", "orbax", "alexnet_jax", "configs", "ml_collections"):
    sys.modules[name] = None
import jax.export
import numpy as np
network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
print(network.platforms)
with np.load(sys.argv[2]) as crops:
    np.savez(sys.argv[3], **{name: network.call(crops[name]) for name in crops})
"""


@pytest.mark.parametrize("config", [source, one_weird_trick], ids=["source", "one_weird_trick"])
def test_stablehlo_in_a_process_that_has_jax_alone(config, tmp_path):
    run = make_run(config.get_config())
    export.write_stablehlo(run, tmp_path / "net.stablehlo")
    both = {f"of{count}": photos(run, count) for count in (1, 3)}
    np.savez(tmp_path / "crops.npz", **{name: crops for name, (_, crops) in both.items()})
    files = [tmp_path / name for name in ("net.stablehlo", "crops.npz", "logits.npz")]
    done = subprocess.run([sys.executable, "-c", ALONE, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(platform in done.stdout for platform in ("cpu", "cuda", "tpu"))
    with np.load(tmp_path / "logits.npz") as logits:
        for name, (images, _) in both.items():
            close(logits[name], run(images)[0])
