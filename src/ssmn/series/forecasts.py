"""What a forecaster is told and what it says: settings, forecasts, backtests, what was chosen."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssmn.errors import ConfigError
from ssmn.series.tables import Times
from ssmn.series.windows import Shift

Array = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig:
    """Settings of a `Forecaster`; what has several values is chosen on validation rows."""

    horizon: int = 96
    """H, rows ahead."""
    targets: tuple[str, ...] | None = None
    """Columns to forecast; None = all that are named in neither `exogenous` nor `future`."""
    exogenous: tuple[str, ...] = ()
    """Columns that help but are not forecast; their last rows are read."""
    future: tuple[str, ...] = ()
    """Columns that are known for the rows to forecast, too."""
    calendar: bool = False
    """Reads the time of day and week (or of year) of the forecast; needs times."""
    contexts: tuple[int, ...] = (96, 192, 336, 512)
    """L, rows of a window, to choose from."""
    average: bool = False
    """Whether the forecasts of the two best contexts are averaged where that is better on validation rows."""
    shifts: tuple[Shift, ...] = ("mean", "last")
    """What a window is freed of, to choose from."""
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    """Ridge of the closed form, as a share of the regressors' mean square, to choose from."""
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Quantiles of the forecast, rising."""
    forget: float = 0.9995
    """What the read-out keeps per new row, in (0, 1]; 1 = it never forgets."""
    hidden_dim: int = 32
    """Width of the network that sums a window up; 0 = none."""
    patch: int = 16
    """Rows of a patch, the network's step."""
    layer_types: tuple[str, ...] = ("static", "plastic", "static")
    """Blocks of the network."""
    steps: int | None = None
    """Optimizer steps of the network, 0 = no network; None = 200 if there are at least 2,000 windows, else 0."""
    learning_rate: float = 3e-3
    """Of the network."""
    seed: int = 0
    """Of the network's weights and batches."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, least in (("horizon", 1), ("hidden_dim", 0), ("patch", 1), ("seed", 0)):
            self._whole(name, getattr(self, name), least)
        if self.steps is not None:
            self._whole("steps", self.steps, 0)
        for context in self.contexts:
            self._whole("contexts", context, 2)
        for name in ("contexts", "shifts", "ridges", "quantiles"):
            if not getattr(self, name):
                raise self._refusal(name, "at least one")
        if not set(self.shifts) <= {"mean", "last"}:
            raise self._refusal("shifts", "names out of mean, last")
        if not all(value > 0 and math.isfinite(value) for value in self.ridges):
            raise self._refusal("ridges", "positive numbers")
        rising = all(low < high for low, high in zip(self.quantiles, self.quantiles[1:], strict=False))
        if not rising or not all(0 < level < 1 for level in self.quantiles):
            raise self._refusal("quantiles", "rising numbers between 0 and 1")
        if not 0.5 < self.forget <= 1:
            raise self._refusal("forget", "a share above 0.5 and up to 1")

    def _whole(self, name: str, value: object, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._refusal(name, f"a whole number of at least {least}")

    def _refusal(self, name: str, wanted: str) -> ConfigError:
        return ConfigError(f"ForecasterConfig: {name}={getattr(self, name)!r}; wanted {wanted}.")


@dataclass(frozen=True, eq=False)
class Forecast:
    """The rows that follow the last one known.

    Attributes:
        names: The C columns.
        times: [H], or None if there were none.
        mean: [H, C], the point forecast.
        quantiles: [H, C, Q], never crossing.
        levels: The Q quantiles' levels.
    """

    names: tuple[str, ...]
    times: Times | None
    mean: Array
    quantiles: Array
    levels: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Backtest:
    """Errors of forecasts from rolling origins; every window counts.

    Attributes:
        names: The C columns.
        windows: Origins that were forecast from.
        mse: Mean squared error over all windows, steps and columns, in units of the fitted rows' deviation.
        mae: Mean absolute error in the same units.
        mse_by_step: [H], the same by step ahead.
        column_mse: [C], in the columns' own units, squared.
        column_mae: [C], in the columns' own units.
        mase: [C], mean absolute error by that of the seasonal naive forecast one step ahead on the fitted rows; NaN if
            its seasons were all alike there.
        coverage: Share of the truths within the outermost quantiles.
        level: The share that should be.
    """

    names: tuple[str, ...]
    windows: int
    mse: float
    mae: float
    mse_by_step: Array
    column_mse: Array
    column_mae: Array
    mase: Array
    coverage: float
    level: float


@dataclass(frozen=True)
class Choice:
    """What validation chose.

    Attributes:
        context: Rows of a window.
        shift: What a window is freed of.
        ridge: Of the values.
        summary_ridge: Of the network's summary; None if the network is not used.
        validation_mse: Of the chosen settings, in units of the fitted rows' deviation.
        linear_mse: Of the best settings without the network.
        network_mse: Of the best settings with it; None if there was none.
        averaged: Rows of the shorter windows whose forecasts are averaged with those of `context`; None if none are.
    """

    context: int
    shift: Shift
    ridge: float
    summary_ridge: float | None
    validation_mse: float
    linear_mse: float
    network_mse: float | None
    averaged: int | None = None
