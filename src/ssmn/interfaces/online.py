"""What learns step by step without gradients: a stream through a fixed stack, a running scale, a plastic read-out.

Everything here costs the same at every step and keeps the same number of bytes. It is numpy beside the engine, so that
a step takes microseconds; the rules are those of the literature on adaptive filters (Haykin, Adaptive Filter Theory).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs

from ssmn.config import SSMNConfig
from ssmn.engine import Engine
from ssmn.errors import BackendError, RangeError, ShapeError
from ssmn.models import SSMN
from ssmn.state import StreamState, from_numpy, to_numpy

Array = NDArray[np.float64]
Rule = Literal["rls", "delta"]

CLIP = 8.0
"""Standardised values beyond this are cut: one wild row must not move everything."""

SETTLED = 30
"""Values after which a column knows what is usual for it."""

_RANK_ONE: Any = get_blas_funcs("ger", dtype=np.float64)
"""A + α x yᵀ in place, of float64."""

_TINY = 1e-300

RESIDUALS = 512
"""Errors of one step that a forecaster keeps for its intervals."""


class PlasticReadout:
    """y = Wᵀ φ, learned from its own errors.

    `rls` is recursive least squares with forgetting: g = P φ, s = forget / weight + φᵀg, W += g eᵀ / (s weight),
    P = (P − g gᵀ / s) / forget, from W = 0 and P = I / ridge; with forget 1 it is ridge regression over all rows,
    exactly. What forgetting takes of the ridge is put back one feature at a time, in turn, or P would grow without
    bound where nothing is excited (Gay, 1996).
    `delta` is the normalised delta rule: W += eta · φ eᵀ / (ridge + φᵀφ).

    Args:
        features: F.
        outputs: K.
        rule: `rls`, F² operations per step, or `delta`, F.
        eta: Step of the delta rule in (0, 2).
        forget: Share of the past that is kept per step, in (0, 1]; for `rls`.
        ridge: Strength of regularisation (> 0).

    Example:
        >>> import numpy
        >>> from ssmn.interfaces.online import PlasticReadout
        >>> read, x = PlasticReadout(3, 1), numpy.random.default_rng(0).normal(size=(200, 3))
        >>> for row in x:
        ...     read.learn(row, row.sum() - read(row))
        >>> bool(abs(read.weights - 1).max() < 0.02)
        True
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        rule: Rule = "rls",
        *,
        eta: float = 0.5,
        forget: float = 1.0,
        ridge: float = 1.0,
    ) -> None:
        if rule not in ("rls", "delta"):
            raise RangeError(f"PlasticReadout: rule={rule!r}; wanted rls or delta.")
        for name, value, good, wanted in (
            ("eta", eta, 0 < eta < 2, "a number in (0, 2)"),
            ("forget", forget, 0 < forget <= 1, "a share in (0, 1]"),
            ("ridge", ridge, ridge > 0, "a positive number"),
        ):
            if not good:
                raise RangeError(f"PlasticReadout: {name}={value!r}; wanted {wanted}.")
        self.rule, self.eta, self.forget, self.ridge = rule, eta, forget, ridge
        self.weights = np.zeros((features, outputs))
        if rule == "rls":
            self._restart(features)

    def __call__(self, phi: Array) -> Array:
        """φ [..., F] to [..., K]."""
        return phi @ self.weights

    def learn(self, phi: Array, error: Array, weight: float = 1.0) -> None:
        """One step.

        Args:
            phi: [F].
            error: [K], what was wanted minus what was said.
            weight: How much the row counts (> 0), for `rls`: the curvature of its loss.
        """
        if self.rule == "delta":
            self.weights += np.multiply.outer(phi * (self.eta / (self.ridge + phi @ phi)), error)
            return
        self._take(phi, error, weight)
        if self.forget < 1.0:
            self.inverse *= 1.0 / self.forget
            self._steps += 1
            if self._steps >= self._every:
                self._keep_ridge()

    def _take(self, phi: Array, error: Array, weight: float) -> None:
        """A row of some weight; the sums of the rows before it fade."""
        gain = self.inverse @ phi
        size = self.forget / weight + float(phi @ gain)
        if size <= 0:  # rounding has made P indefinite: begin its estimate anew, the weights stay
            self._restart(len(phi))
            gain = self.inverse @ phi
            size = self.forget / weight + float(phi @ gain)
        self.weights += np.multiply.outer(gain * (1.0 / (size * weight)), error)
        self._take_off(gain, size)

    def _keep_ridge(self) -> None:
        """Puts back, at one feature, what has faded of the ridge there since its last turn.

        Rounding leaves P a little asymmetric, which forgetting would let grow: that is taken out here as well.
        """
        self.inverse = np.asfortranarray((self.inverse + self.inverse.T) / 2)
        features, place = len(self.inverse), self._turn % len(self.inverse)
        faded = self.ridge * (1.0 - self.forget ** (features * self._every))
        column = self.inverse[:, place].copy()  # of P, which is written while it is read
        size = 1.0 / faded + float(column[place])
        self.weights -= np.multiply.outer(column / size, self.weights[place])
        self._take_off(column, size)
        self._turn, self._steps = self._turn + 1, 0

    def _take_off(self, gain: Array, size: float) -> None:
        """P − g gᵀ / s, in one pass and in place."""
        self.inverse = _RANK_ONE(-1.0 / size, gain, gain, a=self.inverse, overwrite_a=True)

    def _restart(self, features: int) -> None:
        """P = I / ridge; column by column, as BLAS updates it in place."""
        self.inverse = np.asfortranarray(np.eye(features) / self.ridge)
        self._turn = self._steps = 0
        self._every = 1 if self.forget == 1.0 else max(1, int(1.0 / (features * (1.0 - self.forget))))

    def widen(self, features: int = 0, outputs: int = 0) -> None:
        """Makes room for more features and outputs, which know nothing yet."""
        self.weights = np.pad(self.weights, ((0, features), (0, outputs)))
        if features and self.rule == "rls":
            known = self.inverse
            self._restart(len(known) + features)
            self.inverse[: len(known), : len(known)] = known


