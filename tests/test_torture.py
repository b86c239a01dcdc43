"""The torture tests find what is planted; otherwise they would be worth nothing."""

import importlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.cli import commands
from experiments.torture import compare, disk, files, images, kills, trials
from experiments.torture.cases import Case, Result, kills_by_phase, markdown, read, rows, run_all
from experiments.torture.processes import Process, crash, refusal, survivor_failure


@pytest.fixture
def pair(tiny_run, tmp_path):
    """A finished run and a copy of it."""
    shutil.copytree(tiny_run, tmp_path / "copy")
    return tmp_path / "copy", tiny_run


def change_state(workdir, prefix=None):
    """Rewrites the latest checkpoint's arrays, as Orbax would, with one bit changed of a kernel under `prefix`."""
    folder = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name.partition("_")[2])) / "state"
    state = {}
    for name, value in compare.read_checkpoint(folder.parent).items():
        first, *keys, last = name.split("/")
        if first != "state":
            continue
        if prefix and "/".join(keys).startswith(prefix) and last == "kernel":
            value, prefix = np.array(value), None
            value.flat[7] = np.nextafter(value.flat[7], np.float32(1e9))
        at = state
        for key in keys:
            at = at.setdefault(key, {})
        at[last] = value
    shutil.rmtree(folder)
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder, state)


def test_a_run_equals_its_copy(pair):
    assert compare.runs(*pair) == []
    assert compare.leftovers(pair[0]) == []


@pytest.mark.parametrize("tree", ["params", "velocity"])
def test_a_last_bit_in_a_checkpoint_is_found(pair, tree):
    change_state(pair[0])
    assert compare.runs(*pair) == []
    change_state(pair[0], tree)
    [found] = compare.runs(*pair)
    assert f"state/{tree}/" in found and "/kernel differs" in found


def test_every_other_difference_is_found(pair):
    workdir = pair[0]
    [host, *_] = sorted(workdir.glob("checkpoints/*/host/metadata"))
    values = json.loads(host.read_text())
    values["plateau"]["waited"] += 1
    host.write_text(json.dumps(values))
    metrics = (workdir / "metrics.jsonl").read_text().splitlines()
    faster = json.loads(metrics[0]) | {"images_per_second": 1e9}
    (workdir / "metrics.jsonl").write_text("\n".join([json.dumps(faster), *metrics[1:-1]]) + "\n")
    with np.load(workdir / "statistics.npz") as held:
        arrays = dict(held)
    np.savez(workdir / "statistics.npz", **arrays | {"stdevs": arrays["stdevs"] + 1})
    (workdir / "kernels.png").unlink()
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"seed": 9}))
    found = "\n".join(compare.runs(*pair))
    for planted in ("plateau/waited", "metrics.jsonl", "stdevs", "kernels.png is missing", "config.json"):
        assert planted in found
    assert len(found.splitlines()) == 5


def test_leftovers_are_found(tmp_path):
    names = [
        "statistics.tmp.npz",
        "config.tmp",
        "photos.partial",
        "glyphs/incomplete.X_1",
        "step_4.orbax-checkpoint-tmp",
    ]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos.lock").touch()
    assert {line.removeprefix("left over: ") for line in compare.leftovers(tmp_path)} == set(names)


def test_ends_are_judged():
    assert refusal(1, "\r 40%|##  |\nerror: the disk is full: make room\n") == ""
    assert "SIGABRT" in refusal(-signal.SIGABRT, "error: lost\n")
    assert "traceback" in refusal(1, "Traceback (most recent call last):\n  ...\nValueError: no\nerror: all is well\n")
    assert "library" in refusal(1, "F0000 00:00:1 client.cc:1] dead\nerror: lost\n")
    assert "without one last line" in refusal(1, "error: lost\nI say more\n")
    assert "without one last line" in refusal(1, "")
    assert "characters" in refusal(1, f"error: {'x' * 9000}\n")
    assert crash(0, "validation: all is well\n") == ""
    assert "traceback" in crash(0, "Traceback (most recent call last):\nOSError\nall is well\n")


def test_cases_are_played_recorded_and_tried_again(tmp_path):
    """Cases that passed are not run again; those with findings are, and keep their folder."""
    played = []

    def good(folder):
        yield
        played.append("good")
        return Result(number=3, counts={"training": 3})

    def bad(folder):
        (folder / "evidence").touch()
        yield
        played.append("bad")
        return Result(["a traceback"])

    def broken(folder):
        yield
        raise KeyError("a mistake in the torture tests")

    cases = [Case("kills", "one", n, f) for n, f in (("good", good), ("bad", bad), ("broken", broken))]
    for _ in range(2):
        found = run_all(cases, 2, tmp_path, tmp_path / "cases.jsonl")
    assert played == ["good", "bad", "bad"]
    assert (tmp_path / "kills/bad/evidence").exists() and not (tmp_path / "kills/good").exists()
    assert "KeyError" in found["kills", "broken"].troubles[0]
    assert read(tmp_path / "cases.jsonl").keys() == found.keys()
    [row] = rows(cases, found)
    assert (row["number"], row["passed"], row["findings"], row["not run"]) == (5, 3, 2, 0)
    about = {"command": "c", "date": "d", "hardware": "h", "versions": "v"}
    text = markdown(about, [row], kills_by_phase(found), [], kills_by_phase({}))
    assert "| kills | one | 5 | 3 | 2 |" in text and "| training | 3 |" in text


