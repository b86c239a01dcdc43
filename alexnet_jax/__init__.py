"""AlexNet as it was in 2012, in JAX: two towers, trained, measured and used on the hardware of today."""

__version__ = "0.1.0"


class UserError(Exception):
    """Something the user can mend. The message is one line that says what is wrong and how to fix it."""


def one_line(error: Exception) -> str:
    """An exception for the message of a UserError: its kind and its text, cut short."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
