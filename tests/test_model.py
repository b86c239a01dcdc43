"""The network against the paper's numbers, against a PyTorch network written from the paper, and tower from tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict

from alexnet_jax.model import AlexNet
from alexnet_jax.network import shapes
from alexnet_jax.towers import compiler_options, make_mesh, split
from configs import paper

# Shapes and counts at full width.


def full(side=224, **changes):
    """Shapes of the parameters and the activations, without computing any."""
    m = paper.get_config().model
    m.update(changes)
    params = shapes(m, side)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    logits, out = jax.eval_shape(lambda p, x: AlexNet(m).apply({"params": p}, x), params, images)
    return params, logits, out


PAPER = (96, 256, 384, 384, 256)


def test_shapes_at_full_width():
    params, logits, out = full()
    maps = {"conv1": 55, "norm1": 55, "pool1": 27, "conv2": 27, "norm2": 27, "pool2": 13}
    maps |= {"conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}
    widths = dict(zip("12345", PAPER, strict=True))
    expected = {name: (1, side, side, widths[name[-1]]) for name, side in maps.items()}
    expected |= {"fc6": (1, 4096), "fc7": (1, 4096), "fc8": (1, 1000)}
    assert {name: a.shape for name, a in out.items()} == expected
    assert logits.shape == (1, 1000)
    kernels = {"conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256), "conv3": (3, 3, 256, 384)}
    kernels |= {"conv4": (3, 3, 192, 384), "conv5": (3, 3, 192, 256)}
    kernels |= {"fc6": (9216, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}  # section 3.5, figure 2
    assert {name: p["kernel"].shape for name, p in params.items()} == kernels


# The same function as an independent network.


def twin(params, images, m):
    """AlexNet in PyTorch, written from the paper: from parameters and images, as tensors, to activations by name."""
    out = {}
    act = {"relu": F.relu, "tanh": torch.tanh}[m.activation]

    def convolution(name, x, **geometry):
        kernel = params[name]["kernel"].permute(3, 2, 0, 1)
        groups = 1 if name in m.exchange or name == "conv1" else m.towers
        return F.conv2d(x, kernel, params[name]["bias"], groups=groups, **geometry)

    def norm(name, x):
        alpha = m.lrn.alpha * (1 if m.lrn.divide_by_size else m.lrn.size)  # torch divides
        parts = x.chunk(m.towers if m.lrn.per_tower else 1, dim=1)
        x = [F.local_response_norm(part, m.lrn.size, alpha, m.lrn.beta, m.lrn.k) for part in parts]
        out[name] = torch.cat(x, dim=1)
        return out[name]

    def respond(i, x):
        """What follows conv1 and conv2: nonlinearity, norm and pool, in one of three orders."""
        conv, normed = f"conv{i}", f"conv{i}" in m.lrn.layers
        first, last = conv in m.lrn.before_activation, conv in m.lrn.after_pool
        if normed and first:
            x = norm(f"norm{i}", x)
        x = out[conv] = act(x)
        if normed and not first and not last:
            x = norm(f"norm{i}", x)
        if conv in m.spatial_norm.layers:
            s = m.spatial_norm
            mean = F.avg_pool2d(x * x, s.size, 1, s.size // 2)  # the sum over size^2, zeros beyond the edge
            x = out[f"spatial_norm{i}"] = x / (s.k + s.alpha * mean) ** s.beta
        x = out[f"pool{i}"] = F.max_pool2d(x, m.pool_size, m.pool_stride)
        return norm(f"norm{i}", x) if normed and not first and last else x

    def fully_connected(name, x):
        """Of CHW maps: the kernel's rows go from (y, x, channel) to (channel, y, x), tower by tower."""
        kernel, groups = params[name]["kernel"], 1 if name in m.exchange else m.towers
        side = x.shape[2] if x.ndim == 4 else 1
        maps, columns = x.chunk(groups, dim=1), kernel.chunk(groups, dim=1)
        products = []
        for part, w in zip(maps, columns, strict=True):
            w = w.reshape(side, side, -1, w.shape[1]).permute(2, 0, 1, 3).flatten(0, 2)
            products.append(part.flatten(1) @ w)
        return torch.cat(products, dim=1) + params[name]["bias"]

    x = F.pad(images.permute(0, 3, 1, 2), tuple(m.conv1_padding) * 2)
    x = respond(1, convolution("conv1", x, stride=4))
    x = respond(2, convolution("conv2", x, padding=2))
    for name in ("conv3", "conv4"):
        if name not in m.removed:
            x = out[name] = act(convolution(name, x, padding=1))
    x = out["conv5"] = act(convolution("conv5", x, padding=1))
    x = out["pool5"] = F.max_pool2d(x, m.pool_size, m.pool_stride)
    x = out["fc6"] = act(fully_connected("fc6", x))
    x = out["fc7"] = act(fully_connected("fc7", x))
    out["fc8"] = fully_connected("fc8", x)
    return {name: a.permute(0, 2, 3, 1) if a.ndim == 4 else a for name, a in out.items()}


