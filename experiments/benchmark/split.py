"""What splitting the network costs: a training step with both towers on one device, and with a tower on each of two.

Both take turns on random images, in one process. On CPU the two devices share the cores, so the split cannot gain
anything there. Prints medians, and the memory that the compiler reserves on each device.
"""

import statistics
import time
from argparse import Namespace

from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.config import check
from alexnet_jax.runs import finetune
from experiments.benchmark.stepper import stepper

REPEATS = 7
WARM_UP = 2  # steps before the timed ones


def measure(flags: Namespace):
    """Measures in turns and prints. Raises UserError if there is no valid config."""
    if flags.config is None:
        raise UserError("name a config: alexnet benchmark split --config configs/paper.py")
    config = finetune.resolved(flags.config, given=flags.given)
    check(config)
    steps, memory = {}, {}
    for devices in (1, 2):
        config.devices.data, config.devices.tower = 1, devices
        steps[devices], memory[devices] = stepper(config)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in tqdm(range(WARM_UP + (flags.repeats or REPEATS)), unit=" turns"):
        for devices, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= WARM_UP:
                seconds[devices].append(time.perf_counter() - start)
    for devices in steps:
        median = statistics.median(seconds[devices])
        kept, more = (memory[devices][name] / 1e6 for name in ("state_and_batch_bytes", "temporary_bytes"))
        print(
            f"{devices} device(s): {median:.2f} s a step; {kept:.0f} MB of state and batch on each, {more:.0f} MB more"
        )
    ratios = [two / one for one, two in zip(seconds[1], seconds[2], strict=True)]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"a step on two devices takes {middle:.2f} times as long as on one (from {low:.2f} to {high:.2f})")
