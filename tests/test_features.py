"""Features on disk are what the network says of each image, and a file is whole or not there."""

import dataclasses
import json
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import verbs
from helpers.runs import full_disk
from PIL import Image

from alexnet_jax import UserError, files
from alexnet_jax.analysis import features
from alexnet_jax.data import photos
from alexnet_jax.data.images import SplitImages
from alexnet_jax.data.prepare import prepare


def extract(workdir, images, out, *flags, layers=("fc7",)):
    """Runs the command; returns its exit status and the arrays."""
    named = [f"--layer={name}" for name in layers]
    status = verbs.run(features, f"--workdir={workdir}", f"--images={images}", f"--out={out}", *named, *flags)
    return status, read(out)


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("which", ["validation", "train"])
def test_a_splits_features_are_what_the_run_says_of_its_images(tiny_run, run, tmp_path, which):
    """33 or 96 images in batches of 10: the padding of the last leaves no trace."""
    layers = ("conv1", "pool2", "fc6", "fc8")
    status, found = extract(tiny_run, which, tmp_path / "f.npz", "--batch_size=10", layers=layers)
    prepared = prepare(run.config.data)
    split = prepared.train if which == "train" else prepared.evaluation
    logits, activations = run(split.images())
    assert status == 0 and names(tmp_path) == ["f.npz"]
    assert found.keys() == {*layers, "ids", "labels", "classes", "workdir", "step", "config"}
    for name in layers:
        assert found[name].dtype == np.float32
        close(found[name], activations[name])
    close(found["fc8"], logits)
    assert found["ids"].tolist() == split.ids and found["labels"].dtype == np.int32
    np.testing.assert_array_equal(found["labels"], split.labels)
    assert found["classes"].tolist() == run.classes and found["step"] == run.step
    assert found["workdir"] == str(tiny_run)
    assert json.loads(str(found["config"])) == json.loads((tiny_run / "config.json").read_text())


@pytest.mark.parametrize("devices", ["1x2", "2x1", "2x2"])
def test_on_more_devices_they_are_the_same(tiny_run, tmp_path, devices):
    layers = ("norm1", "conv3", "fc7")
    one, many = (
        extract(tiny_run, "validation", tmp_path / f"{d}.npz", f"--devices={d}", "--batch_size=12", layers=layers)[1]
        for d in ("1x1", devices)
    )
    for name in layers:
        close(many[name], one[name])
    assert many["ids"].tolist() == one["ids"].tolist()


def test_a_bfloat16_network_gives_float32(tiny_run, run, tmp_path):
    changed = json.loads((tiny_run / "config.json").read_text())
    changed["model"]["dtype"] = "bfloat16"
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("checkpoints", "statistics.npz"):
        (copy / name).symlink_to(tiny_run / name)
    (copy / "config.json").write_text(json.dumps(changed))
    found = extract(copy, "validation", tmp_path / "f.npz")[1]["fc7"]
    expected = run(prepare(run.config.data).evaluation.images())[1]["fc7"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=4 * 2.0**-8 * np.abs(expected).max())
    assert (found != expected).any()


def test_the_network_is_compiled_once(run):
    """For batches of 10 out of 33 images: it is traced once, on ten images; on one its layers are looked up."""
    seen = []

    def apply(params, images):
        seen.append(images.shape)
        return run.apply(params, images)

    counted = dataclasses.replace(run, apply=apply)
    split = prepare(run.config.data).evaluation
    rows = list(features.extract(counted, ["fc7"], SplitImages(split), 10))
    assert [len(ids) for ids, _, _ in rows] == [10, 10, 10, 3]
    assert seen == [(1, 64, 64, 3), (10, 64, 64, 3)]


def odd_photos(folder):
    """Photos of one colour each, in every mode; returns {name: RGB} and the name of one that is cut short."""
    folder.mkdir(exist_ok=True)
    solid = {
        "grey.png": (Image.new("L", (90, 40), 90), (90, 90, 90)),
        "cmyk.tif": (Image.new("CMYK", (80, 100), (0, 0, 0, 155)), (100, 100, 100)),
        "one.png": (Image.new("RGB", (1, 1), (10, 200, 30)), (10, 200, 30)),
        "clear.png": (Image.new("RGBA", (75, 75), (9, 9, 9, 0)), (255, 255, 255)),
        "deep.png": (Image.new("I;16", (73, 99), 50 << 8), (50, 50, 50)),
        "wide.bmp": (Image.new("RGB", (300, 2), (1, 2, 3)), (1, 2, 3)),
    }
    palette = Image.new("P", (72, 72), 3)
    palette.putpalette([value for i in range(256) for value in (i, 10 * i % 256, 255 - i)])
    solid["palette.gif"] = palette, (3, 30, 252)
    for name, (image, _) in solid.items():
        image.save(folder / name)
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return {name: color for name, (_, color) in solid.items()}


