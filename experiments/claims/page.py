"""The claims as Markdown: experiments/CLAIMS.md, and the README's ten rows. Everything in them is from the records."""

from collections import Counter
from collections.abc import Iterable, Sequence

from alexnet_jax import UserError
from experiments.claims.claims import CLAIMS, Claim
from experiments.claims.measures import Found, Records
from experiments.report.table import escaped
from experiments.results import printable

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"  # around the README's block
SHOWN = 10  # rows of the README
SHORT = {  # how a verdict begins, and its name where verdicts are counted
    "agrees that": "agrees in direction, not in size",
    "significant; the": "significant, beside a number within noise",
    "significant; no": "significant, no claim of 2012",
    "higher": "not compatible",
    "lower": "not compatible",
    "in ": "in some runs",
    "not within": "in no run",
    "not measured": "not measured",
} | {
    word: word
    for word in (
        "agrees", "compatible", "contradicts", "not significant", "out of reach", "too few seeds", "one seed",
        "one set", "not comparable", "the same step in every run",
    )
}  # fmt: skip
Row = tuple[Claim, Found | None]

INTRO = """# The paper's claims, rerun

    alexnet claims        # writes this page, the README's table and the pictures from experiments/records

Each claim of the paper, and of the notes in its code, with its number and ours. No number under "ours" is typed by
hand: they are computed from the [records](records) of the runs, and a test compares this page with what they give.

- **2012**: the number of the paper, on ImageNet unless the row says otherwise. Ours are at the scale that the second
  table names, so that the verdict compares the signs; how large an effect is may well depend on the scale. Sections
  "ours" are changes that 2012 claims nothing of.
- **Ours**: differences are in percentage points of top-1 error, between means over n seeds or more, above zero where
  the change hurts. In brackets are 95 % intervals, by Welch's t over seeds; of several views, by Student's t over
  the runs' own differences; of a ratio, by Welch's t of logarithms. Those of one study's ablations hold all at once
  (Bonferroni, for all that are planned), so they are wider than each would be alone; the others stand alone.
- An ablation that was better at another learning rate than the base's, on photos that are held out, has it
  ([which were tried](../docs/ablations.md#sweeps)). In figure 1 each network has the best of a few rates, of one seed.
  No interval covers the choice of a rate.
- **agrees, contradicts**: the interval excludes zero, and the sign is the paper's, or is not. **not significant**: it
  includes zero; behind it is the smallest difference that so many seeds would have seen with probability 0.8. **too few
  seeds**: there are fewer than three. **significant; no claim of 2012**: of a change that 2012 says nothing of.
  **significant; the number of 2012 is within noise**: that is the difference of two single runs, a tenth of a point or
  so, so its sign means nothing. **not comparable**: ours is counted otherwise, as the row says. **agrees that ..., but
  not N times**: a ratio's interval excludes 1 and the paper's number. **one set**: one average of several networks'
  probabilities.
- A change **overfits** if the training error falls and the error rises, both significantly; the verdict is the less
  favourable of the two. One row, that of smaller pools, looks at the difference of the two instead. Training errors are
  those of the last epoch's crops: with augmentation and with dropout, where the network has them.
- What is counted run by run, the first steps and the colour of the towers, has no interval: **agrees** is then in every
  run, and of a single run, **one seed**, the row says what it did. A network **stops guessing** at the step where its
  mean loss over 20 steps is first 0.05 below ln 10. A tower is colour-blind if at most a quarter of its kernels are
  mostly colour, and more than half of the other tower's. Towers are apart beyond chance if Fisher's exact test has a p
  below 0.05, as at most one run in twenty would have by chance. How many points the shares of colour are apart is
  compared as errors are.
- **not measured**: no finished run is recorded. **out of reach**: it cannot be measured here, and the second table says
  what it would take.
- Published networks for CIFAR-10: ours is the mean ± standard deviation. It is **compatible** if the published error,
  which is rounded, is where one more run of ours would be with 95 % probability, and **higher** or **lower** if not.
- **Command, hours**: of the runs that the row reads. n is that of the smaller group; of a base, more seeds may be
  recorded than the command trains. Where a row names a change, its command trains the base too.
"""


def rows(records: Records) -> list[Row]:
    """Every claim with what the records say of it."""
    return [(claim, claim.measure(records) if claim.measure else None) for claim in CLAIMS]


