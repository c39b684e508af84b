"""`ssmn stream`: standard input to standard output, in constant memory however long it is."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ssmn.cli import options
from ssmn.errors import RangeError

if TYPE_CHECKING:
    from ssmn.models import SSMN, TextSSMN
    from ssmn.streaming import ByteSource, ByteSurprise, LineSurprise, RowPrediction


class FlushingInput:
    """Standard input that hands over what was written before it waits for more."""

    def __init__(self) -> None:
        self._source = cast("ByteSource", sys.stdin.buffer)

    def read1(self, size: int, /) -> bytes:
        sys.stdout.flush()
        return self._source.read1(size)


def command(
    model: options.Model = None,
    state: options.StateFile = None,
    per: Annotated[Literal["line", "byte"], typer.Option(help="Text: one result per line or per byte.")] = "line",
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines in place of a table.")] = False,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Rows: the columns to use, by name or number.")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header", help="Rows: whether the first holds names; looked for if neither is given."
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Rows: the column of times, by name or number; the stream decays by them."),
    ] = None,
    step: Annotated[
        float, typer.Option(metavar="SECONDS", help="Rows: the usual time from one to the next, with --time.")
    ] = 1.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Rows: stop at a bad one in place of leaving it out.")
    ] = False,
    preset: options.Preset = None,
    frozen: options.Frozen = False,
    eta: options.Eta = None,
    eta_scale: options.EtaScale = 1.0,
    decay: options.Decay = None,
    decay_scale: options.DecayScale = 1.0,
    write_threshold: options.WriteThreshold = None,
    output_memory: options.OutputMemory = False,
    probes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record what the layers hold: .jsonl, .csv, or a folder for TensorBoard."),
    ] = None,
    probe_every: Annotated[int, typer.Option(min=1, help="Steps from one record to the next.")] = 32768,
    threads: options.Threads = None,
) -> None:
    """Read standard input as one endless stream; write surprise (text) or predictions (rows).

    A text model gives the surprise, in bits, of every line or byte. A Standard model takes rows of
    comma-separated numbers and gives its output after each of them: what it expects next. Times are dates
    or seconds. Bad rows are left out, and reported at the end. Memory is constant however long the input
    is, and results come out as the input comes in.

    \b
    Example:
        ssmn stream < notes.txt
        tail -f app.log | ssmn stream --state log.safetensors
        ssmn stream --model runs/sensor --columns load,temperature < sensor.csv
        ssmn stream --probes probes.csv --probe-every 4096 < notes.txt
        ssmn stream --model runs/sensor --time date --step 3600 < hourly.csv
    """
    options.use_threads(threads)
    settings = options.plasticity(preset, frozen, eta, eta_scale, decay, decay_scale, write_threshold)
    loaded = options.load(model, output_memory)
    if loaded.config.kind == "text" and (columns is not None or header is not None or strict or time is not None):
        raise RangeError(
            "stream: --columns, --header, --time and --strict are for rows of numbers, but the model reads text; "
            "leave them out."
        )
    if loaded.config.kind != "text" and per != "line":
        raise RangeError("stream: --per is for text, but the model reads rows of numbers; leave it out.")
    if not (math.isfinite(step) and step > 0) or (step != 1.0 and time is None):
        raise RangeError(f"stream: --step={step:g}; wanted a positive number of seconds, together with --time.")
    in_torch = loaded.config.kind == "text" or probes is not None
    stream = options.open_stream(loaded, state, "torch" if in_torch else "auto")
    recorder = None
    if probes is not None:
        from ssmn.probes import RecordedStream, Recorder

        recorder = Recorder(probes, every=probe_every, append=state is not None)
        stream = RecordedStream(loaded, stream.state, recorder=recorder)

    from ssmn.streaming import RowReader, byte_surprise, line_surprise, output_names, row_predictions

    source, rows = FlushingInput(), None
    records: Iterable[Mapping[str, Any]]
    if loaded.config.kind == "text":
        tokenizer = options.load_tokenizer(model, cast("TextSSMN", loaded))
        if per == "line":
            records = map(_line_record, line_surprise(stream, tokenizer, source, plasticity=settings))
        else:
            records = map(_byte_record, byte_surprise(stream, tokenizer, source, plasticity=settings))
        separator = "\t"
    else:
        config = cast("SSMN", loaded).config
        chosen = None if columns is None else [name.strip() for name in columns.split(",")]
        rows = RowReader(
            source, config.input_dim, columns=chosen, header=header, gaps=config.missing == "mask", strict=strict,
            clock=None if time is None else (time, lambda cell: _seconds(cell) / step),
        )  # fmt: skip
        names = output_names(config, rows.names) if rows.names else []
        records = (_row_record(result, names) for result in row_predictions(stream, rows, plasticity=settings))
        separator = ","
    try:
        _write(records, jsonl, separator)
    finally:
        # What has been answered has been learned, also when the input turned bad or the reader left.
        if state is not None:
            stream.save(state)
        if recorder is not None:
            recorder.close()
        if rows is not None and rows.bad:
            more = f"; and {rows.bad - len(rows.complaints)} more" if rows.bad > len(rows.complaints) else ""
            print(f"left out {rows.bad} bad rows: {' '.join(rows.complaints)}{more}", file=sys.stderr)


def _seconds(cell: str) -> float:
    """A time as seconds since 1970; NaN if the cell is empty."""
    import numpy as np

    from ssmn.series.tables import parse_time

    moment = parse_time(cell)
    return math.nan if np.isnat(moment) else float(moment.astype(np.int64)) / 1e9


def _line_record(result: LineSurprise) -> dict[str, Any]:
    return {
        "line": result.line,
        "bytes": result.bytes,
        "bits": round(result.bits, 3),
        "bits_per_byte": round(result.bits_per_byte, 4),
        "text": result.text,
    }


def _byte_record(result: ByteSurprise) -> dict[str, Any]:
    return {"offset": result.offset, "byte": result.byte, "bits": round(result.bits, 4)}


def _row_record(result: RowPrediction, names: list[str]) -> dict[str, Any]:
    values = (None if math.isnan(value) else float(f"{value:.7g}") for value in result.values)
    return {"line": result.line, **dict(zip(names, values, strict=True))}


def _write(records: Iterable[Mapping[str, Any]], jsonl: bool, separator: str) -> None:
    for number, record in enumerate(records):
        if jsonl:
            print(json.dumps(record, ensure_ascii=False))
            continue
        if number == 0:
            print(separator.join(map(_cell, record)))
        print(separator.join(map(_cell, record.values())))


def _cell(value: object) -> str:
    """A cell that holds no separator: tabs and the like in a text are written as escapes."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\r", "\\r")
