"""Prepared sets on disk: any image at random, records TensorFlow accepts, damage that names the folder to delete."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError, records
from alexnet_jax.prepare import prepare
from configs import paper


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve training and three validation images of 32 x 32."""
    source = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 3)):
        (source / split / "ant").mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            coarse.resize((40, 36), Image.Resampling.BICUBIC).save(source / split / "ant" / f"{i}.png")
    config = paper.get_config().data
    config.update(name=str(source), prepared_dir=str(tmp_path_factory.mktemp("prepared")), size=32)
    return prepare(config)


def test_random_access_gives_the_images_asked_for(prepared):
    everything = prepared.train.images()
    np.testing.assert_array_equal(prepared.train.images([5, 0, -1]), everything[[5, 0, -1]])
    assert prepared.train.images([]).shape == (0, 32, 32, 3)


def test_tensorflow_reads_the_same_records(prepared):
    tf = pytest.importorskip("tensorflow")
    for split in (prepared.train, prepared.evaluation):
        records = tf.data.TFRecordDataset(str(prepared.directory / f"{split.name}.tfrecord"))
        assert [r.numpy() for r in records] == split.read(range(len(split)))


def test_a_damaged_prepared_set_says_which_folder_to_delete(prepared, tmp_path):
    def copy(name):
        return Path(shutil.copytree(prepared.directory, tmp_path / name))

    for name in ("train.tfrecord", "validation.npz", "statistics.npz", "meta.json", "train.ids.txt"):
        directory = copy(f"short_{name}")
        os.truncate(directory / name, 100)
        with pytest.raises(UserError, match=f"{directory} is damaged: delete"):
            records.open_prepared(directory)
    directory = copy("zeros")
    offset, length = prepared.train.offsets[3], prepared.train.lengths[3]
    with open(directory / "train.tfrecord", "r+b") as file:
        file.seek(offset + length // 2)
        file.write(bytes(length // 2))
    split = records.open_prepared(directory).train
    split.images([2, 4])
    with pytest.raises(UserError, match=f"{directory} is damaged: delete"):
        split.images()
