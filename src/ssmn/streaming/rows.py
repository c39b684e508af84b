"""Rows of numbers as they arrive, and what a model expects of the next one."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ssmn.config import Plasticity, SSMNConfig
from ssmn.errors import FileError, RangeError
from ssmn.stream import Stream
from ssmn.streaming.source import READ_BYTES, ByteSource, Lines, batches

_COMPLAINTS = 5
"""Bad rows of which a reader keeps what was wrong."""
_LARGEST = torch.finfo(torch.float32).max
"""Larger numbers would reach the model as infinite."""


@dataclass(frozen=True)
class RowPrediction:
    """What the model says about the row after this one."""

    line: int
    """Number of the row's line in the input, from 1."""
    values: tuple[float, ...]
    """The model's outputs, flattened; `output_names` names them. NaN after a row that holds nothing."""


class RowReader:
    """Rows of numbers out of comma-separated text, a line each, checked one by one.

    A row that is bad (too few values, no number, not UTF-8) is left out and counted, unless `strict`.

    Args:
        source: UTF-8 text.
        width: Numbers that each row must have.
        columns: Names (or numbers from 1) of the columns to take; None = all.
        header: Whether the first row holds names; None = look whether it is numbers.
        gaps: Whether an empty cell or NaN is a missing value, given as NaN; else it is bad.
        strict: Whether a bad row is an error.
        clock: Name (or number from 1) of a column of times, and what makes a number of steps of such a cell; it is
            then none of `columns`. A row whose time lies before that of the row before is bad.

    Raises:
        FileError: The first line does not fit; with `strict`, a row is bad; the message has the line's number.

    Example:
        >>> import io
        >>> from ssmn.streaming import RowReader
        >>> rows = RowReader(io.BytesIO("x,y\\n1,2\\n3,oops\\n4,5".encode()), width=2)
        >>> list(rows), rows.bad
        ([[1.0, 2.0], [4.0, 5.0]], 1)
    """

    def __init__(
        self,
        source: ByteSource,
        width: int,
        *,
        columns: Sequence[str] | None = None,
        header: bool | None = None,
        gaps: bool = False,
        strict: bool = False,
        clock: tuple[str, Callable[[str], float]] | None = None,
    ) -> None:
        self._lines = Lines(source)
        self._width, self._gaps, self._strict, self._clock = width, gaps, strict, clock
        self._indices: list[int] | None = None
        self.line = 0
        """Number of the line that was read last, from 1."""
        self.bad = 0
        """Rows that were left out."""
        self.complaints: list[str] = []
        """What was wrong with the first few of them."""
        self.elapsed = 1.0
        """Steps from the row before the last one to the last, by the clock; 1 for the first row and without one."""
        self._time: float | None = None
        self._first: list[str] | None = self._next_row()
        if self._first is not None and (header or (header is None and not self._is_data(self._first))):
            names, self._first = [name.strip() for name in self._first], None
        else:
            names = [str(number) for number in range(1, len(self._first or []) + 1)]
        self.names = tuple(names)
        """Names of the columns taken; "1", "2", ... if the input has no header."""
        if names and clock is not None:
            self._clock_index = _column(clock[0], names)
        if names and columns is not None:
            self._indices = [_column(column, names) for column in columns]
        elif names and clock is not None:
            self._indices = [number for number in range(len(names)) if number != self._clock_index]
        if self._indices is not None:
            self.names = tuple(names[number] for number in self._indices)
        if names and len(self.names) != width:
            raise FileError(
                f"line 1: {len(self.names)} columns ({', '.join(self.names)}); the model takes {width} "
                f"(its input_dim): choose the columns."
            )

    @property
    def has_clock(self) -> bool:
        """Whether `elapsed` means something."""
        return self._clock is not None

    @property
    def waiting(self) -> bool:
        """Whether the next row would have to be waited for."""
        return self._first is None and self._lines.waiting

    def _next_row(self) -> list[str] | None:
        """The cells of the next line that holds more than blanks; None at the end.

        Each line is parsed by itself: a stray quotation mark must not swallow the lines after it.
        """
        for raw in self._lines:
            self.line += 1
            if len(raw) >= READ_BYTES:
                while not raw.endswith(b"\n"):  # pieces of one line
                    raw = next(self._lines, b"\n")
                raise FileError(
                    f"line {self.line}: longer than {READ_BYTES:,} bytes; wanted rows of comma-separated numbers."
                )
            try:
                text = raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FileError(
                    f"line {self.line}: byte {error.start + 1} is not UTF-8; wanted comma-separated text."
                ) from error
            try:
                row = next(csv.reader([text]), [])
            except csv.Error as error:
                raise FileError(f"line {self.line}: {error}; wanted comma-separated numbers.") from error
            if len(row) > 1 or any(cell.strip() for cell in row):
                return row
        return None

    def __iter__(self) -> Iterator[list[float]]:
        return self

    def __next__(self) -> list[float]:
        while (row := self.attempt()) is None:
            pass
        return row

    def attempt(self) -> list[float] | None:
        """The next row, or None if it was bad; so that a reader that must not wait gets a say in between.

        Raises:
            StopIteration: There is none.
            FileError: It is bad, and the reader is strict.
        """
        try:
            row, self._first = (self._next_row() if self._first is None else self._first), None
            if row is None:
                raise StopIteration
            return self._numbers(row)
        except FileError as error:
            if self._strict:
                raise
            self.bad += 1
            if len(self.complaints) < _COMPLAINTS:
                self.complaints.append(str(error))
            return None

    def _is_data(self, row: list[str]) -> bool:
        """Whether the first row can hold no names."""
        if self._clock is None:
            return all(map(_is_cell, row))
        name = self._clock[0]
        return name.isdecimal() and all(_is_cell(cell) for number, cell in enumerate(row, 1) if number != int(name))

    def _tick(self, row: list[str]) -> tuple[float | None, float]:
        """A row's time, and the steps since the row before."""
        if self._clock is None:
            return None, 1.0
        name, read = self._clock
        cell = row[self._clock_index]
        try:
            time = read(cell)
        except ValueError:
            time = math.nan
        if not math.isfinite(time):
            raise FileError(f"line {self.line}: column {name} is {cell.strip()[:40]!r}; wanted a time.")
        if self._time is not None and time < self._time:
            self._time = time  # a single time far ahead must not make all rows after it bad
            raise FileError(
                f"line {self.line}: column {name} is {cell.strip()[:40]!r}, which lies before the row before; wanted "
                "rising times."
            )
        return time, 1.0 if self._time is None else time - self._time

    def _numbers(self, row: list[str]) -> list[float]:
        cells = row
        if self._indices is not None:
            last = max(self._indices if self._clock is None else [*self._indices, self._clock_index])
            if len(row) <= last:
                raise FileError(f"line {self.line}: {len(row)} values; wanted at least {last + 1}.")
            cells = [row[index] for index in self._indices]
        if len(cells) != self._width:
            raise FileError(f"line {self.line}: {len(cells)} values; the model takes {self._width} (its input_dim).")
        time, elapsed = self._tick(row)
        numbers = [self._number(cell, name) for cell, name in zip(cells, self.names, strict=True)]
        self._time, self.elapsed = time, elapsed
        return numbers

    def _number(self, cell: str, name: str) -> float:
        try:
            value = math.nan if self._gaps and not cell.strip() else float(cell)
        except ValueError:
            raise FileError(f"line {self.line}: column {name} is {cell[:40]!r}; wanted a number.") from None
        if not math.isfinite(value) and not (self._gaps and math.isnan(value)):
            raise FileError(
                f"line {self.line}: column {name} is {cell.strip()[:40]}; wanted a finite number: leave the row out, "
                f"or fill the value in."
            )
        if abs(value) > _LARGEST:
            raise FileError(
                f"line {self.line}: column {name} is {cell.strip()[:40]}; wanted a number that float32 holds, at most "
                f"{_LARGEST:.3g} in size."
            )
        return value


