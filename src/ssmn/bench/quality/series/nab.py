"""The scoring of the Numenta Anomaly Benchmark, from its published description.

Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms: the Numenta Anomaly Benchmark" (2015). Each
labelled anomaly is a window of rows. A flag in a window counts once, at its first row, and the earlier the better; a
flag outside costs, the less the closer it follows a window; a missed window costs. With the scaled sigmoid
σ(y) = 2 / (1 + exp(5 y)) − 1 of the relative position y (−1 at a window's left end, 0 at its right end, 1 one window's
width after it):

    window found:    tp · σ(−(right − i + 1) / width) / σ(−1)      i: row of the first flag in it
    window missed:   −fn
    flag outside:    fp · σ((i − right) / (width − 1))             right, width: of the window before; −fp without one,
                                                                   and from three widths on

Rows of the probation (the first 15 % of a stream, 750 rows at most) do not count. The sum over all streams is mapped
so that a detector without any flag (null) has 0 and one that flags the first row of each window and nothing else
has 100. One threshold serves all streams: the best of all that the scores offer, for each profile of weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmn.errors import FileError, ShapeError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """What a found window, a flag outside and a missed window weigh."""

    tp: float = 1.0
    fp: float = 0.11
    fn: float = 1.0


STANDARD = Profile()
PROFILES: Mapping[str, Profile] = {
    "standard": STANDARD,
    "reward low FP": Profile(fp=0.22),
    "reward low FN": Profile(fn=2.0),
}
"""The benchmark's three profiles; `standard` is the one that is quoted."""


@dataclass(frozen=True)
class Labelled:
    """A stream of the benchmark.

    Attributes:
        name: Its path in the benchmark, such as `realKnownCause/nyc_taxi.csv`.
        times: The rows' times [N].
        values: The rows' values [N].
        windows: First and last row of each labelled window.
    """

    name: str
    times: NDArray[np.datetime64]
    values: Floats
    windows: tuple[tuple[int, int], ...]

    @property
    def category(self) -> str:
        """The folder: where the stream comes from."""
        return self.name.partition("/")[0]

    @property
    def probation(self) -> int:
        """How many rows at the beginning do not count."""
        return min(math.floor(0.15 * len(self.values)), 750)


def read(folder: Path) -> list[Labelled]:
    """The streams of a copy of the benchmark, by name.

    Args:
        folder: Holds `data/CATEGORY/STREAM.csv` and `labels/combined_windows.json`.

    Raises:
        FileError: The folder is not such a copy.
    """
    labels = folder / "labels" / "combined_windows.json"
    try:
        limits = json.loads(labels.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(
            f"nab: {labels} cannot be read ({error}); wanted a copy of the Numenta Anomaly Benchmark's data and labels."
        ) from error
    return [_stream(folder / "data" / name, name, limits[name]) for name in sorted(limits)]


def _stream(path: Path, name: str, limits: Sequence[tuple[str, str]]) -> Labelled:
    try:
        rows = [line.rsplit(",", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
        times = np.array([row[0].strip() for row in rows], "datetime64[ns]")
        values = np.array([row[1] for row in rows], np.float64)
    except (OSError, ValueError, IndexError) as error:
        raise FileError(f"nab: {path} cannot be read ({error}); wanted lines of time,value.") from error
    windows = []
    for limit in limits:
        ends = [np.flatnonzero(times == np.datetime64(end)) for end in limit]
        if not all(end.size for end in ends):
            raise FileError(
                f"nab: {path} has no rows at the times {limit} of a window; wanted the labels of this copy."
            )
        windows.append((int(ends[0][0]), int(ends[1][0])))
    return Labelled(name, times, values, tuple(sorted(windows)))


def sigmoid(position: Floats) -> Floats:
    """σ of relative positions; −1 from three widths on."""
    return np.where(position >= 3.0, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 3.0))) - 1.0)


