"""river: a regressor, a classifier and a forecaster that learn row by row (needs `sparse-stream[timeseries]`).

The stack stays as it is, random or trained; its plastic memory and window carry the stream, and a plastic read-out
learns from the errors. There are no gradients, no epochs and no stored rows: every call costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, Literal

import numpy as np

from ssmn.errors import MissingExtraError
from ssmn.interfaces.features import hidden_map, random_stack
from ssmn.interfaces.online import (
    CLIP,
    Array,
    Columns,
    HiddenStream,
    OnlineForecaster,
    PlasticReadout,
    Rule,
    RunningScale,
)
from ssmn.models import SSMN

try:
    from river import base, time_series
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.interfaces.river: {error}; it needs river: pip install 'sparse-stream[timeseries]'"
    ) from error

Backend = Literal["auto", "engine", "torch"]
"""What runs the stack."""


class _OnRows:
    """What regressor and classifier share: features by name to the read-out's features, one step of the stack a row."""

    def __init__(
        self,
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
        features: tuple[Hashable, ...] | None = None,
        backend: Backend = "auto",
        seed: int = 0,
    ) -> None:
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
        self.features = features
        self.backend = backend
        self.seed = seed
        stack = _stack(self) if model is None else hidden_map(model)
        self._columns = Columns(stack.config.input_dim, seed, placed=model is not None, names=features or ())
        self._scale = RunningScale(self._targets + len(self._columns), norm_rate)
        self._stream = HiddenStream(stack, backend)
        width = 1 + stack.config.hidden_dim + len(self._columns)
        self._readout = PlasticReadout(width, self._outputs, rule, eta=eta, forget=forget, ridge=ridge)
        self._seen: tuple[dict[Any, Any], Array, Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}  # the stream's copy has not looked at the row

    _outputs = 1
    _targets = 0
    """Columns of the running averages before those of the features."""

    def _phi(self, x: dict[Any, Any]) -> Array:
        """The read-out's features of a row; the stack looks at it, and keeps it only when the row is learned."""
        if self._seen is not None and self._seen[0] == x:
            return self._seen[2]
        row = self._columns.read(x)
        if grown := self._targets + len(row) - len(self._scale.mean):
            self._scale.widen(grown)
            self._readout.widen(features=grown)
        scaled = self._scale.apply(row)
        hidden = self._stream.peek(self._columns.project(scaled).astype(np.float32))
        phi = np.concatenate([[1.0], hidden / math.sqrt(len(hidden)), scaled])
        self._seen = dict(x), row, phi
        return phi

    def _next(self, *targets: float) -> None:
        """The row that was looked at has been learned."""
        assert self._seen is not None
        self._stream.keep()
        self._scale.learn(np.concatenate([targets, self._seen[1]]) if targets else self._seen[1])
        self._seen = None


