"""The fixtures of all tests: a network narrow enough for them, photos, a run on these. Eight CPU devices."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import main
from alexnet_jax.analysis import figures
from alexnet_jax.config import default
from alexnet_jax.network import shapes
from alexnet_jax.runs.run import load_run
from configs import paper

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", os.environ["ALEXNET_JAX_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Runs that a test trains in this process draw none at their end, which saves two seconds each. tiny_run does."""
    monkeypatch.setattr(main, "figures", SimpleNamespace(QUICK=figures.QUICK, draw=lambda *args: {}))


@pytest.fixture
def narrow():
    """narrow(**changes): the paper's model config at a fraction of the width; lrn__size=3 sets lrn.size."""

    def make(**changes):
        m = paper.get_config().model
        m.conv_widths, m.fc_widths, m.num_classes = (16, 16, 12, 12, 8), (24, 20), 7
        m.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        return m

    return make


@pytest.fixture
def draw():
    """draw(m, batch, side): random parameters and images with which every part of the network affects the output.

    Images are in grey levels and kernels preserve their scale, so that the sums of the norms matter beside k.
    """

    def make(m, batch, side):
        rng = np.random.default_rng(0)
        images = rng.normal(0, 60, (batch, side, side, 3)).astype(np.float32)

        def value(p):
            std = 1.0 if p.ndim == 1 else (2 / (p.size / p.shape[-1])) ** 0.5
            return rng.normal(0, std, p.shape).astype(np.float32)

        return jax.tree.map(value, shapes(m, side)), images

    return make


COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 3 classes x 32 training and 11 validation images: coloured discs on noise."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :80]
    for split, count in (("train", 32), ("validation", 11)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(128, 25, (80, 80, 3))
                cy, cx = rng.integers(25, 55, 2)
                pixels[(y - cy) ** 2 + (x - cx) ** 2 < 20**2] += np.array(color) - 128
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root


def tiny_config(photos):
    """Four epochs of six steps of a narrow network in two towers, with dropout and every augmentation."""
    c = paper.get_config("smoke")
    c.name = "tiny"
    c.batch_size, c.epochs = 16, 4
    c.model.num_classes = 3
    for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        c.model.init_std[layer], c.model.init_bias[layer] = 0.1, 0.0
    c.optimizer.learning_rate = 0.003
    c.optimizer.rule, c.optimizer.drop_epochs = "epochs", (3,)
    c.data.name = str(photos)
    c.data.prepared_dir = str(photos.parent / "prepared")
    c.data.size, c.data.crop = 72, 64
    c.evaluation.batch_size = 10
    c.devices.tower = 1
    c.log_every_steps, c.checkpoint_every_steps = 4, 2
    return c


@pytest.fixture
def config(photos):
    """A tiny_config that a test may change."""
    return tiny_config(photos)


@pytest.fixture
def chain_config(config):
    """A tiny_config of three layers only, for tests of what processes do: it compiles in a fraction of the time."""
    config.model, config.optimizer.learning_rate = default().model, 0.0001
    config.model.num_classes, config.model.towers = 3, 1
    config.model.layers = (("conv1", "conv", 8, 5, 0.001), ("pool1", "max_pool"), ("fc2", "dense", 0, 0.01))
    return config


@pytest.fixture(scope="session")
def run(tiny_run):
    """tiny_run, loaded."""
    return load_run(tiny_run)


@pytest.fixture(scope="session")
def tiny_run(photos, tmp_path_factory):
    """The workdir of a short, finished run on the photos."""
    c = tiny_config(photos)
    c.epochs = 2
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    main.run(c, workdir)
    return workdir
