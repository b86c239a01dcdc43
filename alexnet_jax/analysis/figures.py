"""A run's pictures: the paper's figures 3 and 4, training curves, and what the network gets wrong.

    alexnet figures --workdir runs/paper                             # kernels, curves, ... mistakes
    alexnet figures --workdir runs/paper --what neighbours --out pictures
    alexnet figures --workdir runs/caffe --data imagenette/160px-v2  # of other images than its own
    alexnet figures --workdir runs/a --workdir runs/b                # their curves in one picture
    alexnet figures --weights caffe.npz --bgr --towers 2             # conv1 of somebody else's network

Beside the kernels it prints how much of them is colour, and whether one tower is colour-blind.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax import UserError, metrics, one_line
from alexnet_jax.analysis import retrieval
from alexnet_jax.analysis.curves import curves
from alexnet_jax.analysis.plots import confusion, kernels, mistakes, predictions, towers_colors
from alexnet_jax.cli.commands import command
from alexnet_jax.data.batches import eval_batches
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Split
from alexnet_jax.evaluate import NO_NUMBERS, images_for, make_probabilities
from alexnet_jax.metrics import read_metrics
from alexnet_jax.runs.run import Run, load_run

QUICK = ("kernels", "curves", "predictions")  # what the end of training draws: it reads eight images, of any set
ONE_PASS = ("confusion", "mistakes")  # of the network over the validation split
WHAT = (*QUICK, *ONE_PASS, "neighbours")  # which take one over the training set

# --- A run's own pictures ---------------------------------------------------------------------------------------------


def draw_run(
    workdir: str | Path, split: Split | None, what: Sequence[str] = QUICK, out: str | Path | None = None
) -> dict[str, Path]:
    """Draws pictures of a run, out of WHAT; returns their paths by title.

    Args: split: its validation split, None if no picture shows photos; out: a folder, made if need be; default: the
    workdir.
    """
    run = load_run(workdir)
    folder = _folder(out or run.workdir)
    drawn = {}
    if "kernels" in what:
        kernel = np.asarray(run.params["conv1"]["kernel"])
        drawn["conv1 kernels"] = kernels(kernel, folder / "kernels.png", run.config.model.towers)
    if "curves" in what:
        records = {run.config.name: read_metrics(run.workdir / "metrics.jsonl")}
        drawn["training curves"] = curves(records, folder / "curves.png", top5=len(run.classes) > 10)
    if "predictions" in what:
        shown = np.linspace(0, len(split) - 1, min(8, len(split))).astype(int)
        images = split.images(shown)
        predict = make_probabilities(run.apply, run.config.data)
        shares = np.asarray(predict(run.params, run.statistics, images))
        path = folder / "predictions.png"
        drawn["predictions"] = predictions(images, split.labels[shown], shares, run.classes, path)
    if set(ONE_PASS) & set(what):
        shares = probabilities(run, split)
    if "confusion" in what:
        number, names = group(split.labels, run.classes)
        counts = count(number[split.labels], number[shares.argmax(axis=1)], len(names))
        drawn["confusion matrix"] = confusion(counts, names, folder / "confusion.png")
    if "mistakes" in what:
        chosen = np.concatenate(wrong(split.labels, shares))
        images, path = split.images(chosen), folder / "mistakes.png"
        drawn["mistakes"] = mistakes(images, split.labels[chosen], shares[chosen], run.classes, path)
    if "neighbours" in what:
        drawn["neighbours"] = retrieval.draw_run(run, prepare(run.config.data), folder / "neighbours.png")
    return drawn


def probabilities(run: Run, split: Split) -> np.ndarray:
    """What the network makes of a split's centre crops: float32 (n, classes). Raises UserError if it is no numbers."""
    predict, size = make_probabilities(run.apply, run.config.data), run.config.evaluation.batch_size
    found = []
    with metrics.bar(len(split), f"predicting {split.name}") as progress:
        for batch in eval_batches(split, size):
            found.append(np.asarray(predict(run.params, run.statistics, batch["image"])))
            progress.update(min(size, len(split) - progress.n))
    found = np.concatenate(found)[: len(split)]
    if not np.isfinite(found).all():
        raise UserError(f"step {run.step} of {run.workdir} {NO_NUMBERS}")
    return found


