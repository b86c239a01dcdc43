"""Krizhevsky's networks for CIFAR-10 and their parts, against PyTorch networks written from cuda-convnet's files."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import FrozenConfigDict
from torch import nn
from torch.nn import functional

from alexnet_jax import UserError, layers, main, optimizer, towers
from alexnet_jax.analysis import figures, retrieve, summary
from alexnet_jax.cifar import Chain
from alexnet_jax.cli import verbs
from alexnet_jax.config import check, fields
from alexnet_jax.evaluate import evaluate_runs, images_for
from alexnet_jax.metrics import read_metrics
from alexnet_jax.network import network, parameter_count, shapes
from alexnet_jax.runs import finetune
from alexnet_jax.runs.run import load_run
from experiments.sweeps import cifar10, cifar10_norm, figure1

PARAMETERS = {
    "cifar10_80sec": 145_578,
    "cifar10_18pct": 89_578,
    "cifar10_13pct": 1_116_490,
    "cifar10_11pct": 2_112_970,
}


# Millions, of one image.
MACS = {"cifar10_80sec": 12.4, "cifar10_18pct": 12.3, "cifar10_13pct": 18.5, "cifar10_11pct": 19.5}


def preset(name):
    return importlib.import_module(f"configs.{name}").get_config()


def test_initial_values_are_those_of_the_chain():
    config = preset("cifar10_13pct").model
    config.layers = (("a", "conv", 64, 5, 0.02), ("b", "local", 8, 3, 0.05), ("c", "dense", 0, 0.1))
    params = network(config).init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))["params"]
    for name, std in (("a", 0.02), ("b", 0.05), ("c", 0.1)):
        kernel = np.asarray(params[name]["kernel"])
        assert abs(kernel.mean()) < 0.05 * std and kernel.std() == pytest.approx(std, rel=0.05)
        assert not np.any(params[name]["bias"])


# --- The same networks in PyTorch -------------------------------------------------------------------------------------


class AveragePool(nn.Module):
    """Windows of 3 every 2, the last one over the edge: divided by the places inside, so PyTorch's padding is none."""

    def forward(self, x):
        return functional.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)


class SameMapNorm(nn.Module):
    """rnorm of layers-18pct: 3 x 3 neighbours in the same map, scale 0.00005 divided by 9, pow 0.75."""

    def forward(self, x):
        squares = functional.avg_pool2d(x * x, 3, 1, 1, divisor_override=1)
        return x / (1 + 0.00005 / 9 * squares) ** 0.75


class Local(nn.Module):
    """type=local: filters that are not shared, with a bias for each filter at each place."""

    def __init__(self, inputs, filters, side):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side * side, inputs * 9, filters))
        self.bias = nn.Parameter(torch.empty(side * side, filters))
        self.side = side

    def forward(self, x):
        seen = functional.unfold(x, 3, padding=1)  # (b, inputs x 3 x 3, places)
        made = torch.einsum("bkp,pkf->bfp", seen, self.weight) + self.bias.T
        return made.reshape(len(x), -1, self.side, self.side)


def conv(inputs, filters):
    return nn.Conv2d(inputs, filters, 5, padding=2)


def max_pool():
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def cross_map_norm():
    """cmrnorm of layers-conv-local-11pct: size 9, scale 0.001 divided by it, pow 0.75; PyTorch divides too."""
    return nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)


ORIGINS = {
    "cifar10_80sec": lambda: nn.Sequential(
        conv(3, 32), max_pool(), nn.ReLU(),
        conv(32, 32), nn.ReLU(), AveragePool(),
        conv(32, 64), nn.ReLU(), AveragePool(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    ),
    "cifar10_18pct": lambda: nn.Sequential(
        conv(3, 32), max_pool(), nn.ReLU(), SameMapNorm(),
        conv(32, 32), nn.ReLU(), AveragePool(), SameMapNorm(),
        conv(32, 64), nn.ReLU(), AveragePool(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 10),
    ),
    "cifar10_13pct": lambda: nn.Sequential(
        conv(3, 64), nn.ReLU(), max_pool(),
        conv(64, 64), nn.ReLU(), max_pool(),
        Local(64, 32, 6), nn.ReLU(), Local(32, 32, 6), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 6 * 6, 10),
    ),
    "cifar10_11pct": lambda: nn.Sequential(
        conv(3, 64), nn.ReLU(), max_pool(), cross_map_norm(),
        conv(64, 64), nn.ReLU(), cross_map_norm(), max_pool(),
        Local(64, 64, 6), nn.ReLU(), Local(64, 32, 6), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 6 * 6, 10),
    ),
}  # fmt: skip


