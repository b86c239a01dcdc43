"""The paper's update rule and its learning rate (section 5), and also PyTorch's momentum and Adam.

    v <- 0.9 v - 0.0005 lr w - lr g        w <- w + v

The velocity contains the learning rate and the decay, so after a drop of the rate it takes some twenty steps to slow
down. The momentum of torch and optax multiplies by the rate outside and slows down at once. Every rule changes the rate
only between epochs, so the host computes it and passes it to the compiled step as an argument.
"""

import operator
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import UserError

ALGORITHMS = ("momentum", "sgd", "adam")
RULES = ("plateau", "epochs", "stages")
BIAS_RULES = ("weights", "epochs")
KINDS = ("kernel", "bias")


def update_rule(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Returns the update above for optax. Its `update` takes the keyword `rates`, a tree of learning rates like params.

    Weights decay; biases only do with config.decay_biases (weights.cu:147, layer.cu:565). A leaf whose rate is 0 does
    not change at all: it does not decay or coast, and its velocity is kept (weights.cu:148). A layer named in
    config.layer_decays has a weight decay of its own.

    With config.algorithm "sgd" the rate multiplies the velocity instead, as in torch.optim.SGD and optax.sgd. With
    "adam" (Kingma and Ba, 2015) it is PyTorch's Adam: the decay is part of the gradient, and the rate multiplies the
    result. As there, each leaf counts its own steps: one that is unfrozen late starts with new moments, corrected for
    their short history.

    config: the config's `optimizer` section.
    """

    def decayed(decay: float, applies: Callable[[str], bool]) -> optax.GradientTransformation:
        def decays(path, _):
            return applies(path[0].key) and (config.decay_biases or path[-1].key == "kernel")

        return optax.add_decayed_weights(decay, mask=partial(jax.tree_util.tree_map_with_path, decays))

    own = dict(config.layer_decays)
    decays = [decayed(config.weight_decay, lambda layer: layer not in own)]
    decays += [decayed(decay, partial(operator.eq, layer)) for layer, decay in own.items()]
    if config.algorithm == "adam":
        chain = optax.chain(*decays, _leaf_by_leaf(optax.scale_by_adam()), _scale_by_rates())
    elif config.algorithm == "sgd":
        chain = optax.chain(*decays, _velocity(config.momentum), _scale_by_rates())
    else:
        chain = optax.chain(*decays, _scale_by_rates(), _velocity(config.momentum))

    def update(gradients, state, params, *, rates):
        updates, new = chain.update(gradients, state, params, rates=rates)
        return _kept(updates, jax.tree.map(jnp.zeros_like, updates), rates), new

    return optax.GradientTransformationExtraArgs(chain.init, update)


def _kept(new: Any, old: Any, rates: Any) -> Any:
    """Chooses between trees that have a leaf or a subtree for each of the parameters: old where its rate is 0."""

    def of_one(rate, new, old):
        return jax.tree.map(lambda n, o: jnp.where(rate == 0, o, n), new, old)

    return jax.tree.map(of_one, rates, new, old)


def _velocity(momentum: float) -> optax.GradientTransformationExtraArgs:
    """optax.trace, but a velocity whose rate is 0 is kept.

    What it passes on is the velocity that it keeps. If weights and velocity were updated by the same sum, XLA would
    compute it twice, and would copy the old values for the second time.
    """

    def update(gradients, state, params=None, *, rates):
        sums = jax.tree.map(lambda g, v: g + momentum * v, gradients, state.trace)
        velocity = _kept(sums, state.trace, rates)
        return velocity, optax.TraceState(trace=velocity)

    return optax.GradientTransformationExtraArgs(optax.trace(momentum).init, update)


def _leaf_by_leaf(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation with a state for each leaf, in a tree like the parameters; it is kept where the rate is 0."""

    def init(params):
        return jax.tree.map(inner.init, params)

    def update(updates, state, params=None, *, rates):
        pairs = jax.tree.map(inner.update, updates, state)  # (update, state) at each leaf

        def part(i):
            return jax.tree.map(lambda _, pair: pair[i], updates, pairs)

        return part(0), _kept(part(1), state, rates)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the keyword `rates`."""

    def update(gradients, state, params=None, *, rates):
        return jax.tree.map(lambda g, rate: -rate * g, gradients, rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def new_plateau() -> dict:
    """Returns what the plateau rule remembers: the best validation error, the epochs since then or since the last drop,
    and the number of drops.
    """
    return {"best": float("inf"), "waited": 0, "drops": 0}


def watch(config: ConfigDict, plateau: dict, error: float, epochs: int) -> dict:
    """Returns the plateau after another validation top-1 error (0..1), measured `epochs` after the previous one.

    "Divide the learning rate by 10 when the validation error rate stopped improving" (section 5), up to config.drops
    times. The paper gives no patience. Here the error has stopped improving when it has not fallen by
    config.min_improvement for config.patience epochs.
    """
    if error < plateau["best"] - config.min_improvement:
        return plateau | {"best": error, "waited": 0}
    waited = plateau["waited"] + epochs
    if waited >= config.patience and plateau["drops"] < config.drops:
        return plateau | {"waited": 0, "drops": plateau["drops"] + 1}
    return plateau | {"waited": waited}


def learning_rate(config: ConfigDict, epoch: int, epochs: int, plateau: dict) -> float:
    """Returns the learning rate of weights in an epoch (0-based) of `epochs`, before any layer's own multiple."""
    if config.rule == "plateau":
        return config.learning_rate * config.factor ** plateau["drops"]
    if config.rule == "epochs":
        return config.learning_rate * config.factor ** _passed(config.drop_epochs, epoch)
    stage = min(config.stages - 1, epoch * config.stages // epochs)  # "stages", all equally long: the code's "dexp"
    return config.learning_rate * config.stages_total ** (-stage / max(1, config.stages - 1))


def _passed(epochs: Collection[int], epoch: int) -> int:
    """How many of some epochs have begun."""
    return sum(epoch >= e for e in epochs)


def rates(config: ConfigDict, params: Any, rate: float, epoch: int) -> Any:
    """Returns the learning rates of an epoch, a tree like params with one float32 for each leaf.

    Biases get config.bias_rate times the rate of weights. With config.bias_rule "epochs" they get that multiple of the
    first rate instead, multiplied by config.factor at each of config.bias_drop_epochs: the code's epsB, a number
    separate from epsW. From an epoch on, config.layer_rates multiplies the rates of a layer, its kernel or its bias.

    Args:
      config: the config's `optimizer` section.
      params: {layer: {"kernel", "bias"}}.
      rate: that of weights, from learning_rate().
      epoch: 0-based.
    Raises UserError if layer_rates names a layer that does not exist.
    """
    multiples = _multiples(config, params, epoch)
    of = {"kernel": rate, "bias": rate * config.bias_rate}
    if config.bias_rule == "epochs":
        drops = _passed(config.bias_drop_epochs, epoch)
        of["bias"] = config.learning_rate * config.bias_rate * config.factor**drops

    def leaf(path, _):
        layer, kind = path[0].key, path[-1].key
        return np.float32(of[kind] * multiples[layer, kind])

    return jax.tree_util.tree_map_with_path(leaf, params)


def frozen(config: ConfigDict, layers: Collection[str], epochs: int) -> frozenset[str]:
    """Returns the layers whose rates config.layer_rates keeps at 0 in all of `epochs` epochs. They need no gradient.

    Raises UserError if that is all of the layers, or if layer_rates names a layer that does not exist.
    """
    found = frozenset(layers)
    changes = {0} | {start for start, _, _ in config.layer_rates if start < epochs}  # epochs where multiples change
    for epoch in changes:
        multiples = _multiples(config, layers, epoch)
        found &= {layer for layer in found if all(multiples[layer, kind] == 0 for kind in KINDS)}
    if found == frozenset(layers):
        raise UserError("--config.optimizer.layer_rates freezes every layer from the first epoch to the last")
    return found


def _multiples(config: ConfigDict, layers: Collection[str], epoch: int) -> dict[tuple[str, str], float]:
    """The factors by which config.layer_rates multiplies the rates of each layer's kernel and bias in an epoch.

    Entries of the same epoch apply in the order of their names, so that "conv1/bias" overrides "conv1", and of two with
    the same name the later one counts.
    """
    multiples = {(layer, kind): 1.0 for layer in layers for kind in KINDS}
    for start, name, multiple in sorted(config.layer_rates, key=lambda entry: tuple(entry[:2])):
        layer, slash, kind = name.partition("/")
        if layer not in layers or slash and kind not in KINDS:
            raise UserError(
                f"--config.optimizer.layer_rates names '{name}'; the layers are {', '.join(layers)}, "
                "each alone or with /kernel or /bias"
            )
        if epoch >= start:
            multiples |= {(layer, k): multiple for k in ([kind] if slash else KINDS)}
    return multiples
