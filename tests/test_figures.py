"""A run's pictures: what is counted and chosen for them, and the command line."""

import json
import shutil

import numpy as np
import pytest
from helpers import verbs
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.analysis import figures
from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs.run import load_run


def size(path):
    with Image.open(path) as image:
        return image.size


def test_count_equals_a_loop():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 200)).astype(np.int32)
    labels[labels == 3] = 2  # no image of the last class
    expected = np.zeros((5, 5), int)
    for true, answer in zip(labels, predicted, strict=True):
        expected[true, answer] += 1
    np.testing.assert_array_equal(figures.count(labels, predicted, 5), expected)


def test_of_a_thousand_classes_those_that_are_there_have_rows():
    """300, 5 and 300 again of 1,000: their own rows in order, and one for all the rest."""
    names = [f"c{i}" for i in range(1000)]
    number, rows = figures.group(np.array([300, 5, 300]), names)
    assert rows == ["c5", "c300", "any other"]
    assert (number[5], number[300]) == (0, 1) and (np.delete(number, [5, 300]) == 2).all()
    for labels, count in ((np.arange(30), 1000), (np.array([3]), 10)):
        number, rows = figures.group(labels, names[:count])
        assert rows == names[:count] and list(number) == list(range(count))


def test_wrong_finds_the_most_and_the_least_certain():
    """Of eight images 1, 3, 4, 5, 6 are wrong, by 0.6, 0.9, 0.5, 0.9 and 0.4."""
    certainty = np.array([0.8, 0.6, 0.99, 0.9, 0.5, 0.9, 0.4, 0.7])
    shares = np.stack([certainty, (1 - certainty) / 2, (1 - certainty) / 2], axis=1)
    labels = np.array([0, 1, 0, 2, 1, 1, 1, 0])
    for most, high, low in ((2, [3, 5], [6, 4]), (1, [3], [6]), (5, [3, 5, 1], [6, 4])):
        found = figures.wrong(labels, shares, most)
        assert [list(f) for f in found] == [high, low]
    none = figures.wrong(np.zeros(8, int), shares)
    assert [len(f) for f in none] == [0, 0]


def test_wrong_of_equally_certain_mistakes_shows_none_twice():
    high, low = figures.wrong(np.ones(4, int), np.tile([0.6, 0.4], (4, 1)))
    assert list(high) == [0, 1] and list(low) == [2, 3]


