"""Two towers on two accelerators (section 3.2): everything that deals with devices.

Each tower device holds half of the kernels of every layer and computes half of the maps of every image. The towers
compute on their own except at the layers that read both, conv3, fc6, fc7 and fc8, where the devices exchange maps:

    tower 1   conv1 - conv2 -+- conv3 - conv4 - conv5 -+- fc6 -+- fc7 -+- fc8
                              x                         x       x       x
    tower 2   conv1 - conv2 -+- conv3 - conv4 - conv5 -+- fc6 -+- fc7 -+- fc8

The network runs under shard_map: each device runs ordinary code on its own half, and the only communication is the
all_gather that model.py writes at those layers. Annotating shardings on a grouped convolution would not work: the
compiler gathers everything, computes the whole convolution on both devices and slices the result. In training each
exchange has its way back, where a device receives the other one's gradients of its own maps. The exception is fc8: both
devices hold all of its kernels and apply them, so they find the same gradients. Copies of the pair of towers along the
`data` axis each take their share of the batch and sum their gradients. One tree of parameters, with whole kernels,
serves every arrangement.
"""

from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from alexnet_jax import UserError

DATA, TOWER = "data", "tower"
WHOLE = "fc8"  # the layer whose kernels every tower device holds
CHUNK = 2_500_000  # bytes of maps that a CPU normalizes and pools at a time: measured, experiments/SPEED.md


def make_mesh(devices: ConfigDict, towers: int, batch_size: int, found: list | None = None) -> Mesh:
    """Returns the mesh ('data', 'tower') that a config's `devices` section describes.

    Args:
      devices: data, the copies of the network; tower, the devices that each is split over, 0 for one per tower if there
        are enough.
      towers: of the network.
      batch_size: of the whole batch.
      found: the devices to use; None for jax.devices().
    Raises UserError if there are too few devices, if they do not divide the towers or the batch, or if they compute
    wrong sums.
    """
    found = jax.devices() if found is None else found
    if found[0].platform == "cpu" and jaxlib.__version__ == "0.10.2":
        raise UserError("jaxlib 0.10.2 computes wrong sums on CPU (jax-ml/jax#39103): pip install 'jax!=0.10.2,<0.11'")
    if devices.data < 1:
        raise UserError(f"devices.data, the copies of the network, is {devices.data} and must be at least 1")
    divisors = [n for n in range(1, towers + 1) if towers % n == 0]
    if devices.tower not in (0, *divisors):
        raise UserError(
            f"devices.tower is {devices.tower} and must be {' or '.join(map(str, divisors))}, a divisor of "
            "--config.model.towers, or 0 for one device per tower if there are enough; of --devices it is the number "
            "after the x, never 0"
        )
    split = devices.tower or (towers if len(found) >= towers * devices.data else 1)
    if devices.data * split > len(found):
        raise UserError(
            f"{devices.data} x {split} devices are required and {len(found)} found ({found[0].platform}): lower "
            "--config.devices.data or --config.devices.tower (--devices of the other commands), or, on CPU, set "
            f"JAX_NUM_CPU_DEVICES={devices.data * split}"
        )
    if batch_size % devices.data:
        raise UserError(
            f"a batch of {batch_size} does not divide over {devices.data} data-parallel copies: "
            "change --config.batch_size or --config.devices.data"
        )
    auto = (AxisType.Auto,) * 2
    if jax.process_count() > 1:  # in the order of the processes, so that each feeds consecutive rows of the batch
        if devices.data * split != len(found):
            fix = f"--config.devices.data={len(found) // split}"
            if len(found) % split:
                fix = f"--config.devices.tower=1 and --config.devices.data={len(found)}"
            raise UserError(
                f"{devices.data} x {split} devices are required and the {jax.process_count()} processes have "
                f"{len(found)}: they must use all of them, so set {fix}"
            )
        return Mesh(np.array(found).reshape(devices.data, split), (DATA, TOWER), axis_types=auto)
    used = found[: devices.data * split]
    return Mesh(_neighbours(used, (devices.data, split)), (DATA, TOWER), axis_types=auto)


