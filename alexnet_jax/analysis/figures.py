"""A run's pictures: the paper's figures 3 and 4, training curves, and what the network gets wrong.

    alexnet figures --workdir runs/paper                             # kernels, curves, ... mistakes
    alexnet figures --workdir runs/paper --what neighbours --out pictures
    alexnet figures --workdir runs/caffe --data imagenette/160px-v2  # of other images than its own
    alexnet figures --workdir runs/a --workdir runs/b                # their curves in one picture
    alexnet figures --weights caffe.npz --bgr --towers 2             # conv1 of another network

With the kernels it prints how much of them is colour, and whether one tower is colour-blind.
"""

import sys
import zipfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax import UserError, metrics, one_line
from alexnet_jax.analysis.curves import curves
from alexnet_jax.analysis.plots import confusion, kernels, mistakes, predictions
from alexnet_jax.analysis.predict import predict
from alexnet_jax.analysis.retrieve import draw_neighbours
from alexnet_jax.analysis.specialisation import color_blindness
from alexnet_jax.cli.commands import add_batch_size, add_data, add_devices, add_which, add_workdir, use_devices
from alexnet_jax.data.images import SplitImages, subset
from alexnet_jax.data.records import Split
from alexnet_jax.evaluate import images_for
from alexnet_jax.files import expanded
from alexnet_jax.metrics import METRICS, read_metrics
from alexnet_jax.runs.run import Run, data_of, load_run, read_config

QUICK = ("kernels", "curves", "predictions")  # drawn at the end of training: they need eight images at most
ONE_PASS = ("confusion", "mistakes")  # they need one pass over the validation split
MOST_CLASSES = 2000  # of a confusion matrix, whose memory and picture grow with their square
WHAT = (*QUICK, *ONE_PASS, "neighbours")  # neighbours need one over the training set

# --- A run's own pictures ---------------------------------------------------------------------------------------------


def draw(
    run: Run, split: Split | None, what: Sequence[str], folder: Path, batch_size: int | None = None
) -> dict[str, Path]:
    """Draws pictures of a run.

    Args:
      split: its validation split; None if no picture shows photos.
      what: which of WHAT to draw.
      folder: where they go; it exists.
      batch_size: see inference.batch_size.
    Returns: the pictures' paths by title.
    Raises UserError if the network gives NaN or infinity, or if a picture cannot be written.
    """
    drawn = {}
    kernel = first_kernels(run)
    if "kernels" in what and kernel is not None:
        drawn["conv1 kernels"] = kernels(kernel, folder / "kernels.png", run.config.model.towers)
    if "curves" in what:
        records = {run.config.name: read_metrics(run.workdir / METRICS)}
        drawn["training curves"] = curves(records, folder / "curves.png", len(run.classes))
    if split is not None:
        drawn |= _draw_answers(run, split, what, folder, batch_size)
    if "neighbours" in what:
        path = folder / "neighbours.png"
        drawn["neighbours"] = draw_neighbours(run, data_of(run), path, batch_size=batch_size)
    return drawn


def first_kernels(run: Run) -> np.ndarray | None:
    """The kernels of a run's first layer, float32 (side, side, 3, n); None if it is no convolution."""
    layers = run.config.model["layers"]
    kernel = np.asarray(run.params[layers[0][0] if layers else "conv1"]["kernel"])
    return kernel if kernel.ndim == 4 and kernel.shape[2] == 3 else None


def _draw_answers(run: Run, split: Split, what: Sequence[str], folder: Path, batch_size: int | None) -> dict[str, Path]:
    """Draws the pictures of WHAT that show the network's answers for a split."""
    drawn, classes = {}, run.classes
    if "predictions" in what:
        few = subset(split, np.linspace(0, len(split) - 1, min(8, len(split))).astype(int))
        shares, path = probabilities(run, few, batch_size), folder / "predictions.png"
        drawn["predictions"] = predictions(few.images(), few.labels, shares, classes, path)
    if not set(what) & set(ONE_PASS):
        return drawn
    shares = probabilities(run, split, batch_size)
    if "confusion" in what:
        number, names = group(split.labels, classes)
        counts = count(number[split.labels], number[shares.argmax(axis=1)], len(names))
        drawn["confusion matrix"] = confusion(counts, names, folder / "confusion.png")
    if "mistakes" in what:
        chosen = np.concatenate(wrong(split.labels, shares))
        few, path = subset(split, chosen), folder / "mistakes.png"
        drawn["mistakes"] = mistakes(few.images(), few.labels, shares[chosen], classes, path)
    return drawn


def probabilities(run: Run, split: Split, batch_size: int | None = None) -> np.ndarray:
    """The network's probabilities for a split's centre crops: float32 (n, classes). Raises UserError as `predict`."""
    found = np.empty((len(split), len(run.classes)), np.float32)
    with metrics.bar(len(split), f"predicting {split.name}") as progress:
        for row, (_, shares) in enumerate(predict(run, SplitImages(split), batch_size=batch_size)):
            found[row] = shares
            progress.update()
    return found


