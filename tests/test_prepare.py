"""Preparing: what becomes of every kind of image, exact statistics, a complete set or none."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.folders import contents, data_config, make_folder, message, needs
from helpers.runs import full_disk
from PIL import Image

from alexnet_jax import UserError, files
from alexnet_jax.data.glyphs import LETTERS, draw
from alexnet_jax.data.photos import square
from alexnet_jax.data.prepare import _folder_name, prepare

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    return prepare(data_config(photos, tmp_path_factory.mktemp("prepared")))


@pytest.fixture(scope="module")
def raw(photos, tmp_path_factory):
    return prepare(data_config(photos, tmp_path_factory.mktemp("raw"), stored="raw"))


@pytest.fixture(params=["jpeg", "raw"])
def form(request):
    """The two forms in which images are stored."""
    return request.param


def run(code, photos, directory, *args):
    """Starts Python on code, with the module `prepare` and a `config` at hand; args are sys.argv[1:]."""
    config = data_config(photos, directory).to_json()
    header = f"""
import json, os, signal, sys, time
from ml_collections import ConfigDict
from alexnet_jax.data import prepare
config = ConfigDict(json.loads({config!r}))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", header + code, *map(str, args)], cwd=ROOT, **pipes)


# ---------------------------------------------------------------- images


def solid(mode, colour, size=(40, 50)):
    return Image.new(mode, size, colour)


def palette():
    image = solid("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


KINDS = {
    "rgb.png": (solid("RGB", (10, 120, 230)), (10, 120, 230)),
    "rgb.jpg": (solid("RGB", (10, 120, 230)), (10, 120, 230)),
    "grey.png": (solid("L", 90), (90, 90, 90)),
    "grey.jpeg": (solid("L", 90), (90, 90, 90)),
    "cmyk.jpg": (solid("CMYK", (255, 0, 255, 0)), (0, 255, 0)),
    "palette.png": (palette(), (200, 100, 50)),
    "palette.gif": (palette(), (200, 100, 50)),
    "clear.png": (solid("RGBA", (10, 120, 230, 0)), (255, 255, 255)),
    "half.png": (solid("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
    "grey_alpha.png": (solid("LA", (50, 0)), (255, 255, 255)),
    "deep.png": (solid("I;16", 0x8040), (128, 128, 128)),
    "bits.png": (solid("1", 1), (255, 255, 255)),
    "tiny.bmp": (solid("RGB", (10, 120, 230), (1, 3)), (10, 120, 230)),
    "long.PNG": (solid("RGB", (10, 120, 230), (3, 900)), (10, 120, 230)),
    "large.jpg": (solid("RGB", (10, 120, 230), (700, 500)), (10, 120, 230)),
}


@pytest.mark.filterwarnings("ignore")  # pytest replaces the filters of photos.py
def test_every_kind_of_image_becomes_rgb_and_damaged_ones_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)  # Pillow refuses twice as much
    folder = tmp_path / "source" / "kind"
    folder.mkdir(parents=True)
    for name, (image, _) in KINDS.items():
        image.save(folder / name)
    whole = (folder / "large.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    solid("1", 0, (1000, 500)).save(folder / "bomb.png")
    (folder / "notes.txt").write_text("no image, and not named like one")
    shutil.copytree(folder, tmp_path / "source" / "train" / "kind")
    folder.rename(tmp_path / "source" / "validation")
    (tmp_path / "source" / "validation" / "kind").mkdir()
    solid("L", 0).save(tmp_path / "source" / "validation" / "kind" / "one.png")

    made = prepare(data_config(tmp_path / "source", tmp_path / "prepared"))
    images = made.train.images()
    assert images.shape == (len(KINDS), 32, 32, 3) and images.dtype == np.uint8
    for name, image in zip(made.train.ids, images, strict=True):
        expected = KINDS[name.removeprefix("kind/")][1]
        np.testing.assert_allclose(image.reshape(-1, 3), np.broadcast_to(expected, (1024, 3)), atol=3, err_msg=name)
    meta = json.loads((made.directory / "meta.json").read_text())
    damaged = {"kind/truncated.jpg", "kind/empty.png", "kind/text.jpg", "kind/bomb.png"}
    assert set(meta["splits"]["train"]["damaged"]) == damaged
    said = capsys.readouterr().err
    assert all(name in said for name in damaged) and "left out 4 damaged images" in said
    assert "is left out: kind/notes.txt; names of photos end in .bmp, " in said


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EIO, "Input/output error"), "cannot be read .* which may pass: start the same command again"),
        (MemoryError(), "cannot be read .* which may pass"),
        (PermissionError(errno.EACCES, "Permission denied"), "may not be read: make it readable, or remove it"),
    ],
)
def test_a_machine_that_fails_damages_no_photo(photos, tmp_path, monkeypatch, error, says):
    """A set that lacks photos because of it would be used for ever."""
    monkeypatch.setattr("alexnet_jax.data.photos.opened", lambda photo: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=says):
        prepare(data_config(photos, tmp_path))
    assert not list(tmp_path.glob("*/meta.json"))


