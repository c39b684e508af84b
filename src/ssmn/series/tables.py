"""Tables of numbers with times: CSV and Parquet files, and rows as they arrive on standard input.

An empty cell is NaN, a malformed one an error with the number of its line. The column of times is found by its
content: dates in the ISO form, such as `2016-07-01 05:00:00`, `2016-07-01T05:00Z` or `2016-07`.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmn.errors import FileError, MissingExtraError, RangeError
from ssmn.streaming import READ_BYTES, ByteSource, Lines

if TYPE_CHECKING:
    import pyarrow

Times = NDArray[np.datetime64]

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Cells that stand for no value, in any case of letters."""

_DATE = re.compile(r"\d{4}[-/]\d{1,2}([-/]\d{1,2}([T ]\d.*)?)?")
_NOT_A_TIME = np.datetime64("NaT", "ns")
_YEARS = (1678, 2261)
"""The first and the last whole year that 64 bits of nanoseconds since 1970 reach."""
_LARGEST_GRID = 50_000_000
"""Cells that `regular` makes at most."""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of numbers, a row per step.

    Attributes:
        names: Names of the C columns.
        values: [N, C] float64; NaN where a cell is empty.
        times: [N] datetime64[ns] (in UTC where the file names a zone), or None.
        lines: [N] int64, the line of the file that each row came from, from 1; of a Parquet file the row; 0 for a
            row that was put in to fill a gap.
        time_name: Name of the column of times.

    Example:
        >>> import io
        >>> from ssmn.series import rows_from
        >>> table = rows_from(io.BytesIO(b"date,x\\n2024-01-01,1\\n2024-01-02,\\n2024-01-04,3")).table()
        >>> table.names, table.values[:, 0].tolist(), table.step, table.gaps()
        (('x',), [1.0, nan, 3.0], np.timedelta64(86400000000000,'ns'), [(2, 1)])
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    times: Times | None
    lines: NDArray[np.int64]
    time_name: str | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Table:
        """Some of the rows."""
        times = None if self.times is None else self.times[rows]
        return dataclasses.replace(self, values=self.values[rows], times=times, lines=self.lines[rows])

    def column(self, name: str) -> NDArray[np.float64]:
        """[N], one column.

        Raises:
            RangeError: There is none of that name.
        """
        return self.select([name]).values[:, 0]

    def select(self, names: Sequence[str]) -> Table:
        """The table with some of its columns, in the order given.

        Raises:
            RangeError: There is none of a name.
        """
        indices = [_index(name, self.names, "table") for name in names]
        return dataclasses.replace(self, names=tuple(names), values=self.values[:, indices])

    @property
    def step(self) -> np.timedelta64 | None:
        """The usual time from one row to the next, the median; None without times or with fewer than two rows."""
        if self.times is None or len(self) < 2:
            return None
        return _usual(np.diff(self.times))

    @property
    def season(self) -> int:
        """Rows of the season that the usual step suggests: a day, a week of days, a year of months or quarters.

        1 if it suggests none, or if there are no times.
        """
        return season_of(self.step)

    def gaps(self) -> list[tuple[int, int]]:
        """Where rows are missing: (number of the row after the gap, rows missing), by the usual step."""
        step = self.step
        if step is None or self.times is None or months_of(self.times) is not None:
            return []
        missing = np.rint(np.diff(self.times) / max(step, np.timedelta64(1, "ns"))).astype(np.int64) - 1
        return [(int(row) + 1, int(missing[row])) for row in np.flatnonzero(missing > 0)]

    def elapsed(self) -> NDArray[np.float64]:
        """[N], the time since the row before in usual steps; 1 for the first row and without times."""
        ones = np.ones(len(self))
        step = self.step
        if step is None or self.times is None or months_of(self.times) is not None or step <= np.timedelta64(0, "ns"):
            return ones
        ones[1:] = np.diff(self.times) / step
        return ones

    def regular(self) -> Table:
        """The table with a row of NaN for each that is missing, so that rows are equally far apart.

        Raises:
            FileError: Times do not rise, or the gaps are so wide that the table would not fit into memory.
        """
        self.require_rising()
        gaps = self.gaps()
        if not gaps:
            return self
        length = len(self) + sum(missing for _, missing in gaps)
        if length * (self.values.shape[1] + 2) > _LARGEST_GRID:
            raise FileError(
                f"line {self.lines[gaps[0][0]]}: {length - len(self):,} rows are missing by the usual step of "
                f"{describe_step(self.step)}; wanted rows about equally far apart: split the table at its gaps."
            )
        places = np.arange(len(self))
        for row, missing in gaps:
            places[row:] += missing
        values = np.full((length, self.values.shape[1]), math.nan)
        lines = np.zeros(length, np.int64)
        values[places], lines[places] = self.values, self.lines
        assert self.times is not None and self.step is not None
        before = np.maximum.accumulate(np.where(lines > 0, np.arange(length), 0))
        source = np.zeros(length, np.int64)
        source[places] = np.arange(len(self))
        times = self.times[source[before]] + (np.arange(length) - before) * self.step
        return dataclasses.replace(self, values=values, times=times, lines=lines)

    def require_rising(self) -> None:
        """Raises a FileError with the line if a time is not after the one before it, or is missing."""
        if self.times is None:
            return
        wrong = np.isnat(self.times)
        wrong[1:] |= ~(self.times[1:] > self.times[:-1])
        if wrong.any():
            row = int(wrong.argmax())
            if np.isnat(self.times[row]):
                raise FileError(f"line {self.lines[row]}: the row has no time; wanted one: fill it in or drop the row.")
            came = self.times[row].astype("datetime64[s]")
            raise FileError(
                f"line {self.lines[row]}: the row is of {came}, and the one before is not earlier; wanted rows in "
                "order of time, each time once: sort the table and drop repeated rows."
            )


