"""Runs in processes of their own: starting them, and reading what they left; a disk that is full."""

import contextlib
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from alexnet_jax import checkpoint


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
    """Two runs have the same records, and at `step` the same weights, bit for bit."""
    assert records(one) == records(other)
    a, b = (checkpoint.load(w, "latest") for w in (one, other))
    assert a.step == b.step == step
    for layer in a.params:
        for kind in ("kernel", "bias"):
            np.testing.assert_array_equal(a.params[layer][kind], b.params[layer][kind], err_msg=f"{layer} {kind}")
