"""Images and networks that are arrays, for tests of what runs a network over images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import towers
from alexnet_jax.data.images import Batch
from alexnet_jax.runs.run import Run


@dataclass(frozen=True)
class Given:
    """Images as data.images makes them from a split, but from an array; the last rows can be padding of any content."""

    images: np.ndarray  # uint8 (n, size, size, 3)
    labels: np.ndarray
    padding: int = 0
    name: str = "given"

    def __len__(self):
        return len(self.images) - self.padding

    def batches(self, batch_size, shard=(0, 1)):
        mask = (np.arange(len(self.images)) < len(self)).astype(np.float32)
        for start in range(0, len(self.images), batch_size):
            rows = slice(start, start + batch_size)
            ids = [str(i) for i in range(len(self))[rows]]
            yield Batch(self.images[rows], self.labels[rows].astype(np.int32), mask[rows], ids)


def run_of(apply, params, data):
    """A run of any function on one device; data: its config's `data` section."""
    mesh = towers.make_mesh(ConfigDict({"data": 1, "tower": 1}), 1, 1)
    return Run(Path("a run"), 0, ConfigDict({"data": data}), mesh, apply, params, {}, [])
