"""Long streams for training: texts and tables, cut into parallel contiguous streams."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssmn.errors import FileError, TrainingError
from ssmn.training.tasks import Batch
from ssmn.training.tokenizer import Tokenizer

Part = Literal["train", "held-out"]


def text_files(path: str | os.PathLike[str], pattern: str = "**/*") -> list[Path]:
    """The files of a corpus: the file itself, or a folder's files in sorted order.

    Args:
        path: A file or a folder.
        pattern: Which files of a folder, as a glob; names that start with a dot are left out.

    Returns:
        At least one path.

    Raises:
        TrainingError: There is no such path, or no file fits.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise TrainingError(f"data: {root} does not exist; wanted a text file or a folder of them.")
    files = sorted(
        file
        for file in root.glob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    if not files:
        raise TrainingError(f"data: {root} has no file that fits pattern {pattern!r}; set data.pattern.")
    return files


def read_text(file: Path, *, utf8: bool) -> bytes:
    """The bytes of one file; refuses what is not UTF-8 if `utf8`."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise TrainingError(f"data: {file} cannot be read ({error.strerror}).") from error
    if utf8:
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileError(
                f"{file}: byte {error.start} is not UTF-8; leave the file out by data.pattern, or use "
                f"data.tokenizer='bytes'."
            ) from error
    return raw


def shuffled(files: list[Path], seed: int) -> list[Path]:
    """The files in an order drawn from the seed."""
    return [files[index] for index in np.random.default_rng(seed).permutation(len(files))]


@dataclass(frozen=True, eq=False)
class Corpus:
    """One long stream of steps, with the files that it came from.

    Attributes:
        steps: Tokens `[N]`, or vectors `[N, F]`.
        files: The files, in order.
        starts: The step at which each file begins.
        tokenizer: For text, the tokenizer that made the tokens.
    """

    steps: np.ndarray
    files: tuple[Path, ...]
    starts: tuple[int, ...]
    tokenizer: Tokenizer | None = None

    @classmethod
    def from_text(cls, files: list[Path], tokenizer: Tokenizer) -> Corpus:
        """Encodes the files, one after the other."""
        utf8 = tokenizer.kind != "bytes"
        tokens = [tokenizer.encode(read_text(file, utf8=utf8)) for file in files]
        return cls(np.concatenate(tokens), tuple(files), _starts(tokens), tokenizer)

    @classmethod
    def from_tables(cls, files: list[Path]) -> Corpus:
        """Reads comma-separated numbers, a row per step; all files have the same columns."""
        tables = [read_table(file) for file in files]
        for file, table in zip(files, tables, strict=True):
            if table.shape[1] != tables[0].shape[1]:
                raise FileError(f"{file}: {table.shape[1]} columns, but {files[0]} has {tables[0].shape[1]}.")
        return cls(np.concatenate(tables), tuple(files), _starts(tables))

    def split(self, held_out: float) -> tuple[Corpus, Corpus]:
        """The stream without its last share, and that share."""
        edge = len(self.steps) - math.ceil(len(self.steps) * held_out)
        late_starts = tuple(max(0, start - edge) for start in self.starts)
        return (
            Corpus(self.steps[:edge], self.files, self.starts, self.tokenizer),
            Corpus(self.steps[edge:], self.files, late_starts, self.tokenizer),
        )

    def cut(self, count: int) -> Corpus:
        """The first `count` steps."""
        return Corpus(self.steps[:count], self.files, self.starts, self.tokenizer)

    def sample(self, count: int, stretches: int = 16) -> Corpus:
        """At most `count` steps, one after the other: evenly spread stretches, or the whole stream if it is short."""
        if len(self.steps) <= count:
            return self
        length, space = count // stretches, len(self.steps) // stretches
        parts = [self.steps[begin : begin + length] for begin in range(0, space * stretches, space)]
        return Corpus(np.concatenate(parts), (), (), self.tokenizer)

    def name_of(self, begins: range | list[int], length: int) -> str:
        """The files that hold any of the stretches `[begin, begin + length)`."""
        names = []
        for file, start, end in itertools.zip_longest(self.files, self.starts, self.starts[1:], fillvalue=len(self)):
            if any(begin < end and begin + length > start for begin in begins):
                names.append(str(file))
        return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more files"

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, eq=False)
class StreamBatches:
    """Cuts a corpus into `batch_size` parallel contiguous streams and these into pieces.

    Row b of piece p follows on row b of piece p - 1, so a carried state has read the whole stream up
    to there. After the last piece the streams start again, fresh. The steps that do not fill a piece
    in every row are left out.

    A model that only ever went on would not know how to begin: before a share `fresh_rate` of the
    pieces, chosen by `seed`, a row's state is made fresh.

    Few long streams see few texts at a time. With `carried_pieces` the corpus is cut into stretches of so
    many pieces instead, each read from a fresh state, in an order drawn anew for every pass.

    Raises:
        TrainingError: The corpus is too short for one piece.
    """

    corpus: Corpus
    batch_size: int
    piece_length: int
    fresh_rate: float = 0.0
    seed: int = 0
    carried_pieces: int = 0

    def __post_init__(self) -> None:
        if self.pieces < 1:
            if not len(self.corpus):
                raise TrainingError("data: there is nothing in it to train on; wanted a text or a table with content.")
            carried = " * train.carried_pieces" if self.carried_pieces else ""
            wanted = self.batch_size * self.piece_length * max(1, self.carried_pieces) + 1
            raise TrainingError(
                f"data: {self.corpus.name_of([0], len(self.corpus))} gives {len(self.corpus)} steps; "
                f"wanted at least train.batch_size * train.piece_length{carried} + 1 = {wanted}: lower one of them."
            )

    @property
    def row_length(self) -> int:
        """Predicted steps of each stream."""
        return max(0, len(self.corpus) - 1) // self.batch_size

    @property
    def pieces(self) -> int:
        """Pieces of each row until the corpus has been read."""
        if not self.carried_pieces:
            return self.row_length // self.piece_length
        return self._stretches // self.batch_size * self.carried_pieces

    @property
    def _stretches(self) -> int:
        return max(0, len(self.corpus) - 1) // (self.piece_length * self.carried_pieces)

    def batch(self, step: int) -> Batch:
        """The batch of a training step; depends on nothing but the step."""
        piece = step % self.pieces
        fresh_rows = np.random.default_rng([self.seed, step]).random(self.batch_size) < self.fresh_rate
        begins = self._shuffled(step) if self.carried_pieces else self._streams(piece)
        rows = np.stack([self.corpus.steps[begin : begin + self.piece_length + 1] for begin in begins])
        source = self.corpus.name_of(begins, self.piece_length + 1)
        tokenizer = self.corpus.tokenizer
        target_bytes = None if tokenizer is None else int(tokenizer.byte_lengths[rows[:, 1:]].sum())
        steps = to_tensor(rows)
        return Batch(
            steps[:, :-1],
            steps[:, 1:],
            None,
            source,
            fresh=piece % (self.carried_pieces or self.pieces) == 0,
            fresh_rows=torch.from_numpy(fresh_rows) if fresh_rows.any() else None,
            target_bytes=target_bytes,
        )

    def _streams(self, piece: int) -> list[int]:
        """Where each row's piece begins when rows are streams."""
        first = piece * self.piece_length
        return list(range(first, self.batch_size * self.row_length + first, self.row_length))

    def _shuffled(self, step: int) -> list[int]:
        """Where each row's piece begins when rows are stretches."""
        taken, number = divmod(step % self.pieces, self.carried_pieces)
        order = np.random.default_rng([self.seed, 1, step // self.pieces]).permutation(self._stretches)
        chosen = order[taken * self.batch_size : (taken + 1) * self.batch_size]
        return ((chosen * self.carried_pieces + number) * self.piece_length).tolist()


def to_tensor(steps: np.ndarray) -> Tensor:
    """Tokens as int64, vectors as float32."""
    kind = np.int64 if np.issubdtype(steps.dtype, np.integer) else np.float32
    return torch.from_numpy(steps.astype(kind))


def read_table(file: Path) -> np.ndarray:
    """Numbers of a CSV file `[rows, columns]` float32; a first row of names is skipped.

    An empty cell is NaN. Columns whose first cell with content is no number (dates, names) are left out.

    Raises:
        FileError: Not a table of numbers; the row is named.
    """
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            return _parse_table(file, csv.reader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{file}: cannot be read as a CSV table ({error}).") from error


def _parse_table(file: Path, reader: Iterator[list[str]]) -> np.ndarray:
    rows = [(number, row) for number, row in enumerate(reader, start=1) if row]
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        rows = rows[1:]
    columns = _numeric_columns([row for _, row in rows])
    if not columns:
        raise FileError(f"{file}: has no row of numbers; wanted comma-separated numbers, a row per step.")
    table = np.empty((len(rows), len(columns)), dtype=np.float32)
    for index, (number, row) in enumerate(rows):
        try:
            table[index] = [float(row[column].strip() or "nan") for column in columns]
        except (IndexError, ValueError):
            raise FileError(f"{file}: row {number} is {','.join(row)!r}; wanted numbers as in the first row.") from None
    return table


def _numeric_columns(rows: list[list[str]]) -> list[int]:
    """Columns whose first cell that is not empty is a number."""
    chosen = []
    for column in range(len(rows[0]) if rows else 0):
        cells = (row[column] for row in rows if column < len(row) and row[column].strip())
        if _is_number(next(cells, "")):
            chosen.append(column)
    return chosen


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _starts(parts: list[np.ndarray]) -> tuple[int, ...]:
    return (0, *itertools.accumulate(len(part) for part in parts[:-1]))
