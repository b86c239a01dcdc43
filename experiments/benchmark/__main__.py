"""python -m experiments.benchmark WHAT ..., the same as `alexnet benchmark WHAT ...`."""

from alexnet_jax.cli import verbs

if __name__ == "__main__":
    verbs.program("benchmark")