def to_ours(module, array, reads_maps):
    """A parameter or its gradient, (weight or bias of a PyTorch module), in our layout."""
    if isinstance(module, Local):
        if array.ndim == 2:
            return array.reshape(module.side, module.side, -1)
        places = array.reshape(module.side, module.side, -1, 9, array.shape[-1])  # maps, then places of the window
        return places.transpose(0, 1, 3, 2, 4).reshape(module.side, module.side, -1, array.shape[-1])
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and reads_maps:
        side, units = reads_maps, len(array)
        return array.reshape(units, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, units)
    return array.T


def close(actual, expected, what):
    scale = np.abs(expected).max()
    assert actual.shape == expected.shape and scale > 0, what
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale, err_msg=what)


@pytest.mark.parametrize("name", ORIGINS)
def test_logits_and_every_gradient_are_pytorchs(name):
    c = preset(name)
    net = ORIGINS[name]().double()
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():  # kernels that keep the scale of their inputs, so that every part counts
        inputs = p.shape[1] if p.ndim == 3 else p[0].numel()
        p.data = torch.normal(0.0, 1.0 if p.ndim == 1 else (2 / inputs) ** 0.5, p.shape, generator=generator).double()
    modules = [m for m in net if hasattr(m, "weight")]
    names = [entry[0] for entry in c.model.layers if len(entry) > 2]
    side = {n: {"fc64": 4, "fc10": 0}.get(n, 0) for n in names}
    if "fc64" not in names:
        side["fc10"] = 4 if c.data.crop == 32 else 6

    def ours(of):
        return {
            n: {
                kind: to_ours(m, of(getattr(m, theirs)).numpy(), side[n])
                for kind, theirs in (("kernel", "weight"), ("bias", "bias"))
            }
            for n, m in zip(names, modules, strict=True)
        }

    params = jax.tree.map(np.float32, ours(lambda p: p.detach()))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, shapes(c.model, c.data.crop))
    images = np.random.default_rng(0).normal(0, 60, (3, c.data.crop, c.data.crop, 3)).astype(np.float32)
    weights = np.linspace(-1, 1, 30).reshape(3, 10).astype(np.float32)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = Chain(FrozenConfigDict(c.model)).apply({"params": params}, images)
            return jnp.vdot(weights, logits), logits

        return jax.grad(loss, has_aux=True)(params)

    found, logits = gradient(params)
    expected = net(torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2))
    (torch.tensor(weights) * expected).sum().backward()
    close(logits, expected.detach().numpy(), "logits")
    for path, g in jax.tree_util.tree_leaves_with_path(ours(lambda p: p.grad)):
        layer, kind = (key.key for key in path)
        close(found[layer][kind], g, f"{layer} {kind}")


# --- The presets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_multiply_accumulates(name):
    c = preset(name)
    check(c)
    rows = summary.layer_costs(c, towers.make_mesh(c.devices, 1, c.batch_size))
    assert parameter_count(shapes(c.model, c.data.crop)) == sum(row["parameters"] for row in rows) == PARAMETERS[name]
    macs = sum(row["macs"] for row in rows)
    assert round(macs / 1e6, 1) == MACS[name]


@pytest.mark.parametrize(
    "name, layer, epoch, kernel, bias, decay",
    [
        ("cifar10_80sec", "conv1", 0, 1e-3, 2e-3, 0.004),
        ("cifar10_80sec", "fc10", 8, 1e-4, 2e-4, 0.03),
        ("cifar10_18pct", "fc10", 119, 1e-3, 2e-3, 1.0),
        ("cifar10_18pct", "conv3", 130, 1e-5, 2e-5, 0.004),
        ("cifar10_13pct", "conv2", 120, 1e-4, 2e-3, 0.0),
        ("cifar10_13pct", "fc10", 0, 1e-3, 2e-3, 0.004),
        ("cifar10_11pct", "fc10", 440, 1e-5, 2e-3, 0.01),
        ("cifar10_11pct", "local3", 429, 1e-3, 2e-3, 0.004),
    ],
)
def test_rates_and_decays(name, layer, epoch, kernel, bias, decay):
    """One step of the rule from a velocity of zero: -rate (gradient + decay x weight), biases undecayed."""
    o = preset(name).optimizer
    params = jax.tree.map(lambda s: jnp.full(s.shape, 2.0), shapes(preset(name).model, preset(name).data.crop))
    rule = optimizer.update_rule(o)
    rates = optimizer.rates(o, params, optimizer.learning_rate(o, epoch, preset(name).epochs, {}), epoch)
    update, _ = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params, rates=rates)
    np.testing.assert_allclose(update[layer]["kernel"], -kernel * (1 + 2 * decay), rtol=1e-6)
    np.testing.assert_allclose(update[layer]["bias"], -bias, rtol=1e-6)


