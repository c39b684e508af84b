"""`ssmn chat`, without a terminal and with Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssmn.state import StreamState
from test_cli import Runner
from tiny import save_row_model, save_text_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(capsys, monkeypatch)


def chat(run: Runner, folder: Path, *lines: str, options: tuple[object, ...] = (), code: int = 0) -> str:
    return run("chat", folder, "--seed", 0, "-n", 5, *options, stdin="\n".join(lines), code=code)


def position(path: Path) -> int:
    return int(StreamState.load(path).position)


def test_turns_go_on_from_the_state_file(run: Runner, folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "monday.safetensors"
    first = chat(run, folder, "Hello", "/state", options=("--state", state))
    place = position(state)
    assert f"position {place}, " in first
    assert f"bytes, kept in {state}" in first
    chat(run, folder, "again", options=("--state", state))
    assert position(state) > place
    assert chat(run, folder, "Hello") == chat(run, folder, "Hello", "", "/quit", "never said")


def test_undo_fork_load_and_save(run: Runner, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--state", "monday.safetensors", "--stop", "never", "--ending", "\\n")
    out = chat(
        run, folder, "one", "/save kept", "two", "/undo", "/fork other", "three three", "/state", options=options
    )
    length = position(tmp_path / "kept.safetensors")
    assert "saved in kept.safetensors" in out
    assert f"back at position {length}" in out
    assert "going on in other.safetensors" in out
    assert position(tmp_path / "monday.safetensors") == length
    assert position(tmp_path / "other.safetensors") > length
    same = StreamState.load("kept.safetensors").diff(StreamState.load("monday.safetensors"))
    assert same.identical

    out = chat(run, folder, "/load kept.safetensors", "/undo", "more", "/fork other", "/load none", options=options)
    assert f"at position {length}; kept in kept.safetensors" in out
    assert "there is no turn to take back" in run.err
    assert "other.safetensors exists; choose another name" in run.err
    assert "/load: none does not exist" in run.err
    assert position(tmp_path / "kept.safetensors") > length


def test_a_text_is_read_without_an_answer(run: Runner, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    (tmp_path / "empty.txt").write_text("")
    names = [str(tmp_path / name) for name in ("notes.txt", "bytes.txt", "empty.txt", "absent.txt")]
    out = chat(run, folder, *(f"/read {name}" for name in names))
    assert out == "read 10 tokens; at position 10\n"
    assert "byte 0 is not UTF-8" in run.err
    assert "empty.txt is empty" in run.err
    assert "absent.txt" in run.err


def test_the_memory_learns_as_told(run: Runner, folder: Path, tmp_path: Path) -> None:
    words = ("long-term", "eta=0.2 threshold=0.1", "frozen", "trained", "short-term eta_scale=2")
    out = chat(run, folder, "/plasticity", *(f"/plasticity {word}" for word in words))
    assert out.splitlines() == [
        "as trained",
        "plasticity_eta=0.05 decay_lambda=0.0001",
        "plasticity_eta=0.2 write_threshold=0.1",
        "frozen=True",
        "as trained",
        "eta_scale=2.0 plasticity_eta=0.001 decay_lambda=0.01",
    ]
    chat(run, folder, "/plasticity fast", "/plasticity eta=x", "/plasticity eta=7", "/plasticity frozen=1")
    for message in ("'fast'; wanted long-term", "wanted a number after eta=", "plasticity_eta=7.0", "'frozen=1'"):
        assert message in run.err
    state = tmp_path / "frozen.safetensors"
    chat(run, folder, "Hello", options=("--frozen", "--state", state))
    assert not StreamState.load(state).named_tensors()["layers.1.memory"].any()


def test_commands_that_are_none_are_named(run: Runner, folder: Path) -> None:
    out = chat(run, folder, "/sing", "/undo now", "/fork", "/save 'a", "/help", "//path")
    assert "/sing: there is no such command; /help lists them" in run.err
    assert "/undo: 1 words follow; wanted none" in run.err
    assert "/fork: 0 words follow; wanted NAME" in run.err
    assert "No closing quotation" in run.err
    assert "/plasticity [long-term | short-term" in out
    assert len(out.splitlines()) > 9  # and an answer to "/path"


def test_strings_around_the_turns(run: Runner, folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "s.safetensors"
    around = ("--prefix", "You: ", "--suffix", "\\nMe: ", "--ending", "", "--stop", "never", "--state", state)
    chat(run, folder, "Hi", options=(*around, "-n", 1, "--temperature", 0))
    assert position(state) in (len("You: Hi\nMe: "), len("You: Hi\nMe: ") + 1)


def test_chat_wants_a_text_model(run: Runner, tmp_path: Path) -> None:
    run("chat", save_row_model(tmp_path), code=1)
    assert "holds a Standard model; wanted a text model" in run.err


def test_ctrl_c_stops_the_answer_only(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "live.safetensors"
    words = ["chat", str(folder), "--state", str(state), "-n", "100000000", "--stop", "never"]
    with subprocess.Popen(
        [sys.executable, "-m", "ssmn", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        process.stdout.read(5)  # it is answering
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(b"/state\n/undo\n", timeout=60)
        assert b"back at position 0" in rest
        assert (process.returncode, errors) == (0, b"")
    assert position(state) == 0
