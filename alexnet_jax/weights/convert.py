"""Brings weights of other programs into a run, and writes a run's weights for other programs.

    alexnet convert --from torchvision --weights alexnet.pth --workdir runs/torchvision   # or .safetensors
    alexnet convert --from caffe --weights bvlc_alexnet.caffemodel --mean imagenet_mean.binaryproto --workdir runs/caffe
    alexnet convert --from caffe --config configs/caffenet.py --weights bvlc_reference_caffenet.caffemodel \\
        --workdir runs/caffenet
    alexnet convert --from npy --weights bvlc_alexnet.npy --workdir runs/caffe
    alexnet convert --to torchvision --workdir runs/torchvision --out alexnet.pth
    alexnet convert --to safetensors --workdir runs/mine --out mine.safetensors           # or caffe-npy
    alexnet convert --to onnx --workdir runs/mine --out mine.onnx                         # or stablehlo

Weights that come in are checked against a config, layer by layer. The workdir can then be used as any other: predict,
features, evaluate and figures take it, and configs/finetune.py starts from it. Images are prepared, and their mean is
removed, as the config says. Weights that are written and brought in again are the same bit for bit.
"""

import datetime
import hashlib
import shlex
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import UserError, files, network
from alexnet_jax.cli import commands, config_file
from alexnet_jax.config import check
from alexnet_jax.runs import ownership
from alexnet_jax.runs.run import Run, load_run
from alexnet_jax.weights import caffe, ilsvrc, npy, onnx_graph, pytorch, stablehlo
from alexnet_jax.weights.layouts import CAFFE, PYTORCH, TENSORFLOW, Arrays, Layout, fc6_maps, our_shape, to_ours

Shapes = dict[str, dict[str, tuple[int, ...]]]  # {layer: {"kernel", "bias"}}, in our layout


class Origin(NamedTuple):
    """A kind of file that weights come from."""

    read: Callable[[Path], Arrays]
    layout: Layout
    config: str | None  # the name of the config in configs/ that most such files fit


class Target(NamedTuple):
    """A kind of file that a run can be written to."""

    write: Callable[[Run, Path], None]
    suffixes: tuple[str, ...]


ORIGINS = {
    "torchvision": Origin(pytorch.read, PYTORCH, "one_weird_trick"),
    "caffe": Origin(caffe.read, CAFFE, "caffe"),
    "npy": Origin(npy.read, TENSORFLOW, "caffe"),
    "safetensors": Origin(pytorch.read_safetensors, PYTORCH, None),
}
TARGETS = {
    "torchvision": Target(pytorch.write_torchvision, (".pth", ".pt", ".safetensors")),
    "safetensors": Target(pytorch.write_safetensors, (".safetensors",)),
    "caffe-npy": Target(npy.write, (".npy",)),
    "onnx": Target(onnx_graph.write, (".onnx",)),
    "stablehlo": Target(stablehlo.write, (".stablehlo",)),
}
# The configs to name where weights are of another network: those in configs/ whose networks differ.
FAMILY = (
    "one_weird_trick",
    "caffe",
    "caffenet",
    "paper",
    "source",
    "one_column",
    "half_width",
    "ungrouped",
    "six_conv",
)


def add_flags(parser: ArgumentParser) -> None:
    """The flags of `alexnet convert`."""
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="origin", choices=ORIGINS, help="what the weights come from")
    direction.add_argument("--to", dest="target", choices=TARGETS, help="what to write")
    commands.add_workdir(parser)
    incoming = parser.add_argument_group("with --from")
    incoming.add_argument("--weights", type=Path, metavar="FILE", help="the file of weights")
    says = "Caffe's mean image: .binaryproto, or (3, side, side) as .npy or .npz (default: one colour)"
    incoming.add_argument("--mean", type=Path, metavar="FILE", help=says)
    says = "the names of the classes, one per line (default: ILSVRC's 1,000 synsets, or numbers)"
    incoming.add_argument("--classes", type=Path, metavar="FILE", help=says)
    outgoing = parser.add_argument_group("with --to")
    outgoing.add_argument("--out", type=Path, metavar="FILE", help="the file to write")
    commands.add_which(parser)
    commands.add_config(parser, required=False, default=default_config)


