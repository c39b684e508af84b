"""The command line: help, exit codes, one clear line on failure, and the verbs that stream."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ssmn.native
from ssmn import cli
from ssmn.cli import VERBS, main
from ssmn.config import SSMNConfig
from ssmn.errors import FileError
from ssmn.models import SSMN
from ssmn.state import StreamState
from tiny import save_row_model, save_text_model

BENCHMARKS = [("bench", name) for name in ("layers", "train", "decode", "prefill", "seed-table", "soak", "quality")]
SUB_VERBS = [*BENCHMARKS, ("state", "info"), ("state", "fork"), ("state", "diff")]
TEXT = "The first line\nthe second one\nThe first line\n"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def row_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_row_model(tmp_path_factory.mktemp("rows"))


class Runner:
    """Runs the command line in this process, with a given standard input."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object, stdin: str | bytes = b"", code: int = 0) -> str:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        returned = main([str(word) for word in words])
        self.out, self.err = self._capsys.readouterr()
        assert returned == code, self.err or self.out
        return self.out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(capsys, monkeypatch)


@pytest.mark.parametrize("words", [(verb,) for verb in VERBS] + SUB_VERBS, ids=" ".join)
def test_help_has_an_example(run: Runner, words: tuple[str, ...]) -> None:
    out = " ".join(run(*words, "--help").replace("│", " ").split())
    if words not in [("state",), ("bench",)]:
        assert "Example: ssmn " + " ".join(words) in out


def test_paragraphs_of_the_help_fill_the_width(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 100)
    lines = [line.strip() for line in run("generate", "--help").splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("With --state the stream goes on"))
    assert all(len(line) > 85 for line in lines[first : first + 2])
    assert 'ssmn generate "The memory" --seed 0' in lines  # an example keeps its lines


def test_the_overview_names_every_verb_and_loads_nothing_heavy() -> None:
    script = "import sys; from ssmn.cli import main; main(['--help']); print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(verb in out for verb in VERBS)
    assert not {"torch", "numpy", "tokenizers", "ssmn.cli.train"} & set(out.splitlines()[-1].split())


def test_version_and_no_verb(run: Runner) -> None:
    assert run("--version") == "ssmn 0.1.0\n"
    run(code=2)


@pytest.mark.parametrize(
    "words",
    [
        ("nope",),
        ("generate", "x", "-n", "0"),
        ("generate", "--nope"),
        ("stream", "--per", "word"),
        ("doctor", "x"),
        ("generate", "x", "--threads", "9" * 20),
        ("bench", "soak", "--threads", "9" * 20),
    ],
)
def test_wrong_usage_exits_with_2(run: Runner, words: tuple[str, ...]) -> None:
    run(*words, code=2)
    assert run.err
    assert "Traceback" not in run.err


