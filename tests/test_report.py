"""The report: its numbers equal a table made by hand, and what is left out is named."""

import json

import pytest
from helpers import verbs
from helpers.sweeps import STEPS, fail, fake, plan, three_seeds, tree
from ml_collections import ConfigDict

from alexnet_jax import UserError
from alexnet_jax.config import FIELDS, flat, unflat
from configs import caffenet, quickstart, six_conv
from experiments.changes import CHANGES, Change
from experiments.jobs import Cell
from experiments.report import command, table
from experiments.report.intervals import difference, interval
from experiments.report.rows import make_report, verdict
from experiments.results import completed, differing, read, training_errors


@pytest.fixture
def sweep(tmp_path):
    return three_seeds(tmp_path / "small")


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_equals_a_table_made_by_hand(sweep):
    """Variances of 4 and 7, three seeds each: Student's t leaves 2.5 % above 2.860 with 3.723 degrees of freedom."""
    found = make_report([sweep])
    [row] = found.rows
    assert found.base.top1 == pytest.approx((22, 2))
    assert row.top1 == pytest.approx((25, 7**0.5)) and row.top5 == pytest.approx((12.5, 7**0.5 / 2))
    assert row.training == pytest.approx((40, 0), abs=1e-9)
    half = 2.8598 * (11 / 3) ** 0.5
    assert row.difference == pytest.approx((3, 3, 3 - half, 3 + half), abs=1e-3)
    assert (row.title, row.fields, found.others) == ("DROPOUT_OFF", "model.dropout=0.0", [])
    ends = "\u22122.48 to +8.48"
    assert table.results_table(found).rows == [
        ["BASE", "3", "22.00 ± 2.00", "40.00 ± 0.00", "", "", "", ""],
        ["DROPOUT_OFF", "3", "25.00 ± 2.65", "40.00 ± 0.00", "+3.00", ends, "", "no number to compare"],
    ]  # fmt: skip
    [[*cells, words]] = table.certainty_table(found).rows
    assert cells == ["DROPOUT_OFF", "+3.00", ends, "0.2", "8.33"]
    assert words == "substantial overfitting; section 4.2"


def test_a_verdict_allows_for_the_other_rows(tmp_path):
    """A difference that is significant alone is not among ten; its row says both."""
    for seed, error in ((0, 0.20), (1, 0.22), (2, 0.24)):
        fake(tmp_path / f"base/{seed}", seed, error)
        fake(tmp_path / f"column/{seed}", seed, error + 0.06 + (seed - 1) * 0.008, model__lrn__layers=())
    [alone] = make_report([tmp_path]).rows
    assert alone.simultaneous == alone.difference and alone.verdict == "agrees"
    for k in range(9):
        for seed in (0, 1, 2):
            fake(tmp_path / f"k{k}/{seed}", seed, 0.2 + 0.01 * seed * k, model__lrn__k=3.0 + k)
    found = make_report([tmp_path])
    among = found.rows[0]
    assert found.comparisons == 10 and among.difference == alone.difference and among.verdict == "not significant"
    assert not among.simultaneous.excludes_zero and among.difference.excludes_zero and among.p > 0.05
    assert among.detectable > alone.detectable
    assert "all 10 differences" in " ".join(table.notes(found)) and "one difference" not in table.markdown(found)


def test_caffenets_numbers_have_a_column_where_there_are_any(tmp_path):
    fake(tmp_path / "base", 0, 0.2)
    fake(tmp_path / "dropout", 0, 0.25, model__dropout=0.0)
    assert "CaffeNet, 128 px" not in table.results_table(make_report([tmp_path])).headings
    fake(tmp_path / "pooling", 0, 0.25, model__pool_size=2, model__pool_stride=2)
    shown = table.results_table(make_report([tmp_path]))
    numbers = {row[0]: row[shown.headings.index("CaffeNet, 128 px")] for row in shown.rows}
    assert numbers == {"base": "", CHANGES["pooling"].title: "\u22121.3", CHANGES["dropout_off"].title: ""}


