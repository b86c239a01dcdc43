"""Writes what the records say of the paper's claims: experiments/CLAIMS.md, the README's table, docs/claims.png.

    alexnet claims                                   # from the checkout's records
    alexnet claims --records FOLDER --out page.md --readme other.md --pictures FOLDER    # from others

Everything is made from experiments/records, which alexnet record adds runs to. Pictures show what is measured;
docs/figure1.png, the paper's Figure 1, is drawn if its runs are recorded.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from alexnet_jax import UserError
from alexnet_jax.files import expanded, write_text
from experiments.claims import page, pictures
from experiments.claims.measures import Records
from experiments.record import file

ROOT = Path(__file__).parents[2]


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet claims`."""
    says = "where the records are (default: the checkout's experiments/records)"
    parser.add_argument("--records", type=Path, default=file.RECORDS, metavar="FOLDER", help=says)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/CLAIMS.md", help="the page to write")
    says = "the file with <!-- claims --> and <!-- /claims -->, between which the main rows go"
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help=says)
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs", metavar="FOLDER", help="where pictures go")


def main(flags: Namespace):
    """Writes the page, the README's block and the pictures. Raises UserError if a record or a file cannot be used."""
    folder, out, readme, beside = map(expanded, (flags.records, flags.out, flags.readme, flags.pictures))
    records = read(folder)
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {readme} ({error.strerror}): name another --readme") from error
    written = {out: page.page(records), readme: page.with_block(text, records, str(readme))}
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    beside.mkdir(parents=True, exist_ok=True)
    drawn = pictures.draw(records, beside)
    print(f"{len(records)} records: {', '.join(map(str, [*written, *drawn]))}")


def read(folder: Path) -> Records:
    """The records of a folder, by name. Raises UserError if there is no folder, or if a record is damaged."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name that of the records with --records")
    return {path.stem: file.read(path) for path in sorted(folder.glob("*.json"))}
