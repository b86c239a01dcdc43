"""A run that is read back is the network that was trained, on any devices."""

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from alexnet_jax import UserError, checkpoint
from alexnet_jax.model import AlexNet


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 72, 72, 3), np.uint8)


def test_a_run_is_called_on_images(tiny_run, images):
    """Logits and activations of the centre crop, the mean removed at its place, in three lines."""
    run = checkpoint.load(tiny_run)
    logits, activations = run(images)
    centre = (images - run.statistics["mean"])[:, 4:68, 4:68]
    plain = AlexNet(FrozenConfigDict(run.config.model)).apply({"params": run.params}, centre)
    np.testing.assert_allclose(logits, plain[0], atol=1e-4)
    assert activations.keys() == plain[1].keys()
    np.testing.assert_allclose(activations["fc7"], plain[1]["fc7"], atol=1e-4)
    with pytest.raises(ValueError, match="must be"):
        run(images[:, :64, :64])


@pytest.mark.parametrize("data, tower", [(1, 2), (2, 1), (2, 2)])
def test_on_more_devices_it_says_the_same(tiny_run, images, data, tower):
    one, many = checkpoint.load(tiny_run), checkpoint.load(tiny_run, data=data, tower=tower)
    assert many.mesh.devices.size == data * tower
    expected, found = one(images)[1], many(images)[1]
    for name in expected:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * scale, err_msg=name)


def test_too_few_devices_are_named(tiny_run):
    with pytest.raises(UserError, match="devices"):
        checkpoint.load(tiny_run, data=8, tower=2)
