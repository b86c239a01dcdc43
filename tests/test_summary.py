"""The summary counts what the paper's readers count, and what the compiled program really moves."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from alexnet_jax import UserError, towers
from alexnet_jax.analysis import cost, summary
from alexnet_jax.cli import commands
from configs import paper


def mesh_of(data, tower, batch):
    return towers.make_mesh(ConfigDict({"data": data, "tower": tower}), 2, batch)


@pytest.fixture
def config(narrow):
    c = paper.get_config()
    c.model, c.batch_size = narrow(), 16
    c.data.size, c.data.crop = 72, 64
    return c


def test_the_papers_numbers():
    """Figure 2 and section 3.5: output shapes; parameters and multiply-accumulates layer by layer."""
    rows = {r["name"]: r for r in summary.layer_costs(paper.get_config(), mesh_of(1, 2, 128))}
    assert list(rows) == [
        "conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"
    ]  # fmt: skip
    assert sum(r["parameters"] for r in rows.values()) == 60_965_224
    assert sum(r["macs"] for r in rows.values()) == 724_406_816
    assert rows["conv2"]["output"] == (27, 27, 256) and rows["conv2"]["kernel"] == (5, 5, 48, 256)
    assert rows["conv2"]["macs"] == 307_200 * 729
    assert rows["conv1"]["activation_bytes"] == 128 * 55 * 55 * 48 * 4  # one tower's half
    assert rows["fc6"]["parameter_bytes"] == (9216 * 2048 + 2048) * 4 * 2  # and its velocities
    assert rows["fc8"]["parameter_bytes"] == (4096 * 1000 + 1000) * 4 * 2  # whole on each


def test_memory_is_what_the_update_rule_keeps(config):
    """Two velocities of Adam; none of a layer that is frozen throughout."""

    def held():
        rows = summary.layer_costs(config, mesh_of(1, 1, 16))
        return {r["name"]: r["parameter_bytes"] / r["parameters"] for r in rows if r["parameters"]}

    assert set(held().values()) == {8}
    config.optimizer.layer_rates = ((0, "conv1", 0.0),)
    assert held() == dict.fromkeys(held(), 8) | {"conv1": 4}
    config.optimizer.layer_rates, config.optimizer.algorithm = (), "adam"
    assert all(12 <= each < 12.1 for each in held().values())  # Adam counts its steps too


def test_two_devices_hold_and_compute_half(config):
    one, two = (summary.summarize(config, mesh_of(1, n, 16)) for n in (1, 2))
    assert one["exchanges"] == []
    assert two["step"]["flops"] == pytest.approx(one["step"]["flops"] / 2, rel=0.03)  # fc8 is computed on both
    fc8 = two["layers"][-1]["parameter_bytes"]
    held = [sum(r["parameter_bytes"] for r in s["layers"]) for s in (one, two)]
    assert held[1] - fc8 == (held[0] - fc8) / 2
    difference = one["step"]["state_and_batch_bytes"] - two["step"]["state_and_batch_bytes"]
    assert difference == pytest.approx(held[0] - held[1], rel=0.02)  # the compiler allots what the table says


def test_what_the_exchanges_move(config):
    """Each device sends its half of the maps forward, and backward the other half's gradients; fc8's stay at home."""
    found = summary.summarize(config, mesh_of(2, 2, 16))["exchanges"]
    b = 16 // 2 * 4
    halves = {"conv3": 3 * 3 * 8 * b, "fc6": 4 * b, "fc7": 12 * b, "fc8": 10 * b}
    for way, names in (("forward", ["conv3", "fc6", "fc7", "fc8"]), ("backward", ["conv3", "fc6", "fc7"])):
        moved = {e["layer"]: e["bytes"] for e in found if e["direction"] == way}
        assert moved == {name: halves[name] for name in names}
    sums = [e for e in found if e["direction"] == "update"]
    params = summary.network.shapes(config.model, 64)
    fc8 = summary.network.parameter_count(params["fc8"])
    own = (summary.network.parameter_count(params) - fc8) // 2 + fc8
    assert sum(e["bytes"] for e in sums) == pytest.approx(own * 4, abs=64)  # twice half, and the metrics


def test_norms_across_towers_have_rows_of_their_own(config):
    config.model.lrn.per_tower = False
    found = summary.summarize(config, mesh_of(1, 2, 16))["exchanges"]
    moved = {(e["layer"], e["direction"]): e["bytes"] for e in found}
    names = {layer for layer, _ in moved}
    assert names >= {"norm1", "norm2", "conv3"} and "other" not in names
    rows = {row["name"]: row for row in summary.layer_costs(config, mesh_of(1, 2, 16))}
    for name in ("norm1", "norm2"):
        assert moved[name, "forward"] == rows[name]["activation_bytes"]


def test_the_mesh_of_a_summary_is_what_the_command_line_says(config, monkeypatch):
    chips = [SimpleNamespace(platform="tpu", id=i) for i in range(16)]
    monkeypatch.setattr(summary, "slice_of", lambda _: chips)
    monkeypatch.setattr(towers, "make_mesh", lambda devices, *_: (devices.data, devices.tower))
    assert summary.mesh_for(config, None, "v5e:4x4") == (8, 2)
    config.devices.tower = 1
    assert summary.mesh_for(config, None, "v5e:4x4", {"devices.tower"}) == (16, 1)
    config.devices.data = 4
    assert summary.mesh_for(config, None, "v5e:4x4", {"devices.data"}) == (4, 2)
    assert summary.mesh_for(config, (2, 2), "v5e:4x4") == (2, 2)


def test_reads_what_tpus_print():
    text = """
  %ag = (f32[128,13,13,128]{3,2,1,0:T(8,128)}, f32[128,13,13,256]{3,2,1,0:T(8,128)}) all-gather-start(%x), channel_id=1, replica_groups=[8,2]<=[16], dimensions={3}, metadata={op_name="jit(train_step)/jvp()/shard_map/AlexNet/conv3/all_gather"}
  %agd = f32[128,13,13,256]{3,2,1,0:T(8,128)} all-gather-done(%ag), metadata={op_name="jit(train_step)/jvp()/shard_map/AlexNet/conv3/all_gather"}
  %rs = bf16[128,2048]{1,0:T(8,128)} reduce-scatter(%y), replica_groups={{0,1},{2,3}}, metadata={op_name="jit(train_step)/transpose(jvp())/shard_map/AlexNet/fc7/reduce_scatter"}
  %ar = (f32[10]{0}, f32[2,3]{1,0}) all-reduce(%a, %b), replica_groups=[2,8]<=[8,2]T(1,0), metadata={op_name="jit(train_step)/transpose(jvp())/shard_map/psum"}
  %un = f32[128,13,13,256]{3,2,1,0} all-reduce(%d), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %no = f32[10]{0} all-reduce(%c), replica_groups={{0},{1}}, metadata={op_name="jit(train_step)/psum"}
