"""How a training process ends before its time: by a signal, or because another process is lost.

Whatever ends it, it says one line, the last on standard error, and the same command goes on. The exit status is STOPPED
after SIGTERM or Ctrl-C, whichever of the processes was told, and 1 after a mistake or a loss. Imports nothing heavy, so
that main.py can watch for signals while it imports the rest.
"""

import ctypes
import os
import signal
import sys
import threading
import time

STOPPED = 130  # what a shell reports of a program that Ctrl-C ended
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOST = "error: another process is lost{}: start all again, they go on from the last checkpoint"


def watch():
    """From now on SIGTERM and Ctrl-C end the process at once with one line, but where Stop lets a step finish.

    A thread does it: Python's own handlers wait for the main thread to leave compiled code, which takes minutes where
    XLA compiles or the processes wait for one another. Files stay as a kill leaves them, which every writer copes with.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: None)  # without a handler nothing is written to the pipe
    threading.Thread(target=_end_at_signal, args=(reader,), daemon=True).start()


def _end_at_signal(reader: int):
    while (number := os.read(reader, 1)[0]) not in SIGNALS:
        pass
    name = signal.Signals(number).name
    say(f"stopped by {name}: the same command goes on from the last checkpoint, or starts again if there is none yet")
    os._exit(STOPPED)


class Stop:
    """Whether SIGTERM or Ctrl-C has asked the run to finish its step and stop; a second Ctrl-C stops at once."""

    signal = None

    def __enter__(self):
        self.watched = signal.set_wakeup_fd(-1)
        self.before = {s: signal.signal(s, self._ask) for s in SIGNALS}
        return self

    def _ask(self, number, frame):
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(self.watched)


def expect_losses():
    """Once several processes have met: a lost one ends this one with a line, not with JAX's abort.

    JAX watches the others from a thread of its own, which cannot be told to do anything but abort (jaxlib cannot hand
    its callback an error). An abort raises SIGABRT, and that can be caught, below Python: its own handlers run in the
    main thread, which may be waiting for the lost process.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _end_at_abort)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_HANDLER
def _end_at_abort(number):
    say(LOST.format(", or this one failed (see above)"))
    os._exit(1)


def leave(text: str, leads: bool):
    """Ends one of several processes with a line and status 1, without JAX's farewell, which waits for the lost.

    The one that leads goes last: when it goes, the others are aborted, and each is to say its own line first.
    """
    sys.stdout.flush()
    say(text)
    if leads:
        time.sleep(2)
    os._exit(1)


def say(text: str):
    """Writes a line to standard error from any thread, a new one where a progress line may stand."""
    os.write(2, f"\n{text}\n".encode(errors="backslashreplace"))
