"""AlexNet as it was in 2012, in JAX: two towers, trained, measured and used on the hardware of today."""

import os
import sys
from collections.abc import Callable

__version__ = "0.1.0"

# Read once, when jaxlib or TensorFlow loads; 0 brings all their lines back. Up to jaxlib 0.10.1 some CPUs answer every
# program from the compilation cache with pages about features that they have no need of (jax-ml/jax#38445).
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not needed to decode, and its greeting passes every level


class UserError(Exception):
    """Something the user can mend. The message is one line that says what is wrong and how to fix it."""


def one_line(error: Exception) -> str:
    """An exception for the message of a UserError: its kind and its text, cut short."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def command(main: Callable[[list[str]], int | None], stopped: str = "interrupted"):
    """Ends the process as main(flags) does: with its exit status, or with one line on what the user can mend.

    stopped: what Ctrl-C has it say.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        try:
            status = main(sys.argv[1:])
        except SystemExit as e:
            status = e.code
        sys.stdout.flush()
    except UserError as e:
        status = f"error: {e}"
    except BrokenPipeError:  # the reader, such as head, has had enough
        status = 1
    except OSError as e:  # a full disk, a folder that went away
        status = f"error: {e.strerror or e}{f': {e.filename}' if e.filename else ''}"
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        status = 130
    try:
        sys.stdout.flush()
    except OSError:  # it would fail once more when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
