"""A run's network as StableHLO, in one file that JAX alone can call.

    jax.export.deserialize(bytearray(open("net.stablehlo", "rb").read())).call(images)  # float32 (b, crop, crop, 3)

Images are centre crops, RGB in grey levels of 0..255: the mean and the deviation are in the file, as the parameters
are. Any batch size works. Reading it requires jax and flatbuffers; JAX promises to read it for six months after the
version that wrote it.
"""

from pathlib import Path

import jax
import jax.export
import numpy as np

from alexnet_jax.data import augment
from alexnet_jax.files import replacing
from alexnet_jax.network import network
from alexnet_jax.runs.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def write(run: Run, path: Path) -> None:
    """Writes the network as jax.export serializes it, for CPUs, GPUs and TPUs.

    Its call takes images float32 (b, crop, crop, 3) and returns logits float32 (b, classes).
    Raises UserError if the file cannot be written.
    """
    apply = network(run.config.model).apply
    params = jax.tree.map(np.asarray, run.params)
    mean, deviation = mean_and_deviation(run)
    crop = run.config.data.crop

    def logits(images: jax.Array) -> jax.Array:
        return apply({"params": params}, (images - mean) / deviation)[0]

    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, {crop}, {crop}, 3"), np.float32)
    exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    with replacing(path) as partial:
        partial.write_bytes(exported.serialize())


def mean_and_deviation(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from a centre crop, (crop, crop, 3) or (1, 1, 3), and then divided by, (1, 1, 3); float32."""
    data = run.config.data
    mean = augment.centre_mean(run.statistics, data, data.crop)
    return np.array(mean, np.float32, ndmin=3), np.array(data.deviation or (1, 1, 1), np.float32, ndmin=3)
