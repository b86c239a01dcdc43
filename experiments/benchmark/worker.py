"""The side of a measurement that computes: a process that runs one piece of work as often as it is asked to.

The program that measures (turns.py) speaks to it in lines of JSON, each with one answer:

    {"what": "train", "config": {...}}     builds the work and runs one step: {"ready": true}, or {"error": "..."}
    {"steps": 3}                           runs steps: {"seconds": [...], "idle": cores used since the last answer}
    {"about": true}                        facts about the work, and the process's peak memory in bytes

The process ends when its standard input does.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_jax import UserError, one_line


class Work(NamedTuple):
    """What a process measures."""

    step: Callable[[], object]  # starts it once more
    about: Callable[[], dict[str, Any]]  # facts for the report
    wait: Callable[[], object] = lambda: None  # until all that was started is done
    queued: bool = False  # whether steps are started before the one before is done, as training does on a GPU


def serve(build: Callable[[dict], Work]) -> None:
    """Answers requests until standard input ends. build: makes the work of the first line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        work = build(json.loads(sys.stdin.readline()))
        work.step()
        work.wait()
        answer(ready=True)
        answered, used = time.perf_counter(), time.process_time()
        for line in sys.stdin:
            request = json.loads(line)
            idle = (time.process_time() - used) / (time.perf_counter() - answered)
            if "steps" in request:
                answer(seconds=timed(work, request["steps"]), idle=round(idle, 3))
            else:
                answer(peak_bytes=peak_bytes(), **work.about())
            answered, used = time.perf_counter(), time.process_time()
    except UserError as error:
        answer(error=str(error))
    except Exception as error:  # whatever a library raises: the program that measures says it in one line
        answer(error=one_line(error))


def timed(work: Work, steps: int) -> list[float]:
    """The seconds of each of some steps; of queued ones each has its share."""
    found = []
    together = steps if work.queued else 1
    for _ in range(steps // together):
        start = time.perf_counter()
        for _ in range(together):
            work.step()
        work.wait()
        found += [(time.perf_counter() - start) / together] * together
    return found


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage begins with the peak of the process that started this one
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
