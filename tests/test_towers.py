"""A network split over devices is the same network, its towers meet where the config says and nowhere else."""

import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import UserError, towers
from alexnet_jax.model import AlexNet

SIDE, BATCH = 64, 8


def mesh_of(data, tower):
    return towers.make_mesh(ConfigDict({"data": data, "tower": tower}), towers=2, batch_size=BATCH)


def placed(params, images, mesh):
    return jax.device_put((params, images), (towers.shardings(params, mesh), towers.batch_sharding(mesh)))


# The mesh.


@pytest.mark.parametrize(
    "data, tower, shape",
    [(1, 0, (1, 2)), (4, 0, (4, 2)), (8, 0, (8, 1)), (2, 1, (2, 1)), (2, 2, (2, 2))],
)
def test_mesh(data, tower, shape):
    """With 0 tower devices there is one per tower if they are there, else one."""
    mesh = mesh_of(data, tower)
    assert dict(mesh.shape) == {"data": shape[0], "tower": shape[1]}


@pytest.mark.parametrize(
    "data, tower, count, batch, fields",
    [
        (8, 2, 2, 8, ("devices.data", "devices.tower", "JAX_NUM_CPU_DEVICES=16")),  # 16 of 8 devices
        (16, 0, 2, 16, ("devices.data", "devices.tower", "JAX_NUM_CPU_DEVICES=16")),
        (1, 3, 2, 8, ("devices.tower", "model.towers")),  # no divisor
        (1, 2, 1, 8, ("devices.tower", "model.towers")),
        (0, 2, 2, 8, ("devices.data",)),
        (1, -1, 2, 8, ("devices.tower",)),
        (4, 2, 2, 6, ("batch_size", "devices.data")),
    ],
)
def test_mesh_that_cannot_be(data, tower, count, batch, fields):
    """One line for the user, with the fields to change."""
    with pytest.raises(UserError) as error:
        towers.make_mesh(ConfigDict({"data": data, "tower": tower}), count, batch)
    assert "\n" not in str(error.value)
    for field in fields:
        assert field in str(error.value)


# The same function.


def check_same(actual, expected):
    """Within 1e-5 of each array's largest value: a split batch or tower only sums float32 in another order."""

    def one(path, a, b):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(one, actual, jax.tree.map(np.asarray, expected))


def test_split_network_is_the_network(narrow, draw):
    """Activations, logits and gradients on every mesh, with dropout on, are those of one device."""
    m = narrow()
    model, (params, images) = AlexNet(m), draw(m, BATCH, SIDE)
    weights = np.random.default_rng(1).normal(size=(BATCH, m.num_classes)).astype(np.float32)

    def values(apply):
        def loss(params, images, key):
            logits, out = apply(params, images, key)
            return (weights * logits).sum(), out | {"logits": logits}

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    plain = values(lambda p, x, key: model.apply({"params": p}, x, train=True, rngs={"dropout": key}))
    key, other = jax.random.split(jax.random.key(7))
    expected = plain(params, images, key)
    assert (plain(params, images, other)[0][1]["logits"] != expected[0][1]["logits"]).all()  # dropout is on
    for data, tower in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 2)):
        mesh = mesh_of(data, tower)
        actual = values(towers.split(model, mesh))(*placed(params, images, mesh), key)
        assert len(actual[0][1]["conv2"].sharding.device_set) == data * tower
        check_same(actual, expected)


# The split is real.


def collectives(text):
    """(operation, name of what it serves) of each collective in a compiled program's text."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    lines = [line for line in text.splitlines() if re.search(rf" ({kinds})(-start)?\(", line)]
    return [(re.search(rf" ({kinds})", line)[1], re.search(r'op_name="([^"]*)"', line)[1]) for line in lines]


@pytest.mark.parametrize(
    "changes, layers",
    [
        ({}, ["conv3", "fc6", "fc7", "fc8"]),
        ({"exchange": ("conv4", "fc6", "fc8")}, ["conv4", "fc6", "fc8"]),
        ({"lrn__per_tower": False}, ["norm", "norm", "conv3", "fc6", "fc7", "fc8"]),  # norms across towers exchange too
    ],
    ids=["paper", "exchange", "lrn across towers"],
)
def test_devices_exchange_at_the_configs_layers_alone(narrow, draw, changes, layers):
    """The compiled forward pass holds one all-gather for each, no other collective, and computes the same."""
    m = narrow(**changes)
    model, (params, images) = AlexNet(m), draw(m, BATCH, SIDE)
    mesh = mesh_of(1, 2)
    inputs = placed(params, images, mesh)
    forward = jax.jit(towers.split(model, mesh)).lower(*inputs).compile()
    found = collectives(forward.as_text())
    assert {kind for kind, _ in found} == {"all-gather"}
    names = [name.split("AlexNet/")[1].split("/")[0] for _, name in found]  # the norms, no modules, have no name
    assert sorted(names) == sorted("all_gather" if name == "norm" else name for name in layers)
    check_same(forward(*inputs), jax.jit(lambda p, x: model.apply({"params": p}, x))(params, images))


def test_each_device_holds_its_towers_kernels(narrow, draw):
    """Of every layer a device of two stores half, the first device the first tower; of fc8 all."""
    m = narrow()
    params, images = draw(m, BATCH, SIDE)
    state, images = placed({"params": params, "velocity": params, "step": np.int32(0)}, images, mesh_of(2, 2))
    for tree in (state["params"], state["velocity"]):
        for name, p in tree.items():
            for kind, whole in p.items():
                for shard in whole.addressable_shards:
                    tower = shard.device.id % 2
                    expected = params[name][kind]
                    if name != "fc8":
                        expected = np.split(expected, 2, axis=-1)[tower]
                    np.testing.assert_array_equal(shard.data, expected)
    assert state["params"]["conv2"]["kernel"].addressable_shards[0].data.shape == (5, 5, 8, 8)
    assert state["step"].sharding.is_fully_replicated
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {BATCH // 2}
