"""Endless input through a model in constant memory: surprise of text, predictions for rows of numbers.

What `ssmn stream` does, for Python users. Input is taken as it arrives: whatever is there is read in
one go, and its results come out before the next wait.
"""

from __future__ import annotations

import codecs
import csv
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ssmn.config import Plasticity, SSMNConfig
from ssmn.errors import FileError, RangeError
from ssmn.stream import Stream

if TYPE_CHECKING:
    from ssmn.training.tokenizer import Tokenizer

T = TypeVar("T")

READ_BYTES = 1 << 16
"""Bytes read at once; a longer line is taken in pieces of this size."""
PIECE = 1024
"""Steps that are gathered before the model takes them, if that many are there."""
LONGEST_PIECE = 2 * PIECE
"""Steps that the model takes at once at most."""
_COMPLAINTS = 5
"""Bad rows of which a reader keeps what was wrong."""


class ByteSource(Protocol):
    """A binary stream such as `sys.stdin.buffer`, `open(path, "rb")` or `io.BytesIO(data)`."""

    def read1(self, size: int, /) -> bytes: ...


class _Waits(Protocol):
    @property
    def waiting(self) -> bool:
        """Whether the next item would have to be waited for."""
        ...


@dataclass(frozen=True)
class LineSurprise:
    """How surprising one line was."""

    line: int
    """Number of the line, from 1."""
    bytes: int
    """Its length, the line feed included."""
    bits: float
    """Σ −log2 p of its tokens, the line feed's included."""
    text: str
    """The line without its line feed; of a line longer than `READ_BYTES` the beginning."""

    @property
    def bits_per_byte(self) -> float:
        """Surprise per byte."""
        return self.bits / self.bytes


@dataclass(frozen=True)
class ByteSurprise:
    """How surprising one byte was; a token's bits are shared equally by its bytes."""

    offset: int
    """Position in the input, from 0."""
    byte: int
    """Its value, 0 to 255."""
    bits: float
    """Its share of −log2 p of the token it belongs to."""


@dataclass(frozen=True)
class RowPrediction:
    """What the model says about the row after this one."""

    line: int
    """Number of the row's line in the input, from 1."""
    values: tuple[float, ...]
    """The model's outputs, flattened; `output_names` names them. NaN after a row that holds nothing."""


def token_bits(
    stream: Stream, tokens: np.ndarray | Sequence[int], *, plasticity: Plasticity | None = None
) -> np.ndarray:
    """Surprise of tokens[1:], each predicted from all that came before it.

    The last token is predicted and not yet read, so the next call begins with it.

    Args:
        stream: A `Stream` over a text model, one row; it moves on by len(tokens) − 1 tokens.
        tokens: [T + 1] token numbers; the first was predicted before.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        −log2 p, [T] float64.

    Example:
        >>> import ssmn
        >>> from ssmn.streaming import token_bits
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> stream = ssmn.Stream(ssmn.TextSSMN(config))
        >>> token_bits(stream, [1, 2, 3, 4]).shape, stream.position.tolist()
        ((3,), [3])
    """
    numbers = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    bits = np.empty(max(0, len(numbers) - 1))
    for start in range(0, len(bits), LONGEST_PIECE):
        piece = numbers[start : start + LONGEST_PIECE + 1]
        logits = stream.push(piece[:-1].unsqueeze(0), plasticity=plasticity)
        bits[start : start + LONGEST_PIECE] = surprise_bits(logits[0], piece[1:]).numpy()
    return bits


def token_pieces(tokenizer: Tokenizer, source: ByteSource) -> Iterator[np.ndarray]:
    """The tokens of a text as it arrives, some thousand at a time, in constant memory.

    Args:
        tokenizer: What to encode with.
        source: UTF-8 text (any bytes for the byte tokenizer); read until it ends.

    Returns:
        An iterator of token numbers, [T] each.

    Raises:
        FileError: A line is not UTF-8; what came before it has been given.

    Example:
        >>> import io
        >>> from ssmn.streaming import token_pieces
        >>> from ssmn.training import Tokenizer
        >>> pieces = token_pieces(Tokenizer.for_bytes(), io.BytesIO(b"a\\nbc"))
        >>> [token for piece in pieces for token in piece.tolist()]
        [97, 10, 98, 99]
    """
    lines = Lines(source)
    for batch in _batches(_encoded(lines, tokenizer), lines, lambda item: len(item[1])):
        yield np.concatenate([tokens for _, tokens in batch])


def surprise_bits(logits: Tensor, targets: Tensor) -> Tensor:
    """−log2 p of the targets: logits [.., vocabulary], targets [..] to [..]."""
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    return nats.view(targets.shape) / math.log(2.0)