def count(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix: int64 (classes, classes), how many images of a true class (row) were taken for which."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def group(labels: np.ndarray, classes: Sequence[str], most: int = 20) -> tuple[np.ndarray, list[str]]:
    """How to count classes so that their names can be read, where the images are of few classes out of many.

    Returns: for each class its row, int64 (classes,), and the rows' names. If there are more than `most` classes and
    fewer than that in `labels`, each of these has a row and all others share the last; else each has its own.
    """
    there = np.unique(labels)
    if len(classes) <= most or len(there) >= most:
        return np.arange(len(classes)), list(classes)
    number = np.full(len(classes), len(there))
    number[there] = np.arange(len(there))
    return number, [*(classes[i] for i in there), "any other"]


def wrong(labels: np.ndarray, shares: np.ndarray, most: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The images whose most probable class is not theirs: indices of the most certain and of the least certain.

    shares: float (n, classes). Each is at most `most` long and begins with its extreme: the highest, the lowest
    probability of the predicted class; of equal ones the lower index comes first. No image is in both: of few mistakes
    the first has half, and one more where their number is odd.
    """
    indices = np.flatnonzero(shares.argmax(axis=1) != labels)
    certainty = shares[indices].max(axis=1)
    first = min(most, -(-len(indices) // 2))
    second = min(most, len(indices) - first, first)
    down = np.argsort(-certainty, kind="stable")[:first]
    up = [i for i in np.argsort(certainty, kind="stable") if i not in down][:second]
    return indices[down], indices[up]


# --- Colour by tower --------------------------------------------------------------------------------------------------


def color_blindness(kernel: np.ndarray, towers: int) -> str:
    """Lines that say how much of conv1 is colour, and whether one tower is colour-blind (section 6.1, figure 3).

    kernel: float (height, width, 3, n), tower by tower. A tower counts as colour-blind if no more than a quarter of its
    kernels are mostly colour while more than half of another tower's are. Noise, as before training, is mostly colour:
    two of its three dimensions are.
    """
    found = towers_colors(kernel, towers)
    lines = [
        f"tower {i}: {mostly} of {kernels} kernels have more than half of their energy in colour, mean share {mean:.1%}"
        for i, (kernels, mostly, mean) in enumerate(found, start=1)
    ]
    if towers == 1:
        return lines[0].replace("tower 1", "conv1")
    mostly = [colored / kernels for kernels, colored, _ in found]
    blind = [f"tower {i}" for i, share in enumerate(mostly, start=1) if share <= 1 / 4 and max(mostly) > 1 / 2]
    answer = f"yes, {' and '.join(blind)}" if blind else "no"
    return "\n".join([*lines, f"is one tower colour-blind (a quarter at most, another more than half)? {answer}"])


def read_weights(path: str | Path, bgr: bool = False) -> np.ndarray:
    """conv1 out of an .npz of another framework: float32 (side, side, 3, n), RGB.

    It is the array in the layout of Caffe and PyTorch that reads three channels, (n, 3, side, side). bgr: these are
    blue, green and red, as in Caffe. Raises UserError if the file is no .npz of plain arrays or holds no such array, or
    several.
    """
    path, takes = Path(path), "--weights takes an .npz with conv1's kernels, (kernels, 3, side, side)"
    if not path.is_file():
        raise UserError(f"{f'{path} is no file' if path.exists() else f'there is no file {path}'}: {takes}")
    if path.suffix in (".pth", ".pt", ".safetensors", ".caffemodel", ".npy"):
        raise UserError(
            f"{path} is no .npz: {takes}; alexnet convert makes a run of an AlexNet's weights, and --workdir draws that"
        )
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path} is no .npz, or not a whole one ({path.stat().st_size:,} bytes): {takes}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {takes}") from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as an .npz of plain arrays ({one_line(error)}): {takes}") from error
    arrays = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray)}  # any other file comes as bytes
    found = [a for a in arrays.values() if a.ndim == 4 and a.shape[1] == 3 and a.shape[2] == a.shape[3] and a.size]
    if len(found) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:20]) or "no array"
        raise UserError(f"{path} must hold one array of shape (kernels, 3, side, side), conv1's; it holds {held}")
    [kernel] = found
    if not np.issubdtype(kernel.dtype, np.floating):
        raise UserError(f"conv1 in {path} is {kernel.dtype}, and weights are floating numbers")
    if not np.isfinite(kernel).all():
        raise UserError(f"conv1 in {path} holds what is no number")
    kernel = kernel.astype(np.float32).transpose(2, 3, 1, 0)
    return kernel[:, :, ::-1] if bgr else kernel


# --- The command line -------------------------------------------------------------------------------------------------


def _folder(path: str | Path) -> Path:
    if Path(path).suffix == ".png":
        raise UserError(f"--out is the folder that the pictures go to, and {path} names a picture")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} ({error.strerror}): name another with --out") from error
    return Path(path)


def _possible(run: Run, what: list[str], data: str | None, asked: bool) -> tuple[list[str], Split | None]:
    """What can be drawn, and the images for it. Of converted weights, unless `asked` for more, that may be less."""
    converted = not (run.workdir / "metrics.jsonl").exists()
    if converted and "curves" in what:
        if asked:
            raise UserError(f"{run.workdir} was not trained here and has no curves (no metrics.jsonl): ask for others")
        what.remove("curves")
    if data and "neighbours" in what:
        raise UserError("neighbours are drawn from the run's own data set: leave out --data, or neighbours")
    if not set(what) & {"predictions", *ONE_PASS}:
        return what, None
    try:
        return what, images_for(run, "validation", data)
    except UserError as error:
        if asked or data or not converted:
            raise
        what = [name for name in what if name == "kernels"]
        print(f"no {', '.join(('predictions', *ONE_PASS))}: {error}; or name photos with --data", file=sys.stderr)
        return what, None


def main(argv: list[str]) -> None:
    """The command line: a run's pictures, the curves of several runs in one, or the kernels of other weights."""
    parser = argparse.ArgumentParser(prog="alexnet figures", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", action="append", help="a run; of several the curves are drawn into one picture")
    source.add_argument("--weights", help="an .npz with conv1 of another network, (kernels, 3, side, side)")
    parser.add_argument("--what", help=f"out of {','.join(WHAT)}; or all; default: all but neighbours")
    parser.add_argument(
        "--data", help="a TFDS name or a folder, of classes that the run knows, in place of its own set"
    )
    parser.add_argument("--out", help="a folder for the pictures; default: the workdir, or here")
    parser.add_argument("--bgr", action="store_true", help="the weights' channels are blue, green, red, as in Caffe")
    parser.add_argument("--towers", type=int, default=1, help="towers of the weights, equal groups of kernels")
    flags = parser.parse_args(argv)
    if flags.weights is not None:
        kernel = read_weights(flags.weights, flags.bgr)
        if flags.towers < 1 or kernel.shape[3] % flags.towers:
            raise UserError(f"--towers is {flags.towers} and must divide the {kernel.shape[3]} kernels")
        print(f"conv1 kernels: {kernels(kernel, _folder(flags.out or '.') / 'kernels.png', flags.towers)}")
        print(color_blindness(kernel, flags.towers))
        return
    several = len(flags.workdir) > 1
    chosen = flags.what or ("curves" if several else ",".join(WHAT[:-1]))
    what = WHAT if chosen == "all" else chosen.split(",")
    if unknown := set(what) - set(WHAT):
        raise UserError(f"--what names {', '.join(sorted(unknown))} and takes {', '.join(WHAT)} or all")
    if several:
        if list(what) != ["curves"]:
            raise UserError("of several --workdir only the curves make one picture: give each alone for the rest")
        runs = {Path(w).name: read_metrics(Path(w) / "metrics.jsonl") for w in flags.workdir}
        print(f"training curves: {curves(runs, _folder(flags.out or '.') / 'curves.png')}")
        return
    run = load_run(flags.workdir[0])
    what, split = _possible(run, list(what), flags.data, asked=flags.what is not None)
    for name, path in draw_run(run.workdir, split, what, flags.out).items():
        print(f"{name}: {path}")
    if "kernels" in what:
        print(color_blindness(np.asarray(run.params["conv1"]["kernel"]), run.config.model.towers))


if __name__ == "__main__":
    command(main)
