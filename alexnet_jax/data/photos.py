"""Photos as people have them, of any format, size and mode, to the squares that the network sees (section 2)."""

import contextlib
import io
import logging
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.data.records import in_threads

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no format that runs another program, as EPS does
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MIN_SIDE = 16  # pixels: of fewer, enlarged sixteenfold, nothing is to be seen; CIFAR-10 has 32
MAX_ASPECT = 10  # beyond, the centre square is less than a tenth of the photo

# What Pillow has to say of a file is in what it raises; of the rest each photo would make a line.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def opened(photo: bytes | str | Path) -> Image.Image:
    """A photo, or its file, opened and not yet decoded: its size is known, and its memory not yet taken.

    Raises ValueError on a folder, a pipe or a device, which could keep us for ever; and what Pillow raises, on more
    than 179 million pixels DecompressionBombError.
    """
    if not isinstance(photo, bytes):
        mode = os.stat(photo).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("this is a folder" if stat.S_ISDIR(mode) else "this is no regular file")
    try:
        return Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo, formats=FORMATS)
    except UnidentifiedImageError as error:  # which names a place in memory
        raise ValueError(f"this is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error


def square(
    photo: bytes | str | Path | Image.Image, size: int, upright: bool = False, resize: str = "shorter"
) -> Image.Image:
    """A photo, its file, or one `opened`, as RGB, size x size: scaled (bicubic, antialiased) as `resize` says.

    "shorter" brings the shorter side to `size` and takes the centre; "warp" brings both sides to it.

    Grey, palette and CMYK photos become RGB; transparent ones are laid on white; moving ones show their first picture.
    `upright` turns a photo as its EXIF orientation says; the 2012 code ignored that, and so does training. Raises
    ValueError as `opened` does; Pillow raises nearly anything on a file that is damaged or no photo.
    """
    with photo if isinstance(photo, Image.Image) else opened(photo) as image:
        image.draft("RGB", (2 * size, 2 * size))  # large JPEGs decode straight to a half, a quarter or an eighth
        if upright:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        fit = ImageOps.fit if resize == "shorter" else Image.Image.resize
        return fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


def is_sliver(size: tuple[int, int]) -> bool:
    """Whether a photo of this width and height has next to nothing to show in a square."""
    return min(size) < MIN_SIDE or max(size) > MAX_ASPECT * min(size)


def why(error: Exception) -> str:
    """Why a photo cannot be read, in a few words."""
    return getattr(error, "strerror", None) or one_line(error)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's and not the user's: .DS_Store, ._photo.jpg, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def is_photo(path: Path) -> bool:
    """Whether a path is named like a photo; whether it is one, reading tells."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.name)


def below(folder: Path) -> Iterator[Path]:
    """What is named like a photo in a folder and its subfolders, in no order; links to folders are not followed."""
    for path in folder.rglob("*"):
        if is_photo(path) and not any(map(is_hidden, path.relative_to(folder).parts)):
            yield path


def find(path: str | Path) -> list[Path]:
    """A file, or the photos of a folder and its subfolders by name. Raises UserError where there is none."""
    path = Path(os.path.expanduser(path))
    if not os.path.lexists(path):
        raise UserError(f"there is no file or folder {path}")
    if not os.path.isdir(path):
        return [path]
    found = sorted(below(path))
    if not found:
        raise UserError(f"no photos in {path}: it takes {', '.join(sorted(SUFFIXES))}")
    return found


def gather(names: Sequence[str]) -> tuple[list[Path], int]:
    """The photos that a command line names, as files and folders; and how many folders hold none, named on stderr.

    A file that is not there is named when it is to be read.
    """
    found, bare = [], 0
    for name in names:
        path = Path(os.path.expanduser(name))
        try:
            found += find(path) if os.path.isdir(path) else [path]
        except UserError as error:
            print(f"unreadable: {name}: {error}", file=sys.stderr)
            bare += 1
    return found, bare


def batches(
    paths: Sequence[Path], size: int, batch_size: int, resize: str = "shorter"
) -> Iterator[tuple[np.ndarray, list[Path]]]:
    """Yields photos in order, upright, decoded on all cores ahead of need; names on stderr what it cannot read.

    Yields: images uint8 (batch_size, size, size, 3), of the last batch filled up with zeros; the paths of its photos.
    """

    def read(path):
        try:
            return path, np.asarray(square(path, size, upright=True, resize=resize)), ""
        except Exception as error:  # Pillow raises nearly anything
            return path, None, why(error)

    images, names = np.zeros((batch_size, size, size, 3), np.uint8), []
    with contextlib.closing(in_threads(read, paths, ahead=2 * batch_size)) as photos:
        for path, image, reason in photos:
            if reason:
                tqdm.write(f"unreadable: {path}: {reason}", file=sys.stderr)
                continue
            images[len(names)] = image
            names.append(path)
            if len(names) == batch_size:
                yield images, names
                images, names = np.zeros_like(images), []  # anew: the device may still read the others
    if names:
        yield images, names