def test_every_seed_counts_also_one_that_the_base_lacks(tmp_path):
    for seed, error in ((0, 0.25), (1, 0.2), (2, 0.3)):
        fake(tmp_path / f"base/{seed}", seed, error)
    for seed, error in ((1, 0.21), (3, 0.34)):
        fake(tmp_path / f"other/{seed}", seed, error, model__dropout=0.0)
    [row] = make_report([tmp_path]).rows
    assert row.errors == pytest.approx({1: 21, 3: 34}) and row.differences == pytest.approx({1: -4, 3: 9})
    assert row.difference == difference([21, 34], [25, 20, 30])


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    fake(tmp_path / "base/seed0", 0, 0.2)
    fake(tmp_path / "pooling", 0, 0.25, model__pool_size=2)
    for seed in (0, 1):
        fake(tmp_path / f"two/{seed}", seed, 0.25, model__lrn__k=1.0)
    found = make_report([tmp_path])
    caffe, pooling = found.rows
    assert pooling.difference == (1, pytest.approx(5), None, None) and pooling.verdict == "too few seeds"
    assert caffe.verdict == "too few seeds"
    cells = [row[5] for row in table.results_table(found).rows]
    assert cells == ["", "two seeds only", "one seed only"]
    fake(tmp_path / "two/2", 2, 0.25, model__lrn__k=1.0)
    assert table.results_table(make_report([tmp_path])).rows[1][5] == "one seed of the base"
    (tmp_path / "base/seed0/metrics.jsonl").write_text("")
    found = make_report([tmp_path])
    assert [row.difference for row in found.rows] == [None, None]
    assert [row[5] for row in table.results_table(found).rows] == ["", "no seed of the base", "no seed of the base"]


@pytest.mark.parametrize(
    ("differences", "then", "says"),
    [
        ([1.0, 1.2, 1.1], 1.4, "agrees"),
        ([-1.0, -1.2, -1.1], -1.4, "agrees"),
        ([-1.0, -1.2, -1.1], 1.4, "contradicts"),
        ([1.0, 1.2, 1.1], -1.4, "contradicts"),
        ([1.0, -1.2, 1.1], 1.4, "not significant"),
        ([0.0, 0.0], 1.4, "too few seeds"),
        ([1.0, 1.0], 1.4, "too few seeds"),
        ([1.0], 1.4, "too few seeds"),
        ([], 1.4, "not measured"),
        ([1.0, 1.2, 1.1], None, "no number to compare"),
        ([], None, "not measured"),
    ],
)
def test_verdicts(differences, then, says):
    assert verdict(interval(differences), Change("", dict, then)) == says


def test_a_number_of_two_single_runs_that_hardly_differ_gets_no_verdict():
    """0.11 and 0.14 points between two runs of one seed each say nothing about a sign."""
    change = Change("", dict, -0.14, noise=True)
    for differences in ([-1.0, -1.2, -1.1], [1.0, 1.2, 1.1]):
        assert verdict(interval(differences), change) == "2012's number is within noise"
    assert verdict(interval([1.0]), change) == "too few seeds"
    assert {name for name, change in CHANGES.items() if change.noise} == {"lrn_after_pool", "lrn_caffe"}


def test_an_epochs_training_error_is_the_mean_over_its_steps(tmp_path):
    """Logged every third step and at the end of an epoch: record 6 is of one step, 9 of three, 10 of one."""
    run = fake(tmp_path / "run", epochs=4)
    kept = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["split"] != "train"]
    errors = {3: 0.9, 5: 0.4, 6: 0.5, 9: 0.1, 10: 0.3, 12: 0.7, 15: 0.7, 18: 0.2, 20: 0.0}
    train = [{"step": s, "epoch": s / STEPS, "split": "train", "top1_error": e} for s, e in errors.items()]
    stale = [train[2] | {"top1_error": 1.0}]  # a resumed run's: the last record of a step counts
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in stale + train + kept))
    assert training_errors(read(run)) == pytest.approx([(3 * 0.9 + 2 * 0.4) / 5, (0.5 + 3 * 0.1 + 0.3) / 5, 0.7, 0.12])


