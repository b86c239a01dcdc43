"""Where images come from: a folder of class folders, a TFDS set on disk, or the letters that glyphs.py draws.

Opening a source refuses, before anything is written, whatever a run could not learn from: photos in places where they
would not be found, classes without photos, a single class, splits that do not exist.
"""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.data import photos
from alexnet_jax.data.host import tensorflow

LAYOUT = "photos must lie directly in the folder of their class, folder/<class>/<photo>"
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: each line has a photo of images/, its class and its box

Example = tuple[str, int, bytes | Path]  # name, label, the encoded image or its file


class Source(NamedTuple):
    """Where images come from."""

    version: str  # of a TFDS set, else ""
    classes: list[str]
    counts: dict[str, int]  # images by split
    examples: Callable[[str], Iterator[Example]]  # takes a split; always in the same order


def open_source(config: ConfigDict, cache: Path, num_classes: int | None = None) -> Source:
    """Opens the source that the config's `data` section names. Writes nothing, except that glyphs draws its images in
    `cache` when `examples` is called.

    num_classes: as for `prepare`. Raises UserError if the source does not exist, is not downloaded, has no images, no
    such split or photos in the wrong places, or if the classes do not fit the network.
    """
    root = folder_of(config.name)
    if root is None:
        source = _open_tfds(config, cache)
    else:
        try:
            source = _open_folder(config, root, learns=num_classes is not None)
        except OSError as error:
            raise UserError(f"cannot read the photos of {root} ({error}): make the folder readable") from error
    refuse_classes(config.name, source.classes, num_classes)
    return source


def folder_of(name: str) -> Path | None:
    """Returns the folder that a source's name means, or None if it is the name of a TFDS set.

    A folder begins with /, ./, ../ or ~: cifar10 is TFDS's wherever the command is started.
    """
    is_path = name.startswith(("/", "./", "../", "~"))
    return Path(os.path.abspath(os.path.expanduser(name))) if is_path else None


def has_more(root: Path, since: float) -> bool:
    """Whether photos or folders were added to a folder of photos since a time, in seconds since 1970."""
    splits = {root, *_split_folders(root).values()}
    classes = {folder for split in splits for folder in _subfolders(split).values()}
    images = {folder / "images" for folder in classes if (folder / "images").is_dir()}  # as in Tiny-ImageNet
    changed = [folder for folder in splits | classes | images if folder.stat().st_mtime > since]
    added = (path for folder in changed for path in folder.iterdir() if path.stat().st_ctime > since)
    return any(path.is_dir() or photos.is_photo(path) for path in added if not photos.is_hidden(path.name))


def refuse_classes(name: str, classes: list[str], num_classes: int | None) -> None:
    """Raises UserError if a network of num_classes (as for `prepare`) cannot learn these classes."""
    if num_classes is None:
        return
    if len(classes) < 2:
        hint = "data.name must be the folder that contains the class folders, two or more"
        raise UserError(f"{name} has one class, {''.join(classes)}, so there is nothing to tell apart: {hint}")
    if num_classes not in (0, len(classes)):
        raise UserError(
            f"the data set has {len(classes)} classes ({some(classes)}) and the network {num_classes}: "
            f"set --config.model.num_classes={len(classes)}, or 0 for as many as the data has"
        )


def some(names: Collection[str]) -> str:
    """Lists the first three names, for one line of text, and how many more there are."""
    lines = [" ".join(name.split()) for name in sorted(names)]
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return ", ".join(lines[:3]) + more


def warn(text: str) -> None:
    """Writes a warning to stderr, above any progress bars."""
    tqdm.write(f"warning: {text}", file=sys.stderr)


# ---------------------------------------------------------------- folders


def _open_folder(config: ConfigDict, root: Path, learns: bool) -> Source:
    if not root.is_dir():
        what = f"{root} is a file" if root.exists() else f"there is no folder {root}"
        raise UserError(f"{what} (data.name): give a folder of class folders, or a TFDS name")
    wanted = dict.fromkeys((config.train_split, config.eval_split))  # once each, in this order
    folders = _split_folders(root)
    holds_out = "validation" not in folders and "validation" in wanted
    folders.setdefault("validation", folders["train"])
    classes = list(_class_folders(folders["train"]))
    files = {}
    for split in wanted:
        if split not in folders:
            raise UserError(
                f"{root} has no split '{split}': its splits are {', '.join(folders)}; folders take no slices"
            )
        listed = _list_split(folders[split], folders["train"], classes)
        if not listed:
            raise UserError(f"no images for split '{split}' in {folders[split]}: {_why_none(folders[split])}")
        files[split] = listed
        if holds_out and split in ("train", "validation"):
            files[split] = _part(listed, split, config.validation_fraction)
        if not files[split]:
            raise UserError(f"no images for split '{split}' of the {len(listed)} in {root}: {_share(config)}")
        must_have_all = learns and split == config.train_split
        _refuse_empty_classes(config, split, folders[split], classes, listed, files[split], must_have_all)
    return Source("", classes, {split: len(found) for split, found in files.items()}, lambda split: iter(files[split]))


