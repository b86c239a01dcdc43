"""docs/tour.ipynb runs from its first cell to its last, in this process: a kernel would take seconds to start."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALEXNET_RUN", str(tiny_run))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.mkdtemp", lambda *args, **kwargs: str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    shell = InteractiveShell()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, silent=True).raise_error()
    said = capsys.readouterr().out
    assert "tiny, step" in said and "of an image's six nearest are of its class" in said
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"kernels.png", "maps.png", "predictions.png", "neighbours.png"}


def test_it_is_stored_with_small_outputs():
    """So that it can be read without being run."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(cell.outputs for cell in cells if cell.cell_type == "code")
    assert NOTEBOOK.stat().st_size < 300_000
