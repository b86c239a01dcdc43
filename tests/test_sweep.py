"""A sweep plans what it says, survives its own death, and continues after a cell that fails."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import records
from helpers.sweeps import Here, entry, fake

from alexnet_jax import UserError, checkpoint
from alexnet_jax.cli import commands
from alexnet_jax.runs.run import flat, read_config
from experiments import jobs, results, sweep
from experiments.changes import CHANGES, Change
from experiments.record import file

ROOT = Path(__file__).parents[1]
FILE = """
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
def mine(chain_config, tmp_path):
    """A sweep's file: the base, an ablation that fails and one that does not."""
    config = chain_config
    config.epochs, config.evaluation.views = 2, 1
    path = tmp_path / "mine.py"
    path.write_text(FILE % config.to_json())
    return path


def run(*words):
    """`alexnet sweep` with these flags; returns the exit status."""
    return sweep.main(commands.parse(sweep, [str(word) for word in words]))


@pytest.fixture
def here(monkeypatch):
    """Runs train in this process instead of one of their own."""
    monkeypatch.setattr(sweep, "make_executor", Here)
    monkeypatch.setattr(jobs.submitit, "LocalExecutor", Here)
    monkeypatch.setattr(jobs, "set_up_libraries", lambda: None)


@contextlib.contextmanager
def begun(flags, log, shell=()):
    """A sweep in processes of its own, of which a run has written its first record to `log`; `shell` starts it."""
    command = [*shell, sys.executable, "-m", "experiments.sweep", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        while not log.exists() or not log.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process


@pytest.mark.slow
def test_killed_and_resumed(mine, tmp_path, capsys, here):
    """With its run, at once, in the middle. The failed cell is named, and nothing is done twice."""
    workdir = tmp_path / "runs"
    flags = ("--sweep", mine, "--seeds", 1, "--only", "fails", "--workdir", workdir)
    base, log = workdir / "base" / "seed0", workdir / "base" / "seed0" / "metrics.jsonl"
    with begun(flags, log) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert records(base)[-1]["epoch"] < 2

    assert run(*flags) == 1
    said = capsys.readouterr()
    assert "1 of 2 runs finished" in said.out and "failed: fails, seed 0: the data set has 3 classes" in said.err
    assert "has 3 classes" in (workdir / "fails" / "seed0" / "failed.txt").read_text()
    assert records(base)[-1]["split"] == "validation" and records(base)[-1]["epoch"] == 2
    assert [r["step"] for r in records(base) if r["split"] == "train"] == [4, 6, 8, 12]
    assert not (base / "failed.txt").exists()

    before = log.stat().st_mtime_ns
    assert run(*flags) == 1
    assert "1 of 2 runs are finished" in capsys.readouterr().err
    assert log.stat().st_mtime_ns == before
    plan = json.loads((workdir / "sweep.json").read_text())
    assert {name: cell["seeds"] for name, cell in plan["cells"].items()} == {"base": [0], "fails": [0]}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_stopped_sweep_lets_its_run_save_its_step(mine, tmp_path, how):
    """Ctrl-C in a terminal goes to all processes, SIGTERM to the sweep, which a script's background has made deaf to
    Ctrl-C. The run has not failed.
    """
    workdir = tmp_path / "runs"
    flags = ("--sweep", mine, "--seeds", 1, "--only", "pooling", "--workdir", workdir)
    base, log = workdir / "base" / "seed0", workdir / "base" / "seed0" / "metrics.jsonl"
    # The tests may themselves run in the background of a script.
    ears = ("env", "--default-signal=INT") if how == "Ctrl-C" else ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    with begun(flags, log, ears) as process:
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        said = process.communicate()
    assert process.returncode == 130 and "the same command resumes" in said[1], said
    assert not (base / "failed.txt").exists() and not (workdir / "pooling").exists()
    assert checkpoint.latest_step(base) >= records(base)[-1]["step"] > 0


def test_dry_run_prints_the_cells_and_the_cost(mine, tmp_path, capsys):
    assert run("--sweep", mine, "--workdir", tmp_path / "runs", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "pooling  ---  model.pool_size=2" in said and "the 9.0 runs that remain" in said
    assert not (tmp_path / "runs").exists()


def test_a_class_without_photos_is_refused_before_any_run(chain_config, mine, tmp_path, here):
    """As alexnet train refuses it: a set that is prepared already would be taken as it is."""
    photos = shutil.copytree(chain_config.data.name, tmp_path / "photos")
    (photos / "train" / "zebra").mkdir()
    chain_config.data.name = str(photos)
    mine.write_text(FILE % chain_config.to_json())
    for more in (("--dry-run",), ()):
        with pytest.raises(UserError, match="1 of 4 classes has no photo in train: zebra"):
            run("--sweep", mine, "--workdir", tmp_path / "runs", *more)


def test_cells_go_seed_by_seed(config, tmp_path):
    cells = sweep.make_cells(config, {"pooling": CHANGES["pooling"]}, 2, tmp_path)
    assert [(c.name, c.seed) for c in cells] == [("base", 0), ("pooling", 0), ("base", 1), ("pooling", 1)]
    for cell in cells:
        assert cell.config.seed == cell.seed and cell.workdir == tmp_path / cell.name / f"seed{cell.seed}"
        assert cell.config.model.pool_size == (2 if cell.name == "pooling" else 3)
    broken = {"pooling": CHANGES["pooling"], "none": Change("nothing", lambda base: {"model.nothing": 1})}
    with pytest.raises(UserError, match="ablation none makes no valid config"):
        sweep.make_cells(config, broken, 1, tmp_path)


def test_recorded_runs_are_left_out_if_asked(config, tmp_path, capsys):
    """Those that are finished and compute the same, under any name; not another seed, and not an unfinished one."""
    cells = sweep.make_cells(config, {"pooling": CHANGES["pooling"]}, 3, tmp_path)
    record, settings = file.Record("earlier", "base"), results.completed(cells[0].config.to_dict())
    for cell, change in (("first", {}), ("second", {"model.pool_size": 2, "model.pool_stride": 2})):
        file.add_cell(record, cell, cell, settings | change | {"name": "other", "log_every_steps": 99})
    for cell, seed, state in (("first", 0, "finished"), ("second", 2, "finished"), ("first", 1, "unfinished")):
        record.runs[cell, seed] = entry(cell, seed, state=state)
    file.write(record, tmp_path / "earlier.json")
    left = sweep.unrecorded(cells, "earlier", tmp_path)
    assert [(c.name, c.seed) for c in left] == [("pooling", 0), ("base", 1), ("pooling", 1), ("base", 2)]
    assert f"2 of 6 runs are recorded in {tmp_path}/earlier.json" in capsys.readouterr().err
    file.write(file.Record("empty"), tmp_path / "empty.json")
    assert sweep.unrecorded(cells, "empty", tmp_path) == cells
    with pytest.raises(UserError, match="no record 'late' in .*, only earlier, empty"):
        sweep.unrecorded(cells, "late", tmp_path)


def test_a_folder_with_results_of_another_config_is_no_cell(config, tmp_path):
    """A rate that was changed after a sweep: its runs must not pass for those of the new rate."""
    here = tmp_path / "base" / "seed0"
    fake(here, 0)
    settings = flat(read_config(here))
    config = read_config(here)
    jobs.Cell("base", 0, config, here).check()
    assert jobs.Cell("base", 0, config, here).done()
    for field, value in (("optimizer.learning_rate", 0.5), ("epochs", 2), ("seed", 1)):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=rf"another config \({field}={settings[field]}\): remove it"):
            jobs.Cell("base", other.seed, other, here).check()
    config.epochs += 1  # it goes on
    longer = jobs.Cell("base", 0, config, here)
    longer.check()
    assert not longer.done()


def test_a_sweep_skips_what_is_recorded(mine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "unrecorded", lambda cells, name: [c for c in cells if c.seed or name != "study"])
    monkeypatch.setattr(sweep, "run_seconds", lambda base: 60.0)
    flags = ("--sweep", mine, "--seeds", 2, "--workdir", tmp_path / "runs", "--dry-run")
    for more, says in (
        ((), "6.0 runs that remain take 6 min"),
        (("--skip-recorded", "study"), "3.0 runs that remain take 3 min"),
    ):
        assert run(*flags, *more) == 0
        assert says in capsys.readouterr().out


def test_the_plan_counts_epochs(config, tmp_path, monkeypatch, capsys):
    """A run of three times the base's epochs costs three runs of it."""
    config.epochs = 2
    ablations = {"long": Change("long", lambda base: {"epochs": 6})}
    monkeypatch.setattr(sweep, "run_seconds", lambda base: 600.0)
    monkeypatch.setattr(jobs.Cell, "epochs_done", lambda cell: 6.0 if cell.seed == 0 and cell.name == "long" else 0.0)
    sweep.print_plan(sweep.make_cells(config, ablations, 2, tmp_path), config, ablations)
    said = capsys.readouterr().out
    assert "long  x-" in said and "3.0 runs that remain take 50 min" in said


def test_a_sweeps_folder_is_named_after_it_and_its_argument():
    names = {
        "small": "small", "small:cifar10": "small_cifar10", "x/mine.py": "mine", "x/mine.py:long": "mine_long",
        "/x/mine.py:a.b": "mine_a.b", "small:a/b": "small_a_b",
    }  # fmt: skip
    assert {name: sweep._label(name) for name in names} == names


def test_what_a_finetuned_network_learns():
    base, ablations = sweep.read_sweep("finetune")
    rates = {name: change.fields(base)["optimizer.layer_rates"] for name, change in ablations.items()}
    frozen = {name: {layer for _, layer, rate in multiples if rate == 0} for name, multiples in rates.items()}
    convolutions = {f"conv{i}" for i in range(1, 6)}
    assert frozen == {
        "all_caffe": set(), "all_base": set(), "fc6_fc8": convolutions, "fc8": convolutions | {"fc6", "fc7"},
    }  # fmt: skip


def test_only_takes_families():
    assert list(sweep.choose(CHANGES, "lrn")) == [
        "lrn_off", "lrn_across", "lrn_before_relu", "lrn_after_pool", "lrn_caffe"
    ]  # fmt: skip
    assert list(sweep.choose(CHANGES, "pooling, lrn_off")) == ["lrn_off", "pooling"]
    assert list(sweep.choose(CHANGES, "no_exchange")) == ["no_exchange"]  # and not no_exchange_narrow
    rates = sweep.read_sweep("ablation_rates")[1]  # base_0.01 and so on
    assert sweep.choose(CHANGES, "base") == sweep.choose(rates, "base") == {}
    assert list(sweep.choose(CHANGES, "base,pooling")) == ["pooling"]
    with pytest.raises(UserError, match="no ablation 'lr'; there are base, lrn_off"):
        sweep.choose(CHANGES, "lr")


def test_a_workdir_of_another_base_is_refused(config, tmp_path):
    def record(ablations, seeds):
        cells = sweep.make_cells(config, ablations, seeds, tmp_path)
        sweep.write_plan(tmp_path, "mine", config, cells, {name: change.title for name, change in ablations.items()})

    record({}, 1)
    record({"pooling": CHANGES["pooling"]}, 3)
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert list(plan["cells"]) == ["base", "pooling"] and plan["cells"]["base"]["seeds"] == [0, 1, 2]
    assert plan["cells"]["pooling"] == {
        "title": CHANGES["pooling"].title, "fields": {"model.pool_size": 2}, "seeds": [0, 1, 2]
    }  # fmt: skip
    record({"tanh": CHANGES["tanh"]}, 1)
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert {name: cell["seeds"] for name, cell in plan["cells"].items()} == {
        "base": [0, 1, 2], "pooling": [0, 1, 2], "tanh": [0]
    }  # fmt: skip
    config.log_every_steps, config.checkpoint_every_steps = 77, 50  # they compute nothing
    record({}, 1)
    config.batch_size = 8
    with pytest.raises(UserError, match="another base"):
        record({}, 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sweep", "nothing"], "there are ablation_rates, ablations, cifar10, cifar10_norm, figure1, finetune"),
        (["--sweep", "smoke", "--seeds", "0"], "--seeds"),
        (["--sweep", "smoke", "--at-once", "0"], "--at-once is 0"),
        (["--sweep", "ablations:imagenette"], "ablations takes none"),
        (["--sweep", "cifar10:smoke"], "cifar10 takes none"),
        (["--sweep", "figure1:smoke"], "figure1 takes only tanh"),
        (["--sweep", "smoke:mnist"], "mnist"),
        (["--sweep", "smoke", "--launcher", "slurm"], "--launcher slurm cannot be used here"),
        (["--sweep", "smoke", "--slurm", "mem=\u00b2", "--launcher", "slurm"], "cannot be used here"),
        (["--sweep", "smoke", "--slurm", "gpu"], "KEY=VALUE"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, says, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # where SLURM is not
    with pytest.raises(UserError, match=says) as error:
        run(*flags, "--workdir", tmp_path / "runs")
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
        (f"ABLATIONS = {{'../a': Change('x', lambda base: {{}})}}\n{BASE}", "'../a': a folder gets this name"),
        (f"ABLATIONS = {{'a': Change('x', lambda base: {{'model.pool_sise': 2}})}}\n{BASE}", "is it model.pool_size"),
        (f"ABLATIONS = {{'a': Change('x', lambda base: {{'model.pool_size': 'b'}})}}\n{BASE}", "'pool_size'"),
        (
            f"ABLATIONS = {{'a': Change('x', lambda base: 1 / 0)}}\n{BASE}",
            "ablation a makes no valid config: ZeroDivision",
        ),
        ("def (", "SyntaxError"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_named(text, says, tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + text)
    with pytest.raises(UserError, match=says) as error:
        run("--sweep", tmp_path / "mine.py", "--workdir", tmp_path / "runs")
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_a_path_without_a_sweep_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD)
    (tmp_path / "folder.py").mkdir()
    for name, says in ((tmp_path / "mine", f"or name {tmp_path}/mine.py"), (tmp_path / "folder.py", "is a folder"),
                       (tmp_path, "is a folder"), ("", "no sweep ''"), ("no/such", "no/such")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            sweep.read_sweep(str(name))