def output_names(config: SSMNConfig, columns: Sequence[str]) -> list[str]:
    """What a model's outputs speak of, flattened: `next_NAME`, with `_std` or `_q0.9` for what a head adds.

    The second output about a column is taken for its value after next: `next2_NAME`. Outputs that speak of no column
    are `output_1`, `output_2`, ...

    Args:
        config: The model's.
        columns: Names of its inputs.

    Example:
        >>> import ssmn
        >>> from ssmn.streaming import output_names
        >>> output_names(ssmn.SSMNConfig(input_dim=2, output_dim=1, targets=(1,), head="gaussian"), ["load", "heat"])
        ['next_heat', 'next_heat_std']
    """
    speaks = config.targets is not None or config.output_dim == config.input_dim
    chosen = config.target_columns if speaks else ()
    names = [f"output_{number}" for number in range(1, config.output_dim + 1)]
    if chosen:
        ahead = [chosen[: place + 1].count(column) for place, column in enumerate(chosen)]
        names = [f"next{'' if n == 1 else n}_{columns[column]}" for n, column in zip(ahead, chosen, strict=True)]
    if config.head == "gaussian":
        return [f"{name}{part}" for name in names for part in ("", "_std")]
    if config.head == "quantile":
        return [f"{name}_q{share:g}" for name in names for share in config.quantiles]
    return names