def test_activations_are_named_in_order():
    c = preset("cifar10_11pct")
    params = shapes(c.model, 24)
    logits, out = jax.eval_shape(
        lambda p, x: network(c.model).apply({"params": p}, x), params, jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32)
    )
    assert out.keys() == {entry[0] for entry in c.model.layers}
    assert out["pool1"].shape == (2, 12, 12, 64) and out["pool2"].shape == (2, 6, 6, 64)
    assert logits.shape == out["fc10"].shape == (2, 10)


@pytest.mark.slow
@pytest.mark.as_shipped
@pytest.mark.parametrize("name", ["cifar10_18pct", "cifar10_11pct"])
def test_chunks_and_copies_compute_the_same(name):
    """In chunks on a CPU, and on two copies of the network: the same logits and gradients as the plain network."""
    c = preset(name)
    plain, side = network(c.model), c.data.crop
    params = plain.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    params = jax.tree.map(lambda p: p * (1 if p.ndim == 1 else 3), params)
    images = np.random.default_rng(1).normal(0, 60, (64, side, side, 3)).astype(np.float32)
    weights = np.random.default_rng(2).normal(0, 1, (64, 10)).astype(np.float32)

    def gradient(apply):
        return jax.jit(jax.grad(lambda p, x: jnp.vdot(weights, apply(p, x)[0]) / 64))(params, images)

    expected = gradient(lambda p, x: plain.apply({"params": p}, x))
    for copies in (1, 2):
        c.devices.data = copies
        mesh = towers.make_mesh(c.devices, 1, 64)
        found = gradient(towers.split(plain, mesh))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"layers": (("conv1", "conv", 32, 5),)}, "model.layers"),
        ({"layers": (("conv1", "blur"), ("fc10", "dense", 0, 0.1))}, "model.layers"),
        ({"layers": (("relu1", "relu"), ("fc10", "dense", 0, 0.1))}, "must begin with a layer with weights"),
        ({"layers": (("a", "conv", 4, 5, 0.1), ("a", "relu"), ("fc10", "dense", 0, 0.1))}, "names a twice"),
        ({"layers": (("fc10", "dense", 11, 0.1),)}, "must give the last layer 0 units"),
        ({"layers": (("fc1", "dense", 0, 0.1), ("fc2", "dense", 0, 0.1))}, "must give the last layer 0 units"),
        (
            {"layers": (("params", "conv", 4, 3, 0.1), ("fc10", "dense", 0, 0.1))},
            "must not name a layer, as params, ids, ",
        ),
        (
            {"layers": (("labels", "dense", 4, 0.1), ("fc10", "dense", 0, 0.1))},
            "model.layers is .labels. and must not name a layer",
        ),
        ({"layers": (("a", "local", 4, 2, 0.1), ("fc10", "dense", 0, 0.1))}, "must be odd"),
        (
            {"layers": (("fc1", "dense", 9, 0.1), ("pool", "max_pool"), ("fc2", "dense", 0, 0.1))},
            "model.layers is 'pool' and needs maps, and follows a dense layer",
        ),
        ({"dropout": 0.5}, "model.dropout is 0.5 and has no effect on a network of model.layers: leave it at 0.0"),
        ({"fc_widths": (64, 64)}, "model.fc_widths is .* has no effect"),
        ({"towers": 2}, "must be 1 for a network of model.layers"),
        ({"pool_stride": 4}, "must be at most model.pool_size"),
    ],
)
def test_wrong_chains_are_refused(fields, says):
    c = preset("cifar10_80sec")
    c.model.update(fields)
    with pytest.raises(UserError, match=says):
        check(c)


def test_a_decay_for_no_layer_is_refused():
    c = preset("cifar10_80sec")
    c.optimizer.layer_decays = (("fc6", 0.1),)
    with pytest.raises(UserError, match="layer_decays is 'fc6' and must name layers out of conv1, "):
        check(c)


