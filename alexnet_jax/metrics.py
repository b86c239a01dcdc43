"""What a run reports: its errors, the records in metrics.jsonl, TensorBoard's events, the progress line.

totals = sums(log_probabilities, labels, mask)     # of a batch, on the device
means(totals)                                      # {"loss": 2.3, "top1_error": 0.9, "top5_error": 0.5}
read_metrics("runs/paper/metrics.jsonl")           # [{"step": 20, "epoch": 0.1, "split": "train", ...}, ...]
"""

import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from alexnet_jax import UserError, one_line
from alexnet_jax.files import write_text

METRICS = "metrics.jsonl"  # in the folder of a run
OLD = "metrics.old{}.jsonl"  # the records of a run that started again, once for each time
TOP = 5  # section 2: top-1 and top-5 error

# ---------------------------------------------------------------- errors


def sums(log_probabilities: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over a batch. Add up those of all batches, then divide by `images` (means).

    Args: log_probabilities float32 (b, classes), labels int32 (b,), mask float32 (b,), 0 for padding.
    Returns: scalars loss (cross-entropy, nats), top1_error, top5_error (numbers of images), images. Rows of padding
      count for nothing, even if they contain NaN.

    An image counts as a top-5 error if at least five classes are more probable than its own. A class that is as
    probable as its own counts as more probable, so a network that gives all classes the same probability is always
    wrong, not always right.
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


# ---------------------------------------------------------------- metrics.jsonl


def read_metrics(path: str | Path) -> list[dict]:
    """Returns the records of a metrics.jsonl, in order. Ignores a last line that a killed run left unfinished.

    Raises UserError, naming the line, if any other line is not a record, or if the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name the metrics.jsonl of a run") from error
    records = []
    for number, text in enumerate(lines, start=1):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, or not even UTF-8
            record = None
        if _is_record(record):
            records.append(record)
        elif number < len(lines):  # after the last newline comes nothing, or what a kill cut off
            raise UserError(f"line {number} of {path} is damaged: delete that line")
    return records


def line(record: dict) -> str:
    """Returns a record as a line of strict JSON: null for NaN and infinity."""

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


def _drop_after(path: Path, step: int, steps_per_epoch: int) -> None:
    """Keeps only the records up to the step at which a run resumes. At step 0 nothing is kept, and nothing parsed.

    Records of a run whose checkpoints somebody has removed are kept in a file of their own. One that was killed before
    its first checkpoint has nothing to lose.

    Raises UserError if a record is damaged, or if the last epoch before the step has none.
    """
    kept = []
    if step and path.exists():
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        latest = max((record["step"] for record in kept), default=0)
        if latest < step - step % steps_per_epoch:
            raise UserError(
                f"{path} lacks records before step {step}, where the run resumes: put the whole file back, or remove "
                "it to resume without them"
            )
    elif not step and path.exists() and b'"validation"' in path.read_bytes():
        old = next(p for i in itertools.count(1) if not (p := path.with_name(OLD.format(i))).exists())
        path.replace(old)
        print(f"warning: {path} has records and no checkpoint is left: they are kept in {old}", file=sys.stderr)
    elif step:
        print(f"warning: {path} does not exist: a new one begins at step {step}", file=sys.stderr)
    write_text(path, "".join(line(record) for record in kept))


# ---------------------------------------------------------------- the log of a run


class Log:
    """Writes a run's records to metrics.jsonl and TensorBoard, and keeps its progress line."""

    def __init__(self, workdir: Path | None, *, step: int, steps: int, batch_size: int, steps_per_epoch: int):
        """Resumes at `step` of `steps`: later records, which a killed run left, are dropped.

        workdir: None for a process that reports nothing, because another one does.
        Raises UserError if the records before it are damaged, and UserError or OSError if files cannot be written.
        """
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.workdir = workdir
        if workdir is not None:
            path = workdir / METRICS
            _drop_after(path, step, steps_per_epoch)
            self.file = path.open("a")
            from tensorboard.summary import Writer  # not at the top: whoever only reads records does not need it

            with _tensorboard_errors(workdir):
                self.tensorboard = Writer(str(workdir))
        self.progress = tqdm(
            total=steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.1,
            mininterval=0.5,
            disable=workdir is None,
        )
        self.resume_clock(step)

    def resume_clock(self, step: int) -> None:
        """Starts timing at `step`: the time before was not training."""
        self.clock = time.perf_counter(), step

    def images_per_second(self, step: int) -> float:
        """Returns the training speed since the last record."""
        then, start = self.clock
        now = time.perf_counter()
        self.clock = now, step
        return (step - start) * self.batch_size / (now - then)

    def advance(self, step: int, text: str) -> None:
        """Moves the progress line to `step`."""
        self.progress.set_postfix_str(text, refresh=False)
        self.progress.update(step * self.batch_size - self.progress.n)

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        if self.workdir is not None:
            self.progress.write(text)
            sys.stdout.flush()  # a signal or a lost process may end this one without flushing Python's buffers

    def write(self, step: int, split: str, values: dict) -> None:
        """Adds a record: step, epoch, split and the values."""
        if self.workdir is None:
            return
        record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "split": split} | values
        self.file.write(line(record))
        self.file.flush()
        views = values.get("views", 1)
        group = split if views == 1 else f"{split}_{views}_views"
        with _tensorboard_errors(self.workdir):
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Closes the files, complete."""
        self.progress.close()
        if self.workdir is not None:
            self.file.close()
            with _tensorboard_errors(self.workdir):
                self.tensorboard.close()


@contextlib.contextmanager
def _tensorboard_errors(workdir: Path) -> Iterator[None]:
    """Turns TensorBoard's errors into OSError: they are TensorFlow's own kinds, and all are about its file."""
    try:
        yield
    except Exception as e:
        raise OSError(f"TensorBoard's events cannot be written to {workdir} ({one_line(e)})") from e


def bar(images: int, text: str, quiet: bool = False) -> tqdm:
    """Returns a progress line over a number of images, which disappears when it is done."""
    return tqdm(total=images, desc=text, unit=" images", leave=False, dynamic_ncols=True, disable=quiet)
