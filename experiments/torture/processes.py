"""Starts processes, watches and kills them, and judges how they ended."""

import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds after which a process counts as hanging
LONG = 2000  # characters: too many for a message
STRANGE = r"[EF]\d{4} \d\d:|\*\*\* |Fatal Python|Exception ignored"  # beginnings of lines that no user should see
HARMLESS = r"cpu_aot_loader"  # XLA: about CPU features that it asked for itself, whenever it reads its cache

# JAX warns about threads at every fork; here there are none yet (see __main__.py).
warnings.filterwarnings("ignore", message=r"os.fork\(\) was called", category=RuntimeWarning)


class Process:
    """A function in a forked child, its output in a file. Used as a context, it is killed at the end."""

    def __init__(self, function: Callable[[], object], output: Path, memory: int = 0):
        """memory: the bytes of memory that the child may use, 0 for no limit."""
        self.output = output
        self.status: int | None = None
        self.begun = time.monotonic()
        self.peak = 0  # bytes of memory, known once it has ended
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._child(function, memory))

    def _child(self, function, memory) -> int:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):  # as in a new process
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.setsid()  # only the parent gets Ctrl-C
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if memory:
                resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for number in (1, 2):
                os.dup2(file, number)
            function()
            status = 0
        except SystemExit as end:  # as the interpreter handles it
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return status & 255

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status, self.peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        return self.status

    def kill(self):
        """SIGKILL, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status, _ = os.wait4(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)

    def text(self) -> str:
        """Its output so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait(self, limit: float = LIMIT) -> Generator[None, None, bool]:
        """Yields until it has ended; returns False if it had to be killed after `limit` seconds."""
        while self.poll() is None:
            if time.monotonic() - self.begun > limit:
                self.kill()
                return False
            yield
        return True


def command(module: str, *flags: str, output: Path, environment: dict[str, str], memory: int = 0) -> Process:
    """Starts `python -m MODULE FLAGS`, as a user would."""
    argv = [sys.executable, "-m", module, *map(str, flags)]

    def replace():
        os.chdir(ROOT)
        os.execve(sys.executable, argv, environment)

    return Process(replace, output, memory)


def lines(text: str) -> list[str]:
    """The lines of a terminal's output, each state of a progress line on its own."""
    return [line.strip() for line in re.split(r"[\r\n]+", text.replace("\x1b[A", "\n")) if line.strip()]


def crash(status: int | None, text: str) -> str:
    """What is wrong with the end of any process, successful or not: a signal, a traceback, a library's log; else ""."""
    said = lines(text)
    if status is not None and status < 0:
        return f"ended by {signal.Signals(-status).name}: {said[-1] if said else ''}"
    if any(line.startswith("Traceback (most recent call last)") for line in said):
        return f"a traceback: {said[-1]}"
    strange = [line for line in said if re.match(STRANGE, line) and not re.search(HARMLESS, line)]
    if strange:
        return f"a library's log: {strange[0][:200]}"
    return ""


def survivor_failure(status: int, text: str) -> str:
    """What is wrong with the end of a process whose peer was killed; else "". JAX's messages may precede our line."""
    said = lines(text)
    if status == 1 and said and said[-1].startswith("error:"):
        return ""
    return f"status {status}: {said[-1] if said else 'no output'}"


def refusal(status: int, text: str) -> str:
    """What is wrong with the end of a failed command, whose last line should be its only "error: ..."; else ""."""
    if bad := crash(status, text):
        return bad
    said = lines(text)
    errors = [line for line in said if line.startswith(("error:", "interrupted"))]
    if not said or len(errors) != 1 or said[-1] != errors[0]:
        return f"exit status {status} without one last line 'error: ...': {said[-1] if said else 'no output'}"
    return f"a line of {len(errors[0]):,} characters: {errors[0]}" if len(errors[0]) > LONG else ""
