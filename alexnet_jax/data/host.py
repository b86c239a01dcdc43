"""The host's share of the work: threads on all its cores, what it has, and TensorFlow kept off the accelerators."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from alexnet_jax import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sees_gpus() -> bool:
    """Returns whether this process may use a GPU of NVIDIA's, whether or not JAX is installed for it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 0
) -> Generator[Result, None, None]:
    """Yields function(item) in the items' order, computed in threads on all cores.

    At least `ahead` results are computed before they are asked for. Closing the generator early stops the threads, so
    close it (contextlib.closing) wherever an error may leave it behind: the garbage collector would close it at any
    moment, in any thread, also in one that holds the locks of new threads.
    """
    owner = threading.get_ident()
    ahead = max(ahead, 2 * cores())
    pool = ThreadPoolExecutor(cores())
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:  # a bounded queue, so that memory is bounded too
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=threading.get_ident() == owner, cancel_futures=True)  # see above: others may not wait


def tensorflow() -> ModuleType:
    """Returns TensorFlow, kept off the accelerators, whose memory JAX needs. Raises UserError if it is not installed.

    It is imported here alone, on first use: training from a prepared set runs without it if the set is raw, or with
    `data.on_device`.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"this needs TensorFlow ({error}): install it, or train from a set that is already prepared, raw or with "
            "--config.data.on_device"
        ) from error
    with contextlib.suppress(RuntimeError):  # TensorFlow is already in use: too late
        tf.config.set_visible_devices([], "GPU")
    tf.get_logger().setLevel("ERROR")  # TFDS calls functions that TensorFlow deprecates
    return tf
