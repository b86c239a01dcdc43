"""What happens to an image between the prepared set and conv1 (section 4.1).

The random draws of an epoch are one plain table, `plan`, made from (seed, epoch) with NumPy. The tf.data path and the
device-resident path both read it, so they show the network the same crops, and a resumed run continues where it was.
The arithmetic on pixels, `normalize`, `views` and `whole`, is JAX and runs inside the compiled step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

MEANS = ("pixel", "centre", "channel", "value", "none")  # the means that normalize can subtract


class Plan(NamedTuple):
    """The random draws of one epoch, in the order in which its images are shown."""

    order: np.ndarray  # int64 (count,): the image at each position
    offset: np.ndarray  # int32 (count, 2): the top left corner of its crop, (y, x)
    flip: np.ndarray  # bool (count,)
    noise: np.ndarray  # float32 (count, 3): standard normal, one per principal component of RGB


def plan(
    seed: int, epoch: int, count: int, *, size: int, crop: int, random_crop: bool, flip: bool, crop_chunk: int
) -> Plan:
    """Draws one epoch over `count` prepared images of size x size.

    Crops start anywhere in 0 .. size - crop, both ends included: 33 x 33 places for 224 in 256, as in the 2012 code
    (the paper counts 32 x 32). `crop_chunk` consecutive images share an offset and a flip: 1 according to the paper,
    32 in the code (convdata_jpeg.py:77). With random_crop off every crop is the centre one. A draw belongs to the
    image, not to its position in the order, unless neighbours share it.
    """
    orders, offsets, flips, noises = (np.random.Generator(np.random.PCG64([seed, epoch, i])) for i in range(4))
    order = orders.permutation(count)
    draws = -(-count // crop_chunk)
    offset = offsets.integers(0, size - crop + 1, (draws, 2), dtype=np.int32)
    flipped = flips.random(draws) < 0.5
    noise = noises.standard_normal((count, 3), dtype=np.float32)[order]
    which = order if crop_chunk == 1 else np.arange(count) // crop_chunk
    offset, flipped = offset[which], flipped[which]
    if not random_crop:
        offset = np.full_like(offset, (size - crop) // 2)
    return Plan(order, offset, flipped & flip, noise)


def noise_strength(config: ConfigDict, epoch: int) -> float:
    """The standard deviation of section 4.1's alphas in an epoch, from a config's `data` section.

    config.color_noise_epochs is the number of epochs that have colour noise; -1 stands for all.
    """
    if 0 <= config.color_noise_epochs <= epoch:
        return 0.0
    return config.color_noise


def crop_and_flip(images: jax.Array, index: jax.Array, offset: jax.Array, flip: jax.Array, crop: int) -> jax.Array:
    """Takes images[index] cropped and flipped, on the device.

    Args: images (n, size, size, 3), uint8, or float32 for the mean image; index int32 (b,); offset int32 (b, 2): (y,
      x) in pixels; flip bool (b,).
    Returns: (b, crop, crop, 3), of the images' dtype.
    """

    def one(i, at, mirrored):
        window = jax.lax.dynamic_slice(images, (i, at[0], at[1], 0), (1, crop, crop, 3))[0]
        return jnp.where(mirrored, window[:, ::-1], window)

    return jax.vmap(one)(index, offset, flip)


def normalize(batch: dict, statistics: dict, noise: jax.Array, config: ConfigDict) -> jax.Array:
    """Training crops as conv1 takes them: in grey levels of 0..255, mean subtracted, colours shifted (section 2).

    Args:
      batch: image uint8 (b, crop, crop, 3), offset int32 (b, 2), flip bool (b,), noise float32 (b, 3).
      statistics: mean (size, size, 3), channel_mean (3,), stdevs (3,), vectors (3, 3) with components as columns.
      noise: float32 scalar, the standard deviation of the alphas (noise_strength).
      config: the config's `data` section. config.mean is what to subtract: "pixel", the mean image where the crop lies,
        mirrored with it (the mean activity of each pixel, section 2); "centre", the centre of the mean image for every
        crop (convdata_jpeg.py:95, 210); "channel", one number per channel; "value", the three of config.mean_value;
        "none", nothing. config.divide_by_noise divides by 1 + noise, as the code does to keep the spread of test images
        (convdata_jpeg.py:155-179); config.deviation divides by one number per channel.
    Returns: float32 (b, crop, crop, 3).

    Colour noise (section 4.1): each image moves along the principal components of RGB by alpha x standard deviation.
    The paper says eigenvalue. In grey levels that would be 1483 on the first component; the code takes the root of it.
    """
    shift = noise * (batch["noise"] * statistics["stdevs"]) @ jnp.asarray(statistics["vectors"]).T
    # Colours before the mean: XLA computes the difference of two images once, and a last sum again for each reader.
    images = batch["image"].astype(jnp.float32) + shift[:, None, None, :]
    if config.mean == "pixel":
        full = jnp.asarray(statistics["mean"])[None]
        zero = jnp.zeros(batch["flip"].shape, jnp.int32)
        images = images - crop_and_flip(full, zero, batch["offset"], batch["flip"], images.shape[1])
    else:
        images = images - centre_mean(statistics, config, images.shape[1])
    if config.divide_by_noise:
        images = images / (1 + noise)
    return _scale(images, config)


def centre_mean(statistics: dict, config: ConfigDict, crop: int) -> jax.Array:
    """The mean to subtract from the centre crop, and, except for "pixel", from every other crop too.

    Returns: float32 (crop, crop, 3) or (3,).
    """
    if config.mean in ("pixel", "centre"):
        return _centre(jnp.asarray(statistics["mean"]), crop)
    if config.mean == "channel":
        return jnp.asarray(statistics["channel_mean"])
    if config.mean == "value":
        return jnp.array(config.mean_value)
    return jnp.zeros(3)


def views(images: jax.Array, statistics: dict, config: ConfigDict, count: int) -> list[jax.Array]:
    """The test crops of prepared images (section 4.1): the centre, or four corners and centre and their reflections.

    Args: images uint8 (b, size, size, 3); config: the config's `data` section; count: 1 or 10.
    Returns: `count` arrays float32 (b, crop, crop, 3), mean subtracted as in training, without noise.
    """
    if count not in (1, 10):
        raise ValueError(f"views is 1 (centre) or 10 (corners, centre, reflections), not {count}")
    crop, far = config.crop, images.shape[1] - config.crop
    pixels = images.astype(jnp.float32)
    if config.mean == "pixel":
        pixels = pixels - statistics["mean"]
    if count == 1:
        crops = [_centre(pixels, crop)]
    else:
        corners = [pixels[:, y : y + crop, x : x + crop] for y in (0, far) for x in (0, far)]
        crops = [c[:, :, ::step] for c in (*corners, _centre(pixels, crop)) for step in (1, -1)]
    if config.mean != "pixel":
        crops = [c - centre_mean(statistics, config, crop) for c in crops]
    return [_scale(c, config) for c in crops]


def whole(images: jax.Array, statistics: dict, config: ConfigDict) -> jax.Array:
    """Whole prepared images, for dense evaluation: float32 (b, side, side, 3), mean subtracted as in training.

    images: uint8 (b, side, side, 3). The side may be any: the mean image is resized to it.
    """
    pixels = images.astype(jnp.float32)
    if config.mean in ("pixel", "centre"):
        return _scale(pixels - jax.image.resize(statistics["mean"], images.shape[1:], "linear"), config)
    return _scale(pixels - centre_mean(statistics, config, images.shape[1]), config)


def _centre(images: jax.Array, crop: int) -> jax.Array:
    at = (images.shape[-3] - crop) // 2
    return images[..., at : at + crop, at : at + crop, :]


def _scale(images: jax.Array, config: ConfigDict) -> jax.Array:
    if not config.deviation:
        return images
    return images / jnp.array(config.deviation)
