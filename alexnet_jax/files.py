"""Files written safely: complete under their name or not there at all, by one process at a time.

write_text(Path("table.md"), table)
with replacing(Path("picture.png")) as partial:
    figure.savefig(partial, format="png")
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from alexnet_jax import UserError


def expanded(path: str | Path) -> Path:
    """A path with a user's home folder for ~ or ~user at its beginning. Raises UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no user of this name: write the folder's full path") from error


def cache_folder() -> Path:
    """Where what is kept between runs goes: alexnet_jax below $XDG_CACHE_HOME or ~/.cache. Raises UserError."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet_jax"
    except RuntimeError as error:
        message = "this user has no home folder: set XDG_CACHE_HOME to a folder for what is kept between runs"
        raise UserError(message) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to. Its file is renamed to `path` when the block ends, and removed if the block fails.

    The temporary path is `path` with ".tmp" after it. What a killed process left there is taken over. Raises UserError
    if the file cannot be written, or if another process is writing it.
    """

    def busy() -> None:
        raise UserError(f"another process writes {path}: wait for it, or name another file")

    refuse_no_file(path)
    partial = path.with_name(f"{path.name}.tmp")
    with writing(path), alone(partial, busy):
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str):
    """Makes `text` the content of the file, in UTF-8. Raises UserError as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes `path` or its parts, into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path} ({reason}): free some space, or write somewhere else") from error


def refuse_no_file(path: Path) -> None:
    """Raises UserError if `path` is something that a file must not replace: a folder, a device or a pipe."""
    if path.is_dir():
        raise UserError(f"cannot write {path}, which is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}, which is a device or a pipe: name a file")


@contextlib.contextmanager
def alone(path: Path, busy: Callable[[], object] | None = None) -> Iterator[BinaryIO]:
    """Creates the file `path`, empty, and locks it for this process; removes it at the end unless it was renamed.

    A file that a killed process left there is taken over: its lock ended with the process. If another process holds
    the lock, `busy` is called, and this waits for the lock unless `busy` raises. Without `busy` it raises
    BlockingIOError instead of waiting.
    """
    while True:
        with contextlib.ExitStack() as held:
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: SIM115
            held.callback(close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy is None:
                    raise
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):  # its holder removed it while this process waited
                continue
            try:
                file.truncate()
                yield file
            finally:
                if _is_at(path, file):
                    path.unlink()
            return


def try_lock(path: Path) -> TextIO | None:
    """A lock that stays at `path`, held until it is closed; None if another process has it. Raises OSError."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder: whoever reads and then writes in it.

    It leaves no file behind. Raises OSError if the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def close(file: BinaryIO) -> None:
    """Closes a file that nobody will read, so a full disk that cannot take the rest of it does not matter."""
    with contextlib.suppress(OSError):
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def slug(name: str) -> str:
    """Returns the name as part of a file's name: all but letters, digits, "_", "." and "-" become "_"."""
    return re.sub(r"[^\w.-]", "_", name)
