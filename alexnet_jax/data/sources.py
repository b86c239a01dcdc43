"""Where images come from: a folder of class folders, a TFDS set on disk, or the letters of glyphs.py.

Whatever would make nonsense of a run is said here, before anything is written: photos that lie where they would not be
found, classes without photos, one class alone, splits that are not there.
"""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.data import photos
from alexnet_jax.data.records import tensorflow

LAYOUT = "photos must lie directly in the folder of their class, folder/<class>/<photo>"
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: on each line a photo of images/, its class and its box


class Source(NamedTuple):
    """Where images come from."""

    version: str
    classes: list[str]
    counts: dict[str, int]  # by split
    examples: Callable[[str], Iterator[tuple[str, int, bytes | Path]]]  # split -> (id, label, encoded image) ...


def open_source(config: ConfigDict, cache: Path, num_classes: int | None = None) -> Source:
    """Returns the source of the config's `data` section; glyphs are drawn in `cache` when they are asked for.

    num_classes: as for `prepare`. Raises UserError, having written nothing: nothing by that name, not downloaded, no
    images, an unknown split, photos where they would not be found, classes that do not fit.
    """
    root = folder_of(config.name)
    if root:
        try:
            source = _open_folder(config, root, learns=num_classes is not None)
        except OSError as error:
            raise UserError(f"cannot read the photos of {root} ({error}): make the folder readable") from error
    else:
        source = _open_tfds(config, cache)
    check_classes(config.name, source.classes, num_classes)
    return source


def folder_of(name: str) -> Path | None:
    """The folder that a source's name means, or None for a TFDS name."""
    is_path = name.startswith(("/", "./", "../", "~")) or os.path.exists(name)
    return Path(os.path.abspath(os.path.expanduser(name))) if is_path else None


def check_classes(name: str, classes: list[str], num_classes: int | None):
    """Raises UserError on classes from which a network of num_classes (as for `prepare`) cannot learn."""
    if num_classes is None:
        return
    if len(classes) < 2:
        hint = "data.name is the folder that holds the folders of the classes, two or more"
        raise UserError(f"{name} has one class, {''.join(classes)}, and there is nothing to tell apart: {hint}")
    if num_classes not in (0, len(classes)):
        raise UserError(
            f"the data set has {len(classes)} classes ({some(classes)}) and the network {num_classes}: "
            f"set --config.model.num_classes={len(classes)}, or 0 for as many as the data has"
        )


