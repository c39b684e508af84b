"""Tables: CSV and Parquet files, times, gaps, and rows as they arrive."""

from __future__ import annotations

import builtins
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssmn.errors import FileError, MissingExtraError, RangeError
from ssmn.series import BadRow, Row, Table, read_table, rows_from
from ssmn.series.tables import describe_step, months_of, parse_time, season_of, times_after

HOURS = "date,load,heat,place\n2024-03-01 00:00,5,1.5,a\n2024-03-01 01:00:00,,2,b\n2024-03-01T02:00Z,7,NaN,c\n"


def written(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def times(*texts: str) -> np.ndarray:
    return np.array(texts, "datetime64[ns]")


def test_names_numbers_times_and_lines(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, HOURS))
    assert table.names == ("load", "heat") and table.time_name == "date"
    np.testing.assert_array_equal(table.values, [[5, 1.5], [math.nan, 2], [7, math.nan]])
    assert table.times is not None
    np.testing.assert_array_equal(table.times, times("2024-03-01T00", "2024-03-01T01", "2024-03-01T02"))
    assert table.lines.tolist() == [2, 3, 4] and len(table) == 3
    assert table.season == 24 and table.step == np.timedelta64(1, "h") and table.gaps() == []


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("1,2\n3,4\n", ("1", "2"), [[1, 2], [3, 4]]),
        ("a;b\n1;2\n\n3;4", ("a", "b"), [[1, 2], [3, 4]]),
        ("a\tb\r\n1\t2\r\n", ("a", "b"), [[1, 2]]),
        ("\ufeffa\n1\n2\n", ("a",), [[1], [2]]),
        (",a\n0,5\n1,6\n", ("", "a"), [[0, 5], [1, 6]]),
        ('"a, b",c\n"1",2\n', ("a, b", "c"), [[1, 2]]),
        ('\ufeff"a";"b"\n1,5;-2e3\n,25;3.5\n', ("a", "b"), [[1.5, -2000], [0.25, 3.5]]),
        ("1,5;2\n", ("1", "2"), [[1.5, 2]]),  # as many commas as semicolons
        ("a,b,\n1,,\n2,3,\n", ("a", "b"), [[1, math.nan], [2, 3]]),
        ("a,b\n", (), np.empty((0, 0))),
        ("", (), np.empty((0, 0))),
    ],
)
def test_kinds_of_csv(tmp_path: Path, text: str, names: tuple[str, ...], values: Any) -> None:
    table = read_table(written(tmp_path, text))
    if text.startswith("a,b\n") and len(text) == 4:
        assert table.names == ("a", "b") and table.values.shape == (0, 2)
        return
    assert table.names == names
    np.testing.assert_array_equal(table.values, values)
    assert table.times is None and table.step is None and table.season == 1


