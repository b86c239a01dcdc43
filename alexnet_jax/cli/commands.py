"""How a command ends, and the flags that commands share: defined once, with the same meaning everywhere.

A verb's module has add_flags(parser) and main(flags), which returns the exit status or None for 0; its docstring is the
help. Mistakes of the user raise UserError.
"""

import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
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


def add_workdir(parser: ArgumentParser, **kwargs):
    """--workdir: the folder of a run."""
    parser.add_argument("--workdir", **{"required": True, "metavar": "DIR", "help": "the run's folder"} | kwargs)


def add_which(parser: ArgumentParser):
    """--which: the checkpoint to use."""
    says = "the checkpoint: of the lowest validation error, or the latest (default: best)"
    parser.add_argument("--which", choices=("best", "latest"), default="best", help=says)


def add_devices(parser: ArgumentParser):
    """--devices: (data, tower), the copies of the network and the devices that each is split over."""
    says = "copies of the network x devices that each is split over, e.g. 1x2 (default: 1x1)"
    parser.add_argument("--devices", type=_devices, default=(1, 1), metavar="DATAxTOWER", help=says)


def add_batch_size(parser: ArgumentParser):
    """--batch-size: images at a time; None for the run's own."""
    says = "images at a time (default: the run's evaluation.batch_size)"
    parser.add_argument("--batch-size", "--batch_size", type=int, metavar="N", help=says)


def add_json(parser: ArgumentParser):
    """--json: the result as JSON on standard output, and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, one object on a line")


def _devices(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise ArgumentTypeError(f"'{text}' is not data x tower, as in 4x2")
    return int(match[1]), int(match[2])


MOST_DEVICES = 1024  # that --devices can ask for: on CPU each is a thread


def use_devices(devices: tuple[int, int]) -> None:
    """Makes JAX offer as many CPU devices as flags.devices needs; has no effect on accelerators.

    Call it before JAX uses a device. Raises UserError if there can never be so many.
    """
    import jax  # here, so that the other flags do not wait for it

    data, tower = devices
    if data * tower > MOST_DEVICES:
        raise UserError(f"--devices {data}x{tower} are {data * tower:,} devices, and {MOST_DEVICES:,} are the most")
    there: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]  # -1: not set, which is 1
    if data * tower > max(1, there):
        jax.config.update("jax_num_cpu_devices", data * tower)
