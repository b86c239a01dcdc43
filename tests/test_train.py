"""A run end to end: it learns, it can be killed and resumed, it refuses wrong configs."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fixtures import tiny_config
from helpers.runs import check_equal, check_same_checkpoint, records, run_until_killed, start, write_config
from ml_collections import ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from alexnet_jax import UserError, checkpoint, main, metrics, optimizer, towers, train
from alexnet_jax.cli import commands
from alexnet_jax.data import prepare
from alexnet_jax.runs import ownership
from alexnet_jax.runs.run import load_run, read_config
from configs import paper


def test_it_learns_and_reports_it(config, tmp_path, capsys):
    config.epochs = 12
    config.optimizer.drop_epochs = (10,)
    config.model.dropout = 0.2
    assert main.run(config, tmp_path / "run") == 0
    found = records(tmp_path / "run", but=())
    train = [r for r in found if r["split"] == "train"]
    validation = [r for r in found if r["split"] == "validation"]
    assert train[0]["loss"] > 1.0 and validation[-1]["top1_error"] < 0.1
    assert [r["step"] for r in train][:4] == [4, 6, 8, 12]  # every fourth, and the end of each epoch
    assert len(validation) == 13 and [r["views"] for r in validation[-2:]] == [1, 10]
    assert {"step", "epoch", "split", "loss", "top1_error", "top5_error", "learning_rate", "images_per_second"} <= set(
        train[0]
    )
    assert train[-1]["learning_rate"] == pytest.approx(0.0003)
    assert all(r["images"] == 33 for r in validation)
    said = capsys.readouterr().out
    for fact in ("2 tower(s)", "96 training and 33 validation", "12 epochs x 6 steps", "metrics.jsonl", "checkpoints"):
        assert fact in said
    assert "latest checkpoint (step 72)" in said
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_a_record_is_the_mean_over_the_steps_since_the_last_one(chain_config, tmp_path, monkeypatch):
    sums, made = [], train.program

    def program(*settings):
        net = made(*settings)

        def step(*inputs):
            state, found = net.step(*inputs)
            sums.append(jax.device_get(found))
            return state, found

        return dataclasses.replace(net, step=step)

    monkeypatch.setattr(train, "program", program)
    chain_config.epochs, chain_config.log_every_steps = 2, 4
    main.run(chain_config, tmp_path / "run")
    of_training, before = [r for r in records(tmp_path / "run") if r["split"] == "train"], 0
    assert [r["step"] for r in of_training] == [4, 6, 8, 12]
    for record in of_training:
        window, before = sums[before : record["step"]], record["step"]
        for name in ("loss", "top1_error", "top5_error"):
            mean = sum(s[name] for s in window) / sum(s["images"] for s in window)
            assert record[name] == pytest.approx(mean, rel=1e-5)


def test_tensorboard_has_the_records(tmp_path):
    log = metrics.Log(tmp_path, step=0, steps=4, batch_size=1, steps_per_epoch=2)
    log.write(2, "validation", {"views": 1, "loss": 1.5})
    log.write(4, "validation", {"views": 10, "loss": 0.5})
    log.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    for tag, step, value in (("validation/loss", 2, 1.5), ("validation_10_views/loss", 4, 0.5)):
        [event] = found.Tensors(tag)
        assert (event.step, tensor_util.make_ndarray(event.tensor_proto)) == (step, value)


def wait_for(process, workdir, step):
    """Waits until the run has logged `step`."""
    while process.returncode is None:
        path = Path(workdir) / "metrics.jsonl"
        if path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()[:-1]):
            return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("on_device", [pytest.param(True, marks=pytest.mark.as_shipped), False])
def test_killed_and_resumed_ends_bit_for_bit_equal(config, tmp_path, on_device):
    """With dropout and augmentation, stopped in mid-epoch by SIGTERM, then by SIGKILL at a random moment.

    The last process shares nothing with the others: it is a new interpreter, and compiles everything itself.
    """
    config.epochs, config.data.on_device = 2, on_device
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(config, whole)
    output = process.wait()
    assert process.returncode == 0, output

    process = start(config, broken)
    wait_for(process, broken, step=4)
    process.send_signal(signal.SIGTERM)
    output = process.wait()
    assert process.returncode == 130 and "resumes from here" in output, output

    process = start(config, broken)
    wait_for(process, broken, step=8)
    time.sleep(random.random() / 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(config, broken, fresh=True)
    output = process.wait()
    assert process.returncode == 0 and "resumed at step" in output, output

    check_equal(whole, broken, step=12)


@pytest.mark.slow
def test_a_run_on_raw_images_resumes_and_is_the_same_on_the_device(config, tmp_path, monkeypatch):
    """Killed in mid-epoch, it ends bit for bit equal; with the images on the device, equal to rounding."""
    config.epochs, config.data.stored = 1, "raw"
    whole, broken, on_device = (tmp_path / name for name in ("whole", "broken", "on_device"))
    main.run(config, whole)
    run_until_killed(monkeypatch, config, broken, optimizer, "rates", call=3)
    main.run(config, broken)
    check_equal(whole, broken, step=6)
    config.data.on_device = True
    main.run(config, on_device)
    losses, others = ([r["loss"] for r in records(workdir) if "loss" in r] for workdir in (whole, on_device))
    assert losses == pytest.approx(others, rel=1e-3)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A config whose plateau rule drops soon, which evaluates every other epoch and crops in chunks; and its run."""
    c = tiny_config(photos)
    c.optimizer.rule, c.optimizer.patience, c.optimizer.min_improvement = "plateau", 1, 1.0
    c.evaluation.every_epochs, c.data.crop_chunk = 2, 32
    workdir = tmp_path_factory.mktemp("whole") / "run"
    main.run(c, workdir)
    assert optimizer_drops(workdir) > 0
    return c, workdir


