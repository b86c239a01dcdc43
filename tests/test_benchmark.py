"""The benchmark: turns, statistics, the least work; PyTorch's side computes the same as ours; what it refuses."""

import contextlib
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from helpers.verbs import run
from ml_collections import ConfigDict

from alexnet_jax import UserError, inference, optimizer, towers
from alexnet_jax.model import AlexNet
from alexnet_jax.runs.run import Run
from alexnet_jax.train import program
from alexnet_jax.weights.layouts import PYTORCH, fc6_maps, from_ours
from configs import paper
from experiments.benchmark import command, limits, machine, peer, scaling, steps, table, turns, worker

# --- Turns ------------------------------------------------------------------------------------------------------------


def fake(name, log, seconds, idle=0.0):
    """A worker that answers at once: its nth request of steps takes seconds[n] each."""
    times = iter(seconds)

    def ask(request):
        log.append((name, request["steps"]))
        return {"seconds": [next(times)] * request["steps"], "idle": idle}

    return ask


def test_workers_take_turns_of_the_same_length(capsys):
    log = []
    asks = {"ours": fake("ours", log, [0.5, 1, 2, 3]), "torch": fake("torch", log, [0.1, 2, 3, 9])}
    found = turns.take_turns(asks, 3, least=2.0, rest=0)
    warm_up, rest = log[:2], log[2:]
    assert warm_up == [("ours", 2), ("torch", 2)]
    ours, theirs = ("ours", 4), ("torch", 20)  # steps that make two seconds
    assert rest == [ours, theirs, theirs, ours, ours, theirs]  # so that drift favours neither
    assert found == {"ours": [1, 2, 3], "torch": [2, 3, 9]}
    assert turns.ratios(found["ours"], found["torch"]) == {"median": 2, "lowest": 1.5, "highest": 3}
    assert turns.steps_in_a_turn(60.0) == turns.STEPS
    assert capsys.readouterr().err == ""


def test_warns_if_a_process_computes_out_of_turn(capsys):
    asks = {name: fake(name, [], [1, 1], idle) for name, idle in (("ours", 0.01), ("torch", 1.5))}
    turns.take_turns(asks, 1, rest=0)
    assert "used 1.50 cores while it waited" in capsys.readouterr().err


@pytest.fixture
def module(tmp_path):
    """module(code): a worker whose step is `code`; returns its Side and the variables that let it be found."""

    def make(code):
        text = "from experiments.benchmark.worker import Work, serve\nimport os\nfrom alexnet_jax import UserError\n"
        text += f"def step():\n    {code}\nserve(lambda request: Work(step, lambda: request))\n"
        (tmp_path / "fake_worker.py").write_text(text)
        side = turns.Side("fake_worker", {"what": "copy", "bytes": 8})
        return side, {"PYTHONPATH": f"{tmp_path}:{turns.ROOT}"}

    return make


@pytest.mark.parametrize("queued", [False, True])
def test_queued_steps_are_waited_for_once(monkeypatch, queued):
    """A clock that only waiting moves, by a second for each step that was started."""
    clock, started = [0.0], []

    def wait():
        clock[0] += len(started)
        waits.append(len(started))
        started.clear()

    waits = []
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock[0])
    work = worker.Work(lambda: started.append(1), dict, wait, queued)
    assert worker.timed(work, 3) == [1.0] * 3 and waits == ([3] if queued else [1, 1, 1])


def test_a_worker_answers_and_ends(module):
    with turns.started(*module("print('a library says something')")) as ask:
        answer = ask({"steps": 4})
        assert len(answer["seconds"]) == 4 and 0 <= answer["idle"] < 1
        about = ask({"about": True})
        assert about["bytes"] == 8 and 1e6 < about["peak_bytes"] < 1e9


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise UserError('lower the batch')", "fake_worker cannot measure copy: lower the batch"),
        ("raise ValueError('odd')", "ValueError: odd"),
        ("os.kill(os.getpid(), 9)", "it was killed.*lower --batch"),
        ("os.write(2, b'begin\\nlast words\\n'); os._exit(3)", r"status 3 \(last words\)"),
    ],
)
def test_a_worker_that_dies_says_why_in_one_line(module, code, says):
    with pytest.raises(UserError, match=says) as error, turns.started(*module(code)):
        pass
    assert "\n" not in str(error.value)


