"""What the split costs: a training step with both towers on one device, and with one on each of two.

    JAX_NUM_CPU_DEVICES=2 python -m experiments.split [--config configs/paper.py] [--repeats 7]

Both run in turns on random images, in one process; on CPU the two devices share the cores, so that the split can only
cost: the time above 1 is the exchanges, fc8 computed twice, and work that does not fill both. Prints medians, and the
memory that the compiler allots on each device.
"""

import argparse
import importlib.util
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import optimizer, summary, towers
from alexnet_jax.train import program


def read_config(path: str) -> ConfigDict:
    """The config of a file, as main reads it."""
    spec = importlib.util.spec_from_file_location("config", Path(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def stepper(config: ConfigDict, tower: int):
    """(a function that runs one step and waits for it, bytes held on a device, bytes more while a step runs)."""
    config.devices.data, config.devices.tower = 1, tower
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    net, rng = program(config, mesh), np.random.default_rng(0)
    b, d = config.batch_size, config.data
    batch = {
        "image": rng.integers(0, 256, (b, d.crop, d.crop, 3), np.uint8),
        "label": rng.integers(0, config.model.num_classes, b).astype(np.int32),
        "offset": np.zeros((b, 2), np.int32), "flip": np.zeros(b, bool), "noise": np.zeros((b, 3), np.float32),
    }  # fmt: skip
    channels = {"channel_mean": np.full(3, 128.0, np.float32), "stdevs": np.ones(3, np.float32)}
    mean = np.full((d.size, d.size, 3), 128.0, np.float32)
    constants = towers.place(
        {"statistics": {"mean": mean, "vectors": np.eye(3, dtype=np.float32)} | channels, "key": jax.random.key(0)},
        towers.replicated(mesh),
    ) | {"images": None}
    batch = towers.place(batch, towers.batch_sharding(mesh))
    state = net.start()
    epoch = {"rates": optimizer.rates(config.optimizer, state["params"], 0.0, 0), "noise": np.float32(0)}
    memory = summary.compile_step(config, mesh).memory_analysis()

    def step():
        nonlocal state
        state, _ = net.step(state, batch, epoch, constants)
        jax.block_until_ready(state)

    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return step, held, memory.temp_size_in_bytes


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.split", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/paper.py")
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    if len(jax.devices()) < 2:
        parser.error("this takes two devices: on CPU, set JAX_NUM_CPU_DEVICES=2")
    steppers = {tower: stepper(read_config(flags.config), tower) for tower in (1, 2)}
    seconds = {1: [], 2: []}
    for repeat in tqdm(range(flags.repeats + 2), unit=" turns"):
        for tower, (step, _, _) in steppers.items():
            start = time.perf_counter()
            step()
            if repeat > 1:  # the first two compile and warm up
                seconds[tower].append(time.perf_counter() - start)
    for tower, (_, held, more) in steppers.items():
        print(
            f"{tower} device(s): {statistics.median(seconds[tower]):.2f} s a step; on each "
            f"{held / 1e6:.0f} MB of state and batch, {more / 1e6:.0f} MB more in a step"
        )
    ratios = [b / a for a, b in zip(seconds[1], seconds[2], strict=True)]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"two devices take {middle:.2f} of the time of one (from {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
