"""The operations of AlexNet as plain functions on (batch, height, width, channel) arrays, with fast gradients.

The tests compare each with a plain definition. Towers are consecutive groups of channels of equal size: of two towers
the first has the first half of the channels. `groups` is the number of towers on this device.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def by_tower(function: Callable[..., jax.Array], *arrays: jax.Array, groups: int) -> jax.Array:
    """Applies a function to each tower's part of the arrays' last axes, and puts the results side by side.

    XLA drops a concatenation that the next operation splits again, so each tower's maps stay an array of their own from
    one exchange to the next. Otherwise every reader would slice them out, and a slice is slow to transpose, which the
    gradients of kernels require.
    """
    if groups == 1:
        return function(*arrays)
    towers = zip(*(jnp.split(a, groups, axis=-1) for a in arrays), strict=True)
    return jnp.concatenate([function(*parts) for parts in towers], axis=-1)


def by_chunk(function: Callable, x: jax.Array, bias: jax.Array, *, size: int) -> jax.Array:
    """Applies a function to a few images at a time, so that what it computes on the way stays in the processor's cache.

    Its gradient computes that again instead of keeping it.

    Args:
      function: (images, bias) -> an array whose first axis counts the images.
      x: (b, ...). bias: what every image is computed with.
      size: bytes of x at a time, but at least one image.
    Returns: function(x, bias).
    """
    batch = x.shape[0]
    images = max(size * batch // x.nbytes, 1)
    if images >= batch:
        return function(x, bias)
    return _by_chunk(function, next(n for n in range(images, 0, -1) if batch % n == 0), x, bias)


def _chunks(x, images):
    return x.reshape(-1, images, *x.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_chunk(function, images, x, bias):
    made = lax.map(lambda chunk: function(chunk, bias), _chunks(x, images))
    return made.reshape(-1, *made.shape[2:])


def _by_chunk_forward(function, images, x, bias):
    return _by_chunk(function, images, x, bias), (x, bias)


def _by_chunk_backward(function, images, saved, g):
    """Writes the gradient of each chunk over the chunk, which is not read again."""
    x, bias = saved

    def step(x, of_chunk):
        start, g = of_chunk
        chunk = lax.dynamic_slice_in_dim(x, start, images)
        gradient, gradient_of_bias = jax.vjp(function, chunk, bias)[1](g)
        return lax.dynamic_update_slice_in_dim(x, gradient, start, 0), gradient_of_bias

    gradient, parts = lax.scan(step, x, (jnp.arange(0, x.shape[0], images), _chunks(g, images)))
    return gradient, parts.sum(0)


_by_chunk.defvjp(_by_chunk_forward, _by_chunk_backward)


def convolution(x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple[int, int], groups: int) -> jax.Array:
    """Convolution in `groups` towers: kernel group i reads only channel group i (section 3.2).

    Args:
      x: (b, h, w, c). kernel: (k, k, c / groups, filters). padding: zeros before and after, on both axes.
    Returns: (b, h', w', filters), h' = (h + sum(padding) - k) // stride + 1.

    The groups are convolved one by one: on CPU the gradients of a grouped convolution take several times as long.
    """

    def tower(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, (padding,) * 2, dimension_numbers=LAYOUT)

    return by_tower(tower, x, kernel, groups=groups)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0) (section 3.1); its gradient at 0 is 0, as in PyTorch.

    By a selection, because XLA computes a maximum again for each of its readers, and slowly where the reader transposes
    it. A selection has two operands, so XLA computes it once.
    """
    return jnp.where(x <= 0, 0, x)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    return y, jnp.where(y > 0, tangents[0], 0)


def dense(x: jax.Array, kernel: jax.Array, *, groups: int) -> jax.Array:
    """Fully connected layer over images or vectors, in `groups` towers.

    Args:
      x: (b, c) or (b, h, w, c), flattened with the channel fastest. kernel: (inputs / groups, outputs).
    Returns: (b, outputs).
    """

    def tower(x, kernel):
        return _product(x.reshape(x.shape[0], -1), kernel)

    return by_tower(tower, x, kernel, groups=groups)


@jax.custom_vjp
def _product(x, kernel):
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, g):
    """The gradient of x as the transpose of kernel @ g.T.

    On CPU it takes half the time of g @ kernel.T. The barriers keep XLA from turning the one into the other.
    """
    x, kernel = saved
    return lax.optimization_barrier(kernel @ lax.optimization_barrier(g.T)).T, x.T @ g


_product.defvjp(_product_forward, _product_backward)


