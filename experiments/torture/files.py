"""Every file of a half-finished run and of its prepared set is truncated, emptied, overwritten or removed.

Then the run is resumed, evaluated and used for predictions. Each must end with one line and a nonzero exit status, or
with the numbers of the undamaged files.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

from experiments.torture import compare
from experiments.torture.cases import Case, Result
from experiments.torture.processes import Process, crash, lines, refusal
from experiments.torture.trials import Kind, Trial, reference

KIND = "photos, tf.data"
DAMAGES = ("cut", "emptied", "overwritten", "noise", "gone")
JSON = ("null", "[]", "5", "{}")  # what may replace a text
COMMANDS = ("train", "evaluate", "predict")
SECONDS = 120


def cases(kinds: dict[str, Kind], out: Path, seed: int) -> list[Case]:
    """Every file, damage and command. The half-finished run is made now, because it tells which files there are."""
    from alexnet_jax.data.host import tensorflow

    tensorflow()
    kind = kinds[KIND]
    for _ in half(kind, out):
        time.sleep(0.01)
    found = []
    for name in files(out / "half"):
        text = name.endswith((".json", ".jsonl", "metadata", "metrics"))
        for damage in (*DAMAGES, *(JSON if text else ())):
            for command in COMMANDS:
                title = f"{command}, {name}, {damage}"
                case = partial(play, kind, command, name, damage, f"{seed} {title}", out)
                found.append(Case("files", f"{command} after damage to {group(name)}", title.replace("/", "|"), case))
    return found


def files(folder: Path) -> list[str]:
    """The files to damage."""
    found = (str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file())
    cached = tuple(f"cache/alexnet_jax/{p.name}/" for p in (folder / "cache" / "alexnet_jax").iterdir() if p.is_dir())
    return [n for n in found if n.startswith(("run/", *cached)) and "tfevents" not in n and not n.endswith(".lock")]


def group(name: str) -> str:
    """What a file belongs to."""
    if name.startswith("cache/"):
        return "the prepared set"
    return "a checkpoint" if "/checkpoints/" in name else Path(name).name


def half(kind: Kind, out: Path) -> Generator[None, None, None]:
    """Makes a run in out / "half" that is killed once its second epoch is saved, and records the commands' answers."""
    folder = out / "half"
    if (folder / "said.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial = Trial(kind, folder, out)
    with trial.started() as [process]:
        while process.poll() is None and not (trial.workdir / "checkpoints" / "step_12").exists():
            yield
    for leftover in trial.workdir.glob("checkpoints/*orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover)
    said = {}
    for command in COMMANDS[1:]:
        with Process(partial(run, command, trial, trial.folder, out), folder / f"{command}.txt") as process:
            yield from process.wait()
            if process.status:
                raise RuntimeError(f"{command} of an undamaged run failed: {process.output}")
            said[command] = answers(process.text())
    (folder / "said.json").write_text(json.dumps(said))


def play(
    kind: Kind, command: str, name: str, damage: str, seed: str, out: Path, folder: Path
) -> Generator[None, None, Result]:  # fmt: skip
    """One damage and one command."""
    known = yield from reference(kind, out)
    for part in ("run", "cache"):
        shutil.copytree(out / "half" / part, folder / part)
    hurt(folder / name, damage, random.Random(seed))
    trial = Trial(kind, folder, out)
    with Process(partial(run, command, trial, folder, out), folder / "output.txt") as process:
        if not (yield from process.wait(SECONDS)):
            return Result([f"it hung for {SECONDS} s"])
        text, status = process.text(), process.status
    if status:
        why = refusal(status, text)
        return Result([why] if why else [], note="refused")
    if why := crash(status, text):
        return Result([why])
    if command == "train":
        different = yield from _resumed(trial, known, folder)
    else:
        said = json.loads((out / "half" / "said.json").read_text())[command]
        different = [] if answers(text) == said else [f"silently other numbers: {answers(text)[:1]} and not {said[:1]}"]
    return Result(different, note="ended well, with the same numbers" if not different else "")


def hurt(path: Path, damage: str, rng: random.Random):
    """Damages a file."""
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: rng.randrange(max(len(whole), 1))])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "overwritten":
        at = rng.randrange(max(len(whole), 1))
        path.write_bytes((whole[:at] + rng.randbytes(16) + whole[at + 16 :])[: len(whole)])
    elif damage == "noise":
        path.write_bytes(rng.randbytes(len(whole)))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text(damage)


def run(command: str, trial: Trial, folder: Path, out: Path):
    """In a child: runs one of COMMANDS, which ends the process."""

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out / "xla")
    os.environ["MPLCONFIGDIR"] = str(out / "matplotlib")
    import jax

    from alexnet_jax.cli import verbs

    jax.config.update("jax_compilation_cache_dir", str(out / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    photos = sorted((out / "photos" / "validation").rglob("*.png"))[:6]
    flags = {
        "train": trial.flags(),
        "evaluate": [f"--workdir={trial.workdir}", "--views=1"],
        "predict": [*map(str, photos), f"--workdir={trial.workdir}", "--json"],
    }
    verbs.main([command, *flags[command]])


def answers(text: str) -> list[dict]:
    """The JSON that a command has printed, without the paths of runs."""
    found = [json.loads(line) for line in lines(text) if line.startswith("{")]
    return [{k: v for k, v in one.items() if k != "runs"} for one in found]


def _resumed(trial: Trial, known: Trial, folder: Path) -> Generator[None, None, list[str]]:
    """The differences in the workdir of a resumed run, which has not refused its files."""

    def say():
        print("\n".join(f"DIFFERS {t}" for t in compare.runs(trial.workdir, known.workdir)))

    with Process(say, folder / "compared.txt") as process:
        yield from process.wait()
        if process.status:
            return [f"the run cannot be read back: {lines(process.text())[-1]}"]
        found = [line.removeprefix("DIFFERS ") for line in lines(process.text()) if line.startswith("DIFFERS ")]
    return [f"silently different: {line}" for line in found]
