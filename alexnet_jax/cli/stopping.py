"""How a training process ends early: because of a signal, or because another process is lost.

Its last line on standard error says why, and the same command resumes the run. The exit status is STOPPED after SIGTERM
or Ctrl-C, and 1 after a mistake or a loss. Once several processes train, a signal to one of them stops all alike;
before that the others lose the one that got it, and end with 1. This module imports nothing heavy, so that signals can
be watched for while the rest is imported.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from signal import Signals
from types import FrameType
from typing import NoReturn

STOPPED = 130  # what a shell reports of a program that Ctrl-C ended
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOST = "another process is lost{}: start all of them again, and they resume from the last checkpoint"


def watch() -> None:
    """From now on SIGTERM and Ctrl-C end the process at once with one line, except where Stop lets a step finish.

    A thread does it: Python's own handlers wait until the main thread leaves compiled code, which takes minutes while
    XLA compiles or while processes wait for one another. Files are left as after a kill; every writer copes with that.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: None)  # without a handler nothing is written to the pipe
    threading.Thread(target=_end_at_signal, args=(reader,), daemon=True).start()


def _end_at_signal(reader: int) -> None:
    number = 0
    while number not in SIGNALS:
        number = os.read(reader, 1)[0]
    name = Signals(number).name
    say(f"stopped by {name}: the same command resumes from the last checkpoint, or starts again if there is none yet")
    os._exit(STOPPED)


class Stop:
    """Whether SIGTERM or Ctrl-C has asked the run to finish its step and stop; a second Ctrl-C stops at once."""

    signal: Signals | None = None

    def __enter__(self) -> "Stop":
        self.watched = signal.set_wakeup_fd(-1)
        self.before = {s: signal.signal(s, self._ask) for s in SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(self.watched)


def expect_losses() -> None:
    """Once several processes have met: the loss of one ends this one with a line instead of JAX's abort.

    JAX watches the others from a thread of its own, which can only abort (jaxlib cannot hand its callback an error). An
    abort raises SIGABRT, which can be caught, but only below Python: its own handlers run in the main thread, which may
    be waiting for the lost process.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _end_at_abort)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_HANDLER
def _end_at_abort(number: int) -> None:
    say("error: " + LOST.format(", or this one failed (see above)"))
    os._exit(1)


def leave(text: str, leads: bool) -> NoReturn:
    """Ends one of several processes with a line and status 1, without JAX's shutdown, which waits for lost processes.

    The process that leads goes last: when it goes, the others are aborted, and each should say its own line first.
    """
    sys.stdout.flush()
    say(text)
    if leads:
        time.sleep(2)
    os._exit(1)


def say(text: str) -> None:
    """Writes a line to standard error from any thread, on a new line because a progress bar may stand there."""
    os.write(2, f"\n{text}\n".encode(errors="backslashreplace"))
