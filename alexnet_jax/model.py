"""AlexNet as the paper draws it (section 3.5, figure 2): five convolutions, three fully connected layers, in towers.

The widths, kernel sizes, strides and pools are in the config, see alexnet_jax/config.py and configs/paper.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from alexnet_jax import layers

EXCHANGES = ("conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8")  # layers that may read every tower
FULLY_CONNECTED = ("fc6", "fc7", "fc8")
# Section 3.1 compares the two.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": layers.relu, "tanh": jnp.tanh}


class Layer(nn.Module):
    """The linear part of a layer, for the towers on this device: a convolution, or a dense layer if `size` is None.

    Parameters, float32: kernel (size, size, inputs, features) or (inputs, features), and bias (features,). Initial
    values: N(0, std) and `bias`, or, if std is None, uniform within 1 / sqrt(inputs of a kernel) for both.
    A dense layer with a `window` slides over maps: its kernel becomes that of a window x window convolution.
    `reads` says what the layer reads: "image", which every device has; "own", each tower its own maps; or "all", the
    maps of all towers, which the devices exchange if the towers are on several. Inside shard_map, `axis` and
    `data_axis` name the device axes of the towers and of the batch, and the parameters are this device's share of
    `features`, or all of them if `replicated`.
    It returns the linear part without the bias, and the bias.
    """

    features: int
    std: float | None
    bias: float
    reads: str
    towers: int
    dtype: jnp.dtype
    size: int | None = None
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    window: int = 0
    axis: str | None = None
    data_axis: str | None = None
    replicated: bool = False

    @nn.compact
    def __call__(self, x):
        devices = lax.axis_size(self.axis) if self.axis else 1
        if self.reads == "all" and devices > 1:
            alike = "invarying" if self.replicated else "varying"  # whether all devices then compute the same from it
            x = lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True, to=alike)
        x = x.astype(self.dtype)  # after the exchange, which sends the dtype of the layer before
        groups = self.towers // devices if self.reads == "own" else 1
        features = self.features if self.replicated else self.features // devices
        if self.size is None:
            seen = (self.window, self.window, x.shape[-1]) if self.window else x.shape[1:]
            shape: tuple[int, ...] = (math.prod(seen) // groups, features)
        else:
            shape = (self.size, self.size, x.shape[-1] // groups, features)
        if self.std is None:
            bound = math.prod(shape[:-1]) ** -0.5
            kernel_init = bias_init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
        else:
            kernel_init, bias_init = nn.initializers.normal(self.std), nn.initializers.constant(self.bias)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", bias_init, (features,), jnp.float32).astype(self.dtype)
        # With copies of the network, the backward pass sums their gradients here: the transpose of pcast is psum. It is
        # written out because gradients of our own, as those of layers.dense, require that all they take varies alike.
        if self.data_axis:
            kernel, bias = (lax.pcast(p, self.data_axis, to="varying") for p in (kernel, bias))
        if self.size is None and not self.window:
            return layers.dense(x, kernel, groups=groups), bias
        if self.window:
            kernel = kernel.reshape(self.window, self.window, -1, features)
        return layers.convolution(x, kernel, stride=self.stride, padding=self.padding, groups=groups), bias


class AlexNet(nn.Module):
    """The network that a config's `model` section describes; alexnet_jax/config.py explains each field.

    Call it on images float32 (b, side, side, 3) in grey levels of 0..255, with the mean subtracted: the norms and the
    initial values assume that scale. It returns (logits float32 (b, num_classes), activations by name): conv1 .. conv5
    after their nonlinearity, and, of those that the config has, norm1, spatial_norm1, pool1 and so on, conv6 and
    average_pool5; fc6 and fc7 before dropout, and fc8, the logits. All have config.dtype except fc8, which is computed
    in float32. Training requires an rng "dropout".

    If `dense` is not 0, it is the side of the maps that fc6 was made for (fc6_side). Images may then be larger: the
    fully connected layers slide over them, and logits, fc6, fc7 and fc8 are maps (b, h, w, units), with one position
    for each crop that the network would see. With the paper's strides and pools the crops are 32 pixels apart.

    Inside shard_map, `tower_axis` and `data_axis` name the device axes of the towers and of the batch. If they are
    None, one device computes the same function from the same parameters. If `chunk` is not 0, norm and pool are
    computed for that many bytes of maps at a time (layers.by_chunk).
    """

    config: ConfigDict
    dense: int = 0
    tower_axis: str | None = None
    data_axis: str | None = None
    chunk: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        m = self.config
        out: dict[str, jax.Array] = {}
        x = images.astype(m.dtype)
        for i in range(1, len(m.conv_widths) + 1):
            if f"conv{i}" not in m.removed:
                x = self.convolution(i, x, out)
        if m.average_pool and not self.dense:
            x = out["average_pool5"] = layers.average_pool(x, m.average_pool)
        x = out["fc6"] = self.activate(self.connected("fc6", m.fc_widths[0], x, train))
        x = out["fc7"] = self.activate(self.connected("fc7", m.fc_widths[1], x, train))
        # Always float32: in bfloat16, with its 8 bits of precision, close classes would tie, which counts as an error.
        whole = {"reads": "all", "replicated": True, "dtype": jnp.dtype(jnp.float32)}
        out["fc8"] = self.connected("fc8", m.num_classes, x, train, **whole)
        return out["fc8"], out

    @nn.nowrap
    def convolution(self, i: int, x: jax.Array, out: dict[str, jax.Array]) -> jax.Array:
        """Convolution i with all that follows it, whose maps go into `out` by name. Returns the last of them."""
        m, name = self.config, f"conv{i}"
        size, stride = m.conv_sizes[i - 1], m.conv_strides[i - 1]
        geometry = {"size": size, "stride": stride, "padding": (size // 2, size // 2)}
        if i == 1:
            geometry |= {"reads": "image", "padding": tuple(m.conv1_padding)}
        y, bias = self.layer(name, m.conv_widths[i - 1], **geometry)(x)
        x, made = self.after(i, y, bias)
        out.update(made)
        exchanges = name in m.lrn.layers and not m.lrn.per_tower and self.devices > 1
        if not self.chunk or exchanges or name not in (*m.lrn.layers, *m.pooled):
            return x
        # Once more for the next layer; XLA computes what is in `out` only where it is asked for.
        return layers.by_chunk(lambda y, bias: self.after(i, y, bias)[0], y, bias, size=self.chunk)

    @nn.nowrap
    def after(self, i: int, y: jax.Array, bias: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What follows convolution i, in the config's order: its bias, nonlinearity, norm and pool, also by name."""
        m, name = self.config, f"conv{i}"
        made: dict[str, jax.Array] = {}
        x = layers.by_tower(jnp.add, y, bias, groups=self.here)
        normed = name in m.lrn.layers
        if early := normed and name in m.lrn.before_activation:
            x = made[f"norm{i}"] = self.norm(i, x)
        x = made[name] = self.activate(x)
        if normed and not early and name not in m.lrn.after_pool:
            x = made[f"norm{i}"] = self.norm(i, x)
        if name in m.spatial_norm.layers:
            rule = m.spatial_norm
            x = made[f"spatial_norm{i}"] = layers.spatial_response_norm(
                x, size=rule.size, k=rule.k, alpha=rule.alpha, beta=rule.beta
            )
        if name in m.pooled:
            x = made[f"pool{i}"] = layers.max_pool(x, size=m.pool_size, stride=m.pool_stride, groups=self.here)
        if normed and not early and name in m.lrn.after_pool:
            x = made[f"norm{i}"] = self.norm(i, x)
        return x, made

    @nn.nowrap
    def norm(self, i: int, x: jax.Array) -> jax.Array:
        """Local response normalization of conv i (section 3.3), of each tower by itself or across them."""
        rule = self.config.lrn
        plain = partial(
            layers.local_response_norm,
            size=rule.size, k=rule.k, alpha=rule.alpha, beta=rule.beta, divide_by_size=rule.divide_by_size,
        )  # fmt: skip
        if rule.per_tower:
            return plain(x, groups=self.here)
        if self.devices == 1:
            return plain(x, groups=1)
        own = x.shape[-1]
        with jax.named_scope(f"norm{i}"):  # for the summary of what is exchanged
            x = lax.all_gather(x, self.tower_axis, axis=3, tiled=True)
        return lax.dynamic_slice_in_dim(plain(x, groups=1), lax.axis_index(self.tower_axis) * own, own, axis=3)

    @nn.nowrap
    def connected(self, name: str, features: int, x: jax.Array, train: bool, **kwargs: Any) -> jax.Array:
        """A fully connected layer without its nonlinearity, in training with dropout on its inputs."""
        m = self.config
        if train and m.dropout and name in m.dropout_before:
            start = lax.axis_index(self.data_axis) * x.shape[0] if self.data_axis else 0
            first = lax.axis_index(self.tower_axis) * self.here if self.tower_axis else 0
            rows, towers = start + jnp.arange(x.shape[0]), first + jnp.arange(self.here)
            x = layers.dropout(x, m.dropout, self.make_rng("dropout"), rows=rows, towers=towers)
        window = self.dense if name == "fc6" or not self.dense else 1
        y, bias = self.layer(name, features, window=window, **kwargs)(x)
        return y + bias

    @nn.nowrap
    def layer(self, name: str, features: int, **kwargs: Any) -> Layer:
        """The linear part of a layer, as the config says; `kwargs` has the rest and what differs."""
        m = self.config
        reads = "all" if name in m.exchange else "own"
        kwargs = {
            "reads": reads,
            "axis": self.tower_axis,
            "data_axis": self.data_axis,
            "dtype": jnp.dtype(m.dtype),
        } | kwargs
        std = m.init_std[name] if m.init == "normal" else None
        return Layer(features, std, m.init_bias[name], towers=m.towers, name=name, **kwargs)

    @nn.nowrap
    def activate(self, x: jax.Array) -> jax.Array:
        return layers.by_tower(ACTIVATIONS[self.config.activation], x, groups=self.here)

    @property
    def devices(self) -> int:
        """How many devices share the towers."""
        return lax.axis_size(self.tower_axis) if self.tower_axis else 1

    @property
    def here(self) -> int:
        """How many towers are on this device."""
        return self.config.towers // self.devices


def fc6_side(config: ConfigDict, params) -> int:
    """The side of the maps that fc6 was made for, from a parameter tree or its shapes: 6 for the paper's network."""
    groups = 1 if "fc6" in config.exchange else config.towers
    return math.isqrt(params["fc6"]["kernel"].shape[0] * groups // config.conv_widths[-1])
