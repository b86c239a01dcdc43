"""Several processes on loopback, each with its own devices, train one network."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import checkpoint

# Each process gets its own number of devices; the parent's would be inherited otherwise.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def start(config, workdir, environment, *, count=2):
    """Starts `count` processes that train a config together."""
    Path(f"{workdir}.py").write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "alexnet_jax.main", f"--config={workdir}.py", f"--workdir={workdir}"]
    together = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
    return [
        subprocess.Popen(
            [*command, *together, f"--process={i}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for i in range(count)
    ]  # fmt: skip


def outputs(processes):
    return [p.communicate(timeout=240)[0] for p in processes]


def records(workdir):
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


@pytest.fixture
def environment():
    return os.environ | ENVIRONMENT


@pytest.mark.parametrize("data, tower", [(2, 1), (1, 2)], ids=["a copy each", "a tower each"])
def test_two_processes_train_as_one(config, tiny_run, tmp_path, environment, data, tower):
    """Each reads its share, the validation set counts once, one writes the records, both the checkpoint."""
    config.epochs = 2
    config.devices.data, config.devices.tower = data, tower
    processes = start(config, tmp_path / "run", environment)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    assert "2 process(es)" in said[0] and "validation, 10 view(s), 33 images" in said[0]
    assert "epoch" not in said[1]
    ours, theirs = records(tmp_path / "run"), records(tiny_run)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3) and a.get("images") == b.get("images")
    one, other = checkpoint.load(tiny_run), checkpoint.load(tmp_path / "run")
    for layer in one.params:
        np.testing.assert_allclose(other.params[layer]["kernel"], one.params[layer]["kernel"], atol=2e-3)


def test_a_process_lost_and_all_restarted_end_bit_for_bit_equal(config, tmp_path, environment):
    config.devices.data, config.devices.tower = 2, 1
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    processes = start(config, whole, environment)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], said

    processes = start(config, broken, environment)
    while not (broken / "metrics.jsonl").exists() or len(records(broken)) < 4:
        assert all(p.poll() is None for p in processes), outputs(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    said = outputs(processes)
    assert processes[0].returncode not in (0, None), said

    processes = start(config, broken, environment)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    assert "resumed at step" in said[0]
    assert records(whole) == records(broken)
    a, b = (checkpoint.load(w, "latest") for w in (whole, broken))
    assert a.step == b.step == 24
    for layer in a.params:
        for kind in ("kernel", "bias"):
            np.testing.assert_array_equal(a.params[layer][kind], b.params[layer][kind], err_msg=f"{layer} {kind}")


def test_asked_to_stop_all_stop_at_the_same_step(config, tmp_path, environment):
    config.devices.data, config.devices.tower, config.epochs = 2, 1, 200
    processes = start(config, tmp_path / "run", environment)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(records(tmp_path / "run")) < 2:
        assert all(p.poll() is None for p in processes), outputs(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [130, 130], said
    assert "goes on from here" in said[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--process=1"], "--distributed"), (["--distributed"], "--coordinator")],
)
def test_processes_that_cannot_meet_say_how(flags, says, environment):
    command = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/paper.py:smoke", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
