"""One way through a network: images in, and the probabilities or layers that are asked for out.

    forward = make_forward(run, layers=["fc7"])
    for batch, found in rows(run, forward, SplitImages(split), batch_size=128):
        found["fc7"]     # float32 (images, 4096)

Evaluation, predictions, features, figures and retrieval all come through here, and so does training's validation. The
results of a batch are fetched once the next one is on its way, so the devices never wait for the host.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from alexnet_jax import UserError, towers
from alexnet_jax.data import augment
from alexnet_jax.data.batches import Batch
from alexnet_jax.data.images import Images
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.network import shapes
from alexnet_jax.runs.run import Run

LOGS = "log_probabilities"  # the name of the network's answer, beside the layers' names
Forward = Callable[..., dict[str, jax.Array]]  # see make_forward
T = TypeVar("T")


class Result(NamedTuple):
    """A batch and the network's results for it, on the devices, which may still be computing them."""

    batch: Batch
    labels: jax.Array  # int32 (b,)
    mask: jax.Array  # float32 (b,)
    arrays: dict[str, jax.Array]  # by name, of b rows, padding included
    not_finite: jax.Array  # int32: how many images have NaN or infinity in an array; see refuse_not_finite


# --- What is computed -------------------------------------------------------------------------------------------------


def log_mean(log_probabilities: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """The logarithm of the mean of probabilities, from their logarithms; nothing underflows on the way."""
    count = np.prod([log_probabilities.shape[i] for i in np.atleast_1d(axis)])
    return jax.nn.logsumexp(log_probabilities, axis=axis) - np.log(count, dtype=np.float32)


@jax.jit
def log_mean_of(parts: list[jax.Array]) -> jax.Array:
    """`log_mean` over several arrays of one shape, such as those of ten views or of several networks."""
    return log_mean(jnp.stack(parts), axis=0)


def layer_shapes(run: Run, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of one image's activations. Raises UserError, listing the layers, if the network lacks one."""
    side = run.config.data.crop
    images = jax.ShapeDtypeStruct((run.mesh.shape[towers.DATA], side, side, 3), np.float32)
    there = jax.eval_shape(run.apply, shapes(run.config.model, side), images)[1]
    if unknown := [name for name in layers if name not in there]:
        raise UserError(f"the network has no layer {', '.join(unknown)}: it has {', '.join(there)}")
    return {name: there[name].shape[1:] for name in layers}


def make_forward(run: Run, *, layers: Sequence[str] = (), dense: bool = False) -> Forward:
    """A run's network as a function, forward(params, statistics, images, views=1), compiled once for all batches.

    Args:
      layers: the layers to return. Only as much of the network runs as they need.
      dense: the network slides over whole images instead of seeing crops; see dense_apply.
    The function's arguments: params; statistics, of the training set; images uint8 (b, size, size, 3), placed on the
    mesh; views: 1, the centre crop, or 10 (section 4.1). It returns arrays by name: the layers' activations (b, ...) of
    the centre crop, or, if no layers are named, LOGS float32 (b, classes), the logarithms of the mean of all views' or
    places' softmax outputs. (The 2012 code averages probabilities too, not logits: layer.cu:1805.)
    Raises UserError if the network lacks a layer or cannot slide. The function raises ValueError if layers are asked
    for of views.

    LOGS are logarithms because of the loss: float32 has no number between 0 and 1e-45, so probabilities would give a
    network that is wrong and sure by a hundred nats an infinite loss.
    """
    if layers:
        layer_shapes(run, layers)
    apply, data = dense_apply(run) if dense else run.apply, run.config.data

    # Ten views are ten calls, of `cut` too: one call on all of them would need ten times the memory.
    @partial(jax.jit, compiler_options=towers.compiler_options(run.mesh.devices.flat[0].platform))
    def see(params, crop):
        logits, activations = apply(params, crop)
        if layers:
            return {name: activations[name] for name in layers}
        logs = jax.nn.log_softmax(logits)
        return {LOGS: log_mean(logs, axis=(1, 2)) if dense else logs}

    @partial(jax.jit, static_argnames=("views", "view"))
    def cut(statistics, images, views, view):
        if dense:
            return augment.whole(images, statistics, data)
        return augment.views(images, statistics, data, views)[view]  # the others are not computed

    def forward(params, statistics, images, views=1):
        if layers and views != 1:
            raise ValueError(f"layers are those of the centre crop, and views is {views}")
        seen = [see(params, cut(statistics, images, views, view)) for view in range(1 if dense else views)]
        if layers:
            return seen[0]
        return {LOGS: log_mean_of([one[LOGS] for one in seen])}

    return forward


def dense_apply(run: Run) -> Callable:
    """The run's network, its fully connected layers sliding over whole images: logits are maps (b, h, w, classes).

    Raises UserError if it is a chain of layers, or if its fc6 reads maps that were averaged from another size.
    """
    m, crop = run.config.model, run.config.data.crop
    if m.layers:
        raise UserError(f"{run.workdir} is no AlexNet, and only AlexNet slides: evaluate it with --views")
    if m.average_pool:
        images = jax.ShapeDtypeStruct((run.mesh.shape[towers.DATA], crop, crop, 3), jnp.float32)
        _, maps = jax.eval_shape(run.apply, run.params, images)
        last = str(len(m.conv_widths))
        side = min(x.shape[1] for name, x in maps.items() if x.ndim == 4 and name[-1] == last and "average" not in name)
        if side != m.average_pool:
            raise UserError(
                f"{run.workdir} averages maps of {side} x {side} to {m.average_pool} x {m.average_pool} for fc6, which "
                "cannot slide over others: evaluate it with --views"
            )
    net = AlexNet(FrozenConfigDict(run.config.model), dense=fc6_side(run.config.model, run.params))
    return towers.split(net, run.mesh)


# --- Over images ------------------------------------------------------------------------------------------------------


def batch_size(run: Run, images: int, asked: int | None = None) -> int:
    """How many images to run at a time: as asked, or as the run's config says; of fewer images no more than they need.

    Raises UserError if `asked` does not divide over the mesh's copies of the network.
    """
    copies = run.mesh.shape[towers.DATA]
    if asked is None:
        asked = -(-run.config.evaluation.batch_size // copies) * copies
    if asked < 1 or asked % copies:
        raise UserError(
            f"--batch-size={asked} must be a positive multiple of the {copies} data-parallel copies of the network"
        )
    return min(asked, -(-images // copies) * copies)


def on_devices(run: Run, forward: Forward, images: Images, batch_size: int, views: int = 1) -> Iterator[Result]:
    """Runs the run's network over images and yields each batch's Result once it is dispatched.

    forward: of make_forward. batch_size: of whole batches; several processes each read and give their share of it.
    """
    sharding = towers.batch_sharding(run.mesh)
    for batch in images.batches(batch_size, towers.share(run.mesh)):
        pixels, labels, mask = towers.place((batch.images, batch.labels, batch.mask), sharding)
        arrays = forward(run.params, run.statistics, pixels, views=views)
        yield Result(batch, labels, mask, arrays, _not_finite(arrays, mask))


def rows(
    run: Run, forward: Forward, images: Images, batch_size: int, views: int = 1
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Yields each batch and its arrays by name, float32 (n, ...), without rows for the padding.

    Arguments as of on_devices. Raises UserError if an array contains NaN or infinity.
    """
    for result in late(on_devices(run, forward, images, batch_size, views)):
        refuse_not_finite(run, result.not_finite)
        count = len(result.batch.ids)
        yield result.batch, {name: np.asarray(array, np.float32)[:count] for name, array in result.arrays.items()}


def late(items: Iterable[T], by: int = 1) -> Iterator[T]:
    """Yields each item once `by` more are made, so that the devices work while the host waits for results."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > by:
            yield held.popleft()
    yield from held


def refuse_not_finite(run: Run, count: jax.Array) -> None:
    """Raises UserError if a Result's `not_finite` is not 0; waits for it."""
    if int(count):
        raise UserError(
            f"step {run.step} of {run.workdir} gives NaN or infinity: its training diverged, so train it again with a "
            "lower --config.optimizer.learning_rate"
        )


@jax.jit
def _not_finite(arrays: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
    bad = jnp.zeros(mask.shape, bool)
    for array in arrays.values():
        bad |= ~jnp.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return jnp.sum(bad & (mask > 0))
