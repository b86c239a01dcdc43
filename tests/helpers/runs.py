"""Runs in processes of their own, their records, kills at an exact place in this process, and a full disk."""

import contextlib
import functools
import io
import json
import multiprocessing
import multiprocessing.context
import os
import resource
import sys
import tempfile
from collections.abc import Container
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import checkpoint, main
from helpers import child


def write_config(config: ConfigDict, path: str | Path) -> str | Path:
    """Writes a config file for --config; returns its path."""
    Path(path).write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    return path


class Process:
    """A run in a process of its own, its output in a file."""

    def __init__(self, workdir: Path, flags: list[str], fresh: bool):
        with tempfile.NamedTemporaryFile(
            prefix=f"{Path(workdir).name}.", dir=Path(workdir).parent, delete=False
        ) as file:
            self.output = Path(file.name)
        self._process = _forkserver().Process(target=child.train, args=(flags, self.output, fresh), daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int):
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 240) -> str:
        """Waits for the end; returns all that the process wrote."""
        self._process.join(timeout)
        said = self.output.read_text(errors="replace")
        assert self.returncode is not None, f"still running after {timeout} s: {said}"
        return said


def start(config: ConfigDict, workdir: Path, *flags: str, fresh: bool = False) -> Process:
    """Starts `python -m alexnet_jax.main` on a config, with one CPU device.

    The process is forked from one that has imported TensorFlow and JAX, which saves seconds. fresh: it is a new
    interpreter instead, and shares neither compiled programs nor the seed of Python's hashes with other runs.
    """
    path = write_config(config, f"{workdir}.py")
    return Process(workdir, [f"--config={path}", f"--workdir={workdir}", *flags], fresh)


@functools.cache
def _forkserver() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.preload", "pytest"])
    with pytest.MonkeyPatch.context() as m:  # the server does not take over sys.path
        m.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    return context


class Killed(BaseException):
    """No code catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, call: int):
    """Makes a function of a module raise Killed at its call number `call`, counted from 1."""
    real, calls = getattr(module, name), iter(range(1, sys.maxsize))

    def until(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, until)


def run_until_killed(
    monkeypatch: pytest.MonkeyPatch, config: ConfigDict, workdir: Path, module: ModuleType, name: str, call: int
):
    """Trains until a function of a module is called for the `call`th time.

    A checkpoint that is being saved is completed before this returns. A real kill would end the save too; here it
    would continue in a thread beside the next run.
    """
    opened, manager = [], checkpoint.manager
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(checkpoint, "manager", lambda *args: opened.append(manager(*args)) or opened[-1])
        kill_at(m, module, name, call)
        main.run(config, workdir)
    for checkpoints in opened:
        checkpoints.close()


def records(workdir: Path, but: Container[str] = ("images_per_second",)) -> list[dict]:
    """The records of a run's metrics.jsonl, without the fields that differ from run to run."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in but} for line in lines]


@contextlib.contextmanager
def full_disk(room: int):
    """No file of this process can grow beyond `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # pytest's standard error is a file too, and tqdm never releases its lock when it cannot write there.
    with contextlib.redirect_stderr(io.StringIO()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def check_equal(one: Path, other: Path, step: int):
    """Two runs have the same records, and the same last checkpoint, of step `step`, bit for bit."""
    assert records(one) == records(other)
    check_same_checkpoint(one, other, step)


def check_same_checkpoint(one: Path, other: Path, step: int):
    """The last checkpoint of both runs is of step `step` and equal bit for bit, with velocity and plateau state."""
    assert checkpoint.latest_step(one) == checkpoint.latest_step(other) == step
    (a, host), (b, other_host) = (checkpoint.read_whole(w / "checkpoints" / f"step_{step}") for w in (one, other))
    assert host == other_host
    assert jax.tree.structure(a) == jax.tree.structure(b) and {"params", "velocity", "step"} <= set(a)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
