"""python -m alexnet_jax VERB, the same as `alexnet VERB`."""

from alexnet_jax.cli import verbs

if __name__ == "__main__":
    verbs.program()
