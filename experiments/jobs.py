"""The runs of a sweep as jobs of submitit: here a few at a time, or all at once on a SLURM cluster."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import submitit
from ml_collections import ConfigDict
from tqdm import tqdm

from alexnet_jax import UserError, checkpoint, main, one_line
from alexnet_jax.cli import stopping
from alexnet_jax.cli.commands import set_up_libraries
from alexnet_jax.config import flat
from alexnet_jax.data.host import sees_gpus
from alexnet_jax.files import try_lock
from alexnet_jax.metrics import METRICS
from alexnet_jax.runs import ownership
from experiments import results

DAYS = 7  # after which a job is stopped
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")  # states of a job that SLURM has not ended
BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} epochs [{elapsed}<{remaining}]{postfix}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep."""

    name: str
    seed: int
    config: ConfigDict
    workdir: Path

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    def epochs_done(self) -> float:
        """How many epochs the run has trained; all of them only once its last evaluation is recorded."""
        run = results.read(self.workdir)
        if self._finished(run):
            return float(self.config.epochs)
        furthest = max((results.number(r, "epoch") or 0.0 for r in run.records), default=0.0)
        return min(furthest, self.config.epochs - 0.01)

    def check(self):
        """Raises UserError if the folder has the results of another config: they would be taken for this one's."""
        run = results.read(self.workdir)
        if not run.records or not run.settings:
            return
        mine = results.computes(flat(self.config))
        fields = results.departing(results.computes(run.settings), mine)
        if run.settings["epochs"] < self.config.epochs:
            fields.remove("epochs")  # it goes on
        if run.seed != self.seed:
            fields.append("seed")
        if fields:
            there = results.values(fields, run.settings)
            raise UserError(
                f"{self.workdir} has a run of another config ({there}): remove it, or name another --workdir"
            )

    def _finished(self, run: results.Outcome) -> bool:
        return run.state == "finished" and run.settings["epochs"] == self.config.epochs

    def failure(self) -> Path:
        """The file that says why it failed."""
        return self.workdir / results.FAILED

    def done(self) -> bool:
        """Whether nothing is left to do: after its last evaluation a run may still fail, or be killed, saving."""
        run = results.read(self.workdir)
        if self.failure().exists() or not self._finished(run):
            return False
        return checkpoint.latest_step(self.workdir) in (None, run.final["step"])

    def failed_since(self, moment: float) -> str | None:
        """Why it failed, if another sweep says that it has since a moment (time.time())."""
        try:
            new = self.failure().stat().st_mtime > moment
            return self.failure().read_text(errors="replace").strip() if new else None
        except OSError:
            return None

    def stamp(self) -> tuple[int, int] | None:
        """What changes whenever epochs_done may have changed."""
        try:
            stat = (self.workdir / METRICS).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size


def train_cell(config: str, workdir: str, cores: tuple[int, ...] = (), gpus: str | None = None):
    """The job: trains a config (JSON) in a workdir, or resumes it, on some cores only if they are named.

    Waits if another job trains there. gpus: CUDA_VISIBLE_DEVICES of the sweep, which submitit hides from a job here.
    """
    if "SUBMITIT_LOCAL_JOB_ID" in os.environ:
        stopping.watch()  # instead of submitit, which ignores SIGTERM
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see _submit
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    if cores:
        os.sched_setaffinity(0, cores)
    set_up_libraries()
    path = Path(workdir)
    (path / results.FAILED).unlink(missing_ok=True)
    while True:
        try:
            if main.run(ConfigDict(json.loads(config)), path) == 0:  # else a signal has stopped it
                (path / results.FAILED).unlink(missing_ok=True)  # that of another job for which this one waited
            return
        except ownership.Busy:
            time.sleep(2)
        except Exception as e:
            reason = e if isinstance(e, UserError) else one_line(e)
            with contextlib.suppress(OSError):  # then only the job's output has the reason
                path.mkdir(parents=True, exist_ok=True)
                (path / results.FAILED).write_text(f"{reason}\n")
            raise


def launch(cells: list[Cell], executor: submitit.Executor, at_once: int = 1) -> dict[str, str]:
    """Runs the cells that are not finished: here `at_once` at a time, on a cluster all of them.

    Cells that another sweep runs here, in the same folder, are left to it. Those whose job an earlier start of this one
    has submitted to a cluster, where it waits or runs, are waited for.
    Returns {cell: reason} of those that failed.
    """
    here, began = isinstance(executor, submitit.LocalExecutor), time.time()
    free = shares(at_once) if here else [()] * len(cells)
    stamps = {cell: cell.stamp() for cell in cells}
    trained = {cell: cell.epochs_done() for cell in cells}
    waiting = [cell for cell in cells if not cell.done()]
    running: dict[Cell, tuple[submitit.Job, tuple[int, ...], TextIO | None]] = {}
    failed: dict[str, str] = {}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if here else None
    total = sum(c.config.epochs for c in cells)
    for cell in [] if here else list(waiting):
        if job := _submitted(cell, Path(executor.folder)):
            waiting.remove(cell)
            running[cell] = job, free.pop(), None
    with _sigterm_as_ctrl_c(), tqdm(total=total, unit=" epochs", dynamic_ncols=True, bar_format=BAR) as bar:
        bar.write(f"{len(cells) - len(waiting) - len(running)} of {len(cells)} runs are finished", file=sys.stderr)
        try:
            while waiting or running:
                for cell in list(waiting):
                    if not free:
                        break
                    lock = take(cell, Path(executor.folder)) if here else None
                    if here and lock is None:
                        continue
                    waiting.remove(cell)
                    if cell.done():  # another sweep has run it meanwhile
                        release(lock)
                        continue
                    if here and (reason := cell.failed_since(began)):  # or has tried to
                        failed[str(cell)] = reason
                        release(lock)
                        continue
                    cores = free.pop(0)
                    cell.failure().unlink(missing_ok=True)  # an earlier run's
                    with _ctrl_c_later() if here else contextlib.nullcontext():
                        running[cell] = _submit(executor, cell, cores, gpus), cores, lock
                for cell in [c for c, (job, _, _) in running.items() if job.done()]:
                    job, cores, lock = running.pop(cell)
                    free.append(cores)
                    if not cell.done():
                        failed[str(cell)] = _reason(cell, job)
                        bar.write(f"failed: {cell}: {failed[str(cell)]}", file=sys.stderr)
                    release(lock)
                bar.set_postfix_str("; ".join(map(str, running)) if len(running) < 3 else f"{len(running)} jobs")
                for cell in cells:
                    if (stamp := cell.stamp()) != stamps[cell]:
                        stamps[cell], trained[cell] = stamp, cell.epochs_done()
                bar.update(sum(trained.values()) - bar.n)
                if waiting or running:
                    time.sleep(1 if here else 10)
        finally:
            if here and running:  # stopping the sweep stops its runs; jobs on a cluster continue
                _stop([job for job, _, _ in running.values()])
    return failed


