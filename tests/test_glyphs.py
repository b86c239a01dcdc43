"""The built-in data set: the same everywhere, balanced, legible in every face, and a TFDS set like any other."""

import io
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.runs import full_disk
from PIL import Image

from alexnet_jax import UserError, files
from alexnet_jax.data import glyphs


def prepared(folder):
    """The builder of glyphs/tiny in a folder, drawn if it is not there."""
    return glyphs.drawn(glyphs.undrawn("tiny", str(folder)))


def test_image_and_label():
    image, label = glyphs.draw(3, 17)
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8
    assert glyphs.LETTERS[label] == glyphs.LETTERS[7]


def test_depends_on_seed_and_index_alone():
    first = [glyphs.draw(0, i)[0] for i in range(4)]
    again = [glyphs.draw(0, i)[0] for i in (3, 2, 1, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    others = [glyphs.draw(*key)[0] for key in ((0, 10), (1, 0), (0, 20))]
    for other in others:
        assert (other != first[0]).mean() > 0.5


def test_version_1_0_0_draws_these(tiny_dir):
    """Means of whole images, and their noise: whoever changes them must increase VERSION, or old copies stay in use."""
    assert str(prepared(tiny_dir).info.version) == "1.0.0"
    drawn = np.stack([glyphs.draw(0, index)[0] for index in range(6)]).astype(np.float64)
    np.testing.assert_allclose(drawn.mean((1, 2, 3)), [64.04, 102.6, 146.76, 108.72, 73.7, 107.88], atol=0.2)
    second = np.abs(np.diff(drawn, 2, axis=1))  # of normal noise: its median is 0.6745 sqrt(6) standard deviations
    assert np.median(second, axis=(1, 2, 3)) == pytest.approx(0.6745 * 6**0.5 * 5, abs=1)


def test_splits_are_balanced_and_share_no_image(monkeypatch):
    monkeypatch.setattr(glyphs, "_letter", lambda *_: np.zeros((256, 256), np.float32))  # it takes most of the time
    labels = [glyphs.draw(0, index)[1] for index in range(30)]
    assert np.bincount(labels).tolist() == [3] * 10
    assert glyphs.SEEDS["train"] != glyphs.SEEDS["validation"]


@pytest.mark.parametrize("face", glyphs.FACES)
def test_every_face_has_every_letter(face):
    def bitmap(letter):
        return np.asarray(glyphs._glyph(face, 100, letter).resize((32, 32)), np.float32) / 255

    missing = bitmap("\ue9ff")  # of the private use area: the box that stands for a glyph the face lacks
    drawn = {letter: bitmap(letter) for letter in glyphs.LETTERS}
    for letter, picture in drawn.items():
        assert picture.mean() > 0.1, f"{face} draws nothing for {letter}"
        for name, other in {**drawn, "a missing glyph": missing}.items():
            if name != letter:
                assert np.abs(picture - other).mean() > 0.04, f"{face} draws {letter} like {name}"


def test_no_letter_is_the_mirror_image_of_another():
    pictures = {c: np.asarray(glyphs._glyph("DejaVuSans", 100, c).resize((32, 32)), float) for c in glyphs.LETTERS}
    for one, picture in pictures.items():
        for two, other in pictures.items():
            assert one == two or np.abs(picture[:, ::-1] - other).mean() > 25, f"{one} mirrored is {two}"


def test_letter_stands_out_from_the_background():
    for index in range(50):
        rng = np.random.default_rng(index)
        ink, *ground = glyphs._colours(rng)[..., 0, 0] @ glyphs.LUMINANCE
        pattern = glyphs._pattern(rng)
        assert pattern.min() >= 0 and pattern.max() <= 1  # so the background stays between its two colours
        assert ink - max(ground) > glyphs.MIN_CONTRAST


@pytest.mark.parametrize("face", glyphs.FACES)
def test_largest_letter_fits_the_margin(face):
    for letter in glyphs.LETTERS:
        upright = glyphs._glyph(face, glyphs.FONT_PIXELS[1], letter)
        for turn in (-glyphs.MAX_TURN, 0, glyphs.MAX_TURN):
            left, top, right, bottom = upright.rotate(turn, Image.Resampling.BICUBIC, expand=True).getbbox()
            assert max(right - left, bottom - top) <= 256 - 2 * glyphs.MARGIN, f"{letter} at {turn} degrees"


def test_letter_lies_within_the_margin():
    for index in range(50):
        ink = glyphs._letter(np.random.default_rng(index), glyphs.LETTERS[index % 10]) > 0
        for places in (np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))):
            assert places[0] >= glyphs.MARGIN and places[-1] < 256 - glyphs.MARGIN


