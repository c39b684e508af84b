"""`ssmn detect`: tables, standard input, bad rows, states, drawings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssmn.series import Detector
from test_cli import Runner, run  # noqa: F401 - the fixture

ROWS = 401


def lines(bad: dict[int, str] | None = None) -> list[str]:
    draw = np.random.default_rng(2)
    times = np.datetime64("2024-03-01T00:00:00") + np.arange(ROWS) * np.timedelta64(7, "m")
    load, heat = draw.standard_normal((2, ROWS)).round(4)
    load[300] = 40.0
    rows = [f"{time},{a},{b}" for time, a, b in zip(times, load.tolist(), heat.tolist(), strict=True)]
    for row, text in (bad or {}).items():
        rows[row] = text
    return ["when,load,heat", *rows]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "load.csv"
    path.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return path


def test_a_table_gets_scores_and_flags(run: Runner, table: Path) -> None:  # noqa: F811
    out = run("detect", table).splitlines()
    assert out[0] == "when,load,heat".join(["line,", ",score,flag,column"])
    assert len(out) == 1 + ROWS
    assert out[1].startswith("2,2024-03-01T00:00:00,")
    flagged = [line.split(",") for line in out[1:] if line.split(",")[-2] == "1"]
    assert flagged[-1][:3] == ["302", "2024-03-02T11:00:00", "40.0"]
    assert flagged[-1][-1] == "load"
    assert f"{ROWS} rows, {len(flagged)} flagged" in run.err
    only = run("detect", table, "--only-flags").splitlines()
    assert only[1:] == [line for line in out[1:] if line.split(",")[-2] == "1"]


def test_the_verb_says_what_the_library_says(run: Runner, table: Path) -> None:  # noqa: F811
    out = run("detect", table, "--columns", "heat,load", "--jsonl").splitlines()
    cells = np.genfromtxt(table, delimiter=",", skip_header=1, usecols=(2, 1))
    times = np.array([line.partition(",")[0] for line in lines()[1:]], "datetime64[ns]")
    found = Detector(2).push(cells, times)
    records = [json.loads(line) for line in out]
    assert [record["score"] for record in records] == found.scores.round(4).tolist()
    assert [record["flag"] for record in records] == found.flags.astype(int).tolist()
    assert list(records[0]) == ["line", "when", "heat", "load", "score", "flag", "column"]


def test_bad_rows_are_left_out_and_counted_unless_strict(run: Runner) -> None:  # noqa: F811
    text = "\n".join(lines({10: "2024-03-01T01:10:00,x,1", 12: "1,2"})) + "\n"
    out = run("detect", "-", stdin=text).splitlines()
    assert len(out) == 1 + ROWS - 2
    assert f"{ROWS - 2} rows" in run.err
    assert "2 bad rows left out; the first: line 12: column load is 'x'; wanted a number" in run.err
    run("detect", "-", "--strict", stdin=text, code=1)
    assert len(run.out.splitlines()) == 1 + 10
    assert run.err == "ssmn: line 12: column load is 'x'; wanted a number.\n"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_that_go_back_in_time_are_bad(run: Runner, tmp_path: Path, form: str) -> None:  # noqa: F811
    path, (head, *rows) = tmp_path / f"load.{form}", lines()
    rows[20], rows[21] = rows[21], rows[20]  # one row comes too late
    rows[30:30] = [rows[29]]  # the same time twice is no fault
    rows[200:] = ["2031" + row[4:] for row in rows[200:300]] + rows[300:]  # a clock that was wrong for a while
    if form == "csv":
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    else:
        pytest.importorskip("pyarrow", reason='the extra "timeseries" is not installed')
        from pyarrow import csv, parquet

        source = tmp_path / "load.csv"
        source.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        parquet.write_table(csv.read_csv(source), path)
    out = run("detect", path).splitlines()
    assert [line.split(",", 2)[1] for line in out[1:]] == [
        row.partition(",")[0] for number, row in enumerate(rows) if number not in (21, 300)
    ]
    first = 23 if form == "csv" else 22
    assert f"{ROWS - 1} rows, " in run.err
    assert (
        f"2 bad rows left out; the first: line {first}: column when is 2024-03-01T02:20:00, which lies before the row "
        "before; wanted rows in order of time: sort them"
    ) in run.err
    run("detect", path, "--strict", code=1)
    assert len(run.out.splitlines()) == 1 + 21
    assert run.err.startswith(
        f"ssmn: line {first}: column when is 2024-03-01T02:20:00, which lies before the row before"
    )


def test_empty_cells_are_no_values(run: Runner) -> None:  # noqa: F811
    record = json.loads(run("detect", "-", "--jsonl", stdin="a,b\n1,2\n,3\n").splitlines()[1])
    assert record["a"] is None and record["b"] == 3.0


def test_a_state_goes_on_later(run: Runner, table: Path, tmp_path: Path) -> None:  # noqa: F811
    whole = run("detect", table).splitlines()
    state = tmp_path / "load.safetensors"
    head, *rows = lines()
    first = run("detect", "-", "--state", state, stdin="\n".join([head, *rows[:250]])).splitlines()
    rest = run("detect", "-", "--state", state, stdin="\n".join([head, *rows[250:]])).splitlines()
    assert [line.split(",")[1:] for line in [*first, *rest[1:]]] == [line.split(",")[1:] for line in whole]
    run("detect", table, "--columns", "load", "--state", state, code=1)
    assert "watches 2 columns, but the input has 1; wanted the same ones" in run.err
    strict = run("detect", table, "--state", state, "--threshold", "1", "--refractory", "3")
    assert all(line.split(",")[-2] == "0" for line in strict.splitlines()[1:])
    assert Detector.load(state).config.threshold == 1.0


def test_the_drawing(run: Runner, table: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("matplotlib", reason='the extra "viz" is not installed')
    path = tmp_path / "load.png"
    run("detect", table, "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    run("detect", "-", "--plot", path, stdin="a\n", code=1)
    assert "there are no rows to draw" in run.err


def test_parquet(run: Runner, table: Path, tmp_path: Path) -> None:  # noqa: F811
    arrow = pytest.importorskip("pyarrow", reason='the extra "timeseries" is not installed')
    from pyarrow import csv, parquet

    path = tmp_path / "load.parquet"
    parquet.write_table(csv.read_csv(table), path)
    assert arrow
    same = [line.split(",")[1:] for line in run("detect", table).splitlines()]
    assert [line.split(",")[1:] for line in run("detect", path).splitlines()] == same


def test_refusals(run: Runner, tmp_path: Path) -> None:  # noqa: F811
    run("detect", tmp_path / "none.csv", code=1)
    assert "cannot be read (No such file or directory); wanted a CSV or Parquet file" in run.err
    run("detect", "-", "--threshold", "2", stdin="a\n1\n", code=1)
    assert "threshold=2.0; wanted a number above 0 and at most 1" in run.err
    run("detect", "-", "--columns", "b", stdin="a\n1\n", code=1)
    assert "-: line 1: there is no column 'b'" in run.err
    run("detect", "-", stdin="", code=1)
    assert "-: the input is empty; wanted a line of names and a row per time" in run.err
    assert run("detect", "-", stdin="a,b\n") == "" and "0 rows, 0 flagged" in run.err
