"""Photos of users are turned upright, those of a training set are not."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError, photos


def test_a_phones_photo_stands_upright(tmp_path):
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
