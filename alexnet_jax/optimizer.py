"""The paper's update rule and its learning rate (section 5).

    v <- 0.9 v - 0.0005 lr w - lr g        w <- w + v

The velocity carries the learning rate and the decay, so after a drop it coasts on for some twenty steps; torch's and
optax's own momentum multiply by the rate outside and slow down at once. Every rule changes the rate between epochs
only, so the host works it out and hands it to the compiled step as an argument.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import UserError

RULES = ("plateau", "epochs", "stages")


def update_rule(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The update above as optax; `update` takes the keyword `rates`, a tree of learning rates like the parameters.

    Weights decay and biases do not, unless config.decay_biases (weights.cu:147, layer.cu:565). A leaf whose rate is
    0 is left alone wholly: no decay, no coasting, its velocity kept (weights.cu:148).
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: config.decay_biases or path[-1].key == "kernel", params
        )  # fmt: skip

    chain = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed), _scale_by_rates(), optax.trace(config.momentum)
    )

    def update(gradients, state, params, *, rates):
        updates, new_state = chain.update(gradients, state, params, rates=rates)
        updates = jax.tree.map(lambda u, rate: jnp.where(rate == 0, 0, u), updates, rates)
        old, new = state[-1].trace, new_state[-1].trace
        kept = jax.tree.map(lambda n, o, rate: jnp.where(rate == 0, o, n), new, old, rates)
        return updates, (*new_state[:-1], optax.TraceState(trace=kept))

    return optax.GradientTransformationExtraArgs(chain.init, update)


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    def update(gradients, state, params=None, *, rates):
        return jax.tree.map(lambda g, rate: -rate * g, gradients, rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def new_plateau() -> dict:
    """What the plateau rule remembers: the best validation error, how many epochs ago it was, and the drops so far."""
    return {"best": float("inf"), "waited": 0, "drops": 0}


def watch(config: ConfigDict, plateau: dict, error: float) -> dict:
    """The plateau after another epoch's validation top-1 error (0..1).

    "Divide the learning rate by 10 when the validation error rate stopped improving" (section 5), up to config.drops
    times. The paper gives no patience; config.patience epochs without a fall of config.min_improvement are a stop.
    """
    if error < plateau["best"] - config.min_improvement:
        return plateau | {"best": error, "waited": 0}
    waited = plateau["waited"] + 1
    if waited >= config.patience and plateau["drops"] < config.drops:
        return plateau | {"waited": 0, "drops": plateau["drops"] + 1}
    return plateau | {"waited": waited}


def learning_rate(config: ConfigDict, epoch: int, epochs: int, plateau: dict) -> float:
    """The learning rate of weights in an epoch (0-based) of `epochs`, before any layer's own multiple.

    Raises UserError on an unknown rule.
    """
    if config.rule == "plateau":
        return config.learning_rate * config.factor ** plateau["drops"]
    if config.rule == "epochs":
        return config.learning_rate * config.factor ** sum(epoch >= e for e in config.drop_epochs)
    if config.rule == "stages":  # equal stages, the last one stages_total below the first (the code's "dexp")
        stage = min(config.stages - 1, epoch * config.stages // epochs)
        return config.learning_rate * config.stages_total ** (-stage / max(1, config.stages - 1))
    raise UserError(f"--config.optimizer.rule is '{config.rule}' and must be one of {', '.join(RULES)}")


def rates(config: ConfigDict, params, rate: float, epoch: int):
    """The tree of learning rates of an epoch, one float32 per leaf of `params` ({layer: {"kernel", "bias"}}).

    Biases get config.bias_rate times the rate of weights; config.layer_rates multiplies a layer's from an epoch on.
    Raises UserError if layer_rates names a layer that is not there.
    """
    multiples = {}
    for start, layer, multiple in sorted(config.layer_rates):
        if layer not in params:
            raise UserError(f"--config.optimizer.layer_rates names '{layer}'; the layers are {', '.join(params)}")
        if epoch >= start:
            multiples[layer] = multiple

    def leaf(path, _):
        own = rate * multiples.get(path[0].key, 1.0)
        return np.float32(own * (config.bias_rate if path[-1].key == "bias" else 1.0))

    return jax.tree_util.tree_map_with_path(leaf, params)
