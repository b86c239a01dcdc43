"""Several processes on loopback, each with its own devices, train one network."""

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.runs import check_equal, records, start

from alexnet_jax import UserError, checkpoint, main
from alexnet_jax.cli import commands
from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs.run import load_run


def free_port():
    """Below those that the system gives to whoever asks for any, so that nobody takes it meanwhile."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", random.randrange(20000, 32768)))
            return s.getsockname()[1]


def start_together(config, workdir, count=2, own=((), ())):
    """Starts `count` processes that train a config together on one device each, each with flags of its `own`."""
    port = free_port()
    together = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
    return [start(config, workdir, *together, f"--process={i}", *own[i]) for i in range(count)]


def outputs(processes):
    return [p.wait() for p in processes]


def check_same(workdir, reference):
    """Validation results and weights of two runs are equal up to float32 rounding, amplified by their steps."""
    ours, theirs = ([r for r in records(w) if r["split"] == "validation"] for w in (workdir, reference))
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3) and a["images"] == b["images"]
    one, other = (load_run(w).params for w in (workdir, reference))
    for layer in one:
        kernel = other[layer]["kernel"]
        np.testing.assert_allclose(one[layer]["kernel"], kernel, atol=1e-3 * np.abs(kernel).max())


@pytest.mark.slow
def test_a_tower_in_each_process(config, tiny_run, tmp_path):
    """One network, half of it in each process; both read all images."""
    config.epochs, config.devices.tower = 2, 2
    processes = start_together(config, tmp_path / "run")
    said = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    check_same(tmp_path / "run", tiny_run)


@pytest.mark.slow
def test_lost_or_stopped_all_restart_and_end_bit_for_bit_equal(chain_config, tmp_path):
    """A copy of the network each: each reads its share, every validation image counts once, one process reports.

    Then the same, stopped by SIGTERM to one of them, and by SIGKILL of either: the other soon ends with a line that
    says so.
    """
    config = chain_config
    config.epochs, config.log_every_steps = 2, 1
    alone, whole, broken = (tmp_path / name for name in ("alone", "whole", "broken"))
    main.run(config, alone)
    config.devices.data = 2
    processes = start_together(config, whole)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    assert "2 process(es)" in said[0] and "validation, 10 view(s), 33 images" in said[0]
    assert "epoch" not in said[1]
    assert not list(whole.glob("*.png")) and "alexnet figures --workdir" in said[0]
    check_same(whole, alone)

    for told, number, logged in ((1, signal.SIGTERM, 2), (1, signal.SIGKILL, 4), (0, signal.SIGKILL, 6)):
        path = broken / "metrics.jsonl"
        before = path.stat().st_mtime_ns if path.exists() else 0  # it is written again once they have met
        processes = start_together(config, broken)
        while not path.exists() or path.stat().st_mtime_ns == before or len(records(broken)) < logged:
            assert all(p.returncode is None for p in processes), outputs(processes)
            time.sleep(0.02)
        processes[told].send_signal(number)
        if number == signal.SIGTERM:
            said = outputs(processes)
            assert [p.returncode for p in processes] == [130, 130], said
        else:
            said = processes[1 - told].wait()
            assert processes[1 - told].returncode == 1, said
            assert said.strip().splitlines()[-1].startswith("error: another process is lost"), said
            processes[told].wait()

    processes = start_together(config, broken)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [0, 0], said
    assert "resumed at step" in said[0]
    check_equal(whole, broken, step=12)


@pytest.mark.slow
def test_processes_with_other_data_or_another_config_end_together(config, tiny_run, tmp_path):
    """The second reads a copy of the prepared set whose labels were changed, or has a rate of its own."""
    prepared = shutil.copytree(config.data.prepared_dir, tmp_path / "prepared")
    path = prepared / prepare(config.data).directory.name / "train.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"labels": arrays["labels"][::-1].copy()})
    config.devices.data = 2
    for flag, says in (
        (f"--config.data.prepared_dir={prepared}", "has prepared another data set than"),
        ("--config.optimizer.learning_rate=0.02", "was started with another config than"),
    ):
        processes = start_together(config, tmp_path / "run", own=[[], [flag]])
        said = outputs(processes)
        assert [p.returncode for p in processes] == [1, 1], said
        for text in said:
            assert text.strip().splitlines()[-1].startswith(f"error: process 1 {says} process 0"), said
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_another_workdir_or_start_end_together(config, tiny_run, tmp_path):
    """The second has a workdir of its own, or the start's checkpoint has other weights there."""
    config.devices.data = 2
    processes = start_together(config, tmp_path / "run", own=[[], [f"--workdir={tmp_path / 'mine'}"]])
    said = outputs(processes)
    assert [p.returncode for p in processes] == [1, 1], said
    assert "does not see the workdir" in said[1].strip().splitlines()[-1], said
    assert not (tmp_path / "mine").exists()

    other = shutil.copytree(tiny_run, tmp_path / "other")
    [part] = other.glob(f"checkpoints/step_{max(checkpoint._steps(other))}/host/metadata")
    host = json.loads(part.read_text())
    host["checksums"] = {name: value + 1 for name, value in host["checksums"].items()}
    part.write_text(json.dumps(host))
    own = [[f"--config.start.workdir={start}"] for start in (tiny_run, other)]
    processes = start_together(config, tmp_path / "tuned", own=own)
    said = outputs(processes)
    assert [p.returncode for p in processes] == [1, 1], said
    for text in said:
        assert text.strip().splitlines()[-1].startswith("error: process 1 starts from another run than process 0"), said
    assert not (tmp_path / "tuned").exists()


@pytest.mark.slow
def test_processes_that_cannot_meet_say_how():
    command = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/paper.py:smoke", "--distributed"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "--coordinator" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_number_of_a_process_requires_distributed():
    flags = commands.parse(main, ["--config=configs/paper.py:smoke", "--process=1"])
    with pytest.raises(UserError, match="require --distributed"):
        main.main(flags)
