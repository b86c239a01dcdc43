"""AlexNet's weights in other people's files, and the way between their layouts and ours.

    layers = read("caffe", path)                       # {layer: {"kernel", "bias"}} as the file lays them out
    params = to_ours(layers, "caffe", maps=256)        # as model.AlexNet takes them
    layers = from_ours(params, "torchvision", maps=256)

Ours: convolutions (height, width, inputs / groups, outputs); fully connected layers (inputs, outputs), the inputs of
fc6 by row, column and map; conv1 reads red, green, blue. PyTorch and Caffe: (outputs, inputs / groups, height, width)
and (outputs, inputs), the inputs of fc6 by map, row and column. Towers are Caffe's groups: consecutive runs of outputs.
Caffe and what comes from it read blue, green, red. Nothing is scaled: all of them scale dropout in training, as here.

Files are taken for hostile: nothing in them is run, no size that they state is believed.
"""

import functools
import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from safetensors import numpy as safetensors

from alexnet_jax import UserError, one_line
from alexnet_jax.files import replacing

# torchvision/models/alexnet.py: its modules' names; the numbers between are of ReLU, pooling and dropout.
TORCHVISION = {
    "features.0": "conv1", "features.3": "conv2", "features.6": "conv3", "features.8": "conv4", "features.10": "conv5",
    "classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8",
}  # fmt: skip
BGR = ("caffe", "npy")
HWIO = ("npy",)  # TensorFlow's layouts, which are ours; all others have PyTorch's

# --- Layouts ----------------------------------------------------------------------------------------------------------


def our_shape(shape: tuple[int, ...], origin: str) -> tuple[int, ...]:
    """The shape in our layout of a kernel that has `shape` in a file of `origin`."""
    if origin in HWIO:
        return tuple(shape)
    return (*shape[2:], *shape[1::-1])


def to_ours(layers: dict, origin: str, maps: int) -> dict:
    """{layer: {"kernel", "bias"}} of a file in our layouts, float32. maps: how many maps an output of fc6 reads."""

    def kernel(name, w):
        if origin not in HWIO and w.ndim == 4:
            w = w.transpose(2, 3, 1, 0)
        elif origin not in HWIO:
            outputs, inputs = w.shape
            w = w.reshape(outputs, maps, -1).transpose(2, 1, 0).reshape(inputs, outputs) if name == "fc6" else w.T
        return w[:, :, ::-1] if name == "conv1" and origin in BGR else w

    return {n: {"kernel": _plain(kernel(n, p["kernel"])), "bias": _plain(p["bias"])} for n, p in layers.items()}


def from_ours(params: dict, origin: str, maps: int) -> dict:
    """The other way round: our parameters as a file of `origin` lays them out."""

    def kernel(name, w):
        w = w[:, :, ::-1] if name == "conv1" and origin in BGR else w
        if origin in HWIO:
            return w
        if w.ndim == 4:
            return w.transpose(3, 2, 0, 1)
        inputs, outputs = w.shape
        return w.reshape(-1, maps, outputs).transpose(2, 1, 0).reshape(outputs, inputs) if name == "fc6" else w.T

    arrays = {name: {kind: np.asarray(a) for kind, a in p.items()} for name, p in params.items()}
    return {n: {"kernel": _plain(kernel(n, p["kernel"])), "bias": _plain(p["bias"])} for n, p in arrays.items()}


