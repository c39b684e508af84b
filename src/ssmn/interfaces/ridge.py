"""The closed-form read-out: ridge regression that chooses its own strength and can be given more rows later."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssmn.files import Tensors

Array = NDArray[np.float64]

STRENGTHS = tuple(10.0**power for power in np.linspace(-3, 5, 17))
"""What `ridge="auto"` chooses from, for features of unit deviation."""


class Ridge:
    """W = argmin ‖Y − Z W − b‖² + ridge ‖W‖² over standardised features Z, exact for all rows given so far.

    The first call fixes mean and deviation of the features and, unless given, the strength: the one of `STRENGTHS`
    whose leave-one-out errors e_i = r_i / (1 − h_ii), from one decomposition (Golub et al., 1979), are least. What is
    kept of the rows is a triangular factor of at most 2 (F + 1) of them, so more rows cost no more memory.

    Args:
        ridge: The strength (≥ 0), or None to choose.

    Example:
        >>> import numpy
        >>> from ssmn.interfaces.ridge import Ridge
        >>> x = numpy.arange(24.0).reshape(12, 2) % 5
        >>> read = Ridge(1e-6)
        >>> read.add(x[:8], x[:8] @ [[1.0], [2.0]])
        >>> read.add(x[8:], x[8:] @ [[1.0], [2.0]])
        >>> bool(abs(read(x) - x @ [[1.0], [2.0]]).max() < 1e-5)
        True
    """

    def __init__(self, ridge: float | None = None) -> None:
        self.ridge = ridge
        self.rows: Array | None = None
        self.held_out: Array | None = None

    def add(self, features: Array, targets: Array) -> None:
        """Takes n more rows and solves again.

        Args:
            features: [n, F], finite.
            targets: [n, K].
        """
        if self.rows is None:
            self.mean, self.scale = features.mean(0), features.std(0)
            # What hardly moves has no deviation to speak of beside its own size: rounding must not become a feature.
            self.scale = np.where(self.scale > 1e-7 * (1 + np.abs(self.mean)), self.scale, 1.0)
            self.rows = np.zeros((0, features.shape[1] + 1))
            self.targets = np.zeros((0, targets.shape[1]))
            if self.ridge is None:
                self.ridge = self._choose((features - self.mean) / self.scale, targets)
        rows = np.column_stack([(features - self.mean) / self.scale, np.ones(len(features))])
        self.rows, self.targets = np.vstack([self.rows, rows]), np.vstack([self.targets, targets])
        if len(self.rows) > 2 * self.rows.shape[1]:
            turned, self.rows = np.linalg.qr(self.rows)
            self.targets = turned.T @ self.targets
        self._solve()

    def __call__(self, features: Array) -> Array:
        """[n, F] to [n, K]."""
        return (features - self.mean) / self.scale @ self.weights + self.bias

    def tensors(self) -> Tensors:
        """All there is, for a file."""
        assert self.rows is not None
        return {name: getattr(self, name) for name in _NAMES} | {"ridge": np.array([self.ridge])}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Ridge:
        """The reverse of `tensors`."""
        made = cls(float(tensors["ridge"][0]))
        for name in _NAMES:
            setattr(made, name, tensors[name])
        return made

    def _solve(self) -> None:
        assert self.rows is not None and self.ridge is not None
        ones = self.rows[:, -1]
        weight = ones @ ones
        mean, level = ones @ self.rows[:, :-1] / weight, ones @ self.targets / weight
        centred, wanted = self.rows[:, :-1] - np.outer(ones, mean), self.targets - np.outer(ones, level)
        if len(centred) < centred.shape[1]:
            gram = centred @ centred.T
            gram.flat[:: len(gram) + 1] += max(self.ridge, 1e-12)
            self.weights = centred.T @ np.linalg.solve(gram, wanted)
        else:
            gram = centred.T @ centred
            gram.flat[:: len(gram) + 1] += max(self.ridge, 1e-12)
            self.weights = np.linalg.solve(gram, centred.T @ wanted)
        self.bias = level - mean @ self.weights

    def _choose(self, features: Array, targets: Array) -> float:
        """The best strength by leave-one-out errors; `held_out` [n, K] are the predictions of the rows left out.

        With more features than rows and little ridge, residuals and 1 − h are both minute, and only their ratio is
        not. So neither is taken as a difference of larger numbers: both are sums over what the ridge takes away.
        """
        count = len(features)
        centred, wanted = features - features.mean(0), targets - targets.mean(0)
        if count <= centred.shape[1]:
            values, vectors = np.linalg.eigh(centred @ centred.T)
            taken = values > 1e-10 * values[-1]
            values, vectors = values[taken], vectors[:, taken]
        else:
            values, right = np.linalg.eigh(centred.T @ centred)
            taken = values > 1e-10 * values[-1]
            values, right = values[taken], right[:, taken]
            vectors = centred @ right / np.sqrt(values)
        turned, squares = vectors.T @ wanted, vectors**2
        outside, free = wanted - vectors @ turned, 1 - 1 / count - squares.sum(1)
        best, found = np.inf, 1.0
        for strength in STRENGTHS:
            lost = strength / (values + strength)
            left_out = (outside + vectors @ (lost[:, None] * turned)) / (free + squares @ lost).clip(min=1e-12)[:, None]
            error = float((left_out**2).sum())
            if error < best:
                best, found, self.held_out = error, strength, targets - left_out
        return found


_NAMES = ("mean", "scale", "rows", "targets", "weights", "bias")
