"""A whole run on photographs and on CIFAR-10, if TFDS_DATA_DIR has them."""

import json

import pytest
from helpers.folders import needs

from alexnet_jax import evaluate, main
from configs import imagenette, paper

pytestmark = pytest.mark.real_data


@pytest.mark.parametrize(
    ("make", "word"),
    [pytest.param(imagenette, "imagenette", marks=needs("imagenette")),
     pytest.param(paper, "cifar10", marks=needs("cifar10"))],
)  # fmt: skip
def test_trains_and_evaluates(make, word, tmp_path):
    """Real images, both data paths, the full rules on a narrow network: losses are finite, every image counts."""
    c = make.get_config(f"{word},smoke")
    c.data.train_split, c.data.eval_split = "train[:160]", c.data.eval_split.split("[")[0] + "[:50]"
    c.data.prepared_dir = str(tmp_path / "prepared")
    c.data.on_device = word == "cifar10"
    c.devices.tower = 1
    assert main.run(c, tmp_path / "run") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["split"] == "train"]
    assert len(losses) == 10 and all(0 < loss < 3 for loss in losses)
    found = evaluate.evaluate_runs([str(tmp_path / "run")], 10, "validation")
    assert found["images"] == 50
    assert found["top1_error"] == pytest.approx(records[-1]["top1_error"])