def test_inspect_marks_what_is_written(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("naïve\n" * 3, encoding="utf-8")
    out = run("inspect", text_folder, "--text", path, "--writes", "--write-threshold", "0")
    assert out.replace("⟨", "").replace("⟩", "").startswith("naïve\nnaïve\nnaïve\n")
    assert "21 tokens" in out
    assert "100.0%" in out
    out = run(
        "inspect", text_folder, "--text", path, "--writes", "--write-threshold", "1", "--limit", "8", "--top", "0"
    )
    assert out.startswith("naïve\nn\n")  # the eighth byte is of a second line
    assert "0.0%" in out
    assert "⟨" not in out
    run("inspect", text_folder, code=2)
    assert "--text FILE --writes" in run.err


def test_a_failure_is_one_line_and_exits_with_1(run: Runner, tmp_path: Path) -> None:
    run("generate", "x", "--model", tmp_path, code=1)
    assert run.err == f"ssmn: {tmp_path}: no config.json; wanted a folder written by save_pretrained or `ssmn train`.\n"
    assert run.out == ""


def test_files_of_the_wrong_kind_are_named_with_the_way_out(run: Runner, tmp_path: Path) -> None:
    noise, table = tmp_path / "noise", tmp_path / "table.csv"
    noise.write_bytes(b"\xff\xfe" * 9)
    table.write_text("a,b\n1,2\n3,4\n")
    for words, said in (
        (("chat", noise), f"{noise}: is a file; wanted a folder written by save_pretrained or `ssmn train`."),
        (("inspect", "--text", noise), f"{noise}: line 1: byte 0xff is not UTF-8; wanted UTF-8 text, or a model with"),
        (("inspect", "--text", table, "--report", tmp_path), f"{tmp_path}: is a folder; wanted the name of a file."),
        (("detect", table, "--plot", tmp_path), f"{tmp_path}: is a folder; wanted the name of a file."),
        (("bench", "soak", "--json", tmp_path), f"{tmp_path}: is a folder; wanted the name of a file."),
        (("forecast", table, "-n", "9" * 19, "-q", "--model", tmp_path / "f"), "fit: 2 rows; wanted about"),
    ):
        run(*words, code=1)
        assert run.err.startswith(f"ssmn: {said}")
        assert len(run.err.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no config\.json"):
        main(["generate", "x", "--model", str(tmp_path), "--debug"])


def test_debug_after_two_dashes_belongs_to_the_verb(run: Runner, tmp_path: Path) -> None:
    run("generate", "--model", tmp_path, "--", "--debug", code=1)
    assert "no config.json" in run.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\nlines"), 1, "ssmn: ValueError: two lines (--debug shows where)\n"),
        (OSError(28, "No space left on device"), 1, "ssmn: [Errno 28] No space left on device\n"),
        (
            FileNotFoundError(2, "No such file or directory", "notes.txt"),
            1,
            "ssmn: notes.txt: no such file or directory; check the name and the folder.\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_becomes_of_other_errors(
    run: Runner, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(command=command))
    run("doctor", code=code)
    assert run.err == line


def table(out: str, separator: str = "\t") -> list[list[str]]:
    return [line.split(separator) for line in out.splitlines()]


def test_stream_gives_surprise_per_line(run: Runner, text_folder: Path) -> None:
    head, *lines = table(run("stream", "--model", text_folder, stdin=TEXT))
    assert head == ["line", "bytes", "bits", "bits_per_byte", "text"]
    assert [(line[0], line[1], line[4]) for line in lines] == [
        ("1", "15", "The first line"),
        ("2", "15", "the second one"),
        ("3", "15", "The first line"),
    ]
    records = [json.loads(line) for line in run("stream", "--model", text_folder, "--jsonl", stdin=TEXT).splitlines()]
    assert [str(record["bits"]) for record in records] == [line[2] for line in lines]


def test_stream_escapes_what_would_break_the_table(run: Runner, text_folder: Path) -> None:
    _, line = table(run("stream", "--model", text_folder, stdin="a\tb\\c\r\n"))
    assert line[4] == "a\\tb\\\\c\\r"


def test_stream_gives_surprise_per_byte(run: Runner, text_folder: Path) -> None:
    head, *rows = table(run("stream", "--model", text_folder, "--per", "byte", stdin="né\n"))
    assert head == ["offset", "byte", "bits"]
    assert [row[:2] for row in rows] == [["0", "110"], ["1", "195"], ["2", "169"], ["3", "10"]]


def test_rows_with_times_decay_by_them(run: Runner, row_folder: Path) -> None:
    hourly = "load,day,heat\n" + "".join(f"{n % 3},2024-05-01T{n:02d}:00Z,{n % 5}\n" for n in range(20))
    clock = ("stream", "--model", row_folder, "--time", "day", "--step", "3600")
    plain = run("stream", "--model", row_folder, "--columns", "load,heat", stdin=hourly)
    assert run(*clock, stdin=hourly) == plain
    later = hourly.replace("T19", "T23")
    assert run(*clock, stdin=later).splitlines()[:-1] == plain.splitlines()[:-1]
    assert run(*clock, stdin=later).splitlines()[-1] != plain.splitlines()[-1]
    assert run(*clock, stdin=hourly.replace("T19", "T03")).splitlines() == plain.splitlines()[:-1]
    assert "line 21: column day is '2024-05-01T03:00Z', which lies before the row before" in run.err
    for wrong in ("9999-12-31", "9" * 20, "soon", ""):
        assert run(*clock, stdin=hourly.replace("2024-05-01T19:00Z", wrong)).splitlines() == plain.splitlines()[:-1]
        assert run.err == f"left out 1 bad rows: line 21: column day is {wrong!r}; wanted a time.\n"


def test_stream_goes_on_from_its_state(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    whole = [float(row[2]) for row in table(run("stream", "--model", text_folder, stdin=TEXT))[1:]]
    state = tmp_path / "log.safetensors"
    parts = []
    for line in TEXT.splitlines(keepends=True):
        parts += [
            float(row[2]) for row in table(run("stream", "--model", text_folder, "--state", state, stdin=line))[1:]
        ]
    np.testing.assert_allclose(parts, whole, atol=0.002)
    assert StreamState.load(state).position.item() == len(TEXT)


def test_frozen_and_plastic_streams_differ(run: Runner, text_folder: Path) -> None:
    words = ("stream", "--model", text_folder)
    outs = {
        options: run(*words, *options, stdin=TEXT * 3)
        for options in [
            (),
            ("--frozen",),
            ("--eta", "0.1"),
            ("--eta-scale", "2"),
            ("--decay", "0.5"),
            ("--output-memory",),
        ]
    }
    assert len(set(outs.values())) == len(outs)
    run(*words, "--eta", "1.5", code=1)
    assert "plasticity_eta=1.5; wanted finite numbers in [0, 1]" in run.err


def test_a_state_that_could_not_be_saved_is_refused_at_once(
    run: Runner, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "missing"
    run("stream", "--model", text_folder, "--state", place / "s.safetensors", stdin=TEXT, code=1)
    assert run.out == "" and f"the folder {place} does not exist; make it first (mkdir -p {place})." in run.err
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    run("generate", "x", "--model", text_folder, "--state", tmp_path / "s.safetensors", code=1)
    assert run.out == "" and f"nothing can be written in {tmp_path}; choose another place." in run.err


def test_stream_predicts_rows(run: Runner, row_folder: Path) -> None:
    rows = table(run("stream", "--model", row_folder, stdin="load,heat\n0.5,1\n0.25,2\n"), ",")
    assert rows[0] == ["line", "next_load", "next_heat"]
    assert [row[0] for row in rows[1:]] == ["2", "3"]
    chosen = run("stream", "--model", row_folder, "--columns", "load, heat", stdin="day,heat,load\nx,1,0.5\ny,2,0.25\n")
    assert table(chosen, ",") == rows


def test_a_bad_row_is_named_and_the_rest_is_kept(run: Runner, row_folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "rows.safetensors"
    run("stream", "--model", row_folder, "--state", state, "--strict", stdin="1,2\n3,4\nnan,1\n", code=1)
    assert run.err.startswith("ssmn: line 3: column 1 is nan; wanted a finite number")
    assert len(run.out.splitlines()) == 3
    assert StreamState.load(state).position.item() == 2


def test_bad_rows_are_left_out_and_reported(run: Runner, row_folder: Path) -> None:
    out = run("stream", "--model", row_folder, stdin="1,2\nx,4\n3,4\n" + "5\n" * 7)
    assert [row[0] for row in table(out, ",")] == ["line", "1", "3"]
    assert run.err.startswith("left out 8 bad rows: line 2: column 1 is 'x'; wanted a number. line 4: 1 values;")
    assert run.err.endswith("; and 3 more\n")


def test_an_empty_row_of_a_model_with_gaps_has_no_answer(run: Runner, tmp_path: Path) -> None:
    config = SSMNConfig(input_dim=2, output_dim=2, hidden_dim=12, num_layers=2, num_heads=2, missing="mask")
    SSMN(config).save_pretrained(tmp_path)
    assert run("stream", "--model", tmp_path, stdin="1,2\n,\n").splitlines()[2] == "2,,"
    last = run("stream", "--model", tmp_path, "--jsonl", stdin="1,2\n,\n").splitlines()[1]
    assert json.loads(last) == {"line": 2, "next_1": None, "next_2": None}


def test_options_of_the_other_kind_are_refused(run: Runner, text_folder: Path, row_folder: Path) -> None:
    run("stream", "--model", text_folder, "--columns", "a", code=1)
    assert "--columns, --header, --time and --strict are for rows of numbers, but the model reads text" in run.err
    run("stream", "--model", row_folder, "--step", "60", stdin="1,2\n", code=1)
    assert "--step=60; wanted a positive number of seconds, together with --time" in run.err
    run("stream", "--model", row_folder, "--per", "byte", code=1)
    assert "--per is for text, but the model reads rows of numbers" in run.err
    run("generate", "x", "--model", row_folder, code=1)
    assert "holds a Standard model; wanted a text model" in run.err


def test_a_tokenizer_that_does_not_fit_is_refused(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    from ssmn.training import Tokenizer

    for file in text_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Tokenizer.train_bpe(["some some some text"], 260).save(tmp_path / "tokenizer.json")
    run("stream", "--model", tmp_path, code=1)
    assert "tokens, but the model has vocab_size=256; wanted the tokenizer that was saved with the model" in run.err


def stream_process(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ssmn", "stream", "--model", str(folder), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_live_stream_answers_at_once_and_ctrl_c_saves_it(text_folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "live.safetensors"
    with stream_process(text_folder, "--state", str(state)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"line\t")
        assert process.stdout.readline().startswith(b"1\t6\t")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert StreamState.load(state).position.item() == 6


def test_a_reader_that_leaves_ends_the_stream_quietly(text_folder: Path) -> None:
    with stream_process(text_folder) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"world\n")
        process.stdin.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


def test_generate_repeats_with_a_seed_and_remembers(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    words = ("generate", "Hello", "--model", text_folder, "-n", 12)
    assert run(*words, "--seed", 1) == run(*words, "--seed", 1) != run(*words, "--seed", 2)
    assert run(*words, "--seed", 1) == run(*words[:1], *words[2:], "--seed", 1, stdin="Hello")
    state = tmp_path / "monday.safetensors"
    for position in (17, 34):
        run(*words, "--state", state)
        assert StreamState.load(state).position.item() == position


def test_generate_stops_and_takes_turns_with_torch(run: Runner, text_folder: Path) -> None:
    words = ("generate", "Hello", "--model", text_folder, "-n", 12, "--seed", 1)
    whole = run(*words)
    assert run(*words, "--backend", "torch") == whole
    assert run(*words, "--stop", whole[3]) == whole[: whole.index(whole[3])] + "\n"
    assert run(*words, "--repetition-penalty", 5, "--min-p", 0.01) != whole


def test_generate_continues_every_line_of_a_file(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Hello\nWorld, and more\n")
    words = ("generate", "--model", text_folder, "-n", 6)
    records = [json.loads(line) for line in run(*words, "--batch", tmp_path / "prompts.txt", "--seed", 1).splitlines()]
    assert [record["prompt"] for record in records] == ["Hello", "World, and more"]
    assert [(record["tokens"], record["finish"]) for record in records] == [(6, "length")] * 2
    for seed, record in enumerate(records, start=1):
        assert run("generate", record["prompt"], *words[1:], "--seed", seed) == record["text"] + "\n"
    (tmp_path / "holes.txt").write_text("Hello\n\n")
    run(*words, "--batch", tmp_path / "holes.txt", code=1)
    assert "holes.txt: line 2 is empty; wanted a prompt on every line" in run.err
    run(*words, "Hello", "--batch", tmp_path / "prompts.txt", code=2)


def test_plasticity_is_said_alike_everywhere(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT * 3)
    choices = [("--plasticity", "long-term"), ("--eta", 0.05, "--decay", 0.0001), ("--plasticity", "short-term"), ()]
    rows = [json.loads(run("eval", text_folder, "--text", tmp_path / "t.txt", "--json", *words).splitlines()[0])
            for words in choices]  # fmt: skip
    figures = [row["bits_per_byte"] for row in rows]
    assert figures[0] == figures[1]
    assert len(set(figures)) == 3
    only = run("eval", text_folder, "--text", tmp_path / "t.txt", "--json", "--frozen").splitlines()
    assert [json.loads(line)["memory"] for line in only] == ["frozen"]
    streams = [run("stream", "--model", text_folder, *words, stdin=TEXT) for words in choices]
    assert streams[0] == streams[1] != streams[2]
    threshold = [run("stream", "--model", text_folder, *words, stdin=TEXT) for words in (("--write-threshold", 1), ())]
    assert threshold[0] != threshold[1]
    run("eval", "--config", "mqar", "--frozen", code=2)


def test_generate_wants_a_prompt(run: Runner, text_folder: Path) -> None:
    run("generate", "--model", text_folder, code=1)
    assert run.err == "ssmn: generate: the prompt is empty; give a text as argument or on standard input.\n"


def test_a_state_of_several_streams_is_refused(run: Runner, text_folder: Path, tmp_path: Path) -> None:
    from ssmn.models import load_model

    model = load_model(text_folder)
    state = tmp_path / "two.safetensors"
    model.init_state(2).save(state, model)
    run("stream", "--model", text_folder, "--state", state, code=1)
    assert f"{state}: holds 2 streams; wanted one" in run.err


def test_doctor_says_what_runs(run: Runner) -> None:
    out = run("doctor")
    for title in ("Versions", "Machine", "Native library", "Backends", "Extras", "Self-test"):
        assert title in out
    report = json.loads(run("doctor", "--json"))
    assert report["backends"]["float64"]["auto"] == "chunked"
    assert all(test["passed"] for test in report["self_test"])


def test_doctor_without_the_native_library(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = SimpleNamespace(
        available=False, reason="no compiler was found", path=None, version=None, instruction_set=None, compiler=None,
        kernels=None, runnable=(),
    )  # fmt: skip
    monkeypatch.setattr(ssmn.native, "status", lambda: absent)
    out = " ".join(run("doctor").split())
    assert "not in use: no compiler was found" in out
    assert "make setup" in out
    assert {test["backend"] for test in json.loads(run("doctor", "--json"))["self_test"]} == {"chunked"}


SMALL_TABLE = ("bench", "seed-table", "--n", 40, "--w", 8, "--repeats", 1, "--quick")


def test_bench_prints_a_table_and_keeps_the_record(run: Runner, tmp_path: Path) -> None:
    kept = tmp_path / "record.json"
    out = run(*SMALL_TABLE, "--json", kept)
    assert "1,600" in out
    assert "taking turns" in " ".join(out.split())
    record = json.loads(kept.read_text())
    assert record["settings"] == {"lengths": [40], "window": 8, "dtype": "float32", "repeats": 1}
    assert "GEMM float32" in out
    assert "read" in record["floors"]


def test_bench_compares_draws_and_writes_tables(run: Runner, tmp_path: Path) -> None:
    base, tables, drawing = (tmp_path / name for name in ("base.json", "tables.md", "plot.png"))
    run(*SMALL_TABLE, "--json", base)
    record = json.loads(base.read_text())
    for figure in record["results"]["figures"]:
        for name in ("median", "low", "high"):
            figure[name] /= 1e6
    base.write_text(json.dumps(record))
    out = run(*SMALL_TABLE, "--base", base, "--markdown", tables, "--plot", drawing)
    assert out.count("WORSE") == 4
    assert "| mixers of five layers, float32, n = 40 |" in tables.read_text()
    assert drawing.read_bytes().startswith(b"\x89PNG")
    run(*SMALL_TABLE, "--base", tables, code=1)
    assert "cannot be read as a record" in run.err


def test_bench_refuses_what_it_does_not_know(run: Runner) -> None:
    run("bench", "layers", "--mixer", "eye", "--quick", code=1)
    assert run.err == "ssmn: layers: mixers has 'eye'; wanted some of window, memory.\n"


def test_bench_soak_prints_what_it_saw(run: Runner) -> None:
    out = run("bench", "soak", "--tokens", 300)
    assert "all finite" in out
    assert "last tenth ÷ second" in out