def _plain(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(origin: str, path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{layer: {"kernel", "bias"}} of a file, in its own layouts and of any floating type.

    origin: torchvision (.pth, .safetensors; its names or ours), safetensors, caffe (.caffemodel), npy. Layers that
    AlexNet does not have keep the file's names. Raises UserError if the file is not whole or of another kind.
    """
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise UserError(f"{what}: name the file of weights with --weights")
    if origin == "caffe":
        return _read_caffe(path)
    if origin == "npy":
        return _read_npy(path)
    state = _read_safetensors if origin == "safetensors" or path.suffix == ".safetensors" else _read_torch
    return _from_state_dict(state(path), path)


def _unreadable(path: Path, kind: str, error: Exception | str, hint: str) -> UserError:
    reason = error if isinstance(error, str) else one_line(error)[:160]
    return UserError(f"{path} cannot be read as {kind} ({reason}): {hint}")


def _from_state_dict(state: dict[str, np.ndarray], path: Path) -> dict:
    layers, kinds = {}, {"weight": "kernel", "bias": "bias"}
    for name, array in state.items():
        plain = re.sub(r"(^|\.)module\.", r"\1", name)  # DataParallel, round the net or round its convolutions
        module, _, kind = plain.rpartition(".")
        if kind not in kinds:
            raise _unreadable(path, "a state dict of AlexNet", f"it holds '{name}'", "it is of another network")
        layers.setdefault(TORCHVISION.get(module, module), {})[kinds[kind]] = array
    return _both(layers, path)


def _both(layers: dict, path: Path) -> dict:
    """The layers, each of which has a kernel and a bias of floating numbers; raises UserError where one has not."""
    for name, p in layers.items():
        for kind in ("kernel", "bias"):
            if kind not in p:
                raise _unreadable(path, "AlexNet", f"{name} has no {kind}", "the file is not whole, or of another net")
            if not np.issubdtype(p[kind].dtype, np.floating):
                raise _unreadable(path, "AlexNet", f"{name} holds {p[kind].dtype}", "weights are floating numbers")
    if not layers:
        raise _unreadable(path, "AlexNet", "it holds no weights", "name a file of weights, not of a definition")
    return layers


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        state = safetensors.load_file(path)
    except Exception as error:  # SafetensorError, OSError, and KeyError for a type that NumPy lacks
        raise _unreadable(path, "safetensors", error, "fetch it again, or convert it to float32") from error
    return {name: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for name, a in state.items()}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = pytorch("reading a .pth", "give the .safetensors")
    hint = "it takes a state dict, as torch.save(net.state_dict(), 'net.pth') writes, or its .safetensors"
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)  # which runs nothing of the file's
    except OSError as error:
        raise _unreadable(path, "a state dict", error.strerror or one_line(error), hint) from error
    except Exception as error:  # torch raises many kinds, and tells at length how to run what the file holds
        reason = f"its {path.stat().st_size:,} bytes are not PyTorch's, not whole, or hold more than tensors"
        raise _unreadable(path, "a state dict", reason, hint) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise _unreadable(path, "a state dict", f"it holds a {type(found).__name__}", hint)
    state = {}
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise _unreadable(path, "a state dict", f"its {name!r:.40} is no plain tensor", hint)
        if tensor.is_meta or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            said = f"{name} is said to be {tuple(tensor.shape)} and its numbers are not there"
            raise _unreadable(path, "a state dict", said, "fetch it again")
        plain = tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
        state[str(name)] = plain.detach().resolve_conj().resolve_neg().numpy()
    return state


def pytorch(what: str, otherwise: str):
    """PyTorch, which only this needs. Raises UserError if it is missing."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{what} needs PyTorch: pip install torch, or {otherwise}") from error
    return torch


# --- Caffe ------------------------------------------------------------------------------------------------------------


@functools.cache
def _messages() -> dict[str, type]:
    """The messages of caffe.proto that hold weights; protobuf skips all their other fields.

    Numbers that Caffe packs are declared as bytes, which they are on the wire, so that 60 million of them come as one
    buffer. V1LayerParameter.layer is the layer of a V0 file.
    """
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    number, string = field.TYPE_INT64, field.TYPE_BYTES
    blobs = {
        "num": (1, one, number), "channels": (2, one, number), "height": (3, one, number), "width": (4, one, number),
        "data": (5, many, string), "shape": (7, one, "BlobShape"), "double_data": (8, many, string),
    }  # fmt: skip
    declared = {
        "BlobShape": {"dim": (1, many, number)},
        "BlobProto": blobs,
        "LayerParameter": {"name": (1, one, string), "blobs": (7, many, "BlobProto")},
        "V1LayerParameter": {"layer": (1, one, string), "name": (4, one, string), "blobs": (6, many, "BlobProto")},
        "NetParameter": {"layers": (2, many, "V1LayerParameter"), "layer": (100, many, "LayerParameter")},
    }
    file = descriptor_pb2.FileDescriptorProto(name="weights_of_caffe.proto", package="weights_of_caffe")
    for message, fields in declared.items():
        added = file.message_type.add(name=message)
        for name, (tag, label, kind) in fields.items():
            f = added.field.add(name=name, number=tag, label=label)
            if isinstance(kind, str):
                f.type, f.type_name = field.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                f.type = kind
    pool = descriptor_pool.DescriptorPool()  # our own: one that holds Caffe's caffe.proto may be loaded too
    pool.Add(file)
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(found[name]) for name in declared}


