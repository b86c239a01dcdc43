"""Runs so small that they can be killed hundreds of times: their kinds, how they start, how they should end."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import paper
from experiments.torture import compare
from experiments.torture.cases import Failed
from experiments.torture.processes import Process, command, crash, lines, refusal

COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    name: str
    config: ConfigDict
    processes: int = 1
    devices: int = 1  # of each process


def kinds(photos: Path) -> dict[str, Kind]:
    """All kinds by name; those on Imagenette only where TFDS_DATA_DIR is set. photos: see draw_photos."""
    folder = {"data.name": str(photos), "data.on_device": False}
    plateau = {"optimizer.rule": "plateau", "optimizer.patience": 1, "optimizer.min_improvement": 0.05}
    epochs = {"optimizer.rule": "epochs", "optimizer.drop_epochs": (2, 3)}
    found = [
        # Every path that a batch can take, and every learning rate rule whose state must survive.
        Kind("glyphs, resident", _config(plateau)),
        Kind("photos, tf.data", _config(folder | plateau | {"evaluation.every_epochs": 2, "data.crop_chunk": 32})),
        Kind("photos, two processes", _config(folder | plateau | {"devices.data": 2}), processes=2),
        Kind("glyphs, tf.data", _config(epochs | {"data.on_device": False, "evaluation.every_epochs": 3})),
        Kind(
            "photos, resident, a tower on each of two devices",
            _config({"data.name": str(photos), "optimizer.rule": "stages", "optimizer.algorithm": "adam",
                     "optimizer.learning_rate": 0.0005, "devices.tower": 2}), devices=2,
        ),
        Kind(
            "glyphs, resident, a tower in each of two processes",
            _config(epochs | {"devices.tower": 2, "evaluation.every_epochs": 2, "data.crop_chunk": 32}), processes=2,
        ),
    ]  # fmt: skip
    if os.environ.get("TFDS_DATA_DIR"):
        slices = {"data.train_split": "train[:160]", "data.eval_split": "validation[:48]", "data.on_device": False}
        found.insert(3, Kind("Imagenette, tf.data", _config({"data.name": "imagenette/160px-v2"} | plateau | slices)))
    return {kind.name: kind for kind in found}


def _config(fields: dict) -> ConfigDict:
    """Five epochs of a narrow network that learns, with dropout and all augmentations."""
    c = paper.get_config("smoke")
    c.name = "tiny"
    c.batch_size, c.epochs = 16, 5
    c.model.num_classes = 0
    c.optimizer.learning_rate = 0.003
    for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        c.model.init_std[layer], c.model.init_bias[layer] = 0.1, 0.0
    c.data.size, c.data.crop = 72, 64
    c.evaluation.batch_size = 10
    c.devices.tower = 1
    c.log_every_steps, c.checkpoint_every_steps = 3, 4
    c.update_from_flattened_dict(fields)
    return c


def draw_photos(root: Path, seed: int = 0):
    """A folder of three classes of coloured discs on noise: 80 training and 22 validation photos."""
    if root.exists():
        return
    partial, rng = root.with_name(f"{root.name}.partial"), np.random.default_rng(seed)
    shutil.rmtree(partial, ignore_errors=True)
    y, x = np.mgrid[:120, :160]
    for split, count in (("train", 80), ("validation", 22)):
        for i in range(count):
            name = sorted(COLORS)[i % 3]
            pixels = rng.normal(128, 25, (120, 160, 3))
            cy, cx = rng.integers(40, 80, 2)
            pixels[(y - cy) ** 2 + (x - cx) ** 2 < 35**2] += np.array(COLORS[name]) - 128
            path = partial / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    partial.rename(root)


def environment(out: Path, cache: Path, own_xla: Path | None = None, devices: int = 1) -> dict[str, str]:
    """The environment of a process: its own cache of data, and the shared cache of compiled code, or `own_xla`."""
    ours = ("OPENBLAS_NUM_THREADS", "XLA_FLAGS", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in ours} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(own_xla or out / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(cache),
        "MPLCONFIGDIR": str(out / "matplotlib"),
    }


class Trial:
    """A run of some kind in a folder of its own: `run` is its workdir, `cache` has its drawn and prepared data."""

    def __init__(self, kind: Kind, folder: Path, out: Path, data: Path | None = None):
        """out: the folder of the compilation cache; data: the folder of workdir and cache, by default `folder`."""
        self.kind, self.folder, self.out = kind, folder, out
        self.workdir, self.cache = (data or folder) / "run", (data or folder) / "cache"
        self.config = folder / "config.py"
        self.config.write_text(
            "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
            f"    return ConfigDict(json.loads({kind.config.to_json()!r}))\n"
        )
        self.starts = 0
        self.seconds, self.said = 0.0, ""  # of a reference: how long it took, and its last line
        self.processes: list[Process] = []

    def flags(self) -> list[str]:
        """The flags of the command that is repeated until the run ends."""
        return [f"--config={self.config}", f"--workdir={self.workdir}"]

    @contextlib.contextmanager
    def started(self, own_xla: Path | None = None):
        """Starts the command; its processes are killed at the end."""
        self.starts += 1
        where = environment(self.out, self.cache, own_xla, self.kind.devices)
        together: list[list[str]] = [[]]
        if self.kind.processes > 1:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{s.getsockname()[1]}"
            shared = ["--distributed", f"--coordinator={address}", f"--processes={self.kind.processes}"]
            together = [[*shared, f"--process={i}"] for i in range(self.kind.processes)]
        self.processes = [
            command(
                "alexnet_jax.main", *self.flags(), *flags,
                output=self.folder / f"start-{self.starts}.{i}.txt", environment=where,
            )
            for i, flags in enumerate(together)
        ]  # fmt: skip
        try:
            yield self.processes
        finally:
            for process in self.processes:
                process.kill()

    def ended(self) -> bool:
        """Whether all its processes have ended."""
        return all([p.poll() is not None for p in self.processes])  # a list: each must be polled

    def wait(self) -> Generator[None, None, list[str]]:
        """Waits for the end of all processes. Returns what was wrong with it."""
        in_time = []
        for process in self.processes:
            ended = yield from process.wait()
            in_time.append(ended)
        return self.judge(in_time)

    def judge(self, in_time: list[bool]) -> list[str]:
        """What was wrong with the end of an undisturbed command. in_time: whether each process ended by itself."""
        troubles = []
        for p, ended in zip(self.processes, in_time, strict=True):
            said = lines(p.text())
            why = crash(p.status, p.text()) if ended else "it hung"
            if not why and p.status:
                why = f"exit status {p.status}: {said[-1] if said else refusal(p.status, '')}"
            if why:
                troubles.append(f"the same command failed ({p.output.name}): {why}")
        return troubles

    def error(self) -> str:
        """The last line, with the errors of the run; "" without one."""
        return next(
            (line for line in lines(self.processes[0].text()) if ", top-5 error" in line and "images:" in line), ""
        )


_building: set[str] = set()


def reference(kind: Kind, out: Path) -> Generator[None, None, Trial]:
    """The undisturbed run of a kind, which is made once. Raises Failed if it fails."""
    folder = out / "reference" / kind.name
    while kind.name in _building:
        yield
    whole = folder / "whole.txt"
    if not whole.exists():
        _building.add(kind.name)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            trial, begun = Trial(kind, folder, out), time.monotonic()
            with trial.started():
                if troubles := (yield from trial.wait()):
                    raise Failed(f"{troubles[0]} [{folder}]")
                whole.write_text(f"{time.monotonic() - begun:.1f}\n{trial.error()}\n")
        finally:
            _building.discard(kind.name)
    found = Trial(kind, folder, out)
    seconds, found.said, *_ = whole.read_text().split("\n")
    found.seconds = float(seconds)
    return found


def compared(trial: Trial, known: Trial) -> Generator[None, None, list[str]]:
    """The differences between a finished trial and its reference, and the temporary files that it left."""
    output = trial.folder / "compared.txt"

    def say():
        troubles = compare.runs(trial.workdir, known.workdir) + compare.prepared(trial.cache, known.cache)
        print("\n".join(f"DIFFERS {t}" for t in troubles + compare.leftovers(trial.workdir, trial.cache)))

    with Process(say, output) as process:
        yield from process.wait()
        if process.status:
            return [f"the run cannot be read back: {lines(process.text())[-1]}"]
        found = [line.removeprefix("DIFFERS ") for line in lines(process.text()) if line.startswith("DIFFERS ")]
    if trial.error() != known.said:
        found.append(f"it ends with '{trial.error()}' and the reference with '{known.said}'")
    return found