def test_every_kill_is_planned(tmp_path):
    """All phases of all kinds are planned, and the same seed gives the same plan."""
    kinds = trials.kinds(tmp_path)
    cases = kills.cases(kinds, tmp_path, 0, 200)
    planned = [phase for c in cases for phase in c.play.args[1]]
    assert len(planned) == 240 and set(planned) == set(kills.PHASES)
    assert {c.what for c in cases} == set(kinds)
    assert [c.play.args[1] for c in kills.cases(kinds, tmp_path, 0, 200)] == [c.play.args[1] for c in cases]
    assert [c.play.args[1] for c in kills.cases(kinds, tmp_path, 1, 200)] != [c.play.args[1] for c in cases]


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_killed_process_is_seen_at_its_sign(tmp_path):
    """A process that stands for a run is killed while it writes a checkpoint."""
    kind = next(iter(trials.kinds(tmp_path).values()))
    trial = trials.Trial(kind, tmp_path, tmp_path)
    (trial.workdir / "checkpoints/step_1.orbax-checkpoint-tmp").mkdir(parents=True)  # an earlier kill's

    saving = trial.workdir / "checkpoints/step_2.orbax-checkpoint-tmp"

    def work():
        code = f"import os, time; time.sleep(0.2); os.mkdir({str(saving)!r}); time.sleep(60)"
        os.execv(sys.executable, [sys.executable, "-c", code])

    with Process(work, tmp_path / "said.txt") as process:
        trial.processes = [process]
        sign, begun = kills.Sign("writing a checkpoint", trial, 0, 0), time.monotonic()
        assert not sign.seen()
        while not sign.seen():
            assert time.monotonic() - begun < 30
        troubles = list(exhausted(kills.kill(trial, "writing a checkpoint", random.Random(0))))
    assert process.status == -signal.SIGKILL and troubles == []


def exhausted(generator):
    """What a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def test_images_are_of_all_kinds_and_reproducible(tmp_path):
    paths = images.draw(tmp_path / "one", range(60), 0)
    again = images.draw(tmp_path / "two", range(60), 0)
    for one, other in zip(paths, again, strict=True):
        whole = one.read_bytes()
        assert whole == other.read_bytes() or whole[:2] == b"II"  # libtiff writes bytes that it has never set
    for kind in images.photos.FORMATS:
        with Image.open(images.io.BytesIO(images.whole(random.Random(1), kind))) as image:
            assert image.format == kind


def test_an_image_that_is_not_mentioned_is_found(tmp_path):
    paths = [tmp_path / n for n in ("read.png", "named.png", "lost.png")]
    said = json.dumps({"path": str(paths[0]), "top": [{"probability": 1.0}]})
    text = f"{said}\nunreadable: {paths[1]}: no image\n"
    assert images.accounted("predict", paths, text, tmp_path) == ["neither read nor named: lost.png"]


def test_damages_damage(tmp_path):
    whole = bytes(range(256)) * 4
    for damage in (*files.DAMAGES, *files.JSON):
        (tmp_path / "file").write_bytes(whole)
        files.hurt(tmp_path / "file", damage, random.Random(3))
        assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() != whole, damage


def test_a_disk_is_filled_to_the_last_byte_and_grows(tmp_path):
    if reason := disk.unavailable():
        pytest.skip(reason)
    with disk.mounted(tmp_path / "disk", 1) as small:
        disk.fill(small)
        with pytest.raises(OSError, match="No space left"):
            (small / "more").write_bytes(b"x" * 4096)
        disk.grow(small)
        (small / "more").write_bytes(bytes(2**21))
    assert not any((tmp_path / "disk").iterdir())


def test_the_command_refuses_another_seed(tmp_path):
    (tmp_path / "torture.json").write_text(json.dumps({"seed": 1, "code": "other"}))
    torture = importlib.import_module("experiments.torture.__main__")
    with pytest.raises(UserError, match="other code or another seed: name another --out") as error:
        torture.main(commands.parse(torture, ["--out", str(tmp_path)]))
    assert "\n" not in str(error.value)


def test_a_finding_has_the_command_that_repeats_it(tmp_path):
    torture = importlib.import_module("experiments.torture.__main__")
    flags = commands.parse(torture, ["--out", str(tmp_path), "--kills=7", "--seed=3"])
    bad, good = Result(["it hung"]), Result()
    [finding] = torture.findings({("kills", "glyphs, 1"): bad, ("kills", "glyphs, 2"): good}, flags)
    words = shlex.split(finding["repeat"])[3:]
    again = commands.parse(torture, words)
    assert (again.only, again.case, again.kills, again.seed) == (["kills"], ["glyphs, 1"], 7, 3)


def test_a_process_whose_peer_was_killed_ends_with_a_line_of_its_own():
    ours = "error: another process is lost (UNAVAILABLE): start all again"
    assert (
        survivor_failure(1, f"F1124 client.h:80] Terminating process\n*** Check failure stack trace: ***\n\n{ours}\n")
        == ""
    )
    assert "status -6" in survivor_failure(-6, ours) and "Terminating" in survivor_failure(
        1, f"{ours}\nF1124 Terminating process\n"
    )
    assert "no output" in survivor_failure(1, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--jobs", "0"], "--jobs is 0 and must be at least 1"),
        (["--disk", "-1"], "--disk is -1 and must be at least 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, words, says):
    torture = importlib.import_module("experiments.torture.__main__")
    with pytest.raises(UserError, match=says):
        torture.main(commands.parse(torture, ["--out", str(tmp_path / "out"), *words]))
    assert not (tmp_path / "out").exists()