def optimizer_drops(workdir):
    folder = workdir / "checkpoints" / f"step_{checkpoint.latest_step(workdir)}"
    return checkpoint.read_whole(folder)[1]["plateau"]["drops"]


@pytest.mark.slow
def test_killed_in_its_last_evaluation_it_ends_bit_for_bit_equal(whole, tmp_path, monkeypatch):
    """And before that in mid-epoch, with the state that plateau, every_epochs and crop_chunk must keep."""
    config, workdir = whole
    run_until_killed(monkeypatch, config, tmp_path / "run", optimizer, "rates", call=3)  # again after each save
    run_until_killed(monkeypatch, config, tmp_path / "run", train, "evaluate", call=3)  # ten views, at the end
    assert records(tmp_path / "run")[-1].get("views") == 1
    assert main.run(config, tmp_path / "run") == 0
    check_equal(tmp_path / "run", workdir, step=24)


@pytest.mark.slow
def test_an_extended_run_equals_one_that_was_longer_from_the_start(whole, tmp_path):
    """Only two records tell: those of the evaluation at its first end, an epoch that the other does not evaluate."""
    config, workdir = whole
    config = config.copy_and_resolve_references()
    config.epochs = 3
    main.run(config, tmp_path / "run")
    config.epochs = 4
    assert main.run(config, tmp_path / "run") == 0
    check_same_checkpoint(tmp_path / "run", workdir, step=24)
    found = [r for r in records(tmp_path / "run") if r["split"] != "validation" or r["step"] != 18]
    assert found == records(workdir) and len(records(tmp_path / "run")) == len(found) + 2