def test_top5_is_shown_of_more_than_ten_classes(tmp_path):
    fake(tmp_path / "base", model__num_classes=11)
    shown = table.results_table(make_report([tmp_path]))
    [row] = shown.rows
    assert row[shown.headings.index("top-5 error, %")] == "10.00"
    fake(tmp_path / "ten/base")
    assert "top-5 error, %" not in table.results_table(make_report([tmp_path / "ten"])).headings


# --- What does not count ----------------------------------------------------------------------------------------------


def test_what_a_sweep_lacks_is_named_and_not_averaged(tmp_path):
    fields = {"model.dropout": 0.0}
    plan(tmp_path / "s", {"base": {}, "dropout_off": fields}, seeds=range(8))
    for seed in range(8):
        fake(tmp_path / f"s/base/seed{seed}", seed, 0.2)
    cell = tmp_path / "s/dropout_off"
    fake(cell / "seed0", 0, 0.3, model__dropout=0.0)
    fake(cell / "seed1", 1, 0.9, model__dropout=0.0, epochs=3)
    fake(cell / "seed2", 2, 0.9, model__dropout=0.0, views=False)
    fake(cell / "seed3", 3, 0.9, model__dropout=0.5)
    fake(cell / "seed4", 0, 0.9, model__dropout=0.0)
    fail(cell / "seed5", "the loss is nan\n", model__dropout=0.0)
    (cell / "seed6").mkdir()
    (cell / "seed6/failed.txt").write_text("no disk")
    fake(cell / "seed8", 8, 0.9, model__dropout=0.0)
    (cell / "seed0/failed.txt").write_text("no space for the pictures")  # after its last evaluation
    found = make_report([tmp_path / "s"])
    [row] = found.rows
    assert list(row.group.finished) == [0] and row.top1 == pytest.approx((30, None), nan_ok=False)
    said = {run.folder.name: (run.state, run.reason) for _, run in found.others}
    assert said == {
        "seed1": ("unfinished", "epoch 3 of 4"),
        "seed2": ("unfinished", "epoch 4 of 4, without the evaluation in 10 views"),
        "seed3": ("left out", "not what sweep.json plans: model.dropout=0.5"),
        "seed4": ("left out", "not what sweep.json plans: seed=0"),
        "seed5": ("failed", "the loss is nan (epoch 3 of 4)"),
        "seed6": ("failed", "no disk (no record yet)"),
        "seed7": ("missing", "not started"),
        "seed8": ("left out", "sweep.json does not plan it"),
    }
    for shown in (table.text(found), table.markdown(found).replace("\\", "")):
        assert all(f"{state}: " in shown and reason in shown for state, reason in said.values())
    assert "1 of 8" in table.results_table(found).rows[1]


