"""Two records of the same benchmark, figure by figure: what became better or worse, beyond the noise of the runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssmn.bench.figures import Figure, figures_of
from ssmn.errors import FileError, RangeError

SMALLEST_CHANGE = 0.05
"""A smaller change of the median is noise, whatever the quartiles say."""


@dataclass(frozen=True)
class Change:
    """One figure in both records."""

    base: Figure
    now: Figure

    @property
    def ratio(self) -> float:
        """Now ÷ base."""
        return self.now.median / self.base.median if self.base.median else float("inf")

    @property
    def verdict(self) -> Literal["same", "better", "worse"]:
        """`same` if the quartiles of the two overlap, or the medians differ by less than 5 %."""
        overlap = self.now.low <= self.base.high and self.base.low <= self.now.high
        if overlap or abs(self.ratio - 1.0) < SMALLEST_CHANGE:
            return "same"
        return "better" if (self.ratio < 1.0) == (self.now.better == "less") else "worse"


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a record that `save` wrote.

    Raises:
        FileError: The file is not there, or holds no record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read as a record ({error}); wanted what --json wrote.") from error
    if not isinstance(record, dict) or not {"benchmark", "machine", "results"} <= record.keys():
        raise FileError(f"{path}: holds no record; wanted what --json wrote.")
    return record


def compare(base: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The figures that both records have, in the order of `now`.

    Args:
        base: The earlier record.
        now: The later one.

    Raises:
        RangeError: They are of different benchmarks.
    """
    if base["benchmark"] != now["benchmark"]:
        raise RangeError(f"compare: the base is of {base['benchmark']!r}, not of {now['benchmark']!r}.")
    before = {(figure.panel, figure.length, figure.who): figure for figure in figures_of(base)}
    names = [(figure, before.get((figure.panel, figure.length, figure.who))) for figure in figures_of(now)]
    return [Change(old, figure) for figure, old in names if old is not None]


def floor_ratios(base: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """Now ÷ base of the machine's floors: how much faster the machine itself was."""
    earlier, later = base.get("floors", {}), now.get("floors", {})
    return {name: later[name]["median"] / earlier[name]["median"] for name in later if name in earlier}