def test_columns_are_chosen_by_name_or_number(tmp_path: Path) -> None:
    path = written(tmp_path, "b,t,a\n1,60,3\n4,120,6\n")
    table = read_table(path, columns=["a", "1"], time="t")
    assert table.names == ("a", "b")
    np.testing.assert_array_equal(table.values, [[3, 1], [6, 4]])
    assert table.step == np.timedelta64(60, "s")
    np.testing.assert_array_equal(table.column("b"), [1, 4])
    assert table.select(["b"]).names == ("b",) and table[1:].lines.tolist() == [3]
    with pytest.raises(RangeError, match="there is no column 'c'; wanted some of a, b"):
        table.column("c")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n3,x\n", {}, r"t\.csv: line 3: column b is 'x'; wanted a number"),
        ("a,b\n1,2\n3\n", {}, "line 3: 1 cells; wanted 2"),
        ("a,b\n1,2\n3,inf\n", {}, "line 3: column b is inf; wanted a finite number"),
        ("d,b\n2024-01-01,2\nsoon,3\n", {}, "line 3: column d is 'soon'; wanted a date"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "line 1: there is no column 'c'; wanted some of a, b"),
        ("a,b\n1,2\n", {"time": "c"}, "line 1: there is no column 'c'"),
        ("a,a\n1,2\n", {}, "line 1: two columns are named 'a'"),
        ("a,b\nx,y\n", {}, r"there is no column of numbers among a, b \(this row: x \| y\)"),
        ("a,b\n5 %,7 %\n", {}, r"\(this row: 5 % \| 7 %\); wanted at least one, the cells separated by commas"),
        ("a\rb\r1", {}, "line 1: .*wanted comma-separated numbers"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "line 1: byte 1 is not UTF-8"),
        ("", {"columns": ["a"]}, "the input is empty; wanted a line of names"),
        (b"a,b\n1,2\n\xff,3\n", {}, "line 3: byte 1 is not UTF-8"),
        (b"a,b\n1,2\n" + b"1" * 70_000 + b",2\n", {}, "line 3: longer than 65,536 bytes"),
        ('a,b\n1,2\n"3"x,4\n', {}, "line 3: .*wanted comma-separated numbers"),
    ],
)
def test_errors_have_the_line(tmp_path: Path, text: str | bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        read_table(written(tmp_path, text), **options)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is no file; wanted a CSV or Parquet file"):
        read_table(tmp_path / "none.csv")


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason='the extra "timeseries" is not installed')
    from pyarrow import parquet

    moments = times("2024-03-01T00", "2024-03-01T01", "2024-03-01T02")
    content = pa.table({"at": moments, "load": [5, None, 7], "heat": [1.5, 2.0, math.nan], "place": ["a", "b", "c"]})
    path = tmp_path / "t.parquet"
    parquet.write_table(content, path)
    table, other = read_table(path), read_table(written(tmp_path, HOURS))
    assert table.names == other.names and table.time_name == "at" and table.lines.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(table.values, other.values)
    assert table.times is not None
    np.testing.assert_array_equal(table.times, moments)
    assert read_table(path, columns=["heat"]).names == ("heat",)
    with pytest.raises(FileError, match="column place is of type string; wanted numbers"):
        read_table(path, columns=["place"])
    with pytest.raises(FileError, match=r"broken\.parquet: cannot be read as Parquet"):
        read_table(written(tmp_path, "no", "broken.parquet"))


def test_parquet_with_dates_as_text_and_numbers_beyond_floats(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason='the extra "timeseries" is not installed')
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(
        pa.table({"place": ["a", "b"], "at": ["2024-03-01 00:00", "2024-03-01"], "n": [2**62 + 1, 3]}), path
    )
    table = read_table(path)
    assert table.time_name == "at" and table.names == ("n",) and table.values[:, 0].tolist() == [2.0**62, 3.0]
    assert table.times is not None
    np.testing.assert_array_equal(table.times, times("2024-03-01", "2024-03-01"))
    parquet.write_table(pa.table({"at": pa.array([], pa.string()), "n": pa.array([], pa.float64())}), path)
    assert len(read_table(path)) == 0


def test_parquet_without_pyarrow_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(MissingExtraError, match=r'pip install "sparse-stream\[timeseries\]"'):
        read_table(written(tmp_path, "", "t.parquet"))


def test_gaps_become_rows_of_nan() -> None:
    table = rows_from(io.BytesIO(b"d,x\n2024-01-01,1\n2024-01-02,2\n2024-01-05,5\n2024-01-06,6\n")).table()
    assert table.gaps() == [(2, 2)]
    assert table.elapsed().tolist() == [1, 1, 3, 1]
    whole = table.regular()
    assert whole.lines.tolist() == [2, 3, 0, 0, 4, 5]
    np.testing.assert_array_equal(whole.values[:, 0], [1, 2, math.nan, math.nan, 5, 6])
    assert whole.times is not None
    np.testing.assert_array_equal(whole.times, np.arange("2024-01-01", "2024-01-07", dtype="datetime64[D]"))
    assert whole.gaps() == [] and whole.regular() is whole


def test_a_grid_beyond_memory_is_refused() -> None:
    table = rows_from(io.BytesIO(b"t,x\n1970-01-01 00:00:00,1\n1970-01-01 00:00:01,2\n2024-01-05,5\n")).table()
    with pytest.raises(FileError, match=r"line 4: .* rows are missing by the usual step of 1 s"):
        table.regular()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("2024-01-01", "is of 2024-01-01T00:00:00, and the one before is not earlier; wanted rows in order of time"),
        ("2023-12-31", "is of 2023-12-31T00:00:00, and the one before is not earlier"),
        ("", "has no time; wanted one: fill it in or drop the row"),
    ],
)
def test_times_must_rise(second: str, message: str) -> None:
    table = rows_from(io.BytesIO(f"d,x\n2024-01-01,1\n{second},2\n".encode())).table()
    with pytest.raises(FileError, match=f"line 3: the row {message}"):
        table.regular()