def test_a_seed_that_occurs_twice_does_not_count(tmp_path):
    for name, seed, error in (("a", 0, 0.2), ("b", 0, 0.9), ("c", 1, 0.3)):
        fake(tmp_path / "base" / name, seed, error)
    fake(tmp_path / "base/d", 1, 0.9, epochs=2)  # unfinished: c counts
    found = make_report([tmp_path, tmp_path / "base/a"])  # a run that is named twice is one
    assert found.base.top1 == (pytest.approx(30), None)
    reasons = {run.folder.name: run.reason for _, run in found.others}
    assert reasons["a"].startswith("seed 0 occurs twice") and str(tmp_path / "base/b") in reasons["a"]
    assert reasons.keys() == {"a", "b", "d"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"name": "x", "epochs": "four"}'),
        ("config.json", json.dumps(tree() | {"epochs": 0})),
        ("metrics.jsonl", '{"step": \n{"step": 5}\n'),
        ("metrics.jsonl", '{"step": 20, "epoch": 4, "split": "validation", "views": 10, "top1_error": NaN}\n'),
        (
            "metrics.jsonl",
            '{"step": 20, "epoch": 4, "split": "validation", "views": 10, "top1_error": 1%s}\n' % ("0" * 400),
        ),
        ("metrics.jsonl", "[" * 10**5 + "\n"),
    ],
)
def test_a_damaged_run_is_left_out(sweep, name, content):
    (sweep / "dropout_off/seed1" / name).write_text(content)
    found = make_report([sweep])
    [(title, run)] = found.others
    assert (title, run.state, run.folder) == ("DROPOUT_OFF", "left out", sweep / "dropout_off/seed1") and run.reason
    assert found.rows[0].top1.mean == pytest.approx(25.5)


def test_a_record_of_a_step_before_the_first_costs_nothing(sweep):
    before = make_report([sweep]).rows[0].training_curves
    with (sweep / "dropout_off/seed1/metrics.jsonl").open("a") as file:
        file.write('{"step": -20, "epoch": 1, "split": "train", "top1_error": 0.5}\n')
    assert make_report([sweep]).rows[0].training_curves == before


def test_a_plan_may_leave_the_number_of_classes_to_the_data(tmp_path):
    """The run writes how many there are: it is the planned one all the same, and may go on."""
    plan(tmp_path / "s", {"base": {}}, seeds=[0], model__num_classes=0)
    fake(tmp_path / "s/base/seed0", 0, 0.2, model__num_classes=7)
    found = make_report([tmp_path / "s"]).base.group
    assert list(found.finished) == [0] and found.settings["model.num_classes"] == 7
    Cell("base", 0, ConfigDict(tree(model__num_classes=0)), tmp_path / "s/base/seed0").check()
    with pytest.raises(UserError, match="another config"):
        Cell("base", 0, ConfigDict(tree(model__num_classes=6)), tmp_path / "s/base/seed0").check()


# --- Runs without a sweep ---------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_what_they_compute(tmp_path):
    """Seed, name and where it ran do not matter. The title of a group is that of its change, or its fields."""
    fake(tmp_path / "base/seed0", 0)
    fake(tmp_path / "elsewhere", 1, name="other", devices__tower=2, log_every_steps=7, data__data_dir="/x")
    fake(tmp_path / "zebra", 0, 0.5, model__dropout=0.1, data__flip=True)
    fake(tmp_path / "column", 0, 0.5, **{k.replace(".", "__"): v for k, v in CHANGES["one_column"].fields(
        quickstart.get_config()).items()})  # fmt: skip
    fake(tmp_path / "lrn", 0, 0.5, model__lrn__layers=())
    found = make_report([tmp_path])
    assert list(found.base.group.finished) == [0, 1] and (found.name, found.base.title) == ("quickstart", "base")
    assert [row.title for row in found.rows] == [
        CHANGES["lrn_off"].title, CHANGES["one_column"].title, "data.flip=true, model.dropout=0.1"
    ]  # fmt: skip
    assert [row.change and row.change.top1 for row in found.rows] == [1.4, 1.7, None]


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_recognised(tmp_path, name):
    """On a base that each of them changes."""
    base = {"data__color_noise": 0.1, "data__flip": True}
    fields = CHANGES[name].fields(quickstart.get_config())
    fake(tmp_path / "base/0", **base)
    changed = {field.replace(".", "__"): value for field, value in fields.items()}
    fake(tmp_path / "changed", **base | changed)
    fake(tmp_path / "rate", **base | changed | {"optimizer__learning_rate": 0.123})
    rows = make_report([tmp_path]).rows
    assert [row.change for row in rows] == [CHANGES[name]] * 2
    assert [row.title.removeprefix(CHANGES[name].title) for row in rows] == ["", ", optimizer.learning_rate=0.123"]


