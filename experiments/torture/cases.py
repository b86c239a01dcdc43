"""What is tried, one after the other or several at a time, and the table of what came of it.

A case is a generator: it yields while it waits for its processes, and returns its Outcome. One thread plays them all,
so that the process may fork.
"""

import dataclasses
import json
import shutil
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from tqdm import tqdm

PAUSE = 0.001  # seconds between two looks at what runs


@dataclasses.dataclass
class Outcome:
    """What came of a case."""

    troubles: list[str] = dataclasses.field(default_factory=list)  # each is a finding
    number: int = 1  # how many kills, images, ... it holds
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # of its kills, by phase
    note: str = ""  # what is worth telling although it is no finding
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Something to be tried in a folder of its own."""

    part: str
    what: str  # the row of the table that it counts in
    name: str  # its own within its part
    play: Callable[[Path], Generator[None, None, Outcome]]


def play(cases: list[Case], jobs: int, out: Path) -> Iterator[tuple[Case, Outcome, Path]]:
    """Plays cases, `jobs` at a time, each in a new folder of `out`; the folder goes if there was no trouble."""
    waiting, running = deque(cases), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                case = waiting.popleft()
                folder = out / case.part / case.name
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                running[case] = case.play(folder), folder, time.monotonic()
            for case, (steps, folder, begun) in list(running.items()):
                try:
                    next(steps)
                    continue
                except StopIteration as end:
                    outcome = end.value
                except Exception:  # of ours: it must not pass for a case that went well
                    outcome = Outcome([f"the torture itself failed: {traceback.format_exc()}"])
                del running[case]
                outcome.seconds = round(time.monotonic() - begun, 1)
                if not outcome.troubles:
                    shutil.rmtree(folder, ignore_errors=True)
                yield case, outcome, folder
            time.sleep(PAUSE)
    finally:
        for steps, _, _ in running.values():
            steps.close()  # which ends its processes


def run_all(cases: list[Case], jobs: int, out: Path, record: Path) -> dict[tuple[str, str], Outcome]:
    """Plays what `record` (JSON lines) does not hold as passed, and adds to it. Ctrl-C ends with what there is."""
    outcomes = {key: o for key, o in read(record).items() if not o.troubles}
    mine = {(c.part, c.name) for c in cases}
    left = [c for c in cases if (c.part, c.name) not in outcomes]
    with record.open("a") as file, tqdm(total=len(cases), initial=len(cases) - len(left), unit=" cases") as bar:
        try:
            for case, outcome, folder in play(left, jobs, out):
                outcomes[case.part, case.name] = outcome
                about = {"part": case.part, "what": case.what, "name": case.name}
                file.write(json.dumps(about | dataclasses.asdict(outcome)) + "\n")
                file.flush()
                bar.update()
                bar.set_postfix_str(case.part)
                for trouble in outcome.troubles:
                    bar.write(f"FINDING {case.part} {case.name}: {last(trouble)}   [{folder}]")
        except KeyboardInterrupt:
            bar.write("stopped; the same command goes on from here")
    return {key: outcome for key, outcome in outcomes.items() if key in mine}


def read(record: Path) -> dict[tuple[str, str], Outcome]:
    """The latest outcome of each case, by part and name."""
    found = {}
    for line in record.read_text().splitlines() if record.exists() else ():
        values = json.loads(line)
        key = values.pop("part"), values.pop("name")
        values.pop("what")
        found[key] = Outcome(**values)
    return found


def last(text: str) -> str:
    """The last line of a text."""
    return (text.strip().splitlines() or [""])[-1][:300]


# --- The table --------------------------------------------------------------------------------------------------------


def rows(cases: list[Case], outcomes: dict) -> list[dict]:
    """A row for each `what` of each part: how many, how many of them in cases that passed, findings."""
    found = {}
    for case in cases:
        row = found.setdefault(
            (case.part, case.what),
            {"part": case.part, "what": case.what, "number": 0, "passed": 0, "findings": 0, "not run": 0, "seconds": 0},
        )
        outcome = outcomes.get((case.part, case.name))
        if outcome is None:
            row["not run"] += 1
            continue
        row["number"] += outcome.number
        row["passed"] += outcome.number if not outcome.troubles else 0
        row["findings"] += len(outcome.troubles)
        row["seconds"] = round(row["seconds"] + outcome.seconds, 1)
    return list(found.values())


def kills_by_phase(outcomes: dict) -> Counter:
    """How many kills fell into each phase."""
    return sum((Counter(o.counts) for o in outcomes.values()), Counter())


def markdown(about: dict, table: list[dict], phases: Counter, findings: list[dict], notes: Counter) -> str:
    """The whole report."""
    lines = [f"`{about['command']}`, {about['date']}, {about['hardware']}; {about['versions']}.", ""]
    lines += ["| part | what | how many | passed | findings | minutes |", "|---|---|---:|---:|---:|---:|"]
    for row in table:
        unrun = f" ({row['not run']} cases not run)" if row["not run"] else ""
        lines.append(
            f"| {row['part']} | {row['what']} | {row['number']:,}{unrun} | {row['passed']:,} | {row['findings']} "
            f"| {row['seconds'] / 60:.1f} |"
        )
    if phases:
        lines += ["", "| killed while | kills |", "|---|---:|", *(f"| {k} | {n} |" for k, n in phases.most_common())]
        lines += [f"| in all | {phases.total()} |"]
    lines += ["", *(f"- {n:,} x {note}" for note, n in notes.most_common())]
    for finding in findings:
        lines += ["", f"**{finding['part']} {finding['name']}**, `{finding['repeat']}`:"]
        lines += [f"- {last(t)}" for t in finding["troubles"]]
    return "\n".join(lines) + "\n"
