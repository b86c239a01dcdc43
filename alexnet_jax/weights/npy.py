"""Pickled .npy files of weights, as bvlc_alexnet.npy, in TensorFlow's layout with blue first.

A pickle can run anything when it is read. This one is read by an unpickler of our own: what the file names is replaced
by stand-ins that hold data, every other name is refused, and no size that it states is believed.
"""

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import UserError
from alexnet_jax.files import replacing
from alexnet_jax.runs.run import Run
from alexnet_jax.weights.layouts import TENSORFLOW, Arrays, complete, fc6_maps, from_ours, unreadable


def read(path: Path) -> Arrays:
    """The weights of an .npy that pickles {layer: [weights, biases]} or {layer: {"weights", "biases"}}.

    The pickle may be Python 2's or 3's. Raises UserError, and runs nothing, if the file is anything else.
    """
    hint = "an .npy must hold {layer: [weights, biases]} as bvlc_alexnet.npy does; download it again"
    arrays: Arrays = {}
    try:
        for layer, pair in _unpickle(path).items():
            kernel, bias = (pair["weights"], pair["biases"]) if isinstance(pair, dict) else pair
            if type(layer) is not str:  # anything else may be too large to be written out
                raise ValueError(f"a layer's name is of type {type(layer).__name__}")
            arrays[layer] = {"kernel": kernel.array(), "bias": bias.array()}
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a damaged or foreign pickle can raise anything
        raise unreadable(path, "an .npy of weights", error, hint) from error
    return complete(arrays, path)


def write(run: Run, path: Path) -> None:
    """Writes {layer: [weights, biases]} as bvlc_alexnet.npy has it. Raises UserError if it cannot be written."""
    arrays = from_ours(run.params, TENSORFLOW, fc6_maps(run.config.model, run.params))
    net = np.array({layer: [p["kernel"], p["bias"]] for layer, p in arrays.items()}, object)
    with replacing(path) as partial, partial.open("wb") as file:
        np.lib.format.write_array(file, net, allow_pickle=True)


def _unpickle(path: Path) -> dict:
    """The object in an .npy, its arrays as stand-ins."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file:
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
        if dtype.kind != "O" or shape != ():
            raise ValueError(f"it is an array {shape} of {dtype}")
        return _Unpickler(io.BytesIO(file.read()), encoding="latin1").load().item()


class _Array:
    """Stands in for a pickled array. The real one is only made where its bytes are as many as its shape says."""

    shape: Any
    dtype: Any
    fortran: Any
    raw: Any

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def item(self) -> dict:
        """The object of an array that holds one."""
        [found] = self.raw
        return found

    def array(self) -> np.ndarray:
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw  # Python 2 had no bytes
        dtype = self.dtype.numpy()
        if not isinstance(self.shape, tuple) or not all(type(n) is int for n in self.shape):
            raise ValueError("an array whose shape is not a tuple of numbers")
        if math.prod(self.shape) * dtype.itemsize != len(raw):
            raise ValueError(f"{len(raw):,} bytes for an array {self.shape} of {dtype}")
        return np.frombuffer(raw, dtype).reshape(self.shape, order="F" if self.fortran else "C")


class _Dtype:
    """Stands in for a pickled dtype: a code such as f4 and, in its state, the order of its bytes."""

    def __init__(self, code: Any, *_: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if self.code not in ("f2", "f4", "f8") or self.order not in ("<", ">"):
            said = f"{self.order}{self.code}" if type(self.order) is type(self.code) is str else "unknown"
            raise ValueError(f"an array of type {said:.20}")
        return np.dtype(self.order + self.code)


class _Named:
    """Stands in for what a pickle names, and can only be called: the pickle never gets hold of a class or function."""

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class _Unpickler(pickle._Unpickler):
    """Rebuilds pickled NumPy arrays out of stand-ins, and refuses all other names.

    Python's own unpickler instead of the C one, which allocates memory for any number that a memo opcode names.
    """

    def find_class(self, module: str, name: str) -> _Named:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Named(lambda *_: _Array())  # its arguments make an empty array; the state follows
        if (module, name) == ("numpy", "ndarray"):
            return _Named(lambda *_: _Array())
        if (module, name) == ("numpy", "dtype"):
            return _Named(_Dtype)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _Named(lambda text, _: str.encode(text, "latin1"))
        asked = repr(f"{module}.{name}")[:60]
        raise UserError(f"asks to run {asked}, which weights never require: it may be hostile; nothing was run")

    stack: list  # of pickle._Unpickler: what follows the last mark

    def _refuse_keys(self, keys: list) -> None:  # a tuple of tuples of tuples may take years to hash
        if any(type(key) not in (str, bytes) for key in keys):
            raise pickle.UnpicklingError("a key that is no text")

    def _load_setitem(self) -> None:
        self._refuse_keys(self.stack[-2:-1])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def _load_setitems(self) -> None:
        self._refuse_keys(self.stack[::2])
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def _load_dict(self) -> None:
        self._refuse_keys(self.stack[::2])
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    def _refuse(self) -> None:  # a bytearray would be allocated before its bytes are seen, and sets hash as dicts do
        raise pickle.UnpicklingError("it holds a bytearray or a set")

    dispatch = pickle._Unpickler.dispatch | {  # type: ignore[assignment]
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        **dict.fromkeys((pickle.BYTEARRAY8[0], pickle.EMPTY_SET[0], pickle.FROZENSET[0]), _refuse),
    }
