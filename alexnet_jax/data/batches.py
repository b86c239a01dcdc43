"""Batches: from a prepared set to what the train step takes.

    for batch in train_batches(prepared.train, config.data, seed=0, batch_size=128, first_step=0, last_step=1000): ...

Step s is batch s % (n // batch_size) of epoch s // (n // batch_size), and augment.plan draws which image an epoch shows
where and how. So any step can be made from its number alone: a resumed run continues bit for bit. JPEGs are decoded by
tf.data, raw images are copied by NumPy, or all images are kept on the device; the network sees the same crops.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError, one_line
from alexnet_jax.data import augment
from alexnet_jax.data.host import in_threads, tensorflow
from alexnet_jax.data.records import RawSplit, Split

TrainBatch = dict[str, np.ndarray]
Shard = tuple[int, int]  # (i, k): process i of k has the rows [i * b / k, (i + 1) * b / k) of each batch

PART = 16  # raw images that a thread crops at a time

_plan = functools.lru_cache(maxsize=2)(augment.plan)  # of this epoch and, when reading ahead, the next one

# ---------------------------------------------------------------- training


def train_batches(
    split: Split,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    last_step: int,
    shard: Shard = (0, 1),
) -> Generator[TrainBatch, None, None]:
    """Yields the batches of steps first_step ... last_step - 1, cropped and flipped on all cores.

    Works without TensorFlow if the split is raw.

    Args:
      split: the training split.
      config: the config's `data` section.
      batch_size: of the whole batch, over all processes.
      shard: the share of this process.
    Yields: image uint8 (b, crop, crop, 3), label int32 (b,), offset int32 (b, 2), flip bool (b,),
      noise float32 (b, 3).
    Raises UserError before the first batch if a setting does not fit the data, and later if the set is damaged.
    """
    if config.size != split.size:
        raise UserError(f"data.size is {config.size}, but the prepared images have {split.size} pixels a side")
    rows = _rows(split.labels, config, seed, batch_size, shard)
    steps, b = range(first_step, last_step), batch_size // shard[1]
    if isinstance(split, RawSplit):
        return _copied(split, config.crop, rows, steps, b)
    return _decoded(split, config.crop, rows, steps, b)


def resident_batches(
    labels: np.ndarray,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    last_step: int,
    shard: Shard = (0, 1),
) -> Generator[TrainBatch, None, None]:
    """Yields what train_batches yields for the same steps, with index int32 (b,) into the split instead of images.

    For images that live on the device (augment.crop_and_flip). Works without TensorFlow. labels: of the whole split;
    the other arguments and errors as there.
    """
    rows = _rows(labels, config, seed, batch_size, shard)
    return (rows(step) for step in range(first_step, last_step))


def steps_in_epoch(images: int, batch_size: int) -> int:
    """How many whole batches an epoch has. Raises UserError if it has none."""
    if batch_size > images:
        raise UserError(f"--config.batch_size={batch_size} is more than the {images} training images: lower it")
    return images // batch_size


def _rows(
    labels: np.ndarray, config: ConfigDict, seed: int, batch_size: int, shard: Shard
) -> Callable[[int], TrainBatch]:
    """The function from a step's number to its batch, without images; labels are those of the whole split."""
    mine = _slice_of(batch_size, shard)
    per_epoch = steps_in_epoch(len(labels), batch_size)
    draw = functools.partial(
        _plan,
        seed,
        count=len(labels),
        size=config.size,
        crop=config.crop,
        random_crop=config.random_crop,
        flip=config.flip,
        crop_chunk=config.crop_chunk,
    )

    def rows(step: int) -> TrainBatch:
        epoch, batch = divmod(int(step), per_epoch)
        plan = draw(epoch=epoch)
        at = slice(batch * batch_size + mine.start, batch * batch_size + mine.stop)
        index = plan.order[at].astype(np.int32)
        return {
            "index": index,
            "label": labels[index],
            "offset": plan.offset[at],
            "flip": plan.flip[at],
            "noise": plan.noise[at],
        }

    return rows


