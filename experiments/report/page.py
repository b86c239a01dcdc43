"""The report as one HTML file, made from page.html.jinja."""

import base64
import datetime
from pathlib import Path

import jax
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

import alexnet_jax
from experiments.report import table
from experiments.report.pictures import Picture, Pictures
from experiments.report.rows import Report
from experiments.results import number, printable


def html(report: Report, pictures: Pictures, command: str) -> str:
    """The page with everything in it: it needs no other file, no network and no script.

    command: what made it, as a user types it.
    """
    # Escaped throughout: names and messages come from files.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"embedded": _embedded, "size": _size}
    return environment.get_template("page.html.jinja").render(
        title=f"Ablations: {report.name}",
        left_out=len(report.others),
        all_runs=report.finished + len(report.others),
        what_was_run=_what_was_run(report),
        views=table.views(report),
        results=table.results_table(report),
        certainty=table.certainty_table(report),
        runs=table.runs_table(report),
        others=table.others_table(report),
        notes=table.notes(report),
        pictures=pictures,
        how=_how(command),
    )


def _what_was_run(report: Report) -> dict[str, str]:
    settings = report.base.group.settings
    rows = (report.base, *report.rows)
    images = {number(run.final, "images") for row in rows for run in row.group.finished.values()} - {None}
    data = f"{table.data(report)}, {settings['model.num_classes']} classes"
    if len(images) == 1:
        data += f", {images.pop():,} validation images"
    training = f"{settings['epochs']} epochs"
    if "batch_size" in settings:
        training += f", batches of {settings['batch_size']}"
    return {
        "base": report.config_name,
        "data": data,
        "training": training,
        "seeds": ", ".join(map(str, report.seeds)) or "no run is finished",
        "ablations": f"{len(report.rows)}, each a change to the base: see the table of all runs",
    }


def _how(command: str) -> dict[str, str]:
    return {
        "command": printable(command),
        "versions": f"alexnet_jax {alexnet_jax.__version__}, jax {jax.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def _embedded(picture: Picture) -> str:
    """A picture as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(picture.path.read_bytes()).decode()}"


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels."""
    with Image.open(picture.path) as image:
        return image.size
