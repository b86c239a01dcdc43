"""Every preset against its origin: parameters and multiply-accumulates, and a PyTorch network written from it."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.origins import ORIGINS, network, pool, randomize, to_ours, torchvision
from torch import nn

from alexnet_jax.config import check
from alexnet_jax.data import augment
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.network import parameter_count, shapes
from alexnet_jax.runs.finetune import resolved
from alexnet_jax.runs.run import read_config
from configs import half_width, one_weird_trick, paper

COUNTS = {  # parameters, multiply-accumulates of one image
    "paper": (60_965_224, 724_406_816),
    "source": (60_965_224, 724_406_816),
    "caffe": (60_965_224, 724_406_816),
    "caffenet": (60_965_224, 724_406_816),
    "one_column": (59_798_312, 391_514_384),
    "half_width": (16_630_440, 311_191_824),
    "ungrouped": (62_378_344, 1_135_256_096),
    "ungrouped_224": (62_378_344, 1_135_256_096),
    "one_weird_trick": (61_100_840, 714_188_480),
    "six_conv": (61_555_304, 745_640_480),
}


def preset(name):
    return importlib.import_module(f"configs.{name}").get_config()


def count(c):
    """Parameters and multiply-accumulates: each weight of a layer is used once at each place of its output."""
    check(c)
    params = shapes(c.model, c.data.crop)
    images = jax.ShapeDtypeStruct((1, c.data.crop, c.data.crop, 3), jnp.float32)
    out = jax.eval_shape(lambda p, x: AlexNet(c.model).apply({"params": p}, x), params, images)[1]
    macs = sum(p["kernel"].size * int(np.prod(out[layer].shape[1:-1])) for layer, p in params.items())
    return parameter_count(params), macs


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_multiply_accumulates(name):
    assert count(preset(name)) == COUNTS[name]


@pytest.mark.parametrize("name", ["paper", "source", "ungrouped_224", "half_width"])
def test_padding_of_one_and_two_is_as_large(name):
    """As some ports, and the half network's TensorFlow version, pad conv1: the same maps, shifted by a pixel."""
    c = preset(name)
    c.model.conv1_padding = (1, 2)
    assert count(c) == COUNTS[name]


@pytest.mark.parametrize(
    "name, expected", [("paper", (27_455_848, 690_901_536)), ("ungrouped_224", (28_868_968, 1_101_750_816))]
)
def test_narrow_fully_connected_layers_behind_all_256_maps(name, expected):
    """fc6 and fc7 of 2,048: fc6 reads 9,216 numbers as before."""
    c = preset(name)
    c.model.fc_widths = (2048, 2048)
    kernels = {layer: p["kernel"].shape for layer, p in shapes(c.model, c.data.crop).items() if layer.startswith("fc")}
    assert kernels == {"fc6": (9216, 2048), "fc7": (2048, 2048), "fc8": (2048, 1000)}
    assert count(c) == expected


def check_twin(model, net, names, images, side):
    """Logits, and the gradient of every parameter, against PyTorch in float64; names: {ours: theirs}."""
    net.double().eval()
    theirs = {ours: net.get_submodule(name) for ours, name in names.items()}
    kinds = {"kernel": "weight", "bias": "bias"}
    params = {
        name: {kind: to_ours(name, getattr(m, theirs_kind), side) for kind, theirs_kind in kinds.items()}
        for name, m in theirs.items()
    }
    weights = np.linspace(-1, 1, len(images) * model.num_classes).reshape(len(images), -1).astype(np.float32)

    def loss(params):
        logits = AlexNet(model).apply({"params": params}, images)[0]
        return jnp.vdot(weights, logits), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = net(torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2))
    (torch.tensor(weights) * expected).sum().backward()
    close(logits, expected.detach().numpy(), "logits")
    for name, m in theirs.items():
        for kind, theirs_kind in kinds.items():
            close(gradient[name][kind], to_ours(name, getattr(m, theirs_kind).grad, side), f"{name} {kind}")


def close(actual, expected, what):
    scale = np.abs(expected).max()
    assert actual.shape == expected.shape and scale > 0, what
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale, err_msg=what)


