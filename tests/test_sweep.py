"""A sweep plans what it says, survives its own death, and continues after a cell that fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import records
from helpers.sweeps import entry, fake

from alexnet_jax import UserError, checkpoint
from alexnet_jax.cli import commands
from alexnet_jax.config import check
from alexnet_jax.data.batches import steps_in_epoch
from alexnet_jax.network import parameter_count, shapes
from alexnet_jax.runs.run import flat, read_config
from configs import paper, source
from experiments import jobs, results, sweep
from experiments.changes import CHANGES, Change
from experiments.record import file
from experiments.sweeps import ablations, start

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
    assert "1 of 2 cells finished" in said.out and "failed: fails, seed 0: the data set has 3 classes" in said.err
    assert "has 3 classes" in (workdir / "fails" / "seed0" / "failed.txt").read_text()
    assert records(base)[-1]["split"] == "validation" and records(base)[-1]["epoch"] == 2
    assert [r["step"] for r in records(base) if r["split"] == "train"] == [4, 6, 8, 12]
    assert not (base / "failed.txt").exists()

    before = log.stat().st_mtime_ns
    assert run(*flags) == 1
    assert "1 of 2 cells are finished" in capsys.readouterr().err
    assert log.stat().st_mtime_ns == before
    plan = json.loads((workdir / "sweep.json").read_text())
    assert list(plan["cells"]) == ["base", "fails"] and plan["seeds"] == [0]


def test_jobs_are_processes_of_their_own(config, tmp_path, monkeypatch):
    """One dies without a message: the sweep says so and where its output is, and the next one runs."""

    def train(config, workdir, cores, gpus):
        import os
        from pathlib import Path

        if "dies" in workdir:
            os._exit(3)
        Path(workdir).mkdir(parents=True)
        (Path(workdir) / "process").write_text(str(os.getpid()))

    cells = [jobs.Cell(name, 0, config, tmp_path / name) for name in ("dies", "runs")]
    monkeypatch.setattr(jobs, "train_cell", train)
    failed = jobs.launch(cells, jobs.make_executor("local", tmp_path / "jobs", []))
    assert (tmp_path / "runs" / "process").read_text() != str(os.getpid())
    assert "without a message" in failed["dies, seed 0"] and str(tmp_path / "jobs") in failed["dies, seed 0"]
    assert (tmp_path / "dies" / "failed.txt").read_text().strip() == failed["dies, seed 0"]


@pytest.fixture
def done(monkeypatch):
    """Names of cells; a cell counts as finished once its name is here."""
    names = set()
    monkeypatch.setattr(jobs.Cell, "finished", lambda cell: cell.name in names)
    monkeypatch.setattr(jobs.Cell, "epochs_done", lambda cell: 0.0)
    return names


def test_two_sweeps_share_the_cells(config, tmp_path, monkeypatch, here, done):
    """A cell that another sweep runs is left to it; what it has finished meanwhile is not run again."""
    cells = [jobs.Cell(name, 0, config, tmp_path / name) for name in ("theirs", "ours", "last")]
    executor, ran = Here("local", tmp_path / "jobs", []), []
    theirs = jobs.take(cells[0], executor.folder)

    def train(config, workdir, cores, gpus):
        ran.append(Path(workdir).name)
        done.add(ran[-1])
        if ran[-1] == "last":  # so far nothing but the other sweep's cell is left
            done.add("theirs")
            theirs.close()

    monkeypatch.setattr(jobs, "train_cell", train)
    assert jobs.launch(cells, executor) == {} and ran == ["ours", "last"]
    assert all(jobs.take(cell, executor.folder) for cell in cells)  # every lock is given back


def test_a_cell_of_a_sweep_that_died_is_taken_over(config, tmp_path, monkeypatch, here, done):
    cell, executor = jobs.Cell("theirs", 0, config, tmp_path / "theirs"), Here("local", tmp_path / "jobs", [])
    theirs, ran = jobs.take(cell, executor.folder), []
    monkeypatch.setattr(
        jobs, "train_cell", lambda config, workdir, cores, gpus: (ran.append(workdir), done.add("theirs"))
    )
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: theirs.close())  # it waits, and the other one dies
    assert jobs.launch([cell], executor) == {} and ran == [str(cell.workdir)]


def test_runs_at_once_divide_the_cores(config, tmp_path, monkeypatch, here, done):
    """As many at a time as asked for, each on cores of its own, which the next one gets."""
    monkeypatch.setattr(jobs, "_sees_gpus", lambda: False)
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda process: {2, 3, 5, 7, 8})
    cells = [jobs.Cell(str(i), 0, config, tmp_path / str(i)) for i in range(4)]
    running, seen = [], []

    class Later(Here):
        """A job ends when it is asked for the second time."""

        def submit(self, function, config, workdir, cores, gpus):
            running.append(cores)
            seen.append(list(running))
            asked = iter((False, True))

            def ended():
                if next(asked):
                    done.add(Path(workdir).name)
                    running.remove(cores)
                    return True
                return False

            job = Job()
            job.done = ended
            return job

    monkeypatch.setattr(jobs.submitit, "LocalExecutor", Later)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    assert jobs.launch(cells, Later("local", tmp_path / "jobs", []), at_once=2) == {}
    assert seen == [[(2, 3)], [(2, 3), (5, 7)], [(2, 3)], [(2, 3), (5, 7)]]
    assert jobs.shares(1) == [()] and jobs.shares(5) == [(2,), (3,), (5,), (7,), (8,)]
    with pytest.raises(UserError, match="6 and there are 5 cores"):
        jobs.shares(6)
    monkeypatch.setattr(jobs, "_sees_gpus", lambda: True)
    with pytest.raises(UserError, match="once for each GPU"):
        jobs.shares(2)


def test_a_job_keeps_to_its_cores(config, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(jobs.os, "sched_setaffinity", lambda process, cores: kept.append((process, cores)))
    monkeypatch.setattr(jobs, "set_up_libraries", lambda: None)
    monkeypatch.setattr(jobs.main, "run", lambda config, workdir: 0)
    jobs.train_cell(config.to_json(), str(tmp_path))
    assert kept == []
    jobs.train_cell(config.to_json(), str(tmp_path), (1, 3))
    assert kept == [(0, (1, 3))]


def test_a_job_that_the_cluster_refuses_is_one_line(config, tmp_path):
    class Refuses(Here):
        def submit(self, function, *args):
            raise jobs.submitit.core.utils.FailedJobError("sbatch: error: invalid partition\nspecified: typo")

    cell = jobs.Cell("base", 0, config, tmp_path / "base")
    with pytest.raises(UserError, match="base, seed 0 cannot be submitted .*typo.*--slurm") as error:
        jobs.launch([cell], Refuses("slurm", tmp_path / "jobs", []))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("gpus", [None, "", "-1", "1,0", "GPU-8a56"])
def test_a_job_sees_the_gpus_of_the_sweep(config, tmp_path, monkeypatch, gpus):
    """Which submitit would hide: its job begins with an empty CUDA_VISIBLE_DEVICES."""
    seen = []
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(jobs.stopping, "watch", lambda: None)
    monkeypatch.setattr(jobs, "set_up_libraries", lambda: None)
    monkeypatch.setattr(jobs.main, "run", lambda config, workdir: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")))
    jobs.train_cell(config.to_json(), str(tmp_path), (), gpus)
    assert seen == [gpus]


def test_what_another_job_left_does_not_fail_a_finished_run(config, tmp_path, monkeypatch):
    """failed.txt, written after this job has begun to wait for the workdir."""
    monkeypatch.setattr(jobs, "set_up_libraries", lambda: None)
    monkeypatch.setattr(jobs.main, "run", lambda config, workdir: (tmp_path / "failed.txt").write_text("stopped") * 0)
    jobs.train_cell(config.to_json(), str(tmp_path))
    assert not (tmp_path / "failed.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_stopped_sweep_lets_its_run_save_its_step(mine, tmp_path, how):
    """Ctrl-C in a terminal goes to all processes, SIGTERM to the sweep, which a script's background has made deaf to
    Ctrl-C. The run has not failed.
    """
    workdir = tmp_path / "runs"
    flags = ("--sweep", mine, "--seeds", 1, "--only", "pooling", "--workdir", workdir)
    base, log = workdir / "base" / "seed0", workdir / "base" / "seed0" / "metrics.jsonl"
    deaf = () if how == "Ctrl-C" else ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    with begun(flags, log, deaf) as process:
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        said = process.communicate()
    assert process.returncode == 130 and "the same command resumes" in said[1], said
    assert not (base / "failed.txt").exists() and not (workdir / "pooling").exists()
    assert checkpoint.trained(base) >= records(base)[-1]["step"] > 0


def test_dry_run_prints_the_cells_and_the_cost(mine, tmp_path, capsys):
    assert run("--sweep", mine, "--workdir", tmp_path / "runs", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "pooling  ---  model.pool_size=2" in said and "the 9.0 runs that remain" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["paper", "paper:imagenette", "small", "smoke"])
def test_built_in_sweeps_are_all_networks(name, tmp_path):
    """Every ablation changes something and makes a valid config."""
    base, chosen = sweep.read_sweep(name)
    cells = sweep.make_cells(base, chosen, 1, tmp_path)
    assert [c.name for c in cells] == ["base", *CHANGES]
    assert len({c.config.to_json() for c in cells}) == len(cells)


NOTES = {  # how the network of a note differs from #145, and its number of parameters
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


def test_every_ablation_that_cites_a_note_is_compared_with_it():
    assert {name for name, change in CHANGES.items() if "note" in change.source} == set(NOTES)


def test_without_exchange_the_towers_are_narrow_unless_they_are_widened():
    """Without the exchange fc6, fc7 and conv3 lose half of their parameters. Only #150 makes up for that."""
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES["no_exchange_narrow"].fields(c))
    assert parameter_count(shapes(c.model, c.data.crop)) == 33_259_880
    assert CHANGES["no_exchange_narrow"].top1 is None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the 2012 code's network, 60,965,224
        ("conv3_removed", 60_965_224 - 663_936),  # conv4 reads 256 maps instead of 192, as many weights as conv3 had
        ("conv4_removed", 60_965_224 - 663_936),
        ("conv34_removed", 60_965_224 - 885_120 - 663_936 + 9 * (256 - 192) * 256),
        ("ungrouped", 62_378_344),  # MXNet's and other ports without groups
        ("decay_off", 60_965_224),
    ],
)
def test_ablations_without_a_note_have_the_parameters_of_their_networks(name, parameters):
    c = source.get_config()
    c.update_from_flattened_dict(CHANGES[name].fields(c))
    check(c)
    assert parameter_count(shapes(c.model, c.data.crop)) == parameters


