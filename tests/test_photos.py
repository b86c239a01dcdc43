"""Photos of users are turned upright, those of a training set are not; no file does harm, whatever it contains."""

import errno
import io
import itertools
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError
from alexnet_jax.data import photos


def saved(pixels, form, **how):
    """A file of these pixels, in memory."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **how)
    return file


def test_a_phones_photo_is_turned_upright(tmp_path):
    """Its pixels lie on their side, red to the left; EXIF orientation 6 says that the left is the top."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45], pixels[:, 45:] = (200, 0, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    [(images, paths)] = photos.batches([tmp_path / "phone.jpg"], 32, 2)
    assert paths == [tmp_path / "phone.jpg"] and images.shape == (2, 32, 32, 3)
    assert images[0, :12, :, 0].min() > 150 and images[0, 20:, :, 2].min() > 150
    lying = np.asarray(photos.square(tmp_path / "phone.jpg", 32))
    assert lying[:, :12, 0].min() > 150 and lying[:, 20:, 2].min() > 150


def test_squares_are_pillows_bicubic(tmp_path):
    """Of a JPEG of more than twice the side, those of the JPEG decoded at a half."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(photos.square(Image.fromarray(pixels), 32), expected)
    Image.fromarray(pixels).resize((400, 400)).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as image:
        image.draft("RGB", (64, 64))
        assert image.size == (100, 100)
        expected = image.resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(photos.square(tmp_path / "large.jpg", 32), expected)


def test_every_orientation_is_turned_upright():
    """As the standard tells where row 0 and column 0 of the pixels belong; an unknown orientation turns nothing."""
    upright = {
        2: lambda lying: lying[:, ::-1],
        3: lambda lying: lying[::-1, ::-1],
        4: lambda lying: lying[::-1],
        5: lambda lying: lying.swapaxes(0, 1),
        6: lambda lying: np.rot90(lying, -1),
        7: lambda lying: lying[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90,
    }
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        lying = np.asarray(Image.open(saved(pixels, form)))
        for orientation in range(10):
            exif = Image.Exif()
            exif[0x0112] = orientation
            found = photos.square(saved(pixels, form, exif=exif).getvalue(), 32, upright=True)
            expected = photos.square(Image.fromarray(upright.get(orientation, np.array)(lying)), 32)
            np.testing.assert_array_equal(found, expected, f"{form} {orientation}")


def test_odd_exif_is_no_damage():
    """Bytes that are no EXIF turn nothing; a text where a number belongs does not hide that the photo lies."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    lying = struct.pack("<HHHI4s", 2, 0x0112, 3, 1, b"\6\0\0\0") + struct.pack("<HHI4sI", 0x0128, 2, 3, b"in\0\0", 0)
    for exif, turn in ((b"abcd", None), (b"II*\0\x08\0\0\0" + lying, Image.Transpose.ROTATE_270)):
        file = saved(pixels, "JPEG", exif=b"Exif\0\0" + exif, dpi=(72, 72))
        upright = photos.square(file.getvalue(), 32, upright=True)
        plain = Image.open(file)
        np.testing.assert_array_equal(upright, photos.square(plain.transpose(turn) if turn else plain, 32))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_known_white_are_refused(dtype):
    file = saved(np.ones((40, 40), dtype), "TIFF")
    with pytest.raises(ValueError, match="without a known black and white"):
        photos.square(file.getvalue(), 32)