def row_predictions(
    stream: Stream, rows: RowReader, *, plasticity: Plasticity | None = None
) -> Iterator[RowPrediction]:
    """The model's output after each row: what it expects of the next one.

    A plastic read-out learns from each row what the one before should have predicted of it, if the outputs speak of
    input columns. If the rows have a clock, the stream decays by the time between them. Of rows that hold nothing, all
    that comes out is NaN.

    Args:
        stream: A `Stream` over an `SSMN`, one row; it moves on as results are taken.
        rows: The input; made with `width=model.config.input_dim`, and `gaps=True` for a model with `missing="mask"`.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        An iterator of predictions, as the input arrives. Before an error is raised, everything up to
        the line it names has been read and answered.

    Raises:
        FileError: A row is bad, and the reader is strict.
        RangeError: The model is of another kind, or needs inputs that rows do not have.

    Example:
        >>> import io, ssmn
        >>> from ssmn.streaming import RowReader, row_predictions
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=2, output_dim=1))
        >>> rows = RowReader(io.BytesIO("x,y\\n0.5,1\\n0.25,2".encode()), width=2)
        >>> [(row.line, len(row.values)) for row in row_predictions(ssmn.Stream(model), rows)]
        [(2, 1), (3, 1)]
    """
    config = stream.model.config
    if not isinstance(config, SSMNConfig):
        raise RangeError("row_predictions: stream has a text model; wanted a Standard model (SSMN).")
    for name in ("static_dim", "future_dim"):
        if getattr(config, name):
            raise RangeError(
                f"row_predictions: the model has {name}={getattr(config, name)}, which rows do not bring; "
                f"use ssmn.Stream and its push."
            )
    columns = list(config.target_columns)
    for attempts in batches(_numbered(rows), rows, lambda _: 1):
        batch = [(line, row) for line, row, _ in attempts if row is not None]
        if not batch:
            continue
        x = torch.tensor([[row for _, row in batch]])
        learns = config.readout != "none" and bool(columns)
        options = {"target": x[..., columns]} if learns else {}
        if rows.has_clock:
            options["elapsed"] = torch.tensor([[elapsed for _, row, elapsed in attempts if row is not None]])
        outputs = stream.push(x, plasticity=plasticity, **options)[0].flatten(1)
        outputs = torch.where(x[0].isnan().all(-1, keepdim=True), torch.nan, outputs)
        for (line, _), values in zip(batch, outputs.tolist(), strict=True):
            yield RowPrediction(line, tuple(values))


def _numbered(rows: RowReader) -> Iterator[tuple[int, list[float] | None, float]]:
    while True:
        try:
            row = rows.attempt()
        except StopIteration:
            return
        yield rows.line, row, rows.elapsed


def _column(name: str, names: list[str]) -> int:
    """The place of a column that is given by its name, or by its number from 1."""
    if name in names:
        return names.index(name)
    if not name.isdecimal() or not 1 <= int(name) <= len(names):
        raise FileError(f"line 1: there is no column {name!r}; wanted some of {', '.join(names)}.")
    return int(name) - 1


def _is_cell(cell: str) -> bool:
    return not cell.strip() or _is_number(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
