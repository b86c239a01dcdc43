"""AlexNet as the paper draws it (section 3.5, figure 2): five convolutions, three fully connected layers, in towers."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, layers

CONV_SIZES = (11, 5, 3, 3, 3)  # section 3.5
POOLED = ("conv1", "conv2", "conv5")  # section 3.5
EXCHANGES = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")  # layers that may read every tower
ACTIVATIONS = {"relu": nn.relu, "tanh": jnp.tanh}  # section 3.1 compares the two


class Layer(nn.Module):
    """The linear part of a layer over the towers on this device: a convolution, or, where `size` is None, a dense one.

    Parameters, float32: kernel (size, size, inputs, features) or (inputs, features), and bias (features,).
    `reads` says what comes in: "image", whole on every device; "own", each tower its own maps; "all", every tower's
    maps, for which devices that share the towers exchange them. Inside shard_map `axis` names the device axis of the
    towers and the parameters are this device's share of `features`, or all of them where they are `replicated`.
    """

    features: int
    std: float
    bias: float
    reads: str
    towers: int
    dtype: jnp.dtype
    size: int | None = None
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    axis: str | None = None
    replicated: bool = False

    @nn.compact
    def __call__(self, x):
        devices = lax.axis_size(self.axis) if self.axis else 1
        if self.reads == "all" and devices > 1:
            alike = "invarying" if self.replicated else "varying"  # what each device does with the whole
            x = lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True, to=alike)
        groups = self.towers // devices if self.reads == "own" else 1
        features = self.features if self.replicated else self.features // devices
        if self.size is None:
            shape = (x.size // x.shape[0] // groups, features)
            apply = layers.dense
        else:
            shape = (self.size, self.size, x.shape[-1] // groups, features)
            apply = partial(layers.convolution, stride=self.stride, padding=self.padding)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.constant(self.bias), (features,), jnp.float32)
        return apply(x, kernel.astype(self.dtype), groups=groups) + bias.astype(self.dtype)


class AlexNet(nn.Module):
    """The network that a config's `model` section describes; configs/paper.py says what each field is.

    Call it on images float32 (b, side, side, 3), mean removed, in grey levels of 0..255: the norms and the initial
    values assume that scale. It returns (logits float32 (b, num_classes), activations by name): conv1 .. conv5 after
    their nonlinearity, norm1, norm2, pool1, pool2, pool5, fc6 and fc7 before dropout, fc8. Training needs an rng
    "dropout".

    Inside shard_map `tower_axis` and `data_axis` name the device axes of the towers and of the batch. Where they are
    None one device computes the same function from the same parameters.
    """

    config: ConfigDict
    tower_axis: str | None = None
    data_axis: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        m, axis = self.config, self.tower_axis
        activate = ACTIVATIONS[m.activation]
        devices = lax.axis_size(axis) if axis else 1
        here = m.towers // devices  # towers on this device
        first = lax.axis_index(axis) * here if axis else 0
        out = {}

        def layer(name, features, **kwargs):
            reads = "all" if name in m.exchange else "own"
            kwargs = {"reads": reads, "axis": axis} | kwargs
            return Layer(
                features,
                m.init_std[name],
                m.init_bias[name],
                towers=m.towers,
                dtype=jnp.dtype(m.dtype),
                name=name,
                **kwargs,
            )

        def norm(x):
            rule = m.lrn
            plain = partial(
                layers.local_response_norm,
                size=rule.size, k=rule.k, alpha=rule.alpha, beta=rule.beta, divide_by_size=rule.divide_by_size,
            )  # fmt: skip
            if rule.per_tower:
                return plain(x, groups=here)
            if devices == 1:
                return plain(x, groups=1)
            own = x.shape[-1]
            x = lax.all_gather(x, axis, axis=3, tiled=True)
            return lax.dynamic_slice_in_dim(plain(x, groups=1), lax.axis_index(axis) * own, own, axis=3)

        def conv(i, x):
            """Convolution i with its nonlinearity, norm and pool, in the config's order."""
            name = f"conv{i}"
            reads_image = {"reads": "image", "stride": 4, "padding": tuple(m.conv1_padding)} if i == 1 else {}
            size = CONV_SIZES[i - 1]
            geometry = {"size": size, "padding": (size // 2, size // 2)} | reads_image
            x = layer(name, m.conv_widths[i - 1], **geometry)(x)
            normed = name in m.lrn.layers
            if early := normed and name in m.lrn.before_activation:
                x = out[f"norm{i}"] = norm(x)
            x = out[name] = activate(x)
            if normed and not early and not m.lrn.after_pool:
                x = out[f"norm{i}"] = norm(x)
            if name in m.spatial_norm.layers:
                rule = m.spatial_norm
                x = out[f"spatial_norm{i}"] = layers.spatial_response_norm(
                    x, size=rule.size, k=rule.k, alpha=rule.alpha, beta=rule.beta
                )
            if name in POOLED:
                x = out[f"pool{i}"] = layers.max_pool(x, size=m.pool_size, stride=m.pool_stride)
            if normed and not early and m.lrn.after_pool:
                x = out[f"norm{i}"] = norm(x)
            return x

        def hidden(i, x):
            """Fully connected layer i, with dropout on its outputs."""
            name = f"fc{i}"
            x = out[name] = activate(layer(name, m.fc_widths[i - 6])(x))
            if not train or m.dropout == 0:
                return x
            start = lax.axis_index(self.data_axis) * x.shape[0] if self.data_axis else 0
            return layers.dropout(
                x,
                m.dropout,
                self.make_rng("dropout"),
                rows=start + jnp.arange(x.shape[0]),
                towers=first + jnp.arange(here),
            )

        x = images.astype(m.dtype)
        x = conv(1, x)
        x = conv(2, x)
        x = conv(3, x) if "conv3" not in m.removed else x
        x = conv(4, x) if "conv4" not in m.removed else x
        x = conv(5, x)
        x = hidden(6, x)
        x = hidden(7, x)
        x = layer("fc8", m.num_classes, reads="all", replicated=True)(x)
        out["fc8"] = logits = x.astype(jnp.float32)
        return logits, out


def shapes(config: ConfigDict, crop: int) -> dict:
    """The parameters' shapes and dtypes, {layer: {"kernel", "bias"}}, without computing anything."""
    model = AlexNet(FrozenConfigDict(config))
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, crop, crop, 3)))["params"]