# --- The least work ---------------------------------------------------------------------------------------------------


def one_device(batch):
    return towers.make_mesh(ConfigDict({"data": 1, "tower": 1}), 2, batch)


def test_operations_and_bytes_of_the_papers_network():
    c = steps.prepared(paper.get_config(), 64, "float32")
    macs, conv1, parameters = 724_406_816, 105_415_200, 60_965_224
    outputs = 290_400 + 186_624 + 2 * 64_896 + 43_264 + 4096 + 4096 + 1000  # of the layers, see figure 2
    pools = 27**2 * 96 + 13**2 * 256 + 6**2 * 256
    forward, train, ten = (limits.cost(c, one_device(64), what) for what in ("forward", "train", "ten-view"))
    assert forward.operations == 64 * 2 * macs
    assert train.operations == 64 * 2 * (3 * macs - conv1)
    assert ten.operations == 10 * forward.operations
    maps = 64 * 4 * (outputs + pools)
    assert forward.bytes == 4 * parameters + 2 * maps + 64 * 224**2 * 3 * 4
    assert train.bytes == 8 * 4 * parameters + 4 * maps + 64 * 224**2 * 3
    rates = {"operations_per_second": {"float32": 2e12}, "bytes_per_second": 1e9}
    limit = machine.limit(limits.Cost(10**12, 2 * 10**9), rates, "float32")
    assert limit == {"arithmetic": 0.5, "memory": 2.0, "seconds": 2.0, "sum": 2.5}


def test_operations_and_bytes_of_a_chain():
    """cifar10_11pct's: nonlinearities and norms are computed with their neighbours, as AlexNet's are."""
    c = steps.prepared(importlib.import_module("configs.cifar10_11pct").get_config(), 2, "float32")
    conv1 = 24**2 * 64 * 75
    others = 12**2 * 64 * 1600 + 6**2 * (64 + 32) * 576 + 6**2 * 32 * 10
    maps = (24**2 + 2 * 12**2 + 2 * 6**2) * 64 + 6**2 * 32 + 10  # conv1, pool1, conv2, pool2, local3, local4, fc10
    train = limits.cost(c, towers.make_mesh(ConfigDict({"data": 1, "tower": 1}), 1, 2), "train")
    assert train.operations == 2 * 2 * (2 * conv1 + 3 * others)
    assert train.bytes == 8 * 4 * 2_112_970 + 4 * (2 * 4 * maps) + 2 * 24**2 * 3


def test_each_tower_computes_the_whole_fc8():
    c = steps.prepared(paper.get_config(), 2, "float32")
    split = towers.make_mesh(ConfigDict({"data": 1, "tower": 2}), 2, 2)
    one, two = (limits.cost(c, mesh, "forward").operations for mesh in (one_device(2), split))
    assert two - one == 2 * 2 * 4_096_000


# --- PyTorch's side ---------------------------------------------------------------------------------------------------


def narrow(name):
    """A network of the benchmark, narrow, on small images, without dropout."""
    c = steps.NETWORKS[name].get_config()
    c.batch_size = 4
    c.devices.data = c.devices.tower = 1
    c.model.conv_widths, c.model.fc_widths, c.model.num_classes = (16, 16, 12, 12, 8), (24, 20), 7
    c.model.dropout = 0.0
    c.data.crop, c.data.size = 99, 112
    c.data.color_noise, c.data.divide_by_noise = 0.1, True
    c.optimizer.weight_decay = 50.0  # else nothing of it would show beside gradients on grey levels
    return c


