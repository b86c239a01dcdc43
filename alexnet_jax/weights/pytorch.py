"""State dicts of PyTorch, as .pth or .safetensors, with torchvision's names or ours.

Files may be hostile: nothing in them is run (torch.load with weights_only), and no size that they state is believed.
Only .pth files require PyTorch.
"""

import operator
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy

from alexnet_jax import UserError, one_line
from alexnet_jax.files import replacing
from alexnet_jax.runs.run import Run
from alexnet_jax.weights.layouts import PYTORCH, Arrays, complete, fc6_maps, from_ours, unreadable

# torchvision's AlexNet, after pytorch/vision, torchvision/models/alexnet.py. configs/one_weird_trick.py is the same
# network, with its training.
# Its modules and our layers; the numbers between are ReLU, pooling and dropout:
TORCHVISION_NAMES = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}
# The fields of a config's `model` section that determine what a network computes from its parameters:
TORCHVISION_FIELDS: dict[str, Any] = {
    "towers": 1,
    "removed": (),
    "conv_strides": (4, 1, 1, 1, 1),
    "conv1_padding": (2, 2),
    "activation": "relu",
    "pooled": ("conv1", "conv2", "conv5"),
    "pool_size": 3,
    "pool_stride": 2,
    "average_pool": 6,
    "lrn.layers": (),
    "spatial_norm.layers": (),
}
# The shapes of the kernels in our layout; None: the classes, of any number.
TORCHVISION_KERNELS: dict[str, tuple[int | None, ...]] = {
    "conv1": (11, 11, 3, 64),
    "conv2": (5, 5, 64, 192),
    "conv3": (3, 3, 192, 384),
    "conv4": (3, 3, 384, 256),
    "conv5": (3, 3, 256, 256),
    "fc6": (256 * 6 * 6, 4096),
    "fc7": (4096, 4096),
    "fc8": (4096, None),
}
_KINDS = {"weight": "kernel", "bias": "bias"}  # PyTorch's name of a parameter, and ours


def read(path: Path) -> Arrays:
    """The weights of a .safetensors, told by its suffix, or else a .pth, in PyTorch's layout and of any float type.

    Layers that AlexNet does not have keep the file's names. Raises UserError if the file is incomplete or of another
    kind, or if it is a .pth and PyTorch is not installed.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return _by_layer(_load_torch(path), path)


def read_safetensors(path: Path) -> Arrays:
    """The weights of a .safetensors of any name; see read."""
    try:
        state = safetensors.numpy.load_file(path)
    except Exception as error:  # SafetensorError, OSError, and KeyError for a type that NumPy does not have
        raise unreadable(path, "safetensors", error, "download it again, or convert it to float32") from error
    for name, array in state.items():
        if array.dtype.name == "bfloat16":
            state[name] = array.astype(np.float32)
    return _by_layer(state, path)


def write_torchvision(run: Run, path: Path) -> None:
    """Writes a state dict for torchvision.models.alexnet(): .safetensors by its suffix, else .pth.

    Raises UserError if the run is of another network, naming what differs, or if the file cannot be written.
    """
    _refuse_other_than_torchvision(run)
    theirs = {layer: name for name, layer in TORCHVISION_NAMES.items()}
    _write(_state(run, theirs), path)


def write_safetensors(run: Run, path: Path) -> None:
    """Writes the parameters under the paper's names, conv1.weight ... fc8.bias, in PyTorch's layout."""
    _write(_state(run, {layer: layer for layer in run.params}), path)


def _by_layer(state: dict[str, np.ndarray], path: Path) -> Arrays:
    """A state dict, {name: array}, by our layers' names. Raises UserError where it holds other than layers' weights."""
    arrays: Arrays = {}
    for name, array in state.items():
        without_parallel = re.sub(r"(^|\.)module\.", r"\1", name)  # DataParallel wraps the network or its convolutions
        module, _, kind = without_parallel.rpartition(".")
        if kind not in _KINDS:
            raise unreadable(path, "a state dict of AlexNet", f"it holds {name!r:.60}", "it is of another network")
        arrays.setdefault(TORCHVISION_NAMES.get(module, module), {})[_KINDS[kind]] = array
    return complete(arrays, path)


def _load_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .pth by their names, on their own or as the "state_dict" of a checkpoint."""
    torch = _torch("reading a .pth", "name a .safetensors")
    hint = "name a state dict, as torch.save(net.state_dict(), 'net.pth') writes, or its .safetensors"
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)  # which runs nothing in the file
    except OSError as error:
        raise unreadable(path, "a state dict", error.strerror or error, hint) from error
    except Exception as error:  # torch raises many kinds, and explains at length how to run what the file holds
        reason = f"its {path.stat().st_size:,} bytes are not PyTorch's, are incomplete, or hold more than tensors"
        raise unreadable(path, "a state dict", reason, hint) from error
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict):
        raise unreadable(path, "a state dict", f"it holds an object of type {type(found).__name__}", hint)
    if strange := [type(name).__name__ for name in found if type(name) is not str]:  # it may be too large to be written
        raise unreadable(path, "a state dict", f"a name in it is of type {strange[0]}", hint)
    return {name: _to_numpy(torch, name, tensor, path, hint) for name, tensor in found.items()}


