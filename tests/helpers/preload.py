"""What a run imports. helpers.runs forks its runs from a process that has imported this file.

alexnet_jax.main is left out: each run executes it, as `python -m alexnet_jax.main` does. Neither JAX nor TensorFlow has
started a thread or a device yet, so it is safe to fork.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy starts threads at import
# JAX reads these at import.
os.environ["JAX_NUM_CPU_DEVICES"] = "1"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["ALEXNET_JAX_TESTS_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import tensorflow  # noqa: F401

import alexnet_jax.analysis.figures  # noqa: F401
import alexnet_jax.train  # noqa: F401
