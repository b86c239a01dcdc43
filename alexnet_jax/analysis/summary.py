"""What a config's network is and what it costs, layer by layer and device by device, from the compiled training step.

    alexnet summary --config configs/paper.py [--devices 4x2] [--json]
    alexnet summary --config configs/paper.py --topology v5e:4x4 --config.batch_size=1024

--devices is data x tower. --topology compiles ahead of time for a slice of TPUs that need not be there (it wants
libtpu: pip install -e .[tpu]) and tells what bounds its step. As everywhere, batch_size counts all devices' images.
"""

import json
import math
import os
import re
import sys

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, main, model, one_line, towers
from alexnet_jax.cli.commands import command
from alexnet_jax.config import check
from alexnet_jax.train import program

DEVICES = flags.DEFINE_string("devices", None, "data x tower, e.g. 4x2; virtual ones on CPU")
TOPOLOGY = flags.DEFINE_string("topology", None, "a TPU slice to compile for, e.g. v5e:4x4, v5p:8x8x8")
JSON = flags.DEFINE_bool("json", False, "print one JSON object on one line")

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
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}  # of the types that a step can send
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def inputs(config: ConfigDict, mesh: Mesh) -> tuple[dict, dict, dict, dict]:
    """Shapes, dtypes and shardings of what the training step takes on a mesh: state, batch, epoch, constants."""
    b, d, whole = config.batch_size, config.data, towers.replicated(mesh)

    def arrays(sharding, **shapes):
        return {name: jax.ShapeDtypeStruct(*s, sharding=sharding) for name, s in shapes.items()}

    batch = arrays(
        towers.batch_sharding(mesh),
        image=((b, d.crop, d.crop, 3), jnp.uint8), label=((b,), jnp.int32), offset=((b, 2), jnp.int32),
        flip=((b,), jnp.bool_), noise=((b, 3), jnp.float32),
    )  # fmt: skip
    statistics = arrays(
        whole,
        mean=((d.size, d.size, 3), jnp.float32), channel_mean=((3,), jnp.float32), stdevs=((3,), jnp.float32),
        vectors=((3, 3), jnp.float32),
    )  # fmt: skip
    state = program(config, mesh).state
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    epoch = {"rates": jax.tree.map(lambda _: scalar, state["params"]), "noise": scalar}
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    return state, batch, epoch, {"statistics": statistics, "key": key, "images": None}


def compile_step(config: ConfigDict, mesh: Mesh):
    """The training step, compiled for a mesh, without data: what jax calls a Compiled."""
    return program(config, mesh).step.lower(*inputs(config, mesh)).compile()


def memory(compiled) -> dict[str, int]:
    """What a compiled step has the compiler allot on each device: state_and_batch_bytes and temporary_bytes."""
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return {"state_and_batch_bytes": held, "temporary_bytes": found.temp_size_in_bytes}


