"""The frame of `ssmn bench quality`: parts, their runs, and a folder of finished runs."""

from __future__ import annotations

import datetime
import fnmatch
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmn.bench.report import Table
from ssmn.errors import FileError, RangeError
from ssmn.files import atomic_write, shipped_model
from ssmn.probes import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

Result = dict[str, Any]
"""What one run measured: plain values."""


class Stopped(Exception):  # noqa: N818 - no error
    """The work was stopped before all runs were finished."""


@dataclass(frozen=True)
class Options:
    """What all parts are given.

    Attributes:
        out: Folder of the finished runs; each part has a folder in it.
        seeds: Repetitions, with the seeds 0, 1, ...
        text: Folder of a corpus with `train`, `validation` and `held-out` in it (see docs/corpus.md).
        shakespeare: The file tinyshakespeare.txt.
        series: Folder of the published benchmarks of time series: `ETT/ETTh1.csv` and `NAB`.
        model: Folder of a trained text model, for the parts that read with one; the shipped one if not given.
        quick: A try with tiny sizes and no meaning.
    """

    out: Path = Path("runs/quality")
    seeds: int = 3
    text: Path = Path("data/text")
    shakespeare: Path = Path("tinyshakespeare.txt")
    series: Path = Path("data/series")
    model: Path = field(default_factory=shipped_model)
    quick: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a part.

    Attributes:
        name: Unique in its part; also the name of its file.
        settings: Everything that decides it, as plain values.
    """

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Workplace:
    """Where a run works.

    Attributes:
        options: What all parts are given.
        folder: The run's own; what is in it is still there when a stopped run goes on.
        on_step: To be called with (steps done, steps in all, a line of figures); True means: keep what
            there is and stop.
    """

    options: Options
    folder: Path
    on_step: Callable[[int, int, str], bool]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: On the command line, and of its folder.
        summary: One line.
        runs: Yields the runs in order. Each `yield` gives back the run's result, or None if it was left
            out, so that what follows may depend on it (the learning rate that was best).
        measure: Does one run and returns its result, or None if it was stopped before it was finished.
        tables: Finished runs by name (`settings`, `results` and more of each) as tables.
        drawing: The same as a drawing, or None if there is nothing to draw yet.
    """

    name: str
    summary: str
    runs: Callable[[Options], Generator[Run, Result | None, None]]
    measure: Callable[[Run, Workplace], Result | None]
    tables: Callable[[Mapping[str, Result]], list[Table]]
    drawing: Callable[[Mapping[str, Result], Look], Figure | None] = lambda finished, look: None


def finished(part: Part, out: Path) -> dict[str, Result]:
    """The finished runs of a part, by name."""
    found = {}
    for path in sorted((out / part.name).glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(f"quality: {path} is not the file of a run ({error}); delete it.") from error
    return found


def work(
    part: Part,
    options: Options,
    *,
    only: Iterable[str] = (),
    until: float = float("inf"),
    on_run: Callable[[str], None] = lambda _: None,
    on_step: Callable[[int, int, str], None] = lambda *_: None,
) -> bool:
    """Does the runs of a part that are not finished yet; each finished one is a file of its own.

    Args:
        part: The part.
        options: What all parts are given.
        only: Patterns of names, such as `delta-*`; other runs are left out unless they are finished.
        until: `time.monotonic()` after which to stop: a run that can goes on from there next time.
        on_run: Called with the name of each run that is begun.
        on_step: Called with (steps done, steps in all, a line of figures).

    Returns:
        Whether all of them are finished.

    Raises:
        RangeError: A finished run has other settings than it would have now.
        Stopped: By Ctrl-C, or since the time is up.
    """
    before, runs, complete = finished(part, options.out), part.runs(options), True
    patterns = list(only)
    result: Result | None = None
    while True:
        try:
            run = runs.send(result)
        except StopIteration:
            return complete
        if run.name in before:
            _check_same(before[run.name], run, options.out / part.name)
            result = before[run.name]["results"]
            continue
        result = None
        if patterns and not any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns):
            complete = False
            continue
        if time.monotonic() >= until:
            raise Stopped
        on_run(run.name)
        result = _do(part, run, options, until, on_step)
        if result is None:
            raise Stopped


def _do(
    part: Part, run: Run, options: Options, until: float, on_step: Callable[[int, int, str], None]
) -> Result | None:
    folder = options.out / part.name / run.name
    folder.mkdir(parents=True, exist_ok=True)

    def step(done: int, total: int, figures: str) -> bool:
        on_step(done, total, figures)
        return time.monotonic() >= until

    begun = time.monotonic()
    result = part.measure(run, Workplace(options, folder, step))
    if result is None:
        return None
    record = {
        "part": part.name,
        "run": run.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seconds": time.monotonic() - begun,
        "settings": run.settings,
        "results": result,
    }
    text = json.dumps(record, indent=2) + "\n"
    atomic_write(folder.with_name(f"{run.name}.json"), text.encode())
    return json.loads(text)["results"]  # as a later call will read it


def _check_same(record: Result, run: Run, folder: Path) -> None:
    now = json.loads(json.dumps(run.settings))
    if record["settings"] != now:
        changed = sorted(
            name for name in {**record["settings"], **now} if record["settings"].get(name) != now.get(name)
        )
        raise RangeError(
            f"quality: {folder / run.name}.json was measured with other settings ({', '.join(changed)}); "
            "use another --out, or delete it."
        )