def compiled(f):
    """f, compiled as the network is for users."""
    return jax.jit(f, compiler_options=compiler_options(jax.default_backend()))


def forward(m, params, images, **kwargs):
    return compiled(lambda p, x: AlexNet(m).apply({"params": p}, x, **kwargs))(params, images)


def check_twin(m, params, images, gradients):
    """Every named activation, and the gradient of every parameter, against PyTorch in float64."""
    weights = np.linspace(-1, 1, len(images) * m.num_classes).reshape(len(images), -1).astype(np.float32)

    def loss(params):
        logits, out = AlexNet(m).apply({"params": params}, images)
        return jnp.vdot(weights, logits), out | {"logits": logits}

    theirs = jax.tree.map(lambda p: torch.tensor(p, dtype=torch.float64, requires_grad=gradients), params)
    expected = twin(theirs, torch.tensor(images, dtype=torch.float64), m)
    if gradients:
        (torch.tensor(weights) * expected["fc8"]).sum().backward()
        (_, out), gradient = compiled(jax.value_and_grad(loss, has_aux=True))(params)
        compare(gradient, jax.tree.map(lambda p: p.grad, theirs))
    else:
        out = compiled(loss)(params)[1]
    expected = {name: a.detach() for name, a in expected.items()}
    compare(out, expected | {"logits": expected["fc8"]})


def compare(actual, expected):
    """Each array within 1e-4 of its largest value: eight layers of float32 sums."""

    def one(path, a, b):
        scale = float(np.abs(b).max())
        assert a.shape == b.shape and scale > 0, path
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(one, actual, jax.tree.map(np.asarray, expected))


SOURCE = {
    "lrn__before_activation": ("conv1",),
    "lrn__divide_by_size": True,
    "spatial_norm__layers": ("conv2",),
}


@pytest.mark.as_shipped
@pytest.mark.parametrize("side, changes", [(224, {}), (64, SOURCE)], ids=["paper", "source"])
def test_activations_and_gradients_are_the_twins(narrow, draw, side, changes):
    m = narrow(**changes)
    check_twin(m, *draw(m, 2, side), gradients=True)


@pytest.mark.as_shipped
@pytest.mark.parametrize(
    "side, changes",
    [
        (64, {"lrn__per_tower": False}),
        (64, {"lrn__after_pool": ("conv1", "conv2"), "lrn__size": 3}),
        (64, {"lrn__after_pool": ("conv1",)}),
        (64, {"lrn__after_pool": ("conv2",), "lrn__before_activation": ("conv1",)}),
        (64, {"lrn__layers": (), "conv1_padding": (2, 2)}),
        (64, {"activation": "tanh", "lrn__layers": ("conv2",)}),
        (67, {"pool_size": 2, "conv1_padding": (0, 0)}),
        (64, {"towers": 1}),
        (64, {"removed": ("conv4",)}),
        (64, {"removed": ("conv3", "conv4")}),
        (64, {"exchange": ("fc6", "fc7", "fc8")}),
        (64, {"exchange": ("conv3", "conv4", "fc7", "fc8")}),
        (95, {"exchange": ("conv2", "fc8"), "conv_widths": (8, 16, 24, 12, 16)}),  # fc6 of 2 x 2 maps, in towers
    ],
    ids=lambda v: ",".join(f"{name}={value}" for name, value in v.items()) if isinstance(v, dict) else str(v),
)
def test_every_option_is_the_twins(narrow, draw, side, changes):
    m = narrow(**changes)
    check_twin(m, *draw(m, 2, side), gradients=False)


