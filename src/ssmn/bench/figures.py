"""Figures: what a benchmark measured, in one form, so that any record can be tabulated, drawn and compared."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["less", "more"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value with its spread.

    `panel`, `length` and `who` together name it; figures of one panel have one unit.
    """

    panel: str
    """What was measured, e.g. "window 512, forward, 4 × 64, float32"."""
    length: int
    """n: tokens of the sequence, or the position of the stream."""
    who: str
    """The candidate."""
    unit: str
    """Of the values, e.g. "ms" or "tokens/s"."""
    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    runs: int
    """Timed runs."""
    better: Better = "less"
    """Whether less or more of it is better."""
    ours: bool = False
    """Whether this is the library itself and not a rival."""
    against: str | None = None
    """For a rival, the candidate of ours that it is compared with, in the same panel at the same length."""
    details: Mapping[str, float] = field(default_factory=dict)
    """What else is known about it, e.g. "GFLOP/s" or "share of GEMM rate"."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`median`, quartiles `low` and `high`, and the number of `runs`.

    Example:
        >>> from ssmn.bench.figures import spread
        >>> spread([3.0, 1.0, 2.0])
        {'median': 2.0, 'low': 1.5, 'high': 2.5, 'runs': 3}
    """
    low = high = values[0]
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "runs": len(values)}


def plain(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """The figures as JSON has them."""
    return [{**asdict(figure), "details": dict(figure.details)} for figure in figures]


def figures_of(record: Mapping[str, Any]) -> list[Figure]:
    """The figures of a record."""
    return [Figure(**values) for values in record["results"].get("figures", [])]


def advantages(figures: Sequence[Figure]) -> dict[tuple[str, int, str], float]:
    """For every rival's figure by (panel, length, who): how many times better the one of ours that it names is."""
    by_name = {(figure.panel, figure.length, figure.who): figure for figure in figures}
    found = {}
    for name, figure in by_name.items():
        ours = by_name.get((figure.panel, figure.length, figure.against or ""))
        if ours is not None:
            less = figure.better == "less"
            found[name] = figure.median / ours.median if less else ours.median / figure.median
    return found