def count(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix: int64 (classes, classes), images by true class (row) and predicted class (column)."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def group(labels: np.ndarray, classes: Sequence[str], most: int = 20) -> tuple[np.ndarray, list[str]]:
    """The rows of a confusion matrix, few enough to have readable names if the images are of few classes.

    Returns: for each class its row, int64 (classes,), and the rows' names. If there are more than `most` classes but
    fewer than that in `labels`, each of these has a row and all others share the last; otherwise each has its own.
    """
    there = np.unique(labels)
    if len(classes) <= most or len(there) >= most:
        return np.arange(len(classes)), list(classes)
    number = np.full(len(classes), len(there))
    number[there] = np.arange(len(there))
    return number, [*(classes[i] for i in there), "any other"]


def wrong(labels: np.ndarray, shares: np.ndarray, most: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The images whose most probable class is not their own: indices of the most certain and of the least certain ones.

    shares: float (n, classes), probabilities. The first list starts with the highest probability of a wrong prediction,
    the second with the lowest, and each has up to `most` images; of equal ones the lower index is first. No image is in
    both: if there are few mistakes each list has half of them, and the first one more if their number is odd.
    """
    indices = np.flatnonzero(shares.argmax(axis=1) != labels)
    certainty = shares[indices].max(axis=1)
    first = min(most, -(-len(indices) // 2))
    second = min(most, len(indices) - first, first)
    down = np.argsort(-certainty, kind="stable")[:first]
    up = [i for i in np.argsort(certainty, kind="stable") if i not in down][:second]
    return indices[down], indices[up]


# --- Another network's kernels ----------------------------------------------------------------------------------------


def read_weights(path: str | Path, bgr: bool = False) -> np.ndarray:
    """conv1 from an .npz of another framework: float32 (side, side, 3, n), RGB.

    It is the one array in the layout of Caffe and PyTorch that reads three channels, (n, 3, side, side). bgr: these are
    blue, green and red, as in Caffe. Raises UserError if the file is not an .npz of plain arrays, or does not contain
    exactly one such array.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    found = [a for a in arrays.values() if a.ndim == 4 and a.shape[1] == 3 and a.shape[2] == a.shape[3] and a.size]
    if len(found) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:20]) or "no array"
        raise UserError(f"{path} must hold one array of shape (kernels, 3, side, side), conv1's; it holds {held}")
    [kernel] = found
    if not np.issubdtype(kernel.dtype, np.floating):
        raise UserError(f"conv1 in {path} is {kernel.dtype}, and weights are floating numbers")
    if not np.isfinite(kernel).all():
        raise UserError(f"conv1 in {path} contains NaN or infinity: name other weights")
    kernel = kernel.astype(np.float32).transpose(2, 3, 1, 0)
    return kernel[:, :, ::-1] if bgr else kernel


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz. Raises UserError if the file is not one, or not complete."""
    takes = "--weights takes an .npz with conv1's kernels, (kernels, 3, side, side)"
    if not path.exists():
        raise UserError(f"there is no file {path}: {takes}")
    if not path.is_file():
        raise UserError(f"{path} is no file: {takes}")
    if path.suffix in (".pth", ".pt", ".safetensors", ".caffemodel", ".npy"):
        raise UserError(
            f"{path} is no .npz: {takes}; alexnet convert makes a run of an AlexNet's weights, and --workdir draws that"
        )
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path} is no .npz, or not a whole one ({path.stat().st_size:,} bytes): {takes}")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {takes}") from error
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
        raise UserError(f"{path} cannot be read as an .npz of plain arrays ({one_line(error)}): {takes}") from error
    return {name: a for name, a in found.items() if isinstance(a, np.ndarray)}  # any other file comes as bytes


# --- The command line -------------------------------------------------------------------------------------------------


def _folder(path: str | Path) -> Path:
    """The folder of this name, created if needed. Raises UserError if it cannot be."""
    path = expanded(path)
    if path.suffix == ".png":
        raise UserError(f"--out is the folder that the pictures go to, and {path} names a picture")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} ({error.strerror}): name another with --out") from error
    return path


def apart(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them all apart: base/seed0. Raises UserError if a folder is there twice."""
    paths = [folder.resolve() for folder in folders]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"--workdir names {twice[0]} twice: name each run once")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len({*names}) == len(names):
            break
    return names


def _chosen(asked: str | None, several: bool) -> list[str]:
    """What --what names, or the default. Raises UserError if it names what cannot be drawn."""
    if asked is None:
        return ["curves"] if several else [*QUICK, *ONE_PASS]
    what = list(WHAT) if asked == "all" else asked.split(",")
    if unknown := set(what) - set(WHAT):
        raise UserError(f"--what names {', '.join(sorted(unknown))} and takes {', '.join(WHAT)} or all")
    if several and what != ["curves"]:
        raise UserError("of several --workdir only the curves make one picture: give each alone for the rest")
    return what


