"""A trained network in its workdir, read back with all that is needed to use it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint, one_line, towers
from alexnet_jax.config import FIELDS, OPTIONAL, flat, refuse_misfits_of_network, unflat, wrong
from alexnet_jax.data import augment
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.records import Prepared, statistics_shapes
from alexnet_jax.files import expanded
from alexnet_jax.network import network, shapes

CONFIG, STATISTICS = "config.json", "statistics.npz"
CONVERTED = "converted.json"  # in the workdir of weights that come from elsewhere: where from


@dataclass(frozen=True)
class Run:
    """A trained network and what it needs to be used."""

    workdir: Path
    step: int
    config: ConfigDict
    mesh: Mesh
    apply: Callable  # (params, images float32, mean removed) -> (logits, activations by name)
    params: dict  # {layer: {"kernel", "bias"}}, float32
    statistics: dict[str, jax.Array]  # of its training set: mean, channel_mean, stdevs, vectors, float32
    classes: list[str]  # as the data set names them; classes.words makes synsets readable

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
      data, tower: copies of the network, and devices that each is split over, whatever it was trained on.
    Raises UserError if workdir holds no run or no checkpoint yet, or if there are too few devices.
    """
    workdir = expanded(workdir)
    config = read_config(workdir)
    statistics, classes = read_statistics(workdir, config)
    mesh = towers.make_mesh(ConfigDict({"data": data, "tower": tower}), config.model.towers, batch_size=data)
    statistics = towers.place(statistics, towers.replicated(mesh))  # once, not for each batch
    like = towers.abstract(shapes(config.model, config.data.crop), mesh)
    step, params = checkpoint.read_params(workdir, like, which)
    apply = towers.split(network(config.model), mesh)
    return Run(workdir, step, config, mesh, apply, params, statistics, classes)


def data_of(run: Run, config: ConfigDict | None = None) -> Prepared:
    """The run's own data set, prepared, or that of another `data` section. Its labels count the run's classes.

    Names decide: a set may lack classes, or have them in another order than the run, whose weights may be converted.
    Raises UserError if it has a class that the run does not know.
    """
    config = run.config.data if config is None else config
    prepared = prepare(config)
    if prepared.classes == run.classes:
        return prepared
    number = {name: i for i, name in enumerate(run.classes)}
    if unknown := [name for name in prepared.classes if name not in number]:
        raise UserError(
            f"{config.name} has the class {unknown[0]}, which {run.workdir} does not know: take that class out"
        )
    numbers = np.array([number[name] for name in prepared.classes], np.int32)
    train, evaluation = (
        dataclasses.replace(split, labels=numbers[split.labels]) for split in (prepared.train, prepared.evaluation)
    )
    return dataclasses.replace(prepared, classes=run.classes, train=train, evaluation=evaluation)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run, with lists for tuples. Fields newer than the run get values that leave it as it was.

    Raises UserError if workdir has no config.json, or one that is not a run's.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json): train one with alexnet train, or make one of weights with "
            "alexnet convert"
        )
    try:
        return _completed(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} is damaged ({one_line(e)}): the workdir is no run; name another --workdir") from e


def _completed(tree: Any) -> ConfigDict:
    """The config in the tree of a config.json, of any version. Raises ValueError, naming the field, if it is none."""
    there = {name: value for name, value in flat(tree).items() if name in FIELDS}
    if lacks := [name for name, row in FIELDS.items() if not (row.newer or name in OPTIONAL or name in there)]:
        raise ValueError(f"it lacks {lacks[0]}")
    values = renewed(there)
    for name, value in values.items():
        if says := wrong(name, value):
            raise ValueError(says)
    config = unflat(values)
    try:
        refuse_misfits_of_network(config)
    except UserError as e:
        raise ValueError(str(e).removeprefix("--config.")) from e
    return config


def renewed(there: dict[str, Any]) -> dict[str, Any]:
    """A run's fields of any version, {dotted name: value as JSON has it}, as this version has them.

    Fields that the run lacks because it is older than they are get values that leave it as it was. lrn.after_pool was
    true or false, for all norms at once.
    """
    newer = {name: json.loads(json.dumps(row.default)) for name, row in FIELDS.items() if row.newer}
    widths = there.get("model.conv_widths")
    if isinstance(widths, list) and len(widths) == 6:
        newer["model.conv_sizes"].append(3)
        newer["model.conv_strides"].append(1)
    after, layers, before = (there.get(f"model.lrn.{name}") for name in ("after_pool", "layers", "before_activation"))
    if isinstance(after, bool) and isinstance(layers, list) and isinstance(before, list):
        there = there | {"model.lrn.after_pool": [name for name in layers if after and name not in before]}
    return newer | there


def read_statistics(workdir: Path, config: ConfigDict | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of a run's training set, float32 arrays by name, and the names of its classes.

    config: the run's, if it is read already. The arrays are those of records.statistics_shapes.
    Raises UserError if they cannot be read, or do not have the shapes that the run's config asks for.
    """
    config = config or read_config(workdir)
    wanted = statistics_shapes(config.data.size) | {"classes": (config.model.num_classes,)}
    try:
        with np.load(workdir / STATISTICS, allow_pickle=False) as file:
            found = dict(file)
        for name, shape in wanted.items():
            array, kind = found[name], "U" if name == "classes" else "f"
            if array.shape != shape or array.dtype.kind != kind:
                raise ValueError(f"{name} is {array.dtype} {array.shape} where the run's is {shape}")
    except Exception as e:  # NumPy and zipfile raise many kinds on damaged files
        again = "the command that trained the run writes it again"
        if (workdir / CONVERTED).exists():
            again = "convert the weights once more, into another --workdir"
        raise UserError(f"{workdir / STATISTICS} cannot be read ({one_line(e)}): {again}") from e
    return {name: found[name] for name in wanted if name != "classes"}, [str(c) for c in found["classes"]]
