"""What a report looks like: its table as text and as Markdown, and the page, one HTML file."""

import base64
import datetime
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import jax
from PIL import Image

import alexnet_jax
from experiments.pictures import Picture, Pictures
from experiments.results import number, printable

if TYPE_CHECKING:  # report.py imports this file
    from experiments.report import Report, Row, Spread

NAME = "ablation"  # the first column
WORDS = {NAME, "verdict", "2012 in words, and where", "state", "reason"}  # columns; the others hold numbers
SHORT = {"verdict", "state"}  # of few words
CODE = {"what it changes", "folder"}


# --- The table --------------------------------------------------------------------------------------------------------


def table(report: "Report") -> tuple[list[str], list[list[str]]]:
    """The headings, and the rows of the results, the base's first, as they are shown everywhere."""
    rows = []
    for row in (report.base, *report.rows):
        done, all_runs, change = len(row.group.finished), len(row.group.runs), row.change
        rows.append({
            NAME: row.title,
            "n": str(done) if done == all_runs else f"{done} of {all_runs}",
            f"top-1 error, %, {_views(report)}": _spread(row.top1),
            "top-5 error, %": _spread(row.top5),
            "training error, %": _spread(row.training),
            "difference, points": _signed(row.difference.mean) if row.difference else "",
            "95 % interval": _interval(row),
            "2012": _signed(change.top1, "g") if change and change.top1 is not None else "",
            "verdict": row.verdict,
            "2012 in words, and where": "; ".join(filter(None, (change.says, change.source))) if change else "",
        })  # fmt: skip
    if report.base.group.settings["model.num_classes"] <= 10:  # of ten classes it says little
        rows = [{heading: cell for heading, cell in row.items() if heading != "top-5 error, %"} for row in rows]
    return list(rows[0]), [list(row.values()) for row in rows]


def _signed(value: float, form: str = ".2f") -> str:
    return format(value, f"+z{form}").replace("-", "\u2212")


def _spread(found: "Spread | None") -> str:
    if found is None:
        return ""
    return f"{found.mean:.2f}" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f}"


def _interval(row: "Row") -> str:
    found, n = row.difference, len(row.group.finished)
    if found is None:
        return "no seed that the base has" if row.verdict and n else ""
    if found.low is None:
        return "none of one seed" if n == 1 else "none of one pair"
    return f"{_signed(found.low)} to {_signed(found.high)}" + ("" if found.n == n else f" ({found.n} pairs)")


def _views(report: "Report") -> str:
    views = report.base.group.settings["evaluation.views"]
    return "centre crop" if views == 1 else f"{views} views"


def _data(report: "Report") -> str:
    return printable(report.base.group.settings["data.name"])


def notes(report: "Report") -> list[str]:
    """What to know before reading the table."""
    return [
        f"Errors are of the last epoch, on the validation split ({_views(report)}): mean ± standard deviation over n "
        "seeds. The training error is of the last epoch's crops as training saw them, augmented and under dropout.",
        "A difference is in percentage points of top-1 error, paired with the base's run of the same seed; above zero, "
        "the change hurts. Its interval is Student's t over seeds: what other seeds would give, not other images. Of "
        "twenty such intervals around nothing, one leaves zero out by chance.",
        "2012: what the paper, or a note in its code, says that the change costs in top-1 error on ImageNet. These "
        f"runs are on {_data(report)}. The verdict compares signs alone, where the interval leaves zero out; 2012's is "
        "noise where two single runs differ by a tenth of a point or so.",
    ]


def _others(report: "Report") -> list[list[str]]:
    """What is not in the numbers: ablation, state, reason, folder."""
    others = [(title or "(of no ablation)", run) for title, run in report.others]
    return [[title, run.state, run.reason, printable(str(run.folder))] for title, run in others]


def text(report: "Report") -> str:
    """The table for a terminal, and below it what is not in it."""
    headings, rows = table(report)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, ["-" * width for width in widths], *rows):
        cells = zip(headings, row, widths, strict=True)
        lines.append("  ".join(c.ljust(w) if h in WORDS else c.rjust(w) for h, c, w in cells).rstrip())
    if report.others:
        lines += ["", "not in these numbers:"]
        lines += [f"  {state}: {title}, {folder}: {reason}" for title, state, reason, folder in _others(report)]
    return "\n".join(lines)


def markdown(report: "Report") -> str:
    """The table in Markdown, with its notes and what is not in it."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(map(_marked, cells))} |"

    headings, rows = table(report)
    rule = "|".join("---" if h in WORDS else "---:" for h in headings)
    lines = [line(headings), f"|{rule}|", *map(line, rows)]
    for note in notes(report):
        lines += ["", _marked(note)]
    if report.others:
        lines += ["", "Not in these numbers:", ""]
        lines += [
            f"- {_marked(f'{state}: {title}, {folder}: {reason}')}" for title, state, reason, folder in _others(report)
        ]
    return "\n".join(lines) + "\n"


def _marked(cell: str) -> str:
    """Text that Markdown leaves alone."""
    cell = cell.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in cell)


# --- The page ---------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1e21; --soft: #5a6068; --line: #d9dce0; --stripe: #f5f6f8;
  --warn: #fff4d6; --warn-line: #d9a400; --link: #0057a8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 78rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p, li { max-width: 46rem; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.warning { background: var(--warn); border-left: .25rem solid var(--warn-line); padding: .5rem .8rem; }
.notes { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .7rem; color: var(--soft); }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { vertical-align: bottom; border-top: 0; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.words { min-width: 8rem; }
.short { min-width: 6.5rem; }
.name { min-width: 9rem; }
tbody tr:nth-child(odd) > * { background: var(--stripe); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: .4rem; padding: .4rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
.wide { max-width: 45rem; }
.kernels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.25rem; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  .words { min-width: 14rem; }
  .name { min-width: 7.5rem; position: sticky; left: 0; background: var(--page); }
  .name::after { content: ""; position: absolute; inset: 0 0 0 auto; border-right: 1px solid var(--line); }
}
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #16181b; --ink: #e6e7e9; --soft: #a3a9b1; --line: #3a3f45; --stripe: #1f2226; --warn: #3a2f0d;
    --warn-line: #d9a400; --link: #7db8ff; }
  figure img { filter: brightness(.9); }
}
@media print {
  @page { margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: .2rem .3rem; }
  .words, .short, .name { min-width: 0; }
  code { overflow-wrap: anywhere; }
  caption, thead { break-after: avoid; }
  thead { display: table-header-group; }
  tr, figure, dl { break-inside: avoid; }
  figure img { padding: 0; width: auto; max-width: 100%; max-height: 225mm; }
  .wide { max-width: 135mm; }
}
"""


