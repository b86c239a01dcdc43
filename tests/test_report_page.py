"""The report's page: one file that runs nothing, whatever the runs' files say, and shows what was measured."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import verbs
from helpers.sweeps import fail, fake, plan, three_seeds
from PIL import Image

from alexnet_jax import UserError
from experiments.report import command, page, pictures, table
from experiments.report.rows import make_report


@pytest.fixture
def sweep(tmp_path):
    return three_seeds(tmp_path / "small")


class Page(HTMLParser):
    """Parses a page into its tags, and its tables as rows of text; checks that every tag is closed."""

    EMPTY = {"meta", "link", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


HOSTILE = "<script>alert('1')</script> $k_ | \x1b[31m & <b>"


@pytest.fixture
def hostile(tmp_path):
    """A sweep in which everything that comes from files is code or a control sequence."""
    root = tmp_path / "<script>x"
    plan(root, {"base": {}, "<img src=x>": {"model.dropout": 0.0}, "unfinished": {"model.dropout": 0.1}}, seeds=(0, 1))
    written = json.loads((root / "sweep.json").read_text())
    written["sweep"] = written["config"]["name"] = written["config"]["data"]["name"] = HOSTILE
    for cell in written["cells"].values():
        cell["title"] += HOSTILE
    (root / "sweep.json").write_text(json.dumps(written))
    for seed in (0, 1):
        fake(root / f"base/seed{seed}", seed, 0.2, data__name=HOSTILE, name=HOSTILE)
        fake(root / f"<img src=x>/seed{seed}", seed, 0.3, data__name=HOSTILE, model__dropout=0.0)
    fake(root / "unfinished/seed0", 0, epochs=1, data__name=HOSTILE, model__dropout=0.1)
    (root / "unfinished/seed0/failed.txt").write_text(HOSTILE)
    return root


def test_the_page_is_one_file_that_runs_nothing(hostile, tmp_path, capsys):
    verbs.run(command, hostile, "--out", tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text
    read_page = Page(text)
    names = {name for name, _ in read_page.tags}
    assert not names & {"script", "b", "iframe", "object", "svg"}
    assert not [a for _, attributes in read_page.tags for a in attributes if a.startswith("on")]
    images = read_page.all("img")
    assert len(images) == 2 and all(i["src"].startswith("data:image/png;base64,") and i["alt"] for i in images)
    assert all(link["href"].startswith(("data:", "#")) for link in read_page.all("a") + read_page.all("link"))
    assert read_page.all("html") == [{"lang": "en"}] and len(read_page.all("title")) == 1
    assert all(cell["scope"] in ("col", "row") for cell in read_page.all("th"))
    assert len(read_page.all("caption")) == len(read_page.all("table")) == 4
    assert "<script>alert('1')</script>" in read_page.text and "no checkpoint" in read_page.text
    markdown, terminal = (tmp_path / "out/table.md").read_text(), capsys.readouterr().out
    assert "<script" not in markdown and "<b>" not in markdown and "\x1b" not in text + markdown + terminal
    rows = markdown.split("\n\n")[0].splitlines()
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1 and len(rows) == 5
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_page_shows_the_table_and_what_is_not_in_it(sweep, tmp_path):
    fail(sweep / "dropout_off/seed2", "out of memory", model__dropout=0.0)
    found = make_report([sweep])
    (tmp_path / "out").mkdir()
    results, certainty, runs, others = Page(
        page.html(found, pictures.draw(found, tmp_path / "out"), "the command")
    ).tables
    shown = table.results_table(found)
    assert results == [shown.headings, *shown.rows]
    sure = table.certainty_table(found)
    assert certainty == [sure.headings, *sure.rows]
    assert runs[1:] == [
        ["BASE", "", "20.00", "22.00", "24.00"],
        ["DROPOUT_OFF", "model.dropout=0.0", "23.00", "24.00", ""],
    ]
    assert others[1:] == [["DROPOUT_OFF", "failed", "out of memory (epoch 3 of 4)", str(sweep / "dropout_off/seed2")]]


def test_kernels_are_drawn_of_a_run_with_a_checkpoint(tiny_run, tmp_path):
    before = sorted(p.name for p in tiny_run.iterdir())
    verbs.run(command, tiny_run, "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "curves.png", "kernels_00_base.png", "report.html", "table.md"
    ]  # fmt: skip
    assert sorted(p.name for p in tiny_run.iterdir()) == before
    assert any(
        image["alt"].startswith("Kernels") for image in Page((tmp_path / "out/report.html").read_text()).all("img")
    )


def test_a_checkpoint_that_cannot_be_read_is_reported(tmp_path):
    (fake(tmp_path / "base", 0) / "checkpoints").mkdir()
    found = make_report([tmp_path])
    drawn = pictures.draw(found, tmp_path)
    [(reason, titles)] = drawn.without_kernels.items()
    assert titles == ["base"] and "cannot be read" in reason and drawn.kernels == []
    assert reason in Page(page.html(found, drawn, "")).text


def test_what_is_far_off_does_not_squeeze_the_rest(tmp_path):
    """A mean of 40 points or of 80 is only a number in the picture: the rows above are the same, pixel by pixel."""
    drawn = []
    for name, error in (("a", 0.5), ("b", 0.9)):
        fake(tmp_path / name / "base", 0, 0.1)
        for k, small in ((1.0, 0.11), (1.5, 0.095), (2.5, 0.12), (3.0, error)):
            fake(tmp_path / name / str(k), 0, small, model__lrn__k=k)
        path = pictures.draw_differences(make_report([tmp_path / name]).rows, tmp_path / f"{name}.png")
        with Image.open(path) as image:
            drawn.append(np.asarray(image.convert("L")))
    one, other = drawn
    differs = np.flatnonzero((one != other).any(axis=1))
    assert one.shape == other.shape and differs.size
    row, below = pictures.ROW * pictures.DPI, 0.5 * pictures.DPI
    assert len(one) - below - row < differs.min() and differs.max() < len(one) - below


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path):
    plan(tmp_path / "s", {"base": {}, "dropout_off": {"model.dropout": 0.0}}, seeds=(0,))
    verbs.run(command, tmp_path / "s", "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "table.md"]
    assert "2 of 2 runs are not in these numbers" in Page((tmp_path / "out/report.html").read_text()).text


def test_an_unwritable_folder_is_the_users_to_fix(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        verbs.run(command, sweep, "--out", tmp_path / "file")
    (tmp_path / "out/table.md").mkdir(parents=True)
    with pytest.raises(UserError, match="table.md"):
        verbs.run(command, sweep, "--out", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["table.md"]
