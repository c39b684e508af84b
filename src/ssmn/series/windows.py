"""Windows of a table as regressors: normalised values, a small SSMN's summary of them, and what is known ahead."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssmn.models import SSMN
from ssmn.series.tables import Times, season_of
from ssmn.training.tasks import Batch, Split, Task

Array = NDArray[np.floating]
Shift = Literal["mean", "last"]

_LEAST_SCALE = 0.05
"""Added to a window's deviation (the column's is 1), so that a flat window is not blown up."""
_CHUNK = 1024
"""Windows that are held at once."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Standardised rows, and what is known of their times.

    Attributes:
        values: [N, C] targets; NaN = unknown.
        exogenous: [N, E], known up to now; finite.
        future: [M ≥ N, K], known ahead of time (calendar and given columns); rows beyond N belong to the horizon.
    """

    values: Array
    exogenous: Array
    future: Array

    @cached_property
    def filled(self) -> Array:
        """[N, C], the targets with the last known value where one is missing; NaN before the first."""
        return filled(self.values)


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """How a window becomes regressors."""

    context: int
    """L, rows of a window."""
    horizon: int
    """H, rows ahead."""
    shift: Shift = "mean"
    """What is taken off a window and added to its forecast: its mean, or its last value."""
    exogenous_rows: int = 24
    """Rows of each further input at the end of the window."""
    ahead: tuple[int, ...] = ()
    """Columns of `Rows.future` that are read at all H steps ahead; the others at the first of them only."""
    first: tuple[int, ...] = ()
    """Columns of `Rows.future` that are read at the first step ahead."""


class Regressors:
    """Makes φ of windows: [values − shift | summary · s | s, 1 | further inputs | known ahead].

    s is the deviation of the window. All but the inputs of other columns scale with the window, so that
    a series whose swings double has a forecast whose swings double.

    Args:
        spec: Sizes.
        network: An SSMN over patches whose last hidden vector is the summary, or None.
        patch: Rows of a patch.
    """

    def __init__(self, spec: WindowSpec, network: SSMN | None = None, patch: int = 16) -> None:
        self.spec, self.network, self.patch = spec, network, patch

    def __call__(self, rows: Rows, origins: NDArray[np.int64], channel: int) -> tuple[Array, Array, Array]:
        """Regressors of the windows that end just before the rows `origins`.

        Returns:
            (φ [n, F] float32, NaN where the window has no value; shift [n]; scale [n]).
        """
        spec = self.spec
        context = spec.context
        series = rows.filled[:, channel].astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(series, context)[origins - context]
        if np.isnan(series).any():  # a series that begins late: what came before is taken to be its first value
            known = ~np.isnan(windows)
            first = windows[np.arange(len(windows)), known.argmax(1)][:, None]
            windows = np.where(known, windows, first)
        shift = windows[:, -1:] if spec.shift == "last" else windows.mean(1, keepdims=True)
        values = windows - shift
        scale = values.std(1, keepdims=True) + np.float32(_LEAST_SCALE)
        parts = [values]
        if self.network is not None:
            parts.append(self.summary(values / scale) * scale)
        parts += [scale, np.ones_like(scale)]
        if rows.exogenous.shape[1]:
            short = min(spec.exogenous_rows, context)
            before = np.lib.stride_tricks.sliding_window_view(rows.exogenous, short, axis=0)[origins - short]
            parts.append(before.reshape(len(origins), -1))
        if spec.ahead:
            chosen = rows.future[:, list(spec.ahead)]
            after = np.lib.stride_tricks.sliding_window_view(chosen, spec.horizon, axis=0)[origins]
            parts.append(after.reshape(len(origins), -1))
        if spec.first:
            parts.append(rows.future[origins][:, list(spec.first)])
        return np.concatenate(parts, 1, dtype=np.float32), shift[:, 0], scale[:, 0]

    @torch.no_grad()
    def summary(self, normalised: Array) -> Array:
        """[n, L] to the last hidden vector [n, D] of the SSMN, which has read them patch by patch."""
        assert self.network is not None
        network, kept = self.network, []
        hook = network.norm.register_forward_hook(lambda _module, _inputs, hidden: kept.append(hidden[:, -1]))
        try:
            network(patches(normalised, self.patch))
        finally:
            hook.remove()
        return kept[0].numpy()

    def widths(self, rows: Rows) -> list[tuple[str, int]]:
        """Names and widths of the parts of φ."""
        spec = self.spec
        hidden = 0 if self.network is None else self.network.config.hidden_dim
        beside = rows.exogenous.shape[1] * min(spec.exogenous_rows, spec.context)
        known = spec.horizon * len(spec.ahead) + len(spec.first)
        return [("values", spec.context), ("summary", hidden), ("scale", 2), ("beside", beside + known)]


def patches(windows: Array, patch: int) -> torch.Tensor:
    """[n, L] to [n, ⌊L / patch⌋, patch]: the last whole patches, oldest first."""
    count = windows.shape[1] // patch
    return torch.from_numpy(np.ascontiguousarray(windows[:, -count * patch :], np.float32)).view(-1, count, patch)


@dataclass(eq=False)
class Moments:
    """Sums that closed forms and their errors are made of, over windows whose truths are known."""

    moment: Array
    """ΦᵀΦ, [F, F]."""
    cross: Array
    """ΦᵀY, [F, H]."""
    square: float
    """Σ y²."""
    windows: int
    """Windows times channels."""

    def error(self, weights: Array) -> float:
        """Mean squared error of weights [F, H] on these windows."""
        total = self.square - 2 * np.vdot(weights, self.cross) + np.vdot(weights, self.moment @ weights)
        return float(total) / max(1, self.windows * self.cross.shape[1])

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.moment + other.moment,
            self.cross + other.cross,
            self.square + other.square,
            self.windows + other.windows,
        )

    def part(self, chosen: NDArray[np.bool_]) -> Moments:
        """The sums of some of the regressors."""
        return Moments(self.moment[np.ix_(chosen, chosen)], self.cross[chosen], self.square, self.windows)


def truths(rows: Rows, origins: NDArray[np.int64], channel: int, horizon: int) -> Array:
    """[n, H], the rows from `origins` on; NaN where unknown."""
    series = rows.values[:, channel].astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(series, horizon)[origins]


def moments(make: Regressors, rows: Rows, begin: int, end: int) -> Moments:
    """The sums over all windows whose truths lie within rows `begin` to `end`, of all channels."""
    total: Moments | None = None
    for channel in range(rows.values.shape[1]):
        for origins in chunks(begin, end - make.spec.horizon + 1):
            y = truths(rows, origins, channel, make.spec.horizon)
            features, shift, _ = make(rows, origins, channel)
            y = y - shift[:, None]
            known = np.isfinite(y).all(1) & np.isfinite(features).all(1)
            if not known.all():
                features, y = features[known], y[known]
            square = float(np.vdot(y, y))
            part = Moments(
                (features.T @ features).astype(np.float64), (features.T @ y).astype(np.float64), square, len(y)
            )
            total = part if total is None else total + part
    assert total is not None
    return total


def chunks(begin: int, end: int) -> Iterator[NDArray[np.int64]]:
    """Numbers from `begin` to `end`, some at a time."""
    for start in range(begin, end, _CHUNK):
        yield np.arange(start, min(end, start + _CHUNK))


def filled(values: Array) -> Array:
    """Each column with the last known value where one is missing; NaN before the first known one."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    last = np.where(missing, 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(last, 0), 0)