def parameter_count(params) -> int:
    """Weights and biases of a parameter tree, or of its shapes; 60,965,224 for the paper's network."""
    return sum(p.size for p in jax.tree.leaves(params))


def check(config: ConfigDict, crop: int):
    """Raises UserError, naming the field, if a `model` section makes no network on crop x crop images."""
    m = config

    def require(holds, field, must):
        if not holds:
            raise UserError(f"--config.model.{field} is {config[field]} {must}")

    require(m.activation in ACTIVATIONS, "activation", f"and must be one of {', '.join(ACTIVATIONS)}")
    require(m.dtype in ("float32", "bfloat16"), "dtype", "and must be float32 or bfloat16")
    require(m.towers >= 1, "towers", "and must be 1 or more")
    require(m.num_classes >= 0, "num_classes", "and must be 1 or more, or 0 for as many as the data has")
    require(0 <= m.dropout < 1, "dropout", "and must be at least 0 and less than 1")
    require(len(m.conv_widths) == 5, "conv_widths", "and must name five widths")
    require(len(m.fc_widths) == 2, "fc_widths", "and must name two widths")
    for field in ("conv_widths", "fc_widths"):
        require(
            all(w > 0 and w % m.towers == 0 for w in config[field]), field, f"and must divide into {m.towers} towers"
        )
    require(set(m.removed) <= {"conv3", "conv4"}, "removed", "and can hold conv3 and conv4 alone")
    unknown = set(m.exchange) - set(EXCHANGES)
    require(not unknown and "fc8" in m.exchange, "exchange", f"and must hold fc8 and be out of {', '.join(EXCHANGES)}")
    for section, field in (("lrn", "layers"), ("lrn", "before_activation"), ("spatial_norm", "layers")):
        if unknown := set(config[section][field]) - {f"conv{i}" for i in range(1, 6)}:
            raise UserError(f"--config.model.{section}.{field} names {sorted(unknown)}; it takes conv1 to conv5")
    try:
        shapes(config, crop)
    except ValueError as e:
        raise UserError(f"the network does not fit images of {crop} pixels ({e}): raise --config.data.crop") from e
