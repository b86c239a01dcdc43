"""The paper's update rule and its learning rate (section 5); PyTorch's momentum and Adam beside it.

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

ALGORITHMS = ("momentum", "sgd", "adam")
RULES = ("plateau", "epochs", "stages")
BIAS_RULES = ("weights", "epochs")
KINDS = ("kernel", "bias")


def update_rule(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The update above as optax; `update` takes the keyword `rates`, a tree of learning rates like the parameters.

    Weights decay and biases do not, unless config.decay_biases (weights.cu:147, layer.cu:565). A leaf whose rate is
    0 is left alone wholly: no decay, no coasting, its velocity kept (weights.cu:148).

    With config.algorithm "sgd" the rate multiplies the velocity instead, as in torch.optim.SGD and optax.sgd; with
    "adam" (Kingma and Ba, 2015) it is PyTorch's Adam: the decay is part of the gradient, and the rate multiplies the
    outcome. Each leaf counts its own steps, as there: one that thaws late starts afresh, its moments corrected for
    their short history.
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: config.decay_biases or path[-1].key == "kernel", params
        )  # fmt: skip

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    if config.algorithm == "adam":
        chain = optax.chain(decay, _leaf_by_leaf(optax.scale_by_adam()), _scale_by_rates())
    elif config.algorithm == "sgd":
        chain = optax.chain(decay, optax.trace(config.momentum), _scale_by_rates())
    else:
        chain = optax.chain(decay, _scale_by_rates(), optax.trace(config.momentum))

    def update(gradients, state, params, *, rates):
        def kept(new, old):
            """Trees whose leaves or subtrees are a parameter's own: the old ones where its rate is 0."""
            return jax.tree.map(
                lambda rate, n, o: jax.tree.map(lambda a, b: jnp.where(rate == 0, b, a), n, o), rates, new, old
            )

        def part(new, old):
            if isinstance(new, optax.TraceState):
                return optax.TraceState(trace=kept(new.trace, old.trace))
            return kept(new, old) if isinstance(new, dict) else new  # Adam's moments; else nothing to keep

        updates, new = chain.update(gradients, state, params, rates=rates)
        return kept(updates, jax.tree.map(jnp.zeros_like, updates)), tuple(map(part, new, state))

    return optax.GradientTransformationExtraArgs(chain.init, update)


def _leaf_by_leaf(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation with a state of its own for each leaf, in a tree like the parameters."""

    def update(updates, state, params=None):
        leaves, tree = jax.tree.flatten(updates)
        pairs = map(inner.update, leaves, tree.flatten_up_to(state))
        return tuple(map(tree.unflatten, zip(*pairs, strict=True)))

    return optax.GradientTransformation(lambda params: jax.tree.map(inner.init, params), update)


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    def update(gradients, state, params=None, *, rates):
        return jax.tree.map(lambda g, rate: -rate * g, gradients, rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def new_plateau() -> dict:
    """What the plateau rule remembers: the best validation error, how many epochs ago it was, and the drops so far."""
    return {"best": float("inf"), "waited": 0, "drops": 0}


def watch(config: ConfigDict, plateau: dict, error: float, epochs: int) -> dict:
    """The plateau after another validation top-1 error (0..1), `epochs` after the one before.

    "Divide the learning rate by 10 when the validation error rate stopped improving" (section 5), up to config.drops
    times. The paper gives no patience; config.patience epochs without a fall of config.min_improvement are a stop.
    """
    if error < plateau["best"] - config.min_improvement:
        return plateau | {"best": error, "waited": 0}
    waited = plateau["waited"] + epochs
    if waited >= config.patience and plateau["drops"] < config.drops:
        return plateau | {"waited": 0, "drops": plateau["drops"] + 1}
    return plateau | {"waited": waited}


def learning_rate(config: ConfigDict, epoch: int, epochs: int, plateau: dict) -> float:
    """The learning rate of weights in an epoch (0-based) of `epochs`, before any layer's own multiple."""
    if config.rule == "plateau":
        return config.learning_rate * config.factor ** plateau["drops"]
    if config.rule == "epochs":
        return config.learning_rate * config.factor ** sum(epoch >= e for e in config.drop_epochs)
    stage = min(config.stages - 1, epoch * config.stages // epochs)  # "stages", equal ones: the code's "dexp"
    return config.learning_rate * config.stages_total ** (-stage / max(1, config.stages - 1))


def rates(config: ConfigDict, params, rate: float, epoch: int):
    """The tree of learning rates of an epoch, one float32 per leaf of `params` ({layer: {"kernel", "bias"}}).

    Args: rate: of weights, learning_rate().
    Biases get config.bias_rate times the rate of weights; or, by bias_rule "epochs", times the first rate, which then
    falls by config.factor at each of config.bias_drop_epochs alone: the code's epsB, a number of its own beside epsW.
    config.layer_rates multiplies a layer's rates, or those of its kernel or its bias, from an epoch on.
    Raises UserError if layer_rates names what is not there.
    """
    multiples = _multiples(config, params, epoch)
    of = {"kernel": rate, "bias": rate * config.bias_rate}
    if config.bias_rule == "epochs":
        drops = sum(epoch >= e for e in config.bias_drop_epochs)
        of["bias"] = config.learning_rate * config.bias_rate * config.factor**drops

    def leaf(path, _):
        layer, kind = path[0].key, path[-1].key
        return np.float32(of[kind] * multiples[layer, kind])

    return jax.tree_util.tree_map_with_path(leaf, params)


def frozen(config: ConfigDict, layers, epochs: int) -> frozenset[str]:
    """The layers that config.layer_rates keeps wholly at 0 in each of `epochs` epochs; none needs a gradient.

    Raises UserError if that is all of them, or if layer_rates names what is not there.
    """
    found = frozenset(layers)
    for epoch in {0, *(start for start, _, _ in config.layer_rates if start < epochs)}:  # where multiples change
        multiples = _multiples(config, layers, epoch)
        found &= {layer for layer in found if all(multiples[layer, kind] == 0 for kind in KINDS)}
    if found == frozenset(layers):
        raise UserError("--config.optimizer.layer_rates freezes every layer from the first epoch to the last")
    return found


def _multiples(config: ConfigDict, layers, epoch: int) -> dict[tuple[str, str], float]:
    """What config.layer_rates multiplies the rate of each layer's kernel and bias by in an epoch.

    Entries of one epoch go in the order of their names, so that "conv1/bias" has the last word over "conv1".
    """
    multiples = {(layer, kind): 1.0 for layer in layers for kind in KINDS}
    for start, name, multiple in sorted(config.layer_rates):
        layer, slash, kind = name.partition("/")
        if layer not in layers or slash and kind not in KINDS:
            raise UserError(
                f"--config.optimizer.layer_rates names '{name}'; the layers are {', '.join(layers)}, "
                "each alone or with /kernel or /bias"
            )
        if epoch >= start:
            multiples |= {(layer, k): multiple for k in ([kind] if slash else KINDS)}
    return multiples
