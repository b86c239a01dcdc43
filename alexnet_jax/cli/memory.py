"""The setting of glibc's allocator that every command runs with on Linux.

A training step takes hundreds of megabytes from the system and gives them back. In pages of 2 MB instead of 4 KB that
takes a fraction of the time.
"""

import contextlib
import multiprocessing
import os
import platform
import sys

TUNABLES = "glibc.malloc.hugetlb=1"  # from glibc 2.35; older ones ignore it, as do systems that have no such pages


def restart() -> None:
    """Starts the command again with the setting, which glibc only reads when a process starts.

    The process keeps its id, its terminal and its files. Call it first, before anything slow is imported. Nothing
    happens if the user has set GLIBC_TUNABLES, where the C library is not glibc, or in a process that another program
    of Python has started or turned into this command.
    """
    words = sys.argv[1:]
    typed = sys.orig_argv[len(sys.orig_argv) - len(words) :] == words and multiprocessing.parent_process() is None
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc" or not typed:
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    with contextlib.suppress(OSError):  # without the setting the command is slower, but right
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
