"""Caffe's files: weights (.caffemodel) and the mean image (.binaryproto), without Caffe.

Files may be hostile: sizes that they state are checked against the bytes that are there, before anything is allocated.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from ml_collections import ConfigDict

from alexnet_jax import UserError
from alexnet_jax.weights.layouts import Arrays, complete, plain, unreadable

_FIELD = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
_NUMBER, _BYTES = _FIELD.TYPE_INT64, _FIELD.TYPE_BYTES
# The messages of BVLC/caffe, src/caffe/proto/caffe.proto, that hold weights: {message: {field: (number, label, type or
# message)}}. protobuf skips all other fields. Packed floats are declared as bytes, which they are in the file, so that
# 60 million of them arrive as one buffer. V1LayerParameter.layer is the layer of a V0 file.
_MESSAGES: dict[str, dict[str, tuple[int, Any, Any]]] = {
    "BlobShape": {"dim": (1, _MANY, _NUMBER)},
    "BlobProto": {
        "num": (1, _ONE, _NUMBER),
        "channels": (2, _ONE, _NUMBER),
        "height": (3, _ONE, _NUMBER),
        "width": (4, _ONE, _NUMBER),
        "data": (5, _MANY, _BYTES),
        "shape": (7, _ONE, "BlobShape"),
        "double_data": (8, _MANY, _BYTES),
    },
    "LayerParameter": {"name": (1, _ONE, _BYTES), "blobs": (7, _MANY, "BlobProto")},
    "V1LayerParameter": {"layer": (1, _ONE, _BYTES), "name": (4, _ONE, _BYTES), "blobs": (6, _MANY, "BlobProto")},
    "NetParameter": {"layers": (2, _MANY, "V1LayerParameter"), "layer": (100, _MANY, "LayerParameter")},
}


def read(path: Path) -> Arrays:
    """The weights of a .caffemodel in Caffe's layout, float32 or float64; other layers keep Caffe's names.

    Raises UserError if the file is incomplete, of another kind, or holds other blobs than kernels and biases.
    """
    net = _parse(path, "NetParameter", "a .caffemodel")
    if any(layer.HasField("layer") for layer in net.layers):
        hint = "let Caffe's upgrade_net_proto_binary rewrite it"
        raise unreadable(path, "a .caffemodel", "its layers are of Caffe's first format, V0", hint)
    arrays: Arrays = {}
    for layer in (*net.layers, *net.layer):
        if not layer.blobs:  # ReLU, pooling and others without weights
            continue
        name = layer.name.decode("utf-8", "replace")
        if name in arrays:
            raise unreadable(path, "AlexNet", f"it has two layers {name}", "it is of another network")
        if len(layer.blobs) != 2:
            raise unreadable(path, "AlexNet", f"{name} has {len(layer.blobs)} blobs", "it is of another network")
        kernel, bias = (_array(blob, name, path) for blob in layer.blobs)
        # Before 2014 every blob had four dimensions: (1, 1, outputs, inputs) and (1, 1, 1, outputs).
        if kernel.shape[:-2] == (1, 1):
            kernel = kernel.reshape(kernel.shape[2:])
        arrays[name] = {"kernel": kernel, "bias": bias.reshape(-1)}
    return complete(arrays, path)


def refuse_other_order(path: Path, config: ConfigDict) -> None:
    """Raises UserError if a .caffemodel normalizes before a pool where the config does so after it, or the reverse.

    CaffeNet differs from Caffe's AlexNet in nothing else that a file of weights shows. Files list the layers without
    weights too, as Net::ToProto of BVLC/caffe writes them; one that does not is taken as it is.
    """
    net = _parse(path, "NetParameter", "a .caffemodel")
    names = [layer.name.decode("utf-8", "replace") for layer in (*net.layers, *net.layer)]
    for number in ("1", "2"):
        norm, pool, conv = f"norm{number}", f"pool{number}", f"conv{number}"
        if norm not in names or pool not in names:
            continue
        after = names.index(norm) > names.index(pool)
        if after != (conv in config.model.lrn.after_pool):
            where, fits = ("after", "configs/caffenet.py") if after else ("before", "configs/caffe.py")
            there = f"it normalizes {conv} {where} its pool"
            raise UserError(f"{path} is not the network of {config.name}: {there}; add --config {fits}")


def read_mean(path: Path) -> np.ndarray:
    """Caffe's mean image, float32 (side, side, 3), RGB.

    path: a .binaryproto, or an .npy or .npz that holds one array (3, side, side), BGR, as Caffe's own tools write it.
    Raises UserError if the file holds no such array, or several.
    """
    kind = "a mean image, (3, side, side), blue first"
    if not path.is_file():
        raise UserError(f"there is no file {path}: name the mean image with --mean")
    if path.suffix in (".npy", ".npz"):
        found = _read_numpy(path, kind)
    else:
        found = [_array(_parse(path, "BlobProto", kind), "the mean", path)]
        found = [array.reshape(array.shape[-3:]) for array in found if array.shape[:-3] in ((), (1,))]
    means = [array for array in found if _is_square_image(array)]
    if len(means) != 1 or not np.isfinite(means[0]).all():
        count = len(means) or "no"
        raise unreadable(path, kind, f"it holds {count} such arrays of finite numbers", "name another with --mean")
    return plain(means[0][::-1].transpose(1, 2, 0))


def _is_square_image(array: np.ndarray) -> bool:
    """Whether it is a floating (3, side, side)."""
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        return False
    planes, height, width = array.shape
    return planes == 3 and height == width


def _read_numpy(path: Path, kind: str) -> list[np.ndarray]:
    """The arrays of an .npy or .npz, without unpickling."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            every = [found] if isinstance(found, np.ndarray) else list(found.values())
            return [array for array in every if isinstance(array, np.ndarray)]  # any other file comes as bytes
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
        hint = "--mean takes an .npy or .npz of plain arrays"
        raise unreadable(path, kind, type(error).__name__, hint) from error


@functools.cache
def _message_types() -> dict[str, Any]:
    """The classes of _MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name="weights_of_caffe.proto", package="weights_of_caffe")
    for message, fields in _MESSAGES.items():
        added = file.message_type.add(name=message)
        for name, (number, label, kind) in fields.items():
            field = added.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()  # our own: another that holds Caffe's caffe.proto may be loaded too
    pool.Add(file)
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(found[name]) for name in _MESSAGES}


def _parse(path: Path, message: str, kind: str) -> Any:
    try:
        return _message_types()[message].FromString(path.read_bytes())
    except Exception as error:  # protobuf's own, or the file system's
        raise unreadable(path, kind, error, "download it again; Caffe's HDF5 files are not supported") from error


def _array(blob: Any, name: str, path: Path) -> np.ndarray:
    """A blob in the shape that it states: a BlobShape, or the four numbers of Caffe before 2014."""
    dtype = np.dtype("<f4" if blob.data else "<f8")
    raw = b"".join(blob.data or blob.double_data)
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    if len(shape) > 4 or min(shape) < 1 or math.prod(shape) * dtype.itemsize != len(raw):
        reason = f"{name!r:.40} has {len(raw):,} bytes for numbers of shape {shape!s:.80}"
        raise unreadable(path, "a file of Caffe's", reason, "download it again")
    return np.frombuffer(raw, dtype).reshape(shape)
