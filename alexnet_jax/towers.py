"""Two towers on two accelerators (section 3.2): everything that knows of devices.

Each tower device holds half of the kernels of every layer and computes half of the maps of every image. The towers
compute alone but for the layers that read both, conv3, fc6, fc7 and fc8, where the devices exchange their maps:

    tower 1   conv1 - conv2 -+- conv3 - conv4 - conv5 -+- fc6 -+- fc7 -+- fc8
                              x                         x       x       x
    tower 2   conv1 - conv2 -+- conv3 - conv4 - conv5 -+- fc6 -+- fc7 -+- fc8

The network runs under shard_map: each device runs ordinary code on its own half, and the only communication is the
all_gather that model.py writes at those layers. Annotating shardings on a grouped convolution would not do: the
compiler gathers everything, computes the whole convolution on both devices and slices. Each exchange has its way back
in training, where a device gets the other's gradients of its own maps; fc8 alone, whose kernels both devices hold and
apply, finds the same gradients on both. Copies of the tower pair along the `data` axis each take their share of the
batch and sum their gradients. One parameter tree, whole kernels, serves every arrangement.
"""

import re
from collections.abc import Callable

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
MOST = 1024  # devices that --devices asks for: virtual ones cost a thread each


def make_mesh(devices: ConfigDict, towers: int, batch_size: int, found: list | None = None) -> Mesh:
    """The mesh ('data', 'tower') of a config's `devices` section, over the devices `found`; jax.devices() if None.

    Raises UserError if the devices are too few, do not divide the towers or the batch, or compute wrong sums.
    """
    found = jax.devices() if found is None else found
    if found[0].platform == "cpu" and jaxlib.__version__ == "0.10.2":
        raise UserError("jaxlib 0.10.2 computes wrong sums on CPU (jax-ml/jax#39103): pip install 'jax!=0.10.2,<0.11'")
    if devices.data < 1:
        raise UserError(f"devices.data is {devices.data} and must be 1 or more: the copies of the network")
    divisors = [n for n in range(1, towers + 1) if towers % n == 0]
    if devices.tower not in (0, *divisors):
        raise UserError(
            f"devices.tower is {devices.tower} and must be {' or '.join(map(str, divisors))}, a divisor of "
            "--config.model.towers, or 0 for one device a tower where they are there"
        )
    split = devices.tower or (towers if len(found) >= towers * devices.data else 1)
    if devices.data * split > len(found):
        raise UserError(
            f"{devices.data} x {split} devices are asked for and {len(found)} found ({found[0].platform}): lower "
            "--config.devices.data or --config.devices.tower, or, on CPU, set JAX_NUM_CPU_DEVICES="
            f"{devices.data * split}"
        )
    if batch_size % devices.data:
        raise UserError(
            f"a batch of {batch_size} does not divide over {devices.data} data-parallel copies: "
            "change --config.batch_size or --config.devices.data"
        )
    auto = (AxisType.Auto,) * 2
    if jax.process_count() > 1:  # in the order of the processes: each feeds one run of the batch's rows
        if devices.data * split != len(found):
            raise UserError(
                f"{devices.data} x {split} devices are asked for and the {jax.process_count()} processes have "
                f"{len(found)}: they must use all, so set --config.devices.data={len(found) // split}"
            )
        return Mesh(np.array(found).reshape(devices.data, split), (DATA, TOWER), axis_types=auto)
    used = found[: devices.data * split]
    return Mesh(_neighbours(used, (devices.data, split)), (DATA, TOWER), axis_types=auto)