class RunningScale:
    """Mean and variance per column of what has come so far: plain averages at first, then with a fixed rate.

    Args:
        columns: How many.
        rate: Least share of a new value in the averages, in (0, 1); a stream that changes is followed within some 1 /
            rate rows.
    """

    def __init__(self, columns: int, rate: float) -> None:
        if not 0 < rate < 1:
            raise RangeError(f"RunningScale: rate={rate!r}; wanted a share in (0, 1).")
        self.rate = rate
        self.count, self.mean, self.variance = np.zeros(columns), np.zeros(columns), np.zeros(columns)
        self._is_steady = False

    def widen(self, columns: int) -> None:
        """Makes room for more columns."""
        for name in ("count", "mean", "variance"):
            setattr(self, name, np.pad(getattr(self, name), (0, columns)))
        self._is_steady = False

    def learn(self, values: Array) -> None:
        """[columns]; NaN leaves its column alone, and a wild value counts as one at the edge of what is usual."""
        change = values - self.mean
        squares = change * change
        share: Any = self.rate
        if not (self._is_steady and _all(squares <= CLIP * CLIP * self.variance)):  # NaN is not
            share = self._careful_share(change)
            squares = change * change
        self.mean += share * change
        self.variance += share * squares
        self.variance *= 1 - share

    def _careful_share(self, change: Array) -> Array:
        """The share of each new value, while columns are young, or one of them is missing or wild; cuts `change`."""
        seen = change == change  # not NaN
        change[~seen] = 0.0
        # A column that is young or has never moved has no edge. A level that has moved is reached in steps that grow.
        has_edge = (self.count > SETTLED) & (self.variance > 0)
        edge = np.where(has_edge, CLIP * np.sqrt(self.variance), np.inf)
        np.minimum(np.maximum(change, -edge), edge, out=change)
        self.count += seen
        self._is_steady = _all(self.count > max(SETTLED, 1.0 / self.rate))
        return seen * np.maximum(1.0 / np.maximum(self.count, 1.0), self.rate)

    def apply(self, values: Array) -> Array:
        """Values of all columns, or of the last ones, standardised, cut at ±`CLIP`.

        NaN and columns that never moved become 0.
        """
        first = len(self.mean) - len(values)
        mean, variance = self.mean[first:], self.variance[first:]
        scaled = (values - mean) * np.where(variance > 0, 1.0 / np.sqrt(variance + _TINY), 0.0)
        if _all(abs(scaled) <= CLIP):  # NaN is not
            return scaled
        scaled = np.minimum(np.maximum(scaled, -CLIP), CLIP)
        return np.where(scaled == scaled, scaled, 0.0)


_all = np.logical_and.reduce
"""Of an array of truths; a third of the time of its method."""