@pytest.mark.parametrize(("name", "reads"), [("conv3_removed", "conv4"), ("conv34_removed", "conv5")])
def test_without_conv3_the_next_layer_reads_both_towers(name, reads):
    """Else a loss of layers would be one of exchange too. A base that exchanges there already names it once."""
    c = source.get_config()
    assert CHANGES[name].fields(c)["model.exchange"] == (reads, "fc6", "fc7", "fc8")
    c.model.exchange = ("conv3", reads, "fc8")
    assert CHANGES[name].fields(c)["model.exchange"] == (reads, "fc8")


def test_no_error_of_the_ablations_is_measured_on_images_that_chose_a_rate(tmp_path):
    """The photos of training, of the choice of rates and of the errors are three sets, and nothing else differs."""
    base, changes = sweep.read_sweep("ablations")
    held, rates = sweep.read_sweep("ablation_rates")
    assert base.data.train_split == held.data.train_split == "train[:30%]"
    assert (base.data.eval_split, held.data.eval_split) == ("validation", "train[70%:]")
    there, here = flat(base), flat(held)
    differ = {f for f in here if there[f] != here[f]}
    assert differ - {"optimizer.learning_rate"} == {"name", "data.eval_split", "evaluation.views"}
    for cell in sweep.make_cells(held, rates, 1, tmp_path)[1:]:
        name, _, rate = cell.name.rpartition("_")
        fields = {} if name == "base" else ablations.CHANGES[name].fields(held)
        assert name in ("base", *changes)
        assert rates[cell.name].fields(held) == fields | {"optimizer.learning_rate": float(rate)}


