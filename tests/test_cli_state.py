"""`ssmn state`: the verbs over files."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes import FakeModel, random_state
from ssmn.cli.state import app
from ssmn.errors import FileError, StateError
from ssmn.state import StreamState


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def saved(model: FakeModel, tmp_path: Path) -> Path:
    path = tmp_path / "monday.safetensors"
    random_state(model, 2).save(path, model)
    return path


def run(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_tells_what_is_inside(saved: Path) -> None:
    output = run("info", saved)
    assert "monday.safetensors (format 1, ssmn " in output
    assert "7, 7" in output
    assert "fake, fingerprint" in output
    memory = next(line.split() for line in output.splitlines() if "layers.1.memory" in line)
    assert memory[:7] == ["layers.1.memory", "plastic", "[2,", "2,", "3,", "4]", "float32"]


def test_fork_then_merge_gives_both_streams(saved: Path, model: FakeModel, tmp_path: Path) -> None:
    left, right, both = (tmp_path / name for name in ("left", "right", "both"))
    assert "left: position 7, 7" in run("fork", saved, left, right).replace("\n", " ")
    assert left.read_bytes() == right.read_bytes() == saved.read_bytes()
    assert "4 rows, position 7, 7, 7, 7" in run("merge", left, right, "--out", both)
    state = StreamState.load(saved, model)
    assert StreamState.load(both, model).diff(StreamState.merge([state, state])).identical


def test_outputs_are_not_replaced_unasked(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="exists; choose another name, or pass --force"):
        run("fork", saved, tmp_path / "new", saved)
    assert not (tmp_path / "new").exists()
    run("fork", saved, saved, "--force")
    with pytest.raises(FileError, match="exists"):
        run("merge", saved, "--out", saved)


def test_merge_refuses_other_models(saved: Path, tmp_path: Path) -> None:
    other = FakeModel(seed=3)
    random_state(other).save(tmp_path / "other", other)
    with pytest.raises(StateError, match=r"merge: the configs are equal but the weights are not.*one model only"):
        run("merge", saved, tmp_path / "other", "--out", tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_diff(saved: Path, model: FakeModel, tmp_path: Path) -> None:
    assert "identical (7 tensors)" in run("diff", saved, saved)
    random_state(model, 2, length=8).save(tmp_path / "later", model)
    output = run("diff", saved, tmp_path / "later")
    assert "7 of 7 tensors differ" in output
    assert ["position", "1", "0.143"] in [line.split() for line in output.splitlines()]
    other = FakeModel(seed=3)
    random_state(other, 2).save(tmp_path / "other", other)
    assert "different weights or settings" in run("diff", saved, tmp_path / "other")


@pytest.mark.parametrize("verb", ["info", "fork", "merge", "diff"])
def test_help_has_an_example(verb: str) -> None:
    assert f"ssmn state {verb} " in run(verb, "--help")


def test_a_damaged_file_is_one_clear_error(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(FileError, match=r"is damaged: its sum is"):
        run("info", saved)
