"""metrics.jsonl, the records of a run, as every reader takes them.

records = read_metrics("runs/mine/metrics.jsonl")

A record is one JSON object a line: step (int), epoch (float), split ("train" or "validation") and what was measured.
A number that was not finite is null: JSON has no other word for it.
"""

import json
import math
from pathlib import Path

from alexnet_jax import UserError


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
