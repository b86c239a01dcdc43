"""What a config's network is and what it costs, layer by layer and device by device, from the compiled training step.

    alexnet summary --config configs/paper.py [--devices 4x2] [--json]
    alexnet summary --config configs/paper.py --topology v5e:4x4 --config.batch_size=1024

--topology compiles ahead of time for a slice of TPUs that need not be there (it requires libtpu: pip install -e .[tpu])
and says what limits a step's speed there. As everywhere, batch_size counts the images of all devices together.
"""

import json
import math
import os
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import UserError, network, one_line, towers
from alexnet_jax.analysis import cost
from alexnet_jax.cli import commands
from alexnet_jax.config import check_without_data
from alexnet_jax.runs import finetune
from alexnet_jax.train import Program, program

# Per chip: bfloat16 FLOP/s, which float32 matrix products run at by default; bytes/s of its memory; bytes/s that it
# sends to its neighbours, all links together, one way. docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e (2026-11); v4's
# page gives no link speed: its all-reduce bandwidth of a pod over 4,096 chips.
CHIPS = {
    "v4": (275e12, 1200e9, 269e9),
    "v5e": (197e12, 819e9, 200e9),
    "v5p": (459e12, 2765e9, 600e9),
    "v6e": (918e12, 1640e9, 400e9),
}
CORES = {"v4": 2}  # devices that share a chip, where it is not one; jax finds two on v4 without megacore


def layer_costs(config: ConfigDict, mesh: Mesh, net: Program | None = None) -> list[dict]:
    """A row for everything that the network returns by name, in the order in which it is computed.

    Each: name; of one image the output's shape, the kernel's shape, parameters and macs (multiply-accumulates); on each
    device activation_bytes, and parameter_bytes, which include what the update rule keeps, such as velocities. net: the
    config's program, if there is one already.
    """
    m, crop = config.model, config.data.crop
    module = network.network(m)
    parameters = network.shapes(m, crop)
    names: list[str] = []

    def forward(params: dict, images: jax.Array) -> dict[str, jax.Array]:
        activations: Any = module.apply({"params": params}, images)[1]
        names.extend(activations)  # jax sorts a dict that a traced function returns
        return activations

    images = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)
    outputs = jax.eval_shape(forward, parameters, images)
    held = _state_bytes(net or program(config, mesh))
    data, tower = mesh.shape["data"], mesh.shape["tower"]
    rows = []
    for name in names:
        shape, dtype = outputs[name].shape[1:], outputs[name].dtype
        share = 1 if name == "fc8" else tower  # fc8 is whole on each device
        row = {"name": name, "output": shape, "kernel": None, "parameters": 0, "macs": 0}
        if name in parameters:
            kernel = parameters[name]["kernel"].shape
            row["kernel"] = kernel
            row["parameters"] = network.parameter_count(parameters[name])
            own = parameters[name]["bias"].ndim > 1  # a kernel for each place, of which an output reads its own alone
            row["macs"] = math.prod(shape) * (kernel[-2] if own else math.prod(kernel[:-1]))
        row["activation_bytes"] = config.batch_size // data * math.prod(shape) * dtype.itemsize // share
        row["parameter_bytes"] = held.get(name, 0)
        rows.append(row)
    return rows


def _state_bytes(net: Program) -> Counter[str]:
    """The bytes of each layer's parameters and of what the update rule keeps of them, on each device."""
    held: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(net.state):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if len(names) > 1:  # ..., the layer, kernel or bias
            held[names[-2]] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return held


def summarize(config: ConfigDict, mesh: Mesh, topology: str | None = None) -> dict[str, Any]:
    """Everything, as one tree of plain values. Bytes, FLOPs and seconds are those of one device's training step."""
    net = program(config, mesh)
    rows = layer_costs(config, mesh, net)
    step = cost.compile_step(config, mesh, net)
    counted: Any = step.cost_analysis()
    found = cost.exchanges(step.as_text() or "")
    out = {
        "config": config.name,
        "resident_image_bytes": 3 * config.data.size**2 if config.data.on_device else 0,  # of each training image
        "batch_size": config.batch_size,
        "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "parameters": sum(r["parameters"] for r in rows),
        "macs": sum(r["macs"] for r in rows),
        "layers": rows,
        "exchanges": found,
        "step": {
            "flops": counted.get("flops", 0.0),
            "memory_traffic_bytes": counted.get("bytes accessed", 0.0),
            **cost.memory(step),
            "exchanged_bytes": sum(e["bytes"] for e in found),
        },
    }
    if topology:
        out["topology"] = topology
        out["bound"] = bound(out["step"], topology)
        if counted.get("optimal_seconds", -1) > 0:  # below 0 where the compiler has no estimate for a part
            out["bound"]["compilers_optimal_seconds"] = counted["optimal_seconds"]
    return out


def bound(step: dict[str, Any], topology: str) -> dict[str, Any]:
    """Lower bounds on a step's time, from a chip's published peaks, and which of them is the largest."""
    generation = topology.partition(":")[0]
    flops, memory, links = (peak / CORES.get(generation, 1) for peak in CHIPS[generation])
    seconds = {
        "arithmetic": step["flops"] / flops,
        "memory": step["memory_traffic_bytes"] / memory,
        "exchange": step["exchanged_bytes"] / links,
    }
    slowest = max(seconds, key=lambda what: seconds[what])
    return {f"{k}_seconds": v for k, v in seconds.items()} | {"seconds": seconds[slowest], "limited_by": slowest}