def test_ablations_have_the_changes_of_their_names(tmp_path):
    """A rate of its own is all that this sweep adds to one."""
    base, changes = sweep.read_sweep("ablations")
    assert set(ablations.RATES) <= set(changes)
    for cell in sweep.make_cells(base, changes, 1, tmp_path)[1:]:
        own = {"optimizer.learning_rate": ablations.RATES[cell.name]} if cell.name in ablations.RATES else {}
        assert changes[cell.name].fields(base) == CHANGES[cell.name].fields(base) | own
        assert flat(cell.config) != flat(base)


def test_each_start_changes_one_thing_of_the_paper(tmp_path):
    """All else is that of configs/paper.py. The three of "code" are those of configs/source.py."""
    base, changes = sweep.read_sweep("start")
    as_written = flat(paper.get_config("imagenette"))
    only_here = {"name", "epochs", "log_every_steps", "data.eval_split", "evaluation.every_epochs", "evaluation.views"}
    assert {f for f, value in flat(base).items() if value != as_written[f]} == only_here
    assert steps_in_epoch(9_469, base.batch_size) * base.epochs == 146
    found = {c.name: {f: v for f, v in flat(c.config).items() if v != flat(base)[f]}
             for c in sweep.make_cells(base, changes, 1, tmp_path)[1:]}  # fmt: skip
    conv = {f"model.init_std.conv{i}": 0.03 for i in (3, 4, 5)}
    biases = [f"model.init_bias.{layer}" for layer in ("conv2", "conv4", "conv5", "fc6", "fc7")]
    assert found["std"] == conv
    assert found["biases_0"] == dict.fromkeys(biases, 0.0) and found["biases_01"] == dict.fromkeys(biases, 0.1)
    assert found["fc_std"] == {"model.init_std.fc6": 0.005, "model.init_std.fc7": 0.005}
    assert found["alpha"] == {"model.lrn.divide_by_size": True}
    assert found["norm"] == {"model.lrn.before_activation": ["conv1"]}
    assert found["bias_rate"] == {"optimizer.bias_rate": 2.0}
    assert found["rate_half"] == {"optimizer.learning_rate": 0.005}
    assert found["rate_double"] == {"optimizer.learning_rate": 0.02}
    assert found["code"] == conv | found["norm"] | found["bias_rate"]
    theirs = flat(source.get_config())
    assert {f: theirs[f] for f in found["code"]} == found["code"]
    kernels = shapes(base.model, base.data.crop)
    inputs = {
        layer: parameter_count(kernels[layer]["kernel"]) / kernels[layer]["kernel"].shape[-1] for layer in kernels
    }
    he = {f"model.init_std.{layer}": (2 / n) ** 0.5 for layer, n in inputs.items() if layer not in ("conv1", "fc8")}
    assert found["he"] == pytest.approx(he) and len(found) == len(changes) == 11