def _parse(path: Path, message: str, kind: str):
    try:
        return _messages()[message].FromString(path.read_bytes())
    except Exception as error:  # protobuf's, or of a file that cannot be read
        raise _unreadable(path, kind, error, "fetch it again; Caffe's HDF5 files are not read") from error


def _blob(blob, name: str, path: Path) -> np.ndarray:
    """A blob in the shape that it states: BlobShape, or the four numbers of Caffe before 2014."""
    raw, kind = (b"".join(blob.data), "<f4") if blob.data else (b"".join(blob.double_data), "<f8")
    dims = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    size = functools.reduce(int.__mul__, dims, 1)
    if min(dims) < 1 or size * int(kind[2]) != len(raw):
        held = f"{name} has {len(raw):,} bytes for numbers of shape {dims}"
        raise _unreadable(path, "a file of Caffe's", held, "fetch it again")
    return np.frombuffer(raw, kind).reshape(dims)


def _read_caffe(path: Path) -> dict:
    net = _parse(path, "NetParameter", "a .caffemodel")
    if any(layer.HasField("layer") for layer in net.layers):
        raise _unreadable(
            path, "a .caffemodel", "its format is V0, of 2013", "Caffe's upgrade_net_proto_binary mends it"
        )
    layers = {}
    for layer in (*net.layers, *net.layer):
        if not layer.blobs:  # ReLU, pooling and others without weights
            continue
        name = layer.name.decode("utf-8", "replace")
        if len(layer.blobs) != 2 or name in layers:
            held = f"{name} comes with {len(layer.blobs)} blobs" if name not in layers else f"{name} comes twice"
            raise _unreadable(path, "AlexNet", held, "it is of another network")
        kernel, bias = (_blob(blob, name, path) for blob in layer.blobs)
        # Before 2014 every blob had four dimensions: (1, 1, outputs, inputs) and (1, 1, 1, outputs).
        if kernel.shape[:-2] == (1, 1):
            kernel = kernel.reshape(kernel.shape[2:])
        layers[name] = {"kernel": kernel, "bias": bias.reshape(-1)}
    return _both(layers, path)


def read_mean(path: Path) -> np.ndarray:
    """Caffe's mean image, float32 (side, side, 3), RGB: of a .binaryproto, or of an .npy or .npz, (3, side, side), BGR.

    Raises UserError if the file holds no such array, or several.
    """
    kind = "a mean image, (3, side, side), blue first"
    if not path.is_file():
        raise UserError(f"there is no file {path}: name the mean image with --mean")
    if path.suffix in (".npy", ".npz"):
        try:
            with open(path, "rb") as file:
                found = np.load(file, allow_pickle=False)
                found = list(found.values()) if path.suffix == ".npz" else [found]
        except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise _unreadable(path, kind, type(error).__name__, "it takes an .npy or .npz of plain arrays") from error
        found = [a for a in found if a.ndim == 3]
    else:
        found = [_blob(_parse(path, "BlobProto", kind), "the mean", path)]
        found = [a.reshape(a.shape[-3:]) for a in found if a.shape[:-3] in ((), (1,))]
    found = [a for a in found if a.shape[0] == 3 and a.shape[1] == a.shape[2] and np.issubdtype(a.dtype, np.floating)]
    if len(found) != 1 or not np.isfinite(found[0]).all():
        raise _unreadable(path, kind, f"it holds {len(found) or 'no'} such arrays of finite numbers", "name another")
    return _plain(found[0][::-1].transpose(1, 2, 0))


# --- .npy -------------------------------------------------------------------------------------------------------------