def test_other_data_stops_a_run_before_it_resumes(config, tiny_run, tmp_path, monkeypatch):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    config.epochs, config.data.prepared_dir = 3, str(tmp_path / "prepared")
    monkeypatch.setattr(prepare, "decode", lambda jpeg, real=prepare.decode: real(jpeg) // 2)  # as another Pillow might
    with pytest.raises(UserError, match=r"not the one .* was trained on \(statistics\)"):
        main.run(config, workdir)
    assert records(workdir, but=()) == records(tiny_run, but=()) and read_config(workdir).epochs == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_its_first_step_it_ends_in_one_line(tmp_path, number):
    """During the imports: nothing is written yet, and the line is all its output."""
    command = [sys.executable, "-m", "alexnet_jax.main", "--config=configs/paper.py:smoke", f"--workdir={tmp_path}/run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    wanted = 1 << (signal.SIGTERM - 1)
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & wanted:  # until it watches for signals
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130 and out == ""
    assert f"stopped by {number.name}: the same command" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_keeps_the_latest_and_the_best(chain_config, tmp_path):
    config = chain_config
    config.optimizer.rule = "plateau"
    main.run(config, tmp_path / "run")
    steps = sorted(int(p.name.split("_")[-1]) for p in (tmp_path / "run" / "checkpoints").iterdir())
    errors = {r["step"]: r["top1_error"] for r in records(tmp_path / "run") if r.get("views") == 1}
    best = load_run(tmp_path / "run", "best").step
    assert errors[best] == min(errors.values())
    assert steps == sorted({best, 24})
    assert load_run(tmp_path / "run", "latest").step == 24


@pytest.mark.slow
def test_patience_counts_epochs_where_evaluations_are_rarer(chain_config, tmp_path):
    """Evaluated after epochs 2 and 4: two epochs without improvement make a drop. The evaluation after 5 makes none."""
    config = chain_config
    config.epochs, config.evaluation.every_epochs, config.evaluation.views = 5, 2, 1
    config.optimizer.update({"rule": "plateau", "patience": 2, "min_improvement": 1.0})
    main.run(config, tmp_path / "run")
    rates = {r["epoch"]: r["learning_rate"] for r in records(tmp_path / "run") if r["split"] == "train"}
    assert [rates[epoch] for epoch in (1, 2, 3, 4, 5)] == pytest.approx([0.0001] * 4 + [0.00001])
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    plateau = checkpoint.restore(checkpoint.manager(tmp_path / "run"), train.program(config, mesh).state)[2]["plateau"]
    assert (plateau["waited"], plateau["drops"]) == (0, 1)


def test_a_finished_run_is_not_changed(config, tiny_run, tmp_path, capsys):
    workdir, config.epochs = shutil.copytree(tiny_run, tmp_path / "run"), 2
    before = records(workdir, but=())
    path = workdir / "provenance.json"
    made = json.loads(path.read_text())
    made["machines"][0]["cores"] = 4096
    path.write_text(json.dumps(made))
    assert main.run(config, workdir) == 0
    assert records(workdir, but=()) == before
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 1 and "cores: 4096 there" in said[0]


def test_a_workdir_of_another_config_is_refused(config, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    config.optimizer.learning_rate = 0.02
    config.model.dropout = 0.1
    with pytest.raises(UserError, match="learning_rate: 0.003 there, 0.02 here") as e:
        main.run(config, tmp_path / "run")
    assert "model.dropout" in str(e.value)
    (tmp_path / "other").mkdir(parents=True)
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no run"):
        main.run(config, tmp_path / "other")


@pytest.mark.slow
def test_a_full_disk_stops_the_run_in_one_line(chain_config, tmp_path, monkeypatch):
    """The checkpoint before stays, and the run resumes from there once there is room."""
    config = chain_config
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    config.checkpoint_every_steps = 100
    saves = iter([shutil.disk_usage(tmp_path), full])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(saves))
    with pytest.raises(UserError, match=r"the disk has 1,000 left; make room") as e:
        main.run(config, tmp_path / "run")
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    assert main.run(config, tmp_path / "run") == 0
    assert load_run(tmp_path / "run", "latest").step == 24


def test_two_processes_do_not_share_a_workdir(config, tmp_path):
    with ownership.claim(tmp_path / "run", config, {}, []), pytest.raises(UserError, match="another process"):
        main.run(config, tmp_path / "run")


def test_the_step_is_compiled_once(chain_config, tmp_path, caplog):
    config = chain_config
    config.epochs = 2
    with jax.log_compiles(), caplog.at_level("WARNING"):
        main.run(config, tmp_path / "run")
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Finished XLA compilation")]
    assert sum("train_step" in m for m in compiled) == 1, compiled


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.optimizer.learning_rate = 1e8
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+ with a learning rate of 1e\+08.*lower"):
        main.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model.activation", "gelu", "relu, tanh"),
        ("model.num_classes", 10, "num_classes=3"),
        ("model.conv_widths", (12, 33, 48, 48, 32), "2 towers"),
        ("model.exchange", ("conv3", "fc6", "fc7", "fc8", "pool1"), "model.exchange"),
        ("model.lrn.layers", ("norm1",), "model.lrn.layers"),
        ("model.spatial_norm.layers", ("conv9",), "model.spatial_norm.layers"),
        ("data.crop", 40, "data.crop"),
        ("devices.data", 64, "devices"),
        ("devices.data", 3, "batch_size"),
        ("devices.tower", 3, "devices.tower"),
        ("data.name", "/no/such/folder", "no/such/folder"),
        ("epochs", 0, "epochs"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(config, tmp_path, field, value, says):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as e:
        main.run(config, tmp_path / "run")
    assert says in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "code", ["RESOURCE_EXHAUSTED: ", "INTERNAL: Error dispatching computation: Operation failed: "]
)
def test_too_little_memory_ends_in_one_line(config, tmp_path, monkeypatch, code):
    """The second is what jaxlib says on CPU where the step before has failed to allocate."""

    def train(*_):
        raise jax.errors.JaxRuntimeError(f"{code}Out of memory allocating 17179869184 bytes.")

    monkeypatch.setattr(main, "train", train)
    words = ["--config", str(write_config(config, tmp_path / "config.py")), "--workdir", str(tmp_path / "run")]
    flags = commands.parse(main, words, "alexnet train")
    with pytest.raises(UserError) as e:
        main.main(flags)
    assert "17179869184" in str(e.value) and "lower --config.batch_size" in str(e.value) and "\n" not in str(e.value)


def test_a_wrong_flag_ends_the_process_in_one_line():
    """tests/test_flags.py has the other wrong flags."""
    flags = ["--config=configs/paper.py:smoke", "--config.optimizer.learing_rate=1"]
    run = subprocess.run([sys.executable, "-m", "alexnet_jax.main", *flags], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ") and "learing_rate" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_top5_counts_ties_as_errors():
    """A network that gives all classes the same probability is wrong, whatever the order of the classes."""
    flat = jnp.log(jnp.full((4, 10), 0.1))
    labels, mask = jnp.arange(4), jnp.ones(4)
    found = metrics.means(metrics.sums(flat, labels, mask))
    assert found == pytest.approx({"loss": np.log(10), "top1_error": 1.0, "top5_error": 1.0})
    ranked = jnp.log(jnp.tile(jnp.arange(10, 0, -1) / 55, (10, 1)))
    found = metrics.means(metrics.sums(ranked, jnp.arange(10), jnp.ones(10)))
    assert found["top1_error"] == pytest.approx(0.9) and found["top5_error"] == pytest.approx(0.5)
    found = metrics.sums(ranked, jnp.arange(10), jnp.ones(10).at[5:].set(0))
    assert float(found["images"]) == 5 and float(found["top5_error"]) == 0


@pytest.mark.parametrize(("data", "tower"), [(1, 2), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_split_over_devices_trains_the_same(config, tiny_run, tmp_path, capsys, data, tower):
    """Same seed, images and masks as tiny_run on one device: equal up to rounding, amplified by twelve steps."""
    config.epochs = 2
    config.devices.data, config.devices.tower = data, tower
    main.run(config, tmp_path / "run")
    assert f"{data} x {tower} (data x tower)" in capsys.readouterr().out
    for ours, theirs in zip(records(tmp_path / "run"), records(tiny_run), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    one, other = load_run(tiny_run), load_run(tmp_path / "run")
    for layer in one.params:
        kernel = one.params[layer]["kernel"]
        np.testing.assert_allclose(other.params[layer]["kernel"], kernel, atol=1e-3 * np.abs(kernel).max())


# --- What a step is given, and what it computes -----------------------------------------------------------------------


@pytest.fixture
def watch_steps(monkeypatch):
    """watch_steps(see): see(state, batch, epoch, constants) is called before every step of a run."""

    def watch(see):
        real = train.program

        def program(*args):
            net = real(*args)

            def step(*taken):
                see(*taken)
                return net.step(*taken)

            return dataclasses.replace(net, step=step)

        monkeypatch.setattr(train, "program", program)

    return watch


class Seen(Exception):
    """Ends a run that has been seen."""


def test_a_seed_draws_weights_images_and_masks_of_its_own(chain_config, tmp_path, watch_steps):
    """Else intervals over seeds would be those of one run."""
    taken = []

    def see(state, batch, epoch, constants):
        weights = np.asarray(state["params"]["conv1"]["kernel"])
        taken.append([weights, np.asarray(batch["index"]), np.asarray(jax.random.key_data(constants["key"]))])
        raise Seen

    watch_steps(see)
    for run, seed in enumerate((0, 1, 1)):
        chain_config.seed = seed
        with pytest.raises(Seen):
            main.run(chain_config, tmp_path / str(run))
    for zero, one, again in zip(*taken, strict=True):
        assert (zero != one).any()
        np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize("on_device", [True, False])
def test_rates_noise_and_evaluations_keep_to_their_epochs(chain_config, tmp_path, monkeypatch, watch_steps, on_device):
    """Of three epochs of six steps: the rate falls with the third, the noise ends with the first, two are evaluated.

    The clock of images/s starts again after each epoch, so that evaluations are not timed.
    """
    c, seen, watched, clocks = chain_config, [], [], []
    c.epochs, c.optimizer.drop_epochs, c.evaluation.every_epochs, c.evaluation.views = 3, (2,), 2, 1
    c.data.color_noise_epochs, c.data.on_device = 1, on_device
    watch_plateau, resume_clock = optimizer.watch, metrics.Log.resume_clock

    def see(state, batch, epoch, constants):
        seen.append((int(state["step"]), float(epoch["rates"]["conv1"]["kernel"]), float(epoch["noise"])))
        assert (constants["images"] is None) != on_device and ("image" in batch) != on_device

    watch_steps(see)
    monkeypatch.setattr(optimizer, "watch", lambda *args: watched.append(args[3]) or watch_plateau(*args))
    monkeypatch.setattr(metrics.Log, "resume_clock", lambda log, step: clocks.append(step) or resume_clock(log, step))
    main.run(c, tmp_path / "run")
    assert [step for step, _, _ in seen] == list(range(18)) and watched == [2] and clocks == [0, 6, 12, 18]
    assert [rate for _, rate, _ in seen] == pytest.approx([1e-4] * 12 + [1e-5] * 6)
    assert [noise for _, _, noise in seen] == pytest.approx([0.1] * 6 + [0] * 12)
    assert [r["epoch"] for r in records(tmp_path / "run") if r["split"] == "validation"] == [2, 3]


def test_a_step_is_the_papers_rule_on_the_mean_loss_of_its_crops():
    """On a network of one matrix, by hand in float64; each step has a dropout key of its own."""
    rng, o = np.random.default_rng(0), paper.get_config().optimizer
    data = ConfigDict({"crop": 4, "mean": "pixel", "deviation": (), "divide_by_noise": False})
    images, mean = rng.integers(0, 256, (5, 6, 6, 3), np.uint8), rng.uniform(0, 255, (6, 6, 3)).astype(np.float32)
    stdevs, vectors = np.float32([70, 9, 4]), np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    batch = {
        "index": np.int32([4, 0, 2]), "label": np.int32([1, 0, 2]), "offset": np.int32([[0, 0], [2, 1], [1, 2]]),
        "flip": np.array([False, True, True]), "noise": rng.normal(size=(3, 3)).astype(np.float32),
    }  # fmt: skip
    params = {"fc8": {"kernel": rng.normal(0, 1e-3, (48, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}}
    keys = []

    def apply(params, x, key):
        keys.append(jax.random.key_data(key).tolist())
        return x.reshape(len(x), -1) @ params["fc8"]["kernel"] + params["fc8"]["bias"], {}

    rule = optimizer.update_rule(o)
    state = {"step": jnp.int32(0), "params": params, "velocity": rule.init(params)}
    epoch = {"rates": optimizer.rates(o, params, 1e-4, 0), "noise": np.float32(0.2)}
    statistics = {"mean": mean, "stdevs": stdevs, "vectors": vectors}
    constants = {"statistics": statistics, "key": jax.random.key(0), "images": images}
    crops = []
    for i, (y, x), flip, alpha in zip(*(batch[k] for k in ("index", "offset", "flip", "noise")), strict=True):
        crop = (images[i] - mean.astype(np.float64))[y : y + 4, x : x + 4]
        crops.append((crop[:, ::-1] if flip else crop) + 0.2 * vectors @ (alpha * stdevs))
    crops = np.reshape(crops, (3, 48))
    velocity = {"kernel": 0.0, "bias": 0.0}
    for _ in range(2):
        w, b = (np.asarray(state["params"]["fc8"][kind], np.float64) for kind in ("kernel", "bias"))
        state, sums = train.train_step(state, batch, epoch, constants, apply=apply, update=rule.update, data=data)
        shares = np.exp(crops @ w + b)
        shares /= shares.sum(axis=1, keepdims=True)
        assert float(sums["loss"]) == pytest.approx(-np.log(shares[range(3), batch["label"]]).sum(), rel=1e-4)
        gradient = (shares - np.eye(3)[batch["label"]]) / 3
        velocity["kernel"] = 0.9 * velocity["kernel"] - 0.0005 * 1e-4 * w - 1e-4 * crops.T @ gradient
        velocity["bias"] = 0.9 * velocity["bias"] - 1e-4 * gradient.sum(axis=0)
        for kind, before in (("kernel", w), ("bias", b)):
            moved, expected = state["params"]["fc8"][kind] - before, velocity[kind]
            np.testing.assert_allclose(moved, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert len(keys) == 2 and keys[0] != keys[1]
