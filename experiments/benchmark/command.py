"""Measures speed and memory on this machine, ours beside PyTorch's.

    alexnet benchmark --peer torch                          # train, forward, image, ten-view and start
    alexnet benchmark train forward --peer torch --network paper,ungrouped,torchvision --batch 64,128 --turns 7
    alexnet benchmark train --config configs/half_width.py --dtype bfloat16
    alexnet benchmark input [--data imagenette/160px-v2] [--seconds 10] [--turns 5]
    alexnet benchmark split --config configs/paper.py [--turns 7]
    alexnet benchmark scaling --axis batch,width --out scaling.png --save scaling.json
    python -m experiments.benchmark train                   # the same

train: a training step, from uint8 images to the updated weights.
forward, image: the logits of a batch, and of one image.
ten-view: the mean prediction over ten crops of each image of a batch.
start: a new process until it has done its first training step, with an empty compilation cache and with the filled one.
input: how fast images reach the network, compared with PyTorch's DataLoader on the same photos.
split: a training step with both towers on one device, and with a tower on each of two.
scaling: a training step's time against its arithmetic, over batch, width, image side and number of devices.

Ours and the peer run in separate processes, which take turns. torch is what a user of PyTorch writes: torch.compile,
channels_last, grouped convolutions, the fused SGD. torch-tuned also has a norm written by hand for torch.compile, and
freezes weights outside training. The last line on standard output is JSON with every number.

On a GPU both sides use it: float32 is then TF32 on both, and --dtype bfloat16 is torch.autocast there. No GPU has run
this yet.
"""

import datetime
import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import UserError
from alexnet_jax.cli.commands import add_config
from alexnet_jax.config import check_without_data
from alexnet_jax.files import expanded, refuse_no_file, write_text
from alexnet_jax.runs import finetune
from experiments.benchmark import input_pipeline, machine, scaling, split, steps, table, turns

STEPS = ("train", "forward", "image", "ten-view")
USUAL = (*STEPS, "start")
WHAT = (*USUAL, "input", "split", "scaling")
TURNS = 7


def add_flags(parser: ArgumentParser):
    """The flags of `alexnet benchmark`."""
    says = f"what to measure: {', '.join(WHAT)} (default: the first {len(USUAL)})"
    parser.add_argument("what", nargs="*", metavar="WHAT", help=says)
    says = "compare with PyTorch; torch-tuned: with its fastest form that we found"
    parser.add_argument("--peer", choices=steps.PEERS, help=says)
    says = f"networks, comma-separated: {', '.join(steps.NETWORKS)}"
    parser.add_argument("--network", default="paper", metavar="NAME,...", help=says)
    says = "batch sizes, comma-separated; start takes the first"
    parser.add_argument("--batch", default="64,128", metavar="N,...", help=says)
    says = "turns of each process (default: 7; 5 for input; start takes at most 3; scaling always 2)"
    parser.add_argument("--turns", "--repeats", dest="repeats", type=int, metavar="N", help=says)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--save", metavar="FILE", help="write the last line to a file too")
    add_config(parser, required=False)  # instead of --network; split requires it
    input_pipeline.add_flags(parser)
    scaling.add_flags(parser)


def main(flags: Namespace):
    """Measures and prints. Raises UserError."""
    what, batches = words(flags.what), batch_sizes(flags.batch)
    if flags.repeats is not None and flags.repeats < 1:
        raise UserError(f"--turns (or --repeats) is {flags.repeats} and must be at least 1")
    if flags.peer and find_spec("torch") is None:
        raise UserError("--peer torch requires PyTorch, which is not installed: pip install -e .[dev]")
    if "split" in what and flags.config is None:
        raise UserError("name a config: alexnet benchmark split --config configs/paper.py")
    if set(what) & set(USUAL) and (own := {"batch_size", "model.dtype"} & set(flags.given or ())):
        raise UserError(f"--config.{min(own)} has no effect: set --batch and --dtype")
    for path in [expanded(name) for name in (flags.save, flags.out) if name]:  # before it takes minutes
        refuse_no_file(path)
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    found: dict[str, Any] = scaling.earlier(flags.save) if "scaling" in what else {}
    count, configs = flags.repeats or TURNS, networks(flags)
    if set(what) & set(USUAL):
        measure_steps(found, [w for w in USUAL if w in what], configs, batches, flags, count)
    if "split" in what:
        add(found, split.measure(configs[0], count), flags)
    if "scaling" in what:
        add(found, scaling.measure(flags, found), flags)
    if "input" in what:
        found["input"] = input_pipeline.measure(flags)
    report(found, flags)


