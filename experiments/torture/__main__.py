"""Torture tests: is a run hard to damage? A table of the results is printed at the end.

    python -m experiments.torture --out torture                                  # everything
    python -m experiments.torture --out torture --only kills --kills 6           # minutes

- kills: SIGKILL in every phase of several kinds of run, the same command after each, equal bytes at the end;
- disk: a disk that is full in each phase (a small tmpfs, which requires root), then larger; equal bytes at the end;
- fields: nonsense of every type in every field of the config;
- images: fuzzed photos through predict, features and the preparation of a folder;
- files: truncated, emptied and overwritten files of a workdir and of a prepared set, then resume, evaluate, predict.

Writes table.md and table.json into --out. A stopped test is continued by the same command, which also repeats cases
with findings; other code or another seed requires another --out. The folder of a finding is kept, with the output of
every command. The exit status is 1 if there are findings.
"""

import os

# Before NumPy and JAX are imported: no threads, so that this process may fork, and no device is taken.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datetime
import hashlib
import importlib.metadata
import json
import platform
import random
import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

from absl import logging
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.cli import commands
from alexnet_jax.files import expanded, write_text
from experiments.torture import disk, fields, files, images, kills
from experiments.torture.cases import Case, Result, kills_by_phase, markdown, rows, run_all
from experiments.torture.processes import ROOT
from experiments.torture.trials import draw_photos, kinds

PROGRAM = "python -m experiments.torture"
PARTS = ("fields", "images", "files", "disk", "kills")


def add_flags(parser: ArgumentParser):
    """The flags of the torture tests."""
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder for everything that it writes")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeat it for more")
    parser.add_argument("--case", action="append", help="a case, by the name in a finding; repeat it for more")
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many SIGKILLs (default: 200)")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="how many fuzzed images (default: 1,000)")
    for part in ("disk", "fields", "files"):
        parser.add_argument(f"--{part}", type=int, metavar="N", help=f"a random sample of {part} cases (default: all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random choices (default: 0)")


def main(flags: Namespace) -> int:
    """Runs the cases, prints the table and writes it. Returns 1 if there are findings. Raises UserError."""
    out = expanded(flags.out).absolute()
    for part in ("jobs", *PARTS):
        least = 1 if part == "jobs" else 0
        if (count := getattr(flags, part)) is not None and count < least:
            raise UserError(f"--{part} is {count} and must be at least {least}")
    claim(out, flags.seed)
    logging.set_verbosity(logging.ERROR)
    for number in (signal.SIGINT, signal.SIGTERM):  # so that no disk stays mounted and the table is printed
        signal.signal(number, signal.default_int_handler)
    tqdm.monitor_interval = 0  # it would be a thread, and this process forks
    cases = make_cases(flags, out)
    results = run_all(cases, flags.jobs, out, out / "cases.jsonl")
    table, phases = rows(cases, results), kills_by_phase(results)
    notes = Counter(f"{part}: {result.note}" for (part, _), result in results.items() if result.note)
    found = findings(results, flags)
    told = about(flags.command)
    text = markdown(told, table, phases, found, notes)
    everything = {"about": told, "table": table, "kills": phases, "findings": found, "notes": notes}
    everything["accepted"] = [name for (part, name), r in results.items() if (part, r.note) == ("fields", "accepted")]
    for name, content in (("table.md", text), ("table.json", json.dumps(everything, indent=1) + "\n")):
        write_text(out / name, content)
    print(text)
    return 1 if found else 0


def findings(results: dict[tuple[str, str], Result], flags: Namespace) -> list[dict]:
    """The cases with troubles, each with the command that repeats it."""
    found = []
    for (part, name), result in results.items():
        if result.troubles:
            repeat = f"{PROGRAM} --out again --only {part} --seed {flags.seed}"
            if part in ("kills", "images"):
                repeat += f" --{part} {getattr(flags, part)}"
            repeat += f" --case {shlex.quote(name)}"
            folder = f"{part}/{name}"
            found.append({"part": part, "name": name, "folder": folder, "troubles": result.troubles, "repeat": repeat})
    return found


def make_cases(flags: Namespace, out: Path) -> list[Case]:
    """The cases of the chosen parts."""
    draw_photos(out / "photos")
    known = kinds(out / "photos")
    makers = {
        "kills": lambda: kills.cases(known, out, flags.seed, flags.kills),
        "disk": lambda: some(disk.cases(known, out, flags.seed), flags.disk, flags.seed),
        "fields": lambda: some(fields.cases(known, out), flags.fields, flags.seed),
        "images": lambda: images.cases(known, out, flags.seed, flags.images),
        "files": lambda: some(files.cases(known, out, flags.seed), flags.files, flags.seed),
    }
    chosen = [p for p in PARTS if not flags.only or p in flags.only]
    found = [case for part in chosen for case in makers[part]()]
    if unknown := set(flags.case or ()) - {case.name for case in found}:
        raise UserError(f"there is no case '{min(unknown)}' in {', '.join(chosen)}: copy it from a finding")
    return [case for case in found if not flags.case or case.name in flags.case]


def some(cases: list[Case], count: int | None, seed: int) -> list[Case]:
    """All cases, or a random sample of `count`."""
    return cases if count is None or count >= len(cases) else random.Random(seed).sample(cases, count)


def claim(out: Path, seed: int):
    """Makes `out` the folder of this seed and this code. Raises UserError if it belongs to others."""
    digest = hashlib.sha256()
    code = ("alexnet_jax/**/*.py", "configs/*.py", "experiments/torture/*.py")
    for path in sorted(path for pattern in code for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    mine, path = {"seed": seed, "code": digest.hexdigest()}, out / "torture.json"
    if path.exists() and path.read_text() != json.dumps(mine):
        raise UserError(f"{out} contains the tests of other code or another seed: name another --out, or remove it")
    if out.exists() and not path.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(mine))


def about(command: str) -> dict[str, str]:
    """What was run, when, on what hardware and with which versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("jax", "jaxlib", "orbax-checkpoint", "tensorflow", "tensorflow-cpu", "numpy", "pillow")
    versions = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{len(names)} cores of {names[0] if names else cpu}, {memory:.0f} GiB",
        "versions": ", ".join(versions),
    }


if __name__ == "__main__":
    module = sys.modules[__name__]
    commands.command(lambda words: main(commands.parse(module, words, PROGRAM)), "stopped: the same command continues")
