"""Images to run a network over, in batches: a prepared split, or photos.

    images = SplitImages(prepared.evaluation)
    images = PhotoImages(photos.find("~/photos"), run.config.data, run.classes)
    for batch in images.batches(128): ...

inference.py runs a network over either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import photos
from alexnet_jax.data.batches import Batch, eval_batches
from alexnet_jax.data.records import Split

UNKNOWN = -1  # the label of an image whose class is not known


class Images(Protocol):
    """What inference.py needs to know of a set of images."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int:
        """How many images there are at most: photos that cannot be read are left out."""

    def batches(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Yields every image once, in order, decoded on all cores ahead of need.

        shard: (i, k): this is process i of k, and gets the rows [i * b / k, (i + 1) * b / k) of each batch.
        """


@dataclass(frozen=True)
class SplitImages:
    """The images of a prepared split, with its ids and labels."""

    split: Split

    @property
    def name(self) -> str:
        """The split's name."""
        return self.split.name

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """See Images. Raises UserError if the prepared set is damaged."""
        return eval_batches(self.split, batch_size, shard)


@dataclass(frozen=True)
class PhotoImages:
    """Photos, scaled to squares as the run's own images were. Their ids are their paths.

    A photo's label is its folder's name, if that is one of the classes. Photos that cannot be read are named on
    standard error and left out.
    """

    paths: Sequence[Path]
    config: ConfigDict  # the run's `data` section
    classes: Sequence[str]
    name: str = "photos"

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """See Images. Raises ValueError if several processes share the batches, which photos do not support."""
        if shard != (0, 1):
            raise ValueError("photos cannot be shared by several processes")
        numbers = {name: number for number, name in enumerate(self.classes)}
        for images, paths in photos.batches(self.paths, self.config.size, batch_size, self.config.resize):
            count = len(paths)
            labels = np.full(batch_size, UNKNOWN, np.int32)
            labels[:count] = [numbers.get(path.absolute().parent.name, UNKNOWN) for path in paths]
            mask = (np.arange(batch_size) < count).astype(np.float32)
            yield Batch(images, labels, mask, [str(path) for path in paths])


def subset(split: Split, indices: Sequence[int] | np.ndarray) -> Split:
    """Some images of a split, in the order of the indices."""
    return replace(
        split,
        labels=split.labels[indices],
        ids=[split.ids[i] for i in indices],
        offsets=split.offsets[indices],
        lengths=split.lengths[indices],
    )
