"""How tests are compiled, and in which order they run. What they share is in helpers/fixtures.py."""

import atexit
import gc
import os
import re
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile a lot and compute little: without optimization they take a third of the time. Your own flags win. Tests
# marked as_shipped, the numerical core, are run with optimization: ALEXNET_JAX_TESTS=shipped, see the Makefile.
if os.environ["JAX_PLATFORMS"] == "cpu" and os.environ.get("ALEXNET_JAX_TESTS") != "shipped":
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}".strip()
# The tests of a session and the runs they fork share a compilation cache, as a user's runs do. It begins empty.
# Commands that tests start as a user does have one of their own beside it, and never the user's.
if "PYTEST_XDIST_WORKER" not in os.environ:
    cache = tempfile.mkdtemp(prefix="alexnet_jax_tests.")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["ALEXNET_JAX_TESTS_CACHE"] = os.environ["XDG_CACHE_HOME"] = cache
    os.environ["MPLCONFIGDIR"] = cache  # not the user's fonts and sizes

# What a pass over marked tests asks for with -m, as the Makefile does: other files need not be imported.
MARKED = re.compile(r"(?<!not )\bas_shipped\b")
SLOW = ("test_distributed", "test_train", "test_sweep")  # whole runs, several processes


def pytest_configure(config):
    """The fixtures, which import JAX: not in the process that only hands tests out to the workers of pytest-xdist."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_ignore_collect(collection_path, config):
    if collection_path.suffix == ".py" and MARKED.search(config.getoption("markexpr")):
        return "as_shipped" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(items):
    """The slow files first, so that no core is left with a long test at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


def pytest_collection_finish():
    """What was imported stays: no collection needs to look at it again."""
    gc.collect()
    gc.freeze()