def default_config(flags: Namespace) -> Path | None:
    """The config file of the weights' origin, where --config names none and the package runs from its repository."""
    home = config_file.checkout()
    if flags.origin is None and any(word.startswith("--config.") for word in shlex.split(flags.command)):
        raise UserError("fields of a config are for --from: --to writes the run in --workdir as it is")
    if home is None or flags.origin is None or ORIGINS[flags.origin].config is None:
        return None
    return home / "configs" / f"{ORIGINS[flags.origin].config}.py"


def main(flags: Namespace) -> None:
    """Runs `alexnet convert`."""
    workdir = files.expanded(flags.workdir)
    if flags.origin:
        _main_from(flags, workdir)
    else:
        _main_to(flags, workdir)


def _main_from(flags: Namespace, workdir: Path) -> None:
    if flags.weights is None:
        raise UserError("name the file of weights with --weights")
    if flags.out is not None:
        raise UserError("--out is for --to: --from writes to --workdir")
    if flags.which != "best":
        raise UserError("--which is for --to: a file of weights has no checkpoints")
    if flags.config is None:
        raise UserError("name the config of the network that the weights are of, such as --config configs/paper.py")
    config = flags.config.copy_and_resolve_references()
    mean = flags.mean and files.expanded(flags.mean)
    names = flags.classes and files.expanded(flags.classes)
    for line in import_weights(flags.origin, files.expanded(flags.weights), config, workdir, mean, names):
        print(line)
    print(f"  use it:  alexnet predict --workdir {workdir} photo.jpg")


def _main_to(flags: Namespace, workdir: Path) -> None:
    for name in ("weights", "mean", "classes", "config"):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name} is for --from: --to writes the run in --workdir as it is")
    if flags.out is None:
        raise UserError("name the file to write with --out")
    out, target = files.expanded(flags.out), TARGETS[flags.target]
    if out.suffix not in target.suffixes and not out.is_dir():
        raise UserError(f"--to {flags.target} writes {' or '.join(target.suffixes)}, and --out is {out.name}")
    run = load_run(workdir, flags.which)
    if flags.target != "stablehlo":  # a program, whatever the network
        _refuse_chain(run.config, str(workdir))
    target.write(run, out)
    print(f"{out}: {network.parameter_count(run.params):,} parameters, step {run.step} of {run.workdir}")


def import_weights(
    origin: str, weights: Path, config: ConfigDict, workdir: Path, mean: Path | None = None, names: Path | None = None
) -> list[str]:
    """Makes `workdir`, a new or empty folder, a run with the weights of a file.

    Args:
      origin: a key of ORIGINS. weights: the file. config: of the weights' network.
      mean: Caffe's mean image. names: a file with the names of the classes.
    Returns: lines that describe the run.
    Raises UserError, and leaves no workdir behind, if the file cannot be read, is of another network than the config's,
    or contains NaN or infinity; if the config is of no AlexNet; if the mean or the names do not fit it; if the workdir
    is not empty or cannot be written.
    """
    if workdir.exists() and not _is_empty_folder(workdir):
        raise UserError(f"{workdir} is not empty: name another --workdir, or remove it")
    check(config)
    _refuse_chain(config, config.name)
    params = _read_params(origin, weights, config)
    statistics, source_of_mean = ilsvrc.statistics(config.data, mean)
    classes = ilsvrc.class_names(config.model.num_classes, names)
    _write_run(workdir, config, statistics, classes, params, _about(origin, weights))
    return [
        f"{workdir}: {network.parameter_count(params):,} parameters of {weights}, the network of {config.name}",
        f"  mean:    {source_of_mean}",
        f"  classes: {classes[0]} ... {classes[-1]}",
    ]


def _refuse_chain(config: ConfigDict, name: str) -> None:
    if config.model.layers:
        raise UserError(f"{name} is no AlexNet but a chain of layers, and no other framework's file holds those")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _read_params(origin: str, path: Path, config: ConfigDict) -> Arrays:
    """The parameters of the config's network, in our layout, from a file of weights."""
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise UserError(f"{what}: name the file of weights with --weights")
    read, layout, _ = ORIGINS[origin]
    arrays = read(path)
    refuse_other_network(arrays, layout, path, config)
    if origin == "caffe":
        caffe.refuse_other_order(path, config)
    maps = fc6_maps(config.model, network.shapes(config.model, config.data.crop))
    params = to_ours(arrays, layout, maps)
    for layer, p in params.items():
        if not all(np.isfinite(array).all() for array in p.values()):
            raise UserError(f"{layer} in {path} contains NaN or infinity: download the file again")
    return params


