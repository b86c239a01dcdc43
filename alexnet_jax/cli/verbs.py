"""The verbs of `alexnet`, each with the module that answers it."""

import runpy
import sys

VERBS = {
    "train": "alexnet_jax.main",
    "evaluate": "alexnet_jax.evaluate",
    "predict": "alexnet_jax.analysis.predict",
    "features": "alexnet_jax.analysis.features",
    "retrieve": "alexnet_jax.analysis.retrieval",
    "figures": "alexnet_jax.analysis.figures",
    "convert": "alexnet_jax.weights.convert",
    "summary": "alexnet_jax.analysis.summary",
    "sweep": "experiments.ablations",
    "report": "experiments.report",
    "benchmark": "experiments.pipeline",
}


def main():
    """Runs the verb that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        sys.exit(f"error: name one of {', '.join(VERBS)}: alexnet train --config configs/quickstart.py")
    module = VERBS[sys.argv.pop(1)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
