"""The operations of AlexNet as plain functions on (batch, height, width, channel) arrays, with their fast gradients.

Each has a plain definition that the tests hold it to. Towers are consecutive, equal runs of channels: with two towers
the first half of the channels is tower one. `groups` counts the towers that live on this device.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple[int, int], groups: int) -> jax.Array:
    """Convolution in `groups` towers: kernel group i reads channel group i only (section 3.2).

    Args:
      x: (b, h, w, c). kernel: (k, k, c / groups, filters). padding: zeros before and after, on both axes.
    Returns: (b, h', w', filters), h' = (h + sum(padding) - k) // stride + 1.

    The groups are convolved one by one: XLA:CPU runs a grouped convolution at a fifth of the speed of plain ones.
    """
    if groups > 1:
        towers = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
        return jnp.concatenate([convolution(a, w, stride=stride, padding=padding, groups=1) for a, w in towers], axis=3)
    if stride > 1:
        return _convolution(*_space_to_depth(x, kernel, stride, padding), (0, 0), True)
    return _convolution(x, kernel, padding, False)


def _space_to_depth(x, kernel, stride, padding):
    """Turns a strided convolution into one of stride 1 over stride x stride blocks laid out as channels.

    Conv1 reads three channels at stride 4, which leaves vector units idle; as 48 channels at stride 1 it fills them.
    The kernel is zero-padded from 11 to 12, a multiple of the stride: the same sums, with zeros added.
    """
    b, h, w, c = x.shape
    k, _, _, filters = kernel.shape
    blocks = -(-k // stride)  # blocks that a kernel spans
    rows, columns = ((n + sum(padding) - k) // stride + blocks for n in (h, w))
    low = padding[0]
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        ((0, 0, 0), (low, rows * stride - h - low, 0), (low, columns * stride - w - low, 0), (0, 0, 0)),
    )
    x = x.reshape(b, rows, stride, columns, stride, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, rows, columns, stride * stride * c)
    grown = blocks * stride - k
    kernel = jnp.pad(kernel, ((0, grown), (0, grown), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, c, filters).transpose(0, 2, 1, 3, 4, 5)
    return x, kernel.reshape(blocks, blocks, stride * stride * c, filters)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, padding, windowed):
    """A convolution of stride 1, on CPU as matrix products over windows if `windowed`."""
    if not windowed:
        return _plain_convolution(padding, x, kernel)
    cpu, default = partial(_window_convolution, padding), partial(_plain_convolution, padding)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _convolution_forward(x, kernel, padding, windowed):
    return _convolution(x, kernel, padding, windowed), (x, kernel)


def _convolution_backward(padding, windowed, saved, g):
    x, kernel = saved
    _, of_input = jax.vjp(lambda x: _plain_convolution(padding, x, kernel), x)
    cpu, default = partial(_window_kernel_gradient, padding), partial(_plain_kernel_gradient, padding)
    return of_input(g)[0], lax.platform_dependent(x, kernel, g, cpu=cpu, default=default)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _plain_convolution(padding, x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), (padding,) * 2, dimension_numbers=LAYOUT)


def _plain_kernel_gradient(padding, x, kernel, g):
    return jax.vjp(lambda w: _plain_convolution(padding, x, w), kernel)[1](g)[0]


# On CPU a few images' windows, laid out as the rows of a matrix, fit the cache; those of the whole batch do not.


def _few(batch):
    return next(n for n in (4, 3, 2, 1) if batch % n == 0)


def _chunks(x):
    few = _few(x.shape[0])
    return x.reshape(x.shape[0] // few, few, *x.shape[1:])


def _windows(x, padding, size):
    """(b, h, w, c) -> (b, h', w', size * size * c): what the kernel sees at each place."""
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    taps = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    return jnp.concatenate(taps, axis=3)


def _window_convolution(padding, x, kernel):
    """Conv1 runs at two to three times the speed of XLA:CPU's own convolution this way; the later layers do not."""
    flat = kernel.reshape(-1, kernel.shape[3])
    out = lax.map(lambda images: _windows(images, padding, kernel.shape[0]) @ flat, _chunks(x))
    return out.reshape(x.shape[0], *out.shape[2:])


def _window_kernel_gradient(padding, x, kernel, g):
    """XLA:CPU would convolve with the whole map of gradients as a kernel, at half the speed, in conv1 at a fifth."""

    def add(total, chunk):
        x, g = chunk
        windows = _windows(x, padding, kernel.shape[0])
        return total + windows.reshape(-1, windows.shape[3]).T @ g.reshape(-1, g.shape[3]), None

    start = jnp.zeros((kernel[..., 0].size, kernel.shape[3]), jnp.float32)
    return lax.scan(add, start, (_chunks(x), _chunks(g)))[0].reshape(kernel.shape).astype(kernel.dtype)


