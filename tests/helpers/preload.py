"""What a run imports, imported once: helpers.runs forks its runs from a process that has read this file.

main itself is left out: each run executes it as `python -m alexnet_jax.main` does. JAX starts no threads before its
first computation, and TensorFlow none before its first dataset, so this process may fork.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy starts threads when it is imported
os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # JAX reads it when it is imported

import tensorflow  # noqa: F401

import alexnet_jax.analysis.figures  # noqa: F401
import alexnet_jax.train  # noqa: F401
