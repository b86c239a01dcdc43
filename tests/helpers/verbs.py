"""Verbs of the command line, run in this process."""

from alexnet_jax.cli import commands


def run(module, *words):
    """Runs a verb's module on a command line; returns its exit status, None for 0."""
    return module.main(commands.parse(module, [str(word) for word in words]))