def dense(x: jax.Array, kernel: jax.Array, *, groups: int) -> jax.Array:
    """Fully connected layer over images or vectors, in `groups` towers.

    Args:
      x: (b, c) or (b, h, w, c), flattened with the channel fastest. kernel: (inputs / groups, outputs).
    Returns: (b, outputs).
    """
    batch, channels = x.shape[0], x.shape[-1]
    if groups == 1:
        return x.reshape(batch, -1) @ kernel
    x = x.reshape(batch, -1, groups, channels // groups)
    kernel = kernel.reshape(kernel.shape[0], groups, -1)
    out = [x[:, :, i].reshape(batch, -1) @ kernel[:, i] for i in range(groups)]
    return jnp.concatenate(out, axis=1)


def max_pool(x: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Max pooling over size x size windows every stride (section 3.4); overlapping where stride < size.

    Args: x (b, h, w, c). Returns: (b, h', w', c), h' = (h - size) // stride + 1.

    A maximum over shifted views, rows first, then columns: on CPU its gradient takes a fifth of the time of
    reduce_window's. A gradient that reaches a tie is shared among the tied.
    """
    if min(x.shape[1:3]) < size:
        raise ValueError(f"a {x.shape[1]}x{x.shape[2]} map is too small for {size}x{size} pooling")
    for axis in (1, 2):
        out = (x.shape[axis] - size) // stride + 1
        taps = [lax.slice_in_dim(x, i, i + (out - 1) * stride + 1, stride, axis) for i in range(size)]
        x = taps[0]
        for tap in taps[1:]:
            x = jnp.maximum(x, tap)
    return x


def local_response_norm(
    x: jax.Array, *, size: int, k: float, alpha: float, beta: float, divide_by_size: bool, groups: int
) -> jax.Array:
    """Local response normalization (section 3.3): x / (k + a S)^beta.

    S sums the squares of the `size` maps around each map, clipped at the edges of its tower (of all maps if groups
    is 1); a is alpha, or alpha / size as in the 2012 code (layer.py:1183) and Caffe.

    Args: x (..., c). Returns: the same shape and dtype; computed in float32.
    """
    a = alpha / size if divide_by_size else alpha
    grouped = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups).astype(jnp.float32)
    return _lrn(grouped, size, k, a, beta).reshape(x.shape).astype(x.dtype)


def _channel_window_sum(x, before, after):
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return sum(padded[..., i : i + x.shape[-1]] for i in range(before + after + 1))


def _inverse_power(d, beta):
    if beta == 0.75:  # two square roots cost a fraction of a power
        root = lax.rsqrt(d)
        return root * jnp.sqrt(root)
    return d**-beta


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _lrn(x, size, k, a, beta):
    window = (size // 2, (size - 1) // 2)
    return x * _inverse_power(k + a * _channel_window_sum(x * x, *window), beta)


def _lrn_forward(x, size, k, a, beta):
    return _lrn(x, size, k, a, beta), x


def _lrn_backward(size, k, a, beta, x, g):
    """The denominators are computed again: cheaper than keeping them, and autodiff would sum five windows twice."""
    before, after = size // 2, (size - 1) // 2
    d = k + a * _channel_window_sum(x * x, before, after)
    s = _inverse_power(d, beta)
    return (g * s - 2 * a * beta * x * _channel_window_sum(g * x * s / d, after, before),)


_lrn.defvjp(_lrn_forward, _lrn_backward)


def spatial_response_norm(x: jax.Array, *, size: int, k: float, alpha: float, beta: float) -> jax.Array:
    """The 2012 code's norm within a map: x / (k + alpha / size^2 S)^beta, S over size x size neighbours of one map.

    Not in the paper; the code ran it after the cross-map norm of conv2 (layers-145.cfg:107).

    Args: x (b, h, w, c). Returns: the same shape and dtype; computed in float32.
    """
    y = x.astype(jnp.float32)
    s = y * y
    for axis in (1, 2):
        low, high = (size - 1) // 2, size // 2
        padded = jnp.pad(s, [(low, high) if a == axis else (0, 0) for a in range(4)])
        s = sum(lax.slice_in_dim(padded, i, i + x.shape[axis], 1, axis) for i in range(size))
    return (y * _inverse_power(k + alpha / size**2 * s, beta)).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array, *, rows: jax.Array, towers: jax.Array) -> jax.Array:
    """Zeroes each unit with probability `rate` (section 4.2) and scales the rest by 1 / (1 - rate).

    The paper multiplies by 0.5 at test time instead; the expectations agree.

    Args:
      x: (b, units of the towers here). rows: int (b,), each image's place in the global batch. towers: int (t,),
        which towers are here. A unit's mask depends on its image's row and its tower alone, so that a batch or towers
        split over devices draw the masks that one device would.
    """
    width = x.shape[1] // towers.shape[0]

    def mask(row, tower):
        own = jax.random.fold_in(jax.random.fold_in(key, tower), row)
        return jax.random.bernoulli(own, 1 - rate, (width,))

    keep = jax.vmap(lambda row: jax.vmap(lambda tower: mask(row, tower))(towers))(rows).reshape(x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
