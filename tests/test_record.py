"""Records: small files that say of runs what the runs' folders said, add up, and are never changed by mistake."""

import contextlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import sweeps
from helpers.sweeps import fail, fake, plan

from alexnet_jax import UserError
from alexnet_jax.cli import commands
from experiments import sweep as sweep_verb
from experiments.record import command, ensemble, entry, file, kernels
from experiments.report import table
from experiments.report.rows import make_report
from experiments.results import completed, computes, departing, read


def record(folder, *words, to="study"):
    """`alexnet record` with these flags; the record's path."""
    words = [*map(str, words), "--to", to, "--records", str(folder / "records")]
    command.main(commands.parse(command, words))
    return folder / "records" / f"{to}.json"


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of a base and of no dropout, all finished but one, which failed."""
    plan(tmp_path / "small", {"base": {}, "dropout_off": {"model.dropout": 0.0}})
    for seed, (base, other) in enumerate([(0.20, 0.23), (0.22, 0.24), (0.24, 0.28)]):
        fake(tmp_path / f"small/base/seed{seed}", seed, base)
        fake(tmp_path / f"small/dropout_off/seed{seed}", seed, other, model__dropout=0.0)
    fail(tmp_path / "small/dropout_off/seed2", "the loss is nan", model__dropout=0.0)
    return tmp_path / "small"


def test_a_record_reports_as_its_sweep(sweep, tmp_path):
    """Numbers, verdicts and the runs that do not count, but for where they were."""
    theirs, ours = make_report([sweep]), make_report([record(tmp_path, sweep)])
    assert table.results_table(ours) == table.results_table(theirs)
    assert table.runs_table(ours) == table.runs_table(theirs)
    for mine, row in zip((ours.base, *ours.rows), (theirs.base, *theirs.rows), strict=True):
        for curves, read_there in (
            (mine.training_curves, row.training_curves),
            (mine.validation_curves, row.validation_curves),
        ):
            assert curves == {seed: pytest.approx(errors) for seed, errors in read_there.items()}
    [(title, failed)] = ours.others
    assert (title, failed.state, failed.reason) == ("DROPOUT_OFF", "failed", "the loss is nan (epoch 3 of 4)")
    assert ours.config_name == theirs.config_name


def test_an_entry_has_what_the_run_left(tmp_path):
    run = fake(tmp_path / "runs/seed3", 3, 0.2)
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:  # 5 steps of 64 images each epoch, at 32 images/s: 10 s
        line |= {"images_per_second": 32.0} if line["split"] == "train" else {}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((run / "config.json").read_text()) | {"batch_size": 64}
    (run / "config.json").write_text(json.dumps(config))
    machine = {"CPU": "a CPU", "cores": 2, "devices": "1 x 1 cpu", "jax": "0.1", "processes": 1}
    data = {"number of training images": 320}
    (run / "provenance.json").write_text(json.dumps({"data": data, "machines": [{"CPU": "other"}, machine]}))
    found = file.read(record(tmp_path, run)).runs["runs", 3]
    assert found.pop("date").startswith("20")
    assert found == {
        "cell": "runs", "seed": 3, "state": "finished", "views": 10, "top1": 0.2, "top5": 0.1, "centre_top1": 0.3,
        "centre_top5": 0.2, "images": [320, 1000], "training": [0.7, 0.6, 0.5, 0.4], "validation": [0.3] * 4,
        "steps": 20, "points": {"epoch": [1.0, 2.0, 3.0, 4.0], "loss": [1.0] * 4, "top1": [0.7, 0.6, 0.5, 0.4]},
        "hours": round(40 / 3600, 4), "images_per_second": 32.0,
        "machine": {name: machine[name] for name in entry.MACHINE},
    }  # fmt: skip


def test_recording_twice_changes_nothing_and_seeds_add_up(sweep, tmp_path):
    path = record(tmp_path, sweep)
    before = path.read_bytes()
    assert record(tmp_path, sweep).read_bytes() == before
    elsewhere = fake(tmp_path / "elsewhere/dropout_off/seed7", 7, 0.3, model__dropout=0.0)  # another machine's
    assert len(before.splitlines()) + 1 == len(record(tmp_path, elsewhere).read_text().splitlines())
    assert sorted(file.read(path).of_cell("dropout_off")) == [0, 1, 7]
    other_order = record(tmp_path, elsewhere, sweep, to="other").read_text()
    assert other_order.replace('"name": "other"', '"name": "study"') == path.read_text()


def test_a_cell_is_known_by_what_it_computes(sweep, tmp_path):
    """Not by the name of its folder, nor by a field that computes nothing."""
    record(tmp_path, sweep)
    run = fake(tmp_path / "runs/some_name", 9, 0.3, model__dropout=0.0, log_every_steps=3, data__data_dir="/x")
    path = record(tmp_path, run)
    assert sorted(file.read(path).of_cell("dropout_off")) == [0, 1, 9]
    assert "/x" not in path.read_text() and str(tmp_path) not in path.read_text()
    another = fake(tmp_path / "runs/base", 0, 0.3, model__dropout=0.25)
    with pytest.raises(UserError, match=r"another cell base \(model.dropout=0.25 here\): name this one with --cell"):
        record(tmp_path, another)
    assert file.read(record(tmp_path, another, "--cell", "quarter")).fields["quarter"] == {"model.dropout": 0.25}


def test_what_is_planned_and_not_started_counts_among_the_comparisons(sweep, tmp_path):
    """Else a record would allow for fewer than its sweep, and the verdict would depend on how far it is."""
    changes = {"model.pool_size": 2}
    plan(sweep, {"base": {}, "dropout_off": {"model.dropout": 0.0}, "pooling": changes})
    theirs, ours = make_report([sweep]), make_report([record(tmp_path, sweep)])
    assert ours.comparisons == theirs.comparisons == 2
    assert table.results_table(ours).rows[1] == table.results_table(theirs).rows[1]
    assert file.read(tmp_path / "records/study.json").fields["pooling"] == changes
    fake(sweep / "pooling/seed0", 0, 0.3, model__pool_size=2)
    assert sorted(file.read(record(tmp_path, sweep)).of_cell("pooling")) == [0]


def test_other_results_of_the_same_run_are_refused(sweep, tmp_path):
    path = record(tmp_path, sweep)
    before = path.read_bytes()
    other = fake(tmp_path / "again/base", 0, 0.21)
    with pytest.raises(UserError, match="base seed 0 is in the record study with other results") as error:
        record(tmp_path, other)
    assert "\n" not in str(error.value) and path.read_bytes() == before


def test_other_runs_are_recorded_beside_one_that_is_refused(sweep, tmp_path, capsys):
    path = record(tmp_path, sweep)
    again = tmp_path / "again"
    fake(again / "base/seed0", 0, 0.21)
    fake(again / "base/seed7", 7, 0.22)
    with pytest.raises(UserError, match="1 runs were not recorded, as said above; the others are in"):
        record(tmp_path, again / "base/seed0", again / "base/seed7")
    assert "seed0: base seed 0 is in the record study with other results" in capsys.readouterr().err
    assert file.read(path).of_cell("base")[7]["top1"] == 0.22


def test_runs_of_other_images_are_refused(sweep, tmp_path):
    """A copy of a data set with the same name and as many images; where no mean is known, nothing is said."""
    path = record(tmp_path, sweep)
    kept = file.read(path)
    for seed, red, says in ((3, 100.0, ""), (4, 100.05, ""), (5, 101.0, "other images than the record study")):
        run = sweeps.entry("base", seed, mean=[red, 90.0, 80.0])
        with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
            file.add_run(kept, run)
    file.add_run(kept, sweeps.entry("base", 6))
    assert sorted(kept.of_cell("base")) == [0, 1, 2, 3, 4, 6]


def test_a_run_that_comes_further_replaces_itself(tmp_path):
    """And one that has not come as far does not: another machine may have its older state."""
    early = fake(tmp_path / "early/base", 0, epochs=2)
    late = fake(tmp_path / "late/base", 0, 0.2)
    failed = fake(tmp_path / "failed/base", 0, epochs=1)
    (failed / "failed.txt").write_text("no disk")
    for run, state, reason in (
        (failed, "failed", "no disk (epoch 1 of 4)"),
        (early, "unfinished", "epoch 2 of 4"),
        (failed, "unfinished", "epoch 2 of 4"),
        (late, "finished", None),
        (early, "finished", None),
    ):
        found = file.read(record(tmp_path, run)).runs["base", 0]
        assert (found["state"], found.get("reason")) == (state, reason)


def test_what_failed_before_it_had_a_config_is_listed(sweep, tmp_path):
    (sweep / "base/seed1/config.json").unlink()
    (sweep / "base/seed1/failed.txt").write_text("out of memory")
    found = make_report([record(tmp_path, sweep)])
    assert found.base.group.finished.keys() == {0, 2}
    assert ("BASE", "out of memory (no record yet)") in [(title, run.reason) for title, run in found.others]


def test_a_failure_without_a_config_takes_the_cell_from_the_plan_or_any_other_run_or_is_named(sweep, tmp_path, capsys):
    for run in ("base/seed0", "dropout_off/seed0", "dropout_off/seed1", "dropout_off/seed2"):
        (sweep / run / "config.json").unlink()
        (sweep / run / "metrics.jsonl").unlink()
        (sweep / run / "failed.txt").write_text("killed")
    path = record(tmp_path, sweep, to="planned")
    states = {key: run["state"] for key, run in file.read(path).runs.items()}
    assert states == {
        ("base", 0): "failed", ("base", 1): "finished", ("base", 2): "finished",
        ("dropout_off", 0): "failed", ("dropout_off", 1): "failed", ("dropout_off", 2): "failed",
    }  # fmt: skip
    before = path.read_bytes()
    assert record(tmp_path, sweep, to="planned").read_bytes() == before
    (sweep / "sweep.json").unlink()
    found = file.read(record(tmp_path, sweep))
    assert {key: run["state"] for key, run in found.runs.items()} == {
        key: state for key, state in states.items() if key[0] == "base"
    }
    assert capsys.readouterr().err.count("no config.json says of what") == 3


def test_what_cannot_be_recorded_is_named(sweep, tmp_path, capsys):
    """The other runs are recorded, and the record can be read."""
    (sweep / "base/seed1/config.json").write_text("{")
    (sweep / "base/seed2/provenance.json").write_text("{")
    (sweep / "dropout_off/seed0/metrics.jsonl").write_text(
        "".join(line for line in (sweep / "dropout_off/seed0/metrics.jsonl").open() if "train" not in line)
    )
    nan = (
        (sweep / "dropout_off/seed1/metrics.jsonl")
        .read_text()
        .replace('"epoch": 2.0, "split": "train"', '"epoch": NaN, "split": "train"')
    )
    (sweep / "dropout_off/seed1/metrics.jsonl").write_text(nan)
    found = file.read(record(tmp_path, sweep))
    assert found.runs.keys() == {("base", 0), ("dropout_off", 2)} and "NaN" in nan
    said = capsys.readouterr().err
    for run in ("base/seed1", "base/seed2", "dropout_off/seed0", "dropout_off/seed1"):
        assert f"not recorded: {sweep / run}: " in said
    assert "no usable" in said and len(said.splitlines()) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run to record in .*empty"):
        record(tmp_path, tmp_path / "empty")
    with pytest.raises(UserError, match="--to"):
        record(tmp_path, sweep, to="../elsewhere")
    for text in ("{", "[]", '{"name": "x", "config": "", "settings": {}, "cells": {}, "runs": [{"cell": "a"}]}'):
        (tmp_path / "records/damaged.json").write_text(text)
        with pytest.raises(UserError, match="damaged.json is damaged"):
            make_report([tmp_path / "records/damaged.json"])


DEEP = "[" * 10**5


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("runs", "training", None), ("runs", "training", [0.1]), ("runs", "top1", "0.2"), ("runs", "points", {}),
        ("runs", "images", 3), ("runs", "seed", "0"), ("runs", "views", None), ("runs", "machine", []),
        ("settings", "epochs", None), ("settings", "evaluation.views", "ten"), ("settings", None, []),
        ("runs", "centre_top1", "0.2"), ("runs", "hours", "1"), ("runs", None, DEEP), ("runs", "date", 5),
        ("runs", "points", {"epoch": [1.0, 2.0], "loss": [1.0], "top1": [0.5, 0.5]}),
        ("runs", "points", {"epoch": [None], "loss": [1.0], "top1": [0.5]}),
        ("runs", "points", {"epoch": [1e308], "loss": [1.0], "top1": [0.5]}), ("runs", "seed", 1),
        ("settings", "model.conv_widths", {}), ("settings", "model.gone", 1),
        ("cells", "base", {"title": 5, "fields": {}}),
        ("ensembles", None, [{"cell": "base", "seeds": [0, 1]}]),
        ("ensembles", None, [{"cell": "base", "seeds": 3, "top1": 0.2}]),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line(sweep, tmp_path, part, name, value):
    """By hand or by a bad merge: what every reader of a record relies on is checked once."""
    path = record(tmp_path, sweep)
    found = json.loads(path.read_text())
    if name is None:
        found[part] = value
    else:
        inside = found[part][0] if part == "runs" else found[part]
        inside[name] = value
    path.write_text(json.dumps(found).replace(f'"{DEEP}"', DEEP))
    with pytest.raises(UserError, match="is damaged .*get it back from git") as error:
        make_report([path])
    assert "\n" not in str(error.value)


def test_points_are_means_over_neighbours():
    """450 records of three steps each become 150 means of three; the last, of one step, weighs as one step."""
    train = [{"step": 3 * i, "epoch": i / 10, "loss": float(i), "top1_error": 0.5} for i in range(1, 451)]
    train[-1]["step"] = 3 * 449 + 1
    found = entry.points(train)
    assert [len(found[name]) for name in ("epoch", "loss", "top1")] == [150] * 3
    assert found["loss"][0] == 2 and found["epoch"][0] == 0.3 and set(found["top1"]) == {0.5}
    assert found["loss"][-1] == pytest.approx((3 * 448 + 3 * 449 + 450) / 7, abs=1e-4)
    assert entry.points([train[0] | {"loss": None}])["loss"] == [None]


def test_a_sweep_sees_which_runs_it_has(sweep, tmp_path):
    path = record(tmp_path, sweep)
    found = file.finished(path)
    assert sorted(seed for _, seed in found) == [0, 0, 1, 1, 2]
    run = read(sweep / "dropout_off/seed1")
    assert (computes(run.settings), 1) in found
    assert (computes(run.settings | {"model.dropout": 0.1}), 1) not in found


def test_a_checkpoints_kernels_are_counted(tiny_run, tmp_path):
    """A share for each tower: halves of the kernels that the run has."""
    before = sorted(p.name for p in tiny_run.iterdir())
    [run] = file.read(record(tmp_path, tiny_run)).runs.values()
    shares = run["color"]
    assert len(shares) == 2 and all(0 <= share <= 1 for share in shares)
    assert sorted(p.name for p in tiny_run.iterdir()) == before
    assert run["images"][0] > 0 and run["hours"] > 0 and run["machine"]["jax"]
    assert math.isclose(run["points"]["epoch"][-1], len(run["training"]))


@pytest.mark.parametrize("shape", [(5, 8), (5, 5, 8, 16)])
def test_a_first_layer_without_colours_has_no_kernels_to_count(tiny_run, monkeypatch, shape):
    """Of a chain it may be dense, or have any name."""
    layers = (("first", "conv", 16, 5, 0.1),)
    config = SimpleNamespace(model={"layers": layers})
    loaded = SimpleNamespace(step=12, params={"first": {"kernel": np.zeros(shape)}}, config=config)
    monkeypatch.setattr(kernels, "load_run", lambda folder, which: loaded if which == "latest" else None)
    assert kernels.colors(read(tiny_run)) is None
    with pytest.raises(UserError, match="no convolution over colours"):
        kernels.read_kernels(read(tiny_run))
    loaded.step = 6
    with pytest.raises(UserError, match="its last checkpoint is of step 6, before its end"):
        kernels.read_kernels(read(tiny_run))


def test_flags_that_would_do_nothing_are_refused(sweep, tmp_path):
    for words, says in (
        (("--ensemble", 4), "--ensemble is 4 and must be from 2 to 3"),
        (("--ensemble", 1), "must be from 2 to 3"),
        (("--cell", "mine"), "--cell mine: .*small is a sweep"),
    ):
        with pytest.raises(UserError, match=says):
            record(tmp_path, sweep, *words)


def test_a_run_without_a_field_of_its_record_is_refused_at_once(sweep, tmp_path):
    """Of a later version, which has dropped the field: recorded as a cell, it could never be found again."""
    path = record(tmp_path, sweep)
    kept = file.read(path)
    kept.settings["model.gone"] = 1
    settings = read(sweep / "dropout_off/seed1").settings | {"model.dropout": 0.1}
    with pytest.raises(UserError, match="the record study has model.gone, and a run of new has not"):
        file.add_cell(kept, "new", "new", settings)
    assert "new" not in kept.fields


RECORDED, SWEPT = (
    {path.stem for path in folder.glob(ends)}
    for folder, ends in ((file.RECORDS, "*.json"), (sweep_verb.SWEEPS, "*.py"))
)
STUDIES = sorted(RECORDED & SWEPT)


def test_most_records_are_of_sweeps():
    assert {"ablations", "ablation_rates", "start", "towers", "figure1", "cifar10"} <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_recorded_is_what_the_sweep_would_run_today(name, tmp_path):
    """Every number of a base and of its changes that counts: the claims' commands train what the page shows."""
    kept, (base, ablations) = file.read(file.RECORDS / f"{name}.json"), sweep_verb.read_sweep(name)
    planned = {c.name: c.config for c in sweep_verb.make_cells(base, ablations, 1, tmp_path)}
    planned[base.name] = planned["base"]  # a run that was recorded before its sweep has its config's name
    for cell in kept.fields:
        there, here = computes(kept.settings_of(cell)), computes(completed(planned[cell].to_dict()))
        assert departing(there, here) == [], cell


