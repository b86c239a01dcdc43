"""The tables of a report as cells of text, and the main one for a terminal and in Markdown."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from experiments.report.intervals import LEVEL, Interval, Spread
from experiments.report.rows import Report, Row
from experiments.results import printable

Kind = Literal["name", "number", "words", "short", "code"]  # short: a few words


class Column(NamedTuple):
    """A column of a table."""

    heading: str
    kind: Kind


class Table(NamedTuple):
    """A table whose first column names its rows."""

    columns: list[Column]
    rows: list[list[str]]

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self.columns]


# --- Cells ------------------------------------------------------------------------------------------------------------


def results_table(report: Report) -> Table:
    """What each change costs, the base first."""
    columns = [
        Column("ablation", "name"),
        Column("n", "number"),
        Column(f"top-1 error, %, {views(report)}", "number"),
        Column("top-5 error, %", "number"),
        Column("training error, %", "number"),
        Column("difference, points", "number"),
        Column("95 % interval, all at once", "number"),
        Column("2012", "number"),
        Column("CaffeNet, 128 px", "number"),
        Column("verdict", "short"),
    ]
    rows = [
        [
            row.title, _count(row), _spread(row.top1), _spread(row.top5), _spread(row.training), _difference(row),
            _interval(row), signed(row.change and row.change.top1, "g"),
            signed(row.change and row.change.caffenet, "g"), row.verdict,
        ]
        for row in (report.base, *report.rows)
    ]  # fmt: skip
    if report.base.group.settings["model.num_classes"] <= 10:  # the top-5 error of so few classes says little
        _without("top-5 error, %", columns, rows)
    if not any(row.change and row.change.caffenet is not None for row in report.rows):
        _without("CaffeNet, 128 px", columns, rows)
    return Table(columns, rows)


def certainty_table(report: Report) -> Table:
    """How sure each difference is, and what 2012 says of it in words."""
    columns = [
        Column("ablation", "name"),
        Column("difference, points", "number"),
        Column("95 % interval, alone", "number"),
        Column("Holm's p", "number"),
        Column("seen with probability 0.8, points", "number"),
        Column("2012 in words, and source", "words"),
    ]
    rows = [
        [
            row.title, _difference(row), _ends(row.difference), "" if row.p is None else f"{row.p:.2g}",
            "" if row.detectable is None else f"{row.detectable:.2f}", _words_of_2012(row),
        ]
        for row in report.rows
    ]  # fmt: skip
    return Table(columns, rows)


def _without(heading: str, columns: list[Column], rows: list[list[str]]):
    """Removes a column."""
    at = [column.heading for column in columns].index(heading)
    for cells in (columns, *rows):
        del cells[at]


def runs_table(report: Report) -> Table:
    """The top-1 error of every finished run."""
    columns = [Column("ablation", "name"), Column("what it changes", "code")]
    columns += [Column(f"seed {seed}", "number") for seed in report.seeds]
    rows = []
    for row in (report.base, *report.rows):
        changes = "" if row is report.base else row.fields or "nothing"
        runs = row.group.finished
        errors = [f"{100 * runs[seed].final['top1_error']:.2f}" if seed in runs else "" for seed in report.seeds]
        rows.append([row.title, changes, *errors])
    return Table(columns, rows)


def others_table(report: Report) -> Table:
    """The runs that are not in the numbers, and why."""
    columns = [
        Column("ablation", "name"),
        Column("state", "short"),
        Column("reason", "words"),
        Column("folder", "code"),
    ]
    rows = [
        [title or "(of no ablation)", run.state, run.reason, printable(str(run.folder))] for title, run in report.others
    ]
    return Table(columns, rows)


def views(report: Report) -> str:
    """What the errors are measured on, in words."""
    count = report.base.group.settings["evaluation.views"]
    return "centre crop" if count == 1 else f"{count} views"


def data(report: Report) -> str:
    """The name of the data set."""
    return printable(report.base.group.settings["data.name"])


def notes(report: Report) -> list[str]:
    """What to know before reading the table."""
    return [
        f"Errors are those on the validation split ({views(report)}) after the last epoch: mean ± standard deviation "
        "over n seeds. The training error is that of the last epoch's training crops, with augmentation and dropout.",
        "A difference is in percentage points of top-1 error, between the means over seeds. Above zero, the change "
        "hurts. Intervals are Welch's t over seeds: they say what other seeds would give, not what other images "
        f"would. {_at_once(report)}",
        "Seen with probability 0.8: the smallest true difference that would have made its interval exclude zero with "
        "this probability, if errors spread as much as measured. A smaller one may be there and not be seen.",
        "2012: what the change costs in top-1 error on ImageNet, according to the paper or a note in its code. These "
        f"runs are on {data(report)}. The verdict compares only the signs, and only if the interval for all at once "
        "excludes zero; otherwise the difference is not significant. 2012's number is within noise where it is the "
        "difference of two single runs, a tenth of a point or so.",
        *_seed_effect(report),
        *_second_reference(report),
    ]


def _at_once(report: Report) -> str:
    """What the intervals of several differences promise."""
    count = report.comparisons
    if count < 2:
        return "There is one difference, so its interval for all at once is that of it alone."
    alone = f"{100 - 100 * LEVEL / count:.2f} %"
    return (
        f"The intervals of all {count} differences hold at once with 95 % confidence (Bonferroni: each alone has "
        f"{alone}). Holm's p allows for their number too, loses less, and may be below 0.05 where the "
        "interval just includes zero. Of changes that do nothing, one in twenty has a 95 % interval of its own that "
        "excludes zero."
    )


def _seed_effect(report: Report) -> list[str]:
    """Whether runs of the same seed could have been paired."""
    found = report.seed_effect
    if found is None:
        return []
    return [
        f"Runs of the same seed are not paired. Between the {found.seeds} seeds that {found.groups} of these networks "
        f"share, errors vary {found.f:.2f} times as much as within them (F test of a two-way analysis of variance, "
        f"p {found.p:.2g}): 1 is chance."
    ]


def _second_reference(report: Report) -> list[str]:
    if not any(row.change and row.change.caffenet is not None for row in report.rows):
        return []
    return [
        "CaffeNet, 128 px: the same change to Caffe's variant of the network on ImageNet at 128 pixels, centre crop, "
        "one run each (ducha-aiki/caffenet-benchmark, top-1 accuracy turned into error). No verdict depends on it."
    ]


def _count(row: Row) -> str:
    done, planned = len(row.group.finished), len(row.group.runs)
    return str(done) if done == planned else f"{done} of {planned}"


def _spread(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.2f}" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f}"


def _difference(row: Row) -> str:
    return signed(row.difference.mean) if row.difference else ""


def _interval(row: Row) -> str:
    n = len(row.group.finished)
    if row.simultaneous is None:
        return "no seed of the base" if row.verdict and n else ""
    if not row.simultaneous.counts:
        few = {1: "one seed", 2: "two seeds"}
        return f"{few[n]} only" if n in few else f"{few[row.simultaneous.n]} of the base"
    return _ends(row.simultaneous)


def _ends(found: Interval | None) -> str:
    if found is None or not found.counts:
        return ""
    return f"{signed(found.low)} to {signed(found.high)}"


def _words_of_2012(row: Row) -> str:
    return "; ".join(filter(None, (row.change.says, row.change.source))) if row.change else ""


def signed(value: float | None, form: str = ".2f") -> str:
    """A number with its sign, and a minus instead of a hyphen; nothing for None."""
    return "" if value is None else format(value, f"+z{form}").replace("-", "\u2212")


# --- A terminal and Markdown ------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """The main table for a terminal, and below it the runs that are not in it."""
    table = results_table(report)
    widths = [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]

    def line(cells: Iterable[str]) -> str:
        padded = []
        for column, cell, width in zip(table.columns, cells, widths, strict=True):
            padded.append(cell.rjust(width) if column.kind == "number" else cell.ljust(width))
        return "  ".join(padded).rstrip()

    lines = [line(table.headings), line("-" * width for width in widths), *map(line, table.rows)]
    if report.others:
        lines += ["", "not in these numbers:", *(f"  {other}" for other in _other_lines(report))]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The two main tables in Markdown, with their notes and the runs that are not in it."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(map(escaped, cells))} |"

    lines = []
    for table in (results_table(report), certainty_table(report)):
        rule = "|".join("---:" if column.kind == "number" else "---" for column in table.columns)
        lines += [line(table.headings), f"|{rule}|", *map(line, table.rows), ""]
    lines.pop()
    for note in notes(report):
        lines += ["", escaped(note)]
    if report.others:
        lines += ["", "Not in these numbers:", "", *(f"- {escaped(other)}" for other in _other_lines(report))]
    return "\n".join(lines) + "\n"


def _other_lines(report: Report) -> list[str]:
    return [f"{state}: {title}, {folder}: {reason}" for title, state, reason, folder in others_table(report).rows]


def escaped(cell: str) -> str:
    """Text that Markdown shows as it is."""
    cell = cell.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in cell)
