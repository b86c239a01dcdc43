"""Is it hard to hurt? Kills, full disks, nonsense in every field, damaged images, damaged files; a table at the end.

    python -m experiments.torture --out torture                                  # all of it
    python -m experiments.torture --out torture --only kills --kills 6           # minutes

- kills: SIGKILL in every phase of several kinds of run, the same command after each, equal bytes at the end;
- disk: a disk that is full in each phase (a small tmpfs, which wants root), then larger, and equal bytes at the end;
- fields: nonsense of every type in every field of the config;
- images: fuzzed photos through predict, features and the preparing of a folder;
- files: truncated, emptied and overwritten files of a workdir and of a prepared set, then resume, evaluate, predict.

Writes table.md and table.json into --out. The same command goes on where it was stopped, and tries again what had
findings; other code or another seed wants another --out. A finding keeps its folder, with the output of every command.
The exit status is 1 if there are findings.
"""

import os

# Before NumPy and JAX are imported: no threads, so that this process may fork, and no device to be held.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import platform
import random
import shlex
import signal
import sys
from collections import Counter
from pathlib import Path

from absl import logging
from tqdm import tqdm

from alexnet_jax import UserError
from experiments.torture import disk, fields, files, images, kills
from experiments.torture.cases import Case, kills_by_phase, markdown, rows, run_all
from experiments.torture.processes import ROOT
from experiments.torture.trials import draw_photos, kinds

PARTS = ("fields", "images", "files", "disk", "kills")


def make_cases(flags: argparse.Namespace, out: Path) -> list[Case]:
    """The cases of the parts that are asked for."""
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
    return [case for case in found if not flags.case or case.name in flags.case]


def some(cases: list[Case], count: int | None, seed: int) -> list[Case]:
    """All cases, or so many of them by chance."""
    return cases if count is None or count >= len(cases) else random.Random(seed).sample(cases, count)


def claim(out: Path, seed: int):
    """Makes `out` the folder of this seed and this code. Raises UserError if it is another's."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("alexnet_jax/**/*.py"), *ROOT.glob("configs/*.py")]):
        digest.update(path.read_bytes())
    mine, path = {"seed": seed, "code": digest.hexdigest()}, out / "torture.json"
    if path.exists() and json.loads(path.read_text()) != mine:
        raise UserError(f"{out} holds the torture of other code or another seed: name another --out, or remove it")
    if out.exists() and not path.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another --out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine))


def about(argv: list[str]) -> dict[str, str]:
    """What a reader of the table wants to know."""
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
        "command": f"python -m experiments.torture {shlex.join(argv)}",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{len(names)} cores of {names[0] if names else cpu}, {memory:.0f} GiB",
        "versions": ", ".join(versions),
    }


def run(argv: list[str]) -> int:
    """The command line. Returns 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m experiments.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="a folder of its own, for all that it writes")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be given several times")
    parser.add_argument("--case", action="append", help="a case by its name, as a finding gives it; several times too")
    parser.add_argument("--kills", type=int, default=200, help="how many SIGKILLs (default: 200)")
    parser.add_argument("--images", type=int, default=1000, help="how many fuzzed images (default: 1,000)")
    for part in ("disk", "fields", "files"):
        parser.add_argument(f"--{part}", type=int, help="so many of the cases, by chance (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    out = flags.out.expanduser().absolute()
    claim(out, flags.seed)
    logging.set_verbosity(logging.ERROR)
    for number in (signal.SIGINT, signal.SIGTERM):  # no disk stays mounted, and the table is printed
        signal.signal(number, signal.default_int_handler)
    tqdm.monitor_interval = 0  # a thread, of which there must be none
    cases = make_cases(flags, out)
    outcomes = run_all(cases, flags.jobs, out, out / "cases.jsonl")
    table, phases = rows(cases, outcomes), kills_by_phase(outcomes)
    notes = Counter(f"{part}: {o.note}" for (part, _), o in outcomes.items() if o.note)
    findings = [
        {
            "part": part, "name": name, "folder": f"{part}/{name}", "troubles": outcome.troubles,
            "repeat": shlex.join(
                ["python", "-m", "experiments.torture", "--out", "again", "--only", part, "--seed", str(flags.seed)]
                + (["--kills", str(flags.kills)] if part == "kills" else [])
                + (["--images", str(flags.images)] if part == "images" else [])
                + ["--case", name]
            ),
        }
        for (part, name), outcome in outcomes.items() if outcome.troubles
    ]  # fmt: skip
    told = about(argv)
    text = markdown(told, table, phases, findings, notes)
    everything = {"about": told, "table": table, "kills": phases, "findings": findings, "notes": notes}
    everything["accepted"] = [name for (part, name), o in outcomes.items() if (part, o.note) == ("fields", "accepted")]
    (out / "table.md").write_text(text)
    (out / "table.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(text)
    return int(bool(findings))


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
