"""Streaming anomaly detection: each value once and in order, in constant memory, without back-propagation.

What a value is compared with is recalled from a synaptic memory whose key is the time: one slot for each hour of the
day and one for each hour of the week, written by the delta rule, so that the detector learns from its prediction error
at every row. The value itself and what it differs by from each of the two recalled ones are smoothed over several
spans of rows, and for each of these views the detector remembers the range it has been in, which slowly shrinks towards
the mean. An anomaly is news: a view that leaves its range. How far outside, in widths of the range, adds up over the
views to the evidence; what noise without any anomaly gives has been measured and turns evidence into a score with a
meaning (see `Detector`). `docs/anomalies.md` has the figures.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssmn.errors import ConfigError, FileError, RangeError, ShapeError
from ssmn.files import PathLike, read_file, write_file

Floats = NDArray[np.float64]

_HOURS = (24, 168)
"""Slots of the two memories: the hours of a day and of a week."""

_SETTLING = 20
"""Rows before the ranges begin, so that the longer means have something to average."""

_SCORE_HALF = 1_000.0
"""Rows of noise in which the score 0.5 is reached once."""

_CONTENT = "ssmn.series.Detector"


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Settings of a `Detector`. They were chosen once, for all kinds of streams; few need to be touched."""

    threshold: float = 0.5
    """Scores of at least this are flagged, in (0, 1]; 0.5 is what noise reaches about once in 1,000 rows."""
    refractory: int = 50
    """Rows after a flag without another, so that one event gives one flag and not one for each of its rows."""
    warm_up: int = 150
    """Rows at the beginning without a score."""
    half_life: float = 15_000.0
    """Rows in which a range shrinks to half its width if nothing comes near its ends."""
    plasticity_eta: float = 0.05
    """η of the memories in (0, 1]; a slot's first writes average instead, with 1/n."""
    scales: tuple[int, ...] = (1, 10, 100)
    """Rows over which values and differences are smoothed, rising."""

    def __post_init__(self) -> None:
        wanted = {
            "threshold": (0 < self.threshold <= 1, "a number above 0 and at most 1"),
            "refractory": (_whole(self.refractory, 0), "a whole number from 0"),
            "warm_up": (_whole(self.warm_up, _SETTLING), f"a whole number from {_SETTLING}"),
            "half_life": (1 <= self.half_life < math.inf, "a number from 1"),
            "plasticity_eta": (0 < self.plasticity_eta <= 1, "a number above 0 and at most 1"),
            "scales": (_rising(self.scales), "rising whole numbers from 1"),
        }
        for name, (is_right, description) in wanted.items():
            if not is_right:
                raise ConfigError(f"DetectorConfig: {name}={getattr(self, name)!r}; wanted {description}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {**dataclasses.asdict(self), "scales": list(self.scales)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorConfig:
        """Settings from plain values.

        Raises:
            ConfigError: A name is unknown or a value impossible.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"DetectorConfig: there is no setting {unknown[0]!r}.")
        given = dict(values)
        if isinstance(given.get("scales"), list):
            given["scales"] = tuple(given["scales"])
        return cls(**given)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _rising(values: Sequence[int]) -> bool:
    return (
        len(values) > 0
        and all(_whole(value, 1) for value in values)
        and all(a < b for a, b in itertools.pairwise(values))
    )


@dataclass(frozen=True)
class Detection:
    """What a detector says of one row.

    Attributes:
        score: In [0, 1]; see `Detector`.
        flag: The score is at least the threshold, and no row was flagged shortly before.
        column: Number of the column that is furthest outside what was expected.
    """

    score: float
    flag: bool
    column: int


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector says of N rows.

    Attributes:
        scores: [N] float64 in [0, 1]; see `Detector`.
        flags: [N] bool: the score is at least the threshold, and no row was flagged shortly before.
        columns: [N] int64, number of the column that is furthest outside what was expected.
        news: [N] float64, the scores, but 0 where a flag shortly before silences the row.
    """

    scores: Floats
    flags: NDArray[np.bool_]
    columns: NDArray[np.int64]
    news: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, row: int) -> Detection:
        return Detection(float(self.scores[row]), bool(self.flags[row]), int(self.columns[row]))


