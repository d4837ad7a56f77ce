"""The notebooks run from top to bottom on the experiments that come with them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01-load-results", "02-label-efficiency-and-utility", "03-a-sweep"]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in cells(path):
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_numbers_and_figures(path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=where
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds and "text/plain" in kinds
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_bundled_experiments_hold_results_and_no_weights():
    files = [path for path in (ROOT / "notebooks/example").rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} <= {".json", ".jsonl", ".gin", ".txt"}
    assert sum(path.stat().st_size for path in files) < 1_000_000
