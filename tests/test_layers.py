"""Each operation against an independent definition: a NumPy loop, PyTorch, or a plain formula left to autodiff."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alexnet_jax import layers


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng([seed, *shape]).normal(0, scale, shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    """Equal up to `tolerance` of the largest value: sums of float32 in another order."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def with_gradients(f, g, *inputs):
    """f of the inputs and its gradients along g, compiled as one."""

    def run(g, *inputs):
        out, back = jax.vjp(f, *inputs)
        return out, *back(g.astype(out.dtype))

    return jax.jit(run)(g, *inputs)


def nchw(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


# Local response normalization.

LRN = pytest.mark.parametrize("groups", (1, 2))
LRN_RULES = pytest.mark.parametrize(
    "size, beta, divide_by_size", [(5, 0.75, False), (5, 0.75, True), (3, 0.6, False), (15, 0.75, True)]
)  # a window of 15 is wider than the 8 maps
K, ALPHA = 2.0, 0.05


def lrn_loop(x, size, a, beta, groups):
    """Section 3.3's sum over j = max(0, i - n/2) .. min(N - 1, i + n/2) for each map i of each tower."""
    towers = np.split(x.astype(np.float64), groups, axis=-1)
    for t, tower in enumerate(towers):
        count = tower.shape[-1]
        out = np.empty_like(tower)
        for i in range(count):
            total = sum(tower[..., j] ** 2 for j in range(max(0, i - size // 2), min(count - 1, i + size // 2) + 1))
            out[..., i] = tower[..., i] / (K + a * total) ** beta
        towers[t] = out
    return np.concatenate(towers, axis=-1)


def lrn_plain(x, size, a, beta, groups):
    """The same as one matrix product, for autodiff."""
    i = np.arange(x.shape[-1])
    tower = i // (len(i) // groups)
    band = (np.abs(i[:, None] - i) <= size // 2) & (tower[:, None] == tower)
    return x / (K + a * x**2 @ band.astype(np.float32)) ** beta


@pytest.mark.as_shipped
@LRN
@LRN_RULES
def test_lrn_is_the_papers_formula(size, beta, divide_by_size, groups):
    """Output against the loop and PyTorch; the hand-written gradient against autodiff and central differences."""
    x, g = normal(2, 3, 3, 8, scale=4), normal(2, 3, 3, 8, seed=1)
    rule = {"size": size, "k": K, "alpha": ALPHA, "beta": beta, "divide_by_size": divide_by_size, "groups": groups}
    out, gradient = with_gradients(partial(layers.local_response_norm, **rule), g, x)

    a = ALPHA / size if divide_by_size else ALPHA
    definition = partial(lrn_loop, size=size, a=a, beta=beta, groups=groups)
    close(out, definition(x))
    theirs = [F.local_response_norm(t, size, a * size, beta, K) for t in nchw(x).chunk(groups, 1)]  # torch divides
    close(out, nhwc(torch.cat(theirs, 1)))

    close(gradient, with_gradients(partial(lrn_plain, size=size, a=a, beta=beta, groups=groups), g, x)[1])
    steps = 1e-4 * np.eye(8)  # along one map at a time, at all images and places at once
    differences = [(g * (definition(x + s) - definition(x - s))).sum(-1) for s in steps]
    close(gradient, np.stack(differences, axis=-1) / 2e-4)


def test_lrn_keeps_the_dtype():
    x = normal(2, 3, 3, 8, scale=4)
    rule = {"size": 5, "k": K, "alpha": ALPHA, "beta": 0.75, "divide_by_size": False, "groups": 2}
    out = layers.local_response_norm(jnp.asarray(x, jnp.bfloat16), **rule)
    assert out.dtype == jnp.bfloat16
    close(out, layers.local_response_norm(x, **rule), 1e-2)


@pytest.mark.as_shipped
@pytest.mark.parametrize("size", (5, 4))
def test_spatial_response_norm(size):
    """Against a loop over places: alpha is divided by size^2 also where the window extends over the edge. The
    hand-written gradient against torch's of the same formula."""
    x, g = normal(2, 7, 6, 3, scale=4), normal(2, 7, 6, 3, seed=1)
    before, after = (size - 1) // 2, size // 2
    expected = np.empty_like(x)
    for i, j in np.ndindex(7, 6):
        total = (x[:, max(0, i - before) : i + after + 1, max(0, j - before) : j + after + 1] ** 2).sum((1, 2))
        expected[:, i, j] = x[:, i, j] / (1 + 0.3 / size**2 * total) ** 0.75
    norm = partial(layers.spatial_response_norm, size=size, k=1.0, alpha=0.3, beta=0.75)
    out, gradient = with_gradients(norm, g, x)
    close(out, expected)

    theirs = nchw(x).requires_grad_()
    mean = F.avg_pool2d(F.pad(theirs**2, (before, after) * 2), size, stride=1)
    (theirs / (1 + 0.3 * mean) ** 0.75).backward(nchw(g))
    close(gradient, nhwc(theirs.grad))


# Convolution.


def torch_conv_with_gradients(x, w, g, *, stride, padding, groups):
    x, w = nchw(x).requires_grad_(), torch.tensor(w).permute(3, 2, 0, 1).contiguous().requires_grad_()
    out = F.conv2d(F.pad(x, padding * 2), w, stride=stride, groups=groups)
    out.backward(nchw(g))
    return nhwc(out), nhwc(x.grad), w.grad.permute(2, 3, 1, 0).numpy()


def check_conv(batch, sides, inputs, size, filters, dtype=jnp.float32, tolerance=1e-5, **geometry):
    x, w = normal(batch, *sides, inputs), normal(size, size, inputs // geometry["groups"], filters)
    out = [(n + sum(geometry["padding"]) - size) // geometry["stride"] + 1 for n in sides]
    g = normal(batch, *out, filters)
    ours = with_gradients(partial(layers.convolution, **geometry), g, jnp.asarray(x, dtype), jnp.asarray(w, dtype))
    theirs = torch_conv_with_gradients(x, w, g, **geometry)
    for name, a, b in zip(("output", "input's gradient", "kernel's gradient"), ours, theirs, strict=True):
        assert a.dtype == dtype, name
        close(a, b, tolerance)


@pytest.mark.as_shipped
@pytest.mark.parametrize("padding", [(0, 3), (2, 2), (0, 0)])
@pytest.mark.parametrize("sides", [(224, 224), (227, 227), (31, 33), (34, 64)])
def test_strided_convolution(sides, padding):
    """Any side, whether the kernels reach its end, stop before it or go beyond."""
    check_conv(2, sides, 3, 11, 4, stride=4, padding=padding, groups=1)


@pytest.mark.as_shipped
@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize("size, padding", [(5, (2, 2)), (3, (1, 1)), (3, (0, 2))])
def test_convolution_in_towers(size, padding, groups):
    check_conv(2, (9, 13), 6, size, 8, stride=1, padding=padding, groups=groups)


def test_strided_convolution_in_towers():
    check_conv(2, (31, 33), 6, 11, 8, stride=4, padding=(0, 3), groups=2)


@pytest.mark.as_shipped
def test_convolution_in_bfloat16():
    check_conv(8, (31, 31), 3, 11, 4, jnp.bfloat16, 2e-2, stride=4, padding=(0, 3), groups=1)
    check_conv(8, (9, 9), 6, 3, 8, jnp.bfloat16, 2e-2, stride=1, padding=(1, 1), groups=2)


# Pooling.


@pytest.mark.as_shipped
@pytest.mark.parametrize("sides", [(13, 13), (12, 9), (3, 4)])
@pytest.mark.parametrize("size", (3, 2))
def test_max_pool(size, sides):
    """Output and gradient are torch's, on data without ties, with rows that no window covers and rows that two do."""
    shape = (2, *sides, 3)
    x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    theirs = nchw(x).requires_grad_()
    expected = F.max_pool2d(theirs, size, 2)
    g = normal(*nhwc(expected).shape)
    expected.backward(nchw(g))
    out, gradient = with_gradients(partial(layers.max_pool, size=size, stride=2), g, x)
    np.testing.assert_array_equal(out, nhwc(expected))
    close(gradient, nhwc(theirs.grad))


@pytest.mark.as_shipped
@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
@pytest.mark.parametrize("size", (3, 2))
def test_max_pool_gives_a_tie_to_the_first(size, dtype):
    """Torch's gradient, exactly, where most windows hold their maximum more than once."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, 13, 10, 3)).astype(np.float32)
    theirs = nchw(x).requires_grad_()
    expected = F.max_pool2d(theirs, size, 2)
    g = rng.integers(1, 9, nhwc(expected).shape).astype(np.float32)
    expected.backward(nchw(g))
    out, gradient = with_gradients(partial(layers.max_pool, size=size, stride=2), g, jnp.asarray(x, dtype))
    assert out.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), nhwc(expected))
    np.testing.assert_array_equal(gradient.astype(jnp.float32), nhwc(theirs.grad))


@pytest.mark.as_shipped
def test_max_pool_goes_row_by_row():
    """The maximum in the upper row, although the other one is further left, gets all of the gradient."""
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, 0, 2] = x[0, 1, 0] = x[0, 2, 2] = 1
    gradient = with_gradients(partial(layers.max_pool, size=3, stride=2), np.ones((1, 1, 1, 1)), x)[1][0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[0, 0, 1], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 1)])
def test_max_pool_hides_no_nan(place):
    x = normal(1, 3, 3, 1)
    x[0, *place] = np.nan
    assert np.isnan(layers.max_pool(x, size=3, stride=2)).all()


@pytest.mark.parametrize("shape", [(1, 2, 5, 1), (1, 5, 2, 1)])
def test_max_pool_of_too_small_a_map(shape):
    with pytest.raises(ValueError, match="map is too small for 3x3 pooling"):
        layers.max_pool(jnp.zeros(shape), size=3, stride=2)


# Speed alone.


@pytest.mark.as_shipped
@pytest.mark.parametrize("images, length", [(1, 6), (2, 3), (4, 2), (5, 2), (6, 0)])
def test_by_chunk_changes_no_result(images, length):
    """Output and both gradients are the function's own, in a loop over the most images that divide the batch of 6."""
    x, bias, g = normal(6, 7, 7, 4), normal(4, seed=1), normal(6, 3, 3, 4, seed=2)

    def function(x, bias):
        x = layers.relu(x + bias)
        x = layers.local_response_norm(x, size=5, k=K, alpha=ALPHA, beta=0.75, divide_by_size=False, groups=2)
        return layers.max_pool(x, size=3, stride=2, groups=2)

    in_chunks = partial(layers.by_chunk, function, size=images * x[0].nbytes)
    for actual, expected in zip(
        with_gradients(in_chunks, g, x, bias), with_gradients(function, g, x, bias), strict=True
    ):
        close(actual, expected)
    loops = re.findall(r"scan\[.*?length=(\d+)", str(jax.make_jaxpr(in_chunks)(x, bias)), re.DOTALL)
    assert loops == [str(length)] * (length > 0)


def test_by_tower_applies_a_function_to_each_tower():
    x, y = normal(2, 3, 6), normal(6)
    out = layers.by_tower(lambda x, y: x[..., ::-1] * y, x, y, groups=2)
    np.testing.assert_array_equal(out, x[..., [2, 1, 0, 5, 4, 3]] * y)
    np.testing.assert_array_equal(layers.by_tower(np.sort, x, groups=1), np.sort(x))


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_relu_is_torchs(dtype):
    """And it hides no NaN."""
    x = np.float32([-np.inf, -1, -0.0, 0, 1, 2, np.inf, np.nan])
    g = np.float32([1, 2, 3, 4, 5, 6, 7, 8])
    theirs = torch.tensor(x).requires_grad_()
    torch.relu(theirs).backward(torch.tensor(g))
    out, gradient = with_gradients(layers.relu, g, jnp.asarray(x, dtype))
    assert out.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), torch.relu(theirs).detach())
    np.testing.assert_array_equal(gradient[:-1].astype(jnp.float32), theirs.grad[:-1])


# Fully connected.


@pytest.mark.as_shipped
@pytest.mark.parametrize("shape", [(4, 3, 2, 6), (4, 10)])
@pytest.mark.parametrize("groups", (1, 2))
def test_dense(groups, shape):
    """Each tower's outputs read only that tower's maps, flattened with the channel fastest."""
    x = normal(*shape)
    w = normal(int(np.prod(shape[1:])) // groups, 8)
    towers = zip(np.split(x, groups, axis=-1), np.split(w, groups, axis=1), strict=True)
    expected = []
    for maps, kernel in towers:
        total = np.zeros((4, kernel.shape[1]))
        for row, place in enumerate(np.ndindex(maps.shape[1:])):
            total += maps[(slice(None), *place)][:, None] * kernel[row]
        expected.append(total)
    g = normal(4, 8, seed=1)
    out, of_x, of_w = with_gradients(partial(layers.dense, groups=groups), g, x, w)
    close(out, np.concatenate(expected, axis=1))
    # Of a linear function: what changes along any direction is the gradient along it.
    along_x, along_w = normal(*x.shape, seed=2), normal(*w.shape, seed=3)
    close((of_x * along_x).sum(), (g * layers.dense(along_x, w, groups=groups)).sum())
    close((of_w * along_w).sum(), (g * layers.dense(x, along_w, groups=groups)).sum())


# Dropout.


def drop(x, rate=0.5, key=0, rows=None, towers=(0, 1)):
    rows = jnp.arange(x.shape[0]) if rows is None else jnp.asarray(rows)
    apply = jax.jit(layers.dropout, static_argnums=1)
    return np.asarray(apply(x, rate, jax.random.key(key), rows=rows, towers=jnp.asarray(towers)))


@pytest.mark.parametrize("rate", (0.5, 0.2))
def test_dropout_keeps_the_expectation(rate):
    """Each unit is 0 with probability `rate`, otherwise multiplied by 1 / (1 - rate); within 5 standard deviations."""
    out = drop(np.ones((64, 256), np.float32), rate)
    assert set(np.unique(out)) == {np.float32(0), np.float32(1 / (1 - rate))}
    slack = 5 * (rate * (1 - rate) / out.size) ** 0.5
    assert abs((out == 0).mean() - rate) < slack
    assert abs(out.mean() - 1) < slack / (1 - rate)


def test_dropout_mask_depends_on_row_tower_and_key_alone():
    """Part of the batch, or one tower, gets the same masks as in the whole, so that devices can share the work."""
    x = np.ones((8, 128), np.float32)
    whole = drop(x)
    np.testing.assert_array_equal(drop(x[4:], rows=range(4, 8)), whole[4:])
    np.testing.assert_array_equal(drop(x[:, 64:], towers=[1]), whole[:, 64:])
    np.testing.assert_array_equal(drop(x[2:5, :64], rows=range(2, 5), towers=[0]), whole[2:5, :64])


def test_dropout_masks_differ_by_row_tower_and_key():
    whole, other = drop(np.ones((8, 128), np.float32)), drop(np.ones((8, 128), np.float32), key=1)
    masks = np.concatenate([whole[:, :64], whole[:, 64:], other[:, :64], other[:, 64:]])
    assert len(np.unique(masks, axis=0)) == 32


@pytest.mark.parametrize("axes", (2, 4))
def test_dropout_of_maps(axes):
    """Each place of each map has its own chance, and towers split over devices draw the same as on one device."""
    x = np.ones((3, 4) if axes == 2 else (3, 5, 6, 4), np.float32)
    key, rows = jax.random.key(0), jnp.arange(3)
    both = layers.dropout(x, 0.5, key, rows=rows, towers=jnp.arange(2))
    apart = [layers.dropout(x[..., :2], 0.5, key, rows=rows, towers=jnp.array([t])) for t in (0, 1)]
    np.testing.assert_array_equal(both, np.concatenate(apart, axis=-1))
    assert set(np.unique(both)) == {0, 2}
    if axes == 4:
        assert (np.asarray(both).std(axis=(1, 2)) > 0).all() and (np.asarray(both).std(axis=3) > 0).any()


# Average pooling.


@pytest.mark.parametrize("sides", [(6, 6), (7, 13), (9, 6), (3, 2), (12, 25)], ids=str)
def test_average_pool_is_pytorchs(sides):
    x = normal(2, *sides, 3)
    close(layers.average_pool(x, 6), nhwc(F.adaptive_avg_pool2d(nchw(x), 6)))
