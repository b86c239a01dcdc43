"""The one way through a network: batches, their order, what is checked before an image is read."""

import numpy as np
import pytest
from helpers.images import Given

from alexnet_jax import UserError, inference
from alexnet_jax.data.images import PhotoImages, SplitImages, subset
from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs.run import load_run


@pytest.fixture(scope="module")
def split(run):
    return prepare(run.config.data).evaluation


@pytest.mark.parametrize("by, made_then", [(1, [2, 3, 4, 4]), (2, [3, 4, 4, 4])])
def test_results_come_late(by, made_then):
    made = []

    def items():
        for i in range(4):
            made.append(i)
            yield i

    seen = [(item, len(made)) for item in inference.late(items(), by)]
    assert seen == list(enumerate(made_then))
    assert list(inference.late([], by)) == []


def test_batch_sizes(tiny_run, run):
    """The run's own is 10; on two copies every size is even."""
    assert inference.batch_size(run, 33) == 10 and inference.batch_size(run, 33, 7) == 7
    assert inference.batch_size(run, 3) == 3
    two, three = (load_run(tiny_run, data=copies) for copies in (2, 3))
    assert inference.batch_size(two, 3) == 4 and inference.batch_size(three, 33) == 12
    for asked in (0, -2, 7):
        with pytest.raises(UserError, match=f"--batch-size={asked} must be a positive multiple of the 2"):
            inference.batch_size(two, 33, asked)


def test_an_unknown_layer_is_refused_before_an_image_is_read(run):
    with pytest.raises(UserError, match="no layer fc9, pool9: it has conv1, .*, pool5"):
        inference.make_forward(run, layers=["fc9", "fc7", "pool9"])


def test_a_subset_has_its_own_images(split):
    chosen = [30, 2, 17]
    few = subset(split, chosen)
    [batch] = SplitImages(few).batches(3)
    np.testing.assert_array_equal(batch.images, split.images(chosen))
    assert batch.ids == [split.ids[i] for i in chosen] and batch.labels.tolist() == split.labels[chosen].tolist()


def test_photos_cannot_be_shared(run, photos):
    images = PhotoImages([photos / "train" / "red" / "0.png"], run.config.data, run.classes)
    with pytest.raises(ValueError, match="several processes"):
        list(images.batches(2, (0, 2)))


def test_layers_are_those_of_one_view(run, split):
    forward = inference.make_forward(run, layers=["fc7"])
    with pytest.raises(ValueError, match="centre crop, and views is 10"):
        forward(run.params, run.statistics, split.images(range(4)), views=10)


def test_rows_leave_the_padding_out(run, split):
    images = Given(split.images(range(5)), split.labels[:5], padding=2)
    forward = inference.make_forward(run, layers=["fc7", "pool1"])
    [(batch, found)] = inference.rows(run, forward, images, 5)
    assert batch.ids == ["0", "1", "2"] and found["fc7"].shape == (3, 128) and found["pool1"].shape[0] == 3
    assert all(array.dtype == np.float32 for array in found.values())
