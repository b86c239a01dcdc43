"""A disk that is full in every phase of a run, then a larger disk and the same command: one line, and nothing lost.

The disk is a small tmpfs. It fills up because it is small, or because a file takes all its space at the sign of a phase
(see kills.py). Then the disk grows, the file is removed, and the run must end as it would have without all this.
"""

import contextlib
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import numpy as np

from experiments.torture import compare
from experiments.torture.cases import Case, Result
from experiments.torture.kills import PHASES, Sign
from experiments.torture.processes import Process, command, crash, lines, refusal
from experiments.torture.trials import Kind, Trial, compared, environment, reference

ROOM, MORE = 96, 192  # MiB
FILLER = "filler"
KINDS = ("glyphs, resident", "photos, tf.data")
EXPORTS = {"safetensors": ".safetensors", "caffe-npy": ".npy", "onnx": ".onnx", "stablehlo": ".stablehlo"}


def cases(kinds: dict[str, Kind], out: Path, seed: int) -> list[Case]:
    """A disk that is filled in every phase, disks of random sizes, and the commands that write files from a run."""
    if reason := unavailable():
        return [Case("disk", "a full disk", "skipped", partial(_skip, reason))]
    found = []
    for name in KINDS:
        kind = kinds[name]
        phases = [p for p in PHASES if p != "at any time" and not (p == "drawing glyphs" and "glyphs" not in name)]
        found += [
            Case("disk", f"full while {phase}", f"{name}, {phase}", partial(filled, kind, phase, seed, out))
            for phase in phases
        ]
        rng = random.Random(f"{seed} {name}")
        for i in range(8):
            share = rng.random()
            found.append(Case("disk", "too small from the start", f"{name}, {i}", partial(small, kind, share, out)))
    kind = kinds["photos, tf.data"]
    return found + [
        Case("disk", f"full for --out of {what}", what, partial(written, kind, what, out))
        for what in ("features", *EXPORTS)
    ]


def unavailable() -> str:
    """Why no disk can be mounted here; "" if one can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), 1):
                return ""
        except (OSError, subprocess.CalledProcessError) as e:
            return f"skipped: no tmpfs can be mounted here ({e})"


def _skip(reason: str, folder: Path) -> Generator[None, None, Result]:
    yield
    return Result(number=0, note=reason)


@contextlib.contextmanager
def mounted(folder: Path, size: float):
    """A tmpfs of `size` MiB that is unmounted at the end."""
    folder.mkdir(exist_ok=True)
    _mount("mount", "-t", "tmpfs", "-o", f"size={int(size * 2**20)}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _mount("umount", "-l", str(folder))


def _mount(*argv: str):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def grow(disk: Path):
    """Makes the disk larger and removes the filler."""
    (disk / FILLER).unlink(missing_ok=True)
    _mount("mount", "-o", f"remount,size={MORE}m", str(disk))


def fill(disk: Path):
    """Takes all the space that is left."""
    with (disk / FILLER).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    with (disk / FILLER).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):  # and the last page
            pass


def filled(kind: Kind, phase: str, seed: int, out: Path, folder: Path) -> Generator[None, None, Result]:
    """A disk that is full from a phase on."""
    rng = random.Random(f"{seed} {kind.name} {phase}")

    def until(trial, disk):
        sign = Sign(phase, trial, 0, rng.randrange(2))
        while not trial.ended() and not sign.seen():
            yield
        if not trial.ended():
            fill(disk)

    return (yield from _tried(kind, ROOM, until, out, folder))


def small(kind: Kind, share: float, out: Path, folder: Path) -> Generator[None, None, Result]:
    """A disk that is smaller than what the run writes."""
    known = yield from reference(kind, out)
    used = sum(p.stat().st_size for where in (known.workdir, known.cache) for p in where.rglob("*") if p.is_file())
    return (yield from _tried(kind, max(share * used / 2**20, 0.02), None, out, folder))


def _tried(kind: Kind, size: float, until: Callable | None, out: Path, folder: Path) -> Generator[None, None, Result]:
    known = yield from reference(kind, out)
    troubles, notes = [], []
    with mounted(folder / "disk", size) as disk:
        trial = Trial(kind, folder, out, data=disk)
        with trial.started() as [process]:
            if until:
                yield from until(trial, disk)
            if not (yield from process.wait()):
                troubles.append("it hung on the full disk")
            elif process.status == 0:
                notes = ["needed no more space"] if not crash(0, process.text()) else []
            elif why := refusal(process.status, process.text()):
                troubles.append(f"on the full disk: {why}")
        grow(disk)
        with trial.started():
            failed = yield from trial.wait()
            troubles += failed or (yield from compared(trial, known))
        if troubles:
            _kept(disk, folder)
    return Result(troubles, note="; ".join(notes))


def _kept(disk: Path, folder: Path):
    shutil.copytree(disk, folder / "kept", dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILLER))


def written(kind: Kind, what: str, out: Path, folder: Path) -> Generator[None, None, Result]:
    """A command that writes --out: without space it leaves nothing behind, with space the same file as elsewhere."""
    known = yield from reference(kind, out)
    name = f"made{EXPORTS.get(what, '.npz')}"
    where = environment(out, known.cache)

    def start(target: Path, number: int) -> Process:
        flags = [f"--workdir={known.workdir}", f"--out={target / name}"]
        if what == "features":
            flags += ["--images=train", "--layer=conv1", "--layer=fc7"]
        else:
            flags += [f"--to={what}"]
        verb = "features" if what == "features" else "convert"
        return command("alexnet_jax", verb, *flags, output=folder / f"start-{number}.0.txt", environment=where)

    troubles = []
    with start(folder, 1) as process:
        yield from process.wait()
        if process.status:
            return Result([f"with enough space: {lines(process.text())[-1]}"])
    whole = (folder / name).stat().st_size
    for number, (size, full) in enumerate(((whole / 2, False), (whole / 2, True), (4096, False)), 2):
        with mounted(folder / "disk", size / 2**20) as disk:
            with start(disk, number) as process:
                while full and process.poll() is None and not list(disk.iterdir()):
                    yield
                if full:
                    fill(disk)
                yield from process.wait()
                if process.status == 0:
                    troubles.append("it reported success on a disk that is too small")
                elif why := refusal(process.status, process.text()):
                    troubles.append(f"on the full disk: {why}")
            (disk / FILLER).unlink(missing_ok=True)
            troubles += [f"left on the full disk: {p.name}" for p in disk.iterdir()]
            grow(disk)
            with start(disk, 9) as process:
                yield from process.wait()
                if process.status:
                    troubles.append(f"with enough space: {lines(process.text())[-1]}")
                else:
                    troubles += _same(disk / name, folder / name)
    return Result(troubles)


def _same(ours: Path, theirs: Path) -> list[str]:
    if ours.suffix == ".npz":
        return compare.arrays(*(dict(_load(p)) for p in (ours, theirs)), ours.name)
    return [] if ours.read_bytes() == theirs.read_bytes() else [f"{ours.name} differs from one made with enough space"]


def _load(path: Path):
    return np.load(path, allow_pickle=False)