class _Column:
    """What one column of the rows has been: memories, means and ranges, and the step that compares and learns."""

    def __init__(self, config: DetectorConfig) -> None:
        inputs = 1 + len(_HOURS)
        views = inputs * len(config.scales) + 1
        self.seen = 0
        self.memory = [0.0] * sum(_HOURS)
        self.visits = [0] * sum(_HOURS)
        self.means = [0.0] * (views - 1)
        self.centres, self.lows, self.highs = [0.0] * views, [0.0] * views, [0.0] * views
        self._rates = [1.0 / scale for scale in config.scales]
        self._keep = 0.5 ** (1.0 / config.half_life)
        self._drift = 1.0 / config.half_life
        self._eta = config.plasticity_eta

    def step(self, value: float, hour: int | None) -> float:
        """Takes a value; returns how far its views lie outside their ranges, the evidence of an anomaly.

        Args:
            value: The value.
            hour: Full hours since 1970, or None if the time is unknown.
        """
        self.seen += 1
        once = 1.0 / self.seen
        means = self.means
        level = value if self.seen == 1 else means[len(self._rates) - 1]
        views = []
        rates = [max(rate, once) for rate in self._rates]
        for number, given in enumerate((value, *self._surprises(value, level, hour))):
            for place, rate in enumerate(rates, start=number * len(rates)):
                means[place] += rate * (given - means[place])
                views.append(means[place])
        views.append(value - level)

        age = self.seen - _SETTLING
        if age <= 1:
            self.centres, self.lows, self.highs = list(views), list(views), list(views)
            return 0.0
        evidence, drift, keep = 0.0, max(self._drift, 1.0 / age), self._keep
        centres, lows, highs = self.centres, self.lows, self.highs
        for number, view in enumerate(views):
            low, high = lows[number], highs[number]
            if view > high or view < low:
                # The second term keeps the width of a constant stream's range above what rounding makes of it.
                width = high - low + 1e-9 * (1.0 + abs(view))
                evidence += math.sqrt((view - high if view > high else low - view) / width)
            centre = centres[number] = centres[number] + drift * (view - centres[number])
            highs[number] = max(view, centre + keep * (high - centre))
            lows[number] = min(view, centre + keep * (low - centre))
        return evidence

    def _surprises(self, value: float, level: float, hour: int | None) -> list[float]:
        """The value's differences from what each memory recalls for the time, which is then corrected."""
        if hour is None:
            # Nothing is recalled, and the value stands for the differences: the evidence keeps its size.
            return [value] * len(_HOURS)
        found, recalled, begin = [], level, 0
        for slots in _HOURS:
            key = begin + hour % slots
            if self.visits[key]:
                recalled = self.memory[key]
            self.visits[key] += 1
            error = value - recalled
            found.append(error)
            # The delta rule with the slot as a one-hot key.
            self.memory[key] = recalled + max(self._eta, 1.0 / self.visits[key]) * error
            begin += slots
        return found

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The state's arrays by name."""
        return {name: np.asarray(value) for name, value in vars(self).items() if not name.startswith("_")}

    def restore(self, tensors: dict[str, NDArray[Any]]) -> None:
        """Takes over arrays of `tensors`; raises a ShapeError or KeyError if they are none."""
        for name, own in self.tensors().items():
            given = tensors[name]
            if given.shape != own.shape or given.dtype != own.dtype:
                raise ShapeError(f"{name} is {given.dtype} {list(given.shape)}; wanted {own.dtype} {list(own.shape)}")
            setattr(self, name, given.tolist())


def _return_period(evidence: float, seen: int, half_life: float) -> float:
    """After how many rows noise without any anomaly shows so much evidence again.

    Fitted to ten kinds of noise; `ssmn bench quality --part anomalies` measures how well it holds. Records become
    rarer with the number of rows seen, until the ranges shrink as fast as records widen them.
    """
    return 0.32 * half_life * evidence * math.sqrt(math.sqrt(evidence)) / (1.0 + 0.14 * half_life / seen)


