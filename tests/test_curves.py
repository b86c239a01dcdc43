"""Training curves: every record of every run is in the picture, once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import UserError, metrics
from alexnet_jax.analysis.curves import curves
from alexnet_jax.metrics import OLD, Log, read_metrics

# A letter that the font lacks, an empty axis; not what other tests' objects say when they are collected meanwhile.
NO_WARNINGS = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def count(picture, color):
    return int((picture == color).all(axis=2).sum())


def record(step, split="train", **more):
    values = {"loss": 2 / step, "top1_error": 1 / step}
    return {"step": step, "epoch": step / 10, "split": split} | values | more


def test_images_per_second_are_those_since_the_clock_was_resumed(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 24.0])  # at the start, at step 6, resumed, at step 7
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    log = Log(None, step=4, steps=9, batch_size=16, steps_per_epoch=3)
    assert log.images_per_second(6) == 16
    log.resume_clock(6)
    assert log.images_per_second(7) == 4


def test_read_metrics_ignores_only_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record(step)) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + "\n")
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    for torn in (lines[2][:-1], '{"ste', "\0\0\0"):
        path.write_text("\n".join([*lines[:2], torn]))
        assert read_metrics(path) == [json.loads(line) for line in lines[:2]]
    path.write_bytes(b"")
    assert read_metrics(path) == []


@pytest.mark.parametrize("damaged", [b'{"step": 1, "ep', b"", b"12", b"\xff\xfe", b"[" * 10**5])
def test_read_metrics_names_a_damaged_line(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([json.dumps(record(1)).encode(), damaged, json.dumps(record(2)).encode()]) + b"\n")
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged"):
        read_metrics(path)
    with pytest.raises(UserError, match="nowhere"):
        read_metrics(tmp_path / "nowhere" / "metrics.jsonl")


def test_records_whose_checkpoints_are_gone_are_kept(tmp_path, capsys):
    """Not those of a run that was killed before its first evaluation, which nobody misses."""
    log = {"step": 0, "steps": 4, "batch_size": 1, "steps_per_epoch": 2}
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(record(1)) + "\n")
    Log(tmp_path, **log).close()
    old = [tmp_path / OLD.format(i) for i in (1, 2)]
    assert not old[0].exists() and path.read_text() == "" and "warning" not in capsys.readouterr().err
    for again in old:  # nothing is overwritten
        text = json.dumps(record(2, "validation", learning_rate=len(again.name))) + "\n"
        path.write_text(text)
        Log(tmp_path, **log).close()
        assert again.read_text() == text and path.read_text() == ""
        assert f"kept in {again}" in capsys.readouterr().err


def test_curves_draws_every_run_in_its_colour(tmp_path):
    train = [record(step, learning_rate=0.01 * 0.1 ** (step > 30)) for step in range(1, 60)]
    slower = [r | {"learning_rate": r["learning_rate"] / 2} for r in train]
    evaluations = [record(step, "validation", views=1, top5_error=0.5 / step) for step in range(10, 60, 10)]
    runs = {"_paper": [*train, record(50, "test", views=10)], "$cost$ of tanh": evaluations, "train only": slower}
    picture = read(curves(runs, tmp_path / "curves.png"))
    assert 900 < picture.shape[1] < 1200
    for color in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        assert count(picture[:, :900], color) > 100  # left of the legends
    assert not count(picture, (204, 121, 167))  # a fourth run's


def test_curves_counts_a_step_that_a_resumed_run_repeats_once(tmp_path):
    whole = [record(step, learning_rate=0.01) for step in range(1, 9)]
    stale = [record(step, learning_rate=0.01, loss=9.0) for step in (4, 5)]
    once = curves({"run": whole}, tmp_path / "once.png").read_bytes()
    assert curves({"run": whole[:3] + stale + whole[3:]}, tmp_path / "twice.png").read_bytes() == once


def test_curves_leaves_top5_out_of_ten_classes(tmp_path):
    plain = [record(step, "validation") for step in (1, 2)]
    both = [r | {"top5_error": 0.1} for r in plain]

    def same(classes):
        return curves({"run": both}, tmp_path / "a.png", classes).read_bytes() == (
            curves({"run": plain}, tmp_path / "b.png", classes).read_bytes()
        )

    assert [same(classes) for classes in (None, 10, 11)] == [False, True, False]


def drawn(monkeypatch, tmp_path, runs, classes=None):
    """The axes that curves() would save."""
    figures = []
    monkeypatch.setattr("alexnet_jax.analysis.curves.save", lambda figure, path: figures.append(figure) or path)
    curves(runs, tmp_path / "curves.png", classes)
    return figures[0].axes


def test_a_folders_name_that_is_no_text_is_drawn(tmp_path):
    runs = {name: [record(1, loss=1.0)] for name in ("caf\udce9", "b")}
    assert curves(runs, tmp_path / "curves.png").stat().st_size > 1000


def test_the_loss_of_guessing_is_drawn_and_the_spike_before_it_cut_off(monkeypatch, tmp_path):
    """A run of few records, a tenth of them at 15 or 9e20, and then at or below ln 10."""
    chance = np.log(10)
    falls = [record(1, loss=9e20), record(2, loss=15.0)] + [record(i, loss=chance - i / 100) for i in range(3, 21)]
    stays = [record(i, loss=5.0) for i in range(1, 21)]  # above it: is in the picture

    def dotted(axes):
        return [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == ":"]

    loss, error, _ = drawn(monkeypatch, tmp_path, {"falls": falls}, 10)
    assert loss.get_ylim() == (0, pytest.approx(1.3 * chance))
    assert dotted(loss) == [[chance, chance]] and dotted(error) == [[90, 90]]
    assert drawn(monkeypatch, tmp_path, {"stays": stays, "falls": falls}, 10)[0].get_ylim()[1] > 5
    assert not dotted(drawn(monkeypatch, tmp_path, {"falls": falls})[0])


def test_drops_of_the_rate_are_marked_and_long_runs_thinned(monkeypatch, tmp_path):
    """Two thousand records with a drop after half of them, and two evaluations of ten views."""
    run = [record(step, learning_rate=0.01 if step < 1000 else 0.001) for step in range(1, 2001)]
    run += [record(step, "validation", views=10) for step in (1000, 2000)]
    loss, error, rate = drawn(monkeypatch, tmp_path, {"run": run})
    lines = {line.get_marker(): line for line in loss.lines if len(line.get_xdata()) != 2 or line.get_marker() == "*"}
    assert list(lines["*"].get_xdata()) == [100.0, 200.0]
    assert len(lines["None"].get_xdata()) == 400 and lines["None"].get_ydata().min() > 0
    for axes in (loss, error, rate):
        assert [100.0, 100.0] in [list(line.get_xdata()) for line in axes.lines]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1, learning_rate=0.005)],
        [record(1, "test", views=10, top5_error=None)],
        [record(1, learning_rate=0.0, loss=float("nan")), {"note": "no metric"}],
    ],
)
@NO_WARNINGS
def test_curves_survives_hardly_any_records(tmp_path, records):
    assert read(curves({"run": records}, tmp_path / "curves.png")).std() > 0