def rewards(stream: Labelled) -> tuple[Floats, NDArray[np.int64]]:
    """What a flag at each row [N] is worth before the weights, and the number of its window [N], −1 outside."""
    rows = np.arange(len(stream.values))
    worth, window = np.full(rows.size, -1.0), np.full(rows.size, -1)
    for number, (left, right) in enumerate(stream.windows):
        width = right - left + 1
        after, inside = slice(right + 1, None), slice(left, right + 1)
        worth[after] = sigmoid((rows[after] - right) / max(1, width - 1))
        worth[inside] = sigmoid(-(right - rows[inside] + 1) / width) / sigmoid(np.array(-1.0))
        window[inside] = number
    return worth, window


@dataclass(frozen=True)
class Verdict:
    """A score, and how it came about.

    Attributes:
        score: 0 for no flag at all, 100 for the first row of each window and nothing else.
        threshold: Rows with at least this score were flags.
        found: Windows with a flag.
        windows: Windows.
        outside: Flags outside.
    """

    score: float
    threshold: float
    found: int
    windows: int
    outside: int


def score(
    streams: Sequence[Labelled], scores: Sequence[Floats], threshold: float, profile: Profile = STANDARD
) -> Verdict:
    """The score at a given threshold.

    Args:
        streams: The streams.
        scores: An anomaly score for each row of each of them; a row with at least `threshold` is a flag.
        threshold: One for all streams.
        profile: The weights.

    Raises:
        ShapeError: A stream has another number of scores than rows.
    """
    return _sweep(streams, scores, profile, [threshold])[0]


def best(streams: Sequence[Labelled], scores: Sequence[Floats], profile: Profile = STANDARD) -> Verdict:
    """The score at the best threshold of all that the scores offer, as the benchmark's optimiser finds it.

    Args:
        streams: The streams.
        scores: An anomaly score for each row of each of them.
        profile: The weights.

    Raises:
        ShapeError: A stream has another number of scores than rows.
    """
    return max(_sweep(streams, scores, profile, None), key=lambda verdict: verdict.score)


def _sweep(
    streams: Sequence[Labelled], scores: Sequence[Floats], profile: Profile, thresholds: Sequence[float] | None
) -> list[Verdict]:
    worths, windows, levels, count = [], [], [], 0
    for stream, found in zip(streams, scores, strict=True):
        if found.shape != stream.values.shape:
            raise ShapeError(
                f"nab: {stream.name} has scores of shape {list(found.shape)}; wanted {list(stream.values.shape)}."
            )
        worth, window = rewards(stream)
        counted = slice(stream.probation, None)
        worths.append(worth[counted])
        windows.append(np.where(window < 0, -1, window + count)[counted])
        levels.append(found[counted])
        count += len(stream.windows)
    level = np.concatenate(levels)
    order = np.argsort(-level, kind="stable")
    level, worth, window = level[order], np.concatenate(worths)[order], np.concatenate(windows)[order]

    outside = window < 0
    gain = np.where(outside, profile.fp * worth, 0.0)
    first = np.zeros(level.size, dtype=bool)
    for number in range(count):
        of_window = np.flatnonzero(window == number)
        if of_window.size:
            value = np.maximum.accumulate(profile.tp * worth[of_window])
            gain[of_window] = np.diff(value, prepend=-profile.fn)
            first[of_window[0]] = True
    raw = np.concatenate([[0.0], np.cumsum(gain)]) - profile.fn * count
    found, false = (np.concatenate([[0], np.cumsum(flags)]) for flags in (first, outside))
    if thresholds is None:
        # A threshold takes in all rows with its score, so only the last of equal ones ends a set of flags.
        ends = np.flatnonzero(np.append(level[1:] != level[:-1], True)) + 1 if level.size else np.zeros(0, int)
        cuts = [(math.inf, 0), *zip(level[ends - 1].tolist(), ends.tolist(), strict=True)]
    else:
        cuts = [(value, int(np.searchsorted(-level, -value, side="right"))) for value in thresholds]
    span = (profile.tp + profile.fn) * count
    return [
        Verdict(
            100.0 * (raw[cut] + profile.fn * count) / span if span else 0.0,
            value,
            int(found[cut]),
            count,
            int(false[cut]),
        )
        for value, cut in cuts
    ]