def test_the_base_is_named(tmp_path):
    fake(tmp_path / "a/seed0", 0, 0.2)
    fake(tmp_path / "b/seed0", 0, 0.3, model__dropout=0.0)
    with pytest.raises(UserError, match="no configs have runs in a folder named base.*--base"):
        make_report([tmp_path])
    for name, mean in (("a", 10), ("b", -10)):
        [row] = make_report([tmp_path], tmp_path / name).rows
        assert row.difference.mean == pytest.approx(mean)
    with pytest.raises(UserError, match="contains runs of 2 configs"):
        make_report([tmp_path], tmp_path)
    fake(tmp_path / "base", 1, 0.2, model__dropout=0.3)
    fake(tmp_path / "base2/base", 1, 0.2, model__dropout=0.4)
    with pytest.raises(UserError, match="2 configs have runs in a folder named base"):
        make_report([tmp_path])


def test_what_is_missing_or_damaged_is_the_users_to_fix(tmp_path, sweep):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run in .*empty: "):
        make_report([tmp_path / "empty"])
    with pytest.raises(UserError, match="there is no folder .*nowhere: "):
        make_report([tmp_path / "nowhere"])
    plan(tmp_path / "second", {"base": {}})
    with pytest.raises(UserError, match="are different sweeps: report each separately"):
        make_report([tmp_path])
    for damaged in (
        "{",
        "[]",
        '{"sweep": "x"}',
        '{"sweep": "x", "config": {}, "seeds": [0], "cells": {}}',
        json.dumps({"sweep": "x", "config": tree(), "cells": {}}),
        '{"sweep": "x", "config": 1}',
    ):
        (sweep / "sweep.json").write_text(damaged)
        with pytest.raises(UserError, match="sweep.json is damaged"):
            make_report([sweep])
    with pytest.raises(UserError, match="no run in") as error:
        verbs.run(command, tmp_path / "empty")
    assert "\n" not in str(error.value)


def test_files_and_folders_without_runs_are_skipped(sweep, tmp_path, capsys):
    """As the shell expands runs/small/*: sweep.json, the jobs' folder, the cells."""
    (sweep / "jobs").mkdir()
    found = make_report(sorted(sweep.iterdir()))
    assert found.base.group.finished.keys() == {0, 1, 2} and len(found.rows) == 1
    assert capsys.readouterr().err == f"skipped: {sweep / 'jobs'} contains no run\n"
    with pytest.raises(UserError, match="no run in .*sweep.json"):
        make_report([sweep / "sweep.json", sweep / "jobs"])
    with pytest.raises(UserError, match="no run in .*config.json"):  # runs/mine/* of a single run
        make_report(sorted(sweep.glob("base/seed0/*")))


def test_a_folder_at_home_may_be_named_with_a_tilde(sweep, tmp_path, monkeypatch):
    """The shell leaves the ~ of --out=~/report as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    verbs.run(command, f"~/{sweep.relative_to(tmp_path)}", "--out=~/report")
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_deeply_nested_config_is_left_out(sweep):
    (sweep / "base" / "seed0" / "config.json").write_text("[" * 100_000)
    assert read(sweep / "base" / "seed0").state == "left out"


def test_runs_of_earlier_versions_compare_with_todays():
    """Also one of six convolutions, and one with lrn.after_pool as it once was, true or false."""
    for preset in (six_conv, caffenet, quickstart):
        new = json.loads(preset.get_config().to_json())
        assert completed(new) == flat(new)
        old = {name: value for name, value in flat(new).items() if not FIELDS[name].newer}
        old["model.lrn.after_pool"] = bool(old["model.lrn.after_pool"])
        changed = differing(completed(json.loads(unflat(old).to_json())), flat(new))
        assert not {"model.conv_sizes", "model.conv_strides", "model.pooled", "model.lrn.after_pool"} & set(changed)
