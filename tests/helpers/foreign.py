"""Files of weights as others write them, made here: Caffe's messages, pickles of Python 2, torchvision's network."""

import importlib
import io
import pickle
import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from torch import nn

from alexnet_jax import UserError
from alexnet_jax.weights import convert
from helpers.origins import ORIGINS, network, randomize

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


FIELD = descriptor_pb2.FieldDescriptorProto
CAFFE_PROTO = {  # parts of caffe.proto, {message: {field: (number, type or message, whether repeated)}}
    "BlobShape": {"dim": (1, FIELD.TYPE_INT64, True)},
    "BlobProto": {
        "num": (1, FIELD.TYPE_INT32, False),
        "channels": (2, FIELD.TYPE_INT32, False),
        "height": (3, FIELD.TYPE_INT32, False),
        "width": (4, FIELD.TYPE_INT32, False),
        "data": (5, FIELD.TYPE_FLOAT, True),
        "diff": (6, FIELD.TYPE_FLOAT, True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, FIELD.TYPE_DOUBLE, True),
    },
    "LayerParameter": {
        "name": (1, FIELD.TYPE_STRING, False),
        "type": (2, FIELD.TYPE_STRING, False),
        "bottom": (3, FIELD.TYPE_STRING, True),
        "blobs": (7, "BlobProto", True),
    },
    "V0LayerParameter": {"name": (1, FIELD.TYPE_STRING, False), "blobs": (50, "BlobProto", True)},
    "V1LayerParameter": {
        "layer": (1, "V0LayerParameter", False),
        "bottom": (2, FIELD.TYPE_STRING, True),
        "name": (4, FIELD.TYPE_STRING, False),
        "type": (5, FIELD.TYPE_INT32, False),
        "blobs": (6, "BlobProto", True),
    },
    "NetParameter": {
        "name": (1, FIELD.TYPE_STRING, False),
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}


def caffe_messages():
    """The message classes of CAFFE_PROTO: floats are floats, and a reader must skip some fields."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in CAFFE_PROTO.items():
        added = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            field = added.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = FIELD.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = kind
                field.options.packed = repeated and kind != FIELD.TYPE_STRING
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    messages = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(message) for name, message in messages.items()}


CAFFE = caffe_messages()


def fill(blob, array, old):
    """Puts an array into a BlobProto, its shape in a BlobShape or, if old, in the four numbers of before 2014."""
    if old:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)
    blob.data.extend(array.ravel().tolist())
    blob.diff.extend([1.0, 2.0])  # snapshots of a solver have gradients too
    return blob


def caffemodel(net, old, order=("norm", "pool")):
    """A PyTorch network that reads RGB, {layer: module}, as a .caffemodel that reads BGR; old: in V1 layers.

    order: of what follows conv1 and conv2; () for a file that lists only layers with weights and their ReLUs.
    """
    message = CAFFE["NetParameter"](name="AlexNet")
    layers, convolution, relu = (message.layers, 4, 18) if old else (message.layer, "Convolution", "ReLU")
    for name, module in net.items():
        weight = module.weight.detach().numpy()
        if name == "conv1":
            weight = weight[:, ::-1]
        layer = layers.add(name=name, type=convolution)
        layer.bottom.append("below")
        fill(layer.blobs.add(), weight, old)
        fill(layer.blobs.add(), module.bias.detach().numpy(), old)
        layers.add(name="relu", type=relu)
        for kind in order if name in ("conv1", "conv2") else ():
            layers.add(name=f"{kind}{name[-1]}")
    return message.SerializeToString()


def tensorflow(net, side):
    """A PyTorch network that reads RGB as {layer: (weights, biases)} in TensorFlow's layout, reading BGR.

    side: of the maps that fc6 reads.
    """
    return {
        name: (np.ascontiguousarray(_tensorflow_weight(name, module, side)), module.bias.detach().numpy())
        for name, module in net.items()
    }


def _tensorflow_weight(name, module, side):
    weight = module.weight.detach().numpy()
    if weight.ndim == 4:
        weight = np.moveaxis(weight, (2, 3, 1, 0), (0, 1, 2, 3))
        return np.flip(weight, 2) if name == "conv1" else weight
    if name == "fc6":  # the weights of an output, from map, row, column to row, column, map
        weight = np.stack([row.reshape(-1, side, side).transpose(1, 2, 0).ravel() for row in weight])
    return weight.T


def npy(pickled):
    """An .npy of one object, given its pickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickled


def python2(net):
    """What NumPy under Python 2 wrote for {layer: [weights, biases]}: protocol 2, byte strings throughout.

    Weights are in column order and biases in big-endian bytes, which a reader must know.
    """
    pairs = b""
    for name, (weights, biases) in net.items():
        columns = _string2(np.asfortranarray(weights).tobytes("F"))
        pairs += _string2(name.encode()) + b"]("
        pairs += _array2(weights.shape, b"f4", b"<", columns, fortran=True)
        pairs += _array2(biases.shape, b"f4", b">", _string2(biases.astype(">f4").tobytes())) + b"e"
    return npy(b"\x80\x02" + _array2((), b"O8", b"|", b"]" + b"}(" + pairs + b"ua") + b".")


def _string2(text):
    return b"T" + struct.pack("<I", len(text)) + text


def _array2(shape, code, order, content, fortran=False):
    """The opcodes of an array. code, order: of its dtype, as f4 and <; content: the opcodes of its numbers."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + _string2(code) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _string2(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dims = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in shape) + b"t"
    return empty + b"(K\x01" + dims + dtype + (b"\x88" if fortran else b"\x89") + content + b"tb"


class TorchVision(nn.Module):
    """torchvision's network, with its names, at other widths."""

    def __init__(self, conv_widths, fc_widths, classes):
        super().__init__()
        conv1, conv2, conv3, conv4, conv5 = conv_widths
        fc6, fc7 = fc_widths
        self.features = nn.Sequential(
            nn.Conv2d(3, conv1, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(conv1, conv2, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(conv2, conv3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(conv3, conv4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(conv4, conv5, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(conv5 * 36, fc6),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(fc6, fc7),
            nn.ReLU(),
            nn.Linear(fc7, classes),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


# Narrow networks in such files. SIDE: of the maps that fc6 reads.

WIDTHS, FCS, SIDE = (8, 16, 12, 12, 8), (20, 16), 2
SIZE, CROP = 112, 99


def preset(name, widths=WIDTHS, fcs=FCS):
    """A config of the family, narrow, on small images, with seven classes."""
    c = importlib.import_module(f"configs.{name}").get_config()
    c.model.conv_widths, c.model.fc_widths, c.model.num_classes = widths, fcs, 7
    c.data.size, c.data.crop = SIZE, CROP
    c.evaluation.batch_size = 8
    return c


def caffe_net(name="caffe"):
    """A network of the family in PyTorch with random parameters, and {layer: module}."""
    net = network(WIDTHS, FCS, SIDE, **ORIGINS[name])
    randomize(net)
    return net.eval(), {layer: net.get_submodule(layer) for layer in LAYERS}


def write(folder, kind, net):
    """Writes {layer: module} to a file of a kind; returns convert's --from and the path."""
    if kind in ("V1", "V2"):
        path = folder / "net.caffemodel"
        path.write_bytes(caffemodel(net, old=kind == "V1"))
        return "caffe", path
    path, arrays = folder / "net.npy", tensorflow(net, SIDE)
    if kind == "python 2":
        path.write_bytes(python2(arrays))
    elif kind == "pairs":
        np.save(path, {name: list(pair) for name, pair in arrays.items()}, allow_pickle=True)
    else:  # protocol 2 of Python 3, which writes bytes as text
        named = {name: {"weights": weights, "biases": biases} for name, (weights, biases) in arrays.items()}
        path.write_bytes(npy(pickle.dumps(np.array(named, object), protocol=2)))
    return "npy", path


def refuse(match, origin, path, config=None, **kwargs):
    """Asserts that a file does not become a run, with one line that matches, and that nothing is left behind."""
    workdir = path.parent / "refused"
    with pytest.raises(UserError, match=match) as raised:
        convert.import_weights(origin, path, config or preset("caffe"), workdir, **kwargs)
    assert "\n" not in str(raised.value) and not workdir.exists()
