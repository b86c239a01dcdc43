"""The verbs of `alexnet`, each with the module that answers it."""

import importlib
import runpy
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from alexnet_jax.cli.commands import command

VERBS = {
    "train": "alexnet_jax.main",
    "evaluate": "alexnet_jax.evaluate",
    "predict": "alexnet_jax.analysis.predict",
    "features": "alexnet_jax.analysis.features",
    "retrieve": "alexnet_jax.analysis.retrieval",
    "figures": "alexnet_jax.analysis.figures",
    "convert": "alexnet_jax.weights.convert",
    "summary": "alexnet_jax.analysis.summary",
    "sweep": "experiments.sweep",
    "report": "experiments.report.command",
    "benchmark": "experiments.benchmark.command",
}


def main():
    """Runs the verb that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        sys.exit(f"error: name one of {', '.join(VERBS)}: alexnet train --config configs/quickstart.py")
    verb = sys.argv.pop(1)
    module = importlib.import_module(VERBS[verb])
    if not hasattr(module, "add_flags"):  # not yet moved to argparse
        runpy.run_module(VERBS[verb], run_name="__main__", alter_sys=True)
        return
    says, _, more = module.__doc__.partition("\n\n")
    parser = ArgumentParser(
        prog=f"alexnet {verb}", description=says, epilog=more, formatter_class=RawDescriptionHelpFormatter
    )
    module.add_flags(parser)
    command(lambda argv: module.main(parser.parse_args(argv)))
