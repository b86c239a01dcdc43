"""The draws of an epoch and the arithmetic on pixels, against NumPy."""

import itertools

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from alexnet_jax.data import augment
from configs import paper

SIZE, CROP = 10, 6


def plan(seed=3, epoch=5, count=300, **changes):
    paper = {"size": 256, "crop": 224, "random_crop": True, "flip": True, "crop_chunk": 1}
    return augment.plan(seed, epoch, count, **paper | changes)


def by_example(p):
    """offset, flip and noise in the order of the images."""
    return [a[np.argsort(p.order)] for a in p[1:]]


def test_plan_depends_on_seed_and_epoch_alone():
    first = plan()
    for a, b in zip(first, plan(), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (plan(seed=4), plan(epoch=6)):
        for a, b in zip(first, other, strict=True):
            assert (a != b).mean() > 0.4  # flips agree half of the time


@pytest.mark.parametrize("count", (1, 31, 300))
def test_plan_shows_each_example_once(count):
    p = plan(count=count)
    np.testing.assert_array_equal(np.sort(p.order), np.arange(count))
    assert [len(a) for a in p] == [count] * 4
    assert count < 300 or (p.order != np.arange(count)).mean() > 0.9


def test_crops_start_at_each_of_33_places_on_both_axes():
    """224 in 256 has 33 places, both ends included; the axes and the flips are drawn independently."""
    p = plan(count=5000)
    for axis in (0, 1):
        np.testing.assert_array_equal(np.unique(p.offset[:, axis]), np.arange(33))
    y, x, flip = *p.offset.T, p.flip
    assert abs(flip.mean() - 0.5) < 5 * 0.5 / 5000**0.5
    assert np.abs(np.corrcoef([y, x, flip]) - np.eye(3)).max() < 5 / 5000**0.5


def test_draws_belong_to_the_example():
    """A larger set has another order, but its first images have the same draws as before."""
    small, large = plan(count=200), plan(count=300)
    assert (small.order != large.order[:200]).mean() > 0.9
    for a, b in zip(by_example(small), by_example(large), strict=True):
        np.testing.assert_array_equal(a, b[:200])
    np.testing.assert_array_equal(plan(crop_chunk=32).noise, plan().noise)  # and the noise is never shared


def test_neighbours_share_a_crop_in_chunks():
    p = plan(count=1000, crop_chunk=32)
    draws = np.column_stack([p.offset, p.flip])
    runs = [draws[i : i + 32] for i in range(0, 1000, 32)]
    for run in runs:
        np.testing.assert_array_equal(run, np.broadcast_to(run[0], run.shape))
    assert len(np.unique([run[0] for run in runs], axis=0)) > 25  # of 32
    assert len(np.unique(p.noise, axis=0)) == 1000


def test_plan_without_augmentation():
    p = plan(random_crop=False, flip=False)
    assert (p.offset == 16).all() and not p.flip.any()
    assert 0 < plan(random_crop=False).flip.mean() < 1
    np.testing.assert_array_equal(plan(flip=False).offset, plan().offset)


def test_noise_is_standard_normal():
    noise = plan(count=5000).noise
    assert noise.dtype == np.float32
    np.testing.assert_allclose(np.cov(noise.T), np.eye(3), atol=0.1)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.07)
    np.testing.assert_allclose((np.abs(noise) < 1).mean(0), 0.683, atol=0.03)


def test_noise_stops_at_its_epoch():
    config = paper.get_config().data
    assert [augment.noise_strength(config, epoch) for epoch in (0, 89)] == [0.1, 0.1]  # section 4.1; never stops
    config.color_noise_epochs = 67
    assert [augment.noise_strength(config, epoch) for epoch in (0, 66, 67, 89)] == [0.1, 0.1, 0, 0]


# Pixels.


@pytest.fixture
def statistics():
    rng = np.random.default_rng(1)
    return {
        "mean": rng.uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32),
        "channel_mean": np.float32([120, 110, 100]),
        "stdevs": np.float32([70, 9, 4]),
        "vectors": np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32),  # not symmetric
    }


@pytest.fixture
def images():
    return np.random.default_rng(2).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


OFFSET = np.int32([[0, 0], [4, 4], [0, 3], [2, 1]])
FLIP = np.array([False, True, True, False])


def cut(image, offset, flip):
    window = image[offset[0] : offset[0] + CROP, offset[1] : offset[1] + CROP]
    return window[:, ::-1] if flip else window


def test_crop_and_flip(images):
    index = np.int32([4, 0, 2, 2])
    out = augment.crop_and_flip(images, index, OFFSET, FLIP, CROP)
    assert out.dtype == np.uint8
    expected = [cut(images[i], o, f) for i, o, f in zip(index, OFFSET, FLIP, strict=True)]
    np.testing.assert_array_equal(out, expected)