class HiddenStream:
    """One stream through a stack, with a look ahead: `peek` says what a step would give, `keep` makes it so.

    Runs on the engine where there is one, else on torch; both give the same numbers but for rounding.

    Args:
        model: A hidden map.
        backend: `auto`, `engine` or `torch`.
    """

    def __init__(self, model: SSMN, backend: Literal["auto", "engine", "torch"] = "auto") -> None:
        self.model, self.asked = model, backend
        self._start(None)

    def _start(self, state: StreamState | None) -> None:
        self._engine: Engine | None = None
        self._fans: Engine | None = None
        if self.asked != "torch":
            try:
                self._engine = Engine(self.model)
            except BackendError:
                if self.asked == "engine":
                    raise
        if self._engine is None:
            self._state = self._next = self.model.init_state(1) if state is None else state
        else:
            self._ahead = self._engine.sibling()
            if state is not None:
                self._engine.set_state(0, state)

    @property
    def backend(self) -> str:
        """What computes."""
        return "torch" if self._engine is None else "engine"

    @property
    def state(self) -> StreamState:
        """The stream so far."""
        return self._state if self._engine is None else self._engine.get_state(0)

    def peek(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden vector [D] after a step with x [input_dim]; the stream stays where it is."""
        if self._engine is None:
            with torch.no_grad():
                y, self._next = self.model.step(torch.from_numpy(x)[None], self._state)
            return y[0].numpy()
        self._ahead.take(self._engine)
        return self._ahead.step(x).copy()

    def keep(self) -> None:
        """The step of the last `peek` is now part of the stream."""
        if self._engine is None:
            self._state = self._next
        else:
            self._engine, self._ahead = self._ahead, self._engine

    def fan(self, count: int) -> Fan:
        """`count` copies of what the last `peek` led to, which go their own ways until the next fan of as many."""
        if self._engine is None:
            return Fan(self.model, count, self._next, None)
        if self._fans is None or self._fans.streams != count:
            self._fans = self._engine.sibling(count)
        self._fans.take(self._ahead)
        return Fan(self.model, count, None, self._fans)

    def __getstate__(self) -> dict[str, Any]:
        """Plain arrays: copies of equal streams are equal byte for byte, which torch's own pickles are not."""
        return {
            "config": self.model.config.to_dict(),
            "weights": {name: to_numpy(tensor) for name, tensor in self.model.state_dict().items()},
            "state": {name: to_numpy(tensor) for name, tensor in self.state.named_tensors().items()},
            "asked": self.asked,
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.asked = values["asked"]
        weights = {name: from_numpy(array) for name, array in values["weights"].items()}
        self.model = SSMN(SSMNConfig.from_dict(values["config"])).to(weights["input.weight"].dtype).eval()
        self.model.load_state_dict(weights)
        fresh = self.model.init_state(1)
        self._start(fresh.with_tensors({name: from_numpy(array) for name, array in values["state"].items()}))


class Fan:
    """Copies of a stream, stepped side by side."""

    def __init__(self, model: SSMN, count: int, state: StreamState | None, engine: Engine | None) -> None:
        self._model, self._engine = model, engine
        self._state = None if state is None else state.select([0] * count)

    def step(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """[count, input_dim] to [count, D]."""
        if self._engine is not None:
            return self._engine.step(x)
        with torch.no_grad():
            y, self._state = self._model.step(torch.from_numpy(x), self._state)
        return y.numpy()


class Columns:
    """Named features as columns that come in any order, appear late and go missing.

    A new name gets the next column; names that are new in the same row are ordered among themselves. Into the stack
    a feature goes by a random direction that depends on its name and the seed alone.

    Args:
        width: Inputs of the stack.
        seed: Of the directions.
        placed: Whether features are the stack's own inputs in the order of their columns, as a trained stack has
            them, instead of random directions; those beyond `width` then reach only the read-out.
        names: The first columns, in order.
    """

    def __init__(self, width: int, seed: int, *, placed: bool = False, names: Sequence[Hashable] = ()) -> None:
        self.width, self.seed, self.placed = width, seed, placed
        self.places: dict[Hashable, int] = {}
        self.directions = np.zeros((0, width))
        for name in names:
            self._add(name)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, x: Mapping[Any, Any]) -> Array:
        """The row [columns], NaN where a feature is missing, not finite or None; knows its names from now on.

        Raises:
            ShapeError: A feature is no number.
        """
        places = self.places
        if new := [name for name in x if name not in places]:
            for name in sorted(new, key=repr):
                self._add(name)
        row = np.full(len(places), np.nan)
        for name, value in x.items():
            if value is None:
                continue
            try:
                row[places[name]] = value
            except (TypeError, ValueError):
                raise ShapeError(
                    f"features: {name!r} is {value!r}; wanted a number (encode it first, e.g. with "
                    "river.preprocessing.OneHotEncoder)."
                ) from None
        row[np.isinf(row)] = np.nan
        return row

    def project(self, scaled: Array) -> Array:
        """[..., columns] standardised to what goes into the stack, [..., width]."""
        if self.placed:
            return scaled @ self.directions
        return scaled @ self.directions / math.sqrt(max(1, len(self)))

    def _add(self, name: Hashable) -> None:
        place = self.places[name] = len(self.places)
        if self.placed:
            direction = np.zeros(self.width)
            if place < self.width:
                direction[place] = 1.0
        else:
            direction = np.random.default_rng([self.seed, crc32(repr(name).encode())]).normal(size=self.width)
        self.directions = np.vstack([self.directions, direction])


class OnlineForecaster:
    """One series, forecast by running freely through a stack whose read-out learns from every value.

    After y_t, what is read for the next step is φ = (1, the last `lags` values, the exogenous values of the next step,
    the stack's hidden vector / √D); the read-out says by how much y_{t+1} differs from the value one `season` before
    it, so that an untaught forecaster repeats the last season. A value that is missing is filled with its forecast
    and teaches nothing.

    Args:
        model: A hidden map whose inputs are what `Columns` gives.
        lags: Values that are read directly.
        season: Steps after which the series repeats; 1 = it goes on from its last value.
        rule: As for `PlasticReadout`, and so are `eta`, `forget` and `ridge`.
        eta: See there.
        forget: See there.
        ridge: See there.
        norm_rate: As for `RunningScale`.
        seed: Of the directions of the inputs.
        placed: As for `Columns`: the lagged values, the latest first, then the exogenous ones.
        backend: As for `HiddenStream`.
    """

    def __init__(
        self,
        model: SSMN,
        *,
        lags: int = 12,
        season: int = 1,
        rule: Rule = "rls",
        eta: float = 0.5,
        forget: float = 0.999,
        ridge: float = 1.0,
        norm_rate: float = 0.01,
        seed: int = 0,
        placed: bool = False,
        backend: Literal["auto", "engine", "torch"] = "auto",
    ) -> None:
        for name, value in (("lags", lags), ("season", season)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RangeError(f"OnlineForecaster: {name}={value!r}; wanted a whole number of at least 1.")
        self.lags, self.season = lags, season
        width = model.config.hidden_dim
        self.stream = HiddenStream(model, backend)
        names = [_Lag(lag) for lag in range(lags)]
        self.columns = Columns(model.config.input_dim, seed, placed=placed, names=names)
        self.scale, self.exogenous = RunningScale(1, norm_rate), RunningScale(0, norm_rate)
        self.readout = PlasticReadout(1 + width + lags, 1, rule, eta=eta, forget=forget, ridge=ridge)
        self.past: deque[float] = deque(maxlen=max(lags, season))
        self.residuals: deque[float] = deque(maxlen=RESIDUALS)
        self.seen = 0
        self._looked: tuple[Array, Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_looked": None}  # the stream's copy has not looked

    def learn(self, y: float, x: Mapping[Any, Any] | None = None, *, update: bool = True) -> None:
        """The next value of the series; O(1).

        Args:
            y: The value; NaN if it is missing.
            x: What was known about its step, by name.
            update: Whether the read-out and the scales learn from it, or only the stream goes on.
        """
        row = self._exogenous(x)
        if not self.past:
            if math.isfinite(y):
                self._append(y, row, update)
            return
        phi = self._look(row)
        base, spread = self.past[-min(self.season, len(self.past))], self._spread
        said = float(self.readout(phi)[0])
        if not math.isfinite(y):
            y = base + said * spread
        elif update:
            error = (y - base) / spread - said if spread > 0 else 0.0
            # The first errors are those of a read-out that knew nothing; they say little about later ones.
            if self.seen > self.lags:
                self.residuals.append(error)
            self.readout.learn(phi, np.array([min(max(error, -CLIP), CLIP)]))
        self.stream.keep()
        self._append(y, row, update)

    def forecast(self, horizon: int, xs: Sequence[Mapping[Any, Any] | None] | None = None) -> Array:
        """[horizon], the values to come; `xs` says what is known about their steps. Changes nothing."""
        return self._paths(horizon, xs, np.zeros((1, horizon)))[0]

    def simulate(
        self, horizon: int, xs: Sequence[Mapping[Any, Any] | None] | None = None, *, paths: int = 200, seed: int = 0
    ) -> Array:
        """[paths, horizon]: the series run on with errors drawn from those made so far, each on its own.

        The spread of the paths is that of the series' own noise fed back through the model; what the model does not
        know about itself is not in it, so intervals are somewhat narrow while little has been seen.
        """
        kept = np.array(self.residuals or [0.0])
        kept = kept[len(kept) // 2 :]  # the earlier ones are of a read-out that knew less
        drawn = np.random.default_rng(seed).choice(kept, (paths, horizon))
        return self._paths(horizon, xs, drawn)

    def _paths(self, horizon: int, xs: Sequence[Mapping[Any, Any] | None] | None, errors: Array) -> Array:
        if xs is not None and len(xs) != horizon:
            raise ShapeError(f"forecast: xs has {len(xs)} rows; wanted horizon={horizon}, one per step.")
        count = len(errors)
        if not self.past:
            return np.zeros((count, horizon))
        phi = np.tile(self._look(self._exogenous(None if xs is None else xs[0], learn_names=False)), (count, 1))
        fan, spread = self.stream.fan(count) if horizon > 1 else None, self._spread
        past = np.tile(np.array(self.past), (count, 1))
        found = np.empty((count, horizon))
        for step in range(horizon):
            if fan is not None and step:
                phi = self._phi(past, self._exogenous(None if xs is None else xs[step], learn_names=False), fan.step)
            change = (self.readout(phi)[:, 0] + errors[:, step]).clip(-CLIP, CLIP) * spread
            found[:, step] = past[:, -min(self.season, past.shape[1])] + change
            past = np.concatenate([past, found[:, step : step + 1]], 1)[:, -self.past.maxlen :]  # type: ignore[operator]
        return found

    @property
    def _spread(self) -> float:
        return float(np.sqrt(self.scale.variance[0]))

    def _exogenous(self, x: Mapping[Any, Any] | None, learn_names: bool = True) -> Array:
        """The exogenous columns of a row; new ones widen everything, or are left out of a forecast."""
        named = x or {}
        if not learn_names:
            named = {name: value for name, value in named.items() if name in self.columns.places}
        row = self.columns.read(named)[self.lags :]
        if grown := len(row) - len(self.exogenous.mean):
            self.exogenous.widen(grown)
            self.readout.widen(features=grown)
        return row

    def _look(self, row: Array) -> Array:
        """Features [F] of the next step, at which the stream looks."""
        if self._looked is None or not np.array_equal(self._looked[0], row, equal_nan=True):
            past = np.array(self.past)[None]
            self._looked = row, self._phi(past, row, lambda inputs: self.stream.peek(inputs[0])[None])[0]
        return self._looked[1]

    def _phi(self, past: Array, row: Array, read: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Array:
        """[n, past] to [n, F]: the features of the next step, which the stack reads."""
        values = np.full((len(past), self.lags), np.nan)
        held = min(self.lags, past.shape[1])
        values[:, :held] = past[:, : -held - 1 : -1]
        mean, spread = self.scale.mean[0], self._spread
        lagged = np.nan_to_num((values - mean) / spread).clip(-CLIP, CLIP) if spread > 0 else np.zeros_like(values)
        scaled = np.concatenate([lagged, np.tile(self.exogenous.apply(row), (len(past), 1))], 1)
        hidden = read(self.columns.project(scaled).astype(np.float32))
        ones = np.ones((len(past), 1))
        parts = [ones, hidden / math.sqrt(hidden.shape[1]), lagged, scaled[:, self.lags :]]
        return np.concatenate(parts, 1)

    def _append(self, y: float, row: Array, update: bool) -> None:
        if update:
            self.scale.learn(np.array([y]))
            self.exogenous.learn(row)
        self.past.append(y)
        self.seen += 1
        self._looked = None


class _Lag(int):
    """The name of a lagged value, which no feature of a user can have."""

    def __hash__(self) -> int:
        return hash(("ssmn.lag", int(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lag) and int(self) == int(other)