def test_training_photos_stay_as_they_lie(tmp_path):
    """EXIF orientation 6 would turn their left to the top; the 2012 code did not look at it."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45], pixels[:, 45:] = (200, 0, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        (tmp_path / "source" / split / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "source" / split / "a" / "phone.jpg", quality=95, exif=exif)
    [image] = prepare(data_config(tmp_path / "source", tmp_path / "prepared")).train.images()
    assert image[:, :12, 0].min() > 150 and image[:, 20:, 2].min() > 150


def test_the_centre_is_cut_out_after_scaling_the_shorter_side(tmp_path):
    stripes = np.repeat(np.eye(3, dtype=np.uint8) * 255, 100, axis=0)[None].repeat(100, axis=0)  # red, green, blue
    for split in ("train", "val"):
        (tmp_path / "source" / split / "a").mkdir(parents=True)
        Image.fromarray(stripes).save(tmp_path / "source" / split / "a" / "wide.png")
        Image.fromarray(stripes.swapaxes(0, 1)).save(tmp_path / "source" / split / "a" / "tall.png")
    images = prepare(data_config(tmp_path / "source", tmp_path / "prepared")).train.images()
    inner = images[:, 2:-2, 2:-2]  # the filter mixes the stripes where they meet, at the very edge
    np.testing.assert_allclose(inner, np.broadcast_to((0, 255, 0), inner.shape), atol=3)


# ---------------------------------------------------------------- the set


def test_labels_and_names_follow_the_folders(prepared):
    assert prepared.classes == ["ant", "bee", "cat"]
    assert len(prepared.train) + len(prepared.evaluation) == 36
    for split in (prepared.train, prepared.evaluation):
        assert split.ids == sorted(split.ids)
        assert [prepared.classes[label] for label in split.labels] == [name.split("/")[0] for name in split.ids]
        assert split.labels.dtype == np.int32


def test_statistics_are_those_of_the_training_images_as_they_are_read(form, prepared, raw):
    prepared = raw if form == "raw" else prepared
    images = prepared.train.images().astype(np.float64)
    pixels = images.reshape(-1, 3)
    statistics = prepared.statistics
    assert {key: value.dtype for key, value in statistics.items()} == dict.fromkeys(statistics, np.float32)
    np.testing.assert_allclose(statistics["mean"], images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics["channel_mean"], pixels.mean(0), rtol=1e-6)
    vectors, stdevs = statistics["vectors"].astype(np.float64), statistics["stdevs"]
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(covariance @ vectors, vectors * stdevs**2, rtol=1e-4, atol=1e-2)


def test_preparing_again_gives_the_same_bytes(form, photos, prepared, raw, tmp_path):
    prepared = raw if form == "raw" else prepared
    again = prepare(data_config(photos, tmp_path, stored=form))
    assert again.directory.name == prepared.directory.name
    assert contents(again.directory) == contents(prepared.directory)


def test_new_files_do_not_move_others_between_splits(tmp_path):
    source = make_folder(tmp_path / "source")
    before = prepare(data_config(source, tmp_path / "before", validation_fraction=0.4))
    for i in range(100, 110):
        shutil.copy(source / "ant" / "000.png", source / "ant" / f"{i}.png")
    after = prepare(data_config(source, tmp_path / "after", validation_fraction=0.4))
    assert set(before.train.ids) < set(after.train.ids) and set(before.evaluation.ids) < set(after.evaluation.ids)


def test_whatever_changes_the_content_gets_a_folder_of_its_own(photos, tmp_path):
    changes = [{}, {"validation_fraction": 0.5}, {"eval_split": "train"}, {"size": 16}, {"resize": "warp"}]
    changes += [{"stored": "raw"}, {"stored": "raw", "resize": "warp"}]
    assert len({prepare(data_config(photos, tmp_path, **change)).directory for change in changes}) == len(changes)


def test_folders_of_jpegs_are_called_as_before_there_was_another_form():
    for name, root, called in (
        ("glyphs/tiny", None, "glyphs_tiny-32px-1f8eb1f95b"),
        ("any", Path("/photos"), "photos-32px-4cc06fa5fa"),
    ):
        assert _folder_name(data_config(name, ""), root) == called
        assert _folder_name(data_config(name, "", stored="raw"), root) != called


def test_both_forms_hold_the_same_photos_in_one_cache(photos, tmp_path):
    """Raw ones bit for bit as they come; JPEGs nearly so."""
    for split in ("train", "validation"):
        for source in sorted(photos.glob("*/*.png"))[:: 1 if split == "train" else 3]:
            path = tmp_path / "square" / split / source.parent.name / source.name
            path.parent.mkdir(parents=True, exist_ok=True)
            square(source, 32).save(path)
    jpegs, raw = (prepare(data_config(tmp_path / "square", tmp_path / "c", stored=form)) for form in ("jpeg", "raw"))
    assert jpegs.directory != raw.directory and jpegs.directory.parent == raw.directory.parent
    assert jpegs.classes == raw.classes
    for this, that, split in ((jpegs.train, raw.train, "train"), (jpegs.evaluation, raw.evaluation, "validation")):
        assert this.ids == that.ids and this.labels.tolist() == that.labels.tolist()
        came = [np.asarray(Image.open(tmp_path / "square" / split / name)) for name in that.ids]
        np.testing.assert_array_equal(that.images(), came)
        assert 0 < np.abs(this.images().astype(int) - that.images()).mean() < 3
    again = prepare(data_config(tmp_path / "square", tmp_path / "c"))
    assert again.directory == jpegs.directory and len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize("split", ["", "train"])
def test_photos_that_were_added_later_are_warned_of(tmp_path, capsys, split):
    """They are not read: which photos a run is trained on does not change while it lasts."""
    make_folder(tmp_path / "source" / split)
    config = data_config(tmp_path / "source", tmp_path / "prepared")
    first = prepare(config)
    assert "were added" not in capsys.readouterr().err
    for name, counts in ((".DS_Store", False), ("notes.txt", False), ("new.png", True)):
        os.utime(first.directory / "meta.json")
        time.sleep(0.05)  # more than a file system's clock needs
        (tmp_path / "source" / split / "ant" / name).write_text("")
        assert len(prepare(config).train) == len(first.train)
        said = capsys.readouterr().err
        assert (f"{tmp_path / 'source'} has photos that were added" in said) == counts, name
    assert f"delete {first.directory} and train in a new --workdir" in said


def test_a_prepared_set_outlives_its_source(tmp_path):
    config = data_config(make_folder(tmp_path / "source"), tmp_path / "prepared")
    first = prepare(config)
    shutil.rmtree(tmp_path / "source")
    second = prepare(config)
    np.testing.assert_array_equal(first.train.images(), second.train.images())


def test_prepared_sets_go_to_the_cache_folder_unless_told_otherwise(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepare(data_config(photos, "")).directory.parent == tmp_path / "alexnet_jax"


# ---------------------------------------------------------------- whole or none

KILL_DURING = """
whole, left = getattr(prepare, sys.argv[1]), int(sys.argv[2])
def killer(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
setattr(prepare, sys.argv[1], killer)
prepare.prepare(config)
"""


@pytest.mark.parametrize("place", [("frame", 5), ("_statistics", 2), ("_sync", 8)])
def test_a_killed_preparation_leaves_nothing_that_looks_complete(place, photos, prepared, tmp_path):
    process = run(KILL_DURING, photos, tmp_path, *place)
    assert process.wait(60) == -9, process.stderr.read()
    name = prepared.directory.name
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.lock", f"{name}.partial"]
    (tmp_path / f"{name}.partial" / "leftover").touch()
    made = prepare(data_config(photos, tmp_path))
    assert contents(made.directory) == contents(prepared.directory)
    assert [p.name for p in tmp_path.iterdir()] == [name]


WRITE_SLOWLY = """
whole = prepare._write_set
def slow(*args, **kwargs):
    print("writes", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    whole(*args, **kwargs)
prepare._write_set = slow
print(len(prepare.prepare(config).train))
"""


def test_of_two_processes_one_prepares_and_the_other_waits(photos, prepared, tmp_path):
    first = run(WRITE_SLOWLY, photos, tmp_path, f"{tmp_path}.go")
    assert first.stdout.readline() == "writes\n"
    second = run(WRITE_SLOWLY, photos, tmp_path, f"{tmp_path}.go")
    while "waiting for another process" not in (line := second.stderr.readline()):
        assert line, second.communicate()
    Path(f"{tmp_path}.go").touch()
    assert second.communicate(timeout=60)[0] == f"{len(prepared.train)}\n"
    assert first.communicate(timeout=60)[0] == f"{len(prepared.train)}\n"


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(form, photos, prepared, raw, tmp_path):
    """At any file. With room the same call succeeds."""
    prepared = raw if form == "raw" else prepared
    largest = max(path.stat().st_size for path in prepared.directory.iterdir())
    for room in (0, 200, 700, 9000, largest - 1):
        with full_disk(room):
            said = message(photos, tmp_path, stored=form)
        assert str(tmp_path) in said and "make room, or" in said and "--config.data.prepared_dir=" in said
        assert list(tmp_path.iterdir()) == []
    assert contents(prepare(data_config(photos, tmp_path, stored=form)).directory) == contents(prepared.directory)


def test_a_raw_set_that_does_not_fit_is_refused_before_it_is_written(photos, tmp_path, monkeypatch):
    """With the numbers: 36 images of 4096 x 4096 x 3 bytes. JPEGs may fit, and so does what takes less."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_200_000_000))
    with monkeypatch.context() as m:
        m.setattr(Image, "open", None)
        said = message(photos, tmp_path, stored="raw", size=4096)
    assert "the 36 images of" in said and "take 1.8 GB" in said and "has 1.2 GB free" in said
    assert "--config.data.prepared_dir=" in said and "--config.data.stored=jpeg" in said
    assert list(tmp_path.iterdir()) == []
    prepare(data_config(photos, tmp_path, stored="raw"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    prepare(data_config(photos, tmp_path))
    prepare(data_config(photos, tmp_path, stored="raw"))  # it is there


def test_a_disk_that_fails_at_the_last_moment_leaves_nothing_behind(photos, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", refuse)
        assert "No space left" in message(photos, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_of_other_sets_is_removed(photos, prepared, tmp_path):
    """By the next call, even for an existing set. What a living process holds stays, and so do unrelated locks."""
    made = prepare(data_config(photos, tmp_path))
    for name in ("dead-32px-0123456789", "living-32px-0123456789"):
        (tmp_path / f"{name}.partial" / "below").mkdir(parents=True)
        (tmp_path / f"{name}.lock").touch()
    for name in ("uv.lock", "notes-32px.lock"):
        (tmp_path / name).write_text("not ours")
    with files.alone(tmp_path / "living-32px-0123456789.lock"):
        prepare(data_config(photos, tmp_path))
        left = sorted(p.name for p in tmp_path.iterdir())
        stay = ["living-32px-0123456789.lock", "living-32px-0123456789.partial", "notes-32px.lock", "uv.lock"]
        assert left == sorted([made.directory.name, *stay])
    (tmp_path / "living-32px-0123456789.lock").touch()
    prepare(data_config(photos, tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([made.directory.name, *stay[2:]])


# ---------------------------------------------------------------- TFDS


def test_jpegs_are_of_quality_95_with_full_colour(prepared):
    [data] = prepared.train.read([0])
    image, twin = Image.open(io.BytesIO(data)), io.BytesIO()
    Image.new("RGB", (32, 32)).save(twin, "JPEG", quality=95, subsampling=0)
    assert image.quantization == Image.open(twin).quantization
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


@pytest.fixture(scope="module")
def glyphs_dir(tmp_path_factory):
    """Where glyphs/tiny is drawn once, by the first who prepares a set of it."""
    return tmp_path_factory.mktemp("glyphs")


def test_splits_that_share_images_are_refused(glyphs_dir):
    config = data_config("glyphs/tiny", glyphs_dir)
    for training, validation, shared in (
        ("train", "train[90%:]", 26), ("train+validation", "validation", 64), ("train[:90%]", "train[90%:]", 0)
    ):  # fmt: skip
        config.train_split, config.eval_split = training, validation
        assert len(prepare(config).train) > 0  # where nothing learns from it
        if shared:
            with pytest.raises(UserError, match=f"share {shared} images"):
                prepare(config, 10)
        else:
            assert len(prepare(config, 10).evaluation) == 26


def test_glyphs_are_prepared_and_copied_to_a_machine_without_tensorflow(glyphs_dir, tmp_path, monkeypatch):
    made = prepare(data_config("glyphs/tiny", glyphs_dir))
    assert (len(made.train), len(made.evaluation), len(made.classes)) == (256, 64, 10)
    images = made.train.images()
    drawn = [draw(0, index) for index in range(len(images))]  # stored in another order
    small = np.stack([square(Image.fromarray(image), images.shape[1]) for image, _ in drawn])[:, ::4, ::4].astype(int)
    which = [np.abs(small - image).mean((1, 2, 3)).argmin() for image in images[:, ::4, ::4]]
    assert sorted(which) == list(range(len(images)))
    assert [made.classes[label] for label in made.train.labels] == [LETTERS[drawn[index][1]] for index in which]
    shutil.copytree(made.directory, tmp_path / "elsewhere" / made.directory.name)
    for module in ("tensorflow", "tensorflow_datasets", "alexnet_jax.data.glyphs"):
        monkeypatch.setitem(sys.modules, module, None)
    carried = prepare(data_config("glyphs/tiny", tmp_path / "elsewhere"))
    np.testing.assert_array_equal(carried.train.images(), images)


@pytest.mark.real_data
@needs("imagenette")
def test_imagenette_is_prepared_from_its_tfds_files(tmp_path):
    changes = {"train_split": "train[:200]", "eval_split": "validation[:50]", "size": 64}
    config = data_config("imagenette/160px-v2", tmp_path, **changes)
    made = prepare(config)
    assert (len(made.train), len(made.evaluation), len(made.classes)) == (200, 50, 10)
    assert made.classes[0] == "n01440764"
    assert len(set(made.train.ids)) == 200 and len(set(made.train.labels)) == 10
    images = made.train.images()
    assert images.shape == (200, 64, 64, 3)
    np.testing.assert_allclose(made.statistics["mean"], images.mean(0), atol=1e-3)
    # Photographs vary most in brightness, along (1, 1, 1).
    assert np.abs(made.statistics["vectors"][:, 2].sum()) / np.sqrt(3) > 0.95
    config.eval_split = "no_such_split"
    with pytest.raises(UserError, match="no split 'no_such_split'"):
        prepare(config)
