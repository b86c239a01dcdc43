"""The report of a sweep: what each change costs, with error bars, next to what 2012 says that it costs.

    alexnet report runs/sweep_small --out report          # a sweep
    alexnet report runs/a runs/b --base runs/a            # runs that no sweep has planned

Prints the table and writes report.html, a single file that can be opened or sent as it is, with table.md and the
pictures beside it. The numbers include only runs that are finished and are what was planned. All others are listed,
each with the reason.
"""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

import jax

from alexnet_jax import UserError
from alexnet_jax.files import expanded, write_text
from experiments.report import page, pictures, table
from experiments.report.rows import make_report


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet report`."""
    parser.add_argument("runs", nargs="+", type=Path, help="runs, or folders that contain runs at any depth")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the folder to write to (default: report)")
    parser.add_argument("--base", type=Path, help="the folder of the base's runs, if none is named base")


def main(flags: Namespace):
    """Prints the table and writes the page. Raises UserError if the runs make no report, or if it cannot be written."""
    # The kernels are only looked at: accelerators and their memory are left to training.
    jax.config.update("jax_platforms", "cpu")
    flags.runs, flags.out = [expanded(path) for path in flags.runs], expanded(flags.out)
    flags.base = expanded(flags.base) if flags.base else None
    report = make_report(flags.runs, flags.base)
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {flags.out} ({error.strerror}): name another --out") from error
    print(table.text(report), flush=True)
    write_text(flags.out / "table.md", table.markdown(report))
    drawn = pictures.draw(report, flags.out)
    write_text(flags.out / "report.html", page.html(report, drawn, _command(flags)))
    print(f"\n{flags.out / 'report.html'}, table.md and the pictures beside it")


def _command(flags: Namespace) -> str:
    words = ["alexnet", "report", *flags.runs, "--out", flags.out]
    if flags.base:
        words += ["--base", flags.base]
    return shlex.join(map(str, words))