def html(report: "Report", pictures: Pictures, command: str) -> str:
    """The page, with everything in it: it needs no other file, no network and no script."""
    rows = [report.base, *report.rows]
    done = sum(len(row.group.finished) for row in rows)
    title = f"Ablations: {report.name}"
    parts = [f"<h1>{escape(title)}</h1>"]
    if report.others:
        others = f"{len(report.others)} of {done + len(report.others)} runs are not in these numbers"
        parts.append(f'<p class="warning">{others}: <a href="#others">which, and why</a>.</p>')
    parts += ["<h2>What was run</h2>", _what_was_run(report, rows)]

    parts.append("<h2>Results</h2>")
    headings, cells = table(report)
    parts.append(_table("What each change costs", headings, cells, "results"))
    parts += [f'<p class="notes">{escape(note)}</p>' for note in notes(report)]
    if pictures.differences:
        parts += ["<h2>Differences to the base</h2>", _figure(pictures.differences)]
    if pictures.curves:
        parts += ["<h2>Training</h2>", _figure(pictures.curves)]
    if pictures.kernels or pictures.without_kernels:
        parts.append("<h2>Kernels of conv1</h2>")
        if pictures.kernels:
            parts.append(f'<div class="kernels">{"".join(map(_figure, pictures.kernels))}</div>')
        for reason, titles in pictures.without_kernels.items():
            parts.append(f'<p class="notes">Not drawn, {escape(reason)}: {escape("; ".join(titles))}.</p>')

    parts.append("<h2>Every run</h2>")
    seeds = sorted({seed for row in rows for seed in row.group.finished})
    headings = [NAME, "what it changes", *(f"seed {seed}" for seed in seeds)]
    cells = [[row.title, "" if row is report.base else row.fields or "nothing", *_by_seed(row, seeds)] for row in rows]
    parts.append(_table(f"Top-1 error, %, {_views(report)}", headings, cells, "runs"))
    if report.others:
        parts.append('<h2 id="others">Not in these numbers</h2>')
        caption = "Runs that are missing, unfinished, failed or left out"
        parts.append(_table(caption, [NAME, "state", "reason", "folder"], _others(report), "others"))
    parts += ["<h2>How this page was made</h2>", _how(command)]
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _what_was_run(report: "Report", rows: Sequence["Row"]) -> str:
    settings = report.base.group.settings
    seeds = sorted({seed for row in rows for seed in row.group.finished})
    images = {number(run.final, "images") for row in rows for run in row.group.finished.values()} - {None}
    steps = f"{settings['epochs']} epochs" + (f", batches of {b}" if (b := settings.get("batch_size")) else "")
    items = {
        "base": report.config_name,
        "data": f"{_data(report)}, {settings['model.num_classes']} classes"
        + (f", {images.pop():,} validation images" if len(images) == 1 else ""),
        "training": steps,
        "seeds": ", ".join(map(str, seeds)) or "none is finished",
        "ablations": f"{len(report.rows)}, each a change to the base: see the table of every run",
    }
    return _list(items)


def _by_seed(row: "Row", seeds: Sequence[int]) -> list[str]:
    runs = row.group.finished
    return [f"{100 * runs[seed].final['top1_error']:.2f}" if seed in runs else "" for seed in seeds]


def _how(command: str) -> str:
    return _list({
        "command": printable(command),
        "versions": f"alexnet_jax {alexnet_jax.__version__}, jax {jax.__version__}",
        "date": datetime.date.today().isoformat(),
    })  # fmt: skip


def _list(items: dict[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in items.items())}</dl>"


def _table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """A table in a box of its own, in which it scrolls where the screen is too narrow. A row's first cell heads it."""

    def cell(heading: str, value: str) -> str:
        if heading == NAME:
            return f'<th scope="row" class="name">{escape(value)}</th>'
        if heading in CODE:
            return f'<td class="words"><code>{escape(value)}</code></td>'
        return f'<td class="{_kind(heading)}">{escape(value)}</td>'

    head = "".join(f'<th scope="col" class="{_kind(heading)}">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(map(cell, headings, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" role="region" aria-labelledby="{name}-caption" tabindex="0">\n'
        f'<table class="{name}">\n<caption id="{name}-caption">{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>"
    )


def _kind(heading: str) -> str:
    """The class of a column's cells."""
    if heading == NAME:
        return "name"
    if heading in SHORT:
        return "short"
    return "words" if heading in WORDS | CODE else "number"


def _figure(picture: Picture) -> str:
    with Image.open(picture.path) as image:
        width, height = image.size
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure class="wide"><img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}" '
        f'width="{width}" height="{height}">{caption}</figure>'
    )
