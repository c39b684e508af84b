"""The table of benchmarks, and their records."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmn import native
from ssmn.bench.floors import measure
from ssmn.errors import RangeError
from ssmn.files import atomic_write
from ssmn.probes import machine


@dataclass(frozen=True)
class Benchmark:
    """A measurement that can be run by name."""

    name: str
    summary: str
    measure: Callable[..., dict[str, Any]]
    has_floors: bool
    """Whether its record has the machine's floors."""


BENCHMARKS: dict[str, Benchmark] = {}
"""All benchmarks by name."""


def register(
    name: str, *, has_floors: bool = True
) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Puts a function into the table; the first line of its docstring is the summary."""

    def decorate(measure: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        BENCHMARKS[name] = Benchmark(name, (measure.__doc__ or "").splitlines()[0], measure, has_floors)
        return measure

    return decorate


def run(name: str, *, floors: Mapping[str, int] | None = None, **settings: Any) -> dict[str, Any]:
    """Runs a benchmark and returns its record.

    Args:
        name: A name out of `BENCHMARKS`.
        floors: Settings for `ssmn.bench.floors.measure`.
        **settings: The benchmark's own; functions among them (progress) are not recorded.

    Returns:
        `benchmark`, `date`, `machine`, `kernels`, `floors` (measured first; where the benchmark has them),
        `settings` and `results`, all plain values.

    Raises:
        RangeError: There is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise RangeError(f"bench: name={name!r}; wanted one of {', '.join(BENCHMARKS)}.")
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"benchmark": name, "date": started, "machine": machine(), "kernels": native.status().kernels}
    if BENCHMARKS[name].has_floors:
        record["floors"] = measure(**(floors or {}))
    results = BENCHMARKS[name].measure(**settings)
    plain = {key: value for key, value in settings.items() if not callable(value)}
    return {**record, "settings": plain, "results": results}


def save(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a record as JSON, whole or not at all."""
    atomic_write(Path(path), (json.dumps(record, indent=2) + "\n").encode())