def words(given: Sequence[str]) -> list[str]:
    """What to measure. Raises UserError on a word that is none of WHAT."""
    for word in given:
        if word not in WHAT:
            near = get_close_matches(word, WHAT, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(WHAT)}"
            raise UserError(f"benchmark measures no '{word}'; {hint}")
    return list(dict.fromkeys(given)) or list(USUAL)


def batch_sizes(text: str) -> list[int]:
    """The numbers of --batch. Raises UserError."""
    numbers = [word.strip() for word in text.split(",")]
    if not all(n.isdecimal() and 0 < int(n) <= 65536 for n in numbers):
        raise UserError(f"--batch is '{text}' and must be numbers from 1 to 65536, comma-separated, as in 64,128")
    return [int(n) for n in numbers]


def networks(flags: Namespace) -> list[ConfigDict]:
    """The configs of --config or --network. Raises UserError."""
    if flags.config is not None:
        configs = [finetune.resolved(flags.config, given=flags.given)]
    else:
        names = [name.strip() for name in flags.network.split(",")]
        if unknown := [name for name in names if name not in steps.NETWORKS]:
            raise UserError(
                f"--network names '{unknown[0]}', and there are {', '.join(steps.NETWORKS)}; for others give --config"
            )
        configs = [steps.NETWORKS[name].get_config() for name in names]
        for name, config in zip(names, configs, strict=True):
            config.name = name
    for config in configs:
        check_without_data(config)
    return configs


def measure_steps(
    found: dict[str, Any],
    what: Sequence[str],
    configs: Sequence[ConfigDict],
    batches: Sequence[int],
    flags: Namespace,
    count: int,
):
    """Measures the network's own work, adds it to what is found, and prints and saves it row by row. what: of USUAL."""
    found["rows"] = []
    if set(what) & set(STEPS):
        modules = {"ours": turns.OURS} | ({flags.peer: turns.PEER} if flags.peer else {})
        found["rates"] = machine.rates(modules, (flags.dtype,))
        print(f"{table.machine(found['rates'])}\n\n{table.heading()}", flush=True)
    for config in configs:
        for word in what:
            if word == "start":
                continue
            for batch in (1,) if word == "image" else batches:
                row = steps.measure(word, steps.prepared(config, batch, flags.dtype), flags.peer, count, found["rates"])
                add(found, {"machine": row.pop("machine")}, flags)
                found["rows"].append(row)
                print(table.row(row), flush=True)
                save(found, flags)
    if found["rows"]:
        print(f"\n{table.LEGEND}\n")
    if "start" in what:
        ready = [steps.prepared(config, batches[0], flags.dtype) for config in configs]
        found["starts"] = [steps.measure_start(config, flags.peer, count) for config in ready]
        for row in found["starts"]:
            add(found, {"machine": row.pop("machine")}, flags)
        print(f"{table.starts(found['starts'])}\n")


def add(found: dict[str, Any], measured: dict[str, Any], flags: Namespace):
    """Adds what was measured, with its machine. Raises UserError if --save's file is of another machine."""
    machine.refuse_other(found.get("machine", {}), measured["machine"], flags.save)
    found |= measured | {"machine": found.get("machine", {}) | measured["machine"]}


def report(found: dict[str, Any], flags: Namespace):
    """Prints the last line, and writes it to --save's file. Raises UserError if it cannot be written."""
    print(line(found, flags), flush=True)
    save(found, flags)


def save(found: dict[str, Any], flags: Namespace):
    """Writes what is found so far to --save's file, if there is one. Raises UserError if it cannot be written."""
    if flags.save:
        write_text(expanded(flags.save), line(found, flags) + "\n")


def line(found: dict[str, Any], flags: Namespace) -> str:
    """What is found, as JSON, with the command, its environment and the date."""
    environment = {name: os.environ.get(name, value) for name, value in turns.MEMORY.items()}
    about = {"date": datetime.date.today().isoformat(), "command": flags.command, "environment": environment}
    return json.dumps(found | about)