def _about(origin: str, weights: Path) -> dict[str, str]:
    """Where weights come from, for the run's converted.json."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"from": origin, "file": weights.name, "sha256": digest, "date": date}


def _write_run(
    workdir: Path, config: ConfigDict, statistics: dict, classes: list[str], params: Arrays, about: dict
) -> None:
    """Writes the run beside `workdir` and renames it when it is complete."""
    workdir = workdir.absolute()
    partial, lock = (workdir.with_name(f".{workdir.name}.{end}") for end in ("partial", "lock"))

    def busy() -> None:
        raise UserError(f"another conversion writes {workdir}: wait for it, or name another --workdir")

    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with files.alone(lock, busy):
            try:
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed conversion
                ownership.write_converted(partial, config, statistics, classes, params, about)
                partial.rename(workdir)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {workdir} ({error.strerror or error}): name another --workdir") from error


def refuse_other_network(arrays: Arrays, layout: Layout, path: Path, config: ConfigDict) -> None:
    """Raises UserError, naming the first layer that differs, unless the arrays of a file are the config's network's.

    Args: arrays, layout: what was read from the file `path`.
    """
    found = {
        layer: {"kernel": our_shape(p["kernel"].shape, layout), "bias": p["bias"].shape} for layer, p in arrays.items()
    }
    expected = network_shapes(config)
    unexpected = [layer for layer in found if layer not in expected]
    for layer in [*sorted(expected), *unexpected]:
        if found.get(layer) != expected.get(layer):
            theirs, ours = _describe(found.get(layer)), _describe(expected.get(layer))
            hint = what_fits(found, expected)
            raise UserError(
                f"{path} is not the network of {config.name}: {layer} is {theirs} there, {ours} here; {hint}"
            )


def network_shapes(config: ConfigDict) -> Shapes:
    """The shapes of the parameters of a config's network."""
    shapes = network.shapes(config.model, config.data.crop)
    return {layer: {kind: p[kind].shape for kind in ("kernel", "bias")} for layer, p in shapes.items()}


def _describe(shapes: dict[str, tuple[int, ...]] | None) -> str:
    """A layer's shapes in words: height x width x inputs x outputs, or inputs x outputs."""
    if shapes is None:
        return "missing"
    return f"{' x '.join(map(str, shapes['kernel']))} with {shapes['bias'][0]} biases"


def what_fits(found: Shapes, expected: Shapes) -> str:
    """The --config, or the field, that fits a file, to end a message with.

    Args: found: the shapes in the file; expected: those of the config, which differ.
    """
    fc8 = found.get("fc8") or expected["fc8"]
    set_classes = f"--config.model.num_classes={fc8['bias'][0]}"
    if _without_classes(found) == _without_classes(expected):
        return f"{set_classes} fits"
    fits = []
    for name, shapes in _family().items():
        if _without_classes(found) == _without_classes(shapes):
            same_classes = fc8["bias"] == shapes["fc8"]["bias"]
            fits.append(f"--config configs/{name}.py" if same_classes else f"--config configs/{name}.py {set_classes}")
    if fits:
        return f"{' or '.join(fits)} fits"
    return "name a config of its network with --config"


def _family() -> dict[str, Shapes]:
    """The shapes of the networks of FAMILY by their names; none where the package runs without its repository."""
    home = config_file.checkout()
    if home is None:
        return {}
    paths = [home / "configs" / f"{name}.py" for name in FAMILY]
    return {path.stem: network_shapes(config_file.call(config_file.load(path), path, None)) for path in paths}


def _without_classes(shapes: Shapes) -> Shapes:
    """The shapes without the number of classes."""
    reduced = dict(shapes)
    if "fc8" in shapes:
        reduced["fc8"] = {"kernel": shapes["fc8"]["kernel"][:-1]}
    return reduced