"""  # noqa: E501
    assert cost.exchanges(text) == [
        {"kind": "all-gather", "layer": "conv3", "direction": "forward", "devices": 2, "bytes": 128 * 169 * 128 * 4},
        {"kind": "reduce-scatter", "layer": "fc7", "direction": "backward", "devices": 2, "bytes": 128 * 2048 * 2},
        {"kind": "all-reduce", "layer": "gradients", "direction": "update", "devices": 8, "bytes": 2 * 64 * 7 // 8},
        {"kind": "all-reduce", "layer": "conv3", "direction": "backward", "devices": 2, "bytes": 128 * 169 * 256 * 4},
    ]


def test_the_bound_is_the_slowest_of_three():
    step = {"flops": 197e12, "memory_traffic_bytes": 819e9 * 2, "exchanged_bytes": 200e9 * 0.5}
    found = summary.bound(step, "v5e:4x4")
    assert found["seconds"] == found["memory_seconds"] == pytest.approx(2) and found["limited_by"] == "memory"
    assert found["arithmetic_seconds"] == pytest.approx(1) and found["exchange_seconds"] == pytest.approx(0.5)
    half = summary.bound(step, "v4:2x2x1")  # two devices a chip
    assert half["arithmetic_seconds"] == pytest.approx(2 * 197 / 275)


def run(*flags, **env):
    command = [sys.executable, "-m", "alexnet_jax", "summary", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


def test_one_line_of_json():
    done = run("--config=configs/paper.py:smoke", "--devices=2x2", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    found = json.loads(done.stdout)
    assert found["mesh"] == {"data": 2, "tower": 2} and found["parameters"] > 0 and found["macs"] > 0
    assert {e["layer"] for e in found["exchanges"]} >= {"conv3", "fc6", "fc7", "fc8", "gradients"}


def test_compiles_for_tpus_that_are_not_there():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install -e .[tpu]")
    flags = "--config=configs/paper.py:smoke", "--json", "--topology"
    done = run(*flags, "v5e:2x2", XLA_FLAGS="")  # libtpu ends at flags that only XLA:CPU knows
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mesh"] == {"data": 2, "tower": 2} and "TPU v5" in found["device"]
    assert {(e["layer"], e["direction"]) for e in found["exchanges"] if e["direction"] != "update"} == {
        ("conv3", "forward"), ("fc6", "forward"), ("fc7", "forward"), ("fc8", "forward"),
        ("conv3", "backward"), ("fc6", "backward"), ("fc7", "backward"),
    }  # fmt: skip
    assert 0 < found["bound"]["seconds"] < 1
    done = run(*flags, "v5e:3x7", XLA_FLAGS="")
    assert done.returncode != 0 and "no TPU slice v5e:3x7" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--config"),
        (["--config=configs/paper.py", "--devices=two"], "4x2"),
        (["--config=configs/paper.py", "--devices=3x2"], "batch"),
        (["--config=configs/paper.py", "--topology=gpu"], "v5e:4x4"),
        (["--config=configs/paper.py", "--config.model.towers=3"], "towers"),
        (["--config=configs/paper.py", "--config.model.num_classes=0"], "say how many"),
    ],
)
def test_wrong_flags_are_named(flags, says, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the tests' devices exist already
    with pytest.raises(UserError, match=says) as error:
        summary.main(commands.parse(summary, flags))
    assert "\n" not in str(error.value)


def test_the_table_reads(config):
    text = summary.table(summary.summarize(config, mesh_of(1, 2, 16)))
    assert "1 x 2 devices" in text and "conv3" in text and "GFLOP" in text
    assert max(map(len, text.splitlines())) < 140 and "each training image" not in text
    config.data.on_device = True
    assert "and 15.6 kB for each training image" in summary.table(summary.summarize(config, mesh_of(1, 1, 16)))
