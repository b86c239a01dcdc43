"""Folders of photos, the `data` sections that name them, and what `prepare` makes of both."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.data.prepare import prepare
from configs import paper


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


def photo(path, size=(40, 36), colour=(10, 120, 230)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def needs(data_set):
    """The mark of a test on a real data set: it is skipped where TFDS_DATA_DIR does not have it."""
    there = Path(os.environ.get("TFDS_DATA_DIR", "nowhere"), data_set).is_dir()
    return pytest.mark.skipif(not there, reason=f"no {data_set} in TFDS_DATA_DIR: no real images here")


def two_classes(root, above=""):
    for name in ("ant", "bee"):
        for i in range(8):
            photo(root / above / name / f"{i}.png")
    return root


def message(name, prepared_dir, num_classes=None, **changes):
    """What `prepare` says, in one line, where it refuses a source."""
    with pytest.raises(UserError) as caught:
        prepare(data_config(name, prepared_dir, **changes), num_classes)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}