def _why_none(folder: Path) -> str:
    """What to do about a split's folder without photos in class folders."""
    if any(map(photos.is_photo, folder.iterdir())):
        return (
            f"it has photos, and no folders of classes: {LAYOUT}; if it is itself a class, name the folder above it, "
            f"--config.data.name={folder.parent}"
        )
    files = [path for path in folder.glob("*/*") if path.is_file() and not photos.is_hidden(path.name)]
    if files:
        ends = f"names of photos end in {', '.join(sorted(photos.SUFFIXES))}"
        return f"its folders have files with other names, {some([path.name for path in files])}: convert them, {ends}"
    return LAYOUT


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits. Without a folder `train`, all of root is the training split."""
    folders = _subfolders(root)
    if "train" not in folders:
        return {"train": root}
    for name in ("val", "valid"):
        if name in folders:
            folders.setdefault("validation", folders[name])
    return folders


def _part(listed: list[tuple[str, int, Path]], split: str, fraction: float) -> list[tuple[str, int, Path]]:
    """The photos that are held out for "validation", or, for "train", the others."""
    held_out = split == "validation"
    return [photo for photo in listed if (_chance(photo[0]) < fraction) == held_out]


def _chance(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that new photos do not move others between splits."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:4], "big") / 2**32


def _share(config: ConfigDict) -> str:
    return f"data.validation_fraction, the share that is held out, is {config.validation_fraction:g}"


def _refuse_empty_classes(
    config: ConfigDict, split: str, folder: Path, classes: list[str], listed: list, chosen: list, must_have_all: bool
) -> None:
    """Warns if no photo of some class is among those chosen for a split, out of those listed.

    Raises UserError instead if it must have photos of all classes.
    """
    lacking = set(classes) - {classes[label] for _, label, _ in chosen}
    if not lacking:
        return
    have = "has" if len(lacking) == 1 else "have"
    said = f"{len(lacking)} of {len(classes)} classes {have} no photo in {split}: {some(lacking)}"
    if not must_have_all:
        share = f", or raise --config.data.validation_fraction={config.validation_fraction:g}"
        warn(f"{said}; add photos{share if len(chosen) < len(listed) else ''}")
        return
    if set(classes) - {classes[label] for _, label, _ in listed}:
        raise UserError(f"{said}; put photos into their folders in {folder}, or remove these folders")
    raise UserError(f"{said}; {_share(config)}: lower it, or add photos")


def _list_split(folder: Path, train: Path, classes: list[str]) -> list[tuple[str, int, Path]]:
    """(name, label, file) of a split's photos, in order. Raises UserError if some would not be found or recognized."""
    if (folder / ANNOTATIONS).is_file():
        found = _annotated(folder)
    else:
        found = {name: {str(p.relative_to(at)): p for p in _photos(at)} for name, at in _class_folders(folder).items()}
        if stray := [path.name for path in folder.iterdir() if photos.is_photo(path)]:
            warn(f"{len(stray)} photos in {folder} itself belong to no class and are left out: {some(stray)}")
        if others := [str(path.relative_to(folder)) for path in _not_photos(found)]:
            warn(
                f"what is not named like a photo in {folder} is left out: {some(others)}; names of photos end in "
                f"{', '.join(sorted(photos.SUFFIXES))}"
            )
    if unknown := found.keys() - set(classes):
        raise UserError(f"{folder} has classes that {train} lacks: {some(unknown)}")
    label = {name: i for i, name in enumerate(classes)}
    return [(f"{name}/{rest}", label[name], path) for name, paths in found.items() for rest, path in paths.items()]


def _annotated(folder: Path) -> dict[str, dict[str, Path]]:
    """{class: {name: file}} of Tiny-ImageNet's validation split."""
    found: dict[str, dict[str, Path]] = {}
    for line in sorted((folder / ANNOTATIONS).read_text("utf-8", "replace").splitlines()):
        name, tab, rest = line.partition("\t")
        if not tab:
            raise UserError(f"{folder / ANNOTATIONS} has a line without a photo, a tab and its class: {line[:50]!r}")
        found.setdefault(rest.partition("\t")[0], {})[name] = folder / "images" / name
    return found


def _subfolders(folder: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not photos.is_hidden(p.name)}


def _class_folders(folder: Path) -> dict[str, Path]:
    """The folders of the classes. Raises UserError if one is a link to another one, or to a folder that contains it."""
    found = _subfolders(folder)
    known = {place: place for place in (folder.resolve(), *folder.resolve().parents)}
    for path in found.values():
        place = path.resolve()
        if place in known:
            raise UserError(f"{path} is a link to {known[place]}, not a class of its own: remove it")
        known[place] = path
    return found


