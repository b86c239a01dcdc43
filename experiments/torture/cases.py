"""The cases that are tried, one or several at a time, and the table of their results.

A case is a generator: it yields while it waits for its processes, and returns its Result. One thread runs all cases, so
that the process may fork.
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


class Failed(Exception):
    """An undisturbed run failed, so nothing can be compared with it."""


@dataclasses.dataclass
class Result:
    """The result of a case."""

    troubles: list[str] = dataclasses.field(default_factory=list)  # each is a finding
    number: int = 1  # how many kills, images, ... it covers
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # its kills, by phase
    note: str = ""  # worth reporting, though not a finding
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Something to try in a folder of its own."""

    part: str
    what: str  # the row of the table that it counts in
    name: str  # unique within its part
    play: Callable[[Path], Generator[None, None, Result]]


def play(cases: list[Case], jobs: int, out: Path) -> Iterator[tuple[Case, Result, Path]]:
    """Runs cases, `jobs` at a time, each in a new folder of `out`, which is removed if there was no trouble."""
    waiting = deque(cases)
    running: dict[Case, tuple[Generator, Path, float]] = {}
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
                    result = end.value
                except Failed as e:
                    result = Result([f"no reference: {e}"], number=0)
                except Exception:  # a mistake in the torture tests must not count as a case that passed
                    result = Result([f"the torture test itself failed: {traceback.format_exc()}"])
                del running[case]
                result.seconds = round(time.monotonic() - begun, 1)
                if not result.troubles:
                    shutil.rmtree(folder, ignore_errors=True)
                yield case, result, folder
            time.sleep(PAUSE)
    finally:
        for steps, _, _ in running.values():
            steps.close()  # ends its processes


def run_all(cases: list[Case], jobs: int, out: Path, record: Path) -> dict[tuple[str, str], Result]:
    """Runs the cases that have not passed according to `record` (JSON lines), and adds to it.

    Ctrl-C ends it with the results so far.
    """
    results = {key: o for key, o in read(record).items() if not o.troubles}
    mine = {(c.part, c.name) for c in cases}
    left = [c for c in cases if (c.part, c.name) not in results]
    with record.open("a") as file, tqdm(total=len(cases), initial=len(cases) - len(left), unit=" cases") as bar:
        try:
            for case, result, folder in play(left, jobs, out):
                results[case.part, case.name] = result
                about = {"part": case.part, "what": case.what, "name": case.name}
                file.write(json.dumps(about | dataclasses.asdict(result)) + "\n")
                file.flush()
                bar.update()
                bar.set_postfix_str(case.part)
                for trouble in result.troubles:
                    bar.write(f"FINDING {case.part} {case.name}: {last(trouble)}   [{folder}]")
        except KeyboardInterrupt:
            bar.write("stopped: the same command continues from here")
    return {key: result for key, result in results.items() if key in mine}


def read(record: Path) -> dict[tuple[str, str], Result]:
    """The latest result of each case, by part and name."""
    found = {}
    for line in record.read_text().splitlines() if record.exists() else ():
        values = json.loads(line)
        key = values.pop("part"), values.pop("name")
        values.pop("what")
        found[key] = Result(**values)
    return found


def last(text: str) -> str:
    """The last line of a text."""
    return (text.strip().splitlines() or [""])[-1][:300]


# --- The table --------------------------------------------------------------------------------------------------------


def rows(cases: list[Case], results: dict) -> list[dict]:
    """A row for each `what` of each part: how many there are, how many of them are in cases that passed, findings."""
    found = {}
    for case in cases:
        row = found.setdefault(
            (case.part, case.what),
            {"part": case.part, "what": case.what, "number": 0, "passed": 0, "findings": 0, "not run": 0, "seconds": 0},
        )
        result = results.get((case.part, case.name))
        if result is None:
            row["not run"] += 1
            continue
        row["number"] += result.number
        row["passed"] += result.number if not result.troubles else 0
        row["findings"] += len(result.troubles)
        row["seconds"] = round(row["seconds"] + result.seconds, 1)
    return list(found.values())


def kills_by_phase(results: dict) -> Counter:
    """The number of kills in each phase."""
    return sum((Counter(o.counts) for o in results.values()), Counter())


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
        lines += [f"| total | {phases.total()} |"]
    lines += ["", *(f"- {n:,} x {note}" for note, n in notes.most_common())]
    for finding in findings:
        lines += ["", f"**{finding['part']} {finding['name']}**, `{finding['repeat']}`:"]
        lines += [f"- {last(t)}" for t in finding["troubles"]]
    return "\n".join(lines) + "\n"
