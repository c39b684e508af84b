"""Keeps the numbers of a model while it trains, reads a stream, or runs on the engine."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ssmn.engine import Engine
from ssmn.errors import FileError, MissingExtraError, RangeError
from ssmn.files import PathLike, atomic_write
from ssmn.models.stack import Stack
from ssmn.probes.measures import Measures, measure_blocks, measure_state
from ssmn.probes.novelty import Novelty
from ssmn.probes.watch import watch_blocks
from ssmn.state import StreamState
from ssmn.stream import Stream, StreamModel

ROWS = 4
"""Rows of a batch that are measured; the record has their mean."""

Record = dict[str, Any]
"""`step`, `novelty` if it is known, and for each part of the model its `kind` and its measures: a number, or one per
head; None where there is none (never half, nothing before)."""


class Recorder:
    """Writes what a model's layers hold and do, every so many steps; between them it costs nothing.

    The measures are those of `measure_state` and `measure_blocks`, without the singular values unless asked for.

    Args:
        paths: Where to: a file `.jsonl` (JSON lines), a file `.csv` (a column for each number), or a folder for
            TensorBoard's event file. None = `records` alone.
        every: Steps from one record to the next: optimiser steps in training, steps of the stream in reading.
            The default keeps reading, in pieces or on the engine, within 5 % of its cost; training affords every few.
        spectrum: Whether the singular values are recorded too (JSON lines and `records`).
        append: Goes on with files that are there; what they have from the first new step on is dropped, since those
            steps are done again. Else they begin anew. Files are opened with the first record.
        keep: Latest records to keep in `records`.

    Raises:
        RangeError: `every` or `keep` is below 1.
        FileError: A path is neither.
        MissingExtraError: A folder is given and tensorboard is not installed.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import RecordedStream, Recorder
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> with Recorder(every=10, keep=3) as recorder:
        ...     stream = RecordedStream(ssmn.TextSSMN(config), recorder=recorder)
        ...     for piece in torch.randint(16, (1, 30)).split(6, 1):
        ...         _ = stream.push(piece)
        >>> [record["step"] for record in recorder.records], recorder.records[0]["layers.1"]["kind"]
        ([12, 24, 30], 'plastic')
    """

    def __init__(
        self,
        *paths: PathLike,
        every: int = 32_768,
        spectrum: bool = False,
        append: bool = False,
        keep: int = 1,
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RangeError(f"Recorder: {name}={value!r}; wanted a whole number of at least 1.")
        self.every, self._spectrum, self._keep = every, spectrum, keep
        self.records: list[Record] = []
        """The latest records, oldest first."""
        self._engines: dict[tuple[Engine, int], tuple[int, StreamState]] = {}
        self._kinds = [_kind_of(Path(path)) for path in paths]
        self._paths, self._append = [Path(path) for path in paths], append
        self._sinks: list[_Lines | _Table | _Board] = []

    def is_due(self, before: int, after: int) -> bool:
        """Whether the steps from `before` to `after` pass a multiple of `every`."""
        return after // self.every > before // self.every

    def around(self, model: Stack, step: int) -> AbstractContextManager[Any]:
        """To be entered around one call of the model (and its backward pass): records it if the step is a multiple.

        `ssmn.training.train` takes this as `around_step`.

        Args:
            model: The model that will be called.
            step: Number of the step, from 1.
        """
        return self._watched(model, step) if step % self.every == 0 else contextlib.nullcontext()

    @contextlib.contextmanager
    def _watched(self, model: Stack, step: int) -> Iterator[Record]:
        """Records what the layers of the model do within; what is put into the dictionary goes into the record."""
        more: Record = {}
        with watch_blocks(model, ROWS) as seen:
            yield more
        self._write({"step": step, **more}, measure_blocks(seen))

    def observe(self, state: StreamState, before: StreamState | None = None, *, step: int | None = None) -> Record:
        """Records what a state holds, due or not.

        Args:
            state: A stream's.
            before: An earlier one, for the measure `update`.
            step: Number of the step; None = the (furthest) position of the state.

        Returns:
            The record.
        """
        number = int(state.position.max()) if step is None else step
        rows = list(range(min(ROWS, state.batch_size)))
        measures = measure_state(state.select(rows), None if before is None else before.select(rows))
        return self._write({"step": number}, measures)

    def observe_engine(self, engine: Engine, stream: int = 0) -> Record | None:
        """Records a stream's state on the engine if it has passed a multiple of `every` since it was last looked at.

        Call it after each step: until it is due it looks at the position alone. `update` is since the last record.
        """
        key, now = (engine, stream), engine.position(stream)
        before, state = self._engines.get(key, (0, None))
        if not self.is_due(before, now):
            return None
        latest = engine.get_state(stream)
        self._engines[key] = now, latest
        return self.observe(latest, state, step=now)

    @contextlib.contextmanager
    def around_push(self, stream: Stream, step: int) -> Iterator[Record]:
        """To be entered around one push of a stream: records it as that step, due or not.

        What is put into the dictionary that it gives goes into the record.
        """
        if stream.backend == "torch":
            with self._watched(stream.model, step) as more:  # type: ignore[arg-type]
                yield more
        else:
            before = stream.state
            yield {}
            self.observe(stream.state, before, step=step)

    def close(self) -> None:
        """Closes the files; a later record goes on with them."""
        for sink in self._sinks:
            sink.close()
        self._append = self._append or bool(self._sinks)
        self._sinks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, record: Record, measures: Sequence[Measures]) -> Record:
        for part in measures:
            values = {
                name: _plain(value.double().nanmean(0))
                for name, value in part.values.items()
                if self._spectrum or name != "spectrum"
            }
            record[part.name] = {"kind": part.kind, **values}
        self.records = [*self.records, record][-self._keep :]
        if not self._sinks:
            first = record["step"] if self._append else None
            self._sinks = [kind(path, first) for kind, path in zip(self._kinds, self._paths, strict=True)]
        for sink in self._sinks:
            sink.write(record)
        return record


class RecordedStream(Stream):
    """A `Stream` whose pushes a recorder looks at; its single steps and its forks are not recorded.

    Args:
        model: The model.
        state: Where to start; None starts afresh.
        recorder: Where the numbers go.
        **settings: Those of `Stream`.

    Example:
        See `Recorder`.
    """

    def __init__(
        self,
        model: StreamModel,
        state: StreamState | None = None,
        *,
        recorder: Recorder | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, state, **settings)
        self._recorder, self._done = recorder, int(self.position.max())

    def push(self, x: Tensor, **options: Any) -> Any:
        """As `Stream.push`; recorded if it passes a multiple of the recorder's `every`."""
        after = self._done + (x.shape[1] if isinstance(x, Tensor) and x.dim() > 1 else 0)
        if self._recorder is None or not self._recorder.is_due(self._done, after):
            y = super().push(x, **options)
        else:
            with self._recorder.around_push(self, after) as more:
                y = super().push(x, **options)
                if self.backend == "torch":
                    more["novelty"] = _mean_novelty(self.model, x, y, options.get("mask"))
        self._done = after
        return y


