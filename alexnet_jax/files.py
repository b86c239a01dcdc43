"""The one way to write a file: it is complete under its name, or it is not there at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to. Its file is renamed to `path` when the block ends, and removed if the block fails.

    Raises UserError if the file cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():  # a device, which the file would replace
        raise UserError(f"{path} is no file: name another")
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path} ({reason}): name a file where there is room and you can write") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
