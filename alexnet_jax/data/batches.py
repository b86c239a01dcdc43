"""Batches: from a prepared set to what the train step takes.

    for batch in train_batches(prepared.train, config.data, seed=0, batch_size=128, first_step=0, last_step=1000): ...

Step s is batch s % (n // batch_size) of epoch s // (n // batch_size), and augment.plan says which images an epoch shows
where and how. So any step can be made from its number alone: a resumed run goes on bit for bit, and the path through
tf.data and the one that holds the images on the device show the network the same crops.
"""

import functools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError
from alexnet_jax.data import augment
from alexnet_jax.data.records import Split, in_threads, tensorflow

_plan = functools.lru_cache(maxsize=2)(augment.plan)  # this epoch's and, read ahead, the next one's


def train_batches(
    split: Split, config: ConfigDict, *, seed: int, batch_size: int, first_step: int, last_step: int, shard=(0, 1)
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of steps first_step ... last_step - 1, decoded, cropped and flipped by tf.data on all cores.

    Args:
      split: the training split.
      config: the config's `data` section.
      batch_size: of the whole batch over all processes.
      shard: (i, k): this is process i of k, and gets the rows [i * b / k, (i + 1) * b / k) of each batch.
    Yields: image uint8 (b, crop, crop, 3), label int32 (b,), offset int32 (b, 2), flip bool (b,),
      noise float32 (b, 3).
    Raises UserError: a setting that does not fit the data, before the first batch; a damaged prepared set.
    """
    if config.size != split.size:
        raise UserError(f"data.size is {config.size}, but the prepared images have {split.size} pixels a side")
    rows = _rows(len(split), split.labels, config, seed, batch_size, shard)
    return _decoded(split, config.crop, rows, range(first_step, last_step), batch_size // shard[1])


def resident_batches(
    split_length: int, labels: np.ndarray, config: ConfigDict, *,
    seed: int, batch_size: int, first_step: int, last_step: int, shard=(0, 1)
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """Yields what train_batches does for the same steps, with index int32 (b,) into the split in place of images.

    For images that live on the device (augment.crop_and_flip); needs no TensorFlow. Arguments and errors as there.
    """
    rows = _rows(split_length, labels, config, seed, batch_size, shard)
    return (rows(step) for step in range(first_step, last_step))


def eval_batches(split: Split, batch_size: int, shard=(0, 1)) -> Iterator[dict[str, np.ndarray]]:
    """Yields every image once, in order, decoded on all cores ahead of need; needs no TensorFlow.

    Args: batch_size and shard as in train_batches.
    Yields: image uint8 (b, size, size, 3), label int32 (b,), mask float32 (b,): 0 marks the zeros that fill up the
      last batch. Every process gets the same number of batches.
    """
    mine = _shard(batch_size, shard)
    rows = [
        r for start in range(0, len(split), batch_size) for r in range(len(split))[start : start + batch_size][mine]
    ]
    images = in_threads(split.image, rows, ahead=2 * (mine.stop - mine.start))
    return _padded(split, batch_size, mine, images)


def steps_in_epoch(images: int, batch_size: int) -> int:
    """How many whole batches an epoch has. Raises UserError if it has none."""
    if batch_size > images:
        raise UserError(f"--config.batch_size={batch_size} is more than the {images} training images: lower it")
    return images // batch_size


def filled(batch_size: int, images: int, copies: int) -> int:
    """The batch size, or the least multiple of `copies` that holds all images where that is less."""
    return min(batch_size, -(-images // copies) * copies)


def _padded(split: Split, batch_size: int, mine: slice, images: Iterator) -> Iterator[dict[str, np.ndarray]]:
    b = mine.stop - mine.start
    for start in range(0, len(split), batch_size):
        labels = split.labels[start : start + batch_size][mine]
        batch = {
            "image": np.zeros((b, split.size, split.size, 3), np.uint8),
            "label": np.zeros(b, np.int32),
            "mask": np.zeros(b, np.float32),
        }
        batch["label"][: len(labels)] = labels
        batch["mask"][: len(labels)] = 1
        for row in range(len(labels)):
            batch["image"][row] = next(images)
        yield batch


def _shard(batch_size: int, shard: tuple[int, int]) -> slice:
    index, count = shard
    if batch_size < 1 or batch_size % count:
        raise UserError(f"--config.batch_size={batch_size} must be a multiple of the {count} processes that share it")
    return slice(index * batch_size // count, (index + 1) * batch_size // count)


def _rows(count: int, labels: np.ndarray, config: ConfigDict, seed: int, batch_size: int, shard: tuple[int, int]):
    """The function from a step's number to its batch, without images."""
    mine = _shard(batch_size, shard)
    c = config.copy_and_resolve_references()  # fixed now: the batches are made later, in threads
    per_epoch = steps_in_epoch(count, batch_size)

    def rows(step: int) -> dict[str, np.ndarray]:
        epoch, batch = divmod(int(step), per_epoch)
        plan = _plan(
            seed, epoch, count, size=c.size, crop=c.crop, random_crop=c.random_crop, flip=c.flip,
            crop_chunk=c.crop_chunk,
        )  # fmt: skip
        at = slice(batch * batch_size + mine.start, batch * batch_size + mine.stop)
        index = plan.order[at].astype(np.int32)
        return {"index": index, "label": labels[index], "offset": plan.offset[at], "flip": plan.flip[at],
                "noise": plan.noise[at]}  # fmt: skip

    return rows


def _decoded(split: Split, crop: int, rows, steps: range, b: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of rows with their images, through tf.data."""
    tf = tensorflow()

    def load(step):
        batch = rows(step)
        jpegs = np.array(split.read(batch.pop("index")), object)
        return jpegs, *batch.values()

    def image(jpeg, label, offset, flip, noise):
        window = tf.concat([offset, [crop, crop]], 0)
        pixels = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3, dct_method="INTEGER_ACCURATE")
        pixels = tf.ensure_shape(tf.cond(flip, lambda: pixels[:, ::-1], lambda: pixels), (crop, crop, 3))
        return {"image": pixels, "label": label, "offset": offset, "flip": flip, "noise": noise}

    types = (tf.string, tf.int32, tf.int32, tf.bool, tf.float32)
    shapes = ((None,), (None,), (None, 2), (None,), (None, 3))

    def read(step):
        tensors = tf.numpy_function(load, [step], types)
        return tuple(tf.ensure_shape(t, s) for t, s in zip(tensors, shapes, strict=True))

    numbers = tf.data.Dataset.range(steps.start, steps.stop)
    examples = numbers.map(read, num_parallel_calls=2, deterministic=True).unbatch()
    images = examples.map(image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    try:
        yield from images.batch(b, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:  # from the decoder, from read
        raise split.damaged() from error