def draw_batch(c):
    """A batch and statistics, as NumPy arrays in our layout."""
    rng, b, d = np.random.default_rng(1), c.batch_size, c.data
    batch = {
        "image": rng.integers(0, 256, (b, d.crop, d.crop, 3), np.uint8),
        "label": rng.integers(0, 7, b).astype(np.int32),
        "offset": rng.integers(0, d.size - d.crop + 1, (b, 2)).astype(np.int32),
        "flip": np.arange(b) % 2 == 0,
        "noise": rng.normal(size=(b, 3)).astype(np.float32),
    }
    shapes = {"mean": (d.size, d.size, 3), "channel_mean": (3,), "stdevs": (3,), "vectors": (3, 3)}
    statistics = {name: rng.uniform(0, 100, shape).astype(np.float32) for name, shape in shapes.items()}
    statistics["vectors"] /= 100
    return batch, statistics


def load(net, c, params):
    """Gives a network of peer.network our parameters."""
    theirs = from_ours(params, PYTORCH, fc6_maps(c.model, params))
    named = {f"{name}.weight": layer["kernel"] for name, layer in theirs.items()}
    named |= {f"{name}.bias": layer["bias"] for name, layer in theirs.items()}
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in named.items()})
    return net.to(memory_format=torch.channels_last)


def tensors(arrays):
    """As the peer takes them: images (b, 3, h, w), channels last in memory."""
    found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: t.permute(0, 3, 1, 2) if name == "image" else t for name, t in found.items()}


def close(actual, expected, what, tolerance=1e-4):
    scale = np.abs(expected).max()
    assert actual.shape == expected.shape and scale > 0, what
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)


@pytest.mark.slow
@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("name", steps.NETWORKS)
def test_the_peer_trains_and_predicts_as_ours(draw, name, tuned):
    """Logits, loss, parameters after two steps of SGD, and ten views, from the same weights and images."""
    c = narrow(name)
    params, _ = draw(c.model, 1, c.data.crop)
    batch, statistics = draw_batch(c)
    mesh, rate = one_device(4), 1e-4
    net = load(peer.network(ConfigDict(json.loads(c.to_json())), tuned), c, params)

    images = batch["image"].astype(np.float32) - 128
    logits = jax.jit(AlexNet(c.model).apply)({"params": params}, images)[0]
    close(net(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().numpy(), logits, "logits")

    views = inference.make_forward(Run(Path(), 0, c, mesh, program(c, mesh).apply, params, statistics, []))
    prepared = np.random.default_rng(2).integers(0, 256, (2, c.data.size, c.data.size, 3), np.uint8)
    expected = views(params, statistics, prepared, views=10)[inference.LOGS]
    ten = peer.make_views(net, c, compiled=lambda function: function)
    found = ten(torch.from_numpy(prepared).permute(0, 3, 1, 2), tensors(statistics))
    close(found.detach().numpy(), expected, "ten views", 1e-3)

    net_ours = program(c, mesh)
    state = jax.tree.map(jax.numpy.asarray, net_ours.new_state() | {"params": params})
    epoch = {"rates": optimizer.rates(c.optimizer, params, rate, 0), "noise": np.float32(0.1)}
    constants = {"statistics": statistics, "key": jax.random.key(0), "images": None}
    theirs = peer.make_optimizer(net, c.optimizer, rate)
    loss_of = peer.make_loss(net, c)
    for _ in range(2):
        state, sums = net_ours.step(state, batch, epoch, constants)
        theirs.zero_grad()
        labels = {"label": torch.from_numpy(batch["label"]).long()}
        loss = loss_of(tensors(batch) | labels, tensors(statistics), torch.tensor(0.1))
        assert loss.item() == pytest.approx(float(sums["loss"]) / 4, rel=1e-4)
        loss.backward()
        theirs.step()
    ours = from_ours(state["params"], PYTORCH, fc6_maps(c.model, params))
    before = from_ours(params, PYTORCH, fc6_maps(c.model, params))
    for layer, kinds in ours.items():
        for kind, theirs_kind in (("kernel", "weight"), ("bias", "bias")):
            now = getattr(net.get_submodule(layer), theirs_kind).detach().numpy()
            close(now - before[layer][kind], kinds[kind] - before[layer][kind], f"{layer} {kind}", 1e-2)


@pytest.mark.parametrize("name", ["source", "six_conv", "cifar10_11pct"])
def test_the_peer_refuses_what_it_lacks(name):
    c = importlib.import_module(f"configs.{name}").get_config()
    with pytest.raises(UserError, match="leave --peer out"):
        peer.network(c)


# --- The command ------------------------------------------------------------------------------------------------------


def test_without_torch_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--peer torch requires PyTorch.*pip install"):
        run(command, "train", "--peer", "torch")


def test_what_cannot_be_kept_or_is_ignored_is_refused_before_it_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "compare", lambda *_: pytest.fail("measures"))
    (tmp_path / "other.json").write_text("{}")
    for words, says in (
        (["train", "--save", tmp_path / "none" / "x.json"], "there is no folder"),
        (["scaling", "--out", tmp_path / "none" / "x.png"], "there is no folder"),
        (["train", "scaling", "--save", tmp_path / "other.json"], "not a file of alexnet benchmark scaling"),
        (["train", "--config", "configs/paper.py", "--config.batch_size=32"], "has no effect: set --batch"),
        (["input", "--seconds", "1e-9"], "a number from 0.1 on"),
    ):
        with pytest.raises(UserError, match=says):
            run(command, *words)


