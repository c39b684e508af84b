"""The notebook runs from top to bottom, and what is in the repository is what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "text.ipynb"
LARGEST = 300_000


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = 'the extra "dev" is not installed'
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    kept = nbformat.read(NOTEBOOK, 4)
    again = nbformat.read(NOTEBOOK, 4)
    for cell in again.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(again, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = [re.sub(r"\d\.\d+", "#", printed(notebook)) for notebook in (kept, again)]
    assert "the parent stayed as it was: True" in texts[0]
    assert texts[0] == texts[1]


def test_the_notebook_stays_small() -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
