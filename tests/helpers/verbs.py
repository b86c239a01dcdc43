"""Verbs of the command line, run in this process."""

from argparse import ArgumentParser

from alexnet_jax import UserError


class Parser(ArgumentParser):
    """A parser whose mistakes are the user's, not the end of the process."""

    def error(self, message):
        raise UserError(message)


def run(module, *words):
    """Runs a verb's module on a command line; returns its exit status, None for 0."""
    parser = Parser(allow_abbrev=False)
    module.add_flags(parser)
    return module.main(parser.parse_args([str(word) for word in words]))