def pixels(side, scale=60):
    return np.random.default_rng(0).normal(0, scale, (2, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ORIGINS)
def test_forward_and_gradient_are_the_origins(name):
    c = preset(name)
    m = c.model
    m.conv_widths, m.fc_widths, m.num_classes = (16, 16, 12, 12, 8, 12)[: len(m.conv_widths)], (24, 20), 7
    side = 96 if sum(m.conv1_padding) else 99
    net = network(m.conv_widths, m.fc_widths, 2, **ORIGINS[name])
    randomize(net)
    names = [n for n, _ in net.named_children() if n.startswith(("conv", "fc"))]
    check_twin(m, net, dict(zip(names, names, strict=True)), pixels(side), side=2)


@pytest.mark.slow
def test_one_weird_trick_is_torchvisions_class():
    """At another size than 224, where it averages 5 x 7 maps to 6 x 6."""
    c = one_weird_trick.get_config()
    c.model.num_classes = 7
    net = torchvision.models.AlexNet(num_classes=7)
    randomize(net)
    names = [f"features.{i}" for i in (0, 3, 6, 8, 10)] + [f"classifier.{i}" for i in (1, 4, 6)]
    ours = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    images = pixels(256, scale=1)[:1, :200]
    check_twin(c.model, net, dict(zip(ours, names, strict=True)), images, side=6)


# Recipes.


def test_initial_values_of_one_weird_trick_are_pytorchs():
    """The same bounds and spread as its layers draw, layer by layer."""
    c = one_weird_trick.get_config()
    m = c.model
    m.conv_widths, m.fc_widths = (64, 48, 48, 32, 32), (256, 128)
    drawn = AlexNet(m).init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    torch.manual_seed(0)
    net = nn.ModuleDict(network(m.conv_widths, m.fc_widths, 6, pad=2, after=lambda i: [pool()])._modules)
    for name in drawn:
        for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
            ours, expected = np.asarray(drawn[name][kind]), getattr(net[name], theirs).detach().numpy()
            if name == "fc8":
                expected = nn.Linear(128, 1000).get_parameter(theirs).detach().numpy()
            bound = np.float32(np.prod(drawn[name]["kernel"].shape[:-1]) ** -0.5)  # what is drawn is rounded too
            assert np.abs(ours).max() <= bound and np.abs(expected).max() <= bound
            assert np.abs(ours).max() > 0.85 * bound and np.abs(expected).max() > 0.85 * bound
            if kind == "kernel":
                assert np.std(ours) == pytest.approx(np.std(expected), rel=0.05)


def test_initial_values_of_half_width_are_its_origins():
    """Kaiming's normal values by outputs in the convolutions, N(0, 0.01) in the fully connected layers."""
    m = half_width.get_config().model
    for name, out, size in zip(
        ("conv1", "conv2", "conv3", "conv4", "conv5"), m.conv_widths, (11, 5, 3, 3, 3), strict=True
    ):
        weight = torch.empty(out, 64, size, size)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        assert m.init_std[name] == pytest.approx(float(weight.std()), rel=0.03)


@pytest.mark.parametrize("name, mean, std", [
    ("one_weird_trick", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("half_width", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
])  # fmt: skip
def test_inputs_are_scaled_as_torchvisions_transforms_do(name, mean, std):
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    steps = torchvision.transforms
    expected = steps.Compose([steps.ToTensor(), steps.Normalize(mean, std)])(image).permute(1, 2, 0)
    statistics = {"channel_mean": np.zeros(3)}  # not looked at
    [out] = augment.views(image[None], statistics, preset(name).data, 1)
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


def test_ungrouped_224_is_the_ungrouped_network_on_the_papers_images():
    c, text = preset("ungrouped_224"), paper.get_config()
    assert (c.data, c.evaluation) == (text.data, text.evaluation)
    assert (c.data.size, c.data.crop, c.data.resize, c.data.color_noise, c.evaluation.views) == (
        256, 224, "shorter", 0.1, 10,
    )  # fmt: skip
    other = preset("ungrouped")
    assert c.optimizer == other.optimizer
    other.model.conv1_padding = (0, 3)
    assert c.model == other.model


def test_kernels_strides_and_pools_are_the_configs():
    """Of a network that is not of the family: sides of maps, and of what is pooled."""
    m = preset("paper").model
    m.conv_widths, m.fc_widths, m.conv1_padding = (16, 16, 12, 12, 8), (24, 20), (3, 3)
    m.conv_sizes, m.conv_strides, m.pooled = (7, 3, 1, 3, 5), (2, 1, 2, 1, 1), ("conv1", "conv4")
    params = shapes(m, 64)
    assert [params[f"conv{i}"]["kernel"].shape[:2] for i in range(1, 6)] == [(n, n) for n in m.conv_sizes]
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    out = jax.eval_shape(lambda p, x: AlexNet(m).apply({"params": p}, x), params, images)[1]
    sides = {name: a.shape[1] for name, a in out.items() if a.ndim == 4 and not name.startswith("norm")}
    assert sides == {"conv1": 32, "pool1": 15, "conv2": 15, "conv3": 8, "conv4": 8, "pool4": 3, "conv5": 3}


@pytest.mark.parametrize("after, before, expected", [
    (True, [], ["conv1", "conv2"]), (True, ["conv1"], ["conv2"]), (False, ["conv1"], []),
])  # fmt: skip
def test_a_run_from_when_the_pool_was_for_all_norms_loads(after, before, expected, tmp_path):
    """lrn.after_pool was true or false, and gave way to before_activation."""
    config = json.loads(preset("caffenet").to_json())
    config["model"]["lrn"] |= {"after_pool": after, "before_activation": before}
    del config["optimizer"]["bias_rule"], config["optimizer"]["bias_drop_epochs"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    c = read_config(tmp_path)
    assert list(c.model.lrn.after_pool) == expected and c.optimizer.bias_rule == "weights"
    c = preset("finetune")
    c.start.workdir, c.data.name = str(tmp_path), "glyphs"
    assert list(resolved(c).model.lrn.after_pool) == expected


# Words after the colon.


SMOKE = {  # config, words: data set, splits, classes
    ("paper", "smoke"): ("glyphs/tiny", "train", "validation", 10),
    ("paper", "glyphs,smoke"): ("glyphs/tiny", "train", "validation", 10),
    ("paper", "imagenet2012,smoke"): ("imagenet2012", "train[:512]", "validation[:256]", 1000),
    ("paper", "smoke,cifar10"): ("cifar10", "train[:512]", "test[:256]", 10),
    ("imagenette", "smoke"): ("imagenette/160px-v2", "train[:512]", "validation[:256]", 10),
    ("imagenette_small", "smoke"): ("imagenette/160px-v2", "train[:512]", "validation[:256]", 10),
    ("imagenette", "imagenet2012,smoke"): ("imagenet2012", "train[:512]", "validation[:256]", 1000),
    ("quickstart", "smoke"): ("glyphs/tiny", "train", "validation", 10),
}


@pytest.mark.parametrize("name, words", SMOKE)
def test_smoke_keeps_the_configs_own_images(name, words):
    """But for ImageNet where nobody named it: that is not for everybody to download."""
    c = importlib.import_module(f"configs.{name}").get_config(words)
    assert (c.data.name, c.data.train_split, c.data.eval_split, c.model.num_classes) == SMOKE[name, words]
    assert c.name == f"{name}_{words.replace(',', '_')}"


@pytest.mark.parametrize("name", [*COUNTS, "imagenette", "imagenette_small", "quickstart"])
def test_every_config_has_a_small_twin(name):
    c = importlib.import_module(f"configs.{name}").get_config("smoke")
    check(c)
    assert parameter_count(shapes(c.model, c.data.crop)) < 300_000


# Images of any size.


@pytest.mark.parametrize("name", ["caffe", "one_weird_trick", "six_conv"])
def test_dense_slides_the_fully_connected_layers(name):
    """At the net's own size one place, the plain net's; on larger images PyTorch's, with Linear layers as Conv2d."""
    m = preset(name).model
    m.conv_widths, m.fc_widths, m.num_classes = (16, 16, 12, 12, 8, 12)[: len(m.conv_widths)], (24, 20), 7
    if name == "caffe":
        m.exchange = ("conv3", "fc7", "fc8")  # towers in fc6 too
    side = 227 if name == "caffe" else 224
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, (2 / np.prod(s.shape[:-1] or 2)) ** 0.5, s.shape).astype(np.float32), shapes(m, side)
    )
    window = fc6_side(m, params)
    assert window == 6
    images = pixels(side + 96)
    plain = AlexNet(m).apply({"params": params}, images[:, :side, :side])[0]
    dense = AlexNet(m, dense=window)
    np.testing.assert_allclose(
        dense.apply({"params": params}, images[:, :side, :side])[0][:, 0, 0], plain, rtol=1e-4, atol=1e-4
    )
    logits, out = dense.apply({"params": params}, images)
    assert logits.shape == (2, 4, 4, 7)
    x = torch.tensor(np.asarray(out["conv6" if name == "six_conv" else "pool5"])).permute(0, 3, 1, 2)
    for layer in ("fc6", "fc7", "fc8"):
        kernel, groups = params[layer]["kernel"], 2 if layer == "fc6" and "fc6" not in m.exchange else 1
        width = window if layer == "fc6" else 1
        weight = torch.tensor(kernel.reshape(width, width, -1, kernel.shape[1]).transpose(3, 2, 0, 1))
        x = nn.functional.conv2d(x, weight, torch.tensor(params[layer]["bias"]), groups=groups)
        x = x if layer == "fc8" else x.relu()
    np.testing.assert_allclose(logits, x.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-3)
