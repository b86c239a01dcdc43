"""What a forked process does: it runs the command that trains.

Imports nothing of this project: main must not be imported before it is run.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path


def train(flags: list[str], output: Path, fresh: bool):
    """Runs `python -m alexnet_jax.main FLAGS` and writes its output to a file.

    fresh: run it in a new interpreter, without JAX's compilation cache.
    """
    with output.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    if fresh:
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        os.execve(sys.executable, [sys.executable, "-m", "alexnet_jax.main", *flags], environment)
    sys.argv[1:] = flags
    try:
        runpy.run_module("alexnet_jax.main", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process skips them; jax.distributed disconnects there