def test_an_ensemble_is_of_the_first_runs_at_the_ends_of_their_training(sweep, tmp_path, monkeypatch):
    asked = []

    def evaluate_runs(folders, views, split, which):
        asked.append((len(folders), views, split, which))
        return {"top1_error": 0.1, "top5_error": 0.05}

    monkeypatch.setattr(ensemble, "evaluate_runs", evaluate_runs)
    monkeypatch.setattr(ensemble.checkpoint, "latest_step", lambda folder: read(folder).final["step"])
    [found] = file.read(record(tmp_path, sweep / "base", "--ensemble", 2)).ensembles
    assert asked == [(2, 10, "validation", "latest")] and found["seeds"] == [0, 1] and found["top1"] == 0.1


def test_an_ensemble_is_evaluated_as_one(tiny_run, tmp_path):
    """A run with itself has its own error; it is written once, and other records are left as they are."""
    [alone] = file.read(record(tmp_path, tiny_run)).runs.values()
    found = ensemble.of_runs("base", [read(tiny_run), read(tiny_run)])
    assert found == {"cell": "base", "seeds": [alone["seed"]] * 2, "views": alone["views"]} | {
        name: pytest.approx(alone[name], abs=1e-6) for name in ("top1", "top5")
    }
    kept = file.read(tmp_path / "records/study.json")
    before = (tmp_path / "records/study.json").read_bytes()
    for _ in range(2):
        file.add_ensemble(kept, found)
    file.write(kept, tmp_path / "records/study.json")
    assert file.read(tmp_path / "records/study.json").ensembles == [found]
    assert (tmp_path / "records/study.json").read_bytes().startswith(before[:-3])
    record(tmp_path, tiny_run)
    assert file.read(tmp_path / "records/study.json").ensembles == [found]