def test_when_a_loss_leaves_chance():
    """The first step that ends at least 20 steps whose mean loss is below ln 10 - 0.05 = 2.2526."""
    level = [(step, 2.30) for step in range(5, 101, 5)]
    assert start.leaves_chance(level) is None and start.leaves_chance([]) is None
    falls = level + [(step, 2.20) for step in range(105, 201, 5)]
    assert start.leaves_chance(falls) == 110  # two low records of four: a mean of 2.25
    assert start.leaves_chance(reversed(falls)) == 110
    assert start.leaves_chance(falls, over=5) == 105
    assert start.leaves_chance(falls, classes=9) is None  # ln 9 = 2.197
    assert start.leaves_chance([(50, 2.3), (100, 2.3), (150, 2.2)]) == 150  # a record may be longer than 20 steps
    assert start.leaves_chance([(1, 0.5), (10, 0.5)]) is None  # too few steps so far
    assert start.leaves_chance([(20, 9.0), (40, 2.2)]) == 40  # what was before the fall does not matter
    assert start.leaves_chance([(20, 2.2), (40, 2.2), (20, 2.3), (40, 2.3)]) is None  # a resumed run's second records


def test_towers_differ_in_what_could_make_them_specialise(tmp_path):
    base, changes = sweep.read_sweep("towers")
    found = {c.name: {f: v for f, v in flat(c.config).items() if v != flat(base)[f]}
             for c in sweep.make_cells(base, changes, 1, tmp_path)[1:]}  # fmt: skip
    assert found == {
        "lrn_across": {"model.lrn.per_tower": False},
        "lrn_off": {"model.lrn.layers": []},
        "exchange_conv2": {"model.exchange": ["conv2", "conv3", "fc6", "fc7", "fc8"]},
        "no_exchange_narrow": {"model.exchange": ["fc8"]},
        "long": {"epochs": 24, "optimizer.drop_epochs": [18, 22]},
    }
    assert base.model.conv_widths == (96, 64, 96, 96, 64) and base.model.init_std.conv2 == 0.01
    assert base.model.lrn.per_tower and base.model.towers == 2


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
    record, settings = file.Record("earlier"), results.completed(cells[0].config.to_dict())
    for cell, change in (("first", {}), ("second", {"model.pool_size": 2, "model.pool_stride": 2})):
        file.add_cell(record, cell, cell, settings | change | {"name": "other", "log_every_steps": 99})
    for cell, seed, state in (("first", 0, "finished"), ("second", 2, "finished"), ("first", 1, "unfinished")):
        record.runs[cell, seed] = entry(cell, seed, state=state)
    file.write(record, tmp_path / "earlier.json")
    left = sweep.unrecorded(cells, "earlier", tmp_path)
    assert [(c.name, c.seed) for c in left] == [("pooling", 0), ("base", 1), ("pooling", 1), ("base", 2)]
    assert f"2 of 6 cells are recorded in {tmp_path}/earlier.json" in capsys.readouterr().err
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
    assert jobs.Cell("base", 0, config, here).finished()
    for field, value in (("optimizer.learning_rate", 0.5), ("epochs", 2), ("seed", 1)):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=rf"another config \({field}={settings[field]}\): remove it"):
            jobs.Cell("base", other.seed, other, here).check()
    config.epochs += 1  # it goes on
    longer = jobs.Cell("base", 0, config, here)
    longer.check()
    assert not longer.finished()


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


