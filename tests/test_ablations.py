"""A sweep plans what it says, survives its own death, and goes on past a cell that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import records

from alexnet_jax import UserError
from alexnet_jax.config import check
from alexnet_jax.model import parameter_count, shapes
from alexnet_jax.runs.run import flat
from configs import source
from experiments import ablations
from experiments.changes import CHANGES, Change

ROOT = Path(__file__).parents[1]
SWEEP = """
from ml_collections import ConfigDict
import json
from experiments.changes import Change

ABLATIONS = {
    "fails": Change("a class too many", lambda base: {"model.num_classes": 4}),
    "pooling": Change("pooling 2 x 2, stride 2", lambda base: {"model.pool_size": 2}),
}


def get_config(arg=""):
    return ConfigDict(json.loads(%r))
"""


@pytest.fixture
def sweep(config, tmp_path):
    """A sweep's file: the base, one ablation that fails and one that does not."""
    config.epochs, config.evaluation.views = 3, 1
    path = tmp_path / "mine.py"
    path.write_text(SWEEP % config.to_json())
    return path


def start(*flags):
    command = [sys.executable, "-m", "experiments.ablations", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def test_killed_and_continued(sweep, tmp_path, capsys):
    """With its run, at once, mid-run. The failed cell is named and the rest goes on; nothing is done twice."""
    workdir = tmp_path / "runs"
    flags = ("--sweep", sweep, "--seeds", 1, "--workdir", workdir)
    process = start(*flags)
    log = workdir / "base" / "seed0" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    process = start(*flags)
    out, err = process.communicate()
    assert process.returncode == 1, (out, err)
    assert "2 of 3 cells finished" in out and "failed: fails, seed 0: the data set has 3 classes" in err
    assert "has 3 classes" in (workdir / "fails" / "seed0" / "failed.txt").read_text()
    for cell in ("base", "pooling"):
        found = records(workdir / cell / "seed0")
        assert found[-1]["split"] == "validation" and found[-1]["epoch"] == 3
        assert [r["step"] for r in found if r["split"] == "train"] == [4, 6, 8, 12, 16, 18]
        assert not (workdir / cell / "seed0" / "failed.txt").exists()
    assert json.loads((workdir / "base" / "seed0" / "config.json").read_text())["model"]["pool_size"] == 3
    assert json.loads((workdir / "pooling" / "seed0" / "config.json").read_text())["model"]["pool_size"] == 2

    before = log.stat().st_mtime_ns
    assert ablations.run([*map(str, flags), "--only", "pooling"]) == 0
    said = capsys.readouterr()
    assert "2 of 2 cells are finished" in said.err and "2 of 2 cells finished" in said.out
    assert log.stat().st_mtime_ns == before
    plan = json.loads((workdir / "sweep.json").read_text())
    assert list(plan["cells"]) == ["base", "fails", "pooling"] and plan["seeds"] == [0]


def test_dry_run_tells_the_cells_and_the_cost(sweep, tmp_path, capsys):
    assert ablations.run(["--sweep", str(sweep), "--workdir", str(tmp_path / "runs"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "pooling  ---  model.pool_size=2" in said and "the 9.0 runs to come" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["paper", "paper:imagenette", "small", "smoke"])
def test_built_in_sweeps_are_all_networks(name, tmp_path):
    """Every ablation changes something, and makes a config that trains."""
    base, chosen = ablations.read_sweep(name)
    cells = ablations.make_cells(base, chosen, 1, tmp_path)
    assert [c.name for c in cells] == ["base", *CHANGES]
    assert len({c.config.to_json() for c in cells}) == len(cells)


NOTES = {  # what the network of a note has that #145 has not, and its parameters
    "lrn_off": ({"lrn.layers": [], "spatial_norm.layers": []}, 60_965_224),  # #148
    "lrn_before_relu": ({"lrn.before_activation": ["conv1", "conv2"]}, 60_965_224),  # #166
    "lrn_after_pool": ({"lrn.after_pool": ["conv1"], "lrn.before_activation": []}, 60_965_224),  # #120, as far as #131
    "lrn_caffe": ({"lrn.k": 1.0}, 60_965_224),  # #131, as far as #135
    "pooling": ({"pool_size": 2}, 60_965_224),  # #147
    "one_column": ({"towers": 1, "conv_widths": [48, 128, 192, 192, 256]}, 59_798_312),  # #145-half
    "no_exchange": (  # #150: layers-150.cfg
        {"exchange": ["fc8"], "conv_widths": [96, 320, 384, 384, 256], "fc_widths": [8192, 4096]}, 60_714_408,
    ),
    "exchange_conv4": ({"exchange": ["conv4", "fc6", "fc7", "fc8"]}, 61_186_408),  # #132 and #133
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_an_ablation_is_the_network_of_its_note(name):
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES[name].fields(c))
    check(c)
    there, here = flat(source.get_config()), flat(c)
    changed = {field.removeprefix("model."): value for field, value in here.items() if value != there[field]}
    assert (changed, parameter_count(shapes(c.model, c.data.crop))) == NOTES[name]


def test_every_ablation_that_cites_a_note_is_held_to_it():
    assert {name for name, change in CHANGES.items() if "note" in change.source} == set(NOTES)


def test_without_exchange_the_towers_are_narrow_unless_they_are_widened():
    """Half of fc6, fc7 and conv3 goes with the exchange: #150 puts it back, the plain ablation does not."""
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES["no_exchange_narrow"].fields(c))
    assert parameter_count(shapes(c.model, c.data.crop)) == 33_259_880
    assert CHANGES["no_exchange_narrow"].top1 is None


def test_cells_go_seed_by_seed(config, tmp_path):
    cells = ablations.make_cells(config, {"pooling": CHANGES["pooling"]}, 2, tmp_path)
    assert [(c.name, c.seed) for c in cells] == [("base", 0), ("pooling", 0), ("base", 1), ("pooling", 1)]
    for cell in cells:
        assert cell.config.seed == cell.seed and cell.workdir == tmp_path / cell.name / f"seed{cell.seed}"
        assert cell.config.model.pool_size == (2 if cell.name == "pooling" else 3)
    broken = {"pooling": CHANGES["pooling"], "none": Change("nothing", lambda base: {"model.nothing": 1})}
    with pytest.raises(UserError, match="ablation none makes no config"):
        ablations.make_cells(config, broken, 1, tmp_path)


def test_only_takes_families():
    assert list(ablations.choose(CHANGES, "lrn")) == [
        "lrn_off", "lrn_across", "lrn_before_relu", "lrn_after_pool", "lrn_caffe"
    ]  # fmt: skip
    assert list(ablations.choose(CHANGES, "pooling, lrn_off")) == ["lrn_off", "pooling"]
    with pytest.raises(UserError, match="no ablation 'lr'; there are lrn_off"):
        ablations.choose(CHANGES, "lr")


def test_a_workdir_of_another_base_is_refused(config, tmp_path):
    ablations.record(tmp_path, "mine", config, {}, 1)
    ablations.record(tmp_path, "mine", config, {"pooling": CHANGES["pooling"]}, 3)
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert plan["seeds"] == [0, 1, 2] and list(plan["cells"]) == ["base", "pooling"]
    config.batch_size = 8
    with pytest.raises(UserError, match="another base"):
        ablations.record(tmp_path, "mine", config, {}, 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sweep", "nothing"], "there are finetune, paper, small, smoke"),
        (["--sweep", "smoke", "--seeds", "0"], "--seeds"),
        (["--sweep", "smoke:mnist"], "mnist"),
        (["--sweep", "smoke", "--launcher", "slurm"], "slurm"),
        (["--sweep", "smoke", "--slurm", "gpu"], "KEY=VALUE"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        ablations.run([*flags, "--workdir", str(tmp_path / "runs")])
    assert "\n" not in str(error.value)


HEAD = "from configs import paper\nfrom experiments.changes import Change\n"
BASE = "def get_config(arg=''):\n    return paper.get_config('smoke')\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ABLATIONS = {}\ndef get_config(arg=''):\n    return {}['key']\n", r"mine.py, line 5 .*KeyError: 'key'"),
        (f"ABLATIONS = [1]\n{BASE}", "must have ABLATIONS, a dict"),
        (f"ABLATIONS = {{'a': 3}}\n{BASE}", "must have ABLATIONS, a dict of experiments.changes.Change"),
        (BASE, "must have ABLATIONS"),
        ("ABLATIONS = {}\n", "no function get_config"),
        (f"ABLATIONS = {{'../a': Change('x', lambda base: {{}})}}\n{BASE}", "'../a': it becomes a folder's name"),
        (f"ABLATIONS = {{'a': Change('x', lambda base: {{'model.pool_sise': 2}})}}\n{BASE}", "is it model.pool_size"),
        (f"ABLATIONS = {{'a': Change('x', lambda base: {{'model.pool_size': 'b'}})}}\n{BASE}", "'pool_size'"),
        (f"ABLATIONS = {{'a': Change('x', lambda base: 1 / 0)}}\n{BASE}", "ablation a makes no config: ZeroDivision"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_sweeps_file_that_is_none_is_named(text, says, tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + text)
    with pytest.raises(UserError, match=says) as error:
        ablations.run(["--sweep", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "runs")])
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_a_sweep_by_a_path_that_is_no_file(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD)
    (tmp_path / "folder.py").mkdir()
    for name, says in ((tmp_path / "mine", f"or give {tmp_path}/mine.py"), (tmp_path / "folder.py", "is a folder"),
                       (tmp_path, "is a folder"), ("", "no sweep ''"), ("no/such", "no/such")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            ablations.read_sweep(str(name))
