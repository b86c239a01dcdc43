"""Exported files compared with their run: ONNX in ONNX Runtime, StableHLO in a process that has only JAX."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, towers
from alexnet_jax.model import AlexNet
from alexnet_jax.runs.run import Run, load_run
from alexnet_jax.weights import convert, onnx_graph, stablehlo

PRESETS = (
    "paper", "source", "caffe", "caffenet", "one_column", "half_width", "ungrouped", "one_weird_trick", "six_conv",
)  # fmt: skip
VARIANTS = {  # of configs/source.py, which has both norms
    "tanh": {"activation": "tanh"},
    "other kernels, strides and pools": {
        "conv_sizes": (7, 3, 3, 5, 3), "conv_strides": (2, 2, 1, 1, 1), "pooled": ("conv1", "conv3"), "average_pool": 3,
    },
    "removed": {"removed": ("conv3", "conv4")},
    "towers apart": {"exchange": ("fc8",)},
    "towers apart but in conv2 and fc7": {"exchange": ("conv2", "fc7", "fc8")},
    "four towers": {"towers": 4},
    "plain pooling": {"pool_size": 2},
    "averages": {"average_pool": 3},
    "averages to what there is": {"average_pool": 2},
    "whole norm after pooling": {
        "lrn.per_tower": False, "lrn.after_pool": ("conv1", "conv3"), "lrn.layers": ("conv1", "conv3"),
        "lrn.before_activation": (),
    },
    "even norms": {"lrn.size": 4, "spatial_norm.size": 2, "lrn.beta": 0.5},
    "even norm over all": {"lrn.size": 6, "lrn.per_tower": False, "lrn.divide_by_size": False},
    "late norms": {"lrn.layers": ("conv5",), "spatial_norm.layers": ("conv4", "conv5")},
}  # fmt: skip


@pytest.fixture
def make_run(draw):
    """make_run(preset, size=112, model changes, data changes): an untrained run of a narrow network."""

    def make(name, size=112, model=None, data=None, tower=1):
        c = importlib.import_module(f"configs.{name}").get_config()
        m, d = c.model, c.data
        m.conv_widths, m.fc_widths, m.num_classes = (16, 16, 12, 12, 8, 12)[: len(m.conv_widths)], (24, 20), 7
        m.update_from_flattened_dict(model or {})
        d.size, d.crop = size, size - 16 if sum(m.conv1_padding) else size - 13
        d.update(data or {})
        rng = np.random.default_rng(1)
        statistics = {"mean": rng.uniform(60, 180, (size, size, 3)), "channel_mean": rng.uniform(60, 180, 3)}
        statistics = {name: array.astype(np.float32) for name, array in statistics.items()}
        mesh = towers.make_mesh(ConfigDict({"data": 1, "tower": tower}), m.towers, 1)
        params, _ = draw(m, 1, d.crop)
        params = jax.device_put(params, towers.shardings(params, mesh))
        apply = towers.split(AlexNet(FrozenConfigDict(m)), mesh)
        return Run(Path("run"), 5, c, mesh, apply, params, statistics, list("abcdéfg"))

    return make


def pictures(run, count=3):
    """Prepared images, and their centre crops as exports take them: float32 NHWC."""
    d = run.config.data
    images = np.random.default_rng(0).integers(0, 256, (count, d.size, d.size, 3), np.uint8)
    at = (d.size - d.crop) // 2
    return images, images[:, at : at + d.crop, at : at + d.crop].astype(np.float32)


def answer(path, crops, outputs=("logits",)):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"images": crops.transpose(0, 3, 1, 2)})


def close(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    assert actual.dtype == np.float32 and np.ptp(expected, axis=1).min() > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def compare(run, path):
    """The run's ONNX file gives the run's logits."""
    onnx_graph.write(run, path)
    images, crops = pictures(run)
    [logits] = answer(path, crops)
    close(logits, run(images)[0])


@pytest.mark.parametrize("name", PRESETS)
def test_onnx_is_the_preset(make_run, tmp_path, name):
    compare(make_run(name), tmp_path / "net.onnx")


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_is_the_variant(make_run, tmp_path, name):
    size = 176 if name == "averages" else 112  # 4 x 4 maps to 3 x 3
    compare(make_run("source", size, model=VARIANTS[name]), tmp_path / "net.onnx")


@pytest.mark.parametrize("mean", ["pixel", "channel", "value", "none"])
def test_mean_and_deviation_are_in_the_graph(make_run, tmp_path, mean):
    data = {"mean": mean, "mean_value": (100.0, 120.0, 140.0), "deviation": (2.0, 1.0, 0.5)}
    compare(make_run("one_column", data=data), tmp_path / "net.onnx")


def test_one_file_takes_any_batch(make_run, tmp_path):
    """And its inputs, outputs and metadata say what it is."""
    run, path = make_run("paper"), tmp_path / "net.onnx"
    onnx_graph.write(run, path)
    images, crops = pictures(run)
    expected = np.asarray(run(images)[0])
    for count in (1, 3):
        logits, probabilities = answer(path, crops[:count], ["logits", "probabilities"])
        close(logits, expected[:count])
        np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-6)
    session = onnxruntime.InferenceSession(path)
    [takes], gives = session.get_inputs(), session.get_outputs()
    assert (takes.name, takes.type, takes.shape) == ("images", "tensor(float)", ["batch", 3, 96, 96])
    assert [(o.name, o.shape) for o in gives] == [("logits", ["batch", 7]), ("probabilities", ["batch", 7])]
    about = session.get_modelmeta()
    assert about.producer_name == "alexnet_jax" and "0..255" in about.description
    props = {name: json.loads(value) for name, value in about.custom_metadata_map.items()}
    assert props["classes"] == run.classes and props["step"] == 5 and props["model"]["towers"] == 2


def test_bfloat16_is_exported_in_float32(make_run, tmp_path):
    """The same parameters, computed more exactly."""
    run, exact = make_run("paper", model={"dtype": "bfloat16"}), make_run("paper")
    onnx_graph.write(run, tmp_path / "net.onnx")
    images, crops = pictures(run)
    [logits] = answer(tmp_path / "net.onnx", crops)
    close(logits, exact(images)[0])
    assert "bfloat16" in onnxruntime.InferenceSession(tmp_path / "net.onnx").get_modelmeta().description


def test_a_run_on_two_devices_is_exported_whole(make_run, tmp_path):
    for tower in (1, 2):
        for name, write in (("onnx", onnx_graph.write), ("stablehlo", stablehlo.write)):
            write(make_run("paper", tower=tower), tmp_path / f"{name}{tower}")
    for name in ("onnx", "stablehlo"):
        assert (tmp_path / f"{name}1").read_bytes() == (tmp_path / f"{name}2").read_bytes()


def test_stablehlo_requires_only_jax(make_run, tmp_path):
    """In a process without Flax, Orbax and this package, for batches of any size."""
    runs = {
        "trick": make_run("one_weird_trick"),
        "apart": make_run("source", model={"exchange": ("fc8",), "average_pool": 3, "dtype": "bfloat16"}),
    }
    for name, run in runs.items():
        stablehlo.write(run, tmp_path / f"{name}.stablehlo")
        np.save(tmp_path / f"{name}.npy", pictures(run)[1])
    code = (
        "import sys\n"
        "for name in ('flax', 'orbax', 'alexnet_jax', 'ml_collections', 'tensorflow'): sys.modules[name] = None\n"
        "import jax, jax.export, numpy as np\n"
        f"for name in {list(runs)}:\n"
        "    net = jax.export.deserialize(bytearray(open(f'{name}.stablehlo', 'rb').read()))\n"
        "    assert net.platforms == ('cpu', 'cuda', 'tpu'), net.platforms\n"
        "    crops = np.load(f'{name}.npy')\n"
        "    for count in (1, 3): np.save(f'{name}{count}.npy', net.call(crops[:count]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, run in runs.items():
        expected = np.asarray(run(pictures(run)[0])[0])
        for count in (1, 3):
            close(np.load(tmp_path / f"{name}{count}.npy"), expected[:count], 1e-4 if name == "trick" else 0.02)


def test_a_trained_run_goes_out_by_its_name(tiny_run, tmp_path):
    run = load_run(tiny_run)
    images, crops = pictures(run)
    expected = run(images)[0]
    for to in ("onnx", "stablehlo"):
        write, [suffix] = convert.TARGETS[to]
        write(run, tmp_path / f"net{suffix}")
    close(answer(tmp_path / "net.onnx", crops)[0], expected)
    net = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    close(np.asarray(net.call(crops)), expected)


# Mistakes.


def test_message_without_onnx(make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install onnx"):
        onnx_graph.write(make_run("paper"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [onnx_graph.write, stablehlo.write])
def test_what_cannot_be_written_leaves_nothing_behind(make_run, tmp_path, monkeypatch, write):
    run, path = make_run("half_width"), tmp_path / "net"
    with pytest.raises(UserError, match="cannot write"):
        write(run, tmp_path / "nowhere" / "net")
    with pytest.raises(UserError, match="folder"):
        write(run, tmp_path)
    path.write_bytes(b"the one before")
    put = Path.write_bytes

    def full(self, data):
        put(self, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        write(run, path)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]
