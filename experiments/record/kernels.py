"""The first layer's kernels at the end of a run of an experiment, and how many of them are of colour."""

import numpy as np

from alexnet_jax import UserError, one_line
from alexnet_jax.analysis.figures import first_kernels
from alexnet_jax.analysis.specialisation import color_share
from alexnet_jax.runs.run import load_run
from experiments.results import Outcome


def read_kernels(run: Outcome) -> tuple[np.ndarray, int]:
    """The first layer's kernels at the end of a run, float32 (height, width, 3, n), and the number of its towers.

    Raises UserError if there is no checkpoint that can be read, or if that layer has no such kernels.
    """
    if not (run.folder / "checkpoints").is_dir():
        raise UserError("no checkpoint")
    try:
        loaded = load_run(run.folder, "latest")
        if loaded.step != run.final.get("step"):
            raise UserError(f"its last checkpoint is of step {loaded.step}, before its end")
        kernel = first_kernels(loaded)
        if kernel is None:
            raise UserError("its first layer is no convolution over colours")
        return kernel, loaded.config.model.towers
    except UserError:
        raise
    except Exception as error:  # a damaged checkpoint, or one of other code, raises nearly anything
        raise UserError(f"its checkpoint cannot be read ({one_line(error)})") from error


def colors(run: Outcome) -> list[float] | None:
    """The share of colour kernels in each tower at the end of a run; None if no checkpoint can be read."""
    try:
        kernel, towers = read_kernels(run)
    except UserError:
        return None
    return [round(share, 6) for share in color_share(kernel, towers)]
