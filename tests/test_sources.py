"""Sources: which photos of a folder are used, and what is refused, in one line, before anything is written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import verbs
from helpers.folders import contents, data_config, make_folder, message, photo, two_classes
from ml_collections import ConfigDict

from alexnet_jax import UserError, main
from alexnet_jax.config import check
from alexnet_jax.data.prepare import prepare
from configs import paper

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    return prepare(data_config(photos, tmp_path_factory.mktemp("prepared")))


# ---------------------------------------------------------------- folders


def too_deep(root):
    two_classes(root, "photos")
    return "photos has photos in its subfolder ant: ", f"--config.data.name={root}/photos"


def some_too_deep(root):
    two_classes(root)
    (root / "bee" / "more").mkdir()
    for path in (root / "bee").glob("*.png"):
        path.rename(path.parent / "more" / path.name)
    return "bee has photos in its subfolder more: ", "directly in the folder of their class"


def some_photos_too_deep(root):
    photo(two_classes(root) / "ant" / "images" / "more.png")
    return "ant has photos in its subfolder images: ", "directly in the folder of their class"


def much_too_deep(root):
    photo(two_classes(root) / "cat" / "a" / "b" / "0.png")
    return "cat has photos in its subfolder a: ", "directly in the folder of their class"


def two_sets(root):
    """They are not two classes."""
    two_classes(root, "training_set")
    two_classes(root, "test_set")
    return "test_set has photos in its subfolder ant: ", "--config.data.name="


def no_class_folders(root):
    photo(root / "0.png")
    return f"no images for split 'train' in {root}: ", "directly in the folder of their class"


def a_class_named_as_the_set(root):
    photo(root / "0.png")
    return f"no images for split 'train' in {root}: it has photos", f"--config.data.name={root.parent}"


def photos_of_another_kind(root):
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        (root / name / "1.HEIC").touch()
    return "its folders have files with other names, 1.HEIC, 1.HEIC: convert them", ".jpeg, .jpg"


def one_class(root):
    shutil.rmtree(two_classes(root) / "bee")
    return "has one class, ant", "two or more"


def empty_class(root):
    (two_classes(root) / "cat").mkdir()
    (root / "cat" / "photo.heic").touch()
    return "1 of 3 classes has no photo in train: cat", "put photos into their folders"


def link_to_the_parent(root):
    (two_classes(root) / "loop").symlink_to(root)
    return f"{root}/loop is a link to {root}", "remove it"


def link_to_its_own_parents(root):
    (two_classes(root / "train") / "loop").symlink_to(root.parent)
    return f"{root}/train/loop is a link to {root.parent}", "remove it"


def link_to_another_class(root):
    (two_classes(root) / "same").symlink_to(root / "ant")
    return f"{root}/same is a link to {root}/ant", "remove it"


def all_held_out(root):
    photo(two_classes(root) / "cat" / "0.png")  # the hash of its name is below 0.3
    return "1 of 3 classes has no photo in train: cat", "data.validation_fraction, the share that is held out, is 0.3"


def unknown_class(root):
    two_classes(root, "train")
    photo(two_classes(root, "validation") / "validation" / "cat" / "0.png")
    return "validation has classes that", "lacks: cat"


def annotations_without_classes(root):
    two_classes(root, "train")
    photo(root / "val" / "images" / "0.png")
    (root / "val" / "val_annotations.txt").write_text("0.png ant")
    return "val_annotations.txt has a line without", "'0.png ant'"


NONSENSE = [too_deep, some_too_deep, some_photos_too_deep, much_too_deep, two_sets, no_class_folders,
            a_class_named_as_the_set, photos_of_another_kind, one_class,
            empty_class, link_to_the_parent, link_to_its_own_parents, link_to_another_class, all_held_out,
            unknown_class, annotations_without_classes]  # fmt: skip


@pytest.mark.parametrize("make", NONSENSE)
def test_folders_that_would_make_nonsense_are_refused_before_anything_is_written(make, tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    says = make(root)
    said = message(root, tmp_path / "prepared", num_classes=0)
    assert all(words in said for words in says), said
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_class_with_only_damaged_photos_is_refused_in_training(tmp_path, capsys):
    """Elsewhere it is a warning."""
    root = two_classes(tmp_path / "source", "train")
    for split in ("train", "validation"):
        for i in range(2):
            (root / split / "cat").mkdir(parents=True, exist_ok=True)
            (root / split / "cat" / f"{i}.png").write_text("no photo")
    photo(root / "validation" / "ant" / "0.png")
    said = message(root, tmp_path / "prepared", num_classes=0)
    assert "all photos of 1 classes in train are damaged (cat)" in said
    assert list((tmp_path / "prepared").iterdir()) == []
    photo(root / "train" / "cat" / "2.png")
    assert prepare(data_config(root, tmp_path / "prepared"), 0).classes == ["ant", "bee", "cat"]
    said = capsys.readouterr().err
    assert "warning: all photos of 1 classes in validation are damaged (cat)" in said
    assert "warning: 1 of 3 classes has no photo in validation: bee" in said


def test_files_of_the_system_are_not_data(tmp_path):
    root = two_classes(tmp_path / "source")
    before = prepare(data_config(root, tmp_path / "before"), 2)
    for name in (".DS_Store", "Thumbs.db", "ant/.DS_Store", "ant/._0.png", "ant/Thumbs.db", "ant/labels.txt"):
        (root / name).write_text("no photo")
    for name in (".git/0.png", "__MACOSX/ant/._0.png", "__MACOSX/0.png", "ant/.thumbnails/0.png"):
        photo(root / name)
    after = prepare(data_config(root, tmp_path / "after"), 2)
    assert contents(after.directory) == contents(before.directory)


def test_tiny_imagenet_is_taken_as_it_is(tmp_path):
    """train/<class>/images/<photo>, and for validation one folder of photos with a list of their classes."""
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for i, name in enumerate(("n01443537", "n01629819", "n01641577")):
        for k in range(5):
            photo(root / "train" / name / "images" / f"{name}_{k}.JPEG", colour=(100 * i, 0, 0))
        (root / "train" / name / f"{name}_boxes.txt").write_text("n01443537_0.JPEG\t0\t0\t62\t62\n")
        for k in range(2):
            photo(root / "val" / "images" / f"val_{k}{i}.JPEG", colour=(100 * i, 0, 0))
            lines.append(f"val_{k}{i}.JPEG\t{name}\t0\t0\t62\t62\n")
        photo(root / "test" / "images" / f"test_{i}.JPEG")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    made = prepare(data_config(root, tmp_path / "prepared"), 3)
    assert made.classes == ["n01443537", "n01629819", "n01641577"]
    assert len(made.train) == 15 and made.train.ids[0] == "n01443537/images/n01443537_0.JPEG"
    assert len(made.evaluation) == 6 and "n01629819/val_11.JPEG" in made.evaluation.ids
    for split in (made.train, made.evaluation):
        np.testing.assert_allclose(split.images()[:, 16, 16, 0], 100 * split.labels, atol=3)


def test_only_regular_files_are_photos(tmp_path, capsys):
    """A pipe does not block, and whatever is named like a photo but is none is reported."""
    root = two_classes(tmp_path / "source", "train")
    photo(root / "validation" / "ant" / "0.png")
    photo(tmp_path / "elsewhere.png")
    ant = root / "train" / "ant"
    os.mkfifo(ant / "pipe.jpg")
    (ant / "broken.png").symlink_to(tmp_path / "none.png")
    (ant / "device.png").symlink_to("/dev/zero")
    (ant / "folder.png").mkdir()
    (ant / "link.png").symlink_to(tmp_path / "elsewhere.png")
    made = prepare(data_config(root, tmp_path / "prepared"), 0)
    assert len(made.train) == 17 and "ant/link.png" in made.train.ids
    damaged = json.loads((made.directory / "meta.json").read_text())["splits"]["train"]["damaged"]
    assert {name: reason.split(": ")[-1] for name, reason in damaged.items()} == {
        "ant/pipe.jpg": "this is not a regular file", "ant/device.png": "this is not a regular file",
        "ant/folder.png": "this is a folder", "ant/broken.png": "No such file or directory",
    }  # fmt: skip
    said = capsys.readouterr().err
    assert all(name in said for name in damaged)


def test_photos_that_show_nothing_in_a_square_are_reported(tmp_path, capsys):
    root = two_classes(tmp_path / "source", "train")
    for name in ("ant", "bee"):
        photo(root / "validation" / name / "0.png", size=(16, 160))
    for i, size in enumerate([(1, 1), (15, 40), (4000, 20), (4000, 1), (20, 201)]):
        photo(root / "train" / "ant" / f"small{i}.png", size=size)
    prepare(data_config(root, tmp_path / "prepared"), 0)
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "5 photos of train have a side of less than 16 pixels" in said
    assert "ant/small0.png, ant/small1.png, ant/small2.png and 2 more" in said


def test_photos_beside_the_class_folders_are_reported(tmp_path, capsys):
    photo(two_classes(tmp_path / "source") / "overview.png")
    prepare(data_config(tmp_path / "source", tmp_path / "prepared"), 0)
    assert "warning: 1 photos in" in (said := capsys.readouterr().err) and "overview.png" in said


def test_a_split_for_evaluation_alone_needs_no_second_class(tmp_path, capsys):
    photo(tmp_path / "source" / "ant" / "0.png")
    (tmp_path / "source" / "bee").mkdir()
    splits = {"train_split": "validation", "eval_split": "validation", "validation_fraction": 1.0}
    made = prepare(data_config(tmp_path / "source", tmp_path / "prepared", **splits))
    assert made.classes == ["ant", "bee"] and len(made.evaluation) == 1
    assert "1 of 2 classes has no photo in validation: bee" in capsys.readouterr().err


def test_no_photos_are_held_out_if_neither_split_is_validation(tmp_path):
    root = two_classes(tmp_path / "source", "train")
    two_classes(root, "test")
    assert len(prepare(data_config(root, tmp_path / "prepared", eval_split="test"), 2).train) == 16


# ---------------------------------------------------------------- classes


def test_classes_that_do_not_fit_the_network_are_refused_before_anything_is_written(photos, prepared, tmp_path):
    for num_classes in (2, 1000):
        said = message(photos, tmp_path / "prepared", num_classes)
        assert f"has 3 classes (ant, bee, cat) and the network {num_classes}" in said
        assert "--config.model.num_classes=3, or 0" in said
    assert not (tmp_path / "prepared").exists()
    assert "has 3 classes" in message(photos, prepared.directory.parent, 2)  # for an existing set, too


def test_a_data_set_on_the_command_line_brings_its_classes(tmp_path):
    """smoke's glyphs have ten classes. The first error is about the batch size, which is checked after the classes."""
    root = two_classes(tmp_path / "photos")
    words = [
        f"--config={ROOT}/configs/paper.py:smoke", f"--config.data.name={root}",
        f"--config.data.prepared_dir={tmp_path / 'prepared'}", f"--workdir={tmp_path / 'run'}",
        "--config.data.validation_fraction=0.3", "--config.batch_size=1000",
    ]  # fmt: skip
    with pytest.raises(UserError, match="batch_size=1000"):
        verbs.run(main, *words)
    config = paper.get_config()
    main.own_classes(config, {"data.name": str(root), "model.num_classes": 3})
    assert config.model.num_classes == 1000  # as the command line says it
    main.own_classes(config, {"batch_size": 3})
    assert config.model.num_classes == 1000
    main.own_classes(config, {"data.name": str(root)})
    assert config.model.num_classes == 0
    with pytest.raises(UserError, match="the config has no field"):
        main.run(ConfigDict({"name": "x", "data": {"name": str(root)}}), tmp_path / "none", {"data.name": str(root)})


