"""ILSVRC-2012, which weights of other programs were trained on: what a run takes from its training set, without it."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError
from alexnet_jax.data import classes
from alexnet_jax.weights import caffe

# In grey levels, R, G, B: the channels' means of Caffe's data/ilsvrc12, imagenet_mean.binaryproto.
MEAN = (122.679, 116.669, 104.007)
# The standard deviations along the principal components of RGB, and these, as columns: akrizhevsky/cuda-convnet2,
# make-data/input_meta.
STDEVS = (19.7208, 37.0939, 121.7801)
VECTORS = ((0.41796, -0.71258, -0.56351), (-0.81698, -0.02354, -0.57618), (0.39731, 0.70120, -0.59200))


def statistics(data: ConfigDict, mean: Path | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The statistics of the training set, float32 arrays by name, and where the mean is from, in words.

    Args: data: a config's `data` section; mean: Caffe's mean image. Without it the mean is one colour: the config's
    mean_value if it has one, else Caffe's.
    Raises UserError if the mean image is of another size, or of no use to the config.
    """
    if mean:
        image, source = _read_mean(data, mean), f"the image of {mean}"
    else:
        color, whose = MEAN, "Caffe's of ILSVRC-2012; --mean takes the image"
        if data.mean == "value":
            color, whose = data.mean_value, "the config's"
        image = np.broadcast_to(np.array(color, np.float32), (data.size, data.size, 3))
        source = f"{', '.join(f'{c:.3f}' for c in color)} of R, G, B, {whose}"
    found = {"mean": image, "channel_mean": image.mean((0, 1), np.float64), "stdevs": STDEVS, "vectors": VECTORS}
    return {name: np.array(array, np.float32) for name, array in found.items()}, source


def _read_mean(data: ConfigDict, path: Path) -> np.ndarray:
    if data.mean not in ("pixel", "centre", "channel"):
        raise UserError(f"--mean is not used where --config.data.mean is {data.mean}: leave it out")
    image = caffe.read_mean(path)
    side = image.shape[0]
    if side != data.size:
        raise UserError(
            f"{path} is {side} pixels wide and must be as wide as --config.data.size, {data.size}: "
            "name another with --mean"
        )
    return image


def class_names(count: int, path: Path | None = None) -> list[str]:
    """The names of `count` classes: the lines of a file, or ILSVRC-2012's synsets if there are 1,000, or numbers.

    Raises UserError if the file cannot be read, or has not one name for each class.
    """
    if path is None:
        return classes.SYNSETS if count == len(classes.SYNSETS) else [f"class {i}" for i in range(count)]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): --classes takes a text file, one name per line") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count or len(set(names)) != count:
        raise UserError(
            f"{path} has {len(names)} lines with {len(set(names))} different names, and there are {count} classes: "
            "give each class its own name"
        )
    return names