def _to_numpy(torch: ModuleType, name: str, tensor: Any, path: Path, hint: str) -> np.ndarray:
    """A tensor of a .pth as an array. Raises UserError if it is not a plain one, or larger than its data."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise unreadable(path, "a state dict", f"its {name!r:.40} is not a plain tensor", hint)
    if tensor.is_meta or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        reason = f"{name!r:.40} claims the shape {tuple(tensor.shape)} without the numbers"
        raise unreadable(path, "a state dict", reason, "download it again")
    if tensor.is_floating_point() and tensor.element_size() < 4:  # NumPy has no bfloat16
        tensor = tensor.float()
    return tensor.detach().resolve_conj().resolve_neg().numpy()


def _refuse_other_than_torchvision(run: Run) -> None:
    """Raises UserError, naming a field or a layer, if a run's network is not torchvision's."""
    start, hint = f"{run.workdir} is not torchvision's AlexNet", "--to safetensors writes any network"
    for field, theirs in TORCHVISION_FIELDS.items():
        ours = operator.attrgetter(field)(run.config.model)
        if isinstance(ours, list):
            ours = tuple(ours)
        if ours != theirs:
            raise UserError(f"{start}: model.{field} is {ours} here and {theirs} there; {hint}")
    for layer in sorted(run.params.keys() | TORCHVISION_KERNELS):
        ours = run.params[layer]["kernel"].shape if layer in run.params else None
        theirs = TORCHVISION_KERNELS.get(layer)
        if layer == "fc8" and theirs:
            theirs = (*theirs[:-1], run.config.model.num_classes)
        if ours != theirs:
            raise UserError(f"{start}: the kernel of {layer} is {ours} here and {theirs} there; {hint}")


def _state(run: Run, names: dict[str, str]) -> dict[str, np.ndarray]:
    """A run's state dict. names: {our layer: its module}."""
    arrays = from_ours(run.params, PYTORCH, fc6_maps(run.config.model, run.params))
    return {f"{names[layer]}.{kind}": p[ours] for layer, p in arrays.items() for kind, ours in _KINDS.items()}


def _write(state: dict[str, np.ndarray], path: Path) -> None:
    with replacing(path) as partial:
        if path.suffix == ".safetensors":
            try:
                safetensors.numpy.save_file(state, partial, metadata={"format": "pt"})
            except Exception as error:  # SafetensorError, also for a full disk
                raise OSError(one_line(error)) from error
        else:
            torch = _torch("writing a .pth", "name a .safetensors with --out")
            try:
                torch.save({name: torch.from_numpy(array.copy()) for name, array in state.items()}, partial)
            except RuntimeError as error:  # a full disk, or a missing folder
                raise OSError(one_line(error)) from error


def _torch(what: str, otherwise: str) -> ModuleType:
    """PyTorch, imported only here. Raises UserError if it is missing."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{what} requires PyTorch: pip install torch, or {otherwise}") from error
    return torch
