"""python -m experiments.benchmark WHAT ..., the same as `alexnet benchmark WHAT ...`."""

import sys

from alexnet_jax.cli import verbs

if __name__ == "__main__":
    verbs.main(["benchmark", *sys.argv[1:]])