@pytest.mark.as_shipped
def test_full_width_is_the_twins(draw):
    """No width, side or count of maps is special to the narrow networks."""
    m = paper.get_config().model
    m.fc_widths, m.num_classes = (64, 64), 7  # whose width is no matter: they are one product of matrices
    check_twin(m, *draw(m, 1, 224), gradients=False)


def test_norms_matter(narrow, draw):
    """With the random numbers of `draw`, a norm that is missing or misplaced changes more than rounding does."""
    m = narrow()
    params, images = draw(m, 2, 64)
    out = forward(m, params, images)[1]
    for i in (1, 2):
        ratio = np.asarray(out[f"norm{i}"] / out[f"conv{i}"]) * 2**0.75
        assert np.nanmean(ratio) < 0.95


# Towers.


def tower_gradients(m, params, images, activation, layer):
    """The largest gradient of tower one's `activation` with respect to the kernels of `layer` in each tower."""

    def first_tower(kernel):
        changed = params | {layer: params[layer] | {"kernel": kernel}}
        out = AlexNet(m).apply({"params": changed}, images)[1][activation]
        return (out[..., : out.shape[-1] // 2] ** 2).sum()

    gradient = jax.jit(jax.grad(first_tower))(params[layer]["kernel"])
    return [float(np.abs(half).max()) for half in np.split(np.asarray(gradient), 2, axis=-1)]


@pytest.mark.parametrize(
    "activation, layer, changes, sees_the_other",
    [
        ("pool2", "conv1", {}, False),
        ("pool2", "conv1", {"lrn__per_tower": False}, True),
        ("conv3", "conv2", {}, True),
        ("pool5", "conv3", {}, False),
        ("conv5", "conv4", {}, False),
        ("pool5", "conv1", {"exchange": ("fc6", "fc7", "fc8")}, False),
        ("fc6", "conv5", {}, True),
        ("fc7", "fc6", {}, True),
        ("fc7", "fc6", {"exchange": ("conv3", "fc6", "fc8")}, False),
    ],
)
def test_towers_are_isolated_except_where_they_exchange(narrow, draw, activation, layer, changes, sees_the_other):
    """The gradient with respect to what tower one does not read is exactly zero."""
    m = narrow(**changes)
    own, other = tower_gradients(m, *draw(m, 2, 64), activation, layer)
    assert own > 0
    assert (other > 0) == sees_the_other


# Numbers.


EPS = 2.0**-8  # between 1 and the next number of bfloat16; rounding errors are at most half of it


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.as_shipped), 2])
def test_bfloat16_differs_from_float32_by_rounding_only(narrow, draw, devices):
    """Every activation and gradient of a network that computes in bfloat16 with float32 parameters."""
    m, coarse = narrow(), narrow(dtype="bfloat16")
    params, images = draw(m, 4, 64)
    weights = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32)

    def run(m, apply):
        def loss(params, images):
            logits, out = apply(params, images)
            return (weights * logits).sum(), out | {"logits": logits}

        (_, out), gradient = compiled(jax.value_and_grad(loss, has_aux=True))(params, images)
        return out, gradient

    exact, wanted = run(m, lambda p, x: AlexNet(m).apply({"params": p}, x))
    mesh = make_mesh(ConfigDict({"data": 1, "tower": devices}), 2, 4)
    out, gradient = run(coarse, split(AlexNet(coarse), mesh))
    assert {p.dtype for p in jax.tree.leaves((shapes(coarse, 64), gradient))} == {jnp.dtype(jnp.float32)}
    assert {name for name, a in out.items() if a.dtype != jnp.bfloat16} == {"fc8", "logits"}
    assert out["logits"].dtype == jnp.float32

    def distance(a, b):
        """The root mean square of the difference, relative to that of b."""
        return np.sqrt(np.mean((np.float32(a) - b) ** 2) / np.mean(np.float32(b) ** 2))

    for name, a in exact.items():
        assert 0 < distance(out[name], a) < 2 * EPS, name
        assert np.abs(np.float32(out[name]) - a).max() < 4 * EPS * np.abs(a).max(), name
    # Below a pool, rounding decides which of two nearly equal places gets the gradient.
    loose = {"conv1": 64, "conv2": 32, "conv3": 32, "conv4": 32}
    for layer, kinds in wanted.items():
        for kind, g in kinds.items():
            assert distance(gradient[layer][kind], g) < loose.get(layer, 4) * EPS, (layer, kind)


