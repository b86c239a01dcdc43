"""Pictures: what they show is what went in, and a failed one leaves nothing behind."""

import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.analysis.curves import curves
from alexnet_jax.analysis.plots import (
    confusion,
    kernels,
    mistakes,
    neighbours,
    predictions,
)

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


@pytest.fixture
def photos():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


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


SAME, OTHER = (0, 114, 178), (230, 159, 0)  # frames, and right and wrong answers at full depth
TRUE, PREDICTED = (240, 160, 48), (188, 211, 230)  # bars


@NO_WARNINGS
def test_mistakes_shows_the_predicted_and_the_true_class(tmp_path):
    """Three images, the third alone in the second row, each over a bar of its prediction and one of the truth."""
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[range(3), ..., range(3)] = 200  # red, green, blue
    probabilities = np.array([[0.9, 0.1, 0], [0.25, 0.75, 0], [0.4, 0.3, 0.3]])
    picture = read(mistakes(images, [1, 0, 2], probabilities, ["$ant_", "bee", "cat"], tmp_path / "mistakes.png"))
    side = 213
    for i, (row, column) in enumerate(((0, 0), (0, 1), (1, 0))):
        top = 46 + row * (46 + side + 7 + 2 * 27)
        left = 14 + column * (side + 14)
        photo = picture[top + 3 : top + side - 3, left + 3 : left + side - 3]
        assert (photo == images[i, 0, 0]).all()
        upper, lower = (picture[top + side + 7 + 27 * k : top + side + 34 + 27 * k, left : left + side] for k in (0, 1))
        widths = [(half == color).all(axis=2).any(axis=0).sum() for half, color in ((upper, PREDICTED), (lower, TRUE))]
        expected = side * probabilities[i, [probabilities[i].argmax(), [1, 0, 2][i]]]
        np.testing.assert_allclose(widths, expected, atol=2)
    assert (picture[top:, left + side + 14 :] == 255).all()  # nothing stands beside the third


@NO_WARNINGS
def test_mistakes_says_that_there_are_none(tmp_path):
    picture = read(mistakes([], [], np.zeros((0, 2)), ["ant", "bee"], tmp_path / "mistakes.png"))
    assert picture.min() == 0 and picture.shape[0] < 100


@NO_WARNINGS
def test_neighbours_frames_those_of_the_querys_class(tmp_path):
    """Photos of one grey each; frames by verdict, and neither colour where nobody knows."""
    hits = np.arange(10, 250, 20, dtype=np.uint8).reshape(2, 6)
    images = np.broadcast_to(hits[..., None, None, None], (2, 6, 8, 8, 3))
    same = np.array([[True, False, True, True, True, True], [False] * 6])
    names = [["ant, $the$ insect", "bee", *["ant"] * 4], ["ant"] * 6]
    picture = read(neighbours(images[:, 0], ["ant", "x" * 40], images, names, same, tmp_path / "a.png"))
    assert 900 < picture.shape[1] < 1200
    side = (1150 - 36) // 7 - 12
    for i in range(2):
        for j in range(6):
            top, left = 40 + i * (side + 34), 48 + side + j * (side + 12)
            cell = picture[top - 6 : top + side + 6, left - 6 : left + side + 6]
            wanted, not_wanted = (SAME, OTHER) if same[i, j] else (OTHER, SAME)
            assert count(cell, wanted) > 4 * side and not count(cell, not_wanted)
            assert (cell[side // 2, side // 2] == hits[i, j]).all()
    unknown = read(neighbours(images[:, 0], ["a", "b"], images, names, None, tmp_path / "b.png"))
    assert not count(unknown, SAME) and not count(unknown, OTHER)


@NO_WARNINGS
def test_confusion_of_few_classes_has_a_depth_and_a_number_a_cell(tmp_path):
    counts = np.array([[4, 0, 0], [1, 0, 3], [0, 0, 0]])  # no image of the third class: its row stays white
    picture = read(confusion(counts, ["ant, the insect", "$bee_", "cat"], tmp_path / "confusion.png"))
    assert count(picture, (86, 180, 233)) > 5000  # all right, at full depth
    quarter = np.rint(255 - 0.5 * (255 - np.array(OTHER)))  # a quarter of the row, at half the depth
    assert count(picture, quarter) > 5000
    assert count(picture, np.rint(255 - 0.75**0.5 * (255 - np.array(OTHER)))) > 5000
    left = np.argmax((picture == (86, 180, 233)).all(axis=2).any(axis=0)) - 1
    cells = [[picture[46 + 100 * i :, left + 100 * j :][3:97, 3:97] for j in range(3)] for i in range(3)]
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            dark = (cell.max(axis=2) < 60).any()
            assert dark == (counts[i, j] > 0), (i, j)  # a number, in black


def test_confusion_of_a_thousand_classes_is_a_point_a_cell(tmp_path):
    counts = np.diag(np.full(1000, 50))
    counts[10, 900] = 50
    picture = read(confusion(counts, [f"class {i}" for i in range(1000)], tmp_path / "confusion.png"))
    blue, orange = (86, 180, 233), (213, 94, 0)
    assert count(picture, blue) + count(picture, np.rint(255 - 0.5**0.25 * (255 - np.array(blue)))) == 1000
    rows, columns = np.nonzero((picture == np.rint(255 - 0.5**0.25 * (255 - np.array(orange)))).all(axis=2))
    tops, lefts = np.nonzero((picture == blue).all(axis=2))
    assert (rows - tops.min(), columns - lefts.min()) == (10, 900)


def test_a_picture_is_replaced_whole_and_nothing_else_is_left(tmp_path, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it would raise
    path = tmp_path / "picture.png"
    path.write_text("old")
    assert kernels(np.ones((11, 11, 3, 4)), str(path)) == path
    read(path)
    curves({"run": []}, path)
    predictions(photos, [0, 1, 2], np.eye(3), ["a", "b", "c"], path)
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_an_unwritable_path_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"cannot write {path}"):
            kernels(np.ones((11, 11, 3, 4)), path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
