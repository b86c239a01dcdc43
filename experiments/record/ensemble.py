"""An ensemble: the error of several runs of a cell, whose probabilities are averaged (table 2 of the paper).

An entry is a dict, one line of a record: cell, seeds, views, top1 and top5 (fractions).
"""

from typing import Any

from alexnet_jax import UserError, checkpoint
from alexnet_jax.evaluate import evaluate_runs
from experiments.results import Outcome


def of_runs(cell: str, runs: list[Outcome]) -> dict[str, Any]:
    """The entry of some finished runs, at the ends of their training, in the views of their config.

    Raises UserError if one has no checkpoint of its end, or if their images differ or are not there.
    """
    for run in runs:
        if (step := checkpoint.latest_step(run.folder)) != run.final["step"]:
            raise UserError(
                f"the last checkpoint of {run.folder} is of step {step} and its training ended at "
                f"{run.final['step']}: start the same training again, which ends it"
            )
    views = runs[0].settings["evaluation.views"]
    found = evaluate_runs([str(run.folder) for run in runs], views, "validation", which="latest")
    seeds = [run.seed for run in runs]
    errors = {name: round(found[f"{name}_error"], 6) for name in ("top1", "top5")}
    return {"cell": cell, "seeds": seeds, "views": views} | errors
