"""AlexNet as it was in 2012, in JAX: two towers, trained, measured and used on today's hardware."""

import errno
import os
import re

__version__ = "0.1.0"

# Read once, when jaxlib or TensorFlow loads; 0 brings all their messages back. Up to jaxlib 0.10.1, on some CPUs, every
# program from the compilation cache causes pages of warnings about CPU features that do not matter (jax-ml/jax#38445).
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not needed to decode, and it greets at every level


class UserError(Exception):
    """Something the user can fix. The message is one line that says what is wrong and how to fix it."""


# What a file is not to blame for: too many open files, no memory, a disk or a network that fails.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the host's or a device's. XLA says so in one of two ways."""
    exhausted = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    return exhausted or isinstance(error, MemoryError) or "Out of memory" in str(error)


def no_platform(error: BaseException) -> bool:
    """Whether JAX found no device of the platform that JAX_PLATFORMS names. It asserts, or says so, as it finds out."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    bare = isinstance(error, AssertionError) and last and last.tb_frame.f_code.co_name == "backends"
    return bool(bare) or (isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error))


def may_pass(error: BaseException) -> bool:
    """Whether reading failed for a reason that is not in the file and may pass. TensorStore's errors name errno."""
    said = re.search(r"os_error_code='(\d+)'", str(error))
    code = int(said[1]) if said else getattr(error, "errno", None)
    return code in PASSING or out_of_memory(error)


def one_line(error: Exception) -> str:
    """An exception as text for the message of a UserError: its type and its message, cut short."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
