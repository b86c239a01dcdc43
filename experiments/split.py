"""What the split costs: a training step with both towers on one device, and with one on each of two.

    JAX_NUM_CPU_DEVICES=2 python -m experiments.split [--config configs/paper.py] [--repeats 7]

Both run in turns on random images, in one process; on CPU the two devices share the cores, so that the split can only
cost. Prints medians, and the memory that the compiler allots on each device.
"""

import statistics
import sys
import time

from absl import app, flags, logging
from tqdm import tqdm

from alexnet_jax import UserError, main
from alexnet_jax.cli.commands import command
from alexnet_jax.config import check
from experiments.steps import stepper

REPEATS = flags.DEFINE_integer("repeats", 7, "timed steps of each")
WARM_UP = 2  # steps before them


def run(_):
    """absl's main; the user's mistakes end in one line."""
    try:
        if REPEATS.value < 1:
            raise UserError(f"--repeats is {REPEATS.value} and must be 1 or more")
        if main.CONFIG.value is None:
            raise UserError("name a config: --config configs/paper.py")
        check(main.CONFIG.value)
        steppers = {}
        for tower in (1, 2):
            main.CONFIG.value.devices.data, main.CONFIG.value.devices.tower = 1, tower
            steppers[tower] = stepper(main.CONFIG.value)
    except UserError as e:
        sys.exit(f"error: {e}")
    seconds = {1: [], 2: []}
    for repeat in tqdm(range(WARM_UP + REPEATS.value), unit=" turns"):
        for tower, (step, _) in steppers.items():
            start = time.perf_counter()
            step()
            if repeat >= WARM_UP:
                seconds[tower].append(time.perf_counter() - start)
    for tower, (_, memory) in steppers.items():
        held, more = (memory[name] / 1e6 for name in ("state_and_batch_bytes", "temporary_bytes"))
        median = statistics.median(seconds[tower])
        print(f"{tower} device(s): {median:.2f} s a step; on each {held:.0f} MB of state and batch, {more:.0f} MB more")
    ratios = [b / a for a, b in zip(seconds[1], seconds[2], strict=True)]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"two devices take {middle:.2f} of the time of one (from {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    command(lambda _: app.run(run, flags_parser=main.parse))
