"""The table of benchmarks, their records, and how two things are timed against each other."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmn.errors import RangeError
from ssmn.files import atomic_write
from ssmn.probes import machine


@dataclass(frozen=True)
class Benchmark:
    """A measurement that can be run by name."""

    name: str
    summary: str
    measure: Callable[..., dict[str, Any]]


BENCHMARKS: dict[str, Benchmark] = {}
"""All benchmarks by name."""


def register(name: str) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Puts a function into the table; the first line of its docstring is the summary."""

    def decorate(measure: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        BENCHMARKS[name] = Benchmark(name, (measure.__doc__ or "").splitlines()[0], measure)
        return measure

    return decorate


def run(name: str, **settings: Any) -> dict[str, Any]:
    """Runs a benchmark and returns its record.

    Args:
        name: A name out of `BENCHMARKS`.
        **settings: The benchmark's own; functions among them (progress) are not recorded.

    Returns:
        `benchmark`, `date`, `machine`, `settings` and `results`, all plain values.

    Raises:
        RangeError: There is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise RangeError(f"bench: name={name!r}; wanted one of {', '.join(BENCHMARKS)}.")
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = BENCHMARKS[name].measure(**settings)
    plain = {key: value for key, value in settings.items() if not callable(value)}
    return {"benchmark": name, "date": started, "machine": machine(), "settings": plain, "results": results}


def save(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a record as JSON, whole or not at all."""
    atomic_write(Path(path), (json.dumps(record, indent=2) + "\n").encode())


def time_alternately(
    candidates: Mapping[str, Callable[[], object]], repeats: int, patience: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each call, the candidates taking turns so that the machine's moods hit them alike.

    Every candidate runs once beforehand, untimed: unless that run takes longer than `patience` seconds;
    then it is the only one and it counts (what takes that long does not notice a cold start).

    Args:
        candidates: Calls by name.
        repeats: Timed runs of each.
        patience: Seconds.
    """
    seconds: dict[str, list[float]] = {}
    for name, call in candidates.items():
        first = _time(call)
        seconds[name] = [first] if first > patience else []
    turns = {name: call for name, call in candidates.items() if not seconds[name]}
    for _ in range(repeats):
        for name, call in turns.items():
            seconds[name].append(_time(call))
    return seconds


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
