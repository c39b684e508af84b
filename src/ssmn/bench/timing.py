"""How things are timed against each other: in turns, in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping


def time_alternately(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    patience: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, the candidates taking turns so that the machine's moods hit them alike.

    Every candidate runs once beforehand, untimed: unless that run takes longer than `patience` seconds;
    then it is the only one and it counts (what takes that long does not notice a cold start).

    Args:
        candidates: Calls by name.
        repeats: Timed runs of each.
        patience: Seconds.
        clock: What tells the time; `time.process_time` is blind to other programs and counts all threads together.
    """
    seconds: dict[str, list[float]] = {}
    for name, call in candidates.items():
        first = _time(call, clock)
        seconds[name] = [first] if first > patience else []
    turns = {name: call for name, call in candidates.items() if not seconds[name]}
    for _ in range(repeats):
        for name, call in turns.items():
            seconds[name].append(_time(call, clock))
    return seconds


def _time(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
