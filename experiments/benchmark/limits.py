"""What a piece of work takes at the least: the operations of its matrix products, and the bytes that it must move.

Operations are two for each multiply-add of the convolutions and of the fully connected layers. Training takes three
times those of the forward pass, without the first layer's gradient to the images.

Bytes are those of a program that fuses all it can. The outputs of convolutions, pools and fully connected layers are
written and read once in the forward pass, and as often in the backward pass; norms and nonlinearities are computed
with their neighbours. Images are read once. Parameters are float32, read in each pass; training also writes their
gradients, and its update reads parameters, velocities and gradients, and writes parameters and velocities.
"""

from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.analysis.summary import layer_costs

VIEWS = 10
FUSED = ("relu", "tanh", "lrn", "spatial_norm")  # kinds of a chain's layers, see cifar.py


class Cost(NamedTuple):
    """Of one step on one batch, all devices together."""

    operations: int
    bytes: int


def cost(config: ConfigDict, mesh: Mesh, what: str) -> Cost:
    """What a step takes at the least. what: "train", "forward" or "ten-view"."""
    data, tower = mesh.shape["data"], mesh.shape["tower"]
    rows = layer_costs(config, mesh)
    copies = {row["name"]: tower if row["name"] == "fc8" else 1 for row in rows}  # fc8 is whole on each tower's device
    products = {row["name"]: 2 * config.batch_size * row["macs"] * copies[row["name"]] for row in rows}
    parameters = 4 * data * sum(row["parameters"] * copies[row["name"]] for row in rows)
    fused = {name for name, kind, *_ in config.model.layers if kind in FUSED}  # of a chain; AlexNet's have names alone
    maps = sum(
        data * tower * row["activation_bytes"] for row in rows if "norm" not in row["name"] and row["name"] not in fused
    )
    forward = sum(products.values())
    pixels = config.batch_size * 3
    if what == "train":
        images = pixels * config.data.crop**2  # uint8
        first = next(row["name"] for row in rows if row["kernel"])
        return Cost(3 * forward - products[first], 8 * parameters + 4 * maps + images)
    if what == "ten-view":
        images = pixels * config.data.size**2  # uint8
        return Cost(VIEWS * forward, VIEWS * (parameters + 2 * maps) + images)
    return Cost(forward, parameters + 2 * maps + 4 * pixels * config.data.crop**2)
