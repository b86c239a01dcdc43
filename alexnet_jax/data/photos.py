"""From photos of any format, size and mode to the squares that the network sees (section 2); finding photos on disk."""

import contextlib
import io
import logging
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.data.host import in_threads

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no format that runs another program, as EPS does
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
MIN_SIDE = 16  # pixels: smaller photos, enlarged more than 16 times, show nothing; CIFAR-10 has 32
NONE = "there was no photo to be read: name photos, or folders of photos"
MAX_ASPECT = 10  # beyond this the centre square is less than a tenth of the photo

# What matters about a file is in the exceptions that Pillow raises; the rest would print a line for each photo.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# ---------------------------------------------------------------- one photo


def opened(photo: bytes | str | Path) -> Image.Image:
    """Opens a photo, given as its bytes or its path. Its size is known; its pixels are not decoded yet.

    Raises ValueError if it is a folder, a pipe or a device, which could block for ever, or in no known format. Pillow
    raises more, such as DecompressionBombError for more than 179 million pixels.
    """
    if not isinstance(photo, bytes):
        mode = os.stat(photo).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("this is a folder")
        if not stat.S_ISREG(mode):
            raise ValueError("this is not a regular file")
    try:
        return Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo, formats=FORMATS)
    except UnidentifiedImageError as error:  # its text names an address in memory
        raise ValueError(f"this is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from error


def square(
    photo: bytes | str | Path | Image.Image, size: int, upright: bool = False, resize: str = "shorter"
) -> Image.Image:
    """Returns a photo as RGB, size x size, scaled with a bicubic, antialiased filter.

    Grey, palette and CMYK photos become RGB, transparent ones are laid on white, and of animations the first picture is
    taken.

    Args:
      photo: its bytes, its path, or the image that `opened` returned.
      size: the side in pixels.
      upright: turn the photo as its EXIF orientation says. The 2012 code ignored the orientation, and so does training,
        except for TIFF, which Pillow always turns.
      resize: "shorter" scales the shorter side to `size` and cuts out the centre; "warp" scales both sides to `size`.
    Raises ValueError as `opened` does, and if nobody knows which of its numbers are black and white; Pillow raises
    almost anything on a file that is damaged or not a photo.
    """
    with photo if isinstance(photo, Image.Image) else opened(photo) as image:
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
            raise ValueError("its pixels are floating or 32-bit numbers without a known black and white")
        image.draft("RGB", (2 * size, 2 * size))  # decodes large JPEGs directly at a half, a quarter or an eighth
        if upright:
            image.load()  # before the turn, so that damaged pixels raise
            with contextlib.suppress(Exception):  # as for the pixels, almost anything: damaged EXIF turns nothing
                ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits of grey
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if resize == "shorter":
            return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return image.resize((size, size), Image.Resampling.BICUBIC)


def is_sliver(size: tuple[int, int]) -> bool:
    """Whether a photo of this width and height is so small or narrow that its square shows almost nothing."""
    return min(size) < MIN_SIDE or max(size) > MAX_ASPECT * min(size)


def why(error: Exception) -> str:
    """Why a photo cannot be read, in a few words."""
    return getattr(error, "strerror", None) or one_line(error)


# ---------------------------------------------------------------- photos on disk


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system and not to the user: .DS_Store, ._photo.jpg, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def is_photo(path: Path) -> bool:
    """Whether a path is named like a photo. Only reading it tells whether it is one."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.name)


def below(folder: Path, unreadable: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yields what is named like a photo in a folder and its subfolders, in no order. Follows no links to folders.

    unreadable: what to do about a folder that cannot be listed; by default it counts as empty.
    """
    for at, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in (*files, *folders):  # reading a folder with such a name reports it
            if is_photo(path := Path(at, name)):
                yield path


def find(path: str | Path, unreadable: Callable[[OSError], None] | None = None) -> list[Path]:
    """Returns a file itself, or the sorted photos of a folder and its subfolders. Raises UserError if it has none.

    unreadable: what to do about a subfolder that cannot be listed; by default that raises UserError, too.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.lexists(path):
        raise UserError(f"there is no file or folder {path}")
    if not os.path.isdir(path):
        return [path]
    failed: list[OSError] = []
    found = sorted(below(path, failed.append))
    for error in failed:
        if unreadable is None or not found:
            raise UserError(f"{error.filename} cannot be listed ({error.strerror}): make it readable, or move it away")
        unreadable(error)
    if not found:
        raise UserError(f"no photos in {path}: files must end in {', '.join(sorted(SUFFIXES))}")
    return found


def gather(names: Sequence[str]) -> tuple[list[Path], int]:
    """Returns the photos that a command line names, as files and folders, and how many folders have none to read.

    Those folders are reported on stderr. A missing file is among the photos: reading it reports it.
    """
    found: list[Path] = []
    bare = 0

    def unreadable(error: OSError) -> None:
        nonlocal bare
        print(f"unreadable: {error.filename}: {error.strerror}", file=sys.stderr)
        bare += 1

    for name in names:
        path = Path(os.path.expanduser(name))
        try:
            found += find(path, unreadable) if os.path.isdir(path) else [path]
        except UserError as error:
            print(f"unreadable: {name}: {error}", file=sys.stderr)
            bare += 1
    return found, bare


def batches(
    paths: Sequence[Path], size: int, batch_size: int, resize: str = "shorter"
) -> Iterator[tuple[np.ndarray, list[Path]]]:
    """Yields photos in order, upright, decoded on all cores ahead of need. Reports unreadable ones on stderr.

    Yields: images uint8 (batch_size, size, size, 3), the last batch padded with zeros; the paths of its photos.
    """

    def read(path):
        try:
            return path, np.asarray(square(path, size, upright=True, resize=resize)), ""
        except Exception as error:  # Pillow raises almost anything
            return path, None, why(error)

    images = np.zeros((batch_size, size, size, 3), np.uint8)
    names: list[Path] = []
    with contextlib.closing(in_threads(read, paths, ahead=2 * batch_size)) as photos:
        for path, image, reason in photos:
            if image is None:
                tqdm.write(f"unreadable: {path}: {reason}", file=sys.stderr)
                continue
            images[len(names)] = image
            names.append(path)
            if len(names) == batch_size:
                yield images, names
                images, names = np.zeros_like(images), []  # new arrays: the device may still read the old ones
    if names:
        yield images, names
