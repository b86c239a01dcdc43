"""Weights from elsewhere into a run, and a run's weights out.

    alexnet convert --from torchvision --weights alexnet.pth --workdir runs/torchvision  # or .safetensors
    alexnet convert --from caffe --weights bvlc_alexnet.caffemodel --mean imagenet_mean.binaryproto \\
        --workdir runs/caffe                                     # --config configs/caffenet.py for the other of the two
    alexnet convert --from npy --weights bvlc_alexnet.npy --workdir runs/caffe
    alexnet convert --to torchvision --workdir runs/torchvision --out alexnet.pth
    alexnet convert --to safetensors --workdir runs/mine --out mine.safetensors        # or caffe-npy
    alexnet convert --to onnx --workdir runs/mine --out mine.onnx       # the whole network, or stablehlo

What comes in is checked against a config, shape by shape, and becomes a workdir that predict, features, evaluate and
figures take, and that configs/finetune.py starts from. Images are prepared, and their mean removed, as the config says.
Exported and converted again, weights are the same bit for bit.
"""

import datetime
import hashlib
import importlib
import json
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

import configs
from alexnet_jax import UserError, main, model
from alexnet_jax.cli.commands import command
from alexnet_jax.config import check as check_config
from alexnet_jax.data import classes
from alexnet_jax.runs import claims
from alexnet_jax.runs.run import Run, load_run
from alexnet_jax.weights import export, formats

FROM = flags.DEFINE_enum("from", None, ["torchvision", "caffe", "npy", "safetensors"], "what the weights come from")
WEIGHTS = flags.DEFINE_string("weights", None, "the file of weights")
MEAN = flags.DEFINE_string("mean", None, "Caffe's mean image: .binaryproto, or (3, side, side) as .npy or .npz")
CLASSES = flags.DEFINE_string("classes", None, "the classes' names, a line each; default: ILSVRC's 1,000, or numbers")
TO = flags.DEFINE_enum("to", None, ["torchvision", "safetensors", "caffe-npy", "onnx", "stablehlo"], "what to write")
OUT = flags.DEFINE_string("out", None, "the file to write")
WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "the checkpoint to write")

DEFAULT = {"torchvision": "one_weird_trick", "caffe": "caffe", "npy": "caffe"}  # the config of an origin
FAMILY = (
    "one_weird_trick", "caffe", "caffenet", "paper", "source", "one_column", "half_width", "ungrouped", "six_conv",
)  # fmt: skip
# Of ILSVRC's training set, in grey levels. Caffe: data/ilsvrc12, imagenet_mean.binaryproto, its channels' means.
CAFFE_MEAN = (122.679, 116.669, 104.007)  # R, G, B
# The principal components of RGB, as columns, and their deviations: akrizhevsky/cuda-convnet2, make-data/input_meta.
STDEVS = (19.7208, 37.0939, 121.7801)
VECTORS = ((0.41796, -0.71258, -0.56351), (-0.81698, -0.02354, -0.57618), (0.39731, 0.70120, -0.59200))

# --- In ---------------------------------------------------------------------------------------------------------------


