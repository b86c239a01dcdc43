"""Nearest neighbours against a float64 loop over all pairs, and what the command makes of a run."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.analysis import retrieval
from alexnet_jax.analysis.retrieval import nearest
from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs.run import load_run


def brute_force(queries, gallery, k, own=None):
    """Pair by pair in float64; of equal distances the lower index first."""
    distances, indices = [], []
    for i, query in enumerate(queries.astype(np.float64)):
        all_of_them = np.array([np.square(query - row).sum() for row in gallery.astype(np.float64)])
        if own is not None:
            all_of_them[own[i]] = np.inf
        order = np.argsort(all_of_them, kind="stable")[:k]
        indices.append(order)
        distances.append(np.sqrt(all_of_them[order]))
    return np.array(distances), np.array(indices)


def check(queries, gallery, k, own=None, **kwargs):
    distances, indices = nearest(queries, gallery, k, own=own, **kwargs)
    expected = brute_force(queries, gallery, k, own)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    assert distances.dtype == np.float32 and indices.dtype == np.int32


def vectors(n, d=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("block", [None, 1, 7, 16, 50, 64])
def test_equals_brute_force_in_any_blocks(block):
    check(vectors(23), vectors(50, seed=1), 6, block=block)


def test_equals_brute_force_on_pixels():
    rng = np.random.default_rng(0)
    check(*(rng.integers(0, 256, (n, 300), np.uint8) for n in (9, 40)), 6, block=13)


@pytest.mark.parametrize("block", [None, 7])
def test_leaves_a_query_itself_out(block):
    """Its copy elsewhere in the gallery it does find, at no distance."""
    rows = vectors(40)
    rows[31] = rows[3]
    check(rows, rows, 6, own=np.arange(40), block=block)
    assert nearest(rows, rows, 1, own=np.arange(40))[1][3] == 31
    order = np.random.default_rng(1).permutation(40)[:10]
    check(rows[order], rows, 39, own=order, block=block)  # all the others


@pytest.mark.parametrize("offset", [0, 300, 30_000])
def test_near_duplicates_far_from_the_origin(offset):
    """Distances of 1e-3 and less between vectors of length 1e5: squared in float32 nothing of them would be left."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 64)) + offset
    gallery = (base + rng.normal(size=(60, 64)) * 10.0 ** rng.integers(-3, 2, (60, 1))).astype(np.float32)
    queries = (gallery[::6] + rng.normal(size=(10, 64)) * 1e-3).astype(np.float32)
    check(queries, gallery, 6, block=25)


def test_near_duplicates_far_from_each_other():
    """Two heaps at 1e4 on either side: no centre is near both, so what the device says is not enough."""
    rng = np.random.default_rng(0)
    heaps = rng.normal(size=(2, 1, 64)) * 1e4
    gallery = (heaps + rng.normal(size=(2, 100, 64)) * 1e-2).astype(np.float32).reshape(200, 64)
    queries = (heaps + rng.normal(size=(2, 5, 64)) * 1e-2).astype(np.float32).reshape(10, 64)
    check(queries, gallery, 6, block=64)


def test_asks_again_where_rounding_could_have_hidden_a_neighbour(monkeypatch):
    """For more candidates, only for those queries, and from their own mean, where it is certain."""
    asked = []
    candidates = retrieval._candidates

    def spy(queries, *rest):
        asked.append((len(queries), rest[3]))
        return candidates(queries, *rest)

    monkeypatch.setattr(retrieval, "_candidates", spy)
    spread = vectors(200, seed=1)
    check(vectors(10), spread, 2)
    assert asked == [(10, 12)]  # certain at once
    asked.clear()
    heap = 30 + 1e-4 * vectors(100)  # from the mean of all queries each looks as near as another
    check(np.concatenate([heap[:3], spread[:3] * 0.9]), np.concatenate([spread, heap]), 2)
    assert asked == [(6, 12), (3, 48)]


def test_ties_go_to_the_lower_index():
    rows = np.zeros((100, 4), np.float32)
    rows[:10] = 1
    _, indices = nearest(rows[50:52], rows, 5, block=7)
    assert indices.tolist() == [list(range(10, 15))] * 2
    _, indices = nearest(rows[:1], rows, 12, own=[0], block=7)
    assert indices.tolist() == [[*range(1, 10), 10, 11, 12]]


def test_whole_numbers_tie_as_in_float64():
    rows = np.random.default_rng(0).integers(0, 3, (150, 5)).astype(np.float32)  # many at equal distances
    check(rows[:40], rows, 6, block=32)
    check(rows, rows, 6, own=np.arange(150))


def test_too_few_in_the_gallery_are_named():
    rows = vectors(6)
    assert nearest(rows, rows, 6)[1].shape == (6, 6)
    with pytest.raises(UserError, match="6 neighbours are asked for and the gallery has 5"):
        nearest(rows, rows, 6, own=np.arange(6))
    with pytest.raises(UserError, match="0 neighbours"):
        nearest(rows, rows, 0)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_vectors_that_cannot_be_compared_are_refused(bad):
    rows = vectors(40)
    rows[:, 3] = bad
    rows[::2, 3] *= -1
    for queries, gallery in ((rows, rows), (rows, vectors(40)), (vectors(40), rows)):
        with pytest.raises(ValueError, match="no number"):
            nearest(queries, gallery, 6)