def test_folders_are_searched_and_empty_ones_named(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/2.JPG", "a/1.png", "a/notes.txt"):
        (tmp_path / name).touch()
    assert photos.find(tmp_path) == [tmp_path / "a" / "1.png", tmp_path / "a" / "b" / "2.JPG"]
    (tmp_path / "a" / "1.png").unlink()
    (tmp_path / "a" / "b" / "2.JPG").unlink()
    with pytest.raises(UserError, match="no photos in"):
        photos.find(tmp_path / "a")
    with pytest.raises(UserError, match="no file or folder"):
        photos.find(tmp_path / "c")


def test_folders_that_may_not_be_listed_are_named(tmp_path, monkeypatch, capsys):
    for name in ("a/1.png", "a/locked/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert photos.gather([str(tmp_path / "a")]) == ([tmp_path / "a" / "1.png"], 1)
    assert capsys.readouterr().err == f"unreadable: {tmp_path}/a/locked: Permission denied\n"
    with pytest.raises(UserError, match=r"a/locked cannot be listed \(Permission denied\)"):
        photos.find(tmp_path / "a")
    assert photos.gather([str(tmp_path / "a" / "locked")]) == ([], 1)
    assert "a/locked cannot be listed" in capsys.readouterr().err


def test_a_warped_photo_keeps_its_sides():
    """Left and right thirds of a wide photo are cut off by the centre square, and not by a warp."""
    pixels = np.zeros((60, 180, 3), np.uint8)
    pixels[:, :60], pixels[:, 60:120], pixels[:, 120:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    centre, warped = (np.asarray(photos.square(file.getvalue(), 30, resize=r)) for r in ("shorter", "warp"))
    assert centre.shape == warped.shape == (30, 30, 3)
    assert (centre[:, :, 1] > 150).all()
    for place, channel in ((5, 0), (15, 1), (25, 2)):
        assert (warped[:, place].argmax(axis=1) == channel).all()


# ---------------------------------------------------------------- files of any kind

MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "GIF": ("RGB", "P"),
    "WEBP": ("RGB", "RGBA"), "TIFF": ("RGB", "RGBA", "CMYK", "YCbCr", "P", "1", "I;16"),
    "BMP": ("RGB", "P", "1"), "PPM": ("RGB", "L", "1", "I"),
}  # fmt: skip
MORE = [
    ("JPEG", "RGB", {"progressive": True}), ("PNG", "P", {"transparency": 3}), ("PNG", "L", {"transparency": 3}),
    ("PNG", "RGB", {"transparency": (1, 2, 3)}), ("PNG", "P", {"transparency": bytes(range(9))}),
    ("PNG", "1", {"transparency": 0}), ("GIF", "P", {"transparency": 3}), ("WEBP", "RGB", {"lossless": True}),
    *(("TIFF", "RGB", {"compression": c}) for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
]  # fmt: skip


def noise(mode, rng, size=(50, 40)):
    pixels = rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels.view("<u2")[..., 0])
    if mode in ("I", "F"):
        return Image.fromarray(pixels[..., 0].astype(np.int32)).convert(mode)
    if mode in ("P", "1"):
        return Image.fromarray(pixels[..., :3]).convert(mode)
    return Image.frombytes(mode, size, pixels[..., : len(Image.new(mode, (1, 1)).getbands())].tobytes())


def whole_files(rng):
    """{what: bytes} of a photo in every format and mode, and of animations."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [(form, mode, {"exif": exif} if form == "JPEG" else {}) for form, modes in MODES.items() for mode in modes]
    kinds += MORE
    kinds += [
        (f, "RGB", {"save_all": True, "append_images": [noise("RGB", rng)]}) for f in ("GIF", "PNG", "WEBP", "TIFF")
    ]
    found = {}
    for form, mode, how in kinds:
        file = io.BytesIO()
        noise(mode, rng).save(file, form, **how)
        found[f"{form} {mode} {' '.join(how)}"] = file.getvalue()
    return found


def broken_files(rng, each):
    """For each of whole_files, `each` files cut short anywhere and as many with changed bytes, most in the header."""
    for what, whole in whole_files(rng).items():
        for _ in range(each):
            yield what, whole[: rng.integers(len(whole))]
            changed = bytearray(whole)
            for _ in range(rng.integers(1, 9)):
                changed[rng.integers(min(len(whole), rng.choice([40, 200, 10**6])))] = rng.integers(256)
            yield what, bytes(changed)


def test_every_format_and_mode_becomes_rgb():
    for (what, whole), upright in itertools.product(whole_files(np.random.default_rng(0)).items(), (False, True)):
        found = photos.square(whole, 32, upright=upright)
        assert (found.mode, found.size) == ("RGB", (32, 32)), what


@pytest.mark.filterwarnings("ignore")  # pytest replaces the filters of photos.py
def test_damaged_files_are_read_or_refused_in_few_words():
    read, refused = 0, 0
    for what, data in broken_files(np.random.default_rng(0), each=8):
        try:
            assert photos.square(data, 32, upright=True).mode == "RGB"
            read += 1
        except Exception as error:  # as prepare and batches do
            said = photos.why(error)
            assert said and len(said) <= 300 and len(said.splitlines()) == 1, (what, said)
            refused += 1
    assert read > 50 and refused > 300


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claims(width, height, depth=8, colour=2):
    """A PNG whose header, but nothing else, has that size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore")
def test_a_photo_that_claims_more_than_it_is_takes_no_memory():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (13_000, 13_000), (0, 5)):
        with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - Pillow's, of any kind
            photos.square(claims(width, height), 32)
        assert len(photos.why(caught.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_large_photo_prints_no_warning(tmp_path):
    """Pillow would print a line for each. This one has 90 million pixels of one bit."""
    code = "import sys\nfrom alexnet_jax.data import photos\nprint(photos.square(sys.argv[1], 32).size)"
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(32, 32)\n", "")


def test_pipes_devices_and_folders_are_not_photos(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, says in (
        (tmp_path / "pipe.jpg", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(ValueError, match=says):
            photos.square(path, 32)


def test_hidden_files_are_not_found_and_everything_named_like_a_photo_is(tmp_path):
    for name in (
        ".hidden.jpg",
        "._a.jpg",
        ".git/a.jpg",
        "__MACOSX/a.jpg",
        "b/__MACOSX/._a.jpg",
        "b/a.jpg",
        "Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert photos.find(tmp_path) == [tmp_path / name for name in ("b/a.jpg", "broken.jpg", "pipe.jpg")]
    assert photos.find(tmp_path / "broken.jpg") == [tmp_path / "broken.jpg"]  # reading says why not
    for name in ("a\0b", "x" * 5000, "~nobody_at_all/x"):
        with pytest.raises(UserError, match="no file or folder"):
            photos.find(name)