@dataclass(frozen=True)
class Row:
    """One row as it arrived.

    Attributes:
        line: Number of its line, from 1.
        time: Its time, or None if there is no such column.
        values: Its numbers; NaN where a cell was empty.
    """

    line: int
    time: np.datetime64 | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read.

    Attributes:
        line: Number of its line, from 1.
        reason: What is wrong with it.
    """

    line: int
    reason: str


def read_table(path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, time: str | None = None) -> Table:
    """Reads a CSV file (separated by comma, semicolon or tab) or a Parquet file (`.parquet`, `.pq`).

    Args:
        path: The file. CSV is UTF-8; the first line holds the names, or numbers if there are no names. Between
            semicolons, numbers may have a decimal comma.
        columns: Names (or numbers from 1) of the columns to take; None = all that hold numbers in the first row.
        time: Name (or number) of the column of times; None = the first one whose first cell is a date.

    Raises:
        FileError: There is no such file or column, or a cell is no number, no date, or infinite: with its line.
        MissingExtraError: A Parquet file, and pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from ssmn.series import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "load.csv"
        ...     _ = path.write_text("date,load,heat\\n2024-01-01 00:00,5,1.5\\n2024-01-01 01:00,,2\\n")
        ...     table = read_table(path)
        >>> table.names, table.values.tolist(), table.lines.tolist()
        (('load', 'heat'), [[5.0, 1.5], [nan, 2.0]], [2, 3])
    """
    file = Path(path)
    if not file.is_file():
        raise FileError(f"read_table: {file} is no file; wanted a CSV or Parquet file.")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return _read_parquet(file, columns, time)
        with file.open("rb") as source:
            return TableRows(source, columns=columns, time=time).table()
    except OSError as error:
        raise FileError(f"read_table: {file} cannot be read ({error.strerror or error}).") from error
    except FileError as error:
        raise FileError(f"{file}: {error}") from error


def rows_from(
    source: ByteSource,
    *,
    columns: Sequence[str] | None = None,
    time: str | None = None,
    on_bad: Callable[[BadRow], None] | None = None,
) -> TableRows:
    """The rows of comma-separated text as they arrive, in constant memory.

    Args:
        source: UTF-8 text, such as `sys.stdin.buffer`; read until it ends.
        columns: Names (or numbers from 1) of the columns to take; None = all that hold numbers in the first row.
        time: Name (or number) of the column of times; None = the first one whose first cell is a date.
        on_bad: Called with each row that cannot be read, which is then left out; None = such a row is an error.

    Returns:
        An iterator of `Row`, with `names`, `time_name` and `waiting`.

    Raises:
        FileError: A column is missing; or, from the iterator, a row is bad and `on_bad` is None.

    Example:
        >>> import io
        >>> from ssmn.series import rows_from
        >>> bad = []
        >>> rows = rows_from(io.BytesIO(b"a,b\\n1,2\\n3,x\\n5,\\n"), on_bad=bad.append)
        >>> [row.values for row in rows], bad
        ([(1.0, 2.0), (5.0, nan)], [BadRow(line=3, reason="column b is 'x'; wanted a number")])
    """
    return TableRows(source, columns=columns, time=time, on_bad=on_bad)


class TableRows:
    """What `rows_from` returns: an iterator of `Row`."""

    def __init__(
        self,
        source: ByteSource,
        *,
        columns: Sequence[str] | None = None,
        time: str | None = None,
        on_bad: Callable[[BadRow], None] | None = None,
    ) -> None:
        self._lines = Lines(source)
        self._on_bad = on_bad
        self._line = 0
        self._undecoded = ""
        text = self._text()
        first = next(text, "")
        self._waiting_rows: list[tuple[int, list[str]]] = []
        delimiter = max(";,\t", key=first.count)
        self._rows = csv.reader(_chain(first, text), delimiter=delimiter, strict=True)
        self._has_decimal_commas = delimiter == ";"
        head = self._head()
        names = [cell.strip() for cell in head or []]
        has_names = not any(self._is_value(cell) for cell in names)
        if head is not None and not has_names:
            self._waiting_rows.append((self._line, head))
            names = [str(number) for number in range(1, len(names) + 1)]
        sample = head if head is not None and not has_names else self._peek()
        self._width = len(names)
        self._choose(names, sample or [], columns, time)

    def _choose(self, names: list[str], sample: list[str], columns: Sequence[str] | None, time: str | None) -> None:
        """Which columns are taken, judged by the first row of data."""
        if not names and (columns is not None or time is not None):
            raise FileError("the input is empty; wanted a line of names.")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise FileError(f"line 1: two columns are named {repeated[0]!r}; wanted a name for each.")
        cells = dict(zip(range(len(names)), sample, strict=False))
        if time is not None:
            self._time: int | None = _index(time, names, "line 1")
        else:
            dates = (number for number, cell in cells.items() if _DATE.fullmatch(cell.strip()))
            self._time = next(dates, None)
        if columns is None:
            taken = [
                i for i, name in enumerate(names)
                if i != self._time and self._may_be_number(cells.get(i, "")) and (name or cells.get(i, "").strip())
            ]  # fmt: skip
        else:
            taken = [_index(name, names, "line 1") for name in columns]
        self._taken = taken
        self.names = tuple(names[number] for number in taken)
        """Names of the columns taken; "1", "2", ... if the input has none."""
        self.time_name = None if self._time is None else names[self._time]
        """Name of the column of times, or None."""
        if names and sample and not taken:
            raise FileError(
                f"line {self._line}: there is no column of numbers among {', '.join(names)} (this row: "
                f"{' | '.join(sample)[:80]}); wanted at least one, the cells separated by commas, semicolons or tabs."
            )

    @property
    def line(self) -> int:
        """Number of the line that was read last, from 1."""
        return self._line

    @property
    def waiting(self) -> bool:
        """Whether the next row would have to be waited for."""
        return not self._waiting_rows and self._lines.waiting

    def table(self) -> Table:
        """All rows that are left, as a table."""
        lines, times, values = [], [], []
        for row in self:
            lines.append(row.line)
            times.append(row.time)
            values.append(row.values)
        return Table(
            self.names,
            np.array(values, np.float64).reshape(len(values), len(self.names)),
            None if self._time is None else np.array(times, "datetime64[ns]"),
            np.array(lines, np.int64),
            self.time_name,
        )

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        while True:
            try:
                if self._waiting_rows:
                    line, cells = self._waiting_rows.pop(0)
                else:
                    found = self._next_cells()
                    if found is None:
                        raise StopIteration
                    line, cells = self._line, found
                return self._row(line, cells)
            except _Bad as bad:
                if self._on_bad is None:
                    raise FileError(f"line {bad.line}: {bad.reason}.") from None
                self._on_bad(BadRow(bad.line, bad.reason))

    def _head(self) -> list[str] | None:
        """The first line's cells."""
        try:
            return self._next_cells()
        except _Bad as bad:
            raise FileError(f"line {bad.line}: {bad.reason}.") from None

    def _peek(self) -> list[str] | None:
        """The first row of data that can be split into cells; it stays to be read."""
        while True:
            try:
                cells = self._next_cells()
            except _Bad as bad:
                if self._on_bad is None:
                    raise FileError(f"line {bad.line}: {bad.reason}.") from None
                self._on_bad(BadRow(bad.line, bad.reason))
                continue
            if cells is not None:
                self._waiting_rows.append((self._line, cells))
            return cells

    def _next_cells(self) -> list[str] | None:
        """The next row that is not empty; None at the end."""
        if self._line > 1:
            self._undecoded = ""  # but what was wrong with the first line, which is read ahead, is still to be told
        try:
            row = next(self._rows, None)
            while row is not None and not any(cell.strip() for cell in row) and len(row) <= 1:
                row = next(self._rows, None)
        except csv.Error as error:
            raise _Bad(self._line, f"{error}; wanted comma-separated numbers") from error
        if self._undecoded:
            raise _Bad(self._line, self._undecoded)
        return row

    def _text(self) -> Iterator[str]:
        for raw in self._lines:
            self._line += 1
            if len(raw) >= READ_BYTES:
                # Told by the reader of the row, since an error here would end the iterator.
                self._undecoded = f"longer than {READ_BYTES:,} bytes; wanted a row of numbers"
                while not raw.endswith(b"\n"):
                    raw = next(self._lines, b"\n")
                yield "?\n"
                continue
            try:
                yield raw.decode("utf-8-sig" if self._line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                self._undecoded = f"byte {error.start + 1} is not UTF-8; wanted comma-separated text"
                yield "?\n"

    def _row(self, line: int, cells: list[str]) -> Row:
        if len(cells) != self._width:
            raise _Bad(line, f"{len(cells)} cells; wanted {self._width}, as in the first line")
        try:
            time = None if self._time is None else parse_time(cells[self._time])
        except ValueError:
            raise _Bad(
                line,
                f"column {self.time_name} is {cells[self._time or 0][:40]!r}; wanted a date such as 2016-07-01 05:00",
            ) from None
        values = tuple(self._number(line, cells[i], name) for i, name in zip(self._taken, self.names, strict=True))
        return Row(line, time, values)

    def _is_value(self, cell: str) -> bool:
        """Whether a cell is data rather than a column's name, which may be empty."""
        return bool(cell) and (self._may_be_number(cell) or _DATE.fullmatch(cell) is not None)

    def _may_be_number(self, cell: str) -> bool:
        try:
            self._number(0, cell, "")
        except _Bad as bad:
            return bad.is_infinite
        return True

    def _number(self, line: int, cell: str, name: str) -> float:
        try:
            value = float(cell.replace(",", ".") if self._has_decimal_commas else cell)
        except ValueError:
            if cell.strip().lower() in MISSING:
                return math.nan
            raise _Bad(line, f"column {name} is {cell[:40]!r}; wanted a number") from None
        if math.isinf(value):
            came = cell.strip()[:40]
            raise _Bad(line, f"column {name} is {came}; wanted a finite number, or an empty cell", is_infinite=True)
        return value


class _Bad(Exception):  # noqa: N818 - told as a FileError or to `on_bad`
    def __init__(self, line: int, reason: str, is_infinite: bool = False) -> None:
        super().__init__(reason)
        self.line, self.reason, self.is_infinite = line, reason, is_infinite


def parse_time(cell: str) -> np.datetime64:
    """A cell's time: an ISO date, or a number of seconds since 1970; NaT if it is empty.

    Raises:
        ValueError: It is neither, or of a year before 1678 or after 2261, which nanoseconds do not reach.

    Example:
        >>> from ssmn.series.tables import parse_time
        >>> str(parse_time("2016-07-01T05:00+02:00")), str(parse_time("1949-02")), str(parse_time("86400"))
        ('2016-07-01T03:00:00.000000000', '1949-02-01T00:00:00.000000000', '1970-01-02T00:00:00.000000000')
    """
    text = cell.strip().replace("/", "-")
    if text.lower() in MISSING:
        return _NOT_A_TIME
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        seconds = float(text)
        if abs(seconds) >= 2**63 / 1e9:
            raise ValueError(f"{text} seconds do not fit into 64 bits of nanoseconds")
        return np.datetime64(round(seconds * 1e9), "ns")
    if parts := re.fullmatch(r"(\d{4})-(\d{1,2})(?:-(\d{1,2})(.*))?", text):
        text = f"{parts[1]}-{int(parts[2]):02d}-{int(parts[3] or 1):02d}{parts[4] or ''}"
    moment = datetime.fromisoformat(text)
    if not _YEARS[0] <= moment.year <= _YEARS[1]:  # numpy would wrap others around in silence
        raise ValueError(f"year {moment.year} is not from {_YEARS[0]} to {_YEARS[1]}")
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "ns")