def exchanges(text: str) -> list[dict]:
    """The collectives of a compiled program's text.

    Each: kind; layer, or "gradients" or "metrics" for sums over copies of the network; direction, "forward",
    "backward" or "update"; devices, how many take part; bytes that each device sends, by the ring algorithm.
    """
    found, gathered = [], {}
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({COLLECTIVES})(-start)?\(", line)
        devices = _group_size(line)
        if not match or devices == 1:
            continue
        shape, kind, started = match.groups()
        arrays = [(BYTES[t], math.prod(map(int, filter(None, d.split(","))))) for t, d in _arrays(shape)]
        if started and kind != "all-reduce":  # the operands stand before the results
            arrays = arrays[len(arrays) // 2 :]
        size, elements = sum(b * n for b, n in arrays), sum(n for _, n in arrays)
        name = re.search(r'op_name="([^"]*)"', line)
        name = name[1] if name else ""
        layer = re.search(r"AlexNet/(\w+)/(?:all_gather|reduce_scatter)", name)
        what, way = (layer[1] if layer else "other"), ("backward" if "transpose(" in name else "forward")
        if kind == "all-gather":
            sent = size * (devices - 1) // devices
            gathered.setdefault((elements, devices), what)
        elif kind == "reduce-scatter":
            sent = size * (devices - 1)
        elif kind == "all-reduce":
            sent = 2 * size * (devices - 1) // devices
            if not name and (elements, devices) in gathered:  # TPUs reduce and slice small arrays, and lose the name
                what, way = gathered[elements, devices], "backward"
            elif not layer:
                what, way = ("metrics" if elements < 10 else "gradients"), "update"
        else:
            sent = size
        found.append({"kind": kind, "layer": what, "direction": way, "devices": devices, "bytes": sent})
    return found


def _arrays(shape: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(\w+)\[([\d,]*)\]", shape)


def _group_size(line: str) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    return 2 if "source_target_pairs" in line else 1


def layers(config: ConfigDict, mesh: Mesh) -> list[dict]:
    """What the network returns by name, in order: output shape of one image, kernel, parameters, multiply-accumulates
    of one image; on each device bytes of activations, and of the parameters with their velocities."""
    m, crop = config.model, config.data.crop
    net = model.AlexNet(FrozenConfigDict(m))
    parameters = model.shapes(m, crop)
    images = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)
    out = jax.eval_shape(lambda p, x: net.apply({"params": p}, x), parameters, images)[1]
    data, tower = mesh.shape["data"], mesh.shape["tower"]
    rows = []
    order = sorted(out, key=lambda name: (int(name[-1]), _STAGES.index(name[:-1])))
    for name in order:
        shape = out[name].shape[1:]
        share = 1 if name == "fc8" else tower
        row = {"name": name, "output": shape, "kernel": None, "parameters": 0, "macs": 0}
        if p := parameters.get(name):
            kernel = p["kernel"].shape
            count = model.parameter_count(p)
            row |= {"kernel": kernel, "parameters": count, "macs": math.prod(kernel) * math.prod(shape[:-1])}
        row["activation_bytes"] = config.batch_size // data * math.prod(shape) * out[name].dtype.itemsize // share
        row["parameter_bytes"] = 2 * 4 * row["parameters"] // share
        rows.append(row)
    return rows


_STAGES = ("conv", "fc", "norm", "spatial_norm", "pool", "average_pool")


def summarize(config: ConfigDict, mesh: Mesh, topology: str | None = None) -> dict:
    """Everything, as one tree of plain values. Bytes, FLOPs and seconds are those of one device's training step."""
    rows = layers(config, mesh)
    compiled = compile_step(config, mesh)
    cost = compiled.cost_analysis()
    found = exchanges(compiled.as_text())
    out = {
        "config": config.name,
        "batch_size": config.batch_size,
        "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "parameters": sum(r["parameters"] for r in rows),
        "macs": sum(r["macs"] for r in rows),
        "layers": rows,
        "exchanges": found,
        "step": {
            "flops": cost.get("flops", 0.0),
            "memory_traffic_bytes": cost.get("bytes accessed", 0.0),
            **memory(compiled),
            "exchanged_bytes": sum(e["bytes"] for e in found),
        },
    }
    if topology:
        out["topology"] = topology
        out["bound"] = bound(out["step"], topology)
        if cost.get("optimal_seconds", -1) > 0:  # below 0 where the compiler has no estimate for a part
            out["bound"]["compilers_optimal_seconds"] = cost["optimal_seconds"]
    return out


def bound(step: dict, topology: str) -> dict:
    """The least time that a step can take on a chip's published peaks, were all else free, and what sets it."""
    generation = topology.partition(":")[0]
    flops, memory, links = (peak / CORES.get(generation, 1) for peak in CHIPS[generation])
    seconds = {
        "arithmetic": step["flops"] / flops,
        "memory": step["memory_traffic_bytes"] / memory,
        "exchange": step["exchanged_bytes"] / links,
    }
    return {f"{k}_seconds": v for k, v in seconds.items()} | {
        "seconds": max(seconds.values()),
        "limited_by": max(seconds, key=seconds.get),
    }


def slice_of(topology: str) -> list:
    """The devices of a TPU slice that need not be there. Raises UserError if libtpu or the name is missing."""
    from jax.experimental import topologies

    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology '{topology}' is not a slice of {', '.join(CHIPS)}: write v5e:4x4 or v4:2x2x1")
    # libtpu would ask a cloud machine's metadata server where it is, complain at length that there is none, and lock
    # the chips, which are not there, against a second summary.
    away = {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip
    for name, value in away.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as e:  # jax and libtpu raise many kinds
        raise UserError(
            f"no TPU slice {topology} to compile for ({one_line(e)}): "
            "pip install -e .[tpu] brings libtpu; a slice has to be of a shape that exists"
        ) from e


def mesh_for(config: ConfigDict, devices: tuple[int, int] | None, topology: str | None) -> Mesh:
    """The mesh that the flags ask for; sets config.devices. A slice is filled with tower groups by default."""
    if devices:
        config.devices.data, config.devices.tower = devices
    if topology:
        found = slice_of(topology)
        if not devices:
            config.devices.tower = config.model.towers
            config.devices.data = max(1, len(found) // config.devices.tower)
        return towers.make_mesh(config.devices, config.model.towers, config.batch_size, found)
    return towers.make_mesh(config.devices, config.model.towers, config.batch_size)


def _bytes(n: float) -> str:
    power = min(3, int(math.log10(max(n, 1)) // 3))
    return f"{n / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB')[power]}"


def table(s: dict) -> str:
    """The summary for reading."""

    def by(shape):
        return " x ".join(map(str, shape)) if shape else ""

    moved = {}
    for e in s["exchanges"]:
        key = e["layer"], e["direction"]
        moved[key] = moved.get(key, 0) + e["bytes"]
    lines = [
        f"{s['config']}: {s['parameters']:,} parameters, {s['macs']:,} multiply-accumulates an image",
        f"{s['mesh']['data']} x {s['mesh']['tower']} devices (data x tower), {s['device']}; batch {s['batch_size']}",
        "",
        f"{'':44}{'':>28}{'|':>16} on each device",
        f"{'layer':14}{'output':16}{'kernel':20}{'parameters':>12}{'MACs':>14} |"
        f"{'activations':>12}{'weights':>10}{'sent fwd':>10}{'sent bwd':>10}",
    ]
    for r in s["layers"]:
        weights = [f"{r['parameters']:,}", f"{r['macs']:,}"] if r["parameters"] else ["", ""]
        sent = [_bytes(moved[key]) if (key := (r["name"], way)) in moved else "" for way in ("forward", "backward")]
        held = [_bytes(r["activation_bytes"]), _bytes(r["parameter_bytes"]) if r["parameters"] else ""]
        lines.append(
            f"{r['name']:14}{by(r['output']):16}{by(r['kernel']):20}{weights[0]:>12}{weights[1]:>14} |"
            f"{held[0]:>12}{held[1]:>10}{sent[0]:>10}{sent[1]:>10}"
        )
    step = s["step"]
    lines += ["", "A training step, on each device:"]
    rows = {
        "arithmetic": f"{step['flops'] / 1e9:,.1f} GFLOP",
        "memory traffic": _bytes(step["memory_traffic_bytes"]),
        "memory held": f"{_bytes(step['state_and_batch_bytes'])} state and batch, "
        f"{_bytes(step['temporary_bytes'])} more while it runs",
        "sent": _bytes(step["exchanged_bytes"])
        + "".join(f", {_bytes(b)} {name}" for (name, way), b in moved.items() if way == "update"),
    }
    if b := s.get("bound"):
        rows["bound"] = (
            f"{b['seconds'] * 1e3:.2f} ms by {b['limited_by']}: arithmetic {b['arithmetic_seconds'] * 1e3:.2f}, "
            f"memory {b['memory_seconds'] * 1e3:.2f}, exchange {b['exchange_seconds'] * 1e3:.2f}"
        )
        if "compilers_optimal_seconds" in b:
            rows["compiler's estimate"] = f"{b['compilers_optimal_seconds'] * 1e3:.2f} ms"
    return "\n".join(lines + [f"  {name + ':':22}{text}" for name, text in rows.items()])


def run(argv: list[str]):
    """absl's main; the user's mistakes end in one line."""
    try:
        if main.CONFIG.value is None:
            raise UserError("name a config: alexnet summary --config configs/paper.py")
        config = main.CONFIG.value
        devices = DEVICES.value and towers.wanted(DEVICES.value)
        if TOPOLOGY.value:
            jax.config.update("jax_platforms", "cpu")
        elif devices:
            jax.config.update("jax_num_cpu_devices", math.prod(devices))
        check(config)
        found = summarize(config, mesh_for(config, devices, TOPOLOGY.value), TOPOLOGY.value)
        print(json.dumps(found) if JSON.value else table(found))
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    command(lambda _: app.run(run, flags_parser=main.parse))
