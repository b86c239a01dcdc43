"""A network split over devices is the same network, and its towers exchange maps only where the config says."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint, optimizer, towers
from alexnet_jax.analysis import cost
from alexnet_jax.data import augment
from alexnet_jax.data.batches import resident_batches
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.train import program
from configs import paper

SIDE, BATCH = 64, 8
MESHES = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 2))  # data x tower


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
    """0 tower devices means one per tower if there are enough, otherwise one."""
    mesh = mesh_of(data, tower)
    assert dict(mesh.shape) == {"data": shape[0], "tower": shape[1]}


@pytest.mark.parametrize(
    "data, tower, count, batch, fields",
    [
        (8, 2, 2, 8, ("devices.data", "devices.tower", "JAX_NUM_CPU_DEVICES=16")),  # 16 of 8 devices
        (16, 0, 2, 16, ("devices.data", "devices.tower", "JAX_NUM_CPU_DEVICES=16")),
        (1, 3, 2, 8, ("devices.tower", "model.towers")),  # not a divisor
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


def test_a_compiler_that_computes_wrong_sums_is_refused(monkeypatch):
    """On CPU, where it does. GPUs and TPUs have another compiler."""
    monkeypatch.setattr("jaxlib.__version__", "0.10.2")
    with pytest.raises(UserError, match=r"jaxlib 0\.10\.2 computes wrong sums on CPU .*: pip install"):
        mesh_of(1, 1)
    gpus = [SimpleNamespace(platform="gpu")]
    monkeypatch.setattr(towers, "_neighbours", lambda devices, shape: np.array(jax.devices()[:1]).reshape(shape))
    towers.make_mesh(ConfigDict({"data": 1, "tower": 1}), 2, BATCH, gpus)


def test_cores_of_a_chip_stay_together_and_chips_are_placed_by_jax(monkeypatch):
    cores = [SimpleNamespace(coords=(i // 2, 0, 0), id=i) for i in range(4)]
    assert [[d.id for d in row] for row in towers._neighbours(cores, (2, 2))] == [[0, 1], [2, 3]]
    asked = []
    monkeypatch.setattr(towers.mesh_utils, "create_device_mesh", lambda shape, devices, **_: asked.append(shape))
    towers._neighbours([SimpleNamespace(coords=(i, 0, 0)) for i in range(4)], (2, 2))
    assert asked == [(2, 2)]


def test_processes_must_use_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"set --config\.devices\.data=4"):
        mesh_of(2, 2)
    assert dict(mesh_of(4, 2).shape) == {"data": 4, "tower": 2}
    with pytest.raises(UserError, match=r"set --config\.devices\.tower=1 and --config\.devices\.data=3"):
        towers.make_mesh(ConfigDict({"data": 1, "tower": 2}), 2, BATCH, jax.devices()[:3])


@pytest.mark.parametrize(
    "processes, mine, part",
    [
        ([[0, 0], [0, 0], [1, 1], [1, 1]], 1, (1, 2)),  # two copies each
        ([[0, 0], [1, 1], [2, 2]], 2, (2, 3)),
        ([[0, 1]], 1, (0, 1)),  # a tower each: both are fed all images
        ([[0, 1], [2, 3]], 3, (1, 2)),
        ([[0, 0], [1, 1], [1, 1]], 1, None),  # one copy and two
        ([[0, 0], [1, 1], [1, 1]], 0, None),
    ],
)
def test_each_process_feeds_its_part(monkeypatch, processes, mine, part):
    mesh = SimpleNamespace(
        devices=np.array([[SimpleNamespace(process_index=i) for i in row] for row in processes]),
        shape={"data": len(processes), "tower": 2},
    )
    monkeypatch.setattr(jax, "process_index", lambda: mine)
    if part:
        assert towers.share(mesh) == part
        return
    with pytest.raises(UserError, match="give each process as many devices"):
        towers.share(mesh)


# The same function.


def check_same(actual, expected):
    """Within 1e-5 of each array's largest value: a split batch or tower only sums float32 in another order."""

    def one(path, a, b):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(one, actual, jax.tree.map(np.asarray, expected))


