"""Batches: the plan's images and no others; equal bits from any first step, on every path and in any process."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.data import augment, host
from alexnet_jax.data.batches import cut, eval_batches, resident_batches, train_batches
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import RawSplit
from configs import paper

ROOT = Path(__file__).parent.parent
SIZE, CROP, BATCH = 32, 24, 8
TRAIN, VALIDATION = 51, 21  # neither is a multiple of the batch: 6 steps an epoch, 3 images dropped


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
        for i in range(count):
            folder = source / split / "abc"[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return source


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def config(request, photos, tmp_path_factory):
    c = paper.get_config().data
    c.update(name=str(photos), prepared_dir=str(tmp_path_factory.mktemp("prepared")), size=SIZE, crop=CROP)
    c.stored = request.param
    return c


@pytest.fixture(scope="module")
def prepared(config):
    return prepare(config)


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update(changes)
    return config


def train(prepared, config, first=0, last=9, **changes):
    settings = {"seed": 3, "batch_size": BATCH, "first_step": first, "last_step": last} | changes
    return list(train_batches(prepared.train, config, **settings))


def resident(prepared, config, first=0, last=9, **changes):
    settings = {"seed": 3, "batch_size": BATCH, "first_step": first, "last_step": last} | changes
    return list(resident_batches(prepared.train.labels, config, **settings))


def evaluated(split, batch_size, **shard):
    """What eval_batches yields, each batch as a dict."""
    return [batch._asdict() for batch in eval_batches(split, batch_size, **shard)]


def assert_equal(these, those, keys=("image", "label", "offset", "flip", "noise")):
    for this, that in zip(these, those, strict=True):
        for key in keys:
            assert this[key].dtype == that[key].dtype
            np.testing.assert_array_equal(this[key], that[key], err_msg=key)


def test_batches_are_the_plans_crops(prepared, config):
    batches = train(prepared, config)
    assert len(batches) == 9
    images = prepared.train.images()
    plans = [augment.plan(3, e, TRAIN, size=SIZE, crop=CROP, random_crop=True, flip=True, crop_chunk=1) for e in (0, 1)]
    for step, batch in enumerate(batches):
        assert batch["image"].shape == (BATCH, CROP, CROP, 3) and batch["image"].dtype == np.uint8
        assert [batch[k].dtype for k in ("label", "offset", "flip", "noise")] == [np.int32, np.int32, bool, np.float32]
        plan, start = plans[step // 6], step % 6 * BATCH
        for row in range(BATCH):
            i = plan.order[start + row]
            y, x = plan.offset[start + row]
            window = images[i, y : y + CROP, x : x + CROP]
            window = window[:, ::-1] if plan.flip[start + row] else window
            difference = np.abs(batch["image"][row].astype(int) - window)
            # The decoders of Pillow and TensorFlow may round differently.
            assert difference.max() <= (1 if config.stored == "jpeg" else 0)
            assert batch["label"][row] == prepared.train.labels[i]
        np.testing.assert_array_equal(batch["offset"], plan.offset[start : start + BATCH])
        np.testing.assert_array_equal(batch["noise"], plan.noise[start : start + BATCH])
    assert len({bool(f) for b in batches for f in b["flip"]}) == 2


@pytest.mark.parametrize("first", [1, 5, 6, 8])
def test_any_step_can_be_the_first(first, prepared, config):
    assert_equal(train(prepared, config, first), train(prepared, config)[first:])


def test_both_paths_show_the_same(prepared, config):
    on_host, on_device = train(prepared, config), resident(prepared, config)
    assert_equal(on_host, on_device, ("label", "offset", "flip", "noise"))
    images = prepared.train.images()
    for this, that in zip(on_host, on_device, strict=True):
        assert that["index"].dtype == np.int32
        cropped = augment.crop_and_flip(images, that["index"], that["offset"], that["flip"], CROP)
        assert np.abs(this["image"].astype(int) - np.asarray(cropped)).max() <= 1


def test_raw_images_are_shown_as_jpegs_of_the_same_pixels_are(photos, tmp_path):
    c = paper.get_config().data
    c.update(name=str(photos), prepared_dir=str(tmp_path / "prepared"), size=SIZE, crop=CROP)
    jpegs = prepare(c)
    for split, folder in ((jpegs.train, "train"), (jpegs.evaluation, "validation")):
        for name, image in zip(split.ids, split.images(), strict=True):
            path = tmp_path / "decoded" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    raw_config = changed(c, name=str(tmp_path / "decoded"), stored="raw")
    raw = prepare(raw_config)
    np.testing.assert_array_equal(raw.train.images(), jpegs.train.images())
    assert contents_of(raw.statistics) == contents_of(jpegs.statistics)
    these, those = train(raw, raw_config, 2, 9), train(jpegs, c, 2, 9)
    assert [set(batch) for batch in these] == [set(batch) for batch in those]
    assert_equal(these, those, ("label", "offset", "flip", "noise"))
    for this, that in zip(these, those, strict=True):
        assert np.abs(this["image"].astype(int) - that["image"]).max() <= 1
    assert_equal(evaluated(raw.evaluation, 8), evaluated(jpegs.evaluation, 8), ("images", "labels"))


def contents_of(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("batch_size", [1, 15, 16, 17, 51])
def test_raw_batches_of_every_size_are_filled(batch_size, photos, tmp_path_factory):
    """Threads fill them in parts of 16."""
    c = paper.get_config().data
    c.update(name=str(photos), prepared_dir=str(tmp_path_factory.getbasetemp() / "sizes"), size=SIZE, crop=CROP)
    c.stored, c.random_crop, c.flip = "raw", False, False
    made = prepare(c)
    images, at = made.train.images(), (SIZE - CROP) // 2
    order = [b["index"] for b in resident(made, c, 0, 5, batch_size=batch_size)]
    for batch, index in zip(train(made, c, 0, 5, batch_size=batch_size), order, strict=True):
        np.testing.assert_array_equal(batch["image"], images[index, at : at + CROP, at : at + CROP])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("at", [(0, 0), (8, 0), (3, 5), (8, 8)])
def test_a_cut_equals_that_on_the_device(at, flip):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    out = np.zeros((24, 24, 3), np.uint8)
    cut(image, at, flip, out)
    [expected] = augment.crop_and_flip(image[None], np.zeros(1, int), np.array([at]), np.array([flip]), 24)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("batches", [train, resident])
def test_shards_together_are_the_whole_batch(batches, prepared, config):
    shards = [batches(prepared, config, 4, 8, shard=(i, 4)) for i in range(4)]
    together = [
        {k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for parts in zip(*shards, strict=True)
    ]
    assert_equal(together, batches(prepared, config, 4, 8), together[0].keys())


def test_an_epoch_shows_an_image_at_most_once_and_epochs_differ(prepared, config):
    steps = resident(prepared, config, 0, 18)
    epochs = [np.concatenate([b["index"] for b in steps[e : e + 6]]).tolist() for e in (0, 6, 12)]
    assert all(len(set(epoch)) == 6 * BATCH for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = resident(prepared, config, 0, 6, seed=4)
    assert np.concatenate([b["index"] for b in other]).tolist() != epochs[0]


@pytest.mark.parametrize("batch_size", [1, 7, 8, 21, 64])
def test_evaluation_counts_every_image_once_and_in_order(batch_size, prepared):
    split = prepared.evaluation
    batches = evaluated(split, batch_size)
    assert len(batches) == -(-VALIDATION // batch_size)
    assert {b["images"].shape for b in batches} == {(batch_size, SIZE, SIZE, 3)}
    assert [batches[0][k].dtype for k in ("images", "labels", "mask")] == [np.uint8, np.int32, np.float32]
    whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    np.testing.assert_array_equal(whole["mask"], np.arange(len(whole["mask"])) < VALIDATION)
    np.testing.assert_array_equal(whole["images"][:VALIDATION], split.images())
    np.testing.assert_array_equal(whole["labels"][:VALIDATION], split.labels)
    assert not whole["images"][VALIDATION:].any() and not whole["labels"][VALIDATION:].any()
    assert whole["ids"].tolist() == split.ids


def test_evaluation_is_split_over_processes(prepared):
    shards = [evaluated(prepared.evaluation, 8, shard=(i, 4)) for i in range(4)]
    together = [
        {k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for parts in zip(*shards, strict=True)
    ]
    assert_equal(together, evaluated(prepared.evaluation, 8), ("images", "labels", "mask"))
    assert [name for batch in together for name in batch["ids"]] == prepared.evaluation.ids


def test_stopping_early_ends_the_threads(prepared, config):
    span = {"seed": 0, "batch_size": BATCH, "first_step": 0, "last_step": 10**12}
    raw = isinstance(prepared.train, RawSplit)  # JPEGs are decoded by tf.data's threads, which are none of Python's
    for batches, threads in (
        (eval_batches(prepared.evaluation, 4), True),
        (train_batches(prepared.train, config, **span), raw),
    ):
        before = set(threading.enumerate())
        next(batches)
        mine = set(threading.enumerate()) - before
        assert bool(mine) == threads
        batches.close()
        assert not any(thread.is_alive() for thread in mine)


@pytest.mark.parametrize(
    ("changes", "batch_size", "said"),
    [
        ({}, TRAIN + 1, "--config.batch_size=52"),
        ({}, 7, "--config.batch_size=7"),
        ({"size": SIZE + 2}, BATCH, "data.size"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(changes, batch_size, said, prepared, config):
    with pytest.raises(UserError, match=said):
        train_batches(
            prepared.train, changed(config, **changes), seed=0, batch_size=batch_size, first_step=0, last_step=1,
            shard=(0, 2),
        )  # fmt: skip


def test_a_damaged_image_names_the_folder(config, tmp_path):
    made = prepare(changed(config, prepared_dir=str(tmp_path)))
    with open(made.directory / "train.tfrecord", "r+b") as file:
        file.seek(made.train.offsets[0])
        file.write(bytes(100))
    with pytest.raises(UserError, match=f"{made.directory} is damaged: delete"):
        list(train_batches(made.train, config, seed=0, batch_size=TRAIN, first_step=0, last_step=1))


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError("no room")])
def test_a_machine_that_fails_damages_no_set(config, tmp_path, monkeypatch, error):
    """It is not to be deleted: tf.data would only say that something was raised."""
    made = prepare(changed(config, prepared_dir=str(tmp_path), stored="jpeg"))

    def fails(*_):
        raise error

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(type(error), match="Stale file handle|no room"):
        list(train_batches(made.train, config, seed=0, batch_size=TRAIN, first_step=0, last_step=1))


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # importing them raises
from alexnet_jax import UserError
from alexnet_jax.data import batches
from alexnet_jax.data.prepare import prepare
from configs import paper

c = paper.get_config().data
c.update(name=sys.argv[1], prepared_dir=sys.argv[2], size=32, crop=24, stored=sys.argv[3])
p = prepare(c)
steps = dict(seed=0, batch_size=8, first_step=2, last_step=5)
steps_of_epoch = list(batches.resident_batches(p.train.labels, c, **steps))
assert p.train.images(steps_of_epoch[0]["index"]).shape == (8, 32, 32, 3)
print(len(steps_of_epoch), sum(int(b.mask.sum()) for b in batches.eval_batches(p.evaluation, 8)))
try:
    print(next(batches.train_batches(p.train, c, **steps))["image"].shape)
except UserError as error:
    print(error)
"""


def test_all_but_training_on_jpegs_works_without_tensorflow(config, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, config.name, str(tmp_path), config.stored]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    first, second = done.stdout.splitlines()
    assert first == f"3 {VALIDATION}", done.stderr
    if config.stored == "raw":
        assert second == "(8, 24, 24, 3)"
    else:
        assert "needs TensorFlow" in second and "data.on_device" in second


def test_threads_are_not_waited_for_where_they_were_not_started():
    """The garbage collector closes what was left behind in any thread, also in one that others wait for."""
    going = threading.Event()
    results = host.in_threads(lambda i: i or going.wait(), range(1, -100, -1))
    assert next(results) == 1
    closing = threading.Thread(target=results.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    going.set()