def test_photos_of_every_mode_and_a_damaged_one(tiny_run, run, tmp_path, capsys):
    colors = odd_photos(tmp_path / "odd")
    status, found = extract(tiny_run, tmp_path / "odd", tmp_path / "f.npz", "--batch_size=3")
    assert status == 1
    errors = capsys.readouterr().err
    assert f"unreadable: {tmp_path / 'odd' / 'cut.jpg'}: " in errors and "truncated" in errors
    assert "1 of 8 photos could not be read" in errors
    assert found["ids"].tolist() == [str(tmp_path / "odd" / name) for name in sorted(colors)]
    images = np.stack([np.full((72, 72, 3), colors[name], np.uint8) for name in sorted(colors)])
    close(found["fc7"], run(images)[1]["fc7"])
    assert found["labels"].tolist() == [-1] * 7


def test_a_photos_label_is_its_folders_name(tiny_run, run, photos, tmp_path):
    """Of a folder of class folders and of one photo alone; a folder that is no class gives -1."""
    mixed = tmp_path / "mixed"
    for folder in ("red", "blue", "mauve"):
        (mixed / folder).mkdir(parents=True)
        source = photos / "validation" / ("blue" if folder == "mauve" else folder)
        (mixed / folder / "a.png").symlink_to(source / "0.png")
    found = extract(tiny_run, mixed, tmp_path / "f.npz")[1]
    assert found["ids"].tolist() == [str(mixed / folder / "a.png") for folder in ("blue", "mauve", "red")]
    assert found["labels"].tolist() == [run.classes.index("blue"), -1, run.classes.index("red")]
    one = extract(tiny_run, mixed / "red" / "a.png", tmp_path / "one.npz", "--devices=2x1")[1]
    assert one["labels"].tolist() == [run.classes.index("red")] and one["fc7"].shape == found["fc7"][2:].shape
    close(one["fc7"], found["fc7"][2:])


def test_names_that_are_not_utf8_come_back(tiny_run, photos, tmp_path):
    path = tmp_path / "caf\udce9.png"
    path.write_bytes((photos / "train" / "red" / "0.png").read_bytes())
    assert extract(tiny_run, path, tmp_path / "f.npz")[1]["ids"].tolist() == [str(path)]


def some_rows(batches=5, size=4):
    """Batches as features.extract yields them."""
    rng = np.random.default_rng(0)
    for i in range(batches):
        maps = {"conv1": rng.normal(size=(size, 3, 2, 5)), "fc7": rng.normal(size=(size, 6))}
        ids = [f"image {i} {'x' * (i + row)}" for row in range(size)]
        yield ids, rng.integers(0, 9, size).astype(np.int32), {k: v.astype(np.float32) for k, v in maps.items()}


def test_written_in_pieces_is_written_at_once(tmp_path):
    ids, labels, maps = zip(*some_rows(), strict=True)
    at_once = {name: np.concatenate([m[name] for m in maps]) for name in maps[0]}
    at_once |= {"ids": np.array([i for some in ids for i in some]), "labels": np.concatenate(labels)}
    np.savez(tmp_path / "once.npz", **at_once, step=np.array(7))
    assert features.write(tmp_path / "pieces.npz", ["conv1", "fc7"], some_rows(), {"step": np.array(7)}) == 20
    once, pieces = read(tmp_path / "once.npz"), read(tmp_path / "pieces.npz")
    assert once.keys() == pieces.keys()
    for name, array in once.items():
        assert pieces[name].dtype == array.dtype and pieces[name].flags.c_contiguous
        np.testing.assert_array_equal(pieces[name], array)


def test_memory_holds_a_batch_and_not_the_set(tmp_path):
    refs, most = [], 0

    def rows():
        nonlocal most
        for ids, labels, maps in some_rows(batches=20):
            refs.extend(weakref.ref(array) for array in maps.values())
            most = max(most, sum(ref() is not None for ref in refs))
            yield ids, labels, maps

    features.write(tmp_path / "f.npz", ["conv1", "fc7"], rows(), {})
    assert len(refs) == 40 and most <= 4  # the batch that comes and the one that goes