# --- Their sweeps -----------------------------------------------------------------------------------------------------


def changed(sweep, name):
    """The base of a sweep, and with the change of a cell."""
    base = sweep.get_config()
    other = base.copy_and_resolve_references()
    other.update_from_flattened_dict(sweep.ABLATIONS[name].fields(base))
    check(other)
    return base, other


@pytest.mark.parametrize("name", cifar10.ABLATIONS)
def test_a_cell_of_the_four_networks_is_the_preset(name):
    _, other = changed(cifar10, name)
    other.name = name
    assert fields(other) == fields(preset(name))


def test_without_its_norms_the_11_percent_network_has_the_same_parameters():
    base, other = changed(cifar10_norm, "norm_off")
    assert [entry for entry in base.model.layers if entry not in other.model.layers] == [
        ("norm1", "lrn"), ("norm2", "lrn"),
    ]  # fmt: skip
    assert shapes(base.model, 24) == shapes(other.model, 24)


def test_figure_1_compares_nothing_but_the_nonlinearity_and_its_rate():
    base, other = changed(figure1, "tanh")
    differ = {field for field, value in fields(base).items() if value != fields(other)[field]}
    assert differ <= {"model.layers", "optimizer.learning_rate", "epochs"}
    kinds = [[kind for _, kind, *_ in c.model.layers] for c in (base, other)]
    assert kinds[0].count("relu") == 3 and kinds[1] == ["tanh" if kind == "relu" else kind for kind in kinds[0]]
    assert base.optimizer.weight_decay == 0 and not base.optimizer.layer_decays  # section 3.1: no regularization
    tanh = figure1.get_config("tanh")
    tanh.name = other.name
    assert fields(tanh) == fields(other)


# --- Their layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, size, stride", [(32, 3, 2), (15, 3, 2), (24, 3, 2), (7, 4, 3), (5, 2, 2), (9, 3, 3)])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pools_that_round_up(side, size, stride, kind):
    """Against PyTorch, and its gradient."""
    x = np.random.default_rng(0).normal(0, 1, (2, side, side, 3)).astype(np.float32)
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    if kind == "max":
        ours = lambda x: layers.max_pool(x, size=size, stride=stride, ceil=True)  # noqa: E731
        expected = functional.max_pool2d(theirs, size, stride, ceil_mode=True)
    else:
        ours = lambda x: layers.average_pool_windows(x, size=size, stride=stride)  # noqa: E731
        expected = functional.avg_pool2d(theirs, size, stride, ceil_mode=True, count_include_pad=False)
    y, back = jax.vjp(ours, x)
    g = np.random.default_rng(1).normal(0, 1, y.shape).astype(np.float32)
    expected.backward(torch.tensor(g).permute(0, 3, 1, 2))
    np.testing.assert_allclose(y, expected.detach().permute(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(back(g)[0], theirs.grad.permute(0, 2, 3, 1), atol=1e-5)


def test_a_local_layer_whose_kernels_are_equal_is_a_convolution():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 5, 6, 3)).astype(np.float32)
    kernel = rng.normal(0, 1, (3, 3, 3, 4)).astype(np.float32)
    everywhere = np.broadcast_to(kernel.reshape(1, 1, 27, 4), (5, 6, 27, 4))
    expected = layers.convolution(x, kernel, stride=1, padding=(1, 1), groups=1)
    np.testing.assert_allclose(layers.local(x, everywhere, size=3), expected, atol=1e-5)


def test_a_local_kernel_sees_its_own_place_alone():
    x = jnp.ones((1, 4, 4, 2))
    gradient = jax.grad(lambda k: layers.local(x, k, size=3)[0, 1, 2, 0])(jnp.ones((4, 4, 18, 3)))
    touched = np.argwhere(np.asarray(gradient).any(axis=(2, 3)))
    assert touched.tolist() == [[1, 2]]


