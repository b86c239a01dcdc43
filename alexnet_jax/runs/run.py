"""A trained network as it lies in its workdir, and what it takes to use it."""

import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, checkpoint, one_line, towers
from alexnet_jax.data import augment
from alexnet_jax.model import AlexNet, shapes
from configs import paper

CONFIG, STATISTICS = "config.json", "statistics.npz"


def flat(tree: dict | ConfigDict, prefix: str = "") -> dict:
    """A config, or what was read from its JSON, as {dotted field: value}, the values as JSON has them."""
    tree = json.loads(tree.to_json()) if isinstance(tree, ConfigDict) else tree
    out = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


@dataclass(frozen=True)
class Run:
    """A trained network and what it needs to be used."""

    workdir: Path
    step: int
    config: ConfigDict
    mesh: Mesh
    apply: Callable  # (params, images float32, mean removed) -> (logits, activations by name)
    params: dict  # {layer: {"kernel", "bias"}}, float32
    statistics: dict[str, np.ndarray]  # of its training set: mean, channel_mean, stdevs, vectors
    classes: list[str]  # as the data set has them; classes.words makes synsets readable

    def __call__(self, images: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs the network on the centre crops of prepared images. inference.py does so for any number of them.

        Args: images uint8 (b, size, size, 3), size that of the config's data; b a multiple of the mesh's copies.
        Returns: logits float32 (b, classes); activations by name, as model.AlexNet returns them.
        Raises ValueError if the images have another shape.
        """
        size = self.config.data.size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape} and must be (b, {size}, {size}, 3)")
        return self._compiled(self.params, self.statistics, towers.place(images, towers.batch_sharding(self.mesh)))

    @cached_property
    def _compiled(self) -> Callable:
        d = self.config.data

        def call(params, statistics, images):
            [crop] = augment.views(images, statistics, d, 1)
            return self.apply(params, crop)

        return jax.jit(call, compiler_options=towers.compiler_options(self.mesh.devices.flat[0].platform))


def load_run(workdir: str | Path, which: str = "best", data: int = 1, tower: int = 1) -> Run:
    """Reads a run back.

    Args:
      which: "best" (the lowest validation error; the latest if none was measured) or "latest".
      data, tower: copies of the network, and devices that each is split over; of whatever mesh it was trained on.
    Raises UserError if workdir holds no run, or no checkpoint yet, or if the devices are too few.
    """
    workdir = Path(workdir).expanduser()
    config = read_config(workdir)
    statistics, classes = read_statistics(workdir)
    mesh = towers.make_mesh(ConfigDict({"data": data, "tower": tower}), config.model.towers, batch_size=data)
    parameters = shapes(config.model, config.data.crop)
    like = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        parameters,
        towers.shardings(parameters, mesh),
    )
    step, params = checkpoint.read_params(workdir, like, which)
    apply = towers.split(AlexNet(FrozenConfigDict(config.model)), mesh)
    return Run(workdir, step, config, mesh, apply, params, statistics, classes)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run; fields newer than the run have the paper's values, which leave it as it was.

    Raises UserError if workdir holds none, or none that is whole.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json): train one with python -m alexnet_jax.main, or make one of "
            "weights with alexnet convert"
        )
    default = json.loads(paper.get_config().to_json())
    try:
        found = paper.renewed(json.loads(path.read_text()))
        if wrong := _wrong(found, default):
            raise ValueError(wrong)
        return ConfigDict(_filled(found, default))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is not whole ({one_line(e)}): the workdir is no run; name another --workdir") from e


NEWER = ("start",)  # sections that a run of 0.1.0 may lack


def _wrong(found, default, name: str = "") -> str | None:
    """What is wrong with a config that was read from JSON, the paper's beside it: a section that lacks, or a type."""
    kinds = {bool: bool, int: int, float: (int, float), str: str, list: list, dict: dict}[type(default)]
    if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(default, bool):
        return f"{name or 'it'} is {json.dumps(found)[:40]} and not of the type {type(default).__name__}"
    if isinstance(default, list):
        pairs = [(f"an entry of {name}", value, default[0]) for value in found if default]
    elif isinstance(default, dict):
        if lacks := [n for n, value in default.items() if isinstance(value, dict) and n not in (*found, *NEWER)]:
            return f"it lacks {f'{name}.' * bool(name)}{lacks[0]}"
        pairs = [(f"{name}.{n}".lstrip("."), value, default[n]) for n, value in found.items() if n in default]
    else:
        return None
    return next(filter(None, (_wrong(value, like, where) for where, value, like in pairs)), None)


def _filled(theirs: dict, default: dict) -> dict:
    missing = {name: value for name, value in default.items() if name not in theirs}
    held = {n: _filled(v, default[n]) if isinstance(v, dict) and n in default else v for n, v in theirs.items()}
    return held | missing


def read_statistics(workdir: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of a run's training set, float32 arrays by name, and the names of its classes.

    Raises UserError if they cannot be read, or are not those of the run's config.
    """
    config = read_config(workdir)
    side = config.data.size
    wanted = {"mean": (side, side, 3), "channel_mean": (3,), "stdevs": (3,), "vectors": (3, 3)}
    wanted["classes"] = (config.model.num_classes,)
    try:
        with np.load(workdir / STATISTICS, allow_pickle=False) as file:
            found = dict(file)
        for name, shape in wanted.items():
            array, kind = found[name], "U" if name == "classes" else "f"
            if array.shape != shape or array.dtype.kind != kind:
                raise ValueError(f"{name} is {array.dtype} {array.shape} where the run's is {shape}")
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zlib.error, zipfile.BadZipFile) as e:
        raise UserError(
            f"{workdir / STATISTICS} cannot be read ({one_line(e)}): the same command that trained the run, "
            "python -m alexnet_jax.main, writes it anew"
        ) from e
    return {name: found[name] for name in wanted if name != "classes"}, [str(c) for c in found["classes"]]