def local(x: jax.Array, kernel: jax.Array, *, size: int) -> jax.Array:
    """A convolution with a kernel of its own at every place, which cuda-convnet calls a local layer.

    Args:
      x: (b, h, w, c), which zeros surround. kernel: (h, w, size x size x c, features); its rows are ordered by row and
        column of the window, then by map. size: odd.
    Returns: (b, h, w, features).
    """
    b, h, w, c = x.shape
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    shifted = [padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    seen = jnp.stack(shifted, axis=3).reshape(b, h * w, size**2 * c)
    made = jnp.einsum("bpk,pkf->bpf", seen, kernel.reshape(h * w, size**2 * c, -1))
    return made.reshape(b, h, w, -1)


def max_pool(x: jax.Array, *, size: int, stride: int, groups: int = 1, ceil: bool = False) -> jax.Array:
    """Max pooling over size x size windows every stride (section 3.4); overlapping where stride < size.

    Args: x (b, h, w, c). Returns: (b, h', w', c), h' = (h - size) // stride + 1, rounded up with `ceil`: the last
    window may then hang over the edge, as in cuda-convnet and Caffe. `groups` changes the speed alone.

    If places tie for the maximum, the first one, row by row, gets the whole gradient, as in PyTorch
    and cuDNN; the 2012 code gave the whole gradient to each of them (kLocalMaxUndo). Where a window is all 0 the ReLU
    before it lets no gradient through, wherever it goes. Of the positive maxima of `source` and `paper`, at their
    initial values on 64 photos of Imagenette, up to 5 in a million tie in float32, 3 in 100 in bfloat16, and 19 in
    100 in the paper's pool5.
    """
    if min(x.shape[1:3]) < size:
        raise ValueError(f"a {x.shape[1]}x{x.shape[2]} map is too small for {size}x{size} pooling")
    if ceil and any(over := [-(n - size) % stride for n in x.shape[1:3]]):
        x = jnp.pad(x, ((0, 0), (0, over[0]), (0, over[1]), (0, 0)), constant_values=-np.inf)
    return by_tower(lambda x: _max_pool(x, size, stride), x, groups=groups)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x, size, stride):
    return _highest(_highest(x, 2, size, stride), 1, size, stride)


def _highest(x, axis, size, stride):
    """The maxima along one axis.

    By reduce_window, which XLA computes once: maxima over shifted views it would compute again for each reader.
    """
    window, strides = [1] * 4, [1] * 4
    window[axis], strides[axis] = size, stride
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, strides, "VALID")


def _max_pool_forward(x, size, stride):
    columns = _highest(x, 2, size, stride)
    windows = _highest(columns, 1, size, stride)
    return windows, (x, columns, windows)


def _max_pool_backward(size, stride, saved, g):
    """In each row of a window the first column of its maximum, then the first such row.

    On CPU the gradient of reduce_window takes five times as long.
    """
    x, columns, windows = saved
    g = _to_first_maximum(columns, windows, g, 1, size, stride)
    return (_to_first_maximum(x, columns, g, 2, size, stride),)