def _neighbours(devices: list, shape: tuple[int, int]) -> np.ndarray:
    """The devices as an array of a shape. On a TPU, whose chips have coordinates, those that exchange are adjacent."""
    chips = {tuple(d.coords) for d in devices if hasattr(d, "coords")}
    if 0 < len(chips) < len(devices):  # several cores per chip: they are listed one after the other
        return np.array(devices).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def specs(tree: Any, tower: str | None = TOWER) -> Any:
    """Returns how to split parameters, or an optimizer's state around trees like them, as a tree of PartitionSpecs.

    The last axis of every array, which counts the kernels, is split over the axis `tower`. The layer fc8, whatever lies
    around it, and scalars are whole on each device.

    tree: arrays or their shapes, in dicts {layer: {"kernel", "bias"}} somewhere in tuples and dicts.
    """

    def spec(path, leaf):
        layers = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)}
        if WHOLE in layers or leaf.ndim == 0:
            return P()
        return P(*(None,) * (leaf.ndim - 1), tower)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns `specs` as shardings on a mesh."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs(tree), is_leaf=lambda s: isinstance(s, P))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: split over the data axis, whole on each tower device."""
    return NamedSharding(mesh, P(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of values that are the same on every device."""
    return NamedSharding(mesh, P())


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The shapes and dtypes of a tree's arrays with the sharding that each has on the mesh: ShapeDtypeStructs."""
    where = shardings(tree, mesh)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts host arrays on a mesh. Each of several processes passes its `share` of a batch, or all of a whole value."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def share(mesh: Mesh) -> tuple[int, int]:
    """Returns (i, k): this process feeds part i of k of each batch.

    Processes that hold different towers of the same copies of the network feed the same part.
    Raises UserError if the processes' devices do not form equal parts.
    """
    rows: dict[int, list[int]] = {}  # by process, the copies of the network that it has devices of
    for i, row in enumerate(mesh.devices):
        for process in {d.process_index for d in row}:
            rows.setdefault(process, []).append(i)
    mine = rows[jax.process_index()]
    if any(len(r) != len(mine) or r[0] % len(mine) for r in rows.values()):  # the same answer in every process
        raise UserError(
            f"{mesh.shape[DATA]} copies do not divide over {jax.process_count()} processes: give each process as many "
            "devices as the others, a multiple or a divisor of --config.devices.tower"
        )
    return mine[0] // len(mine), mesh.shape[DATA] // len(mine)


def leads() -> bool:
    """Whether this process is the one that prints and writes records. All of them write checkpoints."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process. Waits until all have asked."""
    return bool(gather(np.array(flag)).any())


def lost(error: Exception) -> bool:
    """Whether an error can mean that this process lost another one: any of the runtime's can, by what it says.

    jaxlib raises some of gloo's errors as ValueError.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def gather(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, stacked. Waits until all have asked."""
    if jax.process_count() == 1:
        return array[None]
    return multihost_utils.process_allgather(array)


def compiler_options(platform: str) -> dict[str, str]:
    """Returns the options of jax.jit for the network on a platform ("cpu", "gpu", "tpu"). Only CPU requires any.

    Of XLA:CPU's two libraries YNNPACK is faster at sums, and Eigen at convolutions and at matrix products of up to 64
    images. Inside a loop (lax.map, lax.scan) Eigen's convolutions are not available and the others are far slower, so
    the only loop is over what follows a convolution.
    """
    if platform != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def split(model: nn.Module, mesh: Mesh) -> Callable:
    """Returns the model's apply with the towers and the batch split over the mesh.

    That is apply(params, images, dropout_key=None) -> (logits, activations by name); all are global arrays. With a
    dropout key it applies the network as in training.
    """
    tower, data = (axis if mesh.shape[axis] > 1 else None for axis in (TOWER, DATA))
    chunk = CHUNK if mesh.devices.flat[0].platform == "cpu" else 0
    local = model.clone(tower_axis=tower, data_axis=data, chunk=chunk)

    def run(params, images, dropout_key=None):
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return local.apply({"params": params}, images, train=dropout_key is not None, rngs=rngs)

    def apply(params, images, dropout_key=None):
        shapes = jax.eval_shape(lambda p, x: model.apply({"params": p}, x), params, images)[1]
        activations = {
            name: P(data) if name == WHOLE else P(data, *(None,) * (a.ndim - 2), tower) for name, a in shapes.items()
        }
        return jax.shard_map(
            run, mesh=mesh, in_specs=(specs(params, tower), P(data), P()), out_specs=(P(data), activations)
        )(params, images, dropout_key)

    return apply if tower or data else run