FAMILY = {
    "conv_widths": (16, 16, 12, 12, 8, 12), "conv_sizes": (11, 5, 3, 3, 3, 3), "conv_strides": (4, 1, 1, 1, 1, 1),
    "exchange": ("conv3", "conv6", "fc6", "fc8"), "init_std__conv6": 0.1,
    "init_bias__conv6": 0.0, "average_pool": 2, "dropout_before": ("fc6", "fc7"), "lrn__per_tower": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, meshes",
    [
        pytest.param({}, MESHES, id="paper"),
        pytest.param(
            FAMILY, ((1, 2), (2, 2)), id="what the family adds", marks=(pytest.mark.as_shipped, pytest.mark.slow)
        ),
    ],
)
def test_split_network_is_the_network(narrow, draw, monkeypatch, changes, meshes):
    """Activations, logits and gradients on every mesh, with dropout on, are those of one device.

    The split network normalizes and pools one image at a time, as the paper's does a few at a time on CPU.
    """
    monkeypatch.setattr(towers, "CHUNK", 1)
    m = narrow(**changes)
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
    for shape in ((1, 1), *meshes):
        mesh = mesh_of(*shape)
        actual = values(towers.split(model, mesh))(*placed(params, images, mesh), key)
        assert len(actual[0][1]["conv2"].sharding.device_set) == mesh.devices.size
        check_same(actual, expected)


def test_dense_network_splits_too(narrow, draw):
    """Maps of classes, of towers that also have their own fc7."""
    m = narrow(exchange=("conv3", "fc6", "fc8"))
    params, _ = draw(m, BATCH, SIDE)
    images = draw(m, BATCH, 128)[1]
    net, mesh = AlexNet(m, dense=fc6_side(m, params)), mesh_of(2, 2)
    expected = jax.jit(lambda p, x: net.apply({"params": p}, x))(params, images)
    assert expected[0].shape == (BATCH, 3, 3, m.num_classes)
    check_same(jax.jit(towers.split(net, mesh))(*placed(params, images, mesh)), expected)


@pytest.fixture
def config(narrow):
    """A narrow network that learns in twenty steps, with dropout and every augmentation."""
    c = paper.get_config()
    c.model, c.batch_size, c.epochs = narrow(), 16, 5
    c.data.size, c.data.crop = 72, SIDE
    for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        c.model.init_std[layer], c.model.init_bias[layer] = 0.12 if layer[0] == "c" else 0.25, 0.0
    return c