def test_probabilities_are_of_every_image_once(tiny_run):
    """33 images in batches of 10, against all at once."""
    run = load_run(tiny_run)
    split = prepare(run.config.data).evaluation
    logits = np.asarray(run(split.images())[0], np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(figures.probabilities(run, split), expected, atol=1e-5)


def test_weights_of_caffe_and_of_pytorch(tmp_path):
    """(n, 3, side, side), blue first or red first, beside layers that read more than three channels."""
    weights = np.random.default_rng(0).normal(size=(8, 3, 5, 5)).astype(np.float32)
    path = tmp_path / "weights.npz"
    np.savez(path, conv1=weights, bias=np.zeros(8), conv2=np.zeros((8, 8, 3, 3)), conv3=np.zeros((8, 4, 3, 3)))
    kernel, swapped = figures.read_weights(path), figures.read_weights(path, bgr=True)
    for n in range(8):
        for channel in range(3):
            np.testing.assert_array_equal(kernel[..., channel, n], weights[n, channel])
            np.testing.assert_array_equal(swapped[..., channel, n], weights[n, 2 - channel])


def test_main_draws_other_weights(tmp_path, capsys):
    """Four kernels of opponent colours, then four grey ones."""
    kernel = np.random.default_rng(0).normal(size=(5, 5, 1, 8)) * np.repeat([(1, 1), (-1, 1), (0, 1)], 4, axis=1)
    np.savez(tmp_path / "weights.npz", w=kernel.transpose(3, 2, 0, 1))
    verbs.run(figures, "--weights", tmp_path / "weights.npz", "--towers", 2, "--out", tmp_path / "new" / "out")
    assert "yes, tower 2" in capsys.readouterr().out
    assert size(tmp_path / "new" / "out" / "kernels.png")[1] > 100


def test_bad_weights_are_one_line(tmp_path):
    def check(match, *flags, **arrays):
        if arrays:
            np.savez(tmp_path / "w.npz", **arrays)
        with pytest.raises(UserError, match=match) as raised:
            verbs.run(figures, "--weights", tmp_path / "w.npz", "--out", tmp_path, *flags)
        assert "\n" not in str(raised.value)

    good = np.ones((8, 3, 5, 5))
    check("there is no file")
    check(r"it holds a \(5, 5, 3, 8\), b \(8,\)", a=good.T, b=np.zeros(8))
    check("one array", a=good, b=good)
    check("plain arrays", a=np.array([{}], object))
    check("NaN or infinity", a=good * np.nan)
    check("--towers is 3", "--towers", "3", a=good)
    whole = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(whole[:200] + b"xxxxxxxx" + whole[208:])
    check("plain arrays")
    (tmp_path / "w.npz").write_bytes(whole[:-30])
    check("no .npz")


def test_main_draws_a_run(tiny_run, tmp_path, capsys):
    """All that one pass over the validation split gives, into a folder of its own, and the colours in words."""
    verbs.run(figures, "--workdir", tiny_run, "--out", tmp_path / "pictures", "--batch-size", 12, "--devices", "2x1")
    names = ["confusion", "curves", "kernels", "mistakes", "predictions"]
    assert [p.name for p in sorted((tmp_path / "pictures").iterdir())] == [f"{name}.png" for name in names]
    out = capsys.readouterr().out
    assert "is one tower colour-blind" in out and all(f"{name}.png" in out for name in names)


def test_main_draws_what_is_asked_for(tiny_run, tmp_path, capsys):
    verbs.run(figures, "--workdir", tiny_run, "--out", tmp_path, "--what", "neighbours")
    assert [p.name for p in tmp_path.iterdir()] == ["neighbours.png"]
    assert "colour-blind" not in capsys.readouterr().out


def test_a_confusion_matrix_of_too_many_classes_is_left_out(tiny_run, monkeypatch, capsys):
    run = load_run(tiny_run)
    monkeypatch.setattr(figures, "MOST_CLASSES", len(run.classes) - 1)
    assert figures._possible(run, ["kernels", "confusion"], None, asked=False) == (["kernels"], None)
    assert f"of {len(run.classes)} classes is too large to draw" in capsys.readouterr().err
    with pytest.raises(UserError, match="too large to draw .*: ask for other pictures"):
        figures._possible(run, ["kernels", "confusion"], None, asked=True)


def test_main_draws_the_curves_of_several_runs(tiny_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tiny_run / "config.json", other)
    (other / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1.0, "split": "train", "loss": 1.0}) + "\n")
    both = ["--workdir", str(tiny_run), "--workdir", str(other), "--out", str(tmp_path)]
    verbs.run(figures, *both)
    assert size(tmp_path / "curves.png")[0] > 900
    with pytest.raises(UserError, match="only the curves"):
        verbs.run(figures, *both, "--what", "all")


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / cell / "seed0" for cell in ("base", "lrn_off")]
    assert figures.apart(folders) == ["base/seed0", "lrn_off/seed0"]
    assert figures.apart([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="names .*/base/seed0 twice"):
        figures.apart([*folders, folders[0]])


def test_mistaken_flags_are_one_line(tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    run = ["--workdir", str(tiny_run)]
    for flags, match in (
        ([*run, "--what", "kernels,foo"], "names foo and takes kernels"),
        ([*run, "--out", str(tmp_path / "file" / "folder")], "cannot make the folder"),
        ([*run, "--out", "a.png"], "names a picture"),
        (["--workdir", str(tmp_path)], "holds no run"),
        ([], "either a run with --workdir or another network's weights with --weights"),
        ([*run, "--weights", "w.npz"], "either a run"),
    ):
        with pytest.raises(UserError, match=match):
            verbs.run(figures, *flags)
