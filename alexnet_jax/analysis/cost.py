"""What the compiled training step of a config costs: its memory, and what its devices exchange."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import towers
from alexnet_jax.data.records import statistics_shapes
from alexnet_jax.train import Program, program

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}  # of the types that a step can send
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def inputs(config: ConfigDict, mesh: Mesh, net: Program) -> tuple[dict, dict, dict, dict]:
    """Shapes, dtypes and shardings of what the training step of a program takes: state, batch, epoch, constants."""
    b, d, whole = config.batch_size, config.data, towers.replicated(mesh)

    def arrays(sharding: Any, **shapes: tuple) -> dict:
        return {name: jax.ShapeDtypeStruct(*s, sharding=sharding) for name, s in shapes.items()}

    batch = arrays(
        towers.batch_sharding(mesh),
        image=((b, d.crop, d.crop, 3), jnp.uint8),
        label=((b,), jnp.int32),
        offset=((b, 2), jnp.int32),
        flip=((b,), jnp.bool_),
        noise=((b, 3), jnp.float32),
    )
    statistics = arrays(whole, **{name: (shape, jnp.float32) for name, shape in statistics_shapes(d.size).items()})
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    epoch = {"rates": jax.tree.map(lambda _: scalar, net.state["params"]), "noise": scalar}
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    return net.state, batch, epoch, {"statistics": statistics, "key": key, "images": None}


def compile_step(config: ConfigDict, mesh: Mesh, net: Program | None = None) -> jax.stages.Compiled:
    """The training step, compiled for a mesh, without data. net: the config's program, if there is one already."""
    net = net or program(config, mesh)
    step: Any = net.step
    return step.lower(*inputs(config, mesh, net)).compile()


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """What the compiler allots to a step on each device: state_and_batch_bytes and temporary_bytes."""
    found: Any = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return {"state_and_batch_bytes": held, "temporary_bytes": found.temp_size_in_bytes}


def exchanges(text: str) -> list[dict]:
    """The collectives of a compiled program's text.

    Each: kind; layer, or "gradients" or "metrics" for sums over copies of the network; direction, "forward",
    "backward" or "update"; devices, how many take part; bytes that each device sends, by the ring algorithm.
    """
    found = []
    gathered: dict[tuple[int, int], str] = {}  # layers by the elements and the devices of their all-gather
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({COLLECTIVES})(-start)?\(", line)
        devices = _group_size(line)
        if not match or devices == 1:
            continue
        kind = match[2]
        size, elements = _results(match[1], with_operands=bool(match[3]) and kind != "all-reduce")
        op_name = re.search(r'op_name="([^"]*)"', line)
        name = op_name[1] if op_name else ""
        layer = re.search(r"AlexNet/(\w+)/(?:all_gather|reduce_scatter)", name)
        what = layer[1] if layer else "other"
        direction = "backward" if "transpose(" in name else "forward"
        if kind == "all-gather":
            gathered.setdefault((elements, devices), what)
        elif kind == "all-reduce":
            if not name and (elements, devices) in gathered:  # TPUs reduce and slice small arrays, and lose the name
                what, direction = gathered[elements, devices], "backward"
            elif not layer:
                what = "metrics" if elements < 10 else "gradients"
                direction = "update"
        sent = _sent(kind, size, devices)
        found.append({"kind": kind, "layer": what, "direction": direction, "devices": devices, "bytes": sent})
    return found


def _results(shapes: str, with_operands: bool) -> tuple[int, int]:
    """(bytes, elements) of the arrays that a collective returns; with_operands: their list begins with its operands."""
    arrays = re.findall(r"\b(\w+)\[([\d,]*)\]", shapes)
    if with_operands:
        arrays = arrays[len(arrays) // 2 :]
    size = elements = 0
    for dtype, dimensions in arrays:
        count = math.prod(int(n) for n in dimensions.split(",") if n)
        elements += count
        size += BYTES[dtype] * count
    return size, elements


def _sent(kind: str, size: int, devices: int) -> int:
    """Bytes that each device sends in a collective with `size` bytes of results."""
    if kind == "all-gather":
        return size * (devices - 1) // devices
    if kind == "reduce-scatter":
        return size * (devices - 1)
    if kind == "all-reduce":
        return 2 * size * (devices - 1) // devices
    return size


def _group_size(line: str) -> int:
    """How many devices exchange with each other in a line of the program; 1 if none do."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    return 2 if "source_target_pairs" in line else 1