def wanted(devices: str) -> tuple[int, int]:
    """(data, tower) of the flag --devices, such as "4x2". Raises UserError if it is none, or more than CPU can play."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", devices)
    if not match:
        raise UserError(f"--devices '{devices}' is not data x tower, as in 4x2")
    data, tower = map(int, match.groups())
    if data * tower > MOST:
        raise UserError(f"--devices {devices} are {data * tower:,} devices: at most {MOST} can be had")
    return data, tower


def _neighbours(devices: list, shape: tuple[int, int]) -> np.ndarray:
    """The devices as an array of a shape, those that talk to each other side by side where a TPU says where each is."""
    chips = {tuple(d.coords) for d in devices if hasattr(d, "coords")}
    if 0 < len(chips) < len(devices):  # cores of one chip follow each other
        return np.array(devices).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def specs(tree, tower: str | None = TOWER):
    """How a tree of parameters or velocities is split: its last axis, the kernels, over the towers; fc8 is on each."""

    def spec(path, leaf):
        name = jax.tree_util.keystr(path)
        return P() if "fc8" in name or not leaf.ndim else P(*(None,) * (leaf.ndim - 1), tower)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree, mesh: Mesh):
    """`specs` as shardings on a mesh."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs(tree), is_leaf=lambda s: isinstance(s, P))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over the data axis and whole on each tower device."""
    return NamedSharding(mesh, P(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def place(tree, sharding: NamedSharding):
    """Puts host arrays on a mesh; of several processes each gives its `share` of a batch, or all of what is whole."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def share(mesh: Mesh) -> tuple[int, int]:
    """(i, k): this process feeds part i of k of each batch; all of it where the towers are in different processes.

    Raises UserError if the processes' devices do not fall into equal parts.
    """
    rows = {}
    for i, row in enumerate(mesh.devices):
        for process in {d.process_index for d in row}:
            rows.setdefault(process, []).append(i)
    mine = rows[jax.process_index()]
    if any(len(r) != len(mine) or r[0] % len(mine) for r in rows.values()):  # so all of them say it
        raise UserError(
            f"{mesh.shape[DATA]} copies do not divide over {jax.process_count()} processes: give each process as many "
            "devices as any other, a multiple of --config.devices.tower or a divisor of it"
        )
    return mine[0] // len(mine), mesh.shape[DATA] // len(mine)


def leads() -> bool:
    """Whether this process is the one that speaks and writes records; all of them write checkpoints."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether a flag is up in any process; waits for all to ask."""
    return flag if jax.process_count() == 1 else bool(gather(np.array(flag)).any())


def lost(error: Exception) -> bool:
    """Whether an error is that of a process that lost another; jaxlib raises some of gloo's as ValueError."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, stacked; waits for all to ask."""
    return array[None] if jax.process_count() == 1 else multihost_utils.process_allgather(array)


def compiler_options(platform: str) -> dict[str, str]:
    """What jax.jit is told for the network on a platform ("cpu", "gpu", "tpu"): nothing, but on CPU.

    Of XLA:CPU's two libraries YNNPACK is the faster at sums and matrix products and Eigen at convolutions. Inside a
    loop (lax.map, lax.scan) Eigen's convolutions are not to be had, and what is left crawls: the network keeps out.
    """
    if platform != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def split(model: nn.Module, mesh: Mesh) -> Callable:
    """The model's apply with the towers and the batch split over the mesh.

    Returns apply(params, images, dropout_key=None) -> (logits, activations by name), global arrays all. A dropout key
    means training.
    """
    tower, data = (axis if mesh.shape[axis] > 1 else None for axis in (TOWER, DATA))
    local = model.clone(tower_axis=tower, data_axis=data)

    def run(params, images, key=None):
        rngs = {} if key is None else {"dropout": key}
        return local.apply({"params": params}, images, train=key is not None, rngs=rngs)

    def apply(params, images, dropout_key=None):
        shapes = jax.eval_shape(lambda p, x: model.apply({"params": p}, x), params, images)[1]
        activations = {
            name: P(data) if name == "fc8" else P(data, *(None,) * (a.ndim - 2), tower) for name, a in shapes.items()
        }
        return jax.shard_map(
            run, mesh=mesh, in_specs=(specs(params, tower), P(data), P()), out_specs=(P(data), activations)
        )(params, images, dropout_key)

    return apply if tower or data else run
