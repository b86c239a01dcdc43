"""Runs in processes of their own, what they left, kills in this one at an exact place, and a disk that is full."""

import contextlib
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax import checkpoint, main


def write_config(config, path):
    """Writes a config file that main reads; returns the path."""
    Path(path).write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    return path


def start(config, workdir, *flags, **kwargs):
    """Starts main on a config, its output in a pipe; kwargs go to Popen."""
    path = write_config(config, f"{workdir}.py")
    command = [sys.executable, "-m", "alexnet_jax.main", f"--config={path}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


class Killed(BaseException):
    """What no code catches."""


def kill_at(monkeypatch, module, name, call):
    """Lets a function of a module raise Killed in place of its call number `call`, from 1."""
    real, calls = getattr(module, name), iter(range(1, sys.maxsize))

    def until(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, until)


def run_until_killed(monkeypatch, config, workdir, module, name, call):
    """Trains until a function of a module is called for the `call`th time.

    A save under way then ends before this returns: it would die with its process, and not go on beside the next run.
    """
    opened, manager = [], checkpoint.manager
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(checkpoint, "manager", lambda *args: opened.append(manager(*args)) or opened[-1])
        kill_at(m, module, name, call)
        main.run(config, workdir)
    for checkpoints in opened:
        checkpoints.close()


def records(workdir, but=("images_per_second",)):
    """The records of a run's metrics.jsonl, without the fields that differ from run to run."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in but} for line in lines]


@contextlib.contextmanager
def full_disk(room):
    """Files of this process grow no further than `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # pytest's standard error is a file too, and tqdm keeps its lock for good when it cannot write there.
    with contextlib.redirect_stderr(io.StringIO()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def check_equal(one, other, step):
    """Two runs have the same records, and their last checkpoint, of `step`, is the same bit for bit."""
    assert records(one) == records(other)
    check_same_checkpoint(one, other, step)


def check_same_checkpoint(one, other, step):
    """The last checkpoint of two runs is of `step` and holds the same bits: parameters, velocity, plateau and all."""
    assert checkpoint.trained(Path(one)) == checkpoint.trained(Path(other)) == step
    (a, host), (b, other_host) = (checkpoint.read_whole(Path(w) / "checkpoints" / f"step_{step}") for w in (one, other))
    assert host == other_host
    assert jax.tree.structure(a) == jax.tree.structure(b) and {"params", "velocity", "step"} <= set(a)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
