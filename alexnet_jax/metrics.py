"""What a run reports: top-1 and top-5 errors, JSON lines, TensorBoard, the progress line."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from tensorboard.summary import Writer
from tqdm import tqdm

from alexnet_jax import UserError, one_line

TOP = 5  # section 2: top-1 and top-5 error


def sums(log_probabilities: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over a batch, to be divided by `images` once they are all added up.

    Args: log_probabilities float32 (b, classes), labels int32 (b,), mask float32 (b,), 0 for padding.
    Returns: scalars loss (cross-entropy, nats), top1_error, top5_error (numbers of images), images. Whatever a row of
    padding holds, and be it no number, counts for nothing.

    An image counts as a top-5 error if at least five classes are more probable than its own. A class as probable as
    its own counts as more probable too, so a net that gives every class the same is always wrong, not always right.
    """
    own = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    above = jnp.sum(log_probabilities >= own, axis=1) - 1
    above = jnp.where(jnp.isnan(own[:, 0]), log_probabilities.shape[1], above)
    return {
        "loss": jnp.sum(jnp.where(mask > 0, -own[:, 0], 0)),  # 0 times infinity would be NaN
        "top1_error": jnp.sum((above >= 1) * mask),
        "top5_error": jnp.sum((above >= TOP) * mask),
        "images": jnp.sum(mask),
    }


def means(totals: dict) -> dict[str, float]:
    """Divides sums by their number of images: loss in nats, errors 0..1."""
    images = float(totals["images"])
    return {name: float(totals[name]) / images for name in ("loss", "top1_error", "top5_error")}


def bar(images: int, text: str, quiet: bool = False) -> tqdm:
    """A progress line over a number of images that goes when it is done."""
    return tqdm(total=images, desc=text, unit=" images", leave=False, dynamic_ncols=True, disable=quiet)


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, in its order. A last line that a killed run left unfinished is ignored.

    Raises UserError, naming the line, if another one is no record, or if the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name the metrics.jsonl of a run") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # no JSON, or not even UTF-8
            record = None
        if _is_record(record):
            records.append(record)
        elif number < len(lines):  # behind the last newline there is nothing, or what a kill cut off
            raise UserError(f"line {number} of {path} is damaged: delete that line")
    return records


def line(record: dict) -> str:
    """A record as it is written, in strict JSON."""

    def finite(value):
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps({name: finite(value) for name, value in record.items()}, allow_nan=False) + "\n"


def _is_record(record) -> bool:
    return (
        isinstance(record, dict)
        and type(record.get("step")) is int
        and type(record.get("epoch")) in (int, float)
        and isinstance(record.get("split"), str)
        and all(v is None or type(v) in (int, float) for name, v in record.items() if name != "split")
    )


class Log:
    """Writes a run's records to metrics.jsonl and TensorBoard, and keeps its progress line."""

    def __init__(self, workdir: Path | None, *, step: int, steps: int, batch_size: int, steps_per_epoch: int):
        """Goes on at `step` of `steps`: records after it, which a killed run left, are dropped. No workdir, no word.

        Raises UserError if the records before it are damaged, OSError if files cannot be written.
        """
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.silent = workdir is None
        if not self.silent:
            self.path = workdir / "metrics.jsonl"
            self._drop_after(step)
            self.file = self.path.open("a")
            with _tensorboard(workdir):
                self.tensorboard = Writer(str(workdir))
        self.progress = tqdm(
            disable=self.silent,
            total=steps * batch_size, initial=step * batch_size, unit=" images", unit_scale=True, dynamic_ncols=True,
            smoothing=0.1, mininterval=0.5,
        )  # fmt: skip
        self.resume_clock(step)

    def _drop_after(self, step: int):
        """Keeps the records up to a step; from the beginning there is nothing to keep, and none is read.

        Raises UserError if a record is damaged, or if the last epoch before the step has none.
        """
        kept = [r for r in read_metrics(self.path) if r["step"] <= step] if step and self.path.exists() else []
        if self.path.exists() and max((r["step"] for r in kept), default=0) < step - step % self.steps_per_epoch:
            raise UserError(
                f"{self.path} lacks records before step {step}, where the run goes on: put the whole file back, "
                "or remove it to go on without them"
            )
        if step and not self.path.exists():
            print(f"warning: {self.path} is not there: it begins anew at step {step}", file=sys.stderr)
        fresh = self.path.with_name(f"partial.{self.path.name}")
        fresh.write_text("".join(map(line, kept)))
        os.replace(fresh, self.path)

    def resume_clock(self, step: int):
        """Starts timing at `step`: what lay before was not training."""
        self.clock = time.perf_counter(), step

    def images_per_second(self, step: int) -> float:
        """Training speed since the last record."""
        then, start = self.clock
        now = time.perf_counter()
        self.clock = now, step
        return (step - start) * self.batch_size / (now - then)

    def advance(self, step: int, text: str):
        """Moves the progress line to `step`."""
        self.progress.set_postfix_str(text, refresh=False)
        self.progress.update(step * self.batch_size - self.progress.n)

    def say(self, text: str):
        """Prints a line above the progress line."""
        if not self.silent:
            self.progress.write(text)
            sys.stdout.flush()  # a signal or a lost process may end this one past Python's buffers

    def write(self, step: int, split: str, values: dict):
        """Adds a record: step, epoch, split and the values."""
        if self.silent:
            return
        record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "split": split} | values
        self.file.write(line(record))
        self.file.flush()
        group = split if values.get("views", 1) == 1 else f"{split}_{values['views']}_views"
        with _tensorboard(self.path.parent):
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{group}/{name}", value, step)

    def close(self):
        """Leaves the files whole."""
        self.progress.close()
        if not self.silent:
            self.file.close()
            with _tensorboard(self.path.parent):
                self.tensorboard.close()


@contextlib.contextmanager
def _tensorboard(workdir: Path) -> Iterator[None]:
    """TensorBoard's errors as OSError: they are TensorFlow's own kinds, and all of them are of a file."""
    try:
        yield
    except Exception as e:
        raise OSError(f"TensorBoard's events cannot be written to {workdir} ({one_line(e)})") from e