def test_a_gpu_that_is_not_used_is_no_measurement(monkeypatch):
    """As where the CUDA plugin cannot be loaded: JAX takes the CPU, and only its standard error says so."""

    @contextlib.contextmanager
    def started(side):
        yield lambda request: {"platform": "cpu", "seconds": [1.0] * request.get("steps", 0), "idle": 0.0}

    monkeypatch.setattr(turns, "started", started)
    monkeypatch.setattr(turns.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(turns, "sees_gpus", lambda: True)
    monkeypatch.setattr(turns, "take_turns", lambda *args: {"ours": [1.0]})
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert turns.compare({"ours": None}, 1)["seconds"] == {"ours": [1.0]}
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(turns, "take_turns", None)  # it is refused before the turns
    with pytest.raises(UserError, match="there is a GPU, and the sides compute on .*cpu"):
        turns.compare({"ours": None}, 1)


@pytest.mark.parametrize("peers", [[], ["--peer", "torch"]])
def test_measures_and_ends_with_one_line_of_json(monkeypatch, capsys, tmp_path, peers):
    """With workers that answer at once: PyTorch's takes half again as long."""

    def compare(sides, count, least=0):
        seconds = {name: [1.0 if name == "ours" else 1.5] * count for name in sides}
        facts = {"platform": "cpu", "peak_bytes": 10**9, "operations": 10**12, "bytes": 10**9, "machine": {"cores": 2}}
        facts |= {"state_and_batch_bytes": 1, "temporary_bytes": 2}
        return {"seconds": seconds, "about": dict.fromkeys(sides, facts)}

    monkeypatch.setattr(turns, "compare", compare)
    path = tmp_path / "found.json"
    run(command, "image", "train", *peers, "--batch", "64", "--network", "paper,torchvision", "--save", path)
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found == json.loads(path.read_text())
    assert [(r["network"], r["what"], r["batch"]) for r in found["rows"]] == [
        ("paper", "train", 64), ("paper", "image", 1), ("torchvision", "train", 64), ("torchvision", "image", 1),
    ]  # fmt: skip
    assert found["machine"] == {"cores": 2} and found["command"].startswith("alexnet image train")
    row = found["rows"][0]
    assert row["of_limit"]["ours"] == pytest.approx(row["limit"]["seconds"])
    if peers:
        assert row["ratio"]["median"] == 1.5 and row["seconds"]["torch"]["turns"] == [1.5] * 7
    cells = [cell.strip() for cell in table.row(row).strip("|").split("|")]
    assert len(cells) == len(table.COLUMNS) and cells[:4] == ["paper", "train", "64", "64.0"]
    assert cells[5] == ("1.50 (1.50-1.50)" if peers else "")


# --- Scaling ----------------------------------------------------------------------------------------------------------


def point(seconds, operations, label="1", devices=(1, 1)):
    row = {"point": label, "batch": 8, "devices": list(devices), "seconds": seconds}
    return row | {"operations": operations, "peak_bytes": 10**9}


def test_scaling_flags_what_grows_faster_than_its_arithmetic(tmp_path):
    rows = [point(1, 10e9, "8"), point(1.5, 20e9, "16"), point(4, 40e9, "32")]
    assert scaling.growth(rows) == pytest.approx([1, 0.75, 4 / 3])
    said = [line for line in scaling.text({"batch": rows}).splitlines() if line.startswith("| batch")]
    assert ["faster" in line for line in said] == [False, False, True]
    devices = [point(1, 1e9, "1x1"), point(9, 1e9, "1x2", (1, 2)), point(2, 2e9, "2x1", (2, 1))]
    assert "faster" not in scaling.text({"devices": devices}).partition("time / arithmetic:")[0]
    pictures = [
        scaling.draw(axes, tmp_path / "a.png") for axes in ({"batch": rows}, {"batch": rows, "devices": devices})
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_scaling_keeps_the_axes_of_earlier_runs(monkeypatch, capsys, tmp_path):
    def compare(sides, count, least=0):
        facts = {"operations": 10**9, "peak_bytes": 10**9, "machine": {"cores": cores}, "platform": "cuda", "count": 2}
        facts |= {"device_peak_bytes": 5, "bytes": 10**9, "state_and_batch_bytes": 1, "temporary_bytes": 2}
        return {"seconds": {"ours": [1.0] * count}, "about": {"ours": facts}}

    cores = 2
    monkeypatch.setattr(turns, "compare", compare)
    path = tmp_path / "found.json"
    for axis in ("side", "batch"):
        run(command, "scaling", "--axis", axis, "--save", path, "--out", tmp_path / "a.png")
    found = json.loads(path.read_text())["scaling"]
    assert list(found) == ["batch", "side"] and [r["batch"] for r in found["batch"]] == [8, 16, 32, 64, 128]
    labels = [label for label, _ in scaling.points("devices", "float32")]
    assert labels == ["1x1", "1x2", "2x1", "2x2", "4x1", "4x2"]
    assert found["batch"][0]["peak_bytes"] == 5  # the accelerator's
    run(command, "scaling", "--axis", "devices")
    said = capsys.readouterr().out
    assert "left out: devices 2x2 needs 4 accelerators, and there are 2" in said and '"point": "2x2"' not in said
    run(command, "train", "scaling", "--axis", "side", "--batch", "8", "--save", path)  # whose rows are saved first
    found = json.loads(path.read_text())
    assert list(found["scaling"]) == ["batch", "side"] and len(found["rows"]) == 1
    run(command, "scaling", "--axis", "batch", "--save", path)
    found = json.loads(path.read_text())
    assert len(found["rows"]) == 1 and found["command"].startswith("alexnet scaling --axis batch")
    cores, before = 3, path.read_text()
    for words in (["scaling"], ["train", "scaling", "--batch", "8"]):
        with pytest.raises(UserError, match="of another machine .cores: 2 there, 3 here."):
            run(command, *words, "--axis", "side", "--save", path)
        assert path.read_text() == before
