"""AlexNet as it was in 2012, in JAX: two towers, trained, measured and used on the hardware of today."""

import os

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
