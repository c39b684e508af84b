"""What fitting a forecaster makes and new rows change, and the sums of a backtest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssmn.errors import RangeError
from ssmn.series.forecasts import Array, Backtest, Choice, ForecasterConfig
from ssmn.series.readout import DelayedReadout
from ssmn.series.tables import Table, Times, times_after
from ssmn.series.windows import Regressors, Rows, Shift, calendar, chunks, filled, truths

INTERVAL_RATE = 0.005
"""Step of the intervals' online quantiles, in units of a window's deviation."""

_LARGEST = 1e100
"""Numbers beyond it are refused."""
_ROUNDING = 1e-14
"""A column that varies less than that share of its largest number is constant but for rounding."""

Window = tuple[int, Array, Array, Array]
"""Origin (the row after the window), φ [C, F], shift [C], scale [C]."""


@dataclass(eq=False)
class Fitted:
    """What fitting made, and what new rows change."""

    config: ForecasterConfig
    names: tuple[str, ...]
    columns: tuple[str, ...]
    centre: Array
    """[all columns], mean of the fitted rows."""
    deviation: Array
    """[all columns], their standard deviation."""
    naive: Array
    """[C], mean absolute error of the seasonal naive forecast on the fitted rows, in deviations."""
    season: int
    step: np.timedelta64 | None
    choice: Choice = dataclasses.field(init=False)
    regressors: Regressors = dataclasses.field(init=False)
    readout: DelayedReadout = dataclasses.field(init=False)
    offsets: Array = dataclasses.field(init=False)
    """[H, C, Q], quantiles of the errors in a window's deviations."""
    recent: Table = dataclasses.field(init=False)

    @classmethod
    def prepare(cls, config: ForecasterConfig, names: tuple[str, ...], table: Table, rows: Array) -> Fitted:
        """Means, deviations and the naive error of the rows that weights are fitted on."""
        known = np.isfinite(rows).sum(0)
        if not (known >= 2).all():
            name = table.names[int(known.argmin())]
            raise RangeError(
                f"fit: column {name!r} has fewer than two values in the {len(rows)} rows to fit on; wanted more: name "
                "the columns to forecast with targets."
            )
        centre, deviation = _centre_and_deviation(rows, table.names)
        season = table.season if 2 * table.season <= len(rows) else 1
        indices = [table.names.index(name) for name in names]
        apart = np.abs(rows[season:, indices] - rows[:-season, indices]) / deviation[indices]
        naive = np.nanmean(apart, 0) if len(apart) else np.ones(len(names))
        return cls(config, names, table.names, centre, deviation, naive, season, table.step)

    def copy(self) -> Fitted:
        """One that learns by itself."""
        made = dataclasses.replace(self)
        made.choice, made.regressors, made.recent = self.choice, self.regressors, self.recent
        made.offsets = self.offsets.copy()
        made.readout = DelayedReadout.from_arrays(self.readout.arrays(), self.readout.forget)
        return made

    def _standard(self, values: Array, names: Sequence[str]) -> Array:
        indices = [self.columns.index(name) for name in names]
        return (values[:, indices] - self.centre[indices]) / self.deviation[indices]

    def rows(self, values: Array, times: Times | None, future: Array | None = None) -> Rows:
        """Standardised rows [N, ..], and what is known of the H that follow."""
        config, horizon = self.config, self.config.horizon
        exogenous = np.nan_to_num(filled(self._standard(values, config.exogenous)))
        known = np.nan_to_num(filled(self._standard(values, config.future)))
        ahead = np.zeros((horizon, len(config.future)))
        if future is not None:
            indices = [self.columns.index(name) for name in config.future]
            ahead = (future - self.centre[indices]) / self.deviation[indices]
        parts = [np.concatenate([known, ahead])]
        if config.calendar and times is not None and self.step is not None:
            parts.append(calendar(np.concatenate([times, times_after(times, horizon)]), self.step))
        return Rows(self._standard(values, self.names), exogenous, np.concatenate(parts, 1))

    def windows(self, rows: Rows, begin: int, end: int) -> Iterator[Window]:
        """The windows that end just before the rows `begin` to `end` − 1."""
        for origins in chunks(begin, end):
            made = [self.regressors(rows, origins, channel) for channel in range(len(self.names))]
            features, shifts, scales = (np.stack(part, 1) for part in zip(*made, strict=True))
            for place, origin in enumerate(origins):
                yield int(origin), features[place], shifts[place], scales[place]

    def forecast(self, features: Array, shift: Array, scale: Array) -> tuple[Array, Array]:
        """Mean [H, C] and quantiles [H, C, Q], in the columns' units."""
        mean, quantiles = self.standard_forecast(features, shift, scale)
        indices = [self.columns.index(name) for name in self.names]
        centre, deviation = self.centre[indices], self.deviation[indices]
        return mean * deviation + centre, quantiles * deviation[:, None] + centre[:, None]

    def standard_forecast(self, features: Array, shift: Array, scale: Array) -> tuple[Array, Array]:
        """The same in standardised units."""
        mean = self.readout.predict(features).T + shift
        return mean, np.sort(mean[..., None] + self.offsets * scale[:, None], -1)

    def adapt(self, errors: Array, scales: Array) -> None:
        """Moves the quantiles of the errors by one step of online quantile regression."""
        if not len(errors):
            return
        error = (errors / scales)[..., None]
        levels = np.array(self.config.quantiles)
        offsets = self.offsets[: len(errors)]
        step = np.where(np.isnan(error), 0.0, levels - (error < offsets))
        offsets += INTERVAL_RATE * step