def test_only_takes_families():
    assert list(sweep.choose(CHANGES, "lrn")) == [
        "lrn_off", "lrn_across", "lrn_before_relu", "lrn_after_pool", "lrn_caffe"
    ]  # fmt: skip
    assert list(sweep.choose(CHANGES, "pooling, lrn_off")) == ["lrn_off", "pooling"]
    with pytest.raises(UserError, match="no ablation 'lr'; there are lrn_off"):
        sweep.choose(CHANGES, "lr")


def test_a_workdir_of_another_base_is_refused(config, tmp_path):
    def record(ablations, seeds):
        cells = sweep.make_cells(config, ablations, seeds, tmp_path)
        sweep.record(tmp_path, "mine", config, cells, {name: change.title for name, change in ablations.items()})

    record({}, 1)
    record({"pooling": CHANGES["pooling"]}, 3)
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert plan["seeds"] == [0, 1, 2] and list(plan["cells"]) == ["base", "pooling"]
    assert plan["cells"]["pooling"] == {"title": CHANGES["pooling"].title, "fields": {"model.pool_size": 2}}
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
        (["--sweep", "smoke", "--launcher", "slurm"], "slurm"),
        (["--sweep", "smoke", "--slurm", "gpu"], "KEY=VALUE"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, says, tmp_path):
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