class SSMNRegressor(_OnRows, base.Regressor):
    """A number from a row of features and from the rows before it, learned one row at a time.

    A row is standardised by running averages and read by a fixed SSMN, whose window and plastic memory hold the stream;
    the read-out learns from every error, by recursive least squares or the delta rule. `predict_one` changes nothing;
    `learn_one` takes the row into the stream. Features may come in any order, appear late, go missing (then they
    count as average) or be NaN.

    Args:
        hidden_dim: Width of the stack.
        num_layers: Its blocks.
        num_heads: Heads of its window attention.
        window_size: Its window in rows.
        rule: How the read-out learns: `rls`, or `delta`, which costs less and learns more slowly.
        eta: Step of `delta`, in (0, 2).
        forget: Share of the past that `rls` keeps per row, in (0, 1]; 1 for a world that never changes.
        ridge: Strength of regularisation (> 0).
        norm_rate: Least share of a row in the running averages.
        model: A trained `ssmn.SSMN` for the stack, instead of a random one; features are then its inputs, in the order
            of `features`, and of their names if that is not given.
        features: Names that are known beforehand, in order.
        backend: What runs the stack: `engine`, `torch`, or `auto`, the engine where it can.
        seed: Of the random stack.

    Example:
        >>> from river import datasets, evaluate, metrics
        >>> from ssmn.interfaces.river import SSMNRegressor
        >>> score = evaluate.progressive_val_score(datasets.TrumpApproval().take(300), SSMNRegressor(), metrics.MAE())
        >>> score.get() < 1.5
        True
    """

    def __init__(
        self,
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
        features: tuple[Hashable, ...] | None = None,
        backend: Backend = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(
            hidden_dim, num_layers, num_heads, window_size, rule, eta, forget, ridge, norm_rate, model, features,
            backend, seed,
        )  # fmt: skip

    _targets = 1

    def learn_one(self, x: dict[Any, Any], y: Any) -> None:
        """Takes a row into the stream and learns its target; a target that is not finite teaches nothing."""
        phi, y = self._phi(x), float(y)
        if math.isfinite(y):
            mean, spread = self._moments()
            error = (y - mean) / spread - float(self._readout(phi)[0])
            self._readout.learn(phi, np.array([min(max(error, -CLIP), CLIP)]))
        self._next(y if math.isfinite(y) else math.nan)

    def predict_one(self, x: dict[Any, Any]) -> float:
        """The target of a row; 0 before anything was learned."""
        mean, spread = self._moments()
        return mean + spread * float(self._readout(self._phi(x))[0])

    def _moments(self) -> tuple[float, float]:
        mean, variance = float(self._scale.mean[0]), float(self._scale.variance[0])
        return mean, math.sqrt(variance) if variance > 0 else 1.0


class SSMNClassifier(_OnRows, base.Classifier):
    """A class from a row of features and from the rows before it, learned one row at a time.

    As `SSMNRegressor`; the read-out gives a score for every class seen so far and learns from the softmax's error
    1[y] − p, with `rls` scaled by the inverse curvature (an extended Kalman filter of the multinomial logit). Labels
    may be anything hashable, and new ones may appear at any time.

    Args:
        hidden_dim: As for `SSMNRegressor`, and so are all others.
        num_layers: See there.
        num_heads: See there.
        window_size: See there.
        rule: See there.
        eta: See there.
        forget: See there.
        ridge: See there.
        norm_rate: See there.
        model: See there.
        features: See there.
        backend: See there.
        seed: See there.

    Example:
        >>> from river import datasets, evaluate, metrics
        >>> from ssmn.interfaces.river import SSMNClassifier
        >>> score = evaluate.progressive_val_score(datasets.Phishing().take(500), SSMNClassifier(), metrics.Accuracy())
        >>> score.get() > 0.8
        True
    """

    _outputs = 0

    def __init__(
        self,
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
        features: tuple[Hashable, ...] | None = None,
        backend: Backend = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(
            hidden_dim, num_layers, num_heads, window_size, rule, eta, forget, ridge, norm_rate, model, features,
            backend, seed,
        )  # fmt: skip
        self._classes: dict[Any, int] = {}

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: dict[Any, Any], y: Any) -> None:
        """Takes a row into the stream and learns its label; None teaches nothing."""
        phi = self._phi(x)
        if y is not None:
            if y not in self._classes:
                self._classes[y] = len(self._classes)
                self._readout.widen(outputs=1)
            chances = self._chances(phi)
            error = -chances
            error[self._classes[y]] += 1.0
            curvature = float((chances * (1.0 - chances)).max())
            self._readout.learn(phi, error, weight=max(curvature, 1e-2))
        self._next()

    def predict_proba_one(self, x: dict[Any, Any], **kwargs: Any) -> dict[Any, float]:
        """Probability of each class seen so far; empty before the first."""
        phi = self._phi(x)
        return dict(zip(self._classes, self._chances(phi).tolist(), strict=True)) if self._classes else {}

    def _chances(self, phi: Array) -> Array:
        scores = self._readout(phi)
        raised = np.exp(scores - scores.max())
        return raised / raised.sum()


class SSMNForecaster(time_series.base.Forecaster):
    """The next values of a series, learned from one value at a time.

    The last `lags` values and what is known about the next step go through a fixed SSMN; a read-out learns by how much
    the next value differs from the one a season before. Forecasts run freely from there.

    Args:
        lags: Values that are read directly.
        season: Steps after which the series repeats; 1 for none.
        hidden_dim: As for `SSMNRegressor`, and so are all others.
        num_layers: See there.
        num_heads: See there.
        window_size: See there.
        rule: See there.
        eta: See there.
        forget: See there.
        ridge: See there.
        norm_rate: See there.
        backend: See there.
        seed: See there.

    Example:
        >>> import math
        >>> from ssmn.interfaces.river import SSMNForecaster
        >>> model = SSMNForecaster()
        >>> for step in range(300):
        ...     model.learn_one(math.sin(step / 3))
        >>> wave = model.forecast(12)
        >>> max(abs(y - math.sin((300 + step) / 3)) for step, y in enumerate(wave)) < 0.2
        True
    """

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
        backend: Backend = "auto",
        seed: int = 0,
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
        self.backend = backend
        self.seed = seed
        self._online = OnlineForecaster(
            _stack(self), lags=lags, season=season, rule=rule, eta=eta, forget=forget, ridge=ridge,
            norm_rate=norm_rate, seed=seed, backend=backend,
        )  # fmt: skip

    def learn_one(self, y: float, x: dict[Any, Any] | None = None) -> None:
        """The next value, and what was known about its step; a missing value is None or NaN."""
        self._online.learn(math.nan if y is None else float(y), x)

    def forecast(self, horizon: int, xs: list[dict[Any, Any]] | None = None) -> list[float]:
        """The next `horizon` values; `xs` are the exogenous features of their steps."""
        return self._online.forecast(horizon, xs).tolist()


def _stack(model: Any) -> SSMN:
    """The random stack that a model's settings describe; its inputs are as many as its width."""
    return random_stack(
        model.hidden_dim, hidden_dim=model.hidden_dim, num_layers=model.num_layers, num_heads=model.num_heads,
        window_size=model.window_size, seed=model.seed,
    )  # fmt: skip


__all__ = ["SSMNClassifier", "SSMNForecaster", "SSMNRegressor"]