def _photos(folder: Path) -> list[Path]:
    """The photos of a class: those in its folder or, as in Tiny-ImageNet, those in a folder `images` inside it.

    Raises UserError if there are photos anywhere else below it.
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


def _not_photos(found: dict[str, dict[str, Path]]) -> list[Path]:
    """The other files beside the photos of classes, but those of the system."""
    folders = sorted({path.parent for paths in found.values() for path in paths.values()})
    beside = (path for folder in folders for path in folder.iterdir())
    return [p for p in beside if not photos.is_photo(p) and not photos.is_hidden(p.name) and p.is_file()]


# ---------------------------------------------------------------- TFDS


def _open_tfds(config: ConfigDict, cache: Path) -> Source:
    tensorflow()  # before TFDS, so that it stays quiet and off the accelerators
    import tensorflow_datasets as tfds

    builder = _tfds_builder(config, cache)
    splits, drawn = builder.info.splits, lambda: builder
    if builder.name == "glyphs":
        from alexnet_jax.data import glyphs

        splits, drawn = glyphs.splits(builder), functools.partial(glyphs.drawn, builder)
    features = builder.info.features
    if not {"image", "label"} <= set(getattr(features, "keys", dict)()) or not hasattr(features["label"], "names"):
        raise UserError(f"{config.name} is not a set of labelled images: TFDS gives it no image or no class label")
    counts = {split: _tfds_count(config.name, splits, split) for split in (config.train_split, config.eval_split)}

    def examples(split: str) -> Iterator[Example]:
        return _tfds_examples(config.name, drawn(), split)  # glyphs draws here

    version = f"{builder.info.full_name}, TFDS {tfds.__version__}"
    return Source(version, list(features["label"].names), counts, examples)


def _tfds_count(name: str, splits: Any, split: str) -> int:
    """The number of images in a split or a slice of one, such as train[:100]. Raises UserError if there are none."""
    try:
        count = splits[split].num_examples
    except (KeyError, ValueError) as error:
        here = ", ".join(f"{known} ({splits[known].num_examples:,})" for known in splits)
        raise UserError(f"{name} has no split '{split}': its splits are {here}, or slices of them") from error
    if count < 1:
        raise UserError(f"split '{split}' of {name} has no images: widen the slice")
    return count


def _tfds_examples(name: str, builder: Any, split: str) -> Iterator[Example]:
    import tensorflow_datasets as tfds

    # as_dataset does not shuffle the files, so the order is always the same.
    settings = {"decoders": {"image": tfds.decode.SkipDecoding()}, "read_config": tfds.ReadConfig(add_tfds_id=True)}
    try:
        for example in tfds.as_numpy(builder.as_dataset(split=split, **settings)):
            image_name = example.get("file_name", example["tfds_id"])
            yield image_name.decode(), int(example["label"]), example["image"]
    except tensorflow().errors.OpError as error:
        raise UserError(f"TFDS cannot read {name} from {builder.data_path}: {one_line(error)}") from error


def _tfds_builder(config: ConfigDict, cache: Path) -> Any:
    """The builder of a set that is on disk, or of glyphs. Uses no network."""
    import tensorflow_datasets as tfds

    name, _, variant = config.name.partition("/")
    no_download = "--config configs/quickstart.py needs no download"
    try:
        if name == "glyphs":
            from alexnet_jax.data import glyphs

            return glyphs.undrawn(variant or "full", str(cache / "tfds"))
        if re.match(r"\w+:[^\d*]", config.name):  # such as huggingface:mnist
            raise ValueError("sets of other registries come from the network")
        builder = tfds.builder(config.name, data_dir=config.data_dir or os.environ.get("TFDS_DATA_DIR") or None)
    except UserError:
        raise
    except Exception as error:  # TFDS raises whatever the set's own code raises
        reason = one_line(error).partition(" Available datasets")[0]
        write = (
            f"write the folder here as ./{config.name}, also in the config.json of a run"
            if os.path.isdir(config.name)
            else "write a folder as ./folder"
        )
        raise UserError(f"no TFDS data set '{config.name}' ({reason}); {write}; {no_download}") from error
    if builder.info.splits:
        return builder
    data_dir = builder.data_path.parents[builder.info.full_name.count("/")]
    call = f"tfds.builder('{config.name}', data_dir='{data_dir}').download_and_prepare()"
    how = f'run python -c "import tensorflow_datasets as tfds; {call}"'
    if name == "imagenet2012":
        tars = f"put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in {data_dir}/downloads/manual"
        how = f"{tars}, then: tfds build imagenet2012 --data_dir={data_dir}"
    raise UserError(f"{config.name} is not in {data_dir} (data.data_dir or $TFDS_DATA_DIR): {how}; {no_download}")
