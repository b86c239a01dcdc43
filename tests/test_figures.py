"""Figures: what the pictures show is what went in, and a failed one leaves nothing behind."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.figures import colorfulness, curves, kernels, predictions, read_metrics

# A letter that the font lacks, an empty axis; not what other tests' objects say when they are collected meanwhile.
NO_WARNINGS = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
RED, GREY = (255, 128, 128), (128, 128, 128)  # a positive red kernel, and zero


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def count(picture, color):
    return int((picture == color).all(axis=2).sum())


def record(step, split="train", **more):
    values = {"loss": 2 / step, "top1_error": 1 / step}
    return {"step": step, "epoch": step / 10, "split": split} | values | more


@pytest.fixture
def photos():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_colorfulness_of_grey_is_zero_and_of_opponent_colours_one():
    shape = np.random.default_rng(0).normal(size=(11, 11))
    grey, opponent, red = (shape[..., None] * np.array(c) for c in ((1, 1, 1), (1, -1, 0), (1, 0, 0)))
    kernel = np.stack([grey, opponent, red, np.zeros_like(red)], axis=-1).astype(np.float32)
    np.testing.assert_allclose(colorfulness(kernel), [0, 1, 2 / 3, 0], atol=1e-6)


def test_colorfulness_ignores_scale_and_stays_within_0_and_1():
    kernel = np.random.default_rng(1).normal(size=(11, 11, 3, 24))
    shares = colorfulness(kernel)
    assert shares.shape == (24,) and (shares > 0).all() and (shares < 1).all()
    np.testing.assert_allclose(colorfulness(-1e-3 * kernel), shares)


@pytest.mark.parametrize("n", [24, 48, 96])
def test_kernels_shows_each_tower_in_its_half(tmp_path, n):
    kernel = np.zeros((11, 11, 3, n), np.float32)
    kernel[:, :, 0, : n // 2] = 1e-3  # tower 1 all red, tower 2 all zero: the scale of a weight must not matter
    picture = read(kernels(kernel, tmp_path / "kernels.png"))
    assert 900 < picture.shape[1] < 1200
    middle = picture.shape[0] // 2
    upper, lower = picture[40:middle], picture[middle + 30 :]  # without the titles, whose edges are grey
    assert count(upper, GREY) == count(lower, RED) == 0
    for half, color in ((upper, RED), (lower, GREY)):  # n / 2 whole squares: no pixel is blurred away
        zoom = (count(half, color) / (n // 2)) ** 0.5 / 11
        assert zoom >= 6 and zoom == int(zoom)


def test_kernels_are_drawn_in_order_upright_and_around_grey(tmp_path):
    kernel = np.zeros((11, 11, 3, 4))
    kernel[..., 1] = np.linspace(-1, 1, 11)[:, None, None]  # second of tower 1: black at the top, white at the bottom
    kernel[..., 2] = np.linspace(-5, 5, 11)[None, :, None]  # first of tower 2: black on the left
    picture = read(kernels(kernel, tmp_path / "kernels.png"))
    zoom = 12
    tops = [40, 40 + 11 * zoom + 40]
    ramp = np.linspace(0, 255, 11).repeat(zoom)[:, None]
    second = picture[tops[0] : tops[0] + 11 * zoom, 14 + 11 * zoom + 4 :][:, : 11 * zoom]
    third = picture[tops[1] : tops[1] + 11 * zoom, 14 : 14 + 11 * zoom]
    np.testing.assert_allclose(second, np.broadcast_to(ramp[:, None], second.shape), atol=1)
    np.testing.assert_allclose(third, np.broadcast_to(ramp[None, :], third.shape), atol=1)


def test_read_metrics_ignores_only_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record(step)) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + "\n")
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    for torn in (lines[2][:-1], '{"ste', "\0\0\0"):
        path.write_text("\n".join([*lines[:2], torn]))
        assert read_metrics(path) == [json.loads(line) for line in lines[:2]]
    path.write_bytes(b"")
    assert read_metrics(path) == []


@pytest.mark.parametrize("damaged", [b'{"step": 1, "ep', b"", b"12", b"\xff\xfe"])
def test_read_metrics_names_a_damaged_line(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([json.dumps(record(1)).encode(), damaged, json.dumps(record(2)).encode()]) + b"\n")
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged"):
        read_metrics(path)
    with pytest.raises(UserError, match="nowhere"):
        read_metrics(tmp_path / "nowhere" / "metrics.jsonl")


def test_curves_draws_every_run_in_its_colour(tmp_path):
    train = [record(step, learning_rate=0.01 * 0.1 ** (step > 30)) for step in range(1, 60)]
    slower = [r | {"learning_rate": r["learning_rate"] / 2} for r in train]
    evaluations = [record(step, "validation", views=1, top5_error=0.5 / step) for step in range(10, 60, 10)]
    runs = {"_paper": [*train, record(50, "test", views=10)], "$cost$ of tanh": evaluations, "train only": slower}
    picture = read(curves(runs, tmp_path / "curves.png"))
    assert 900 < picture.shape[1] < 1200
    for color in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        assert count(picture[:, :900], color) > 100  # left of the legends
    assert not count(picture, (204, 121, 167))  # a fourth run's


def test_curves_counts_a_step_that_a_resumed_run_repeats_once(tmp_path):
    whole = [record(step, learning_rate=0.01) for step in range(1, 9)]
    stale = [record(step, learning_rate=0.01, loss=9.0) for step in (4, 5)]
    once = curves({"run": whole}, tmp_path / "once.png").read_bytes()
    assert curves({"run": whole[:3] + stale + whole[3:]}, tmp_path / "twice.png").read_bytes() == once


def test_curves_leaves_top5_out_on_request(tmp_path):
    plain = [record(step, "validation") for step in (1, 2)]
    without = curves({"run": plain}, tmp_path / "a.png").read_bytes()
    both = [r | {"top5_error": 0.1} for r in plain]
    assert curves({"run": both}, tmp_path / "b.png", top5=False).read_bytes() == without
    assert curves({"run": both}, tmp_path / "b.png").read_bytes() != without


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1, learning_rate=0.005)],
        [record(1, "test", views=10, top5_error=None)],
        [record(1, learning_rate=0.0, loss=float("nan")), {"note": "no metric"}],
    ],
)
@NO_WARNINGS
def test_curves_survives_hardly_any_records(tmp_path, records):
    assert read(curves({"run": records}, tmp_path / "curves.png")).std() > 0


@NO_WARNINGS
def test_predictions_marks_the_true_class(tmp_path, photos):
    classes = [f"class {i}, also $k_{i}$" for i in range(9)] + ["$x^" + "long" * 20]
    probabilities = np.full((3, 10), 0.02)
    probabilities[:, 1] = 0.82
    orange, blue = (240, 160, 48), (188, 211, 230)
    picture = read(predictions(photos, [1, 9, 1], probabilities, classes, tmp_path / "predictions.png"))
    third = picture.shape[1] // 3
    for i, first in enumerate((True, False, True)):
        part = picture[:, i * third : (i + 1) * third]
        assert count(part, blue)
        assert (count(part, orange) > 0) == first  # class 9 is not among the five most probable
    photo = picture[45:305, 20:280]
    np.testing.assert_allclose(photo.mean(axis=(0, 1)), photos[0].mean(axis=(0, 1)), atol=3)


def test_predictions_has_room_for_eight_and_for_two_classes(tmp_path, photos):
    nine = np.concatenate([photos] * 3)
    picture = read(predictions(nine, [0] * 9, np.full((9, 2), 0.5), ["ant", "bee"], tmp_path / "predictions.png"))
    assert 900 < picture.shape[1] < 1200
    one = read(predictions(nine[:1], [0], np.full((1, 2), 0.5), ["ant", "bee"], tmp_path / "one.png"))
    assert one.shape[1] < picture.shape[1] / 3 and one.shape[0] < picture.shape[0]


def test_a_picture_is_replaced_whole_and_nothing_else_is_left(tmp_path, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it would raise
    path = tmp_path / "picture.png"
    path.write_text("old")
    assert kernels(np.ones((11, 11, 3, 4)), str(path)) == path
    read(path)
    curves({"run": [record(1)]}, path)
    predictions(photos, [0, 1, 2], np.eye(3), ["a", "b", "c"], path)
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_an_unwritable_path_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"cannot write {path}"):
            kernels(np.ones((11, 11, 3, 4)), path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
