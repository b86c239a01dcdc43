"""Predictions of photos are what evaluation gives them, whatever else lies beside them."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import verbs

from alexnet_jax import UserError
from alexnet_jax.analysis import predict
from alexnet_jax.data.images import PhotoImages
from alexnet_jax.data.photos import square
from alexnet_jax.inference import LOGS, make_forward


@pytest.fixture(scope="module")
def paths(photos):
    """One photo of each class and one more of the first."""
    return [photos / "validation" / name for name in ("blue/0.png", "green/3.png", "red/2.png", "blue/9.png")]


def by_hand(run, paths, views):
    """Probabilities (n, classes), all at once."""
    forward = make_forward(run)
    images = np.stack([np.asarray(square(path, run.config.data.size)) for path in paths])
    return np.exp(np.asarray(forward(run.params, run.statistics, images, views=views)[LOGS]))


def predicted(run, paths, views=1, batch_size=None):
    """What predict yields for photos."""
    return list(predict.predict(run, PhotoImages(paths, run.config.data, run.classes), views, batch_size))


def lines(capsys):
    """What the command printed as JSON lines, and what it said on standard error."""
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_evaluations(run, paths, views):
    """In batches of 3, the last of which is padded."""
    found = predicted(run, paths, views, batch_size=3)
    assert [path for path, _ in found] == [str(path) for path in paths]
    np.testing.assert_allclose([p for _, p in found], by_hand(run, paths, views), atol=1e-6)


def test_ten_views_are_not_one(run, paths):
    one, ten = ([p for _, p in predicted(run, paths, views)] for views in (1, 10))
    assert np.abs(np.array(one) - np.array(ten)).max() > 1e-4


def test_best_sorts_and_stops():
    found = predict.best(np.array([0.2, 0.5, 0.2, 0.1]), ["a", "b", "c", "d"], 3)
    assert found == [("b", 0.5), ("a", 0.2), ("c", 0.2)]
    assert len(predict.best(np.array([0.2, 0.8]), ["a", "b"], 5)) == 2


@pytest.mark.parametrize(("views", "top"), [(1, 2), (10, 5)])
def test_json_lines_say_the_same(tiny_run, run, paths, capsys, views, top):
    flags = [f"--workdir={tiny_run}", f"--views={views}", f"--top={top}", "--json"]
    assert verbs.run(predict, *flags, *paths) == 0
    found, _ = lines(capsys)
    assert [line["path"] for line in found] == [str(path) for path in paths]
    for line, expected in zip(found, by_hand(run, paths, views), strict=True):
        assert line.keys() == {"path", "top"} and len(line["top"]) == min(top, 3)
        shares = [entry["probability"] for entry in line["top"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6
        for entry in line["top"]:
            assert entry["probability"] == pytest.approx(expected[run.classes.index(entry["class"])], abs=1e-6)


def test_the_table_is_aligned(tiny_run, run, paths, capsys):
    assert verbs.run(predict, f"--workdir={tiny_run}", *paths) == 0
    blocks = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [str(path) for path in paths]
    for block, expected in zip(blocks, by_hand(run, paths, 1), strict=True):
        rows = block.splitlines()[1:]
        assert [row.split()[-1] for row in rows] == [run.classes[i] for i in np.argsort(-expected)]
        assert {len(row) - len(row.split()[-1]) for row in rows} == {33}
        assert [float(row.split("%")[0]) for row in rows] == pytest.approx(sorted(100 * expected)[::-1], abs=0.006)
        assert [row.count("█") + row.count("▌") / 2 for row in rows] == pytest.approx(
            sorted(20 * expected)[::-1], abs=0.26
        )


def test_folders_and_what_cannot_be_read(tiny_run, photos, tmp_path, capsys):
    """What is wrong is named and costs the exit status, and the rest goes on."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("not a photo")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "pipe.jpg")
    (tmp_path / "odd" / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "odd" / "folder.jpg").mkdir()
    (tmp_path / "odd" / "._hidden.jpg").write_text("not a photo")
    folder = photos / "validation" / "red"
    given = [
        tmp_path / "text.jpg",
        folder,
        tmp_path / "none.png",
        tmp_path / "empty",
        photos / "train" / "red" / "0.png",
        tmp_path / "pipe.jpg",
        tmp_path / "odd",
        "~nobody_at_all/0.jpg",
    ]
    assert verbs.run(predict, f"--workdir={tiny_run}", "--json", *given) == 1
    found, said = lines(capsys)
    assert [line["path"] for line in found] == [*map(str, sorted(folder.iterdir())), str(given[4])]
    named = {line.split(": ")[1]: line for line in said.splitlines() if line.startswith("unreadable: ")}
    odd = {str(tmp_path / "odd" / name) for name in ("pipe.jpg", "broken.jpg", "folder.jpg")}
    assert named.keys() == {str(given[i]) for i in (0, 2, 3, 5, 7)} | odd
    assert all("not a regular file" in line for name, line in named.items() if "pipe" in name)
    assert "not a JPEG, PNG" in named[str(given[0])] and "No such file" in named[str(given[2])]
    assert "no photos" in named[str(given[3])]


def test_what_the_user_gets_wrong_is_said(tiny_run, run, paths, tmp_path):
    with pytest.raises(UserError, match="no photo to be read"):
        verbs.run(predict, f"--workdir={tiny_run}", tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no photo to be read"):
        verbs.run(predict, f"--workdir={tiny_run}", tmp_path / "empty")
    with pytest.raises(UserError, match="--batch-size=-3 must be a positive multiple"):
        verbs.run(predict, f"--workdir={tiny_run}", "--batch-size=-3", paths[0])
    with pytest.raises(UserError, match="--top is 0"):
        verbs.run(predict, f"--workdir={tiny_run}", "--top=0", paths[0])
    with pytest.raises(UserError, match="holds no run"):
        verbs.run(predict, f"--workdir={tmp_path}", paths[0])
    astray = dataclasses.replace(run, params=jax.tree.map(lambda p: p * np.nan, run.params))
    with pytest.raises(UserError, match="NaN or infinity"):
        predicted(astray, paths)


def test_the_command_and_its_exit_status(tiny_run, paths, tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(paths[0].read_bytes())
    command = [sys.executable, "-m", "alexnet_jax", "predict", f"--workdir={tiny_run}"]
    done = subprocess.run([*command, str(tmp_path), "none.png", "--top=1"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "unreadable: none.png: No such file or directory\n"
    path, row = done.stdout.splitlines()
    assert path == str(tmp_path / "caf\\udce9.png") and "%" in row
