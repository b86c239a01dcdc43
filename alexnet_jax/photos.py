"""Photos as people have them, of any format, size and mode, to the squares that the network sees (section 2)."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.records import in_threads

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no format that runs another program, as EPS does
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def square(photo: bytes | str | Path, size: int, upright: bool = False, resize: str = "shorter") -> Image.Image:
    """A photo, or its file, as RGB, size x size: scaled (bicubic, antialiased) as `resize` says.

    "shorter" brings the shorter side to `size` and takes the centre; "warp" brings both sides to it.

    Grey, palette and CMYK photos become RGB; transparent ones are laid on white. `upright` turns a photo as its EXIF
    orientation says; the 2012 code ignored that, and so does training. Pillow raises nearly anything on a file that is
    damaged or no photo.
    """
    encoded = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
    try:
        opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:  # which names a place in memory
        raise ValueError(f"this is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    with opened as image:
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


def find(path: str | Path) -> list[Path]:
    """A file, or the photos of a folder and its subfolders by name. Raises UserError where there is none."""
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"no photos in {path}: it takes {', '.join(sorted(SUFFIXES))}")
    return found


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
            return path, None, getattr(error, "strerror", None) or one_line(error)

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