# --- A run of one -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(photos, tmp_path_factory):
    """The config of a short run of a narrow chain of every kind of layer, and its workdir."""
    c = preset("cifar10_11pct")
    c.name, c.batch_size, c.epochs = "chain", 16, 2
    c.model.num_classes = 3
    c.model.layers = (
        ("conv1", "conv", 6, 5, 0.003), ("tanh1", "tanh"), ("pool1", "max_pool"), ("norm1", "lrn"),
        ("conv2", "conv", 4, 4, 0.1), ("relu2", "relu"), ("norm2", "spatial_norm"), ("pool2", "average_pool"),
        ("local3", "local", 4, 3, 0.1), ("relu3", "relu"), ("fc4", "dense", 8, 0.1), ("fc5", "dense", 0, 0.1),
    )  # fmt: skip
    c.optimizer.layer_decays = (("fc5", 0.1),)
    c.optimizer.drop_epochs, c.optimizer.bias_rule = (1,), "weights"
    c.data.name, c.data.eval_split = str(photos), "validation"
    c.data.prepared_dir = str(tmp_path_factory.mktemp("prepared"))
    c.log_every_steps = 2
    workdir = tmp_path_factory.mktemp("runs") / "chain"
    assert main.run(c, workdir) == 0
    return c, workdir


def test_a_run_is_evaluated_and_its_layers_are_read(chain):
    _, workdir = chain
    ten = evaluate_runs([str(workdir)], views=10, split="validation", which="latest")
    run = load_run(workdir, "latest")
    logits, out = run(images_for(run, "validation").images()[:4])
    assert ten["images"] == 33 and out["local3"].shape == (4, 6, 6, 4) and logits.shape == (4, 3)
    last = [r for r in read_metrics(workdir / "metrics.jsonl") if r.get("views") == 10][-1]
    assert ten["top1_error"] == pytest.approx(last["top1_error"])
    assert (workdir / "kernels.png").exists()
    assert retrieve.last_hidden(run) == "fc4"


def test_another_run_starts_from_its_parameters(chain, tmp_path):
    c, workdir = chain
    c = c.copy_and_resolve_references()
    c.start.workdir, c.start.fresh, c.start.learned, c.epochs = str(workdir), ("fc5",), ("fc4",), 1
    assert main.run(c, tmp_path / "fine") == 0
    before, after = load_run(workdir).params, load_run(tmp_path / "fine").params
    same = {layer for layer in before if (before[layer]["kernel"] == after[layer]["kernel"]).all()}
    assert same == {"conv1", "conv2", "local3"}


@pytest.mark.parametrize("old, new", [("tanh", "relu"), ("max_pool", "average_pool"), ("lrn", "spatial_norm")])
def test_another_function_of_its_parameters_is_refused(chain, old, new):
    """One with another kind of layer anywhere; initial values and the widths of fresh layers may differ."""
    c, workdir = chain
    c = c.copy_and_resolve_references()
    c.start.workdir, c.start.fresh = str(workdir), ("fc4", "fc5")
    changed = [(*e[:2], 9, 0.5) if e[0] == "fc4" else (*e[:-1], 0.7) if e[0] == "conv1" else e for e in c.model.layers]
    c.model.layers = tuple(changed)
    finetune.refuse_other_function(c)
    c.model.layers = tuple((name, new if kind == old else kind, *rest) for name, kind, *rest in changed)
    with pytest.raises(UserError, match=r"another function of its parameters \(model.layers: "):
        finetune.refuse_other_function(c)


def test_a_first_layer_of_any_name_and_kind_is_drawn_or_not(chain, tmp_path):
    """Its kernels, if it has kernels over colours; asked for by name, a net without any says so."""
    _, workdir = chain
    run = load_run(workdir, "latest")
    c = run.config.copy_and_resolve_references()
    for name, kernel, there in (("a", np.zeros((5, 5, 3, 6)), True), ("a", np.zeros((3072, 6)), False)):
        c.model["layers"] = [[name, "conv", 6, 5, 0.003], *c.model["layers"][1:]]
        other = dataclasses.replace(run, config=c, params={name: {"kernel": kernel.astype(np.float32)}})
        assert set(figures.draw(other, None, ["kernels"], tmp_path)) == ({"conv1 kernels"} if there else set())
    with pytest.raises(UserError, match="no convolution and has no kernels to draw"):
        figures._possible(other, ["kernels"], None, asked=True)


def test_what_only_alexnet_can_do_is_refused_in_one_line(chain, tmp_path):
    _, workdir = chain
    with pytest.raises(UserError, match="is no AlexNet, and only AlexNet slides"):
        evaluate_runs([str(workdir)], views=1, split="validation", dense=0)
    with pytest.raises(UserError, match="is no AlexNet but a chain of layers"):
        verbs.run(["convert", "--workdir", str(workdir), "--to", "onnx", "--out", str(tmp_path / "x.onnx")])
    verbs.run(["convert", "--workdir", str(workdir), "--to", "stablehlo", "--out", str(tmp_path / "x.stablehlo")])