def bring(
    origin: str, weights: Path, config: ConfigDict, workdir: Path, mean: Path | None = None, names: Path | None = None
) -> list[str]:
    """Makes the empty or new folder `workdir` a run of a file's weights. Returns lines that say what it is.

    Args:
      origin: see formats.read. mean: Caffe's mean image. names: a file with the classes' names.
    Raises UserError: a file that is no weights, of another network than the config's, or not of numbers; a mean image
    of another size; a workdir that is not empty.
    """
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UserError(f"{workdir} is not empty: name another --workdir, or remove it")
    check_config(config)
    wanted = model.shapes(config.model, config.data.crop)
    layers = formats.read(origin, weights)
    check(layers, wanted, origin, weights, config)
    params = formats.to_ours(layers, origin, maps(config.model, wanted))
    for name, p in params.items():
        if not all(np.isfinite(array).all() for array in p.values()):
            raise UserError(f"{name} in {weights} holds what is no number (NaN or infinity): fetch the file again")
    statistics, said = ilsvrc_statistics(config.data, mean)
    found = class_names(config.model.num_classes, names)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"from": origin, "file": weights.name, "sha256": digest, "date": date}
    partial = workdir.absolute().with_name(f".{workdir.absolute().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed conversion left
        claims.write_converted(partial, config, statistics, found, params, about)
        partial.rename(workdir.absolute())
    except OSError as error:
        raise UserError(f"cannot write {workdir} ({error.strerror or error}): name another --workdir") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [
        f"{workdir}: {model.parameter_count(params):,} parameters of {weights}, the network of {config.name}",
        f"  mean:    {said}",
        f"  classes: {found[0]} ... {found[-1]}",
    ]


def maps(config: ConfigDict, params) -> int:
    """How many maps an output of fc6 reads, by a config's `model` section and its parameters or their shapes."""
    return params["fc6"]["kernel"].shape[0] // model.fc6_side(config, params) ** 2


def check(layers: dict, wanted: dict, origin: str, path: Path, config: ConfigDict):
    """Raises UserError, naming the first layer that differs, if a file holds another network than the config's.

    Args: layers: as formats.read gives them; wanted: the shapes of the config's parameters.
    """
    found = {
        name: {"kernel": formats.our_shape(p["kernel"].shape, origin), "bias": p["bias"].shape}
        for name, p in layers.items()
    }
    expected = _plain(wanted)
    for name in (*sorted(expected), *(n for n in found if n not in expected)):
        theirs, ours = (_say(tree.get(name)) for tree in (found, expected))
        if theirs != ours:
            raise UserError(
                f"{path} is not the network of {config.name}: {name} is {theirs} there and {ours} here; "
                + _hint(found, expected)
            )


def _plain(shapes: dict) -> dict:
    return {name: {kind: p[kind].shape for kind in ("kernel", "bias")} for name, p in shapes.items()}


def _say(p: dict | None) -> str:
    """A layer's shapes, (height, width, inputs, outputs) or (inputs, outputs), for reading."""
    return "missing" if p is None else f"{' x '.join(map(str, p['kernel']))} with a bias of {p['bias'][0]}"


def _hint(found: dict, expected: dict) -> str:
    """What would fit."""

    def without_classes(tree):
        return {name: p if name != "fc8" else p["kernel"][:-1] for name, p in tree.items()}

    outputs = found["fc8"]["bias"][0] if "fc8" in found else expected["fc8"]["bias"][0]
    classes_flag = f"--config.model.num_classes={outputs}"
    if without_classes(found) == without_classes(expected):
        return f"{classes_flag} fits"
    fits = []
    for name in FAMILY:
        config = importlib.import_module(f"configs.{name}").get_config()
        shapes = _plain(model.shapes(config.model, config.data.crop))
        if without_classes(found) == without_classes(shapes):
            other = outputs != config.model.num_classes
            fits.append(f"--config configs/{name}.py{f' {classes_flag}' * other}")
    return f"{' or '.join(fits)} fits" if fits else "no config of the family fits: name one that does with --config"


def ilsvrc_statistics(data: ConfigDict, mean: Path | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The statistics of a run on ILSVRC-2012, and in words where its mean is from.

    Args: data: a config's `data` section; mean: Caffe's mean image, else one colour, the config's or Caffe's.
    """
    if mean and data.mean not in ("pixel", "centre", "channel"):
        raise UserError(f"--mean has no use where --config.data.mean is {data.mean}: leave it out")
    if mean:
        image, said = formats.read_mean(mean), f"the image of {mean}"
        if image.shape[0] != data.size:
            said = f"{mean} is {image.shape[0]} pixels a side"
            raise UserError(f"{said} and must have --config.data.size, {data.size}: name another with --mean")
    else:
        color = data.mean_value if data.mean == "value" else CAFFE_MEAN
        image = np.broadcast_to(np.float32(color), (data.size, data.size, 3))
        whose = "the config's" if data.mean == "value" else "Caffe's of ILSVRC-2012; --mean takes the image"
        said = f"{', '.join(f'{c:.3f}' for c in color)} of R, G, B, {whose}"
    arrays = {"mean": image, "channel_mean": image.mean((0, 1), np.float64), "stdevs": STDEVS, "vectors": VECTORS}
    return {name: np.array(array, np.float32) for name, array in arrays.items()}, said


def class_names(count: int, path: Path | None) -> list[str]:
    """The classes: the lines of a file, ILSVRC-2012's synsets if there are 1,000, else numbers."""
    if not path:
        return classes.SYNSETS if count == len(classes.SYNSETS) else [f"class {i}" for i in range(count)]
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): --classes takes a text with a name a line") from error
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"{path} has {len(set(names))} names, of {len(names)} lines, for {count} classes: one each")
    return names


# --- Out --------------------------------------------------------------------------------------------------------------


