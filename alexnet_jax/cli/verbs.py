"""The verbs of `alexnet`, each with the module that implements it."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from alexnet_jax import UserError, __version__
from alexnet_jax.cli import memory, stopping
from alexnet_jax.cli.commands import command, parse, set_up_libraries

VERBS = {  # verb: its module, and what it does
    "train": ("alexnet_jax.main", "train a config, or resume its run"),
    "evaluate": ("alexnet_jax.evaluate", "the error rates of a run, or of several averaged"),
    "predict": ("alexnet_jax.analysis.predict", "the most probable classes of photos"),
    "features": ("alexnet_jax.analysis.features", "the activations of any layer for your images"),
    "retrieve": ("alexnet_jax.analysis.retrieve", "the images whose features are most alike"),
    "figures": ("alexnet_jax.analysis.figures", "the paper's figures, drawn from a run"),
    "convert": ("alexnet_jax.weights.convert", "weights from and to other libraries' files"),
    "summary": ("alexnet_jax.analysis.summary", "what a network costs, layer by layer and device by device"),
    "sweep": ("experiments.sweep", "train a base config and its ablations, over seeds"),
    "report": ("experiments.report.command", "compare runs: tables and curves in one page"),
    "record": ("experiments.record.command", "keep what runs found in a small file of experiments/records"),
    "claims": ("experiments.claims.command", "write what the records say of the paper's claims"),
    "benchmark": ("experiments.benchmark.command", "speed and memory on this machine, beside PyTorch's"),
}
OVERVIEW = """usage: alexnet VERB [flags]

AlexNet as it was in 2012, in JAX.

{verbs}

alexnet VERB --help explains a verb. alexnet --version tells the version. python -m alexnet_jax VERB is the same.
To begin: alexnet train --config configs/quickstart.py"""


def program(*verb: str) -> NoReturn:
    """The command `alexnet`, or `alexnet VERB` if a verb is given: all of this process."""
    memory.restart()
    main([*verb, *sys.argv[1:]])


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Runs the verb that the command line, or `words`, names, and ends the process."""
    line = sys.argv[1:] if words is None else list(words)
    command(lambda _: run(line))


def run(words: Sequence[str]) -> int | None:
    """Runs a verb: `words` are the verb and its flags. Returns the exit status. Raises UserError."""
    if words and words[0] in ("-h", "--help", "help"):
        lines = (f"  {verb:10} {says}" for verb, (_, says) in VERBS.items())
        print(OVERVIEW.format(verbs="\n".join(lines)))
        return 0
    if words and words[0] == "--version":
        print(f"alexnet_jax {__version__}")
        return 0
    if not words or words[0] not in VERBS:
        raise UserError(_which_verb(*words[:1]))
    verb = words[0]
    if verb == "train":  # before its imports, which take seconds
        stopping.watch()
    module = find_module(verb)
    flags = parse(module, words[1:], f"alexnet {verb}")
    set_up_libraries()
    return module.main(flags)


def _which_verb(word: str = "") -> str:
    near = difflib.get_close_matches(word, VERBS, 1)
    if near:
        return f"there is no verb '{word}'; did you mean alexnet {near[0]}?"
    what = f"there is no verb '{word}'" if word else "name a verb"
    return f"{what}; there are {', '.join(VERBS)}: see alexnet --help"


def find_module(verb: str) -> ModuleType:
    """A verb's module. Raises UserError for experiments where there is no checkout of the repository."""
    name = VERBS[verb][0]
    if not name.startswith("experiments."):
        return importlib.import_module(name)
    from alexnet_jax.cli import config_file

    folder = config_file.checkout()
    if folder:
        sys.path.insert(0, str(folder))
        # Jobs of a sweep are processes of their own, which import experiments too.
        paths = [str(folder), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if folder or not (e.name or "").startswith("experiments"):
            raise
        raise UserError(
            f"alexnet {verb} is part of the repository, not of the installed package: get a checkout, "
            "and install it with pip install -e ."
        ) from e