def _mean_novelty(model: Any, x: Tensor, y: Tensor, mask: Tensor | None) -> float | None:
    rows = range(min(ROWS, x.shape[0]))
    cut = [slice(row, row + 1) for row in rows]
    found = [Novelty(model).of(x[row], y[row], None if mask is None else mask[row]) for row in cut]
    told = [bits for bits in found if bits is not None]
    return _plain(torch.cat(told).nanmean()) if told else None


def _plain(value: Tensor) -> Any:
    """A number or a list of numbers; None for what is not finite, which JSON cannot say."""
    if value.dim():
        return [_plain(item) for item in value]
    number = float(value)
    return number if math.isfinite(number) else None


def flat(record: Record) -> dict[str, float | None]:
    """A record as a table has it: a name for each number, `layers.1.energy.0` for the first head.

    Example:
        >>> from ssmn.probes import flat
        >>> flat({"step": 8, "layers.1": {"kind": "plastic", "energy": [2.0, 3.0], "nbytes": 40.0}})
        {'step': 8, 'layers.1.energy.0': 2.0, 'layers.1.energy.1': 3.0, 'layers.1.nbytes': 40.0}
    """
    row: dict[str, float | None] = {}
    for name, part in record.items():
        if not isinstance(part, dict):
            row[name] = part
            continue
        for measure, value in part.items():
            if measure in ("kind", "spectrum"):
                continue
            if isinstance(value, list):
                row |= {f"{name}.{measure}.{head}": number for head, number in enumerate(value)}
            else:
                row[f"{name}.{measure}"] = value
    return row


class _Lines:
    """JSON lines."""

    def __init__(self, path: Path, first: int | None) -> None:
        _cut(path, first, lambda line: json.loads(line)["step"])
        self._file = path.open("w" if first is None else "a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Table:
    """Comma-separated values; the first record decides the columns."""

    def __init__(self, path: Path, first: int | None) -> None:
        self._columns: list[str] | None = None
        _cut(path, first, lambda line: -1 if line.startswith("step,") else int(line.split(",", 1)[0]))
        if first is not None and path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                self._columns = next(csv.reader(file), None)
        self._file = path.open("w" if first is None else "a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)

    def write(self, record: Record) -> None:
        row = flat(record)
        if self._columns is None:
            self._columns = list(row)
            self._writer.writerow(self._columns)
        if self._columns != list(row):
            raise FileError(
                "Recorder: the numbers of this record are not those of the table's columns; one model and one kind of "
                "call to a table: use another file, or .jsonl."
            )
        self._writer.writerow(["" if value is None else value for value in row.values()])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Board:
    """TensorBoard's event file."""

    def __init__(self, folder: Path, first: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(os.fspath(folder), purge_step=first)

    def write(self, record: Record) -> None:
        for name, value in flat(record).items():
            if value is not None and name != "step":
                self._board.add_scalar(f"probes/{name}", value, record["step"])

    def close(self) -> None:
        self._board.close()


def _kind_of(path: Path) -> type[_Lines] | type[_Table] | type[_Board]:
    kinds = {".jsonl": _Lines, ".csv": _Table, "": _Board}
    if path.suffix not in kinds:
        raise FileError(f"Recorder: {path}; wanted a file .jsonl or .csv, or a folder for TensorBoard.")
    if not path.suffix and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError('Recorder: TensorBoard\'s files need: pip install "sparse-stream[train]"')
    return kinds[path.suffix]


def _cut(path: Path, first: int | None, step_of: Any) -> None:
    """Drops the lines of a file from a step on."""
    if first is None or not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and step_of(line) < first:
                kept.append(line)
        except ValueError:  # cut short when the process was killed
            continue
    atomic_write(path, "".join(kept).encode())