def months_of(times: Times) -> int | None:
    """How many months lie between two rows, if always the same number of whole months; else None.

    Example:
        >>> import numpy as np
        >>> from ssmn.series.tables import months_of
        >>> months_of(np.array(["2024-01-31", "2024-02-29", "2024-03-31"], "datetime64[ns]"))
        1
    """
    if len(times) < 2 or np.isnat(times).any():
        return None
    months = times.astype("datetime64[M]")
    apart = np.diff(months.astype(np.int64))
    within = times - months.astype("datetime64[ns]")
    from_end = (months + 1).astype("datetime64[ns]") - times
    if (
        apart[0] < 1
        or (apart != apart[0]).any()
        or not ((within == within[0]).all() or (from_end == from_end[0]).all())
    ):
        return None
    return int(apart[0])


def times_after(times: Times, count: int) -> Times:
    """The times of the `count` rows that would follow: by whole months if the rows are months apart, else by the step.

    Args:
        times: [N ≥ 2] datetime64[ns], rising.
        count: How many.

    Raises:
        RangeError: There are fewer than two times to tell the step from.

    Example:
        >>> import numpy as np
        >>> from ssmn.series.tables import times_after
        >>> [str(t)[:10] for t in times_after(np.array(["2024-01-31", "2024-02-29"], "datetime64[ns]"), 2)]
        ['2024-03-31', '2024-04-30']
    """
    if len(times) < 2:
        raise RangeError(f"times_after: {len(times)} times; wanted at least 2, to tell how far apart they are.")
    apart = months_of(times)
    ahead = np.arange(1, count + 1)
    if apart is None:
        return times[-1] + ahead * _usual(np.diff(times))
    months = times.astype("datetime64[M]")
    within = times - months.astype("datetime64[ns]")
    following = months[-1] + ahead * apart
    if (within == within[0]).all():
        return following.astype("datetime64[ns]") + within[-1]
    return (following + 1).astype("datetime64[ns]") - ((months[-1] + 1).astype("datetime64[ns]") - times[-1])


