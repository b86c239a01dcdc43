"""The built-in data set: ten letters in many faces, drawn instead of downloaded, and read through TFDS like any other.

drawn(undrawn("full", folder)).as_dataset(split="train[:512]")   # drawn once, then kept in the folder
image, label = draw(seed=0, index=7)                             # one image, without TensorFlow or TFDS
"""

import contextlib
import io
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.data.host import tensorflow
from alexnet_jax.files import alone

# Training flips images, so no letter may look like another one's mirror image: no S with Z, no J with L, no M, N or W.
# Nor may one look like another when it is turned.
LETTERS = "AEHLOPSTVX"

# The Latin text faces that come with matplotlib. Its other fonts contain symbols, or only some of the letters.
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmti10", "cmss10", "cmtt10",
)  # fmt: skip

SIZE = 256
FONT_PIXELS = (135, 178)  # the letter's em; a capital is about 0.7 of it. The widest, turned, still fits the margin
MAX_TURN = 15.0  # degrees either way
MAX_SHIFT = 30  # pixels from the middle either way
MARGIN = 24  # pixels from the letter to the edge: a 224x224 crop cuts off at most 8 pixels of a letter
MIN_CONTRAST = 90.0  # of 255, between the luminance of the letter and that of any part of the background
NOISE = 5.0  # standard deviation, of 255
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B (ITU-R BT.601)

# Images in each split, by config. The tiny splits are the first images of the full ones.
SPLITS = {"full": {"train": 4000, "validation": 1000}, "tiny": {"train": 256, "validation": 64}}
SEEDS = {"train": 0, "validation": 1}


def draw(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Draws one image: a letter over a random background.

    Args:
      seed: which sequence of images, at least 0.
      index: which image of that sequence, at least 0.
    Returns: the image, uint8 (256, 256, 3), and its label, index % 10; the letter is LETTERS[label]. Both depend on
      (seed, index) alone, so images can be drawn in any order and by any process.
    """
    label = index % len(LETTERS)
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    ink, *ground = _colours(rng)
    image = _blend(ground[0], ground[1], _pattern(rng))
    # Shapes in a background colour, so that neither an edge nor a colour gives away where the letter is.
    image = _blend(image, ground[int(rng.integers(2))], _clutter(rng))
    image = _blend(image, ink, _letter(rng, LETTERS[label]))
    image += NOISE * rng.standard_normal((SIZE, SIZE), np.float32)
    return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(1, 2, 0)), label


def _colours(rng: np.random.Generator) -> np.ndarray:
    """The letter's colour and two for the background, float32 (3, 3, 1, 1); the letter's is the brightest."""
    while True:
        colours = rng.uniform(0, 255, (3, 3)).astype(np.float32)
        colours[2] = colours[1] + 0.5 * (colours[2] - colours[1])  # a background of related colours
        ink, *ground = colours @ LUMINANCE
        if ink - max(ground) > MIN_CONTRAST:
            return colours[..., None, None]


def _blend(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mixes two colours (3, 1, 1) or images (3, 256, 256): `below` where weight is 0, `above` where it is 1.

    weight: (256, 256) in [0, 1]. Colour is the first axis because NumPy is four times slower over a last axis of three.
    """
    return below + weight * (above - below)


def _pattern(rng: np.random.Generator) -> np.ndarray:
    """A gradient, stripes or clouds, float32 (256, 256) in [0, 1]."""
    kind = rng.integers(3)
    if kind == 0:  # clouds: noise on a coarse grid, smoothed
        cells = int(rng.integers(3, 12))
        grid = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
        return np.clip(np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC)), 0, 1)
    angle = rng.uniform(0, 2 * math.pi)
    along = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    ramp = math.cos(angle) * along + math.sin(angle) * along[:, None]
    if kind == 1:  # gradient; the diagonal is sqrt(2) long
        return ramp / math.sqrt(2) + 0.5
    waves, phase, sharpness = rng.uniform(2, 14), rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 4)
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(2 * math.pi * waves * ramp + phase))


def _clutter(rng: np.random.Generator) -> np.ndarray:
    """Up to two ellipses and lines, float32 (256, 256) in [0, 1]."""
    mask = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(mask)
    for _ in range(rng.integers(3)):
        x0, x1 = sorted(rng.uniform(0, SIZE, 2))
        y0, y1 = rng.uniform(0, SIZE, 2)
        if rng.integers(2):
            pen.ellipse((x0, min(y0, y1), x1, max(y0, y1)), fill=int(rng.integers(80, 256)))
        else:
            pen.line((x0, y0, x1, y1), fill=int(rng.integers(80, 256)), width=int(rng.integers(4, 24)))
    return np.asarray(mask, np.float32) / 255


