"""Prepared sets on disk: reading any image, records that TensorFlow accepts, damage that names the folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.data import records
from alexnet_jax.data.images import subset
from alexnet_jax.data.prepare import prepare
from configs import paper


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def prepared(request, tmp_path_factory):
    """Twelve training and three validation images of 32 x 32."""
    source = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 3)):
        for i in range(count):
            folder = source / split / ("ant", "bee")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    config = paper.get_config().data
    config.update(name=str(source), prepared_dir=str(tmp_path_factory.mktemp("prepared")), size=32)
    config.stored = request.param
    return prepare(config)


def test_random_access_gives_the_images_asked_for(prepared):
    everything = prepared.train.images()
    np.testing.assert_array_equal(prepared.train.images([5, 0, -1]), everything[[5, 0, -1]])
    assert prepared.train.images([]).shape == (0, 32, 32, 3)


def test_a_subset_is_those_images_in_that_order(prepared):
    split, chosen = prepared.train, [7, 0, 3]
    some = subset(split, chosen)
    assert type(some) is type(split) and some.ids == [split.ids[i] for i in chosen]
    np.testing.assert_array_equal(some.images(), split.images(chosen))
    np.testing.assert_array_equal(some.labels, split.labels[chosen])


@pytest.mark.parametrize("prepared", ["raw"], indirect=True)
def test_numpy_maps_raw_sets(prepared):
    """As the module's docstring says."""
    row = np.dtype([("head", "V12"), ("image", "u1", (32, 32, 3)), ("tail", "V4")])
    images = np.memmap(prepared.directory / "train.tfrecord", row, "r")["image"]
    np.testing.assert_array_equal(images, prepared.train.images())


def test_an_open_set_is_read_from_the_disk_as_needed(prepared, tmp_path):
    """Damage that comes after a set is opened is found, and only in the image that it hits."""
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    split = records.open_prepared(directory).train
    with open(directory / "train.tfrecord", "r+b") as file:
        file.seek(split.offsets[3])
        file.write(bytes(50))
    np.testing.assert_array_equal(split.images([2, 4]), prepared.train.images([2, 4]))
    with pytest.raises(UserError, match="is damaged: delete that folder"):
        split.image(3)


def test_sets_older_than_the_raw_form_are_jpegs(prepared, tmp_path):
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    meta = json.loads((directory / "meta.json").read_text())
    form = meta.pop("stored")
    (directory / "meta.json").write_text(json.dumps(meta))
    if form == "raw":
        check_damaged(directory)
    else:
        np.testing.assert_array_equal(records.open_prepared(directory).train.images(), prepared.train.images())


def test_tensorflow_reads_the_same_records(prepared):
    tf = pytest.importorskip("tensorflow")
    for split in (prepared.train, prepared.evaluation):
        records = tf.data.TFRecordDataset(str(prepared.directory / f"{split.name}.tfrecord"))
        assert [r.numpy() for r in records] == split.read(range(len(split)))


def files(prepared):
    return sorted(path.name for path in prepared.directory.iterdir())


