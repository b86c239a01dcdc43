"""The side of a measurement that asks: worker processes take turns, and only one computes at a time.

In one process JAX's threads and PyTorch's would disturb each other. In separate ones the threads of the process that
waits sleep: its answers say how many cores it used meanwhile.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from alexnet_jax import UserError
from alexnet_jax.cli import memory
from alexnet_jax.data.host import sees_gpus

ROOT = Path(__file__).parents[2]
OURS, PEER = "experiments.benchmark.ours", "experiments.benchmark.peer"
# As every command of ours runs; PyTorch's side gets it too.
MEMORY = {"GLIBC_TUNABLES": memory.TUNABLES}
GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # both sides share its memory; peaks count what is in use
TURN = 2.0  # seconds that a turn lasts at least
STEPS = 3  # that a turn has at least
REST = 0.3  # seconds of sleep before each turn
BUSY = 0.05  # cores that a waiting process may use

Ask = Callable[[dict], dict]  # sends a worker a request, returns its answer


class Side(NamedTuple):
    """A worker to start."""

    module: str  # OURS or PEER
    request: dict  # see worker.py


@contextmanager
def started(side: Side, variables: Mapping[str, str] | None = None) -> Iterator[Ask]:
    """A worker that has run its first step; it ends with the context. variables: of its environment, besides ours.

    Raises UserError, also from what it yields, if the worker cannot do what it is asked to, or dies.
    """
    environment = MEMORY | GPU | os.environ | {"PYTHONPATH": _path()} | dict(variables or {})
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", side.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the process that asks
        )

        def ask(request: dict) -> dict:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
            answer = json.loads(line) if line else {"error": _last_words(process, said)}
            if "error" in answer:
                raise UserError(f"{side.module} cannot measure {_name(side.request)}: {answer['error']}")
            return answer

        try:
            ask(side.request)
            yield ask
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes in which PyTorch compiles
            process.communicate()


def _path() -> str:
    """PYTHONPATH with the repository in front: a worker may start in any folder."""
    return os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)


def _name(request: dict) -> str:
    if "config" not in request:
        return request["what"]
    config = request["config"]
    return f"{request['what']}, {config['name']}, batch {config['batch_size']}"


def _last_words(process: subprocess.Popen, said: IO[str]) -> str:
    """Why a worker died, in one line."""
    code = process.wait()
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        return "it was killed, which the system does where memory runs out: lower --batch"
    last = f" ({lines[-1][:200]})" if lines else ""
    return f"it ended with status {code}{last}"


# --- Turns ------------------------------------------------------------------------------------------------------------


def compare(sides: Mapping[str, Side], turns: int, least: float = TURN) -> dict[str, Any]:
    """Starts a worker for each side, lets them take turns, and ends them. Arguments: see take_turns.

    Returns: seconds, {side: of a step in each turn}; about, {side: facts}. Raises UserError.
    """
    with ExitStack() as held:
        asks = {name: held.enter_context(started(side)) for name, side in sides.items()}
        refuse_unlike({name: ask({"about": True})["platform"] for name, ask in asks.items()})
        seconds = take_turns(asks, turns, least)
        about = {name: ask({"about": True}) for name, ask in asks.items()}
    return {"seconds": seconds, "about": about}


def refuse_unlike(platforms: Mapping[str, str]):
    """Raises UserError if the sides compute on different kinds of device, or on the CPU where there is a GPU."""
    if "cpu" in platforms.values() and sees_gpus() and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise UserError(
            f"there is a GPU, and the sides compute on {platforms}: install JAX for it (pip install -e .[gpu]), or set "
            "JAX_PLATFORMS=cpu to measure the CPU"
        )
    if len({"gpu" if p == "cuda" else p for p in platforms.values()}) > 1:
        raise UserError(
            f"the sides compute on different devices, {platforms}: install both for one, or JAX_PLATFORMS=cpu"
        )


def take_turns(asks: Mapping[str, Ask], turns: int, least: float = TURN, rest: float = REST) -> dict[str, list[float]]:
    """The median seconds of a step in each turn of each worker. Every other turn goes through them backwards.

    least: seconds that a turn lasts at least; rest: before each turn, in which the threads of the last one fall asleep.
    Prints a warning if a worker computes while another one has its turn.
    """
    steps = {name: steps_in_a_turn(ask({"steps": 2})["seconds"][-1], least) for name, ask in asks.items()}
    found: dict[str, list[float]] = {name: [] for name in asks}
    busiest = 0.0
    for turn in range(turns):
        for name in list(asks)[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(rest)
            answer = asks[name]({"steps": steps[name]})
            found[name].append(statistics.median(answer["seconds"]))
            busiest = max(busiest, answer["idle"])
    if len(asks) > 1 and busiest > BUSY:
        print(f"warning: a process used {busiest:.2f} cores while it waited for its turn", file=sys.stderr)
    return found


def steps_in_a_turn(seconds: float, least: float = TURN) -> int:
    """How many steps of some seconds each make a turn."""
    return max(STEPS, round(least / max(seconds, 1e-6)))


def spread(values: list[float]) -> dict[str, float]:
    """The median, the lowest and the highest of some values."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(ours: list[float], peers: list[float]) -> dict[str, float]:
    """How many times as fast ours is: the spread of the ratios of the turns, from seconds."""
    return spread([theirs / mine for mine, theirs in zip(ours, peers, strict=True)])
