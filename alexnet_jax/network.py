"""The network of a config: AlexNet, or the chain of layers that `model.layers` lists, which is never both."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax.cifar import Chain
from alexnet_jax.model import AlexNet


def network(config: ConfigDict) -> AlexNet | Chain:
    """The network of a config's `model` section, as a module: images -> (logits, activations by name)."""
    frozen = FrozenConfigDict(config)
    return Chain(frozen) if config.layers else AlexNet(frozen)


def shapes(config: ConfigDict, crop: int) -> dict:
    """The parameters' shapes and dtypes, {layer: {"kernel", "bias"}}, without computing anything."""
    images = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))  # a real one would take an accelerator for this process
    return jax.eval_shape(network(config).init, key, images)["params"]


def parameter_count(params) -> int:
    """The number of weights and biases in a parameter tree or its shapes: 60,965,224 for the paper's network."""
    return sum(p.size for p in jax.tree.leaves(params))