# ---------------------------------------------------------------- what the user can mend


def test_errors_about_folders_are_one_line(photos, tmp_path):
    there = tmp_path / "prepared"
    (tmp_path / "file").touch()
    assert "there is no folder /no/such/folder" in message("/no/such/folder", there)
    assert "name too long" in message("/" + "a" * 3000, there)
    assert f"{tmp_path}/file is a file" in message(tmp_path / "file", there)
    assert "no split 'test'" in message(photos, there, eval_split="test")
    assert "no split 'train[:5]'" in message(photos, there, train_split="train[:5]")
    for share in (0.0, -1.0, float("nan")):
        assert "no images for split 'validation'" in message(photos, there, validation_fraction=share)
    for share in (1.0, 7.0):
        assert "data.validation_fraction, the share" in message(photos, there, 0, validation_fraction=share)
    (tmp_path / "empty").mkdir()
    assert "no images for split 'train'" in message(tmp_path / "empty", there)
    assert not there.exists()
    assert "inside the images' own folder" in message(photos, photos / "prepared")
    for path in (tmp_path / "file" / "below", tmp_path / "file", "/proc/prepared"):
        assert "--config.data.prepared_dir=" in message(photos, path)
    assert "~nobody_at_all/x: there is no user of this name" in message(photos, "~nobody_at_all/x")
    for path in ("train/a", "validation/a"):
        (tmp_path / "strange" / path).mkdir(parents=True)
        (tmp_path / "strange" / path / "x.jpg").write_text("no image")
    assert "has only damaged images" in message(tmp_path / "strange", there)


