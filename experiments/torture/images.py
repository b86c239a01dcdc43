"""Fuzzed images through predict, features and the preparation of a folder: each is read or named, in bounded memory.

The images have all formats of photos.FORMATS and all modes that these support. Most are damaged: cut short, with
flipped bits, with parts zeroed or repeated, with headers that claim 4 billion pixels, with a wrong suffix, or no images
at all.
"""

import io
import json
import math
import random
import struct
import zlib
from collections.abc import Generator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_jax.data import photos
from experiments.torture.cases import Case, Result
from experiments.torture.processes import command, crash, lines
from experiments.torture.trials import Kind, environment, reference

KIND = "photos, tf.data"
CHUNK = 100  # images for one command
MEMORY = 4 * 2**30  # bytes: for JAX and TensorFlow, and on each core the largest photo that Pillow accepts
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif", "PPM": ".ppm"}


def cases(kinds: dict[str, Kind], out: Path, seed: int, count: int) -> list[Case]:
    """Each command on each hundred images."""
    kind = kinds[KIND]
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    return [
        Case("images", what, f"{what}, {chunk.start}", partial(play, kind, what, chunk, seed, out))
        for what in ("predict", "features", "prepare")
        for chunk in chunks
    ]


def play(kind: Kind, what: str, numbers: range, seed: int, out: Path, folder: Path) -> Generator[None, None, Result]:
    """Runs one command on some of the images."""
    known = yield from reference(kind, out)
    root = folder / "photos"
    paths = draw(root, numbers, seed)
    yield
    where = environment(out, known.cache if what != "prepare" else folder / "cache")
    made = folder / "made.npz"
    run = f"--workdir={known.workdir}"
    module, flags = {
        "predict": ("alexnet_jax", ["predict", root, run, "--json"]),
        "features": ("alexnet_jax", ["features", f"--images={root}", run, "--layer=fc7", f"--out={made}"]),
        "prepare": ("experiments.torture.images", [root]),
    }[what]
    with command(module, *flags, output=folder / "start-1.0.txt", environment=where) as process:
        in_time = yield from process.wait()
        text, status, peak = process.text(), process.status, process.peak
    troubles = []
    if not in_time:
        troubles.append("it hung")
    elif why := crash(status, text):
        troubles.append(why)
    elif peak > MEMORY:
        troubles.append(f"it took {peak / 2**30:.1f} GiB of memory")
    else:
        troubles += accounted(what, paths, text, made)
        if status not in (0, 1):
            troubles.append(f"exit status {status}")
    return Result(troubles, number=len(paths), note=f"{what} took at most {math.ceil(peak / 2**30)} GiB of memory")


def accounted(what: str, paths: list[Path], text: str, made: Path) -> list[str]:
    """The images that a command has neither read nor named, or both."""
    said = lines(text)
    refused = {path for path in paths if any(line.startswith(f"unreadable: {path}: ") for line in said)}
    troubles = []
    if what == "predict":
        found = [json.loads(line) for line in said if line.startswith("{")]
        read = {Path(f["path"]) for f in found}
        shares = [t["probability"] for f in found for t in f["top"]]
        if not all(0 <= s <= 1 for s in shares):
            troubles.append("probabilities outside 0 to 1")
    elif what == "features":
        with np.load(made, allow_pickle=False) as file:
            read = {Path(str(i)) for i in file["ids"]}
            if not np.isfinite(file["fc7"]).all():
                troubles.append("features with NaN or infinity")
    else:
        prepared = json.loads(next((line for line in said if line.startswith("{")), '{"read": [], "damaged": []}'))
        read, refused = ({p for p in paths if f"{p.parent.name}/{p.name}" in prepared[k]} for k in ("read", "damaged"))
        if unnamed := [p for p in refused if not any(f"left out {p.parent.name}/{p.name} " in line for line in said)]:
            troubles.append(f"left out without a message: {unnamed[0].name}")
    troubles += [f"neither read nor named: {p.name}" for p in sorted(set(paths) - read - refused)]
    return troubles + [f"read and refused: {p.name}" for p in sorted(read & refused)]


# --- The images -------------------------------------------------------------------------------------------------------


def draw(root: Path, numbers: range, seed: int) -> list[Path]:
    """Writes the images of these numbers as root/train/<class>/<number>.<suffix>; returns their paths."""
    paths = []
    for number in numbers:
        rng = random.Random(f"{seed} image {number}")
        suffix, encoded = fuzzed(rng)
        path = root / "train" / ("even", "odd")[number % 2] / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
        paths.append(path)
    return paths


