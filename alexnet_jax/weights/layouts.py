"""AlexNet's arrays, and the way between the layouts of other programs and ours.

    arrays = caffe.read(path)                               # {layer: {"kernel", "bias"}} as the file lays them out
    params = to_ours(arrays, CAFFE, maps=256)               # as model.AlexNet takes them
    arrays = from_ours(params, PYTORCH, maps=256)

Ours: convolutions (height, width, inputs / groups, outputs); fully connected layers (inputs, outputs), the inputs of
fc6 by row, column and map; conv1 reads red, green, blue. TensorFlow's is the same. PyTorch and Caffe: (outputs,
inputs / groups, height, width) and (outputs, inputs), the inputs of fc6 by map, row and column. Caffe and its
descendants read blue, green, red. Our towers are Caffe's groups: consecutive blocks of outputs. No values are scaled:
all of these programs scale dropout during training, as we do.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError, model, one_line

Arrays = dict[str, dict[str, np.ndarray]]  # {layer: {"kernel", "bias"}}


class Layout(NamedTuple):
    """How a kind of file lays out its arrays, where that is not our way."""

    outputs_first: bool  # (outputs, inputs, height, width), and fc6 reads map by map
    blue_first: bool  # conv1 reads blue, green, red


PYTORCH = Layout(outputs_first=True, blue_first=False)
CAFFE = Layout(outputs_first=True, blue_first=True)
TENSORFLOW = Layout(outputs_first=False, blue_first=True)  # of weights that come from Caffe


def our_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The shape that a kernel of `shape` in a file has in our layout."""
    if not layout.outputs_first:
        return tuple(shape)
    outputs, inputs, *window = shape
    return (*window, inputs, outputs)


def to_ours(arrays: Arrays, layout: Layout, maps: int) -> Arrays:
    """The arrays of a file in our layout, float32. maps: how many maps an output of fc6 reads (fc6_maps)."""
    return {
        layer: {"kernel": plain(_kernel_to_ours(layer, p["kernel"], layout, maps)), "bias": plain(p["bias"])}
        for layer, p in arrays.items()
    }


def _kernel_to_ours(layer: str, kernel: np.ndarray, layout: Layout, maps: int) -> np.ndarray:
    if layout.outputs_first:
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)
        elif layer == "fc6":
            outputs, inputs = kernel.shape
            kernel = kernel.reshape(outputs, maps, -1).transpose(2, 1, 0).reshape(inputs, outputs)
        else:
            kernel = kernel.T
    if layer == "conv1" and layout.blue_first:
        kernel = kernel[:, :, ::-1]
    return kernel


def from_ours(params: dict, layout: Layout, maps: int) -> Arrays:
    """Our parameters in the layout of a file, float32: the inverse of to_ours."""
    return {
        layer: {
            "kernel": plain(_kernel_from_ours(layer, np.asarray(p["kernel"]), layout, maps)),
            "bias": plain(np.asarray(p["bias"])),
        }
        for layer, p in params.items()
    }


def _kernel_from_ours(layer: str, kernel: np.ndarray, layout: Layout, maps: int) -> np.ndarray:
    if layer == "conv1" and layout.blue_first:
        kernel = kernel[:, :, ::-1]
    if not layout.outputs_first:
        return kernel
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if layer == "fc6":
        inputs, outputs = kernel.shape
        return kernel.reshape(-1, maps, outputs).transpose(2, 1, 0).reshape(outputs, inputs)
    return kernel.T


def plain(array: np.ndarray) -> np.ndarray:
    """The array as float32, contiguous in memory: files of weights store nothing else."""
    return np.ascontiguousarray(array, np.float32)


def fc6_maps(config: ConfigDict, params: dict) -> int:
    """How many maps an output of fc6 reads: 256 in the paper's network.

    Args: config: the `model` section of a config; params: its parameters, or their shapes as network.shapes gives them.
    """
    return params["fc6"]["kernel"].shape[0] // model.fc6_side(config, params) ** 2


# What the readers of files share.


def complete(arrays: Arrays, path: Path) -> Arrays:
    """The arrays of a file, unchanged.

    Raises UserError unless there are any, and every layer has a kernel of two or more dimensions and a bias of one, of
    floats.
    """
    other = "the file is incomplete, or of another network"
    for layer, p in arrays.items():
        for kind in ("kernel", "bias"):
            if kind not in p:
                raise unreadable(path, "AlexNet", f"{layer} has no {kind}", other)
            if not np.issubdtype(p[kind].dtype, np.floating):
                raise unreadable(path, "AlexNet", f"{layer} holds {p[kind].dtype}", "weights must be floats")
        if p["kernel"].ndim < 2 or p["bias"].ndim != 1:
            shapes = f"{layer} has a kernel of shape {p['kernel'].shape} and a bias of shape {p['bias'].shape}"
            raise unreadable(path, "AlexNet", shapes, other)
    if not arrays:
        raise unreadable(path, "AlexNet", "it holds no weights", "name a file of weights, not a network definition")
    return arrays


def unreadable(path: Path, kind: str, reason: Exception | str, hint: str) -> UserError:
    """The error for a file that cannot be read as `kind`, to be raised."""
    said = reason if isinstance(reason, str) else one_line(reason)[:160]
    return UserError(f"{path} cannot be read as {kind} ({said}): {hint}")