def page(records: Records) -> str:
    """The text of CLAIMS.md."""
    found = rows(records)
    parts = [INTRO, _counts(found), "## Claims", _claims(found), "## How each is measured", _measured(found)]
    parts += ["## Runs", _studies(records), *_failures(records)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def block(records: Records) -> str:
    """The README's ten rows, between their markers: the main claims, and then others, as far as they are measured."""
    every = rows(records)
    measured = [(claim, found) for claim, found in every if found]
    chosen = sorted(measured, key=lambda row: not row[0].main)[:SHOWN]
    body = [
        [claim.section, claim.says, claim.paper, found.ours, str(found.n), found.verdict, found.scale]
        for claim, found in measured
        if (claim, found) in chosen
    ]
    table = _table(("section", "claim", "2012", "ours", "n", "verdict", "ours is on"), body)
    reach = sum(1 for claim, _ in every if claim.measure)
    note = (
        "In brackets are 95 % confidence intervals, those of the ablations simultaneous (Bonferroni). Behind "
        '"not significant" is the minimum detectable difference: what so many seeds would have seen with probability '
        f"0.8, in points. These are {len(chosen)} of {len(every)} rows, of which {len(measured)} are measured so far "
        f"and {len(every) - reach} are out of reach here."
    )
    return f"{BEGIN}\n{table}\n\n{note}\n{END}"


def with_block(text: str, records: Records, path: str) -> str:
    """A README with a new block between its markers. Raises UserError if it does not have them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path} has no {BEGIN} with {END} after it: add both where the table belongs")
    return before + block(records) + after


def verdict(claim: Claim, found: Found | None) -> str:
    """The verdict of a row; what was not measured says so."""
    if found:
        return found.verdict
    return "not measured" if claim.measure else "out of reach"


# --- Tables -----------------------------------------------------------------------------------------------------------


def _claims(found: Sequence[Row]) -> str:
    body = [
        [str(i), claim.section, claim.says, claim.paper, there.ours if there else "", _n(there), verdict(claim, there)]
        for i, (claim, there) in enumerate(found, start=1)
    ]
    return _table(("row", "section", "claim", "2012", "ours", "n", "verdict"), body)


def _measured(found: Sequence[Row]) -> str:
    body = []
    for i, (claim, there) in enumerate(found, start=1):
        command = claim.command.replace("{seeds}", str(_seeds(there.runs) if there else claim.seeds))
        scale = there.scale if there else f"needs {claim.takes}" if claim.takes else "not run"
        body.append([str(i), scale, f"`{command}`" if command else "", _hours(there.runs) if there else ""])
    return _table(("row", "scale", "command", "hours of training"), body, code=2)


def _seeds(runs: Iterable[dict]) -> int:
    """The --seeds that trains these runs, or those of the cell that has fewest: a failed one lies among them."""
    highest: dict[str, int] = {}
    for run in runs:
        highest[run["cell"]] = max(run["seed"], highest.get(run["cell"], 0))
    return 1 + min(highest.values())


def _studies(records: Records) -> str:
    body = []
    for name, record in sorted(records.items()):
        runs = list(record.runs.values())
        states = Counter(run["state"] for run in runs)
        machines = {
            f"{m['CPU'].split(' avx')[0]}, {m['cores']} core{'s' if m['cores'] != 1 else ''}, jax {m['jax']}"
            for run in runs
            if (m := run.get("machine")) and all(m.get(field) for field in ("CPU", "cores", "jax"))
        }
        dates = sorted(run["date"] for run in runs if run.get("date"))
        span = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else ""
        counts = [str(states[state]) for state in ("finished", "unfinished", "failed")]
        body.append([name, str(len(record.fields)), *counts, _hours(runs), "; ".join(sorted(machines)), span])
    heads = ("record", "configs", "finished", "unfinished", "failed", "hours of training", "machines", "dates")
    return _table(heads, body) if body else "No run is recorded yet."


def _failures(records: Records) -> list[str]:
    """A list of the runs that failed or are unfinished: they are in no number above."""
    lines = []
    for name, record in sorted(records.items()):
        for (cell, seed), run in sorted(record.runs.items()):
            if run["state"] != "finished":
                reason = printable(run.get("reason", ""))
                lines.append(escaped(f"{run['state']}: {name}, {cell}, seed {seed}: {reason}"))
    return ["Runs that are in no number above:", "\n".join(f"- {line}" for line in lines)] if lines else []


def _counts(found: Sequence[Row]) -> str:
    """How many claims have which verdict."""
    counts = Counter(_short(verdict(claim, there)) for claim, there in found)
    return f"The {len(found)} rows: " + "; ".join(f"{count} {word}" for word, count in counts.most_common()) + "."


def _short(word: str) -> str:
    return next((short for begins, short in SHORT.items() if word.startswith(begins)), "other")


def _hours(runs: Iterable[dict]) -> str:
    hours = sum(run.get("hours", 0) for run in runs)
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _n(found: Found | None) -> str:
    return str(found.n) if found else ""


def _table(heads: Sequence[str], body: Sequence[Sequence[str]], code: int | None = None) -> str:
    """A table in Markdown; `code` is the column that is Markdown already."""
    shown = [[c if i == code else escaped(c) for i, c in enumerate(cells)] for cells in body]
    return "\n".join([_line(heads), "|" + "---|" * len(heads), *map(_line, shown)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
