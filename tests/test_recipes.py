"""The numbers of every preset's training, inputs and initial values, as its origin has them: each preset names it."""

import importlib

import pytest

from alexnet_jax.config import flat

BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")  # layers whose biases begin at 1 in the paper
OTHER_BIASES = {f"model.init_bias.{layer}": 0.0 for layer in ("conv1", "conv3", "fc8")}
PAPER = {  # section 5, but for the noise and the crops, section 4.1, and the plateau rule, which is ours
    "batch_size": 128,
    "epochs": 90,
    "model.init": "normal",
    "model.dropout": 0.5,
    "model.dropout_before": ["fc7", "fc8"],
    "optimizer.algorithm": "momentum",
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0005,
    "optimizer.decay_biases": False,
    "optimizer.bias_rate": 1.0,
    "optimizer.bias_rule": "weights",
    "optimizer.rule": "plateau",
    "optimizer.factor": 0.1,
    "optimizer.drops": 3,
    "optimizer.patience": 5,
    "optimizer.drop_epochs": [],
    "optimizer.layer_decays": [],
    "optimizer.layer_rates": [],
    "data.size": 256,
    "data.resize": "shorter",
    "data.crop": 224,
    "data.mean": "pixel",
    "data.deviation": [],
    "data.random_crop": True,
    "data.flip": True,
    "data.crop_chunk": 1,
    "data.color_noise": 0.1,
    "data.color_noise_epochs": -1,
    "data.divide_by_noise": False,
    "data.name": "imagenet2012",
} | {f"model.init_std.{layer}": 0.01 for layer in ("conv1", *BIASES, "conv3", "fc8")}
PAPER |= OTHER_BIASES | {f"model.init_bias.{layer}": 1.0 for layer in BIASES}  # fmt: skip


def biases(value):
    return {f"model.init_bias.{layer}": value for layer in BIASES}


def rule(*drops, **fields):
    """Drops at epochs, and other fields of the optimizer."""
    fields = {f"optimizer.{name}": value for name, value in fields.items()}
    return {"optimizer.rule": "epochs", "optimizer.drop_epochs": list(drops)} | fields


CODE = {f"model.init_std.conv{i}": 0.03 for i in (3, 4, 5)} | {  # the 2012 run of #145
    "data.mean": "centre", "data.crop_chunk": 32, "data.color_noise_epochs": 67, "data.divide_by_noise": True,
}  # fmt: skip
CAFFE = {"batch_size": 256, "model.init_std.fc6": 0.005, "model.init_std.fc7": 0.005, "data.resize": "warp"}
CAFFE |= rule(20, 40, 60, 80, bias_rate=2.0) | {"data.crop": 227, "data.color_noise": 0.0}
CIFAR = biases(0.0) | {"data.name": "cifar10", "data.size": 32, "data.color_noise": 0.0, "optimizer.bias_rate": 2.0}
CIFAR |= {"optimizer.learning_rate": 0.001, "model.dropout": 0.0}
WHOLE = {"data.crop": 32, "data.random_crop": False, "data.flip": False, "optimizer.weight_decay": 0.004}
CROPS = {"data.crop": 24, "data.mean": "centre", "optimizer.weight_decay": 0.0, "optimizer.bias_rule": "epochs"}
DIFFERENT = {  # from the paper's
    "source": CODE | {"epochs": 91} | rule(
        25, 51, 79, bias_rate=2.0, bias_rule="epochs", layer_rates=[[67, "conv1/kernel", 0.1], [72, "conv1", 0.0]]
    ),
    "caffe": CAFFE | biases(0.1),
    "caffenet": CAFFE,
    "one_weird_trick": rule(30, 60, algorithm="sgd", weight_decay=0.0001, decay_biases=True) | {
        "batch_size": 256, "model.init": "uniform", "data.mean": "value", "data.color_noise": 0.0,
        "data.deviation": pytest.approx([0.229 * 255, 0.224 * 255, 0.225 * 255]),
        "model.dropout_before": ["fc6", "fc7"],
    },
    "half_width": rule(algorithm="adam", learning_rate=0.0002, weight_decay=0.0) | biases(0.0) | {
        "batch_size": 32, "epochs": 20, "data.resize": "warp", "data.mean": "value", "data.color_noise": 0.0,
        "data.deviation": [127.5] * 3, "model.dropout_before": ["fc6", "fc7"],
    } | {
        f"model.init_std.conv{i}": pytest.approx((2 / inputs) ** 0.5)
        for i, inputs in enumerate((11**2 * 48, 5**2 * 128, 3**2 * 192, 3**2 * 192, 3**2 * 128), start=1)
    },
    "finetune": rule(12, 18, learning_rate=0.001, bias_rate=2.0, layer_rates=[[0, "fc8", 10.0]]) | {
        "batch_size": 50, "epochs": 20, "data.name": "", "data.color_noise": 0.0,
    },
    "imagenette_small": rule(31, 40, learning_rate=0.005, bias_rate=2.0) | {
        "batch_size": 64, "epochs": 44, "data.name": "imagenette/160px-v2", "data.size": 144, "data.crop": 128,
    } | {
        f"model.init_std.{layer}": pytest.approx(std * 2**0.5)  # the code's, for half as many inputs
        for layer, std in (("conv2", 0.01), ("conv3", 0.03), ("conv4", 0.03), ("conv5", 0.03), ("fc6", 0.01),
                           ("fc7", 0.01), ("fc8", 0.01))
    },
    "cifar10_80sec": CIFAR | WHOLE | {"epochs": 10} | rule(8, layer_decays=[["fc64", 0.03], ["fc10", 0.03]]),
    "cifar10_18pct": CIFAR | WHOLE | {"epochs": 140} | rule(120, 130, layer_decays=[["fc10", 1.0]]),
    "cifar10_13pct": CIFAR | CROPS | {"epochs": 140} | rule(
        120, 130, layer_decays=[["local3", 0.004], ["local4", 0.004], ["fc10", 0.004]]
    ),
    "cifar10_11pct": CIFAR | CROPS | {"epochs": 450} | rule(
        430, 440, layer_decays=[["local3", 0.004], ["local4", 0.004], ["fc10", 0.01]]
    ),
}  # fmt: skip
STDS = {  # the initial standard deviations of the chains
    "cifar10_80sec": {"conv1": 0.0001, "conv2": 0.01, "conv3": 0.01, "fc64": 0.1, "fc10": 0.1},
    "cifar10_18pct": {"conv1": 0.0001, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
    "cifar10_13pct": {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
    "cifar10_11pct": {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
}


def preset(name):
    return flat(importlib.import_module(f"configs.{name}").get_config())


def test_the_papers_numbers():
    there = preset("paper")
    assert {name: there[name] for name in PAPER} == PAPER


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_preset_has_the_numbers_of_its_origin(name):
    there = preset(name)
    assert {field: there[field] for field in PAPER} == PAPER | DIFFERENT[name]


@pytest.mark.parametrize(
    ("name", "there"), [("source", False), ("source:imagenette", True), ("imagenette_small", True), ("finetune", True)]
)
def test_small_sets_are_held_on_the_device(name, there):
    name, _, arg = name.partition(":")
    assert importlib.import_module(f"configs.{name}").get_config(arg).data.on_device == there


@pytest.mark.parametrize("name", STDS)
def test_a_chain_has_the_initial_values_of_its_origin(name):
    layers = preset(name)["model.layers"]
    assert {layer: rest[-1] for layer, _, *rest in layers if rest} == STDS[name]
