"""Whole-set error against brute force: every image once, ten views, several runs together."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import UserError, checkpoint, evaluate, main
from alexnet_jax.prepare import prepare


def brute_force(run, images, labels, views):
    """Loss, top-1 and top-5 error from the crops cut in NumPy, image by image."""
    size, crop = run.config.data.size, run.config.data.crop
    far, mid = size - crop, (size - crop) // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (mid, mid)]
    probabilities = []
    for image in images:
        pixels = image.astype(np.float32) - run.statistics["mean"]
        cuts = [pixels[y : y + crop, x : x + crop] for y, x in (corners if views == 10 else corners[4:])]
        if views == 10:
            cuts += [c[:, ::-1] for c in cuts]
        logits = run.apply(run.params, np.stack(cuts))[0]
        probabilities.append(np.asarray(jax.nn.softmax(logits)).mean(axis=0))
    return score(np.stack(probabilities), labels)


def score(probabilities, labels):
    own = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities > own[:, None]).sum(axis=1)
    return {"loss": -np.log(own).mean(), "top1_error": (rank >= 1).mean(), "top5_error": (rank >= 5).mean()}


@pytest.fixture(scope="module")
def run(tiny_run):
    return checkpoint.load(tiny_run)


@pytest.mark.parametrize("views", [1, 10])
def test_equals_brute_force(tiny_run, run, views):
    """33 images in batches of 10: the last batch is padded, and the padding does not count."""
    split = prepare(run.config.data).evaluation
    found = evaluate.evaluate_runs([str(tiny_run)], views, "validation")
    assert found["images"] == 33
    for name, wanted in brute_force(run, split.images(), split.labels, views).items():
        assert found[name] == pytest.approx(wanted, rel=1e-4), name


def test_several_runs_average_probabilities(tiny_run, run, tmp_path):
    """A run with itself is itself; with another it is the error of the mean of their probabilities."""
    alone = evaluate.evaluate_runs([str(tiny_run)], 1, "validation")
    twice = evaluate.evaluate_runs([str(tiny_run)] * 2, 1, "validation")
    assert {k: twice[k] for k in ("loss", "top1_error")} == pytest.approx({k: alone[k] for k in ("loss", "top1_error")})

    config = run.config.copy_and_resolve_references()
    config.seed, config.epochs = 7, 1
    main.run(config, tmp_path / "other")
    other = checkpoint.load(tmp_path / "other")
    split = prepare(run.config.data).evaluation

    def probabilities(r):
        predict = evaluate.make_probabilities(r.apply, r.config.data)
        return np.asarray(predict(r.params, r.statistics, split.images()))

    wanted = score((probabilities(run) + probabilities(other)) / 2, split.labels)
    together = evaluate.evaluate_runs([str(tiny_run), str(tmp_path / "other")], 1, "validation")
    for name, value in wanted.items():
        assert together[name] == pytest.approx(value, rel=1e-4), name


def test_the_last_line_is_json(tiny_run):
    command = [
        sys.executable,
        "-m",
        "alexnet_jax.evaluate",
        "--workdir",
        str(tiny_run),
        "--views",
        "1",
        "--split",
        "train",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["split"] == "train" and found["views"] == 1 and found["images"] == 96
    assert {"top1_error", "top5_error", "loss"} <= set(found)


def test_no_run_is_one_line(tmp_path):
    command = [sys.executable, "-m", "alexnet_jax.evaluate", "--workdir", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error:") and "alexnet_jax.main" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_damaged_run_says_which_file(tiny_run, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "pap')
    with pytest.raises(UserError, match=r"config\.json"):
        checkpoint.load(tmp_path)


def test_progress_counts_every_image_once(tiny_run, run):
    """It moves as results come in, a batch behind the device, and leaves padding out."""
    seen = []

    class Bar:
        n = 0

        def update(self, images):
            self.n += images
            seen.append(self.n)

    split = prepare(run.config.data).evaluation
    flat = np.full((10, 3), 1 / 3, np.float32)
    found = evaluate.evaluate([lambda images: flat], [evaluate.eval_batches(split, 10)], Bar())
    assert seen == [10, 20, 30, 33] and found["images"] == 33