def _submit(executor: submitit.Executor, cell: Cell, cores: tuple[int, ...], gpus: str | None) -> submitit.Job:
    """Starts the job of a cell. Raises UserError if the cluster refuses it."""
    try:
        job = executor.submit(train_cell, cell.config.to_json(), str(cell.workdir), cores, gpus)
        if not isinstance(executor, submitit.LocalExecutor):
            _number(cell, Path(executor.folder)).write_text(job.job_id)
        return job
    except submitit.core.utils.FailedJobError as e:
        raise UserError(f"the job of {cell} cannot be submitted ({one_line(e)}): check the options --slurm") from e


def _submitted(cell: Cell, folder: Path) -> submitit.Job | None:
    """The job of a cell that waits or runs on the cluster, submitted by an earlier start of this sweep."""
    try:
        job = submitit.SlurmJob(folder, _number(cell, folder).read_text())
    except FileNotFoundError:
        return None
    return job if job.state in ALIVE else None


def _number(cell: Cell, folder: Path) -> Path:
    """The file with the number of a cell's last job on the cluster."""
    return folder / f"{cell.name}.seed{cell.seed}.job"


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def ask(number, frame):
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell script
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Ctrl-C waits until the block ends, in which a job is started: none is forgotten.

    The job inherits this. Its process of submitit's, which would kill the run a second after Ctrl-C in the terminal,
    never sees one; the run itself ends the inheritance.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(jobs: list[submitit.Job]):
    """Asks the runs here to finish their step and save it, and waits for them; a second Ctrl-C does not wait."""
    print("stopping: the runs save their last step", file=sys.stderr)
    asked = 0
    while left := [job for job in jobs if not job.done()]:
        if asked % 10 == 0:  # again each second: submitit passes nothing on before its run has begun
            for job in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)
        asked += 1
        time.sleep(0.1)


def take(cell: Cell, folder: Path) -> TextIO | None:
    """The lock of a cell, held until it is closed; None if another sweep has it. folder: the jobs' own, shared."""
    folder.mkdir(parents=True, exist_ok=True)
    return try_lock(folder / f"{cell.name}.seed{cell.seed}.lock")


def release(lock: TextIO | None):
    """Gives a cell back; None for one of a cluster, which has no lock."""
    if lock:
        lock.close()


def shares(at_once: int) -> list[tuple[int, ...]]:
    """The cores of each of the runs that train at once, in equal shares; () is all, for a single one.

    Raises UserError if there are fewer cores, if the system cannot divide them, or if there are GPUs, which it does
    not divide.
    """
    if at_once == 1:
        return [()]
    if sees_gpus():
        raise UserError(
            "--at-once divides cores, not GPUs: start the same command once for each GPU, with CUDA_VISIBLE_DEVICES"
        )
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--at-once needs Linux, where a run can be kept on some cores: leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if at_once > len(cores):
        raise UserError(f"--at-once is {at_once} and there are {len(cores)} cores: lower it")
    each = len(cores) // at_once
    return [tuple(cores[i * each : (i + 1) * each]) for i in range(at_once)]


def _reason(cell: Cell, job: submitit.Job) -> str:
    """Why a cell failed: what failed.txt says, which is written here if the job could not."""
    path = cell.failure()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        output = Path(job.paths.stderr)
        where = f"{output.parent.name}/{output.name} in the sweep's folder"  # a record keeps this, and no path
        path.write_text(f"it was stopped, or ended without a message: see {where}\n")
    return path.read_text().strip()


def make_executor(launcher: str, folder: Path, options: list[str]) -> submitit.Executor:
    """Submitit's executor, with its files in `folder`.

    Args: launcher: local or slurm; options: of sbatch, as KEY=VALUE.
    Raises UserError if the launcher cannot be used here.
    """
    parameters: dict[str, str | int] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--slurm {option} is not KEY=VALUE, as in --slurm partition=gpu")
        parameters[f"slurm_{key}"] = int(value) if value.isdecimal() else value
    try:
        if launcher == "slurm":
            slurm = submitit.AutoExecutor(folder, cluster="slurm")
            slurm.update_parameters(timeout_min=60 * 24 * DAYS, **parameters)
            return slurm
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=60 * 24 * DAYS)
        return executor
    except OSError as e:
        raise UserError(f"cannot write to {folder} ({e.strerror or e}): name another --workdir") from e
    except Exception as e:  # submitit raises many kinds
        raise UserError(f"--launcher {launcher} cannot be used here: {one_line(e)}") from e