def _centre_and_deviation(rows: Array, names: Sequence[str]) -> tuple[Array, Array]:
    """[C] each; a column that does not move has a deviation of about its size.

    Raises:
        RangeError: Numbers are so large that their squares are none.
    """
    largest = np.nanmax(np.abs(rows), 0)
    if (largest > _LARGEST).any():
        column = int(largest.argmax())
        raise RangeError(
            f"fit: column {names[column]!r} has numbers of up to {largest[column]:.3g}; wanted at most {_LARGEST:g}: "
            "give it in other units."
        )
    unit = np.where(largest > 0, np.exp2(np.frexp(largest)[1]), 1.0)  # a power of 2, so that nothing is rounded
    centre, deviation = np.nanmean(rows / unit, 0), np.nanstd(rows / unit, 0)
    return centre * unit, np.where(deviation > _ROUNDING, deviation, 1.0) * unit


class Errors:
    """Sums of a backtest."""

    def __init__(self, fitted: Fitted, horizon: int) -> None:
        columns = len(fitted.names)
        self.fitted = fitted
        self.windows = 0
        self.square, self.absolute = np.zeros((horizon, columns)), np.zeros((horizon, columns))
        self.count = np.zeros((horizon, columns))
        self.within = 0

    def add(self, fitted: Fitted, features: Array, shift: Array, scale: Array, truth: Array) -> None:
        mean, quantiles = fitted.standard_forecast(features, shift, scale)
        error = mean - truth
        known = ~np.isnan(error)
        error = np.where(known, error, 0.0)
        self.square += error**2
        self.absolute += np.abs(error)
        self.count += known
        self.within += int(((quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1])).sum())
        self.windows += 1

    def result(self, levels: tuple[float, ...]) -> Backtest:
        fitted, count = self.fitted, np.maximum(self.count, 1)
        indices = [fitted.columns.index(name) for name in fitted.names]
        deviation, by_column = fitted.deviation[indices], np.maximum(self.count.sum(0), 1)
        mae = self.absolute.sum(0) / by_column
        total = max(1.0, float(self.count.sum()))
        return Backtest(
            names=fitted.names,
            windows=self.windows,
            mse=float(self.square.sum()) / total,
            mae=float(self.absolute.sum()) / total,
            mse_by_step=self.square.sum(1) / count.sum(1),
            column_mse=self.square.sum(0) / by_column * deviation**2,
            column_mae=mae * deviation,
            mase=np.divide(mae, fitted.naive, out=np.full_like(mae, np.nan), where=fitted.naive > 0),
            coverage=self.within / total,
            level=levels[-1] - levels[0],
        )


def penalty_of(moment: Array, widths: Sequence[tuple[str, int]], value: float, summary: float | None) -> Array:
    """Each part's ridge times the mean square of its regressors."""
    shares: Mapping[str, float] = {
        "values": value,
        "summary": summary or 0.0,
        "scale": 0.01,
        "beside": max(value, 0.01),
    }
    diagonal, penalty, begin = np.diag(moment), np.empty(len(moment)), 0
    for name, width in widths:
        part = slice(begin, begin + width)
        if width:
            penalty[part] = shares[name] * max(float(diagonal[part].mean()), 1e-9)
        begin += width
    return penalty


def averaged(weights: Array, shorter: Array, context: int, shift: Shift) -> Array:
    """The mean of two read-outs' forecasts as one read-out: what reads fewer rows ignores the oldest ones.

    What is not a row's value (the deviations of two windows, which differ a little) is taken to be the same.

    Args:
        weights: [F, H], of windows of `context` rows.
        shorter: [F − n, H], of windows that are n rows shorter, freed of the same.
        context: L.
        shift: What windows are freed of.
    """
    begin = len(weights) - len(shorter)
    values = shorter[: context - begin]
    if shift == "mean":
        # The shorter window's mean is none of the longer's; with weights that sum to 1 it does not count.
        values = values + (1 - values.sum(0)) / len(values)
    mean = weights / 2
    mean[begin:context] += values / 2
    mean[context:] += shorter[context - begin :] / 2
    return mean


def residual_quantiles(make: Regressors, rows: Rows, boundary: int, weights: Array, levels: tuple[float, ...]) -> Array:
    """[H, C, Q], quantiles of the validation errors in units of the windows' deviations."""
    horizon, quantiles = make.spec.horizon, []
    weights = weights.astype(np.float32)
    for channel in range(rows.values.shape[1]):
        errors = []
        for origins in chunks(max(boundary, make.spec.context), len(rows.values) - horizon + 1):
            features, shift, scale = make(rows, origins, channel)
            truth = truths(rows, origins, channel, horizon)
            errors.append((truth - shift[:, None] - features @ weights) / scale[:, None])
        found = np.concatenate(errors)
        found = found[np.isfinite(found).all(1)]
        quantiles.append(np.quantile(found, levels, axis=0).T if len(found) else np.zeros((horizon, len(levels))))
    return np.stack(quantiles, 1).astype(np.float64)