def _read_npy(path: Path) -> dict:
    """An .npy of one object, {layer: [weights, biases]} or {layer: {"weights", "biases"}}, of Python 2 or 3."""
    hint = "it takes {layer: [weights, biases]} as bvlc_alexnet.npy has it; fetch it again"
    try:
        with open(path, "rb") as file:
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header[np.lib.format.read_magic(file)](file)
            if dtype.kind != "O" or shape != ():
                raise ValueError(f"it is an array {shape} of {dtype}")
            net = _Unpickler(io.BytesIO(file.read()), encoding="latin1").load().item()
        layers = {}
        for name, held in net.items():
            kernel, bias = (held["weights"], held["biases"]) if isinstance(held, dict) else held
            layers[str(name)] = {"kernel": kernel.array(), "bias": bias.array()}
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a pickle that is damaged, or not what we know, raises anything
        raise _unreadable(path, "an .npy of weights", error, hint) from error
    return _both(layers, path)


class _Array:
    """A pickled array, not yet made: its sizes are only believed where the numbers are there."""

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def item(self) -> dict:
        [found] = self.raw  # of an array of one object
        return found

    def array(self) -> np.ndarray:
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw  # Python 2 had no bytes
        dtype = self.dtype.numpy()
        if functools.reduce(int.__mul__, self.shape, dtype.itemsize) != len(raw):
            raise ValueError(f"{len(raw):,} bytes for an array {self.shape} of {dtype}")
        return np.frombuffer(raw, dtype).reshape(self.shape, order="F" if self.fortran else "C")


class _Dtype:
    """A pickled dtype: a code such as f4 and, in its state, the order of its bytes."""

    def __init__(self, code, *_):
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if not (re.fullmatch(r"f[248]", self.code) and re.fullmatch(r"[<>]", self.order)):
            raise ValueError(f"an array of type {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class _Named:
    """What a pickle may name: something to be called. No class, no function of ours or NumPy's, gets into its hands."""

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *args):
        return self.call(*args)


class _Unpickler(pickle._Unpickler):
    """Builds what a pickle of NumPy's arrays holds, out of stand-ins, and refuses to name anything else.

    Python's own unpickler in place of the one in C, which allots memory for any number that a memo's opcode names.
    """

    def find_class(self, module: str, name: str) -> _Named:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Named(lambda *_: _Array())  # (ndarray, (0,), b"b"): an empty one, whose state follows
        if (module, name) == ("numpy", "ndarray"):
            return _Named(lambda *_: _Array())
        if (module, name) == ("numpy", "dtype"):
            return _Named(_Dtype)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _Named(lambda text, _: str.encode(text, "latin1"))
        raise UserError(
            f"asks to run {module}.{name}, which weights have no use for: it may be hostile; nothing was run"
        )

    def load_bytearray8(self):
        raise pickle.UnpicklingError("it holds a bytearray")  # whose room would be made before its bytes are seen

    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: load_bytearray8}


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_state_dict(layers: dict, path: Path, names: dict[str, str] | None = None):
    """Writes layers as a PyTorch state dict: .safetensors by its suffix, else .pth. names: ours by theirs."""
    theirs = {ours: name for name, ours in (names or {}).items()}
    kinds = {"weight": "kernel", "bias": "bias"}
    state = {f"{theirs.get(n, n)}.{kind}": p[ours] for n, p in layers.items() for kind, ours in kinds.items()}
    with replacing(path) as partial:
        if path.suffix == ".safetensors":
            try:
                safetensors.save_file(state, partial, metadata={"format": "pt"})
            except Exception as error:  # SafetensorError, also for a full disk
                raise OSError(one_line(error)) from error
        else:
            torch = pytorch("writing a .pth", "name a .safetensors with --out")
            try:
                torch.save({name: torch.from_numpy(array.copy()) for name, array in state.items()}, partial)
            except RuntimeError as error:  # how torch says that the disk is full, or that there is no such folder
                raise OSError(one_line(error)) from error


def write_npy(layers: dict, path: Path):
    """Writes {layer: [weights, biases]} as one object, as bvlc_alexnet.npy is."""
    net = np.array({name: [p["kernel"], p["bias"]] for name, p in layers.items()}, object)
    with replacing(path) as partial, partial.open("wb") as file:
        np.lib.format.write_array(file, net, allow_pickle=True)
