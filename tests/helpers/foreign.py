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


def caffe():
    """The message classes of caffe.proto, with floats as floats and some of the fields that a reader must skip."""
    f = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    fields = {
        "BlobShape": [("dim", 1, f.TYPE_INT64, True)],
        "BlobProto": [("num", 1, f.TYPE_INT32, False), ("channels", 2, f.TYPE_INT32, False),
                      ("height", 3, f.TYPE_INT32, False), ("width", 4, f.TYPE_INT32, False),
                      ("data", 5, f.TYPE_FLOAT, True), ("diff", 6, f.TYPE_FLOAT, True),
                      ("shape", 7, "BlobShape", False), ("double_data", 8, f.TYPE_DOUBLE, True)],
        "LayerParameter": [("name", 1, f.TYPE_STRING, False), ("type", 2, f.TYPE_STRING, False),
                           ("bottom", 3, f.TYPE_STRING, True), ("blobs", 7, "BlobProto", True)],
        "V0LayerParameter": [("name", 1, f.TYPE_STRING, False), ("blobs", 50, "BlobProto", True)],
        "V1LayerParameter": [("layer", 1, "V0LayerParameter", False), ("bottom", 2, f.TYPE_STRING, True),
                             ("name", 4, f.TYPE_STRING, False), ("type", 5, f.TYPE_INT32, False),
                             ("blobs", 6, "BlobProto", True)],
        "NetParameter": [("name", 1, f.TYPE_STRING, False), ("layers", 2, "V1LayerParameter", True),
                         ("layer", 100, "LayerParameter", True)],
    }  # fmt: skip
    for message, those in fields.items():
        added = file.message_type.add(name=message)
        for name, number, kind, many in those:
            field = added.field.add(name=name, number=number, label=f.LABEL_REPEATED if many else f.LABEL_OPTIONAL)
            if isinstance(kind, str):
                field.type, field.type_name = f.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = kind
                if many and kind != f.TYPE_STRING:
                    field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(m)
        for name, m in pool.FindFileByName(file.name).message_types_by_name.items()
    }


CAFFE = caffe()


def fill(blob, array, old):
    """Numbers and their shape into a BlobProto: as before 2014 in four numbers, or in a BlobShape."""
    if old:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)
    blob.data.extend(array.ravel().tolist())
    blob.diff.extend([1.0, 2.0])  # of a solver's snapshot
    return blob


def caffemodel(net, old):
    """A PyTorch network in RGB, {layer: module}, as a .caffemodel in BGR; old: in V1 layers."""
    out = CAFFE["NetParameter"](name="AlexNet")
    for name, module in net.items():
        weight = module.weight.detach().numpy()
        weight = weight[:, ::-1] if name == "conv1" else weight
        layer = out.layers.add(name=name, type=4) if old else out.layer.add(name=name, type="Convolution")
        layer.bottom.append("below")
        fill(layer.blobs.add(), weight, old)
        fill(layer.blobs.add(), module.bias.detach().numpy(), old)
        (out.layers if old else out.layer).add(name="relu", type=18 if old else "ReLU")
    return out.SerializeToString()


def tensorflow(net, side):
    """A PyTorch network in RGB as {layer: (weights, biases)} in TensorFlow's layouts and BGR."""
    out = {}
    for name, module in net.items():
        w, b = module.weight.detach().numpy(), module.bias.detach().numpy()
        if w.ndim == 4:
            w = np.moveaxis(w, (2, 3, 1, 0), (0, 1, 2, 3))
            w = np.flip(w, 2) if name == "conv1" else w
        else:
            if name == "fc6":  # an output's weights, from map, row, column to row, column, map
                w = np.stack([row.reshape(-1, side, side).transpose(1, 2, 0).ravel() for row in w])
            w = w.T
        out[name] = np.ascontiguousarray(w), b
    return out


def npy(pickled):
    """An .npy of one object whose pickle is given."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickled


def python2(net):
    """What NumPy under Python 2 wrote for {layer: [weights, biases]}: protocol 2, byte strings throughout."""

    def string(s):
        return b"T" + struct.pack("<I", len(s)) + s

    def array(shape, code, order, raw, fortran=b"\x89"):
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\n" + string(code) + b"K\x00K\x01\x87R"
        kind += b"(K\x03" + string(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        dims = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in shape) + b"t"
        return empty + b"(K\x01" + dims + kind + fortran + raw + b"tb"

    held = b"}("
    for name, (w, b) in net.items():
        # One array in columns' order, one of the other byte order: both are met.
        w = array(w.shape, b"f4", b"<", string(np.asfortranarray(w).tobytes("F")), b"\x88")
        held += (
            string(name.encode()) + b"](" + w + array(b.shape, b"f4", b">", string(b.astype(">f4").tobytes())) + b"e"
        )
    return npy(b"\x80\x02" + array((), b"O8", b"|", b"]" + held + b"ua") + b".")


class TorchVision(nn.Module):
    """torchvision's network and names at other widths."""

    def __init__(self, w, f, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, w[0], 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(w[0], w[1], 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(w[1], w[2], 3, padding=1), nn.ReLU(), nn.Conv2d(w[2], w[3], 3, padding=1), nn.ReLU(),
            nn.Conv2d(w[3], w[4], 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(w[4] * 36, f[0]), nn.ReLU(), nn.Dropout(), nn.Linear(f[0], f[1]), nn.ReLU(),
            nn.Linear(f[1], classes),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(6)

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


# --- Narrow networks in such files -----------------------------------------------------------------------------------

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
    """The origin's network, and {layer: module}."""
    net = network(WIDTHS, FCS, SIDE, **ORIGINS[name])
    randomize(net)
    return net.eval(), {layer: net.get_submodule(layer) for layer in LAYERS}


def write(folder, kind, net):
    """The network in a file of a kind; returns convert's --from and the path."""
    path = folder / f"net.{'caffemodel' if kind[0] == 'V' else 'npy'}"
    layers = tensorflow(net, SIDE)
    if kind in ("V1", "V2"):
        path.write_bytes(caffemodel(net, old=kind == "V1"))
    elif kind == "python 2":
        path.write_bytes(python2(layers))
    elif kind == "pairs":
        np.save(path, {name: list(p) for name, p in layers.items()}, allow_pickle=True)
    else:  # protocol 2 of Python 3, which writes bytes as text
        held = {name: {"weights": w, "biases": b} for name, (w, b) in layers.items()}
        path.write_bytes(npy(pickle.dumps(np.array(held, object), protocol=2)))
    return "caffe" if kind[0] == "V" else "npy", path


def refuse(match, origin, path, config=None, **kwargs):
    workdir = path.parent / "refused"
    with pytest.raises(UserError, match=match) as raised:
        convert.bring(origin, path, config or preset("caffe"), workdir, **kwargs)
    assert "\n" not in str(raised.value) and not workdir.exists()