class Lines:
    """Lines of a byte source, and how many of them are there without waiting."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._ready: deque[bytes] = deque()
        self._rest = b""
        self._ended = False

    @property
    def waiting(self) -> bool:
        """Whether the next line would have to be waited for."""
        return not self._ready

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._ready:
            if self._ended:
                raise StopIteration
            chunk = self._source.read1(READ_BYTES)
            self._ended = not chunk
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._ready.extend(line + b"\n" for line in lines)
            if self._rest and (self._ended or len(self._rest) >= READ_BYTES):
                self._ready.append(self._rest)
                self._rest = b""
        return self._ready.popleft()


def line_surprise(
    stream: Stream, tokenizer: Tokenizer, source: ByteSource, *, plasticity: Plasticity | None = None
) -> Iterator[LineSurprise]:
    """How surprising each line of a text is to a model that learns as it reads.

    A stream stands at the end of a line: the line feed before the input is read first, and one that
    ends the input is scored and left to the next call. So a text cut at line ends, each part going on
    from the state of the one before, gives the numbers of the whole text.

    Args:
        stream: A `Stream` over a text model, one row; it moves on as results are taken.
        tokenizer: The model's.
        source: UTF-8 text (any bytes for the byte tokenizer); read until it ends.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        An iterator of results, as the input arrives.

    Raises:
        FileError: A line is not UTF-8; what came before it has been read and answered.

    Example:
        >>> import io, ssmn
        >>> from ssmn.streaming import line_surprise
        >>> from ssmn.training import Tokenizer
        >>> config = ssmn.TextSSMNConfig(vocab_size=256, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> stream = ssmn.Stream(ssmn.TextSSMN(config))
        >>> source = io.BytesIO("one and\\ntwo".encode())
        >>> [(line.line, line.bytes) for line in line_surprise(stream, Tokenizer.for_bytes(), source)]
        [(1, 8), (2, 3)]
    """
    number, start, bits, length = 1, b"", 0.0, 0
    for line, _, piece_bits in _surprise(stream, tokenizer, source, plasticity):
        start = start or line
        bits += float(piece_bits.sum())
        length += len(line)
        if line.endswith(b"\n"):
            yield LineSurprise(number, length, bits, _readable(start))
            number, start, bits, length = number + 1, b"", 0.0, 0
    if length:
        yield LineSurprise(number, length, bits, _readable(start))


def byte_surprise(
    stream: Stream, tokenizer: Tokenizer, source: ByteSource, *, plasticity: Plasticity | None = None
) -> Iterator[ByteSurprise]:
    """How surprising each byte of a text is; otherwise as `line_surprise`.

    Args:
        stream: A `Stream` over a text model, one row; it moves on as results are taken.
        tokenizer: The model's.
        source: UTF-8 text (any bytes for the byte tokenizer); read until it ends.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        An iterator of results, as the input arrives.

    Raises:
        FileError: A line is not UTF-8; what came before it has been read and answered.

    Example:
        See `line_surprise`.
    """
    offset = 0
    for _, tokens, bits in _surprise(stream, tokenizer, source, plasticity):
        lengths = tokenizer.byte_lengths[tokens]
        shares = np.repeat(bits / np.maximum(lengths, 1), lengths)
        for byte, share in zip(tokenizer.decode_bytes(tokens), shares.tolist(), strict=True):
            yield ByteSurprise(offset, byte, share)
            offset += 1


def _surprise(
    stream: Stream, tokenizer: Tokenizer, source: ByteSource, plasticity: Plasticity | None
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Each line (or piece of a very long one) with its tokens and their bits."""
    lines = Lines(source)
    last = tokenizer.line_end
    for batch in _batches(_encoded(lines, tokenizer), lines, lambda item: len(item[1])):
        tokens = np.concatenate([last, *(piece for _, piece in batch)])
        bits = token_bits(stream, tokens, plasticity=plasticity)
        last = tokens[-1:]
        ends = np.cumsum([len(piece) for _, piece in batch])
        for (line, piece), piece_bits in zip(batch, np.split(bits, ends[:-1]), strict=True):
            yield line, piece, piece_bits


def _encoded(lines: Iterator[bytes], tokenizer: Tokenizer) -> Iterator[tuple[bytes, np.ndarray]]:
    """Each line (or piece of a very long one) with its tokens."""
    if tokenizer.kind == "bytes":
        yield from ((line, tokenizer.encode(line)) for line in lines)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    for line in lines:
        try:
            yield line, tokenizer.encode(decoder.decode(line))
        except UnicodeDecodeError as error:
            raise FileError(
                f"line {number}: byte {error.object[error.start]:#04x} is not UTF-8; wanted UTF-8 text, or a model "
                f"with the byte tokenizer."
            ) from error
        number += line.endswith(b"\n")
    if decoder.getstate()[0]:
        raise FileError(f"line {number}: the input ends inside a UTF-8 character; wanted whole UTF-8 text.")


def _batches(items: Iterator[T], source: _Waits, steps: Callable[[T], int]) -> Iterator[list[T]]:
    """Groups what is there without waiting; a failure is raised after the group that came before it."""
    ended, failure = False, None
    while not ended:
        batch: list[T] = []
        taken = 0
        try:
            while taken < PIECE and not (batch and source.waiting):
                batch.append(next(items))
                taken += steps(batch[-1])
        except StopIteration:
            ended = True
        except FileError as error:
            ended, failure = True, error
        if batch:
            yield batch
    if failure is not None:
        raise failure


def _readable(line: bytes) -> str:
    return line.removesuffix(b"\n").decode("utf-8", "replace")


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
        """The cells of the next line that is not empty; None at the end.

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
            if row:
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
    for attempts in _batches(_numbered(rows), rows, lambda _: 1):
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
