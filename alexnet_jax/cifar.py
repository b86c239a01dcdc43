"""Krizhevsky's small networks for CIFAR-10, which section 3.3 points at in a footnote: chains of layers.

A chain is the tuple `model.layers` of a config, in the order of computation:

    ("conv1", "conv", 32, 5, 0.0001)    32 kernels of 5 x 5, initial values N(0, 0.0001); stride 1, the map's sides stay
    ("local3", "local", 64, 3, 0.04)    the same, but with kernels and biases of their own at every place
    ("fc64", "dense", 64, 0.1)          64 units that read everything
    ("fc10", "dense", 0, 0.01)          the classifier, always last: as many units as there are classes
    ("pool1", "max_pool")               also average_pool, relu, tanh, lrn and spatial_norm

Biases begin at 0. Pools take their size and stride from model.pool_size and pool_stride, norms from model.lrn and
model.spatial_norm. The presets are configs/cifar10_*.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from alexnet_jax import layers
from alexnet_jax.model import ACTIVATIONS, Layer

# What an entry holds after its name and kind. Of kinds with weights the first is the number of units.
ENTRIES = {
    "conv": ("units", "size", "std"),
    "local": ("units", "size", "std"),
    "dense": ("units", "std"),
    "max_pool": (),
    "average_pool": (),
    "relu": (),
    "tanh": (),
    "lrn": (),
    "spatial_norm": (),
}


class Local(nn.Module):
    """The linear part of a locally connected layer: a convolution whose kernels are not shared between places.

    Parameters, float32: kernel (h, w, size x size x inputs, features), N(0, std), and bias (h, w, features), 0. The
    map's sides stay: `size` is odd, and zeros surround the map. It returns the linear part without the bias, and the
    bias. `data_axis` names the device axis of the batch inside shard_map.
    """

    features: int
    size: int
    std: float
    dtype: jnp.dtype
    data_axis: str | None = None

    @nn.compact
    def __call__(self, x):
        _, h, w, channels = x.shape
        shape = (h, w, self.size**2 * channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (h, w, self.features), jnp.float32).astype(self.dtype)
        if self.data_axis:
            kernel, bias = (lax.pcast(p, self.data_axis, to="varying") for p in (kernel, bias))
        return layers.local(x.astype(self.dtype), kernel, size=self.size), bias


class Chain(nn.Module):
    """The network that a config's `model.layers` lists.

    Call it on images as AlexNet. It returns (logits float32 (b, num_classes), activations by name): those of every
    layer, the last of which are the logits. There is one tower. `data_axis` and `chunk` are as in AlexNet.
    """

    config: ConfigDict
    tower_axis: str | None = None  # towers.split sets it: never more than one
    data_axis: str | None = None
    chunk: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        m = self.config
        x = images
        out: dict[str, jax.Array] = {}
        chain = [tuple(entry) for entry in m.layers]
        weighted = [i for i, (_, kind, *_) in enumerate(chain) if ENTRIES[kind]]
        for i, end in zip(weighted, [*weighted[1:], len(chain)], strict=True):
            dtype = jnp.dtype(m.dtype if end < len(chain) else jnp.float32)  # logits are float32 always, as AlexNet's
            y, bias = self.linear(*chain[i], dtype=dtype)(x)
            after = partial(self.after, chain[i:end])
            out |= after(y, bias)
            x = out[chain[end - 1][0]]
            if self.chunk and end > i + 1:  # once more for the next layer, as in AlexNet
                x = layers.by_chunk(lambda y, bias, f=after: [*f(y, bias).values()][-1], y, bias, size=self.chunk)
        return x, out

    def linear(self, name: str, kind: str, units: int, *rest: Any, dtype: jnp.dtype) -> nn.Module:
        """The linear part of a layer with weights."""
        *size, std = rest
        features = units or self.config.num_classes
        if kind == "local":
            return Local(features, size[0], std, dtype, self.data_axis, name=name)
        window = {"size": size[0], "padding": (size[0] // 2, (size[0] - 1) // 2)} if size else {}
        return Layer(features, std, 0.0, "image", 1, dtype, data_axis=self.data_axis, name=name, **window)

    def after(self, block: list[tuple], y: jax.Array, bias: jax.Array) -> dict[str, jax.Array]:
        """A layer with its bias, from its linear part, and the layers without weights that follow it, by name."""
        (name, *_), *others = block
        x = y + bias
        made = {name: x}
        for name, kind in others:
            x = made[name] = self.function(kind)(x)
        return made

    def function(self, kind: str) -> Callable[[jax.Array], jax.Array]:
        """A layer without weights."""
        m = self.config
        window = {"size": m.pool_size, "stride": m.pool_stride}
        if kind == "max_pool":
            return partial(layers.max_pool, **window, ceil=True)
        if kind == "average_pool":
            return partial(layers.average_pool_windows, **window)
        if kind == "lrn":
            rule = {name: m.lrn[name] for name in ("size", "k", "alpha", "beta", "divide_by_size")}
            return partial(layers.local_response_norm, **rule, groups=1)
        if kind == "spatial_norm":
            rule = {name: m.spatial_norm[name] for name in ("size", "k", "alpha", "beta")}
            return partial(layers.spatial_response_norm, **rule)
        return ACTIVATIONS[kind]