def write_torchvision(run: Run, path: Path):
    """A state dict for torchvision.models.alexnet(). Raises UserError, naming a field, if the run is another net."""
    theirs = json.loads(importlib.import_module("configs.one_weird_trick").get_config().model.to_json())
    ours = json.loads(run.config.model.to_json())
    for norm in ("lrn", "spatial_norm"):
        theirs[norm], ours[norm] = theirs[norm]["layers"], ours[norm]["layers"]
    # What is left out counts in training alone, or not where one tower reads all there is.
    free = {"num_classes", "dtype", "dropout", "dropout_before", "init", "init_std", "init_bias", "exchange"}
    for field in sorted(set(theirs) - free):
        if ours[field] != theirs[field]:
            raise UserError(
                f"{run.workdir} is not torchvision's AlexNet: model.{field} is {ours[field]} and there {theirs[field]}"
                "; --to safetensors writes any network"
            )
    formats.write_state_dict(_layers(run, "torchvision"), path, formats.TORCHVISION)


def write_safetensors(run: Run, path: Path):
    """The paper's names, conv1.weight ... fc8.bias, in PyTorch's layouts."""
    formats.write_state_dict(_layers(run, "safetensors"), path)


def write_npy(run: Run, path: Path):
    """{layer: [weights, biases]} in TensorFlow's layouts, blue first, as bvlc_alexnet.npy has it."""
    formats.write_npy(_layers(run, "npy"), path)


def _layers(run: Run, origin: str) -> dict:
    return formats.from_ours(run.params, origin, maps(run.config.model, run.params))


WRITERS: dict[str, tuple[Callable[[Run, Path], None], tuple[str, ...]]] = {  # by --to: how, and the suffixes it takes
    "torchvision": (write_torchvision, (".pth", ".pt", ".safetensors")),
    "safetensors": (write_safetensors, (".safetensors",)),
    "caffe-npy": (write_npy, (".npy",)),
    "onnx": (export.onnx, (".onnx",)),
    "stablehlo": (export.stablehlo, (".stablehlo",)),
}

# --- The command line -------------------------------------------------------------------------------------------------


def run(argv: list[str]):
    """absl's main; the user's mistakes end in one line."""
    if len(argv) > 1:
        sys.exit(f"error: '{argv[1]}' is not a flag; flags start with --")
    try:
        if (FROM.value is None) == (TO.value is None):
            raise UserError(
                f"say either --from ({', '.join((*DEFAULT, 'safetensors'))}) or --to ({', '.join(WRITERS)})"
            )
        if not main.WORKDIR.value:
            raise UserError("name the run's folder with --workdir")
        workdir = Path(main.WORKDIR.value).expanduser()
        if FROM.value:
            _in(workdir)
        else:
            _out(workdir)
    except UserError as e:
        sys.exit(f"error: {e}")


def _in(workdir: Path):
    if not WEIGHTS.value:
        raise UserError("name the file of weights with --weights")
    if OUT.value:
        raise UserError("--out is for --to: --from writes the --workdir")
    if main.CONFIG.value is None:
        raise UserError("name the network that the weights are of, such as --config configs/paper.py")
    config = main.CONFIG.value.copy_and_resolve_references()
    weights, mean, names = (Path(f.value).expanduser() if f.value else None for f in (WEIGHTS, MEAN, CLASSES))
    print("\n".join(bring(FROM.value, weights, config, workdir, mean, names)))
    print(f"  use it:  alexnet predict --workdir {workdir} photo.jpg")


def _out(workdir: Path):
    if not OUT.value:
        raise UserError("name the file to write with --out")
    if stray := [f.name for f in (WEIGHTS, MEAN, CLASSES) if f.value] + ["config"] * (main.CONFIG.value is not None):
        raise UserError(f"--{stray[0]} is for --from: --to writes the run in --workdir as it is")
    out, (write, suffixes) = Path(OUT.value).expanduser(), WRITERS[TO.value]
    if out.suffix not in suffixes and not out.is_dir():
        raise UserError(f"--to {TO.value} writes {' or '.join(suffixes)}, and --out is {out.name}")
    found = load_run(workdir, WHICH.value)
    write(found, out)
    print(f"{out}: {model.parameter_count(found.params):,} parameters, step {found.step} of {found.workdir}")


def parse(argv: list[str]) -> list[str]:
    """main.parse, with the origin's own config where none is named, so that --config.FIELD=VALUE changes that."""
    early = ArgumentParser(add_help=False, allow_abbrev=False, prefix_chars="-")
    early.add_argument("--from", "-from")
    early.add_argument("--config", "-config")
    given = vars(early.parse_known_args(argv[1:])[0])
    if given["config"] is None and given["from"] in DEFAULT:
        default = Path(configs.__file__).parent / f"{DEFAULT[given['from']]}.py"
        argv = [argv[0], f"--config={default}", *argv[1:]]
    return main.parse(argv)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    command(lambda _: app.run(run, flags_parser=parse))