def season_of(step: np.timedelta64 | None) -> int:
    """Rows of a day (steps below a day), of a week (a day), of a year (weeks, months, quarters); else 1."""
    if step is None or step <= np.timedelta64(0, "ns"):
        return 1
    days = step / np.timedelta64(1, "D")
    if days < 0.75:
        return max(1, round(1 / days))
    for low, high, season in ((0.75, 1.5, 7), (6, 8, 52), (27, 32, 12), (88, 93, 4)):
        if low <= days <= high:
            return season
    return 1


def describe_step(step: np.timedelta64 | None) -> str:
    """A step in words, such as `1 h`."""
    if step is None:
        return "unknown"
    seconds = step / np.timedelta64(1, "s")
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _usual(steps: NDArray[np.timedelta64]) -> np.timedelta64:
    """The lower median, which is one of the steps."""
    return np.sort(steps)[(len(steps) - 1) // 2]


def _read_parquet(file: Path, columns: Sequence[str] | None, time: str | None) -> Table:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            'read_table: Parquet files need pyarrow; type: pip install "sparse-stream[timeseries]"'
        ) from error
    try:
        content = parquet.read_table(file)
    except arrow.ArrowException as error:
        raise FileError(f"cannot be read as Parquet ({error}).") from error
    names, types = list(content.column_names), [field.type for field in content.schema]

    def is_time(kind: pyarrow.DataType) -> bool:
        return arrow.types.is_timestamp(kind) or arrow.types.is_date(kind)

    def is_number(kind: pyarrow.DataType) -> bool:
        return any(check(kind) for check in (arrow.types.is_integer, arrow.types.is_floating, arrow.types.is_boolean,
                                             arrow.types.is_decimal))  # fmt: skip

    def holds_dates(number: int) -> bool:
        first = content.column(number)[0].as_py() if content.num_rows else None
        return isinstance(first, str) and _DATE.fullmatch(first.strip()) is not None

    when = next((i for i, kind in enumerate(types) if is_time(kind) or holds_dates(i)), None)
    if time is not None:
        when = _index(time, names, "schema")
    if columns is None:
        taken = [i for i, kind in enumerate(types) if is_number(kind) and i != when]
    else:
        taken = [_index(name, names, "schema") for name in columns]
    if not taken:
        raise FileError(f"there is no column of numbers among {', '.join(names)}; wanted at least one.")
    for i in taken:
        if not is_number(types[i]):
            raise FileError(f"column {names[i]} is of type {types[i]}; wanted numbers.")
    rows = content.num_rows
    values = np.empty((rows, len(taken)))
    for place, i in enumerate(taken):
        values[:, place] = content.column(i).cast(arrow.float64(), safe=False).fill_null(math.nan).to_numpy()
        if np.isinf(values[:, place]).any():
            row = int(np.isinf(values[:, place]).argmax()) + 1
            raise FileError(f"row {row}: column {names[i]} is infinite; wanted a finite number, or none.")
    times = None
    if when is not None:
        times = _parquet_times(content.column(when), types[when], names[when], arrow)
    return Table(
        tuple(names[i] for i in taken), values, times, np.arange(1, rows + 1), None if when is None else names[when]
    )


def _parquet_times(column: Any, kind: Any, name: str, arrow: Any) -> Times:
    if arrow.types.is_timestamp(kind) or arrow.types.is_date(kind):
        plain = column.cast(arrow.timestamp("ns", tz=getattr(kind, "tz", None))).cast(arrow.timestamp("ns"))
        return plain.to_numpy().astype("datetime64[ns]")
    times = []
    for row, cell in enumerate(column.to_pylist(), start=1):
        try:
            times.append(parse_time("" if cell is None else str(cell)))
        except ValueError:
            raise FileError(f"row {row}: column {name} is {cell!r}; wanted a date.") from None
    return np.array(times, "datetime64[ns]")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _index(name: str, names: Sequence[str], where: str) -> int:
    if name in names:
        return list(names).index(name)
    if name.isdecimal() and 1 <= int(name) <= len(names):
        return int(name) - 1
    error = RangeError if where == "table" else FileError
    raise error(f"{where}: there is no column {name!r}; wanted some of {', '.join(names)}.")