def test_logits_are_not_rounded_to_bfloat16(narrow, draw):
    """With 8 bits, classes with close logits would tie, and a tie counts as an error."""
    m = narrow(dtype="bfloat16", num_classes=1000)
    logits = forward(m, *draw(m, 4, 64))[0]
    assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.99
    assert min(len(np.unique(row)) for row in logits) > 990


def test_dropout_in_training_only(narrow, draw):
    m = narrow()
    params, images = draw(m, 2, 64)
    whole = forward(m, params, images)[0]
    train = jax.jit(lambda key: AlexNet(m).apply({"params": params}, images, train=True, rngs={"dropout": key}))
    one, two, again = (train(jax.random.key(seed)) for seed in (0, 1, 0))
    np.testing.assert_array_equal(one[0], again[0])
    assert (one[0] != two[0]).all() and (one[0] != whole).all()
    np.testing.assert_array_equal(one[1]["fc6"], two[1]["fc6"])  # activations are taken before dropout
    assert (one[1]["fc7"] != two[1]["fc7"]).any()  # which fc7 sees

    m.dropout = 0.0
    np.testing.assert_array_equal(forward(m, params, images, train=True)[0], whole)


@pytest.mark.parametrize("sites", [("fc7", "fc8"), ("fc6", "fc7"), ("fc8",)])
def test_each_layer_drops_units_of_its_own(narrow, draw, sites):
    """Where fc7 and fc8 copy ones, what is dropped before them is 0, and what is left is doubled each time."""
    m = narrow(fc_widths=(64, 64), num_classes=64, dropout_before=sites)
    params, images = draw(m, 8, 64)
    params["fc6"]["kernel"] *= 0
    params["fc6"]["bias"][:] = 1
    for name in ("fc7", "fc8"):
        params[name] = {"kernel": np.eye(64, dtype=np.float32), "bias": np.zeros(64, np.float32)}
    _, out = AlexNet(m).apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)})
    kept = {"fc6": 1, "fc7": 2 if "fc7" in sites else 1}
    kept["fc8"] = kept["fc7"] * (2 if "fc8" in sites else 1)
    for name, value in kept.items():
        assert set(np.unique(out[name])) == ({value} if value == 1 else {0, value})
    if "fc7" in sites and "fc8" in sites:  # with one mask for both, none would be dropped
        assert 0.35 < np.mean(out["fc8"][out["fc7"] > 0] == 0) < 0.65


def test_initial_values_are_those_of_the_config(narrow):
    m = narrow(conv_widths=(48, 32, 32, 32, 32), fc_widths=(64, 64), num_classes=64)
    assert set(m.init_std.values()) == {0.01}  # section 5
    for i, name in enumerate(m.init_std):
        m.init_std[name], m.init_bias[name] = 0.01 * (i + 1), float(i)
    init = jax.jit(AlexNet(m).init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))["params"]
    assert set(init) == set(m.init_std)
    for name, p in init.items():
        kernel = np.asarray(p["kernel"])
        assert abs(kernel.std() / m.init_std[name] - 1) < 5 / (2 * kernel.size) ** 0.5, name
        assert abs(kernel.mean()) < 5 * m.init_std[name] / kernel.size**0.5, name
        assert (p["bias"] == m.init_bias[name]).all(), name