def _possible(run: Run, what: list[str], data: str | None, asked: bool) -> tuple[list[str], Split | None]:
    """What can be drawn, and the images for it.

    asked: whether the user named it; if not, what cannot be drawn is left out, and the reason printed. Raises UserError
    if something that was asked for cannot be drawn.
    """
    converted = not (run.workdir / METRICS).exists()
    missing = {}
    if converted:
        missing["curves"] = f"{run.workdir} was not trained here and has no curves (no metrics.jsonl)"
    if first_kernels(run) is None:
        missing["kernels"] = f"the first layer of {run.workdir} is no convolution and has no kernels to draw"
    if (n := len(run.classes)) > MOST_CLASSES:
        missing["confusion"] = f"a confusion matrix of {n:,} classes is too large to draw (at most {MOST_CLASSES:,})"
    for name in [name for name in what if name in missing]:
        if asked:
            raise UserError(f"{missing[name]}: ask for other pictures")
        print(missing[name], file=sys.stderr)
    what = [name for name in what if name not in missing]
    if data and "neighbours" in what:
        raise UserError("neighbours are drawn from the run's own data set: leave out --data, or neighbours")
    if not set(what) & {"predictions", *ONE_PASS}:
        return what, None
    try:
        return what, images_for(run, "validation", data)
    except UserError as error:
        if asked or data or not converted:
            raise
        print(f"no {', '.join(('predictions', *ONE_PASS))}: {error}; or name photos with --data", file=sys.stderr)
        return [name for name in what if name == "kernels"], None


def add_flags(parser: ArgumentParser) -> None:
    """The command's flags."""
    add_workdir(
        parser, action="append", required=False, help="the run's folder; give several for their curves in one picture"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="instead of a run, an .npz with another network's conv1, (n, 3, side, side)"
    )
    parser.add_argument("--what", help=f"some of {','.join(WHAT)}, or all (default: all but neighbours)")
    add_data(parser)
    parser.add_argument("--out", metavar="DIR", help="a folder for the pictures (default: the workdir, or here)")
    parser.add_argument("--bgr", action="store_true", help="the weights' channels are blue, green, red, as in Caffe")
    parser.add_argument("--towers", type=int, default=1, help="towers of the weights, equal groups of kernels")
    add_which(parser)
    add_devices(parser)
    add_batch_size(parser)


def main(flags: Namespace) -> None:
    """The command: a run's pictures, the curves of several runs in one, or the kernels of other weights."""
    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("name either a run with --workdir or another network's weights with --weights")
    several = len(flags.workdir or ()) > 1
    _refuse_idle(flags, several)
    if flags.weights is not None:
        _draw_weights(flags)
        return
    what = _chosen(flags.what, several)
    if several:
        folders = [expanded(workdir) for workdir in flags.workdir]
        runs = {name: read_metrics(f / METRICS) for name, f in zip(apart(folders), folders, strict=True)}
        classes = {read_config(folder).model.num_classes for folder in folders}
        common = classes.pop() if len(classes) == 1 else None
        print(f"training curves: {curves(runs, _folder(flags.out or '.') / 'curves.png', common)}")
        return
    use_devices(flags.devices)
    run = load_run(flags.workdir[0], flags.which, *flags.devices)
    what, split = _possible(run, what, flags.data, asked=flags.what is not None)
    for name, path in draw(run, split, what, _folder(flags.out or run.workdir), flags.batch_size).items():
        print(f"{name}: {path}")
    kernel = first_kernels(run)
    if "kernels" in what and kernel is not None:
        print(color_blindness(kernel, run.config.model.towers))


def _refuse_idle(flags: Namespace, several: bool) -> None:
    """Raises UserError if a flag has no effect on what is drawn: other weights, the curves of runs, or one run."""
    of_weights = {"--towers": flags.towers != 1, "--bgr": flags.bgr}
    of_a_run = {
        "--data": flags.data is not None, "--which": flags.which != "best", "--devices": flags.devices != (1, 1),
        "--batch-size": flags.batch_size is not None,
    }  # fmt: skip
    if flags.weights is not None:
        what, idle = "--weights draws kernels alone", of_a_run | {"--what": flags.what is not None}
    elif several:
        what, idle = "several --workdir give curves alone", of_a_run | of_weights
    else:
        what, idle = "a run knows its towers and channels", of_weights
    if given := [name for name, there in idle.items() if there]:
        raise UserError(f"{given[0]} has no effect here, as {what}: leave it out")


def _draw_weights(flags: Namespace) -> None:
    kernel = read_weights(expanded(flags.weights), flags.bgr)
    if flags.towers < 1 or kernel.shape[3] % flags.towers:
        raise UserError(f"--towers is {flags.towers} and must divide the {kernel.shape[3]} kernels")
    print(f"conv1 kernels: {kernels(kernel, _folder(flags.out or '.') / 'kernels.png', flags.towers)}")
    print(color_blindness(kernel, flags.towers))