def _to_first_maximum(x, highest, g, axis, size, stride):
    """Gives the gradient of each window along an axis to the first place that has its maximum.

    Place y is phase y % stride of step y // stride. Each phase sums what its places get from the windows over them, and
    the phases are interleaved at the end.
    """
    windows = g.shape[axis]
    steps = windows + (size - 1) // stride
    phases = [jnp.zeros((), g.dtype)] * stride
    free = jnp.ones(g.shape, bool)
    for j in range(size):  # place j of every window
        place = lax.slice_in_dim(x, j, j + (windows - 1) * stride + 1, stride, axis)
        first = free & (place >= highest) if j < size - 1 else free
        free &= ~first
        phases[j % stride] += _padded(jnp.where(first, g, 0), axis, j // stride, steps)
    shape = [*g.shape[:axis], steps, *g.shape[axis + 1 :]]
    places = jnp.stack([jnp.broadcast_to(phase, shape) for phase in phases], axis + 1)
    shape[axis] *= stride
    return _padded(places.reshape(shape), axis, 0, x.shape[axis])


def _padded(x, axis, before, length):
    """With zeros before and after along an axis, up to a length; cut off beyond it."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (before, length - before - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: jax.Array, side: int) -> jax.Array:
    """Averages maps of any height and width to side x side, or stretches smaller ones: PyTorch's AdaptiveAvgPool2d.

    Output i averages the places floor(i n / side) up to ceil((i + 1) n / side) of n.

    Args: x (b, h, w, c). Returns: (b, side, side, c); x itself where h = w = side.
    """
    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (averages(n, side).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("iy,jx,byxc->bijc", rows, columns, x)


def average_pool_windows(x: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Average pooling as in cuda-convnet: the last window may hang over the edge, and counts only the places inside.

    (conv_util.cuh:165.) Args: x (b, h, w, c). Returns: (b, h', w', c), h' = (h - size) / stride + 1, rounded up.
    """
    if min(x.shape[1:3]) < size:
        raise ValueError(f"a {x.shape[1]}x{x.shape[2]} map is too small for {size}x{size} pooling")
    rows, columns = (window_averages(n, size, stride).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("iy,jx,byxc->bijc", rows, columns, x)


def window_averages(n: int, size: int, stride: int) -> np.ndarray:
    """The matrix (windows, n) that averages n places over each window: `size` of them every `stride`, cut off at n."""
    start = np.arange(-(-(n - size) // stride) + 1) * stride
    return _averages(n, start, np.minimum(start + size, n))


def averages(n: int, side: int) -> np.ndarray:
    """Returns average_pool along one axis of n places as a matrix, float32 (side, n)."""
    edges = np.arange(side + 1) * n
    return _averages(n, edges[:-1] // side, -(-edges[1:] // side))


def _averages(n: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """float32 (windows, n): averages over the places from `start` up to `stop`."""
    places = np.arange(n)
    inside = (start[:, None] <= places) & (places < stop[:, None])
    return (inside / (stop - start)[:, None]).astype(np.float32)


def local_response_norm(
    x: jax.Array, *, size: int, k: float, alpha: float, beta: float, divide_by_size: bool, groups: int
) -> jax.Array:
    """Local response normalization (section 3.3): x / (k + a S)^beta.

    S is the sum of squares over the `size` maps around each map, cut off at the edges of its tower (of all maps if
    groups is 1). a is alpha, or alpha / size as in the 2012 code (layer.py:1183) and Caffe.

    Args: x (..., c). Returns: the same shape and dtype; computed in float32.
    """
    a = alpha / size if divide_by_size else alpha
    window = (size // 2, (size - 1) // 2)

    def tower(x):
        return _response_norm(x.astype(jnp.float32), (x.ndim - 1,), window, k, a, beta).astype(x.dtype)

    return by_tower(tower, x, groups=groups)


def spatial_response_norm(x: jax.Array, *, size: int, k: float, alpha: float, beta: float) -> jax.Array:
    """The 2012 code's norm within a map: x / (k + alpha / size^2 S)^beta, S over size x size neighbours in one map.

    It is not in the paper. The code ran it after the cross-map norm of conv2 (layers-145.cfg:107).

    Args: x (b, h, w, c). Returns: the same shape and dtype; computed in float32.
    """
    window = ((size - 1) // 2, size // 2)
    return _response_norm(x.astype(jnp.float32), (1, 2), window, k, alpha / size**2, beta).astype(x.dtype)


def _window_sum(x, axes, before, after):
    """By shifted views, which XLA computes together with x where x is cheap."""
    for axis in axes:
        edges, places = [(0, 0)] * x.ndim, x.shape[axis]
        edges[axis] = (before, after)
        padded = jnp.pad(x, edges)
        x = sum(lax.slice_in_dim(padded, i, i + places, axis=axis) for i in range(before + after + 1))
    return x


def _window_sum_once(x, axes, before, after):
    """By reduce_window, for which XLA computes x first: faster where x takes long to compute."""
    for axis in axes:
        size, padding = [1] * x.ndim, [(0, 0)] * x.ndim
        size[axis], padding[axis] = before + after + 1, (before, after)
        x = lax.reduce_window(x, np.array(0, x.dtype), lax.add, size, [1] * x.ndim, padding)
    return x


def _inverse_powers(d, beta):
    """d^-beta and d^-(beta + 1)."""
    if beta == 0.75:  # two roots take a fraction of the time of a power
        root = lax.rsqrt(jnp.sqrt(d))
        power = root * root * root
        return power, power * power * root
    power = d**-beta
    return power, power / d


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _response_norm(x, axes, window, k, a, beta):
    """x / (k + a S)^beta, where S sums squares over a window, (before, after) each place, along each of the axes."""
    return x * _inverse_powers(k + a * _window_sum(x * x, axes, *window), beta)[0]


def _response_norm_forward(x, *rule):
    return _response_norm(x, *rule), x


def _response_norm_backward(axes, window, k, a, beta, x, g):
    """Computes the denominators again, which is cheaper than keeping them; autodiff would sum every window twice."""
    before, after = window
    power, next_power = _inverse_powers(k + a * _window_sum(x * x, axes, before, after), beta)
    shares = _window_sum_once(g * x * next_power, axes, after, before)
    return (g * power - 2 * a * beta * x * shares,)


_response_norm.defvjp(_response_norm_forward, _response_norm_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array, *, rows: jax.Array, towers: jax.Array) -> jax.Array:
    """Zeroes each unit with probability `rate` (section 4.2) and scales the rest by 1 / (1 - rate).

    The paper multiplies by 0.5 at test time instead; the expectations agree.

    Args:
      x: (b, units of the towers on this device), or maps (b, h, w, units).
      rate: from 0 to below 1.
      key: of this layer and step.
      rows: int (b,), each image's place in the global batch.
      towers: int (t,), the towers on this device.
    Returns: the same shape and dtype as x.

    A unit's mask depends only on its image's row and its tower, so that a batch or towers that are split over devices
    get the same masks as on one device.
    """
    width = x.shape[-1] // towers.shape[0]

    def mask(row, tower):
        own = jax.random.fold_in(jax.random.fold_in(key, tower), row)
        return jax.random.bernoulli(own, 1 - rate, (*x.shape[1:-1], width))

    keep = jax.vmap(lambda row: jax.vmap(lambda tower: mask(row, tower), out_axes=-2)(towers))(rows).reshape(x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
