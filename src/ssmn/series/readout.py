"""A linear read-out of many steps ahead, fitted in closed form, that learns from every truth once it is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

_LARGEST_GROWTH = 10.0
"""How far forgetting may widen the read-out's uncertainty in all; beyond it nothing is forgotten for a while."""
_TIDY_EVERY = 64
"""Windows between two roundings of the covariance to a symmetric one."""


class DelayedReadout:
    """y_h = wₕᵀ φ for h = 1..H steps ahead, learned by recursive least squares (RLS) with forgetting.

    The gain of RLS, P φ / (f + φᵀ P φ), depends on the regressors alone and not on the truth. So it is computed
    when a window is seen, kept, and used for step h when its truth arrives h rows later: every step ahead learns
    as early as it can, all from one covariance P, and each wₕ is what RLS with the same regressors would give.
    A row costs F² + F · H per channel, whatever was read before; channels share the weights and learn as one block.

    Args:
        weights: [F, H], of the closed form.
        covariance: [F, F], the inverse of the closed form's regularised moment matrix.
        channels: C, series that share the weights.
        forget: f in (0, 1], what is kept per row.

    Source: S. Haykin, Adaptive Filter Theory, RLS; the delay is handled as described above.

    Example:
        >>> import numpy as np
        >>> from ssmn.series.readout import DelayedReadout
        >>> readout = DelayedReadout(np.zeros((1, 2)), np.eye(1) * 1e6, channels=1, forget=1.0)
        >>> for row in range(6):  # where φ is 1 the next row is 5, and the one after it 3
        ...     _ = readout.learn(np.array([3.0, 5.0])[[row % 2]])
        ...     readout.observe(np.full((1, 1), 1.0 - row % 2), np.zeros(1), np.ones(1))
        >>> readout.predict(np.ones((1, 1))).round(3).tolist()
        [[5.0, 3.0]]
    """

    def __init__(self, weights: Array, covariance: Array, channels: int, forget: float) -> None:
        features, horizon = weights.shape
        self.weights = np.array(weights.T, np.float64, order="C")  # as it comes from a file: sums depend on it
        """[H, F]."""
        self.covariance = np.array(covariance, np.float64, order="C")
        """[F, F]."""
        self.forget = forget
        self.limit = _LARGEST_GROWTH * float(np.trace(self.covariance))
        """Trace of the covariance above which nothing is forgotten."""
        self.seen = 0
        """Windows seen."""
        self.regressors = np.zeros((horizon, channels, features), np.float32)
        """φ of the last H windows, a ring."""
        self.gains = np.zeros((horizon, channels, features), np.float32)
        """Their gains."""
        self.shifts = np.zeros((horizon, channels))
        """What was taken off their truths."""
        self.scales = np.ones((horizon, channels))
        """What their errors are measured in."""

    @property
    def horizon(self) -> int:
        """H."""
        return len(self.weights)

    def predict(self, features: Array) -> Array:
        """[C, F] to [C, H]."""
        return features @ self.weights.T

    def learn(self, truth: Array) -> tuple[Array, Array]:
        """Takes in the row that has just arrived, as the truth of the windows before it.

        Args:
            truth: [C]; NaN = unknown.

        Returns:
            (Errors [min(seen, H), C] of the present weights on the windows 1, 2, ... rows ago, NaN where unknown; the
            scales of these windows.)
        """
        count = min(self.seen, self.horizon)
        if not count:
            return np.zeros((0, len(truth))), np.zeros((0, len(truth)))
        slots = (self.seen - np.arange(1, count + 1)) % self.horizon
        regressors, gains = self.regressors[slots], self.gains[slots]
        predicted = np.matmul(regressors, self.weights[:count, :, None].astype(np.float32))[..., 0]
        errors = truth - self.shifts[slots] - predicted
        self.weights[:count] += np.matmul(np.nan_to_num(errors)[:, None].astype(np.float32), gains)[:, 0]
        return errors, self.scales[slots]

    def observe(self, features: Array, shifts: Array, scales: Array) -> None:
        """Takes in the window that ends with the row that has just arrived.

        Args:
            features: [C, F]; a channel of NaN is not learned from.
            shifts: [C], what is taken off the truths.
            scales: [C], what its errors are measured in.
        """
        slot = self.seen % self.horizon
        self.gains[slot] = self._gains(features)
        self.regressors[slot], self.shifts[slot], self.scales[slot] = np.nan_to_num(features), shifts, scales
        self.seen += 1

    def learn_whole(self, features: Array, targets: Array) -> Array:
        """One step of RLS on a window whose truths are all known.

        Args:
            features: [C, F].
            targets: [C, H], shifted; NaN = unknown.

        Returns:
            Errors [C, H] of the weights before; NaN where unknown.
        """
        gains = self._gains(features)
        errors = targets - self.predict(np.nan_to_num(features))
        self.weights += np.nan_to_num(errors).T @ gains
        self.seen += 1
        return errors

    def _gains(self, features: Array) -> Array:
        """[C, F], and the covariance after this window."""
        gains = np.zeros_like(features, np.float64)
        known = np.isfinite(features).all(1)
        if float(np.trace(self.covariance)) < self.limit:
            self.covariance /= self.forget
        if known.any():
            q = features[known].astype(np.float64)
            projected = self.covariance @ q.T
            gains[known] = np.linalg.solve(np.eye(len(q)) + q @ projected, projected.T)
            self.covariance -= projected @ gains[known]
        if self.seen % _TIDY_EVERY == 0:
            self.covariance = (self.covariance + self.covariance.T) / 2
        return gains

    def arrays(self) -> dict[str, Array]:
        """Everything that a copy needs."""
        names = ("weights", "covariance", "regressors", "gains", "shifts", "scales")
        return {name: getattr(self, name) for name in names} | {"seen": np.array([self.seen, self.limit])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array], forget: float) -> DelayedReadout:
        """The reverse of `arrays`; the arrays are copied."""
        made = cls(arrays["weights"].T, arrays["covariance"], arrays["shifts"].shape[1], forget)
        for name in ("regressors", "gains", "shifts", "scales"):
            setattr(made, name, np.array(arrays[name]))
        made.seen, made.limit = int(arrays["seen"][0]), float(arrays["seen"][1])
        return made


def ridge(moment: Array, cross: Array, penalty: Array) -> Array:
    """Weights [F, H] that minimise the squared error plus Σ penalty · w²: (G + diag(penalty))⁻¹ C.

    Args:
        moment: G = ΦᵀΦ, [F, F].
        cross: C = ΦᵀY, [F, H].
        penalty: [F], positive.
    """
    return np.linalg.solve(moment + np.diag(penalty), cross)