def fuzzed(rng: random.Random) -> tuple[str, bytes]:
    """The suffix and the bytes of an image; one in eight is undamaged."""
    kind = rng.choice(photos.FORMATS)
    encoded = whole(rng, kind)
    suffix = SUFFIX[kind] if rng.random() < 0.9 else rng.choice(sorted(photos.SUFFIXES))
    damage = rng.choice(("none", "cut", "flips", "flips", "zeros", "doubled", "bomb", "other"))
    at = sorted(rng.randrange(len(encoded) + 1) for _ in range(2))
    if damage == "cut":
        return suffix, encoded[: at[0]]
    if damage == "flips":
        changed = bytearray(encoded)
        for _ in range(rng.choice((1, 2, 8, 64))):  # half of them in the first 64 bytes
            place = rng.randrange(min(len(changed), 64) if rng.random() < 0.5 else len(changed))
            changed[place] ^= 1 << rng.randrange(8)
        return suffix, bytes(changed)
    if damage == "zeros":
        return suffix, encoded[: at[0]] + bytes(at[1] - at[0]) + encoded[at[1] :]
    if damage == "doubled":
        return suffix, encoded[: at[1]] + encoded[at[0] :]
    if damage == "bomb":
        return suffix, bomb(rng)
    if damage == "other":
        others = [b"", b"GIF89a", b"\xff\xd8\xff", b"P6\n4 4\n255\n", b"P6 999999999 999999999 255\n", bytes(4096)]
        others += [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", rng.randbytes(5000)]
        return suffix, rng.choice(others)
    return suffix, encoded


def whole(rng: random.Random, kind: str) -> bytes:
    """An undamaged image of a format, in a mode and size that it supports; some have EXIF or several frames."""
    sides = rng.choice(((1, 1), (1, 300), (4000, 1), (7, 5), (90, 64), (200, 133)))
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*sides[::-1], 3), np.uint8)
    image = Image.fromarray(pixels)
    for mode in rng.sample(MODES, len(MODES)):
        try:
            changed = image.convert("L").convert(mode) if mode in ("I", "I;16", "F", "1") else image.convert(mode)
            options = {}
            if rng.random() < 0.3 and kind in ("JPEG", "PNG", "WEBP", "TIFF"):
                exif = Image.Exif()
                exif[0x0112] = rng.randrange(12)
                options["exif"] = exif
            if rng.random() < 0.3 and kind in ("GIF", "WEBP", "TIFF", "PNG"):
                options |= {"save_all": True, "append_images": [changed.rotate(90)]}
            if kind == "TIFF":
                packings = [None, "tiff_lzw", "tiff_deflate", "packbits"] + ["jpeg"] * (changed.mode in ("L", "RGB"))
                options["compression"] = rng.choice(packings)
            if kind == "JPEG":
                options["progressive"] = rng.random() < 0.5
            buffer = io.BytesIO()
            changed.save(buffer, kind, **options)
            return buffer.getvalue()
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
            SystemError,
        ):  # the format does not support this mode
            continue
    raise RuntimeError(f"{kind} supports none of the modes")


def bomb(rng: random.Random) -> bytes:
    """A few bytes that claim many pixels; some contain them, up to the limit of Pillow."""
    side = rng.choice((9000, 13000, 40000, 65500))
    match rng.randrange(4):
        case 0:  # a PNG of two colours, complete up to a side of 13,000
            row = bytes(1 + (side + 7) // 8)
            packer = zlib.compressobj(9)
            rows = side if side < 20000 else 1
            data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
            header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
            return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
        case 1:
            return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + b"," + struct.pack(
                "<HHHHB", 0, 0, side, side, 0
            ) + b"\x02\x02\x44\x01\x00;"  # fmt: skip
        case 2:
            header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
        case _:
            return f"P5\n{side} {side}\n255\n".encode() + bytes(1000)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# --- The command that prepares ----------------------------------------------------------------------------------------


def prepare_folder(root: str):
    """Prepares a folder and prints, as JSON, the names of the images that were read and of the damaged ones."""
    from alexnet_jax.data.prepare import prepare
    from configs import paper

    config = paper.get_config("smoke").data
    config.name, config.size, config.crop = root, 72, 64
    config.eval_split, config.validation_fraction = "train", 0.0  # all images are counted
    prepared = prepare(config)
    damaged = json.loads((prepared.directory / "meta.json").read_text())["splits"]["train"]["damaged"]
    print("\n" + json.dumps({"read": prepared.train.ids, "damaged": sorted(damaged)}))


if __name__ == "__main__":
    import sys

    from alexnet_jax import UserError

    try:
        prepare_folder(sys.argv[1])
    except UserError as e:
        sys.exit(f"error: {e}")
