"""Sums over more than 32,768 rows against float64: beyond, jaxlib 0.10.2 is wrong on CPU (jax-ml/jax#39103)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import Given, run_of
from ml_collections import ConfigDict

from alexnet_jax import evaluate, inference, layers, metrics, towers
from alexnet_jax.analysis import neighbours
from alexnet_jax.data import augment

ROWS = 32_769
SIDES = (9, 3641)  # as many places of a map

pytestmark = pytest.mark.as_shipped


def compiled(f):
    return jax.jit(f, compiler_options=towers.compiler_options(jax.default_backend()))


def normal(*shape, scale=1.0):
    return np.random.default_rng(shape).normal(0, scale, shape).astype(np.float32)


def double(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def close(actual, expected, tolerance=1e-5):
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("width", (3, 8))
def test_a_product_and_a_sum(width):
    """What the compiler got wrong, as it was reported."""
    x, w = normal(ROWS, width), normal(width, width)
    found = compiled(lambda x, w: jax.vmap(lambda row: jnp.sum((w @ row) ** 2))(x))(x, w)
    a, b = double(x, w)
    close(found, ((a @ b.T) ** 2).sum(axis=1))


def test_metrics():
    labels, mask = np.arange(ROWS, dtype=np.int32) % 10, (np.arange(ROWS) % 7 > 0).astype(np.float32)
    x, w = normal(ROWS, 12), normal(12, 10)

    def errors(x, w):
        return metrics.sums(jax.nn.log_softmax(layers.dense(x, w, groups=1)), labels, mask)

    found = compiled(errors)(x, w)
    logs = log_softmax(np.matmul(*double(x, w)))
    own = logs[np.arange(ROWS), labels]
    rank = (logs > own[:, None]).sum(axis=1)
    assert float(found["images"]) == mask.sum()
    assert float(found["loss"]) == pytest.approx(-(own * mask).sum(), rel=1e-5)
    for name, places in (("top1_error", 1), ("top5_error", 5)):
        assert abs(float(found[name]) - ((rank >= places) * mask).sum()) <= 3  # near ties that rounding decides


def test_gradients_of_a_layer():
    """The kernel's and the bias's are sums over all rows."""
    labels, x, w, b = np.arange(ROWS) % 10, normal(ROWS, 12), normal(12, 10), normal(10)

    def loss(w, b):
        logs = jax.nn.log_softmax(layers.dense(x, w, groups=1) + b)
        return -jnp.take_along_axis(logs, labels[:, None], axis=1).sum()

    found = compiled(jax.grad(loss, argnums=(0, 1)))(w, b)
    x, w, b = double(x, w, b)
    g = np.exp(log_softmax(x @ w + b)) - np.eye(10)[labels]
    close(found[0], x.T @ g, 1e-4)
    close(found[1], g.sum(axis=0), 1e-4)


@pytest.mark.parametrize("views", (1, 10))
def test_evaluation(views):
    """All images in one batch, through a network of one matrix."""
    config = ConfigDict({"crop": 2, "mean": "none", "deviation": (60.0,) * 3})
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4, 3), np.uint8)
    labels, w = np.arange(ROWS, dtype=np.int32) % 7, normal(12, 7, scale=0.2)
    run = run_of(lambda w, x: (layers.dense(x, w, groups=1), {}), w, config)
    forward = inference.make_forward(run)
    found = evaluate.evaluate([evaluate.Member(run, forward, Given(images, labels))], ROWS, views)
    crops = double(*augment.views(images, {}, config, views))
    probabilities = sum(np.exp(log_softmax(c.reshape(ROWS, -1) @ w.astype(np.float64))) for c in crops) / views
    logs = forward(w, {}, images, views=views)[inference.LOGS]
    np.testing.assert_allclose(np.exp(logs), probabilities, atol=1e-5)
    own = probabilities[np.arange(ROWS), labels]
    rank = (probabilities > own[:, None]).sum(axis=1)
    assert found["images"] == ROWS and found["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert found["top1_error"] == pytest.approx((rank >= 1).mean(), abs=1e-4)
    assert found["top5_error"] == pytest.approx((rank >= 5).mean(), abs=1e-4)


@pytest.mark.parametrize("width", (3, 20))
def test_distances(width):
    """Lengths and products of a block, and what is made of them, whichever side has the rows."""
    rows, few = normal(ROWS, width), normal(5, width)
    centre = rows.mean(axis=0)
    lengths = neighbours._centred(rows, centre)[1]
    a, b, c = double(rows, few, centre)
    close(lengths, np.square(a - c).sum(axis=1))
    wanted = np.square(a[:, None] - b).sum(axis=2)
    order = np.argsort(wanted, axis=0, kind="stable")[:6].T
    distances, indices = neighbours.nearest(few, rows, 6, block=ROWS)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, np.sqrt(np.take_along_axis(wanted.T, order, axis=1)), rtol=1e-6)
    distances, indices = neighbours.nearest(rows, few, 2, block=ROWS)
    np.testing.assert_array_equal(indices, np.argsort(wanted, axis=1, kind="stable")[:, :2])
    np.testing.assert_allclose(distances, np.sqrt(np.sort(wanted, axis=1)[:, :2]), rtol=1e-6)


def window_sums(x, size):
    pad = np.pad(x, [(0, 0)] * 3 + [(size // 2, size // 2)])
    return sum(pad[..., i : i + x.shape[-1]] for i in range(size))


def test_norm_behind_a_convolution():
    """The sum over neighbouring maps at every place, and its gradient."""
    x, w, g = normal(1, *SIDES, 4), normal(1, 1, 4, 8), normal(1, *SIDES, 8)
    rule = {"size": 5, "k": 2.0, "alpha": 0.05, "beta": 0.75, "divide_by_size": False, "groups": 1}

    def normed(x, w):
        return layers.local_response_norm(layers.convolution(x, w, stride=1, padding=(0, 0), groups=1), **rule)

    def run(x, w):
        out, back = jax.vjp(normed, x, w)
        return out, *back(g)

    out, dx, dw = compiled(run)(x, w)
    x, w, g = double(x, w[0, 0], g)
    y = x @ w
    d = 2 + 0.05 * window_sums(y**2, 5)
    close(out, y * d**-0.75)
    dy = g * d**-0.75 - 2 * 0.75 * 0.05 * y * window_sums(g * y * d**-1.75, 5)
    close(dx, dy @ w.T)
    close(dw[0, 0], np.einsum("byxi,byxo->io", x, dy), 1e-4)


def test_spatial_norm_behind_a_convolution():
    x, w = normal(1, *SIDES, 4), normal(1, 1, 4, 8)

    def normed(x, w):
        y = layers.convolution(x, w, stride=1, padding=(0, 0), groups=1)
        return layers.spatial_response_norm(y, size=3, k=1.0, alpha=0.3, beta=0.75)

    out = compiled(normed)(x, w)
    x, w = double(x, w[0, 0])
    y = x @ w
    padded = np.pad(y**2, [(0, 0), (1, 1), (1, 1), (0, 0)])
    total = sum(padded[:, i : i + SIDES[0], j : j + SIDES[1]] for i in range(3) for j in range(3))
    close(out, y * (1 + 0.3 / 9 * total) ** -0.75)


@pytest.mark.parametrize("axis", ((1, 2), (1,)))
def test_log_mean_over_places(axis):
    logs = np.log(np.random.default_rng(0).dirichlet(np.ones(5), (2, *SIDES))).astype(np.float32)
    found = compiled(partial(inference.log_mean, axis=axis))(logs)
    np.testing.assert_allclose(found, np.log(np.exp(double(logs)[0]).mean(axis=axis)), rtol=1e-4)
