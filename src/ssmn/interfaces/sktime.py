"""sktime: a forecaster whose update is an update (needs `pip install "sparse-stream[timeseries]"`).

Fitting is one pass over the series in which the read-out learns from every value; `update` goes on from there, a step
per new value at constant cost, without a refit. Intervals come from the series run on many times with the errors
that were made.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, cast

import numpy as np

from ssmn.errors import MissingExtraError
from ssmn.interfaces.features import hidden_map, random_stack
from ssmn.interfaces.online import OnlineForecaster, Rule
from ssmn.models import SSMN

try:
    import pandas as pd
    from sktime.forecasting.base import BaseForecaster
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.interfaces.sktime: {error}; it needs sktime: pip install 'sparse-stream[timeseries]'"
    ) from error


class SSMNForecaster(BaseForecaster):
    """Forecasts a series by an SSMN whose plastic read-out has learned from every value once.

    The last `lags` values and the exogenous values of the next step go through a fixed SSMN; a read-out learns by how
    much the next value differs from the one a season before. `update` costs the same per value however long the series
    is, and gives bit for bit what fitting the whole series gives. Missing values are filled with their forecasts.
    sktime itself stores the series unless told not to by `forecaster.set_config(remember_data=False)`.

    Args:
        lags: Values that are read directly.
        season: Steps after which the series repeats; 1 for none.
        hidden_dim: Width of the stack.
        num_layers: Its blocks.
        num_heads: Heads of its window attention.
        window_size: Its window in steps.
        rule: How the read-out learns: `rls` (recursive least squares) or `delta`.
        eta: Step of `delta`, in (0, 2).
        forget: Share of the past that `rls` keeps per step, in (0, 1].
        ridge: Strength of regularisation towards the seasonal repetition (> 0).
        norm_rate: Least share of a value in the running mean and deviation.
        model: A trained `ssmn.SSMN` for the stack, instead of a random one; its inputs are the standardised lagged
            values (latest first), then the exogenous columns; what it lacks inputs for only the read-out sees.
        paths: Runs from which intervals are taken.
        random_state: Of the stack and the runs, a whole number.

    Example:
        >>> import numpy, pandas
        >>> from ssmn.interfaces.sktime import SSMNForecaster
        >>> index = pandas.period_range("2000-01", periods=120, freq="M")
        >>> y = pandas.Series(numpy.sin(numpy.arange(120) / 6 * numpy.pi), index=index)
        >>> forecaster = SSMNForecaster().fit(y[:100], fh=[1, 2, 3]).update(y[100:])
        >>> bool((forecaster.predict() - [0.0, 0.5, 0.87]).abs().max() < 0.1)
        True
    """

    _tags: ClassVar[dict[str, Any]] = {
        "authors": ["ssmn"],
        "maintainers": ["ssmn"],
        "python_dependencies": ["torch"],
        "y_inner_mtype": "pd.Series",
        "X_inner_mtype": "pd.DataFrame",
        "requires-fh-in-fit": False,
        "capability:exogenous": True,
        "capability:insample": False,
        "capability:missing_values": True,
        "capability:multivariate": False,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:update": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
    }

    def __init__(
        self,
        lags: int = 12,
        season: int = 1,
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        window_size: int = 16,
        rule: Rule = "rls",
        eta: float = 0.5,
        forget: float = 0.9999,
        ridge: float = 1.0,
        norm_rate: float = 0.001,
        model: SSMN | None = None,
        paths: int = 200,
        random_state: int | None = 0,
    ) -> None:
        self.lags = lags
        self.season = season
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.window_size = window_size
        self.rule = rule
        self.eta = eta
        self.forget = forget
        self.ridge = ridge
        self.norm_rate = norm_rate
        self.model = model
        self.paths = paths
        self.random_state = random_state
        with warnings.catch_warnings():
            # sktime announces that it will stop storing the series; nothing here needs it stored.
            warnings.filterwarnings("ignore", "The default of config", FutureWarning)
            super().__init__()

    def _fit(self, y: Any, X: Any, fh: Any) -> SSMNForecaster:
        seed = self._seed = 0 if self.random_state is None else int(self.random_state)
        if self.model is None:
            stack = random_stack(
                self.hidden_dim, hidden_dim=self.hidden_dim, num_layers=self.num_layers, num_heads=self.num_heads,
                window_size=self.window_size, seed=seed,
            )  # fmt: skip
        else:
            stack = hidden_map(self.model)
        self._online = OnlineForecaster(
            stack, lags=self.lags, season=self.season, rule=cast(Rule, self.rule), eta=self.eta, forget=self.forget,
            ridge=self.ridge, norm_rate=self.norm_rate, seed=seed, placed=self.model is not None,
        )  # fmt: skip
        self._learn(y, X, True)
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> SSMNForecaster:
        later = y.index > self._latest
        self._learn(y[later], None if X is None else X.reindex(y.index)[later], update_params)
        return self

    def _learn(self, y: Any, X: Any, update: bool) -> None:
        rows = [None] * len(y) if X is None else _rows(X.reindex(y.index))
        for value, row in zip(y.to_numpy(np.float64), rows, strict=True):
            self._online.learn(float(value), row, update=update)
        if len(y):
            self._latest = y.index[-1]

    def _predict(self, fh: Any, X: Any = None) -> Any:
        steps, rows = self._ahead(fh, X)
        values = self._online.forecast(int(steps.max()), rows)[steps - 1]
        return pd.Series(values, index=fh.to_absolute_index(self.cutoff), name=self._name())

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> Any:
        steps, rows = self._ahead(fh, X)
        paths = self._online.simulate(int(steps.max()), rows, paths=self.paths, seed=self._seed)
        values = np.quantile(paths[:, steps - 1], alpha, axis=0).T
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return pd.DataFrame(values, index=fh.to_absolute_index(self.cutoff), columns=columns)

    def _ahead(self, fh: Any, X: Any) -> tuple[np.ndarray, Any]:
        """Steps ahead, and what is known about all of them up to the last."""
        steps = fh.to_relative(self.cutoff).to_numpy().astype(int)
        if X is None:
            return steps, None
        every = cast(Any, fh.__class__)(np.arange(1, steps.max() + 1)).to_absolute_index(self.cutoff)
        return steps, _rows(X.reindex(every))

    def _name(self) -> Any:
        names = self._get_varnames()
        return names[0] if isinstance(names[0], str) else None

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Settings for sktime's own checks."""
        return [
            {"hidden_dim": 16, "num_heads": 2, "lags": 3, "paths": 20},
            {"hidden_dim": 8, "num_heads": 1, "num_layers": 1, "rule": "delta", "season": 4, "paths": 10},
        ]


def _rows(X: Any) -> list[dict[Any, float]]:
    """A dict for each row, without what is missing."""
    names = list(X.columns)
    return [
        {name: value for name, value in zip(names, row, strict=True) if math.isfinite(value)}
        for row in X.to_numpy(np.float64)
    ]