def _decoded(
    split: Split, crop: int, rows: Callable[[int], TrainBatch], steps: range, b: int
) -> Generator[TrainBatch, None, None]:
    """The batches of `rows` with their images, from JPEGs, through tf.data."""
    tf = tensorflow()
    failed: list[Exception] = []  # tf.data would only say that `load` raised something

    def load(step):
        batch = rows(step)
        try:
            jpegs = np.array(split.read(batch["index"]), object)
        except (OSError, MemoryError) as error:
            failed.append(error)
            raise
        return jpegs, batch["label"], batch["offset"], batch["flip"], batch["noise"]

    def read(step):
        types = (tf.string, tf.int32, tf.int32, tf.bool, tf.float32)
        shapes = ((None,), (None,), (None, 2), (None,), (None, 3))
        tensors = tf.numpy_function(load, [step], types)
        return tuple(tf.ensure_shape(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True))

    def image(jpeg, label, offset, flip, noise):
        window = tf.concat([offset, [crop, crop]], 0)
        pixels = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3, dct_method="INTEGER_ACCURATE")
        # pixels[:, ::-1] would take ten times as long as tf.reverse, as long as decoding.
        pixels = tf.cond(flip, lambda: tf.reverse(pixels, [1]), lambda: pixels)
        pixels = tf.ensure_shape(pixels, (crop, crop, 3))
        return {"image": pixels, "label": label, "offset": offset, "flip": flip, "noise": noise}

    numbers = tf.data.Dataset.range(steps.start, steps.stop)
    examples = numbers.map(read, num_parallel_calls=2, deterministic=True).unbatch()
    images = examples.map(image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    try:
        yield from images.batch(b, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:  # from the decoder, from `load`
        raise (failed[0] if failed else split.damaged()) from error
    except tf.errors.ResourceExhaustedError as error:  # from `load`, or from tf.data itself
        raise (failed[0] if failed else MemoryError(one_line(error))) from error


def _copied(
    split: RawSplit, crop: int, rows: Callable[[int], TrainBatch], steps: range, b: int
) -> Generator[TrainBatch, None, None]:
    """The batches of `rows` with their images, from raw images. Threads fill a batch in parts."""
    parts = [slice(start, start + PART) for start in range(0, b, PART)]

    def empty() -> Iterator[tuple[TrainBatch, slice]]:
        for step in steps:
            batch = rows(step) | {"image": np.empty((b, crop, crop, 3), np.uint8)}
            for part in parts:
                yield batch, part

    def fill(item: tuple[TrainBatch, slice]) -> TrainBatch:
        batch, part = item
        index, offset, flip, out = (batch[key][part] for key in ("index", "offset", "flip", "image"))
        split.announce(index)
        for row in zip(index.tolist(), offset.tolist(), flip.tolist(), out, strict=True):  # lists of Python's numbers
            cut(split.image(row[0]), *row[1:])
        return batch

    with contextlib.closing(in_threads(fill, empty(), ahead=2 * len(parts))) as filled_parts:
        for number, batch in enumerate(filled_parts, 1):
            if number % len(parts) == 0:
                del batch["index"]
                yield batch


def cut(image: np.ndarray, offset: Sequence[int], flip: bool, out: np.ndarray) -> None:
    """Copies a crop of an image, flipped or not, into `out`: augment.crop_and_flip for one image, in NumPy.

    Args: image uint8 (size, size, 3); offset: (y, x); out uint8 (crop, crop, 3).
    """
    y, x = offset
    window = image[y : y + out.shape[0], x : x + out.shape[1]]
    if not flip:
        out[:] = window
        return
    for channel in range(3):  # all at once takes twice as long: NumPy's innermost loop would be over three bytes
        out[..., channel] = window[:, ::-1, channel]


# ---------------------------------------------------------------- evaluation


class Batch(NamedTuple):
    """A batch of b rows. Zeros fill up the last one, so that all batches have one shape."""

    images: np.ndarray  # uint8 (b, size, size, 3)
    labels: np.ndarray  # int32 (b,): the class's number; images.UNKNOWN of a photo of no known class
    mask: np.ndarray  # float32 (b,): 1 for an image, 0 for padding
    ids: list[str]  # the images' names, without the padding


def eval_batches(split: Split, batch_size: int, shard: Shard = (0, 1)) -> Iterator[Batch]:
    """Yields every image once, in order, decoded on all cores ahead of need. Works without TensorFlow.

    batch_size and shard are as in train_batches. Every process gets the same number of batches.
    """
    mine = _slice_of(batch_size, shard)
    b = mine.stop - mine.start
    batches = [range(start, len(split))[mine] for start in range(0, len(split), batch_size)]
    in_order = [row for rows in batches for row in rows]
    with contextlib.closing(in_threads(split.image, in_order, ahead=2 * b)) as images:
        for rows in batches:
            shape = (b, split.size, split.size, 3)
            batch = Batch(np.zeros(shape, np.uint8), np.zeros(b, np.int32), np.zeros(b, np.float32), [])
            for place, row in enumerate(rows):
                batch.images[place] = next(images)
                batch.labels[place] = split.labels[row]
                batch.mask[place] = 1
                batch.ids.append(split.ids[row])
            yield batch


def _slice_of(batch_size: int, shard: Shard) -> slice:
    """The rows of a batch that a shard has. Raises UserError if the batch does not divide."""
    index, count = shard
    if batch_size < 1 or batch_size % count:
        raise UserError(f"--config.batch_size={batch_size} must be a multiple of the {count} processes that share it")
    return slice(index * batch_size // count, (index + 1) * batch_size // count)
