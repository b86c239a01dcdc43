"""The jobs of a sweep: who runs which cell, on which cores, and what is said of one that fails."""

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers.sweeps import Here, Job

from alexnet_jax import UserError
from alexnet_jax.runs.run import read_config
from experiments import jobs


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
    [output] = re.findall(r"without a message: see (jobs/\d+_0_log.err) in the sweep's folder$", failed["dies, seed 0"])
    assert (tmp_path / output).exists()
    assert (tmp_path / "dies" / "failed.txt").read_text().strip() == failed["dies, seed 0"]


@pytest.fixture
def done(monkeypatch):
    """Names of cells; a cell is done once its name is here. Jobs run in this process."""
    names = set()
    monkeypatch.setattr(jobs.submitit, "LocalExecutor", Here)
    monkeypatch.setattr(jobs.Cell, "done", lambda cell: cell.name in names and not cell.failure().exists())
    monkeypatch.setattr(jobs.Cell, "epochs_done", lambda cell: 0.0)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    return names


def test_two_sweeps_share_the_cells(config, tmp_path, monkeypatch, done):
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


def test_what_has_failed_in_another_sweep_meanwhile_is_not_run_again(config, tmp_path, monkeypatch, done):
    cells = [jobs.Cell(name, 0, config, tmp_path / name) for name in ("theirs", "ours")]
    executor, ran = Here("local", tmp_path / "jobs", []), []
    theirs = jobs.take(cells[0], executor.folder)
    for cell in cells:  # an earlier sweep's failures do not count
        cell.workdir.mkdir()
        cell.failure().write_text("long ago")
        os.utime(cell.failure(), (0, 0))

    def train(config, workdir, cores, gpus):
        ran.append(Path(workdir).name)
        done.add(ran[-1])
        cells[0].failure().write_text("the loss is nan\n")
        theirs.close()

    monkeypatch.setattr(jobs, "train_cell", train)
    assert jobs.launch(cells, executor) == {"theirs, seed 0": "the loss is nan"} and ran == ["ours"]


def test_a_run_that_was_killed_before_its_last_checkpoint_is_not_done(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    cell = jobs.Cell("base", 0, read_config(run), run)
    assert cell.done()
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    (run / "checkpoints" / steps[-1]).rename(run / "checkpoints" / "step_1")
    assert cell.epochs_done() == cell.config.epochs and not cell.done()
    shutil.rmtree(run / "checkpoints")  # removed to save room
    assert cell.done()


def test_a_cell_of_a_sweep_that_died_is_taken_over(config, tmp_path, monkeypatch, done):
    cell, executor = jobs.Cell("theirs", 0, config, tmp_path / "theirs"), Here("local", tmp_path / "jobs", [])
    theirs, ran = jobs.take(cell, executor.folder), []
    monkeypatch.setattr(
        jobs, "train_cell", lambda config, workdir, cores, gpus: (ran.append(workdir), done.add("theirs"))
    )
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: theirs.close())  # it waits, and the other one dies
    assert jobs.launch([cell], executor) == {} and ran == [str(cell.workdir)]


def test_runs_at_once_divide_the_cores(config, tmp_path, monkeypatch, done):
    """As many at a time as asked for, each on cores of its own, which the next one gets."""
    monkeypatch.setattr(jobs, "sees_gpus", lambda: False)
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
    monkeypatch.setattr(jobs, "sees_gpus", lambda: True)
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


def test_a_sweep_on_a_cluster_waits_for_the_jobs_that_it_has_submitted(config, tmp_path, monkeypatch, done):
    """The same command after Ctrl-C, which leaves them running. One that SLURM no longer knows is submitted again."""
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: done.add("running"))
    submitted = []

    class Submitted:
        def __init__(self, folder, job_id):
            self.job_id, self.paths = job_id, type("", (), {"stderr": "jobs/its_output"})

        @property
        def state(self):
            return {"1": "UNKNOWN", "2": "RUNNING"}[self.job_id]

        def done(self):
            return "running" in done

    class Cluster(Here):
        def submit(self, function, config, workdir, cores, gpus):
            submitted.append(Path(workdir).name)
            done.add(submitted[-1])
            return Submitted(self.folder, "3")

    monkeypatch.setattr(jobs.submitit, "SlurmJob", Submitted)
    monkeypatch.setattr(jobs.submitit, "LocalExecutor", type("", (), {}))
    cells = [jobs.Cell(name, 0, config, tmp_path / name) for name in ("running", "ended", "new")]
    for cell, number in zip(cells, "21", strict=False):
        (tmp_path / f"{cell.name}.seed0.job").write_text(number)
    assert jobs.launch(cells, Cluster("slurm", tmp_path, [])) == {} and submitted == ["ended", "new"]
    assert [(tmp_path / f"{cell.name}.seed0.job").read_text() for cell in cells] == ["2", "3", "3"]


def test_an_earlier_runs_failure_is_not_taken_for_this_ones(config, tmp_path, monkeypatch, done):
    """A job that ends before it begins to train: killed at once, or unable to import."""

    class Dies(Here):
        def submit(self, function, *args):
            job = Job()
            job.paths = type("", (), {"stderr": "jobs/its_output"})
            return job

    monkeypatch.setattr(jobs.submitit, "LocalExecutor", Dies)
    cell = jobs.Cell("base", 0, config, tmp_path / "base")
    cell.workdir.mkdir()
    cell.failure().write_text("the loss is nan")
    failed = jobs.launch([cell], Dies("local", tmp_path / "jobs", []))
    assert "without a message" in failed["base, seed 0"] and "nan" not in cell.failure().read_text()


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