def _letter(rng: np.random.Generator, letter: str) -> np.ndarray:
    """The letter in a random face, size, turn and place, float32 (256, 256) in [0, 1]."""
    face = FACES[rng.integers(len(FACES))]
    cut = _glyph(face, int(rng.integers(*FONT_PIXELS)), letter)
    cut = cut.rotate(rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC, expand=True)
    cut = cut.crop(cut.getbbox())
    x, y = (_place(rng, side) for side in cut.size)
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(cut, (x, y))
    return np.asarray(mask, np.float32) / 255


def _place(rng: np.random.Generator, side: int) -> int:
    """Where a letter of `side` pixels begins: near the middle, and within the margins."""
    middle = (SIZE - side) // 2
    reach = min(MAX_SHIFT, middle - MARGIN)
    return middle + int(rng.integers(-reach, reach + 1))


def _glyph(face: str, pixels: int, letter: str) -> Image.Image:
    """The upright letter, white on black, within a border of two pixels; mode L."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    # The basic layout, because the other one depends on whether libraqm is installed.
    font = ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(letter)
    # The border lets the edges of a turned letter fade out instead of ending in steps.
    cut = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(cut).text((2 - left, 2 - top), letter, fill=255, font=font)
    return cut


# ---------------------------------------------------------------- the TFDS set


def undrawn(config: str, data_dir: str) -> Any:
    """Returns the tfds.core.DatasetBuilder of glyphs/<config>. Writes nothing: its images may still have to be drawn.

    Args:
      config: "full" (4,000 training and 1,000 validation images) or "tiny" (256 and 64).
      data_dir: where its images are, or will be, in a folder of their own.
    Returns: a builder of examples {"image": uint8 (256, 256, 3), stored as JPEG, "label": int64 ()}.
    Raises UserError if there is no such config.
    """
    if config not in SPLITS:
        raise UserError(f"there is no data set 'glyphs/{config}': use one of glyphs/{', glyphs/'.join(SPLITS)}")
    return _builder_class()(config=config, data_dir=data_dir)


def splits(made: Any) -> Any:
    """Returns the tfds.core.splits.SplitDict that a builder has, or will have once it is drawn. It takes slices too."""
    import tensorflow_datasets as tfds

    names = tfds.core.ShardedFileTemplate(made.data_path, dataset_name="glyphs", filetype_suffix="tfrecord")
    return tfds.core.splits.SplitDict(
        tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0, filename_template=names.replace(split=name))
        for name, count in SPLITS[made.builder_config.name].items()
    )


def drawn(made: Any) -> Any:
    """Draws the images of a builder unless they exist; other processes wait meanwhile. Returns a builder that has them.

    Raises UserError if they cannot be written. A failure leaves nothing behind; what a kill leaves, the next call
    removes.
    """
    path, config = Path(made.data_path), made.builder_config.name
    lock, last = Path(f"{path}.lock"), path / "dataset_info.json"

    def waits():
        tqdm.write(f"waiting for another process to draw glyphs in {path}", file=sys.stderr)

    if lock.exists() or not last.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(lock, waits):
                for left in path.parent.glob(f"incomplete.*_{path.name}"):  # by a killed process
                    shutil.rmtree(left, ignore_errors=True)
                if not last.exists():
                    shutil.rmtree(path, ignore_errors=True)
                    _draw_all(made)
        except Exception as error:
            # From a full disk TFDS makes a RuntimeError, caused by TensorFlow's error.
            if not any(isinstance(e, (OSError, tensorflow().errors.OpError)) for e in (error, error.__cause__)):
                raise
            hint = "make room, or choose another folder with --config.data.prepared_dir=..."
            raise UserError(f"cannot write glyphs to {path.parent} ({one_line(error)}): {hint}") from error
    return undrawn(config, str(path.parents[2]))  # a builder that is made before its images exist does not know them


def _draw_all(made: Any) -> None:
    total = sum(SPLITS[made.builder_config.name].values())
    with _quiet_tfds(), tqdm(desc="drawing glyphs", total=total, unit=" images", dynamic_ncols=True) as made.bar:
        made.download_and_prepare()


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Hides TFDS's lines about a download, which this is not, and its three nested progress bars."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def _builder_class() -> type:
    """The TFDS builder's class, made when it is called, so that the module can be imported without TFDS."""
    tensorflow()  # before TFDS, so that it stays quiet
    import tensorflow_datasets as tfds

    # Not registered: TFDS refuses a second class of the same name. The way in is undrawn().
    class Glyphs(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")  # increase it, and prepare.FORMAT, when draw() draws differently
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SPLITS]  # the first is the default
        name = "glyphs"

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(LETTERS)),
                }
            )
            return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name) for name in SPLITS[self.builder_config.name]}

        def _generate_examples(self, split):
            for index in range(SPLITS[self.builder_config.name][split]):
                image, label = draw(SEEDS[split], index)
                self.bar.update()
                yield index, {"image": image, "label": label}

    return Glyphs
