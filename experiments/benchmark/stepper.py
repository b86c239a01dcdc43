"""Training steps to be timed, on random images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import towers
from alexnet_jax.analysis import cost
from alexnet_jax.train import program


def stepper(config: ConfigDict) -> tuple[Callable[[], dict], dict[str, int]]:
    """Compiles a config's training step.

    Returns: a function that starts a step and returns the state after it, which the devices may still be computing; its
    memory on each device, as cost.memory gives it.
    """
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    net = program(config, mesh)
    compiled = cost.compile_step(config, mesh, net)
    random = np.random.default_rng(0)

    def fill(s: jax.ShapeDtypeStruct) -> jax.Array:
        """The run's key, random images, or zeros: rates of zero take as long to apply as others."""
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            value: jax.Array | np.ndarray = jax.random.key(config.seed)
        elif s.dtype == jnp.uint8:
            value = random.integers(0, 256, s.shape, np.uint8)
        else:
            value = np.zeros(s.shape, s.dtype)
        return jax.device_put(value, s.sharding)

    batch, epoch, constants = jax.tree.map(fill, cost.inputs(config, mesh, net)[1:])
    state = net.new_state()

    def step():
        nonlocal state
        state, _ = compiled(state, batch, epoch, constants)
        return state

    return step, cost.memory(compiled)