def calendar(times: Times, step: np.timedelta64) -> Array:
    """Where each time stands in its day (steps below a day), its week (steps up to a day) and its year (above).

    Returns:
        [N, K], sine and cosine of the first harmonics.
    """
    days = times.astype("datetime64[s]").astype(np.int64) / 86400.0
    circles: list[tuple[float, int]] = []
    step_days = step / np.timedelta64(1, "D")
    if step_days < 0.75:
        circles.append((1.0, 2))
    if step_days <= 1.5:
        circles.append((7.0, 3))
    elif season_of(step) > 1:
        circles.append((365.2425, 2))
    columns = []
    for length, harmonics in circles:
        for harmonic in range(1, harmonics + 1):
            angle = 2 * math.pi * harmonic * (days % length) / length
            columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, 1) if columns else np.zeros((len(times), 0))


@dataclass(frozen=True, kw_only=True)
class WindowTask(Task):
    """Forecasts of a table's own rows: after every patch of a window, the rows that follow it.

    The windows are those of the table that `of` was given; the settings alone do not have it.
    """

    name: ClassVar[str] = "windows"
    measure: ClassVar[str] = "error_0-8"

    context: int
    """L, rows of a window."""
    patch: int
    """Rows of a patch."""
    ahead: int
    """Rows that are forecast after each patch."""
    shift: Shift = "mean"
    """What is taken off a window."""
    digest: str = ""
    """SHA-256 of the rows, so that a run is not resumed on others."""

    @classmethod
    def of(cls, rows: Rows, begin: int, end: int, **settings: Any) -> WindowTask:
        """The task over the windows, and what follows them, within rows `begin` to `end`."""
        values = np.nan_to_num(rows.filled[begin:end]).astype(np.float32)
        task = cls(**settings, digest=hashlib.sha256(values.tobytes()).hexdigest())
        object.__setattr__(task, "values", values)
        return task

    @property
    def windows(self) -> int:
        """Places where a window may begin."""
        values: Array = getattr(self, "values", np.empty((0, 0)))
        return len(values) - self.context - self.ahead + 1

    def model_settings(self) -> dict[str, Any]:
        return {"kind": "standard", "input_dim": self.patch, "output_dim": self.ahead}

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        values: Array = self.values  # type: ignore[attr-defined]
        begins = torch.randint(self.windows, (batch_size,), generator=generator).numpy()
        channels = torch.randint(values.shape[1], (batch_size,), generator=generator).numpy()
        spans = begins[:, None] + np.arange(self.context + self.ahead)
        span = values[spans, channels[:, None]]
        window = span[:, : self.context]
        shift = window[:, -1:] if self.shift == "last" else window.mean(1, keepdims=True)
        scale = (window - shift).std(1, keepdims=True) + _LEAST_SCALE
        normalised = (span - shift) / scale
        count = self.context // self.patch
        inputs = patches(normalised[:, : self.context], self.patch)
        ends = self.context - self.patch * np.arange(count)[::-1]
        targets = np.stack([normalised[:, end : end + self.ahead] for end in ends], 1)
        elapsed = torch.zeros(batch_size, count, dtype=torch.int64)
        return Batch(inputs, torch.from_numpy(targets.astype(np.float32)), None, self.source, elapsed=elapsed)
