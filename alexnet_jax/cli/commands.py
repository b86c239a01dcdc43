"""How a command ends, and the flags that commands share."""

import os
import sys
from collections.abc import Callable

from alexnet_jax import UserError


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
