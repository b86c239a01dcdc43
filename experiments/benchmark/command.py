"""Measures a part of training on this machine.

    alexnet benchmark input [--data imagenette/160px-v2] [--seconds 10] [--repeats 5]
    JAX_NUM_CPU_DEVICES=2 alexnet benchmark split --config configs/paper.py [--repeats 7]

input: how fast images reach the network, compared with PyTorch's DataLoader on the same photos.
split: what a training step costs with both towers on one device, and with a tower on each of two.
"""

from argparse import ArgumentParser, Namespace

from alexnet_jax import UserError
from alexnet_jax.cli.commands import add_config
from experiments.benchmark import input_pipeline, split

MEASURED = {"input": input_pipeline, "split": split}


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet benchmark`."""
    parser.add_argument("what", choices=tuple(MEASURED), metavar="WHAT", help=f"what to measure: {', '.join(MEASURED)}")
    says = "measurements of each candidate (default: 5 for input, 7 for split)"
    parser.add_argument("--repeats", type=int, metavar="N", help=says)
    add_config(parser, required=False)  # of split
    input_pipeline.add_flags(parser)


def main(flags: Namespace):
    """Measures and prints. Raises UserError."""
    if flags.repeats is not None and flags.repeats < 1:
        raise UserError(f"--repeats is {flags.repeats} and must be at least 1")
    MEASURED[flags.what].measure(flags)
