"""The notebooks run from top to bottom, and what is in the repository is what they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = {
    "anomalies": (1, "stretch 2, 2013-12-15T17:50 to 2013-12-17T17:00: flagged first"),
    "control": (1, "memory pays: True"),
    "forecast": (1, "the loaded one forecasts the same: True"),
    "text": (2, "the parent stayed as it was: True"),
}
"""Of each notebook the number of pictures, and something that it must print."""
LARGEST = 300_000


def printed(notebook: Any, pictures: int) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == NOTEBOOKS.keys()


@pytest.mark.filterwarnings("default")  # of Jupyter's own
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = 'the extra "dev" is not installed'
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    kept = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    again = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    for cell in again.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(again, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures, words = NOTEBOOKS[name]
    texts = [printed(notebook, pictures) for notebook in (kept, again)]
    assert all(words in text for text in texts)
    # What was computed may differ from machine to machine in its last digits.
    masked = [re.sub(r" *-?\d[\d.,]*", "#", text) for text in texts]
    assert masked[0] == masked[1]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_stays_small(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
