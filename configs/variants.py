"""What every config takes after its colon: a data set's name, and "smoke" for a run of seconds.

"smoke" keeps the config's data set, or the one named with it: its first 512 training and 256 validation
images, and of the drawn letters the few of glyphs/tiny. It takes glyphs/tiny too where it would need a download that
nobody asked for: for ImageNet if it was not named, as in configs/paper.py:smoke, and for a config without a data set.
"""

from ml_collections import ConfigDict

# name: (TFDS name, evaluation split, classes)
DATA_SETS = {
    "imagenet2012": ("imagenet2012", "validation", 1000),
    "imagenette": ("imagenette/160px-v2", "validation", 10),
    "cifar10": ("cifar10", "test", 10),
    "glyphs": ("glyphs", "validation", 10),
}


def select(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies the words of arg (comma-separated: a name of DATA_SETS, "smoke"), in place.

    Raises ValueError on any other word.
    """
    words = [w.strip() for w in arg.split(",") if w.strip()]
    for word in words:
        if word != "smoke" and word not in DATA_SETS:
            raise ValueError(f"'{word}' after the config's colon is none of: {', '.join(DATA_SETS)}, smoke")
    named = [w for w in words if w in DATA_SETS]
    if len(named) > 1:
        raise ValueError(f"one data set at a time after the config's colon, not {' and '.join(named)}")
    for word in named:
        data_set(config, word)
    if "smoke" in words:
        smoke(config, named=bool(named))
    if words:
        config.name = "_".join([config.name, *words])
    return config


def data_set(config: ConfigDict, word: str):
    """Gives the config another data set, with its number of classes; small sets are held on the device."""
    config.data.name, config.data.eval_split, config.model.num_classes = DATA_SETS[word]
    config.data.on_device = word != "imagenet2012"


def smoke(config: ConfigDict, named: bool):
    """Shrinks the config to a run of seconds: an eighth of the width, small images, two epochs, few images."""
    d, m = config.data, config.model
    if d.name.startswith("glyphs") or (not named and d.name in ("", "imagenet2012")):
        data_set(config, "glyphs")
        d.name = "glyphs/tiny"
    else:
        d.train_split += "[:512]"
        d.eval_split += "[:256]"
    if not m.layers:  # a chain of layers is small already
        m.conv_widths = tuple(_narrow(w, 8, m.towers) for w in m.conv_widths)
        m.fc_widths = tuple(_narrow(w, 32, m.towers) for w in m.fc_widths)
        d.size, d.crop = 96, 80
    config.batch_size = config.evaluation.batch_size = 32
    config.epochs = 2
    config.log_every_steps = 1


def _narrow(width: int, divisor: int, towers: int) -> int:
    """A width divided, with at least two units in each tower and the same number in all."""
    return max(2, width // divisor // towers) * towers
