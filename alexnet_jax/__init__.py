"""AlexNet as it was in 2012, in JAX: two towers, trained, measured and used on the hardware of today."""

__version__ = "0.1.0"


class UserError(Exception):
    """Something the user can mend. The message is one line that says what is wrong and how to fix it."""
