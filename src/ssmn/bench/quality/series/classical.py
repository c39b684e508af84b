"""Six well-known short series against exponential smoothing, ARIMA, theta and the seasonal naive forecast.

Rolling origin over the last third of each series. The rivals are fitted anew at every origin; their forms (trend,
season, orders) are chosen by AIC at the first. Ours is fitted once, at the first origin, and then only updated.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.errors import MissingExtraError
from ssmn.series import Forecaster, ForecasterConfig

Array = NDArray[np.floating]

SERIES: dict[str, tuple[int, int]] = {
    "airline": (12, 12),
    "sunspots": (11, 11),
    "co2": (12, 12),
    "elnino": (12, 12),
    "nile": (1, 8),
    "realgdp": (4, 8),
}
"""Season (rows) and rows ahead of each."""

METHODS = ("ours", "ours, frozen", "ETS", "ARIMA", "theta", "seasonal naive")
_ORIGINS = 20
"""About so many origins, evenly spread."""


def load(name: str) -> Array:
    """The values of a series that ships with sktime or statsmodels.

    Raises:
        MissingExtraError: They are not installed.
    """
    try:
        import statsmodels.api as sm
        from sktime.datasets import load_airline
    except ImportError as error:
        raise MissingExtraError(
            'quality: this part needs sktime and statsmodels; type: pip install "sparse-stream[timeseries]"'
        ) from error
    if name == "airline":
        return np.asarray(load_airline(), np.float64)
    source = "macrodata" if name == "realgdp" else name
    data: Any = getattr(sm.datasets, source).load_pandas().data
    if name == "sunspots":
        return data["SUNACTIVITY"].to_numpy(np.float64)
    if name == "co2":
        return data["co2"].resample("MS").mean().interpolate().to_numpy(np.float64)
    if name == "elnino":
        return data.drop(columns="YEAR").to_numpy(np.float64).ravel()
    return data["volume" if name == "nile" else "realgdp"].to_numpy(np.float64)


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every series with every method."""
    for name in ("nile",) if options.quick else SERIES:
        season, horizon = SERIES[name]
        for method in METHODS:
            settings = {"series": name, "method": method, "season": season, "horizon": horizon}
            yield Run(f"{name}-{method.replace(', ', '-').replace(' ', '-')}", settings | {"origins": _ORIGINS})


def measure(run: Run, place: Workplace) -> Result | None:
    """MASE over all origins and steps ahead."""
    settings = run.settings
    values, season, horizon = load(settings["series"]), settings["season"], settings["horizon"]
    first = len(values) * 2 // 3
    stride = max(1, (len(values) - horizon - first) // (settings["origins"] - 1))
    origins = list(range(first, len(values) - horizon + 1, stride))
    forecast = _method(settings["method"], values[:first], season, horizon)
    absolute = []
    for number, origin in enumerate(origins):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the rivals tell of every fit that did not converge to the last digit
            predicted = forecast(values[:origin])
        absolute.append(np.abs(predicted - values[origin : origin + horizon]))
        if place.on_step(number + 1, len(origins), settings["method"]):
            return None
    scale = np.abs(values[season:first] - values[: first - season]).mean()
    return {"mase": float(np.mean(absolute) / scale), "origins": len(origins), "rows": len(values), "first": first}


def _method(name: str, train: Array, season: int, horizon: int) -> Callable[[Array], Array]:
    """A function from everything known to the forecast."""
    if name == "seasonal naive":
        return lambda known: np.resize(known[-season:], horizon)
    if name.startswith("ours"):
        return _ours(train, season, horizon, learn=name == "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"ETS": _ets, "ARIMA": _arima, "theta": _theta}[name](train, season, horizon)


def _ours(train: Array, season: int, horizon: int, *, learn: bool) -> Callable[[Array], Array]:
    lengths = tuple(sorted({max(4, season), 2 * max(4, season), 3 * max(4, season)}))
    forecaster = Forecaster(ForecasterConfig(horizon=horizon, contexts=lengths)).fit(train[:, None])
    seen = len(train)

    def forecast(known: Array) -> Array:
        nonlocal seen
        if not learn:
            return forecaster.predict(known[:, None]).mean[:, 0]
        if len(known) > seen:
            forecaster.update(known[seen:, None])
            seen = len(known)
        return forecaster.predict().mean[:, 0]

    return forecast


def _ets(train: Array, season: int, horizon: int) -> Callable[[Array], Array]:
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    seasons = (None, "add", "mul") if season > 1 else (None,)
    forms = [
        {"error": error, "trend": trend, "damped_trend": damped, "seasonal": seasonal,
         "seasonal_periods": season if seasonal else None}
        for error, (trend, damped), seasonal in itertools.product(
            ("add", "mul"), ((None, False), ("add", False), ("add", True)), seasons
        )
        if train.min() > 0 or (error == "add" and seasonal != "mul")
    ]  # fmt: skip

    def fitted(values: Array, form: dict[str, Any]) -> Any:
        return ETSModel(values, **form).fit(disp=False)

    best = min(forms, key=lambda form: _aic(lambda: fitted(train, form)))
    return lambda known: np.asarray(fitted(known, best).forecast(horizon))


def _arima(train: Array, season: int, horizon: int) -> Callable[[Array], Array]:
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    seasonal = [(0, 0, 0, 0)] if season == 1 else [(0, 1, 1, season), (1, 0, 0, season), (0, 0, 0, 0)]
    orders = [(0, 1, 1), (1, 1, 1), (2, 1, 0), (2, 0, 0), (1, 0, 1)]

    def fitted(values: Array, form: tuple[Any, Any]) -> Any:
        order, around = form
        trend = "c" if order[1] + around[1] == 0 else None
        return SARIMAX(values, order=order, seasonal_order=around, trend=trend).fit(disp=False, maxiter=50)

    best = min(itertools.product(orders, seasonal), key=lambda form: _aic(lambda: fitted(train, form)))
    return lambda known: np.asarray(fitted(known, best).forecast(horizon))


def _theta(train: Array, season: int, horizon: int) -> Callable[[Array], Array]:
    from statsmodels.tsa.forecasting.theta import ThetaModel

    def forecast(known: Array) -> Array:
        return np.asarray(ThetaModel(known, period=season, deseasonalize=season > 1).fit().forecast(horizon))

    return forecast


def _aic(fit: Callable[[], Any]) -> float:
    """AIC, corrected for few rows where the model has it; infinite where the form cannot be fitted."""
    try:
        value = float(fit().aicc)
    except (ValueError, np.linalg.LinAlgError, ZeroDivisionError, OverflowError):
        return float("inf")
    return value if np.isfinite(value) else float("inf")


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """MASE: a row for each series, a column for each method."""
    found = {(run["settings"]["series"], run["settings"]["method"]): run["results"] for run in finished.values()}
    rows = []
    for name, (season, horizon) in SERIES.items():
        cells = [found.get((name, method)) for method in METHODS]
        any_one = next((cell for cell in cells if cell is not None), None)
        if any_one is not None:
            counts = [str(value) for value in (any_one["rows"], season, horizon, any_one["origins"])]
            rows.append([name, *counts, *("" if cell is None else f"{cell['mase']:.3f}" for cell in cells)])
    head = ["series", "rows", "season", "ahead", "origins", *METHODS]
    caption = "below 1: better than the seasonal naive forecast one season ahead on the first two thirds"
    return [Table("Short series: mean absolute scaled error, rolling origin", head, rows, caption, texts=1)]


PART = Part("classical", "Six short series against ETS, ARIMA, theta and the naive forecast.", runs, measure, tables)
