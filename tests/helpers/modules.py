"""Modules that are imported as if for the first time."""

import contextlib
import sys


@contextlib.contextmanager
def forgotten(package):
    """A package and its modules are not imported yet; afterwards those imported before are back."""

    def known():
        return [name for name in sys.modules if name.split(".")[0] == package]

    before = {name: sys.modules.pop(name) for name in known()}
    try:
        yield
    finally:
        for name in known():
            del sys.modules[name]
        sys.modules.update(before)