class Detector:
    """Finds anomalies in a stream of numbers: each row once, in order, in constant memory, without look-ahead.

    A score has a meaning: noise without any anomaly, whatever its distribution, scores s or more about once in
    1,000 · s / (1 − s) rows: 0.5 once in 1,000, 0.9 once in 9,000. On ten kinds of noise 0.5 comes once in 700
    to 2,400 rows (without those silenced by a flag); high scores come more rarely than they claim.

    Args:
        columns: C, the numbers in a row.
        config: Settings; the defaults serve all kinds of streams.

    Raises:
        RangeError: `columns` is below 1.

    Example:
        >>> import numpy as np
        >>> from ssmn.series import Detector
        >>> hours = np.datetime64("2024-01-01T00") + np.arange(1000)
        >>> load = np.sin(np.arange(1000) * 2 * np.pi / 24) + 0.1 * np.random.default_rng(0).standard_normal(1000)
        >>> load[714] = 0.9  # as high as at six in the morning, at six in the evening
        >>> found = Detector().push(load, hours)
        >>> np.flatnonzero(found.flags).tolist(), round(float(found.scores[714]), 2)
        ([714], 0.84)
    """

    def __init__(self, columns: int = 1, config: DetectorConfig | None = None) -> None:
        if not _whole(columns, 1):
            raise RangeError(f"Detector: columns={columns!r}; wanted a whole number from 1.")
        self.columns = columns
        self.config = DetectorConfig() if config is None else config
        self.rows = 0
        """Rows seen."""
        self._silent = 0
        self._states = [_Column(self.config) for _ in range(columns)]

    @property
    def nbytes(self) -> int:
        """Bytes of the state; the same after any number of rows."""
        return sum(array.nbytes for array in self._tensors().values())

    def step(self, values: ArrayLike, time: np.datetime64 | None = None) -> Detection:
        """Scores one row, then learns from it.

        Args:
            values: [C], or a number if C is 1. NaN: no value, nothing is learned from it and its column has no score.
            time: The row's time; None (or NaT) = unknown: nothing is recalled for this row.

        Raises:
            ShapeError: There are not C values.
            RangeError: A value is infinite.
        """
        row = np.asarray(values, np.float64).reshape(1, -1)
        times = None if time is None else np.array([time], "datetime64[ns]")
        return self.push(row if self.columns > 1 else row[0], times)[0]

    def push(self, values: ArrayLike, times: ArrayLike | None = None) -> Detections:
        """Scores rows one after the other, learning from each before the next: the same as `step` row by row.

        Args:
            values: [N, C], or [N] if C is 1; NaN as in `step`.
            times: [N] datetime64, or None.

        Raises:
            ShapeError: Values or times have another shape.
            RangeError: A value is infinite.
        """
        table = _table(values, self.columns)
        hours = _hours(times, len(table))
        scores, news = np.zeros(len(table)), np.zeros(len(table))
        flags, columns = np.zeros(len(table), bool), np.zeros(len(table), np.int64)
        for row, cells in enumerate(table.tolist()):
            scores[row], columns[row] = score, _ = self._score(cells, hours[row])
            if self._silent:
                self._silent -= 1
                continue
            news[row] = score
            if score >= self.config.threshold:
                flags[row] = True
                self._silent = self.config.refractory
        self.rows += len(table)
        return Detections(scores, flags, columns, news)

    def _score(self, cells: list[float], hour: int | None) -> tuple[float, int]:
        """The score of a row, and its column that is furthest outside."""
        longest, column = 0.0, 0
        for number, (value, state) in enumerate(zip(cells, self._states, strict=True)):
            if value != value:
                continue
            evidence = state.step(value, hour)
            if evidence > 0.0 and state.seen > self.config.warm_up:
                period = _return_period(evidence, state.seen, self.config.half_life)
                if period > longest:
                    longest, column = period, number
        # The more columns, the more often one of them is outside by chance.
        longest /= self.columns
        return longest / (longest + _SCORE_HALF), column

    def save(self, path: PathLike) -> None:
        """Writes the state to a checked file, whole or not at all.

        Raises:
            FileError: The folder is missing or the disk is full.

        Example:
            >>> import pathlib, tempfile
            >>> import numpy as np
            >>> from ssmn.series import Detector
            >>> values = np.random.default_rng(0).standard_normal(400)
            >>> detector = Detector()
            >>> _ = detector.push(values[:300])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     detector.save(pathlib.Path(folder) / "load.safetensors")
            ...     again = Detector.load(pathlib.Path(folder) / "load.safetensors")
            >>> np.array_equal(again.push(values[300:]).scores, detector.push(values[300:]).scores)
            True
        """
        header = {
            "kind": "checkpoint", "content": _CONTENT, "columns": self.columns, "rows": self.rows,
            "silent": self._silent, "config": self.config.to_dict(),
        }  # fmt: skip
        write_file(path, self._tensors(), header)

    @classmethod
    def load(cls, path: PathLike) -> Detector:
        """The detector of a file of `save`.

        Raises:
            FileError: The file is missing, damaged, or not a detector's.
        """
        tensors, header = read_file(path, kind="checkpoint")
        if header.get("content") != _CONTENT:
            raise FileError(f"Detector.load: {path} is not a detector's; wanted a file of Detector.save.")
        try:
            detector = cls(header["columns"], DetectorConfig.from_dict(header["config"]))
            detector.rows = int(header["rows"])
            detector._silent = int(header["silent"])
            for number, state in enumerate(detector._states):
                state.restore(
                    {name.partition(".")[2]: array for name, array in tensors.items() if name.startswith(f"{number}.")}
                )
        except (KeyError, TypeError, ConfigError, RangeError, ShapeError) as error:
            raise FileError(
                f"Detector.load: {path} does not hold a whole detector ({error}); save it again."
            ) from error
        return detector

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return {
            f"{number}.{name}": array
            for number, state in enumerate(self._states)
            for name, array in state.tensors().items()
        }


def _table(values: ArrayLike, columns: int) -> Floats:
    table = np.asarray(values, np.float64)
    if columns == 1 and table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[1] != columns:
        wanted = "[N] or [N, 1]" if columns == 1 else f"[N, {columns}]"
        raise ShapeError(f"Detector: values have shape {list(np.shape(values))}; wanted {wanted}.")
    if np.isinf(table).any():
        row, column = np.argwhere(np.isinf(table))[0].tolist()
        raise RangeError(f"Detector: row {row}, column {column} is infinite; wanted finite numbers, or NaN for none.")
    return table


def _hours(times: ArrayLike | None, length: int) -> list[int | None]:
    """Full hours since 1970 of times [N]; None where a time is unknown."""
    if times is None:
        return [None] * length
    moments = np.asarray(times)
    if moments.shape != (length,) or moments.dtype.kind != "M":
        raise ShapeError(
            f"Detector: times are {moments.dtype} {list(moments.shape)}; wanted datetime64 [{length}], one a row."
        )
    hours = moments.astype("datetime64[h]").astype(np.int64).tolist()
    return [None if unknown else hour for hour, unknown in zip(hours, np.isnat(moments).tolist(), strict=True)]