def slice_of(topology: str) -> list:
    """The devices of a TPU slice that need not be there. Raises UserError if libtpu or the name is missing."""
    from jax.experimental import topologies

    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology '{topology}' is not a slice of {', '.join(CHIPS)}: write v5e:4x4 or v4:2x2x1")
    # Otherwise libtpu would ask a cloud machine's metadata server where it is, complain at length that there is none,
    # and lock the chips, which are not there, so that a second summary could not run.
    absent = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in absent.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as e:  # jax and libtpu raise many kinds
        raise UserError(
            f"no TPU slice {topology} to compile for ({one_line(e)}): "
            "pip install -e .[tpu] brings libtpu; the slice must have a shape that exists"
        ) from e


def mesh_for(
    config: ConfigDict, devices: tuple[int, int] | None, topology: str | None, given: Collection[str] = ()
) -> Mesh:
    """The mesh that the flags ask for; sets config.devices. A slice is filled with copies of the network by default.

    given: dotted names of the fields that the command line sets.
    """
    if devices:
        config.devices.data, config.devices.tower = devices
    found = slice_of(topology) if topology else None
    if found and not devices:
        if "devices.tower" not in given:
            config.devices.tower = config.model.towers
        if "devices.data" not in given:
            config.devices.data = max(1, len(found) // (config.devices.tower or config.model.towers))
    return towers.make_mesh(config.devices, config.model.towers, config.batch_size, found)


def table(summary: dict[str, Any]) -> str:
    """The summary for reading."""
    moved: dict[tuple[str, str], int] = {}
    for exchange in summary["exchanges"]:
        key = exchange["layer"], exchange["direction"]
        moved[key] = moved.get(key, 0) + exchange["bytes"]
    mesh = summary["mesh"]
    lines = [
        f"{summary['config']}: {summary['parameters']:,} parameters, {summary['macs']:,} multiply-accumulates an image",
        f"{mesh['data']} x {mesh['tower']} devices (data x tower), {summary['device']}; batch {summary['batch_size']}",
        "",
        f"{'':44}{'':>28}{'|':>16} on each device",
        _row("layer", "output", "kernel", ("parameters", "MACs"), ("activations", "weights", "sent fwd", "sent bwd")),
    ]
    for row in summary["layers"]:
        counts, weights = ("", ""), ""
        if row["parameters"]:
            counts = f"{row['parameters']:,}", f"{row['macs']:,}"
            weights = _bytes(row["parameter_bytes"])
        sent = [_bytes(moved.get((row["name"], way))) for way in ("forward", "backward")]
        held = (_bytes(row["activation_bytes"]), weights, *sent)
        lines.append(_row(row["name"], _shape(row["output"]), _shape(row["kernel"]), counts, held))
    lines += ["", "A training step, on each device:"]
    return "\n".join(lines + [f"  {name + ':':22}{text}" for name, text in _step_rows(summary, moved)])


def _row(name: str, output: str, kernel: str, counts: Iterable[str], held: Iterable[str]) -> str:
    (parameters, macs), (activations, weights, forward, backward) = counts, held
    whole = f"{name:14}{output:16}{kernel:20}{parameters:>12}{macs:>14}"
    return f"{whole} |{activations:>12}{weights:>10}{forward:>10}{backward:>10}"


def _step_rows(summary: dict[str, Any], moved: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """(name, text) of what a whole step costs; moved: bytes by layer and direction."""
    step = summary["step"]
    held, more = _bytes(step["state_and_batch_bytes"]), _bytes(step["temporary_bytes"])
    each = summary["resident_image_bytes"]
    resident = f", and {_bytes(each)} for each training image" if each else ""
    updates = [f"{_bytes(size)} {what}" for (what, way), size in moved.items() if way == "update"]
    rows = [
        ("arithmetic", f"{step['flops'] / 1e9:,.1f} GFLOP"),
        ("memory traffic", _bytes(step["memory_traffic_bytes"])),
        ("memory held", f"{held} state and batch, {more} more while it runs{resident}"),
        ("sent", ", ".join([_bytes(step["exchanged_bytes"]), *updates])),
    ]
    if "bound" in summary:
        b = summary["bound"]
        arithmetic, memory, exchange = (f"{b[f'{w}_seconds'] * 1e3:.2f}" for w in ("arithmetic", "memory", "exchange"))
        parts = f"arithmetic {arithmetic}, memory {memory}, exchange {exchange}"
        rows.append(("lower bound", f"{b['seconds'] * 1e3:.2f} ms, set by {b['limited_by']}: {parts}"))
        if "compilers_optimal_seconds" in b:
            rows.append(("compiler's estimate", f"{b['compilers_optimal_seconds'] * 1e3:.2f} ms"))
    return rows


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape or ()))


def _bytes(size: float | None) -> str:
    """A size for people, such as 3.9 MB; nothing for None."""
    if size is None:
        return ""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def add_flags(parser: ArgumentParser) -> None:
    """The flags of `alexnet summary`."""
    commands.add_config(parser)
    commands.add_devices(parser, default=None, otherwise="the config's; virtual ones on CPU")
    parser.add_argument("--topology", metavar="SLICE", help="a TPU slice to compile for, e.g. v5e:4x4 or v5p:8x8x8")
    commands.add_json(parser)


def main(flags: Namespace) -> None:
    """Prints the summary of flags.config. Raises UserError."""
    # The cache of compiled programs takes two that differ in the names of their operations alone for the same.
    jax.config.update("jax_enable_compilation_cache", False)
    if flags.topology:
        jax.config.update("jax_platforms", "cpu")
    config = finetune.resolved(flags.config, given=flags.given)
    devices = flags.devices or (config.devices.data, config.devices.tower or 1)
    if not flags.topology and math.prod(devices) <= commands.MOST_DEVICES:
        commands.use_devices(devices)
    check_without_data(config)
    found = summarize(config, mesh_for(config, flags.devices, flags.topology, flags.given), flags.topology)
    print(json.dumps(found) if flags.json else table(found))
