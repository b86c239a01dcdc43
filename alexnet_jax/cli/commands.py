"""How a command parses its flags and ends, and the flags that commands share: defined once, the same everywhere.

A verb's module has add_flags(parser) and main(flags), which returns the exit status, or None for 0. Its docstring is
the help: the first paragraph says what it does, the rest shows how. Mistakes of the user raise UserError.
"""

import difflib
import os
import re
import shlex
import sys
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from alexnet_jax import UserError, no_platform, one_line, out_of_memory
from alexnet_jax.files import cache_folder

MOST_DEVICES = 1024  # that --devices asks for: on CPU each is virtual and costs a thread


def command(main: Callable[[list[str]], int | None], stopped: str = "interrupted") -> NoReturn:
    """Ends the process as main(words) does: with its exit status, or with one line on what the user can fix.

    stopped: what to say after Ctrl-C.
    """
    if sys.stdout is None:  # it is closed, but a command may write files all the same
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    status: int | str | None
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
    except Exception as e:
        if no_platform(e):
            wanted = os.environ.get("JAX_PLATFORMS", "")
            status = f"error: JAX finds no device here with JAX_PLATFORMS={wanted}: unset it, or set it to cpu"
        elif out_of_memory(e):
            status = (
                f"error: not enough memory ({one_line(e)[:200]}): lower --batch-size if it has one, or free some memory"
            )
        else:
            raise
    try:
        sys.stdout.flush()
    except OSError:  # it would fail once more when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def parse(module: ModuleType, words: Sequence[str], prog: str = "alexnet") -> Namespace:
    """The flags of a verb's module. Raises UserError if they are wrong, and SystemExit after --help.

    flags.command is the command as it was typed, for messages that tell the user to repeat it.
    """
    parser = Parser(prog=prog, description=(module.__doc__ or "").strip())
    module.add_flags(parser)
    return parser.parse_args(words)


def set_up_libraries() -> None:
    """What a process does before it computes: fewer messages from libraries, and a cache of what JAX compiles.

    The cache is $JAX_COMPILATION_CACHE_DIR, or in files.cache_folder. All commands share it. Raises UserError if there
    is neither.
    """
    import jax
    from absl import logging

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report every file at the level below