def test_an_unreadable_set_is_not_called_damaged(prepared, photos, monkeypatch):
    """And an unreadable folder of photos is not called a folder that cannot be written."""

    def refuse(path, *rest, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as m:
        m.setattr(Path, "read_text", refuse)
        said = message(photos, prepared.directory.parent)
    assert f"{prepared.directory} cannot be read (Permission denied)" in said and "damaged" not in said
    with monkeypatch.context() as m:
        m.setattr(Path, "iterdir", refuse)
        assert f"cannot read the photos of {photos} ([Errno 13]" in message(photos, "never/written")


def test_a_bare_name_is_that_of_a_tfds_set_wherever_it_is_written(tmp_path, monkeypatch):
    """A folder of the same name here is not taken for it: it is written with ./ before it."""
    pytest.importorskip("tensorflow_datasets")
    for name in ("cifar10", "mine"):
        two_classes(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    elsewhere = {"data_dir": str(tmp_path / "tfds")}
    assert f"cifar10 is not in {tmp_path}/tfds" in message("cifar10", tmp_path / "prepared", **elsewhere)
    assert "write the folder here as ./mine" in message("mine", tmp_path / "prepared", **elsewhere)
    assert len(prepare(data_config("./mine", tmp_path / "prepared")).classes) == 2


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_has_one_of_three_names(name, tmp_path):
    two_classes(tmp_path / "root", "train")
    two_classes(tmp_path / "root", name)
    photo(tmp_path / "root" / name / "ant" / "another.png")
    made = prepare(data_config(tmp_path / "root", tmp_path / "prepared"))
    assert len(made.evaluation) == len(made.train) + 1


HOSTILE = [
    ("name", ["", "a\nb", "a\0b", "/a\0b", "photos\u2028", "../no_such_folder"]),
    ("size", [0, -1, 10**9]),
    ("resize", ["", "crop"]),
    ("train_split", ["", "train\n", "train\0", "train[", "train[:0]", "validation", "train+validation"]),
    ("eval_split", ["", "a\nb", "train"]),
    ("prepared_dir", ["a\nb", "a\0b"]),
    ("data_dir", ["a\0b"]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HOSTILE for value in values])
def test_hostile_fields_are_one_line_before_anything_is_written(field, value, photos, tmp_path):
    """From config.check, which a run calls first, or from prepare, which alone sees the names that flags give."""
    config = paper.get_config()
    config.data = data_config(photos, tmp_path / "prepared", size=64, crop=64)
    check(config)
    config.data[field] = value
    with pytest.raises(UserError) as caught:
        if field != "name":
            check(config)
        prepare(config.data, 0)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and "\0" not in said and len(said) < 500
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("changes", "num_classes", "says"),
    [
        ({"train_split": "train["}, 0, "its splits are train (256), validation (64), or slices"),
        ({"train_split": "train[:0]"}, 0, "has no images"),
        ({"train_split": "train[9:3]"}, 0, "has no images"),
        ({"train_split": "train[300:]"}, 0, "no split 'train[300:]'"),
        ({"eval_split": "test"}, 0, "no split 'test'"),
        ({}, 1000, "10 classes (A, E, H and 7 more) and the network 1000"),
        ({"name": "glyphs/huge"}, 0, "glyphs/full, glyphs/tiny"),
    ],
)
def test_a_tfds_set_is_checked_before_anything_is_written(changes, num_classes, says, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    assert says in message(changes.pop("name", "glyphs/tiny"), tmp_path / "prepared", num_classes, **changes)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "imagenet2012",
            ["ILSVRC2012_img_train.tar", "downloads/manual", "tfds build imagenet2012", "quickstart.py"],
        ),
        ("mnist", ["tfds.builder('mnist'", "download_and_prepare()", "quickstart.py"]),
        ("no_such_set", ["no TFDS data set 'no_such_set'", "quickstart.py"]),
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