RNG = np.random.default_rng(0)
CORRUPT = {  # from a file's bytes to damaged ones
    "emptied": lambda whole: b"",
    "halved": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"\n",
    "random": lambda whole: RNG.bytes(len(whole)),
    "zeros": lambda whole: bytes(len(whole)),
    "null": lambda whole: b"null",
    "a list": lambda whole: b"[1, 2]",
    "deep": lambda whole: b"[" * 10**5,
    "no zip": lambda whole: b"PK\x03\x04" + RNG.bytes(300),
    "a pickle": lambda whole: b"\x80\x04N.",
    "no array": lambda whole: b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'shape': (" + b"9" * 90,
}


def check_damaged(directory):
    """Opening the set, or reading all of it, says which folder to delete, in one line."""
    with pytest.raises(UserError, match="is damaged: delete that folder") as caught:
        made = records.open_prepared(directory)
        made.train.images()
        made.evaluation.images()
    assert str(directory) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_damaged_file_says_which_folder_to_delete(prepared, tmp_path):
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    assert len(files(prepared)) == 8
    for name in files(prepared):
        whole = (directory / name).read_bytes()
        for what, corrupt in CORRUPT.items():
            if what == "longer" and not name.endswith((".tfrecord", ".txt")):  # JSON and zip accept that
                continue
            (directory / name).write_bytes(corrupt(whole))
            try:
                check_damaged(directory)
            except BaseException as error:
                raise AssertionError(f"{name}, {what}") from error
        (directory / name).unlink()
        check_damaged(directory)
        (directory / name).mkdir()
        check_damaged(directory)
        (directory / name).rmdir()
        (directory / name).write_bytes(whole)
    assert records.open_prepared(directory).classes == prepared.classes


def test_a_flipped_bit_in_an_image_is_detected(prepared, tmp_path):
    """Most such images still decode."""
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    whole = (directory / "train.tfrecord").read_bytes()
    for _ in range(40):
        broken = bytearray(whole)
        broken[RNG.integers(len(whole))] ^= 1 << RNG.integers(8)
        (directory / "train.tfrecord").write_bytes(broken)
        check_damaged(directory)


def index(**changes):
    """Changes of the arrays of train.npz."""
    return lambda arrays: {name: changes.get(name, lambda a: a)(a) for name, a in arrays.items()}


def put(at, value):
    def change(array):
        array = array.copy()
        array[at] = value
        return array

    return change


ARRAYS = {
    "labels out of range": ("train.npz", index(labels=put(3, 2))),
    "negative labels": ("train.npz", index(labels=put(3, -1))),
    "labels of another type": ("train.npz", index(labels=lambda a: a.astype(np.float32))),
    "fewer labels": ("train.npz", index(labels=lambda a: a[:-1])),
    "labels in two dimensions": ("train.npz", index(labels=lambda a: a[:, None])),
    "offsets that are negative": ("train.npz", index(offsets=put(0, -12))),
    "offsets beyond the file": ("train.npz", index(offsets=put(-1, 10**12))),
    "offsets within others": ("train.npz", index(offsets=put(5, 13))),
    "other bytes' order": ("train.npz", index(offsets=lambda a: a.astype(">i8"))),
    "lengths of none": ("train.npz", index(lengths=put(2, 0))),
    "lengths below none": ("train.npz", index(lengths=put(2, -(2**62)))),
    "lengths beyond all": ("train.npz", index(lengths=put(2, 2**62))),
    "no images": ("train.npz", index(labels=lambda a: a[:0], offsets=lambda a: a[:0], lengths=lambda a: a[:0])),
    "one array less": ("train.npz", lambda arrays: {"labels": arrays["labels"]}),
    "one array more": ("train.npz", lambda arrays: arrays | {"more": np.zeros(1)}),
    "objects": ("train.npz", index(labels=lambda a: a.astype(object))),
    "a mean of another size": ("statistics.npz", index(mean=lambda a: a[:-1])),
    "a mean of doubles": ("statistics.npz", index(mean=lambda a: a.astype(np.float64))),
    "a mean of no number": ("statistics.npz", index(mean=put((0, 0, 0), np.nan))),
    "vectors turned": ("statistics.npz", index(vectors=lambda a: a[:2])),
    "infinite deviations": ("statistics.npz", index(stdevs=put(1, np.inf))),
}
META = {
    "no size": {"size": None}, "a text": {"size": "32"}, "another": {"size": 31}, "huge": {"size": 10**9},
    "no classes": {"classes": []}, "a number": {"classes": 2}, "numbers": {"classes": [1, 2]},
    "one class less": {"classes": ["ant"]}, "no split": {"train_split": "test"}, "no text": {"train_split": 5},
    "no splits": {"splits": {}}, "a list": {"splits": []}, "no count": {"splits": {"train": {}, "validation": {}}},
    "no form": {"stored": None}, "an unknown form": {"stored": "png"}, "forms": {"stored": ["jpeg"]},
    "another count": {"splits": {"train": {"count": 3}, "validation": {"count": 3}}},
    "no whole count": {"splits": {"train": {"count": 12.0}, "validation": {"count": "3"}}},
}  # fmt: skip


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_that_do_not_fit_are_damage(what, prepared, tmp_path):
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    name, change = ARRAYS[what]
    with np.load(directory / name) as arrays:
        changed = change(dict(arrays))
    np.savez(directory / name, **changed)
    check_damaged(directory)


@pytest.mark.parametrize("what", META)
def test_numbers_and_names_that_do_not_fit_are_damage(what, prepared, tmp_path):
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | META[what]))
    check_damaged(directory)


def test_damage_in_one_image_leaves_the_others_readable(prepared, tmp_path):
    directory = Path(shutil.copytree(prepared.directory, tmp_path / "set"))
    offset, length = prepared.train.offsets[3], prepared.train.lengths[3]
    with open(directory / "train.tfrecord", "r+b") as file:
        file.seek(offset + length // 2)
        file.write(bytes(length // 2))
    split = records.open_prepared(directory).train
    np.testing.assert_array_equal(split.images([2, 4]), prepared.train.images([2, 4]))
    with pytest.raises(UserError, match=f"{directory} is damaged: delete"):
        split.images()