@pytest.mark.parametrize("raised", [KeyboardInterrupt, UserError, ValueError])
@pytest.mark.parametrize("when", ["among the batches", "while joining"])
def test_interrupted_it_leaves_what_was_there(tmp_path, monkeypatch, raised, when):
    path = tmp_path / "f.npz"
    features.write(path, ["fc7"], some_rows(1), {})
    before = path.read_bytes()

    def stop(*_):
        raise raised

    def rows():
        yield from some_rows(3)
        if when == "among the batches":
            stop()

    if when == "while joining":
        monkeypatch.setattr(features.shutil, "copyfileobj", stop)
    for out in (path, tmp_path / "new.npz"):
        with pytest.raises(raised):
            features.write(out, ["conv1", "fc7"], rows(), {})
    assert names(tmp_path) == ["f.npz"] and path.read_bytes() == before


@pytest.mark.parametrize("room", [4_000, 12_000])
def test_a_disk_that_fills_up_is_one_line(tmp_path, room):
    """Within the parts, and while they are joined: 100 x (30 + 6) x 4 bytes."""
    with full_disk(room), pytest.raises(UserError, match=r"cannot write .*f\.npz \(File too large\)"):
        features.write(tmp_path / "f.npz", ["conv1", "fc7"], some_rows(25), {})
    assert names(tmp_path) == []


def test_too_little_room_is_said_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 33 * 128 * 4 - 1))
    monkeypatch.setattr(features, "extract", None)
    with pytest.raises(UserError, match="it needs 33,792 bytes while it is written, and the disk has 33,791 left"):
        features.save(run, ["fc7"], SplitImages(prepare(run.config.data).evaluation), tmp_path / "f.npz", 10)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layer": "fc9"}, "no layer fc9: it has conv1, .*, pool5"),
        ({"images": "nowhere"}, "no file or folder nowhere; the run's own splits are validation and train"),
        ({"images": "{tmp}/bare"}, "no photos in"),
        ({"images": "{tmp}/text.png"}, "none of the 1 photos can be read"),
        ({"devices": "2"}, "'2' is not data x tower"),
        ({"devices": "0x1"}, "'0x1' is not data x tower"),
        ({"devices": "2000x1"}, "2,000 devices, and at most 1024 are possible"),
        ({"devices": "1x3"}, "devices.tower is 3 and must be 1 or 2"),
        ({"devices": "3x1", "batch_size": "10"}, "--batch-size=10 must be a positive multiple of the 3"),
        ({"batch_size": "0"}, "--batch-size=0"),
        ({"out": "{tmp}/none/f.npz"}, "cannot write .*none/f.npz"),
        ({"out": "{tmp}/bare"}, "is a folder"),
        ({"out": "{tmp}/pipe"}, "is a device or a pipe"),
        ({"images": "{tmp}/pipe"}, "none of the 1 photos can be read"),
        ({"images": "~nobody_at_all/photos"}, "no file or folder ~nobody_at_all/photos"),
    ],
)
def test_what_the_user_gets_wrong_is_said(tiny_run, tmp_path, changed, said):
    (tmp_path / "bare").mkdir()
    (tmp_path / "text.png").write_text("not a photo")
    os.mkfifo(tmp_path / "pipe")
    flags = {"workdir": tiny_run, "images": "validation", "layer": "fc7", "out": tmp_path / "f.npz"} | changed
    with pytest.raises(UserError, match=said):
        verbs.run(features, *(f"--{name}={str(value).format(tmp=tmp_path)}" for name, value in flags.items()))
    assert names(tmp_path) == ["bare", "pipe", "text.png"]


def test_what_a_killed_process_left_is_taken_over_and_a_living_one_is_left_alone(tmp_path):
    (tmp_path / "f.npz.tmp").write_bytes(bytes(10**6))
    with files.alone(tmp_path / "f.npz.tmp"), pytest.raises(UserError, match="another process writes .*f.npz"):
        features.write(tmp_path / "f.npz", ["fc7"], some_rows(1), {})
    (tmp_path / "f.npz.tmp").write_bytes(bytes(10**6))
    assert features.write(tmp_path / "f.npz", ["fc7"], some_rows(1), {}) == 4
    assert names(tmp_path) == ["f.npz"] and read(tmp_path / "f.npz")["fc7"].shape == (4, 6)


def test_the_command_makes_its_devices_and_says_what_failed(tiny_run, run, tmp_path):
    colors = odd_photos(tmp_path / "odd")
    command = [
        sys.executable, "-m", "alexnet_jax", "features", f"--workdir={tiny_run}", f"--images={tmp_path / 'odd'}",
        "--layer=fc7", "--devices=1x2", f"--out={tmp_path / 'f.npz'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "unreadable: " in done.stderr and "Traceback" not in done.stderr
    assert "7 images" in done.stdout and "(7, 128)" in done.stdout
    images = np.stack([np.asarray(photos.square(tmp_path / "odd" / name, 72)) for name in sorted(colors)])
    close(read(tmp_path / "f.npz")["fc7"], run(images)[1]["fc7"])