def loss_curve(config, mesh, steps):
    """(losses, the state after two steps, the last state) of a run on 64 random images whose label is their colour."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, 64).astype(np.int32)
    tints = rng.integers(-60, 60, (7, 3))
    images = (rng.normal(128, 25, (64, 72, 72, 3)) + tints[labels][:, None, None]).clip(0, 255).astype(np.uint8)
    statistics = {
        "mean": images.mean(0, dtype=np.float32), "channel_mean": images.mean((0, 1, 2), dtype=np.float32),
        "stdevs": np.float32([20, 30, 60]), "vectors": np.eye(3, dtype=np.float32),
    }  # fmt: skip
    net, whole = program(config, mesh), towers.replicated(mesh)
    state = net.new_state()
    constants = jax.device_put({"statistics": statistics, "images": images, "key": jax.random.key(1)}, whole)
    epoch = {
        "rates": optimizer.rates(config.optimizer, state["params"], config.optimizer.learning_rate, 0),
        "noise": np.float32(augment.noise_strength(config.data, 0)),
    }
    losses = []
    for batch in resident_batches(labels, config.data, seed=0, batch_size=16, first_step=0, last_step=steps):
        state, sums = net.step(state, jax.device_put(batch, towers.batch_sharding(mesh)), epoch, constants)
        losses.append(float(sums["loss"]) / 16)
        if len(losses) == 2:
            early = jax.tree.map(jnp.copy, state)  # the next step donates the state itself
    return losses, early, state


@pytest.fixture(scope="module")
def curves():
    """loss_curve of `config` as it is, by mesh: each takes a compilation, and two tests use them."""
    return {}


def curve(curves, config, mesh):
    if mesh not in curves:
        curves[mesh] = loss_curve(config, mesh_of(*mesh), 20)
    return curves[mesh]


@pytest.mark.slow
def test_every_mesh_trains_the_same(config, curves):
    """Twenty steps with dropout, crops, flips and colour noise: the loss curve of one device, whatever the mesh.

    A mesh only sums float32 in another order: 1e-7 in a step, which training amplifies to some 1e-6 in twenty. A wrong
    mask, row or factor shows in the first steps, at 1e-2.
    """
    expected = curve(curves, config, (1, 1))[0]
    assert np.mean(expected[-4:]) < 0.95 * np.mean(expected[:4])  # it learns: the curves are not flat
    for mesh in ((1, 2), (2, 1), (4, 2)):
        np.testing.assert_allclose(curve(curves, config, mesh)[0], expected, rtol=3e-5, err_msg=str(mesh))


@pytest.mark.slow
def test_bfloat16_learns_on_one_device_and_on_two(config):
    """The curves differ only by rounding, which twenty steps amplify. Parameters stay float32."""
    config.model.dtype = "bfloat16"
    (one, _, state), (two, _, other) = (loss_curve(config, mesh_of(*mesh), 20) for mesh in ((1, 1), (1, 2)))
    assert {a.dtype for a in jax.tree.leaves((state["params"], other["velocity"]))} == {np.dtype(np.float32)}
    assert two[0] == pytest.approx(one[0], rel=0.01)
    assert np.mean(two[-8:]) == pytest.approx(np.mean(one[-8:]), rel=0.1)
    for losses in (one, two):
        assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


@pytest.mark.slow
def test_a_checkpoint_of_any_mesh_restores_on_any_other(config, curves, tmp_path):
    for mesh in ((4, 2), (1, 1)):
        state = curve(curves, config, mesh)[1]
        manager = checkpoint.manager(tmp_path / str(mesh))
        checkpoint.save(manager, 2, state, {})
        checkpoint.finish(manager)
        for other in MESHES:
            where = program(config, mesh_of(*other)).state
            step, found, _ = checkpoint.restore(checkpoint.manager(tmp_path / str(mesh)), where)
            assert step == int(found["step"]) == 2
            jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, state))
            assert jax.tree.map(lambda a: a.sharding, found) == jax.tree.map(lambda s: s.sharding, where)


# The split is real.


def collectives(text):
    """(operation, name of the module it belongs to) of each collective in a compiled program's text."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    lines = [line for line in text.splitlines() if re.search(rf" ({kinds})(-start)?\(", line)]
    return [(re.search(rf" ({kinds})", line)[1], re.search(r'op_name="([^"]*)"', line)[1]) for line in lines]


@pytest.mark.as_shipped
@pytest.mark.parametrize(
    "changes, layers",
    [
        ({}, ["conv3", "fc6", "fc7", "fc8"]),
        ({"exchange": ("conv4", "fc6", "fc8")}, ["conv4", "fc6", "fc8"]),
        (
            {"lrn__per_tower": False},
            ["norm1", "norm2", "conv3", "fc6", "fc7", "fc8"],
        ),  # norms across towers exchange too
    ],
    ids=["paper", "exchange", "lrn across towers"],
)
def test_devices_exchange_at_the_configs_layers_alone(narrow, draw, changes, layers):
    """The compiled forward pass has one all-gather for each, no other collective, and the same results."""
    m = narrow(**changes)
    model, (params, images) = AlexNet(m), draw(m, BATCH, SIDE)
    mesh = mesh_of(1, 2)
    inputs = placed(params, images, mesh)
    forward = jax.jit(towers.split(model, mesh)).lower(*inputs).compile()
    found = collectives(forward.as_text())
    assert {kind for kind, _ in found} == {"all-gather"}
    names = [name.split("AlexNet/")[1].split("/")[0] for _, name in found]
    assert sorted(names) == sorted(layers)
    check_same(forward(*inputs), jax.jit(lambda p, x: model.apply({"params": p}, x))(params, images))


