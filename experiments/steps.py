"""Training steps to be timed, on images of noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import towers
from alexnet_jax.analysis import summary
from alexnet_jax.train import program


def stepper(config: ConfigDict) -> tuple[Callable[[], None], dict[str, int]]:
    """(a function that runs one step of a config and waits for it, summary.memory of it); compiles it."""
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    compiled = summary.compile_step(config, mesh)
    random = np.random.default_rng(0)

    def fill(s):
        """The run's key; images of noise; zeros, rates too: what is computed takes as long."""
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            value = jax.random.key(config.seed)
        elif s.dtype == jnp.uint8:
            value = random.integers(0, 256, s.shape, np.uint8)
        else:
            value = np.zeros(s.shape, s.dtype)
        return jax.device_put(value, s.sharding)

    rest = jax.tree.map(fill, summary.inputs(config, mesh)[1:])
    state = program(config, mesh).start()

    def step():
        nonlocal state
        state, _ = compiled(state, *rest)
        jax.block_until_ready(state)

    return step, summary.memory(compiled)
