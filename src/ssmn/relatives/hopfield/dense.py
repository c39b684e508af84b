"""Dense associative memory: an energy that is steep in the overlaps, and so holds far more patterns than units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ssmn.errors import RangeError
from ssmn.relatives.hopfield.binary import BinaryNetwork, check_binary, find_pattern

Interaction = Literal["polynomial", "rectified", "exponential"]


@dataclass(frozen=True, eq=False)
class DenseNetwork(BinaryNetwork):
    """E(s) = −N Σ_μ F(ξ_μ · s / N) over the stored patterns, s of N units of ±1.

    `polynomial`: F(m) = m^n, of which n = 2 is the Hebbian network; `rectified`: F(m) = max(m, 0)^n; both hold of the
    order of N^(n−1) patterns (Krotov and Hopfield, 2016). `exponential`: E(s) = −log Σ_μ exp(ξ_μ · s), the logarithm of
    the paper's, so that it stays finite; of the order of 2^(N/2) patterns (Demircigil et al., 2017).
    An asynchronous update gives a unit the sign with the lower energy. The network is its patterns, so a pattern goes
    in and out by itself; memory and an update cost in proportion to their number.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import DenseNetwork
        >>> patterns = torch.randn(150, 50).sign()  # three times as many as units
        >>> network = DenseNetwork.learn(patterns, "exponential")
        >>> noisy = patterns[:4].clone()
        >>> noisy[:, :3] *= -1
        >>> torch.equal(network.recall(noisy).state, patterns[:4])
        True
    """

    patterns: Tensor
    """[P, N], ±1."""
    interaction: Interaction = "polynomial"
    """F."""
    degree: int = 3
    """n ≥ 2; without a meaning for `exponential`."""

    @classmethod
    def learn(cls, patterns: Tensor, interaction: Interaction = "polynomial", degree: int = 3) -> Self:
        """A network of the patterns [P, N].

        Args:
            patterns: [P, N], ±1.
            interaction: `polynomial`, `rectified` or `exponential`.
            degree: n ≥ 2.

        Raises:
            ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        """
        owner = cls.__name__
        if interaction not in get_args(Interaction):
            raise RangeError(f"{owner}: interaction={interaction!r}; wanted one of {', '.join(get_args(Interaction))}.")
        if not isinstance(degree, int) or degree < 2:
            raise RangeError(f"{owner}: degree={degree!r}; wanted a whole number of at least 2.")
        return cls(check_binary(owner, "patterns", patterns, axes=2).clone(), interaction, degree)

    @property
    def size(self) -> int:
        return self.patterns.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.patterns.dtype

    def insert(self, pattern: Tensor) -> Self:
        """The network with one more pattern [N].

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit.
        """
        pattern = check_binary(type(self).__name__, "pattern", pattern, self.size, self.dtype, axes=1)
        return type(self)(torch.cat([self.patterns, pattern.unsqueeze(0)]), self.interaction, self.degree)

    def remove(self, pattern: Tensor) -> Self:
        """The network without one pattern [N].

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit, or is not stored.
        """
        owner = type(self).__name__
        pattern = check_binary(owner, "pattern", pattern, self.size, self.dtype, axes=1)
        place = find_pattern(owner, self.patterns, pattern)
        return type(self)(torch.cat([self.patterns[:place], self.patterns[place + 1 :]]), self.interaction, self.degree)

    def energy(self, state: Tensor) -> Tensor:
        """[B, N] to the energy of each row, [B]."""
        state = check_binary(type(self).__name__, "state", state, self.size, self.dtype, axes=2)
        return self._energy(state @ self.patterns.T)

    def stable(self, state: Tensor) -> Tensor:
        """[B, N] to [B] bool: whether turning any unit would lower the energy of the row."""
        overlaps = state @ self.patterns.T
        here, at_rest = self._energy(overlaps), torch.ones(len(state), dtype=torch.bool)
        for unit in range(self.size):
            turned = overlaps - 2 * state[:, unit : unit + 1] * self.patterns[:, unit]
            at_rest &= self._energy(turned) >= here
        return at_rest

    def _energy(self, overlaps: Tensor) -> Tensor:
        """Of the overlaps [.., P], whole numbers from −N to N."""
        if self.interaction == "exponential":
            return -torch.logsumexp(overlaps, -1)
        share = overlaps / self.size
        if self.interaction == "rectified":
            share = share.clamp(min=0)
        return -self.size * share.pow(self.degree).sum(-1)

    def _update(self, state: Tensor, units: Tensor) -> Tensor:
        state, rows = state.clone(), torch.arange(len(state))
        columns = self.patterns.T.contiguous()
        overlaps = state @ columns
        here = self._energy(overlaps)
        for unit in units.T:
            old = state[rows, unit]
            turned = overlaps - 2 * old.unsqueeze(-1) * columns[unit]
            there = self._energy(turned)
            lower = there < here
            state[rows, unit] = torch.where(lower, -old, old)
            overlaps = torch.where(lower.unsqueeze(-1), turned, overlaps)
            here = torch.where(lower, there, here)
        return state
