"""SIGKILL in every phase of a run, several times each; after each kill the same command; at the end equal bytes.

A phase is recognised by its sign on disk or in the output, and the kill comes a random moment later. Of two processes
one or both are killed, and all are started again. A killed compilation leaves its cache, which the next start reads.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Generator
from functools import partial
from pathlib import Path

from experiments.torture.cases import Case, Result
from experiments.torture.processes import lines, survivor_failure
from experiments.torture.trials import Kind, Trial, compared, reference

# phase: the longest delay after its sign, in seconds. In the order of a run.
PHASES = {
    "starting": 2.0,
    "drawing glyphs": 1.5,
    "preparing": 0.1,
    "claiming the workdir": 0.02,
    "compiling": 6.0,
    "training": 0.5,
    "writing a checkpoint": 0.04,
    "evaluating an epoch": 0.2,
    "the last ten views": 0.3,
    "drawing pictures": 1.5,
    "at any time": 0.0,
}
OFTEN = ("training", "writing a checkpoint", "evaluating an epoch")
SURVIVOR = 20  # seconds within which the surviving process must end


def cases(kinds: dict[str, Kind], out: Path, seed: int, count: int) -> list[Case]:
    """Trials of all kinds in turn until they plan `count` kills and a fifth more, because some will come too late."""
    found, planned, turn, count = [], 0, 0, math.ceil(1.2 * count)
    while planned < count:
        kind = list(kinds.values())[turn % len(kinds)]
        name = f"{kind.name}, {turn // len(kinds)}"
        rng = random.Random(f"{seed} {name}")
        phases = plan(kind, rng)
        if len(phases) > count - planned:  # the last trial
            chosen = sorted(rng.sample(range(len(phases)), count - planned))
            phases = [phases[i] for i in chosen]
        found.append(Case("kills", kind.name, name, partial(play, kind, phases, f"{seed} {name}", out)))
        planned, turn = planned + len(phases), turn + 1
    return found


def plan(kind: Kind, rng: random.Random) -> list[str]:
    """When a trial is killed: once in each phase of its kind, more often in some phases, and twice at any time."""
    phases = [p for p in PHASES if p != "at any time" and not (p == "drawing glyphs" and "glyphs" not in kind.name)]
    if kind.processes > 1:
        phases.remove("drawing pictures")
    middle = [p for p in OFTEN for _ in range(2)]
    rng.shuffle(middle)
    at = phases.index(OFTEN[0])
    phases = phases[:at] + middle + phases[at + len(OFTEN) :]
    for _ in range(2):
        phases.insert(rng.randrange(len(phases) + 1), "at any time")
    return phases


def play(kind: Kind, phases: list[str], seed: str, out: Path, folder: Path) -> Generator[None, None, Result]:
    """One trial: kill after kill, then a run to the end, and the comparison."""
    rng, fresh = random.Random(seed), False
    made: Counter[str] = Counter()
    troubles: list[str] = []
    known = yield from reference(kind, out)
    trial, own = Trial(kind, folder, out), folder / "xla"
    for phase in phases:
        # The start after a killed compilation reads what that has left of its cache.
        compiles = phase == "compiling"
        with trial.started(own if compiles or fresh else None):
            fresh = compiles
            sign = Sign(phase, trial, rng.uniform(0, known.seconds), rng.randrange(2))
            while not trial.ended() and not sign.seen():
                if time.monotonic() - trial.processes[0].begun > 4 * known.seconds + 60:
                    troubles.append(f"it hung before {phase} ({trial.processes[0].output.name})")
                    break
                yield
            moment = time.monotonic() + rng.uniform(0, PHASES[phase])
            while time.monotonic() < moment and not trial.ended():
                yield
            if trial.ended():  # before the sign or before the kill: it must have ended well
                if failed := trial.judge([True] * len(trial.processes)):
                    return Result(troubles + failed, made.total(), dict(made))
                continue
            troubles += yield from kill(trial, phase, rng)
            made[phase] += 1
    with trial.started(own if fresh else None):
        failed = yield from trial.wait()
        troubles += failed or (yield from compared(trial, known))
    return Result(troubles, made.total(), dict(made))


def kill(trial: Trial, phase: str, rng: random.Random) -> Generator[None, None, list[str]]:
    """Kills one of the processes or all. Returns what was wrong with the end of a survivor."""
    # Before the processes have met, a survivor would wait long for the others.
    kills_all = len(trial.processes) == 1 or phase in ("starting", "at any time") or rng.random() < 0.3
    dies = list(trial.processes) if kills_all else [rng.choice(trial.processes)]
    for process in dies:
        process.kill()
    survivors = [p for p in trial.processes if p not in dies]
    at = time.monotonic()
    troubles = []
    for p in survivors:
        who = f"process {trial.processes.index(p)} whose peer was killed while {phase} ({p.output.name})"
        in_time = yield from p.wait(at - p.begun + SURVIVOR)
        if not in_time:
            troubles.append(f"{who} still ran after {SURVIVOR} s")
        elif p.status and (why := survivor_failure(p.status, p.text())):
            troubles.append(f"{who}: {why}")
    return troubles


class Sign:
    """Whether a phase has visibly begun since the command was started."""

    def __init__(self, phase: str, trial: Trial, moment: float, skip: int):
        """moment: of a kill at any time; skip: how many signs to ignore of a phase that comes often."""
        self.phase, self.trial, self.moment, self.skip = phase, trial, moment, skip
        self.workdir = trial.workdir
        self.claimed = _changed(self.workdir)
        self.metrics = _size(self.workdir / "metrics.jsonl")
        self.saving = self._saving()
        self.pictures = _changed(self.workdir / "kernels.png")

    def seen(self) -> bool:
        """Whether it has begun; to be called repeatedly."""
        match self.phase:
            case "starting":
                return True
            case "at any time":
                return time.monotonic() - self.trial.processes[0].begun > self.moment
            case "claiming the workdir":
                return _changed(self.workdir) != self.claimed
            case "training":
                now = _size(self.workdir / "metrics.jsonl")
                if now[0] != self.metrics[0]:  # rewritten by the command that resumes
                    self.metrics = now
                return now[1] > self.metrics[1]
            case "writing a checkpoint":
                if new := self._saving() - self.saving:
                    self.saving |= new
                    self.skip -= 1
                return self.skip < 0
            case "drawing pictures":
                done = _changed(self.workdir / "kernels.png") != self.pictures
                return done or (self._says("validation, 10 view(s)") and self._finished())
        words = {
            "drawing glyphs": "drawing glyphs", "preparing": "preparing ", "compiling": "network: ",
            "evaluating an epoch": "validation, 1 view(s)", "the last ten views": "validation, 10 view(s):  ",
        }  # fmt: skip
        return self._says(words[self.phase])

    def _says(self, words: str) -> bool:
        return words in self.trial.processes[0].text()

    def _saving(self) -> set:
        found = self.workdir.glob("checkpoints/*orbax-checkpoint-tmp*")
        return {(p.name, _changed(p)[0]) for p in found}

    def _finished(self) -> bool:
        said = [line for line in lines(self.trial.processes[0].text()) if line.startswith("training: ")]
        if not said:
            return False
        words = said[0].split()
        return (self.workdir / "checkpoints" / f"step_{int(words[1]) * int(words[4])}").exists()


def _changed(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return stat.st_ino, stat.st_mtime_ns


def _size(path: Path) -> tuple[int, float]:
    try:
        stat = path.stat()
    except OSError:
        return (0, math.inf)
    return stat.st_ino, stat.st_size