def some(names: Collection[str]) -> str:
    """A few of many names, as part of a line."""
    names = [" ".join(name.split()) for name in sorted(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def warn(text: str):
    """Writes a warning, above what progress bars there are."""
    tqdm.write(f"warning: {text}", file=sys.stderr)


# ---------------------------------------------------------------- folders


def _open_folder(config: ConfigDict, root: Path, learns: bool) -> Source:
    if not root.is_dir():
        what = f"{root} is a file" if root.exists() else f"there is no folder {root}"
        raise UserError(f"{what} (data.name): give a folder of class folders, or a TFDS name")
    folders = _subfolders(root)
    if "train" not in folders:
        folders = {"train": root}
    if "val" in folders:
        folders.setdefault("validation", folders["val"])
    held_out = "validation" not in folders and "validation" in (config.train_split, config.eval_split)
    folders.setdefault("validation", folders["train"])
    classes = list(_class_folders(folders["train"]))
    files = {}
    for split in dict.fromkeys((config.train_split, config.eval_split)):
        if split not in folders:
            raise UserError(f"{root} has no split '{split}': its splits are {', '.join(folders)}, without slices")
        listed = files[split] = _list_split(folders[split], folders["train"], classes)
        if not listed:
            raise UserError(f"no images for split '{split}' in {folders[split]}: {LAYOUT}")
        if held_out and split in ("train", "validation"):
            chosen = split == "validation"
            files[split] = [f for f in listed if (_chance(f[0]) < config.validation_fraction) == chosen]
        share = f"data.validation_fraction, the share that is held out, is {config.validation_fraction:g}"
        if not files[split]:
            raise UserError(f"no images for split '{split}' of the {len(listed)} in {root}: {share}")
        empty, lacking = (set(classes) - {classes[label] for _, label, _ in found} for found in (listed, files[split]))
        if lacking:
            said = f"{len(lacking)} of {len(classes)} classes have no photo in {split}: {some(lacking)}"
            if learns and split == config.train_split:
                take_out = f"put photos into their folders in {folders[split]}, or take these out"
                raise UserError(f"{said}; {take_out if empty else f'{share}: lower it, or add photos'}")
            warn(said)
    return Source("", classes, {split: len(found) for split, found in files.items()}, lambda split: iter(files[split]))


def _list_split(folder: Path, train: Path, classes: list[str]) -> list[tuple[str, int, Path]]:
    """(id, label, file) of a split's photos, in order. Raises UserError if some would not be found, or known."""
    if (folder / ANNOTATIONS).is_file():
        found = _annotated(folder)
    else:
        found = {name: {str(p.relative_to(at)): p for p in _photos(at)} for name, at in _class_folders(folder).items()}
        if stray := [path.name for path in folder.iterdir() if photos.is_photo(path)]:
            warn(f"{len(stray)} photos in {folder} itself belong to no class and are left out: {some(stray)}")
    if strange := found.keys() - set(classes):
        raise UserError(f"{folder} has classes that {train} lacks: {some(strange)}")
    number = {name: i for i, name in enumerate(classes)}
    return [(f"{name}/{rest}", number[name], path) for name, paths in found.items() for rest, path in paths.items()]


def _annotated(folder: Path) -> dict[str, dict[str, Path]]:
    """{class: {name: file}} of Tiny-ImageNet's validation split."""
    found = {}
    for line in sorted((folder / ANNOTATIONS).read_text("utf-8", "replace").splitlines()):
        name, tab, rest = line.partition("\t")
        if not tab:
            raise UserError(f"{folder / ANNOTATIONS} has a line without a photo, a tab and its class: {line[:50]!r}")
        found.setdefault(rest.partition("\t")[0], {})[name] = folder / "images" / name
    return found


def _subfolders(folder: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not photos.is_hidden(p.name)}


def _class_folders(folder: Path) -> dict[str, Path]:
    """The folders of the classes. Raises UserError if one is the same as another, or as one that it lies in."""
    found = _subfolders(folder)
    known = {place: place for place in (folder.resolve(), *folder.resolve().parents)}
    for path in found.values():
        place = path.resolve()
        if place in known:
            raise UserError(f"{path} is a link to {known[place]}, and no class of its own: take it out")
        known[place] = path
    return found


def _photos(folder: Path) -> list[Path]:
    """The photos of a class, those in its folder or, as in Tiny-ImageNet, those in a folder `images` in it.

    Raises UserError if some lie elsewhere below.
    """
    here = sorted(path for path in folder.iterdir() if photos.is_photo(path))
    deeper = [f for f in _subfolders(folder).values() if f not in here and next(photos.below(f), None)]
    if [f.name for f in deeper] == ["images"] and not here:
        return _photos(deeper[0])
    if deeper:
        name = deeper[0].name
        raise UserError(
            f"{folder} has photos in its subfolder {name}: {LAYOUT}; if {name} is a class, --config.data.name={folder}"
        )
    return here


def _chance(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that new files do not move others between splits."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:4], "big") / 2**32


# ---------------------------------------------------------------- TFDS


def _open_tfds(config: ConfigDict, cache: Path) -> Source:
    tf = tensorflow()
    import tensorflow_datasets as tfds

    builder = _tfds_builder(tfds, config, cache)
    splits, drawn = builder.info.splits, lambda: builder
    if builder.name == "glyphs":
        from alexnet_jax.data import glyphs

        splits, drawn = glyphs.splits(builder), functools.partial(glyphs.drawn, builder)
    features = builder.info.features
    if not {"image", "label"} <= set(getattr(features, "keys", dict)()) or not hasattr(features["label"], "names"):
        raise UserError(f"{config.name} is no set of labelled images: TFDS gives it neither image and label")
    counts = {}
    for split in (config.train_split, config.eval_split):
        try:
            counts[split] = splits[split].num_examples
        except (KeyError, ValueError) as error:
            here = ", ".join(f"{name} ({splits[name].num_examples:,})" for name in splits)
            raise UserError(
                f"{config.name} has no split '{split}': its splits are {here}, or slices of them"
            ) from error
        if counts[split] < 1:
            raise UserError(f"split '{split}' of {config.name} has no images: widen the slice")

    def examples(split):
        return read(drawn(), split)  # drawn before the first is asked for

    def read(builder, split):
        # Files are not shuffled, so the order is always the same.
        read, skip = tfds.ReadConfig(add_tfds_id=True), {"image": tfds.decode.SkipDecoding()}
        try:
            for example in tfds.as_numpy(builder.as_dataset(split=split, decoders=skip, read_config=read)):
                name = example.get("file_name", example["tfds_id"])
                yield name.decode(), int(example["label"]), example["image"]
        except tf.errors.OpError as error:
            raise UserError(f"TFDS cannot read {config.name} from {builder.data_path}: {one_line(error)}") from error

    version = f"{builder.info.full_name}, TFDS {tfds.__version__}"
    return Source(version, list(features["label"].names), counts, examples)


def _tfds_builder(tfds, config: ConfigDict, cache: Path):
    """The builder of a set that is on disk, or of glyphs; nothing here looks at the network."""
    name, _, variant = config.name.partition("/")
    without = "--config configs/paper.py:glyphs runs without any download"
    try:
        if name == "glyphs":
            from alexnet_jax.data import glyphs

            return glyphs.undrawn(variant or "full", str(cache / "tfds"))
        if re.match(r"\w+:[^\d*]", config.name):  # such as huggingface:mnist
            raise ValueError("other registers' sets come from the network")
        builder = tfds.builder(config.name, data_dir=config.data_dir or os.environ.get("TFDS_DATA_DIR") or None)
    except UserError:
        raise
    except Exception as error:  # TFDS raises whatever the set's own code does
        reason = one_line(error).partition(" Available datasets")[0]
        raise UserError(
            f"no TFDS data set '{config.name}' ({reason}); a folder is given as ./folder; {without}"
        ) from error
    if builder.info.splits:
        return builder
    data_dir = builder.data_path.parents[builder.info.full_name.count("/")]
    call = f"tfds.builder('{config.name}', data_dir='{data_dir}').download_and_prepare()"
    how = f'run python -c "import tensorflow_datasets as tfds; {call}"'
    if name == "imagenet2012":
        tars = f"put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in {data_dir}/downloads/manual"
        how = f"{tars}, then: tfds build imagenet2012 --data_dir={data_dir}"
    raise UserError(f"{config.name} is not in {data_dir} (data.data_dir or $TFDS_DATA_DIR): {how}; {without}")