@pytest.mark.parametrize(
    ("known", "next_one", "months", "season"),
    [
        (["2024-01-01", "2024-02-01", "2024-03-01"], "2024-04-01", 1, 12),
        (["2023-06-30", "2023-09-30", "2023-12-31"], "2024-03-31", 3, 4),
        (["2024-01-01T00:00", "2024-01-01T00:05", "2024-01-01T00:10"], "2024-01-01T00:15", None, 288),
        (["2024-01-01", "2024-01-02", "2024-01-03"], "2024-01-04", None, 7),
        (["2024-01-01", "2024-01-08", "2024-01-15"], "2024-01-22", None, 52),
        (["2021-01-01", "2022-01-01", "2023-01-01"], "2024-01-01", 12, 1),
    ],
)
def test_calendar_of_steps(known: list[str], next_one: str, months: int | None, season: int) -> None:
    moments = times(*known)
    assert months_of(moments) == months
    np.testing.assert_array_equal(times_after(moments, 1), times(next_one))
    table = Table(("x",), np.zeros((3, 1)), moments, np.arange(1, 4))
    assert table.season == season and table.gaps() == [] and table.elapsed().tolist() == [1, 1, 1]


def test_step_of_too_few_times() -> None:
    with pytest.raises(RangeError, match="times_after: 1 times; wanted at least 2"):
        times_after(times("2024-01-01"), 3)
    assert season_of(None) == 1 and season_of(np.timedelta64(0, "ns")) == 1
    assert [describe_step(np.timedelta64(n, "s")) for n in (90, 5400, 86400, 2)] == ["1.5 min", "1.5 h", "1 d", "2 s"]


def test_parsed_times() -> None:
    assert parse_time("2024/3/5 06:00") == np.datetime64("2024-03-05T06", "ns")
    assert parse_time("0.5") == np.datetime64(500, "ms")
    assert np.isnat(parse_time(" "))
    assert parse_time("2261-12") == np.datetime64("2261-12-01", "ns")
    assert parse_time("1678-01-01T00:00+05:00") == np.datetime64("1677-12-31T19", "ns")


@pytest.mark.parametrize("cell", ["9999-12-31", "9999-12", "1677-12-31 23:59", "0001-01-01T00:00+05:00", "9" * 20])
def test_times_that_nanoseconds_do_not_reach(cell: str) -> None:
    with pytest.raises(ValueError, match=r"is not from 1678 to 2261|do not fit into 64 bits of nanoseconds"):
        parse_time(cell)
    bad: list[BadRow] = []
    rows = rows_from(io.BytesIO(f"d,x\n2024-01-01,1\n{cell},2\n2024-01-03,3\n".encode()), on_bad=bad.append)
    assert [row.values for row in rows] == [(1.0,), (3.0,)]
    assert bad == [BadRow(3, f"column d is {cell!r}; wanted a date such as 2016-07-01 05:00")]


class Drip:
    """Gives a few bytes at a time and remembers how many it gave."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self.given = data, size, 0

    def read1(self, size: int, /) -> bytes:
        chunk = self._data[self.given : self.given + min(size, self._size)]
        self.given += len(chunk)
        return chunk


def test_rows_come_as_they_arrive() -> None:
    source = Drip(HOURS.encode(), 5)
    rows = rows_from(source)
    assert not rows.waiting  # the first row of data had to be read to see which columns are numbers
    assert next(rows) == Row(2, np.datetime64("2024-03-01T00", "ns"), (5.0, 1.5))
    assert rows.waiting and source.given < HOURS.index("2024-03-01 01") + 5
    assert [row.line for row in rows] == [3, 4]


def test_bad_rows_are_told_and_left_out() -> None:
    bad: list[BadRow] = []
    text = b'a,b\n1,2\nx,2\n1,2,3\n\xff,2\n"3"x,1\n' + b"9" * 70_000 + b"\n5,6\n"
    rows = rows_from(io.BytesIO(text), on_bad=bad.append)
    assert [row.values for row in rows] == [(1, 2), (5, 6)]
    assert [row.line for row in bad] == [3, 4, 5, 6, 7]
    assert bad[0].reason == "column a is 'x'; wanted a number"
