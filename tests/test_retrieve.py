"""Images that look alike to a network: the measure against brute force, photos, and what the user gets wrong."""

import json
import os
import shutil

import numpy as np
import pytest
from helpers import verbs
from helpers.search import brute_force
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.analysis import retrieve
from alexnet_jax.data.images import SplitImages
from alexnet_jax.data.prepare import prepare


def test_pick_goes_evenly_over_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 7))
    assert labels[retrieve.pick(labels, 5)].tolist() == [1, 3, 5, 7, 9]
    assert sorted(labels[retrieve.pick(labels, 10)]) == list(range(10))
    assert sorted(retrieve.pick(labels, 1000)) == list(range(70))


def test_describes_every_image_once(run):
    """33 images in batches of 10; crops of 64 out of 72."""
    split = prepare(run.config.data).evaluation
    images = split.images()
    found = retrieve.describe(retrieve.layer_of(run, "conv5", split, 10), SplitImages(split))
    assert found.ids == split.ids
    np.testing.assert_allclose(found.vectors, np.asarray(run(images)[1]["conv5"]).reshape(33, -1), atol=1e-4)
    np.testing.assert_array_equal(found.pixels, images[:, 4:68, 4:68].reshape(33, -1))


def test_more_than_the_memory_holds_is_named():
    with pytest.raises(UserError, match="more than this machine's .* --no-pixels"):
        retrieve._room(10**9, 4096, 150_528)
    assert [len(array) for array in retrieve._room(2, 3, 4, 5)] == [2, 2]
    with pytest.raises(UserError, match="1,000,000,001 images"):  # of queries and of a gallery
        retrieve._room(1, 4096, 0, 10**9)


def test_measures_a_run(run, tiny_run, tmp_path, capsys):
    """precision@6 of the validation split in the training set, by class and over all, against brute force."""
    flags = ["--workdir", tiny_run, "--out", tmp_path / "neighbours.png"]
    verbs.run(retrieve, *flags, "--json")
    result = json.loads(capsys.readouterr().out)
    prepared = prepare(run.config.data)
    queries, gallery = prepared.evaluation, prepared.train
    layer = retrieve.layer_of(run, "fc7", gallery)
    asked, given = (retrieve.describe(layer, SplitImages(split)) for split in (queries, gallery))
    for name, a, b in (("fc7", asked.vectors, given.vectors), ("pixels", asked.pixels, given.pixels)):
        hits = gallery.labels[brute_force(a, b, 6)[1]] == queries.labels[:, None]
        assert result["precision"][name] == pytest.approx(hits.mean(), abs=1e-4)
        for i, class_name in enumerate(run.classes):
            wanted = hits[queries.labels == i].mean()
            assert result["classes"][class_name][name] == pytest.approx(wanted, abs=1e-4)
    assert result["precision"]["images"] == 33 and result["precision"]["chance"] == pytest.approx(1 / 3, abs=1e-4)
    with Image.open(tmp_path / "neighbours.png") as picture:
        assert picture.size[0] > 900
    verbs.run(retrieve, *flags, "--no-pixels", "--gallery", "validation", "--devices", "1x2")
    out = capsys.readouterr().out
    assert "fc7" in out and "pixels" not in out and all(name in out for name in run.classes)


def test_a_split_searched_in_itself_does_not_find_itself(run):
    split = prepare(run.config.data).evaluation
    result, indices = retrieve.measure(retrieve.layer_of(run, "fc7", split), split, split, pixels=False)
    assert (indices != np.arange(33)[:, None]).all()
    assert result["precision"]["chance"] == pytest.approx(10 / 32, abs=1e-4)


def test_finds_photos_from_outside(run, tiny_run, photos, tmp_path, capsys):
    """A training photo is its own nearest neighbour; no measure is made, and no verdict is drawn."""
    chosen = photos / "train" / "green" / "5.png"
    flags = ["--workdir", tiny_run, "--out", tmp_path / "a.png", "--query", chosen]
    verbs.run(retrieve, *flags, photos / "validation" / "red", "--json")
    result = json.loads(capsys.readouterr().out)
    assert len(result["photos"]) == 12 and "precision" not in result
    first = result["photos"][0]
    assert first["photo"] == str(chosen) and len(first["neighbours"]) == 6
    assert first["neighbours"][0]["image"] == "green/5.png" and first["neighbours"][0]["class"] == "green"
    distances = [n["distance"] for n in first["neighbours"]]
    assert distances == sorted(distances)
    assert verbs.run(retrieve, *flags) == 0
    assert "green/5.png" in capsys.readouterr().out


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tiny_run, photos, tmp_path, capsys):
    """As predict and features do; the exit status says so."""
    folder = tmp_path / "folder"
    shutil.copytree(photos / "validation" / "red", folder)
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "empty").mkdir()
    given = [folder, tmp_path / "none.png", tmp_path / "empty"]
    flags = ["--workdir", tiny_run, "--out", tmp_path / "a.png", "--json", "--query"]
    assert verbs.run(retrieve, *flags, *given) == 1
    out, err = capsys.readouterr()
    found = [photo["photo"] for photo in json.loads(out)["photos"]]
    assert found == [str(path) for path in sorted(folder.iterdir()) if path.name not in ("3.png", "pipe.png")]
    named = {line.split(": ")[1] for line in err.splitlines() if "unreadable: " in line}
    assert named == {str(folder / "3.png"), str(folder / "pipe.png"), *map(str, given[1:])}


def test_mistakes_end_in_one_line(tiny_run, tmp_path):
    (tmp_path / "no_photo.png").write_text("no photo")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for flags, match in (
        (["--layer", "fc9"], "no layer fc9: it has .*fc7"),
        (["--query", str(tmp_path / "none.jpg")], "no photo to be read"),
        (["--query", str(tmp_path / "no_photo.png")], "no photo to be read"),
        (["--query", str(tmp_path / "empty")], "no photo to be read"),
        (["--query", str(tmp_path / "pipe")], "no photo to be read"),
        (["--queries", "0"], "--queries"),
    ):
        with pytest.raises(UserError, match=match) as raised:
            verbs.run(retrieve, "--workdir", tiny_run, *flags, "--out", tmp_path / "a.png")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(UserError, match="holds no run"):
        verbs.run(retrieve, "--workdir", tmp_path)