class Parser(ArgumentParser):
    """argparse's parser, which also reads --config.FIELD=VALUE, and whose mistakes are one line: a UserError."""

    takes_config = False
    default_config: Callable[[Namespace], str | Path | None] | None = None

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """As argparse does; see add_config for what becomes of --config."""
        from alexnet_jax.cli import config_file  # slow to import, so not before signals are watched for

        words = list(sys.argv[1:] if args is None else args)
        others, fields = config_file.split(words) if self.takes_config else (words, [])
        flags, unknown = self.parse_known_args(others, namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        flags.command = shlex.join([*self.prog.split(), *words])
        if self.takes_config:
            name = flags.config
            if name is None and self.default_config:
                name = self.default_config(flags)
            flags.config, flags.given = config_file.read(None if name is None else str(name), fields)
        return flags

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"'{name}' is not a flag; flags start with --"
        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near else ""
        if self.takes_config and not near:
            hint = "; a field of the config is set as in --config.epochs=3"
        return f"there is no flag {name}{hint}"

    def error(self, message: str) -> NoReturn:
        """Raises UserError, where argparse prints several lines."""
        if match := re.fullmatch(r"argument ([^:]*): invalid (int|float) value: (.*)", message):
            kind = {"int": "a whole number", "float": "a number"}[match[2]]
            message = f"{match[1]} takes {kind}, and {match[3]} was given"
        elif match := re.fullmatch(r"the following arguments are required: (.*)", message):
            if "--config" in match[1].split(", "):
                raise UserError("name a config, as in --config configs/quickstart.py")
            message = f"missing: {match[1]}"
        message = message.replace(": expected one argument", " takes a value")
        message = message.removeprefix("argument ")
        raise UserError(f"{' '.join(message.split())} (see {self.prog} --help)")


class _Help(RawDescriptionHelpFormatter):
    """The docstring as it stands, and each flag's default unless its help names it."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, False, SUPPRESS) and action.default != []
        return f"{text} (default: %(default)s)" if shown and "default" not in text else text


def add_config(
    parser: ArgumentParser,
    required: bool = True,
    default: Callable[[Namespace], str | Path | None] | None = None,
) -> None:
    """--config FILE[:ARG] and --config.FIELD=VALUE.

    After Parser.parse_args, flags.config is the file's ConfigDict, locked, with the fields set, or None without a
    config; flags.given is {dotted field: value} of the fields that the command line set.

    Args:
        required: whether it is an error to give no config. It is always one to set fields of no config.
        default: default(flags) is asked if --config is not given, once all other flags are parsed. It returns the
            FILE[:ARG] to use, so that --config.FIELD=VALUE changes that one, or None for no config. convert uses it
            for the config of the weights' origin.
    """
    if not isinstance(parser, Parser):
        raise TypeError("add_config takes a commands.Parser")
    parser.takes_config, parser.default_config = True, default
    group = parser.add_argument_group(
        "config", "--config.FIELD=VALUE sets a field, as in --config.batch_size=64; alexnet_jax/config.py lists them"
    )
    says = "a Python file with get_config(); ARG is passed to it, as in configs/paper.py:smoke"
    group.add_argument("--config", metavar="FILE[:ARG]", required=required and default is None, help=says)


def add_workdir(parser: ArgumentParser, **kwargs: Any) -> None:
    """--workdir: the folder of a run."""
    options: dict[str, Any] = {"required": True, "metavar": "DIR", "help": "the run's folder"} | kwargs
    parser.add_argument("--workdir", **options)


def add_which(parser: ArgumentParser) -> None:
    """--which: the checkpoint to use."""
    says = "the checkpoint: the one with the lowest validation error, or the latest (default: best)"
    parser.add_argument("--which", choices=("best", "latest"), default="best", help=says)


def add_devices(parser: ArgumentParser, default: tuple[int, int] | None = (1, 1), otherwise: str = "1x1") -> None:
    """--devices: (data, tower), the copies of the network and the devices that each is split over.

    otherwise: what the help says of the default.
    """
    says = f"copies of the network x devices that each is split over, e.g. 1x2 (default: {otherwise})"
    parser.add_argument("--devices", type=_devices, default=default, metavar="DATAxTOWER", help=says)


def use_devices(devices: tuple[int, int]) -> None:
    """Makes JAX offer as many CPU devices as flags.devices needs; has no effect on accelerators.

    Call it before JAX uses a device.
    """
    import jax

    needed = devices[0] * devices[1]
    if needed > max(1, jax.config.values["jax_num_cpu_devices"]):  # -1 if it is not set
        jax.config.update("jax_num_cpu_devices", needed)


def add_batch_size(parser: ArgumentParser) -> None:
    """--batch-size: images at a time; None for the run's own."""
    says = "images at a time (default: the run's evaluation.batch_size)"
    parser.add_argument("--batch-size", "--batch_size", type=int, metavar="N", help=says)


def add_data(parser: ArgumentParser) -> None:
    """--data: another data set than the run's own; evaluate.images_for opens it."""
    says = "a TFDS name or a folder, of classes that the run knows, instead of its own data set"
    parser.add_argument("--data", help=says)


def add_json(parser: ArgumentParser) -> None:
    """--json: the result as JSON on standard output, and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, one object on a line")


def _devices(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise ArgumentTypeError(f"'{text}' is not data x tower, as in 4x2")
    data, tower = int(match[1]), int(match[2])
    if data * tower > MOST_DEVICES:
        raise ArgumentTypeError(f"'{text}' is {data * tower:,} devices, and at most {MOST_DEVICES} are possible")
    return data, tower
