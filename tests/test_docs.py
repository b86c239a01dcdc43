"""What README.md and docs/ tell a reader to type is accepted, and the code that they show runs."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.cli import commands, verbs
from experiments import sweep

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def shown(page, language):
    """The blocks of code of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_accepted(page, monkeypatch):
    """Its flags are parsed, and its config is made; nothing runs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # find_module adds the checkout to it
    for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
        if not re.match(r" {4}(srun )?alexnet [a-z]+ ", line):
            continue
        words = shlex.split(line.strip().removeprefix("srun "), comments=True)
        commands.parse(verbs.find_module(words[1]), words[2:])


def test_the_commands_are_found():
    """The test above would pass if it found none."""
    lines = [line for page in PAGES for line in page.read_text().splitlines() if re.match(r" {4}alexnet [a-z]+ ", line)]
    assert len(lines) > 60 and {line.split()[1] for line in lines} >= verbs.VERBS.keys() - {"claims"}


def test_the_readmes_python_runs(tiny_run):
    [code] = shown(ROOT / "README.md", "python")
    names = {}
    exec(code.replace("runs/quickstart", str(tiny_run)), names)
    assert names["fc7"].shape == (33, 128) and names["indices"].shape == (33, 6)
    assert names["fc7"].dtype == np.float32 and names["activations"].keys() >= {"conv1", "fc7"}


def test_a_sweep_of_ones_own_is_one(tmp_path):
    [code] = shown(ROOT / "docs/ablations.md", "python")
    (tmp_path / "mine.py").write_text(code)
    base, changes = sweep.read_sweep(str(tmp_path / "mine.py"))
    cells = sweep.make_cells(base, changes, 1, tmp_path)
    assert [cell.name for cell in cells] == ["base", "lrn_off", "fc_wide"]
    assert cells[2].config.model.fc_widths == (1024, 1024) and cells[1].config.model.lrn.layers == ()