def test_precision_of_a_hand_made_example():
    """Gallery classes a a b b c; two queries of a and one of c."""
    gallery = np.array([0, 0, 1, 1, 2])
    indices = np.array([[0, 1, 2], [2, 3, 4], [4, 2, 0]])
    np.testing.assert_allclose(retrieval.precision(indices, np.array([0, 0, 2]), gallery), [2 / 3, 0, 1 / 3])


def test_pick_goes_evenly_over_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 7))
    assert labels[retrieval.pick(labels, 5)].tolist() == [1, 3, 5, 7, 9]
    assert sorted(labels[retrieval.pick(labels, 10)]) == list(range(10))
    assert sorted(retrieval.pick(labels, 1000)) == list(range(70))


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def test_describes_every_image_once(run):
    """33 images in batches of 10; crops of 64 out of 72."""
    split = prepare(run.config.data).evaluation
    images = split.images()
    found, pixels = retrieval.describe(run, split, "conv5")
    np.testing.assert_allclose(found, np.asarray(run(images)[1]["conv5"]).reshape(33, -1), atol=1e-4)
    np.testing.assert_array_equal(pixels, images[:, 4:68, 4:68].reshape(33, -1))


def test_more_than_the_memory_holds_is_named():
    with pytest.raises(UserError, match="more than this machine's .* --no-pixels"):
        retrieval._room(10**9, 4096, 150_528)


def test_measures_a_run(run, tiny_run, tmp_path, capsys):
    """precision@6 of the validation split in the training set, by class and over all, against brute force."""
    flags = ["--workdir", str(tiny_run), "--out", str(tmp_path / "neighbours.png")]
    retrieval.main([*flags, "--json"])
    result = json.loads(capsys.readouterr().out)
    prepared = prepare(run.config.data)
    queries, gallery = prepared.evaluation, prepared.train
    for name, part in (("fc7", 0), ("pixels", 1)):
        a, b = (retrieval.describe(run, split)[part] for split in (queries, gallery))
        hits = gallery.labels[brute_force(a, b, 6)[1]] == queries.labels[:, None]
        assert result["precision"][name] == pytest.approx(hits.mean(), abs=1e-4)
        for i, class_name in enumerate(run.classes):
            wanted = hits[queries.labels == i].mean()
            assert result["classes"][class_name][name] == pytest.approx(wanted, abs=1e-4)
    assert result["precision"]["images"] == 33 and result["precision"]["chance"] == pytest.approx(1 / 3, abs=1e-4)
    with Image.open(tmp_path / "neighbours.png") as picture:
        assert picture.size[0] > 900
    retrieval.main([*flags, "--no-pixels", "--gallery", "validation"])
    out = capsys.readouterr().out
    assert "fc7" in out and "pixels" not in out and all(name in out for name in run.classes)


def test_a_split_searched_in_itself_does_not_find_itself(run):
    split = prepare(run.config.data).evaluation
    result, indices = retrieval.measure(run, split, split, "fc7", pixels=False)
    assert (indices != np.arange(33)[:, None]).all()
    assert result["precision"]["chance"] == pytest.approx(10 / 32, abs=1e-4)


def test_finds_photos_from_outside(run, tiny_run, photos, tmp_path, capsys):
    """A training photo is its own nearest neighbour; no measure is made, and no verdict is drawn."""
    chosen = photos / "train" / "green" / "5.png"
    flags = ["--workdir", str(tiny_run), "--out", str(tmp_path / "a.png"), "--query", str(chosen)]
    retrieval.main([*flags, str(photos / "validation" / "red"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert len(result["photos"]) == 12 and "precision" not in result
    first = result["photos"][0]
    assert first["photo"] == str(chosen) and len(first["neighbours"]) == 6
    assert first["neighbours"][0]["image"] == "green/5.png" and first["neighbours"][0]["class"] == "green"
    distances = [n["distance"] for n in first["neighbours"]]
    assert distances == sorted(distances)
    assert retrieval.main(flags) == 0
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
    flags = ["--workdir", str(tiny_run), "--out", str(tmp_path / "a.png"), "--json", "--query"]
    assert retrieval.main([*flags, *map(str, given)]) == 1
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
        (["--layer", "fc9"], "no layer fc9: its layers are .*fc7"),
        (["--query", str(tmp_path / "none.jpg")], "no photo to be read"),
        (["--query", str(tmp_path / "no_photo.png")], "no photo to be read"),
        (["--query", str(tmp_path / "empty")], "no photo to be read"),
        (["--query", str(tmp_path / "pipe")], "no photo to be read"),
        (["--queries", "0"], "--queries"),
    ):
        with pytest.raises(UserError, match=match) as raised:
            retrieval.main(["--workdir", str(tiny_run), *flags, "--out", str(tmp_path / "a.png")])
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "a.png").exists()


def test_the_command_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "alexnet_jax", "retrieve", "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1