def test_unknown_config_names_the_known():
    with pytest.raises(UserError, match="glyphs/full, glyphs/tiny"):
        glyphs.undrawn("huge", "")


def test_draws_without_tensorflow():
    code = "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
    code += "from alexnet_jax.data import glyphs; print(glyphs.draw(0, 5)[0].sum())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(out.stdout) == glyphs.draw(0, 5)[0].sum()


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory):
    """Holds glyphs/tiny, prepared beside what a killed preparation leaves."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    left_over = folder / "glyphs/tiny/incomplete.ABCDEF_1.0.0"
    left_over.mkdir(parents=True)
    (left_over / "glyphs-train.tfrecord-00000-of-00001").write_bytes(b"half an image")
    (folder / "glyphs/tiny/1.0.0.lock").touch()
    prepared(folder)
    return folder


def test_leftovers_of_a_killed_process_are_gone(tiny_dir):
    assert [path.name for path in (tiny_dir / "glyphs/tiny").iterdir()] == ["1.0.0"]
    (tiny_dir / "glyphs/tiny/1.0.0.lock").touch()  # by one that was killed at its very end
    prepared(tiny_dir)
    assert [path.name for path in (tiny_dir / "glyphs/tiny").iterdir()] == ["1.0.0"]


def test_half_a_set_is_drawn_again(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(glyphs.SPLITS, "tiny", {"train": 20, "validation": 10})
    shutil.copytree(tiny_dir / "glyphs", tmp_path / "glyphs")
    (tmp_path / "glyphs/tiny/1.0.0/dataset_info.json").unlink()
    assert prepared(tmp_path).info.splits["train"].num_examples == 20


def test_reads_back_what_was_drawn(tiny_dir):
    import tensorflow_datasets as tfds

    def thumbnail(image):
        return image.reshape(16, 16, 16, 16, 3).mean((1, 3), dtype=np.float32)

    made = prepared(tiny_dir)
    assert made.info.features["label"].names == list(glyphs.LETTERS)
    for split, size in glyphs.SPLITS["tiny"].items():
        drawn = [glyphs.draw(glyphs.SEEDS[split], index) for index in range(size)]
        thumbnails = np.stack([thumbnail(image) for image, _ in drawn])
        found = []
        stored = made.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}).as_numpy_iterator()
        for example in stored:
            pixels = np.asarray(Image.open(io.BytesIO(example["image"])))
            found.append(int(np.abs(thumbnails - thumbnail(pixels)).mean((1, 2, 3)).argmin()))
            image, label = drawn[found[-1]]
            assert np.abs(pixels - image.astype(np.float32)).mean() < 8, "JPEG moves a value by a few levels, not more"
            assert label == example["label"]
        assert sorted(found) == list(range(size))


def test_second_call_draws_nothing(tiny_dir, monkeypatch):
    monkeypatch.setattr(glyphs, "draw", None)
    assert prepared(tiny_dir).info.splits["train"].num_examples == 256


def test_the_second_of_two_waits_and_takes_the_copy_of_the_first(tiny_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(glyphs, "draw", None)
    (tmp_path / "glyphs/tiny").mkdir(parents=True)
    found = []
    second = threading.Thread(target=lambda: found.append(prepared(tmp_path)))
    with files.alone(tmp_path / "glyphs/tiny/1.0.0.lock"):
        second.start()
        while "waiting for another process to draw glyphs" not in capsys.readouterr().err:
            second.join(0.01)
            assert second.is_alive()
        shutil.copytree(tiny_dir / "glyphs/tiny/1.0.0", tmp_path / "glyphs/tiny/1.0.0")
    second.join(60)
    assert {name: split.num_examples for name, split in found[0].info.splits.items()} == glyphs.SPLITS["tiny"]
    assert [path.name for path in (tmp_path / "glyphs/tiny").iterdir()] == ["1.0.0"]


def test_unwritable_folder_says_so(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="prepared_dir"):
        prepared(tmp_path / "file")


def test_a_full_disk_is_one_line_and_with_room_the_same_call_succeeds(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setitem(glyphs.SPLITS, "tiny", {"train": 20, "validation": 10})
    for room in (0, 100_000):
        with full_disk(room), pytest.raises(UserError, match="room, or .*--config.data.prepared_dir=") as caught:
            prepared(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        assert list((tmp_path / "glyphs/tiny").iterdir()) == []
    assert prepared(tmp_path).info.splits["train"].num_examples == 20
