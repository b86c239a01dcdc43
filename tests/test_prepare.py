"""Preparing: what becomes of every kind of image, exact statistics, and a whole set or none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.prepare import prepare
from configs import paper

ROOT = Path(__file__).parent.parent


def data_config(name, prepared_dir, **changes):
    config = paper.get_config().data
    config.update(
        {"name": str(name), "prepared_dir": str(prepared_dir), "size": 32, "validation_fraction": 0.3} | changes
    )
    return config


def make_folder(root, per_class=12, classes=("ant", "bee", "cat")):
    """Photos of random colours and sizes, flat: root/<class>/<number>.png."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(rng.integers(33, 80, 2), Image.Resampling.BICUBIC)
            image.save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    return prepare(data_config(photos, tmp_path_factory.mktemp("prepared")))


def run(code, *args):
    """Starts Python on code, with prepare and data_config at hand; args are sys.argv[1:]."""
    header = (
        "import os, signal, sys, time\nfrom alexnet_jax import prepare\nfrom tests.test_prepare import data_config\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", header + code, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


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


def test_statistics_are_those_of_the_decoded_training_images(prepared):
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


def test_preparing_again_gives_the_same_bytes(photos, prepared, tmp_path):
    again = prepare(data_config(photos, tmp_path))
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
    assert len({prepare(data_config(photos, tmp_path, **change)).directory for change in changes}) == len(changes)


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
prepare.prepare(data_config(*sys.argv[3:]))
"""


@pytest.mark.parametrize("place", [("frame", 5), ("_statistics", 2), ("_sync", 8)])
def test_a_killed_preparation_leaves_nothing_that_looks_whole(place, photos, prepared, tmp_path):
    process = run(KILL_DURING, *place, photos, tmp_path)
    assert process.wait(60) == -9, process.stderr.read()
    name = prepared.directory.name
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.lock", f"{name}.partial"]
    (tmp_path / f"{name}.partial" / "leftover").touch()
    made = prepare(data_config(photos, tmp_path))
    assert contents(made.directory) == contents(prepared.directory)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, f"{name}.lock"]


WRITE_SLOWLY = """
whole = prepare._write_set
def slow(*args):
    print("writes", flush=True)
    while not os.path.exists(sys.argv[2] + ".go"):
        time.sleep(0.01)
    whole(*args)
prepare._write_set = slow
print(len(prepare.prepare(data_config(*sys.argv[1:])).train))
"""


def test_of_two_processes_one_prepares_and_the_other_waits(photos, prepared, tmp_path):
    first = run(WRITE_SLOWLY, photos, tmp_path)
    assert first.stdout.readline() == "writes\n"
    second = run(WRITE_SLOWLY, photos, tmp_path)
    while "waiting for another process" not in (line := second.stderr.readline()):
        assert line, second.communicate()
    Path(f"{tmp_path}.go").touch()
    assert second.communicate(timeout=60)[0] == f"{len(prepared.train)}\n"
    assert first.communicate(timeout=60)[0] == f"{len(prepared.train)}\n"


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    prepare.prepare(data_config(*sys.argv[1:]))
except prepare.UserError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_rest(photos, prepared, tmp_path):
    out, err = run(FULL_DISK, photos, tmp_path).communicate(timeout=60)
    assert str(tmp_path) in out and "--config.data.prepared_dir=" in out and out.count("\n") == 1, err
    assert [p.name for p in tmp_path.iterdir()] == [f"{prepared.directory.name}.lock"]


# ---------------------------------------------------------------- what the user can mend


def test_errors_about_folders_are_one_line(photos, tmp_path):
    def message(name, **changes):
        with pytest.raises(UserError) as caught:
            prepare(data_config(name, changes.pop("prepared_dir", tmp_path / "prepared"), **changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no folder /no/such/folder" in message("/no/such/folder")
    assert "no split 'test'" in message(photos, eval_split="test")
    assert "no images for split 'validation'" in message(photos, validation_fraction=0.0)
    assert "inside the images' own folder" in message(photos, prepared_dir=photos / "prepared")
    (tmp_path / "file").touch()
    assert "--config.data.prepared_dir=" in message(photos, prepared_dir=tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    assert "no images for split 'train'" in message(tmp_path / "empty")
    for path in ("train/a", "validation/b"):
        (tmp_path / "strange" / path).mkdir(parents=True)
        (tmp_path / "strange" / path / "x.jpg").write_text("no image")
    assert "has classes that" in message(tmp_path / "strange")
    (tmp_path / "strange" / "validation" / "b").rename(tmp_path / "strange" / "validation" / "a")
    assert "no image that is not damaged" in message(tmp_path / "strange")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "imagenet2012",
            ["ILSVRC2012_img_train.tar", "downloads/manual", "tfds build imagenet2012", "paper.py:glyphs"],
        ),
        ("mnist", ["tfds.builder('mnist'", "download_and_prepare()", "paper.py:glyphs"]),
        ("no_such_set", ["no TFDS data set 'no_such_set'", "paper.py:glyphs"]),
        ("imagenette/no_such_config", ["no TFDS data set 'imagenette/no_such_config'"]),
        ("huggingface:mnist", ["no TFDS data set 'huggingface:mnist'"]),
    ],
)
def test_a_missing_tfds_set_is_one_line_that_says_how_to_get_it(name, said, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError) as caught:
        prepare(data_config(name, tmp_path / "prepared", data_dir=str(tmp_path / "tfds")))
    assert "\n" not in str(caught.value)
    assert all(words in str(caught.value) for words in said), caught.value


# ---------------------------------------------------------------- TFDS


def test_glyphs_are_prepared_from_nothing_and_carried_to_where_tensorflow_is_not(tmp_path, monkeypatch):
    made = prepare(data_config("glyphs/tiny", tmp_path))
    assert (len(made.train), len(made.evaluation), len(made.classes)) == (256, 64, 10)
    assert made.train.images().std() > 20
    shutil.copytree(made.directory, tmp_path / "elsewhere" / made.directory.name)
    for module in ("tensorflow", "tensorflow_datasets", "alexnet_jax.glyphs"):
        monkeypatch.setitem(sys.modules, module, None)
    carried = prepare(data_config("glyphs/tiny", tmp_path / "elsewhere"))
    np.testing.assert_array_equal(carried.train.images(), made.train.images())


@pytest.mark.real_data
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set: no real images here")
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