def step_collectives(config, copies):
    """Of the compiled training step: (operation, layer) of those between towers, and the operations between copies."""
    text = cost.compile_step(config, mesh_of(copies, 2)).as_text()
    pair = re.escape("{{" + "},{".join(f"{2 * i},{2 * i + 1}" for i in range(copies)) + "}}")
    lines = text.splitlines()
    between_towers = "\n".join(line for line in lines if re.search(rf"replica_groups={pair}", line))
    between_copies = "\n".join(line for line in lines if not re.search(rf"replica_groups={pair}", line))
    named = [(kind, re.findall(r"AlexNet/(\w+)/", name)) for kind, name in collectives(between_towers)]
    return sorted((kind, *layer[:1]) for kind, layer in named), [kind for kind, _ in collectives(between_copies)]


GATHERS = [("all-gather", layer) for layer in ("conv3", "fc6", "fc7", "fc8")]
SCATTERS = [("reduce-scatter", layer) for layer in ("conv3", "fc6", "fc7")]  # fc8's way back is a slice


@pytest.mark.as_shipped
@pytest.mark.parametrize("copies", [1, 2])
def test_the_training_step_adds_only_the_way_back(config, copies):
    """The transposes of the exchanges between the towers, and one sum of everything over the copies of the network."""
    between_towers, between_copies = step_collectives(config, copies)
    assert between_towers == GATHERS + SCATTERS
    assert between_copies == ["all-reduce"] * (copies - 1)


def test_norms_across_towers_would_show(config):
    config.model.lrn.per_tower = False
    assert step_collectives(config, 1)[0] != GATHERS + SCATTERS


def test_annotated_shardings_would_show(narrow, draw):
    """The split as it is often imitated: the plain network with sharded arrays, and the rest left to XLA."""
    m = narrow()
    model, (params, images) = AlexNet(m), draw(m, BATCH, SIDE)
    inputs = placed(params, images, mesh_of(1, 2))
    fake = jax.jit(lambda p, x: model.apply({"params": p}, x)[0]).lower(*inputs).compile()
    found = collectives(fake.as_text())
    assert len(found) > 4
    layers = {layer for _, name in found for layer in re.findall(r"AlexNet/(\w+)/", name)}
    assert layers & {"conv2", "conv4", "conv5"}  # where towers must not meet


@pytest.mark.parametrize("algorithm", ["momentum", "adam"])
def test_only_fc8_by_its_exact_name_is_whole_on_each_device(config, algorithm):
    """In the parameters and in every optimizer's state; names that contain fc8 are split like any other."""
    config.optimizer.algorithm = algorithm
    layer = {"kernel": np.zeros((2, 3, 4), np.float32), "bias": np.zeros(4, np.float32)}
    params = {"fc8": layer, "fc80": layer, "my_fc8": layer}
    tree = {"params": params, "velocity": optimizer.update_rule(config.optimizer).init(params)}
    found = {"fc8": set(), "fc80": set(), "my_fc8": set()}
    for path, spec in jax.tree.leaves_with_path(towers.specs(tree), is_leaf=lambda s: isinstance(s, P)):
        [name] = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)} & set(found)
        found[name].add(spec)
    split = {P(None, None, "tower"), P("tower")} | ({P()} if algorithm == "adam" else set())  # Adam counts its steps
    assert found == {"fc8": {P()}, "fc80": split, "my_fc8": split}


def test_each_device_holds_its_towers_kernels(narrow, draw):
    """Each of two devices stores half of every layer, the first device the first tower, and all of fc8."""
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
