"""`ssmn detect`: anomalies in a table of numbers, or in rows as they arrive on standard input."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ssmn.cli import options
from ssmn.cli.stream import FlushingInput
from ssmn.errors import FileError, RangeError

if TYPE_CHECKING:
    import numpy as np

    from ssmn.series import BadRow, Detections, Detector, Row, Table
    from ssmn.streaming import ByteSource

BATCH = 1024
"""Rows that are scored at once, if that many are there."""


def command(
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="A CSV or Parquet file; - reads standard input.")],
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Columns to watch; all that hold numbers if absent.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of times; the first that holds dates if absent.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="(0, 1]", help="Scores from which on rows are flagged; 0.5 if absent."),
    ] = None,
    refractory: Annotated[
        int | None, typer.Option(min=0, metavar="ROWS", help="Rows after a flag without another; 50 if absent.")
    ] = None,
    only_flags: Annotated[bool, typer.Option("--only-flags", help="Write the flagged rows alone.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines in place of CSV.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw series, flags and scores; keeps all rows.")
    ] = None,
    state: options.StateFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a bad row in place of leaving it out.")] = False,
) -> None:
    """Score each row by how far it leaves what the rows before it were like; flag anomalies.

    Rows are read once and in order, and the detector learns from each of them; the first 150 have no score. A row of
    a stream without anomalies scores 0.5 or more about once in 1,000 rows, 0.9 about once in 9,000. Bad rows, and
    those whose time lies before that of the row before, are left out and counted. Results come out as the rows come in.

    \b
    Example:
        ssmn detect load.csv --only-flags --plot load.png
        tail -f load.csv | ssmn detect - --state load.safetensors --jsonl
    """
    from ssmn.series import read_table, rows_from

    options.check_place(plot)
    chosen = None if columns is None else [name.strip() for name in columns.split(",")]
    bad: list[BadRow] = []
    counts = {"rows": 0, "flagged": 0, "bad": 0}

    def on_bad(row: BadRow) -> None:
        if strict:
            raise FileError(f"line {row.line}: {row.reason}.")
        counts["bad"] += 1
        if not bad:
            bad.append(row)

    from_parquet = source.lower().endswith((".parquet", ".pq"))
    file = None
    if source != "-" and not from_parquet:
        try:
            file = Path(source).open("rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise FileError(
                f"detect: {source} cannot be read ({error.strerror}); wanted a CSV or Parquet file."
            ) from error
    try:
        if from_parquet:
            table = read_table(source, columns=chosen, time=time)
            names, time_name = table.names, table.time_name
            rows, waiting = _rows_of(table), lambda: False
        else:
            opened = cast("ByteSource", FlushingInput() if file is None else file)
            try:
                rows = reader = rows_from(opened, columns=chosen, time=time, on_bad=None if strict else on_bad)
            except FileError as error:
                raise FileError(f"{source}: {error}") from error
            names, time_name, waiting = reader.names, reader.time_name, lambda: reader.waiting
        if not names:
            raise FileError(f"{source}: the input is empty; wanted a line of names and a row per time.")
        detector = _detector(state, len(names), threshold, refractory)
        kept: list[tuple[list[Row], Detections]] = []
        try:
            head = True
            for batch in _batches(_in_order(rows, time_name, on_bad), waiting):
                found = _score(detector, batch)
                counts["rows"] += len(batch)
                counts["flagged"] += int(found.flags.sum())
                if plot is not None:
                    kept.append((batch, found))
                for row, line in enumerate(batch):
                    if not only_flags or found.flags[row]:
                        _write(_record(line, names, time_name, found, row), jsonl, head)
                        head = False
        finally:
            # What has been answered has been learned, also when the input turned bad or the reader left.
            if state is not None:
                detector.save(state)
    finally:
        if file is not None:
            file.close()
    if plot is not None:
        _draw(plot, kept, names, detector.config.threshold)
    told = f"ssmn detect: {counts['rows']:,} rows, {counts['flagged']:,} flagged"
    if bad:
        told += f", {counts['bad']:,} bad rows left out; the first: line {bad[0].line}: {bad[0].reason}"
    print(told, file=sys.stderr)


def _detector(state: Path | None, columns: int, threshold: float | None, refractory: int | None) -> Detector:
    from ssmn.series import Detector, DetectorConfig

    options.check_place(state)
    if state is not None and state.exists():
        detector = Detector.load(state)
        if detector.columns != columns:
            raise RangeError(
                f"detect: {state} watches {detector.columns} columns, but the input has {columns}; wanted the same "
                "ones: choose them with --columns."
            )
    else:
        detector = Detector(columns, DetectorConfig())
    given = {"threshold": threshold, "refractory": refractory}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    detector.config = dataclasses.replace(detector.config, **changes)
    return detector


def _rows_of(table: Table) -> Iterator[Row]:
    from ssmn.series import Row

    times = [None] * len(table) if table.times is None else list(table.times)
    return map(Row, table.lines.tolist(), times, map(tuple, table.values.tolist()))


def _in_order(rows: Iterator[Row], time_name: str | None, on_bad: Callable[[BadRow], None]) -> Iterator[Row]:
    """The rows, without those whose time lies before that of the row before."""
    from ssmn.series import BadRow

    before: np.datetime64 | None = None
    for row in rows:
        is_earlier = before is not None and row.time is not None and bool(row.time < before)
        if row.time is not None and row.time == row.time:  # a time that is missing says nothing
            before = row.time  # also of a bad row: a single time far ahead must not make all rows after it bad
        if is_earlier:
            on_bad(
                BadRow(
                    row.line,
                    f"column {time_name} is {_moment(row)}, which lies before the row before; wanted rows in order of "
                    "time: sort them",
                )
            )
        else:
            yield row


def _batches(rows: Iterator[Row], waiting: Callable[[], bool]) -> Iterator[list[Row]]:
    """Rows that are there already, together; what came before a bad row is not lost."""
    batch: list[Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH or waiting():
                yield batch
                batch = []
    except FileError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _score(detector: Detector, batch: list[Row]) -> Detections:
    import numpy as np

    times = None if batch[0].time is None else np.array([row.time for row in batch], "datetime64[ns]")
    return detector.push(np.array([row.values for row in batch]), times)


def _record(row: Row, names: tuple[str, ...], time_name: str | None, found: Detections, place: int) -> dict[str, Any]:
    record: dict[str, Any] = {"line": row.line}
    if time_name is not None:
        record[time_name] = _moment(row)
    record |= {name: None if math.isnan(value) else value for name, value in zip(names, row.values, strict=True)}
    record |= {"score": round(float(found.scores[place]), 4), "flag": int(found.flags[place])}
    if len(names) > 1:
        record["column"] = names[int(found.columns[place])]
    return record


def _moment(row: Row) -> str | None:
    """A row's time as text, or None if it has none."""
    moment = str(row.time).removesuffix("000000000").rstrip(".")
    return None if moment == "NaT" else moment


def _write(record: dict[str, Any], jsonl: bool, head: bool) -> None:
    if jsonl:
        print(json.dumps(record, ensure_ascii=False))
        return
    if head:
        print(",".join(map(_cell, record)))
    print(",".join(map(_cell, record.values())))


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def _draw(path: Path, kept: list[tuple[list[Row], Detections]], names: tuple[str, ...], threshold: float) -> None:
    from ssmn import plots
    from ssmn.files import atomic_write

    rows = [row for batch, _ in kept for row in batch]
    if not rows:
        raise RangeError("detect: there are no rows to draw; wanted at least one.")
    scores = [float(score) for _, found in kept for score in found.scores]
    flags = [number for number, flag in enumerate(flag for _, found in kept for flag in found.flags) if flag]
    columns = {name: [row.values[number] for row in rows] for number, name in enumerate(names)}
    timed = all(row.time is not None and str(row.time) != "NaT" for row in rows)
    times = [row.time for row in rows] if timed else None
    atomic_write(path, plots.png(plots.detections(columns, scores, flags, threshold, times=times)))