def data(mean, divide=False, deviation=()):
    """The fields of a config's `data` section that say how pixels are shifted and scaled."""
    return ConfigDict(
        {"crop": CROP, "mean": mean, "mean_value": VALUE, "deviation": deviation, "divide_by_noise": divide}
    )


VALUE = (120.0, 110.0, 100.0)
MEANS = ("pixel", "centre", "channel", "value", "none")


@pytest.mark.parametrize("mean, divide", list(zip(MEANS, (False, True, True, False, False), strict=True)))
def test_normalize(images, statistics, mean, divide):
    """The pixel mean is cropped and mirrored with its image; the centre window is the same for every crop."""
    crops = np.stack([cut(*draw) for draw in zip(images, OFFSET, FLIP, strict=False)])
    noise = np.float32([[0, 0, 0], [1, 0, 0], [0, -0.5, 0], [0.1, 0.2, 0.3]])
    batch = {"image": crops, "label": np.arange(4), "offset": OFFSET, "flip": FLIP, "noise": noise}
    removed = {
        "pixel": [cut(statistics["mean"], *draw) for draw in zip(OFFSET, FLIP, strict=True)],
        "centre": statistics["mean"][2:8, 2:8],
        "channel": statistics["channel_mean"],
        "value": VALUE,
        "none": 0,
    }
    alphas = 0.2 * noise
    shift = sum(  # section 4.1, with the standard deviation instead of the eigenvalue
        alphas[:, i, None] * statistics["stdevs"][i] * statistics["vectors"][:, i] for i in range(3)
    )
    expected = (crops - np.float32(removed[mean]) + shift[:, None, None]) / (1.2 if divide else 1)
    out = augment.normalize(batch, statistics, np.float32(0.2), data(mean, divide))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=1e-3)
    out = augment.normalize(batch, statistics, np.float32(0.2), data(mean, divide, deviation=(50.0, 60.0, 70.0)))
    np.testing.assert_allclose(out * np.float32((50, 60, 70)), expected, atol=1e-3)


def test_colour_noise_has_a_tenth_of_the_colours_spread(statistics):
    """Colours shift with 0.1^2 times the covariance whose principal components they follow, alike in all pixels."""
    count = 20000
    p = plan(count=count)
    batch = {"image": np.zeros((count, 2, 1, 3), np.uint8), "noise": p.noise}
    out = np.asarray(augment.normalize(batch, statistics, 0.1, data("none")))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    v, s = statistics["vectors"], statistics["stdevs"]
    expected = 0.01 * v @ np.diag(s**2) @ v.T
    np.testing.assert_allclose(np.cov(out[:, 0, 0].T), expected, atol=0.05 * expected.max())


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("count", (1, 10))
def test_views(images, statistics, mean, count):
    """Corners and centre with their reflections, all at different places, and the mean subtracted as in training."""
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)] if count == 10 else [(2, 2)]
    expected, rule = [], data(mean, divide=True, deviation=(2.0, 3.0, 4.0))
    for offset, flip in itertools.product(places, (False, True) if count == 10 else (False,)):
        batch = {
            "image": np.stack([cut(image, offset, flip) for image in images]),
            "label": np.zeros(5, np.int32),
            "offset": np.tile(np.int32(offset), (5, 1)),
            "flip": np.full(5, flip),
            "noise": np.ones((5, 3), np.float32),
        }
        expected.append(augment.normalize(batch, statistics, 0.0, rule))
    out = augment.views(images, statistics, rule, count)
    assert len(out) == count

    def ordered(crops):  # the order of the views is not guaranteed
        return np.stack(sorted(map(np.asarray, crops), key=lambda c: tuple(c[0, 0].ravel())))

    np.testing.assert_allclose(ordered(out), ordered(expected), atol=1e-4)


def test_views_of_another_count(images, statistics):
    with pytest.raises(ValueError, match="1 .* or 10"):
        augment.views(images, statistics, data("none"), 5)


@pytest.mark.parametrize("mean", MEANS)
def test_whole_images_are_a_view_of_their_own_side(images, statistics, mean):
    """A whole image equals its centre crop of full size. The mean image is resized to any other side."""
    rule = data(mean, deviation=(2.0, 3.0, 4.0))
    out = augment.whole(images, statistics, rule)
    rule.crop = images.shape[1]
    np.testing.assert_allclose(out, augment.views(images, statistics, rule, 1)[0], atol=1e-4)
    larger = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    out = augment.whole(larger, statistics, rule)
    assert out.shape == larger.shape
    if mean in ("pixel", "centre"):  # PyTorch's bilinear interpolation, of pixels as squares
        whole = torch.tensor(statistics["mean"]).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(whole, larger.shape[1:3], mode="bilinear")[0].permute(1, 2, 0)
        np.testing.assert_allclose(out, (larger - resized.numpy()) / [2.0, 3.0, 4.0], atol=1e-4)
