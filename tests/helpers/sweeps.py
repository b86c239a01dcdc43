"""Runs and sweeps that were never trained: what the report reads, with the errors that a test wants; and their jobs."""

import json
import shutil

from alexnet_jax import UserError
from configs import quickstart

STEPS = 5  # of an epoch


def tree(seed=0, **fields):
    """A config as config.json has it; model__dropout=0.5 changes a field."""
    c = quickstart.get_config()
    c.seed, c.epochs, c.evaluation.views = seed, 4, 10
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return json.loads(c.to_json())


def fake(folder, seed=0, error=0.2, *, epochs=4, views=True, **fields):
    """Writes a run that has trained `epochs` of its four: config.json and metrics.jsonl, no checkpoint.

    Its training error is 0.4 in the last epoch, its top-5 error half its top-1 error; the centre is worse by 0.1.
    """
    folder.mkdir(parents=True)
    config = tree(seed, **fields)
    (folder / "config.json").write_text(json.dumps(config))
    records = []
    for epoch in range(1, epochs + 1):
        at = {"step": epoch * STEPS, "epoch": float(epoch)}
        records.append(at | {"split": "train", "loss": 1.0, "top1_error": 0.8 - epoch / 10, "top5_error": 0.1})
        records.append(at | {"split": "validation", "views": 1, "top1_error": error + 0.1, "top5_error": 0.2})
    if epochs == config["epochs"] and views:
        wanted = {"split": "validation", "views": config["evaluation"]["views"], "images": 1000}
        records.append(at | wanted | {"top1_error": error, "top5_error": error / 2})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def fail(folder, reason, **fields):
    """Makes a run one that failed after its third epoch of four."""
    shutil.rmtree(folder, ignore_errors=True)
    fake(folder, int(folder.name.removeprefix("seed")), epochs=3, **fields)
    (folder / "failed.txt").write_text(reason)


def entry(cell, seed, top1=0.3, **more):
    """A finished run of four epochs in a record: its training error falls to 0.2, its centre is worse by a point."""
    found = {
        "cell": cell, "seed": seed, "state": "finished", "views": 10, "top1": top1, "top5": top1 / 2,
        "centre_top1": top1 + 0.01, "centre_top5": top1 / 2 + 0.01, "images": [2841, 3925],
        "training": [0.5, 0.4, 0.3, 0.2], "validation": [None, None, None, top1], "steps": 40, "hours": 0.5,
        "points": {"epoch": [1.0, 2.0, 3.0, 4.0], "loss": [2.0, 1.5, 1.0, 0.5], "top1": [0.5, 0.4, 0.3, 0.2]},
        "machine": {"CPU": "A CPU avx2", "cores": 1, "devices": "1 x 1 cpu", "jax": "0.1"}, "date": "2026-01-02",
    }  # fmt: skip
    return found | more


def plan(folder, cells, seeds=(0, 1, 2), **fields):
    """Writes sweep.json; cells maps a cell to its fields, its title is the cell's name in capitals."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = {cell: {"title": cell.upper(), "fields": changed, "seeds": list(seeds)} for cell, changed in cells.items()}
    tidy = {"sweep": folder.name, "config": tree(**fields), "cells": cells}
    (folder / "sweep.json").write_text(json.dumps(tidy))


def three_seeds(folder):
    """A sweep of three seeds of a base and of no dropout, all finished."""
    plan(folder, {"base": {}, "dropout_off": {"model.dropout": 0.0}})
    for seed, (base, other) in enumerate([(0.20, 0.23), (0.22, 0.24), (0.24, 0.28)]):
        fake(folder / f"base/seed{seed}", seed, base)
        fake(folder / f"dropout_off/seed{seed}", seed, other, model__dropout=0.0)
    return folder


class Job:
    """A job that has ended."""

    def done(self):
        return True


class Here:
    """An executor that runs a job in this process, at once."""

    def __init__(self, launcher, folder, options):
        self.folder = folder

    def submit(self, function, *args):
        try:
            function(*args)
        except UserError as error:
            print(error)
        return Job()
