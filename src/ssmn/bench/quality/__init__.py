"""Quality: what models of equal size learn and remember, ours beside the field's, as `ssmn bench quality` runs it.

A part is a module with a `PART`: a function that yields its runs, one that does a run, and one that makes tables
of the finished ones. Each finished run is a file, so a second call goes on where the first stopped.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssmn.bench.quality import classification as sequences
from ssmn.bench.quality import distance, encoder, forgetting, frame, hops, lm, recall, second_reading, sparse
from ssmn.bench.quality import output_memory as adaptation
from ssmn.bench.quality import shakespeare as characters
from ssmn.bench.quality import updates as row_by_row
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.registry import register
from ssmn.bench.report import Table
from ssmn.errors import RangeError

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        lm.PART,
        second_reading.PART,
        characters.PART,
        recall.PART,
        hops.PART,
        distance.PART,
        sparse.PART,
        forgetting.PART,
        adaptation.PART,
        encoder.PART,
        sequences.PART,
        row_by_row.PART,
    )
}
"""All parts by name, in the order in which they are run."""


@register("quality", has_floors=False)
def measure_quality(
    parts: Sequence[str] = (),
    *,
    out: str = "runs/quality",
    seeds: int = 3,
    text: str = "data/text",
    shakespeare: str = "tinyshakespeare.txt",
    series: str = "data/series",
    model: str | None = None,
    quick: bool = False,
    only: Sequence[str] = (),
    minutes: float | None = None,
    report_only: bool = False,
    on_run: Callable[[str, str], None] = lambda part, run: None,
    on_step: Callable[[int, int, str], None] = lambda done, total, figures: None,
) -> dict[str, Any]:
    """What models of equal size learn and remember, ours beside the field's.

    Args:
        parts: Names out of `PARTS`; all if empty.
        out: Folder of the finished runs; a run that is there is not done again.
        seeds: Repetitions, with the seeds 0, 1, ...
        text: Folder of a corpus (docs/corpus.md).
        shakespeare: The file tinyshakespeare.txt.
        series: Folder of the published benchmarks of time series: `ETT/ETTh1.csv` and `NAB`.
        model: Folder of a trained text model, for the parts that read with one; None = the shipped one.
        quick: A try with tiny sizes and no meaning.
        only: Patterns of runs to do; the others are left out.
        minutes: Stops after so many; the next call goes on.
        report_only: Does nothing but read what is finished.
        on_run: Called with (part, run) before each run.
        on_step: Called with (steps done, steps in all, a line of figures).

    Returns:
        `parts`: for each its finished runs by name, with `settings`, `results`, `machine` and `seconds`; and
        `complete`, whether all of them are finished.

    Raises:
        RangeError: There is no such part, or a finished run has other settings than it would have now.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise RangeError(f"quality: part={unknown[0]!r}; wanted one of {', '.join(PARTS)}.")
    if seeds < 1:
        raise RangeError(f"quality: seeds={seeds}; wanted at least 1.")
    given = {} if model is None else {"model": Path(model)}
    options = Options(Path(out), seeds, Path(text), Path(shakespeare), Path(series), **given, quick=quick)
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    chosen = [PARTS[name] for name in PARTS if not parts or name in parts]
    complete = not report_only
    try:
        for part in chosen if not report_only else ():
            begun = functools.partial(on_run, part.name)
            complete &= frame.work(part, options, only=only, until=until, on_run=begun, on_step=on_step)
    except (KeyboardInterrupt, frame.Stopped):
        complete = False
    return {"parts": {part.name: frame.finished(part, options.out) for part in chosen}, "complete": complete}


def tables(results: Result) -> list[Table]:
    """The tables of what `measure_quality` returned; parts without a finished run are left out."""
    return [table for name, runs in results["parts"].items() if runs for table in PARTS[name].tables(runs)]


__all__ = ["PARTS", "Options", "Part", "Run", "Workplace", "measure_quality", "tables"]
