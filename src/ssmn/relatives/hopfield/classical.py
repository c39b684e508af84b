"""Classical Hopfield networks: ±1 units, symmetric weights, three rules of learning, single patterns in and out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ssmn.errors import RangeError
from ssmn.relatives.hopfield.binary import BinaryNetwork, Recall, check_binary, find_pattern

Mode = Literal["asynchronous", "synchronous"]


class ClassicalNetwork(BinaryNetwork):
    """E(s) = −½ sᵀ W s with W symmetric and without self-coupling (Hopfield, 1982).

    An asynchronous update turns unit i if its field Σ_j w_ij s_j points the other way, which lowers E by
    2 |field|; a synchronous one turns all such units at once, and may end in a cycle of two states.
    """

    couplings: Tensor
    """[N, N], symmetric, zero diagonal; W = scale · couplings."""

    @property
    def scale(self) -> float:
        """A sign does not depend on it."""
        return 1.0

    @property
    def weights(self) -> Tensor:
        """W [N, N], symmetric, zero diagonal."""
        return self.scale * self.couplings

    @property
    def size(self) -> int:
        return self.couplings.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.couplings.dtype

    def energy(self, state: Tensor) -> Tensor:
        """[B, N] to −½ sᵀ W s of each row, [B]."""
        state = check_binary(type(self).__name__, "state", state, self.size, self.dtype, axes=2)
        return -0.5 * self.scale * ((state @ self.couplings) * state).sum(-1)

    def stable(self, state: Tensor) -> Tensor:
        """[B, N] to [B] bool: whether no unit's field points the other way."""
        return ((state @ self.couplings) * state >= 0).all(-1)

    def synchronous(self, state: Tensor) -> Tensor:
        """One update of all units at once: sign(W s); a unit without a field stays as it is.

        Args:
            state: [B, N], ±1.

        Returns:
            [B, N].

        Raises:
            ShapeError, DtypeError, RangeError: `state` does not fit.
        """
        state = check_binary(type(self).__name__, "state", state, self.size, self.dtype, axes=2)
        field = state @ self.couplings
        return torch.where(field == 0, state, field.sign())

    def recall(self, state: Tensor, *, max_sweeps: int = 100, seed: int = 0, mode: Mode = "asynchronous") -> Recall:
        """Updates until every row is at rest, or (synchronously) goes to and fro between two states.

        Args:
            state: [B, N], ±1; where to start.
            max_sweeps: Updates of all units, at most.
            seed: Of the random orders, one for each row and sweep (asynchronous).
            mode: `asynchronous` or `synchronous`.

        Returns:
            The last states, and how each row ended.

        Raises:
            ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        """
        if mode not in get_args(Mode):
            raise RangeError(f"{type(self).__name__}: mode={mode!r}; wanted one of {', '.join(get_args(Mode))}.")
        if mode == "asynchronous":
            return super().recall(state, max_sweeps=max_sweeps, seed=seed)
        state = self._check_recall(state, max_sweeps)
        sweeps = torch.zeros(state.shape[0], dtype=torch.int64)
        before = state
        at_rest = self.stable(state)
        cycling = torch.zeros_like(at_rest)
        for _ in range(max_sweeps):
            moving = ~(at_rest | cycling)
            if not bool(moving.any()):
                break
            after = torch.where(moving.unsqueeze(-1), self.synchronous(state), state)
            at_rest = at_rest | (moving & (after == state).all(-1))
            cycling = cycling | (moving & ~at_rest & (sweeps > 0) & (after == before).all(-1))
            before, state = state, after
            sweeps += (moving & ~at_rest).long()
        return Recall(state, sweeps, self.stable(state), cycling, self.energy(state))

    def _update(self, state: Tensor, units: Tensor) -> Tensor:
        # From one unit that turns to the next: those between are at rest, whatever the order, and cost nothing.
        state, couplings = state.clone(), self.couplings
        fields = state @ couplings
        rows, place = torch.arange(len(state)), torch.arange(units.shape[1])
        reached = torch.zeros(len(state), 1, dtype=torch.int64)
        while rows.numel():
            wants = (fields[rows] * state[rows]).gather(1, units[rows]) < 0
            wants &= place >= reached[rows]
            going = wants.any(1)
            rows, first = rows[going], wants[going].to(torch.uint8).argmax(1)
            at = units[rows, first]
            was = state[rows, at]
            state[rows, at] = -was
            fields[rows] -= 2 * was.unsqueeze(-1) * couplings[at]
            reached[rows, 0] = first + 1
        return state


@dataclass(frozen=True, eq=False)
class HebbianNetwork(ClassicalNetwork):
    """W = (1/N) Σ_μ ξ_μ ξ_μᵀ without its diagonal (Hebb, 1949; Hopfield, 1982).

    Holds about 0.138 N random patterns (Amit, Gutfreund and Sompolinsky, 1985), each with some wrong bits: 1.6 %
    at that load, 0.1 % at 0.1 N. It keeps the sum in whole numbers, so removal is exact: to the bit, the network
    that never learned the pattern. It does not keep the patterns: what is removed is not checked against what was
    learned, and removing something else is unlearning (Hopfield, Feinstein and Palmer, 1983).

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import HebbianNetwork
        >>> patterns = torch.randn(3, 60).sign()
        >>> network = HebbianNetwork.learn(patterns)
        >>> noisy = patterns.clone()
        >>> noisy[:, :6] *= -1
        >>> torch.equal(network.recall(noisy).state, patterns)
        True
        >>> network.remove(patterns[0]).count
        2
    """

    total: Tensor
    """[N, N], Σ ξ ξᵀ without its diagonal: whole numbers."""
    count: int
    """P, patterns learned and not removed."""

    @classmethod
    def learn(cls, patterns: Tensor) -> Self:
        """A network of the patterns [P, N].

        Raises:
            ShapeError, DtypeError, RangeError: They are not ±1, or no [P, N].
        """
        patterns = check_binary(cls.__name__, "patterns", patterns, axes=2)
        return cls(without_diagonal(patterns.T @ patterns), len(patterns))

    @property
    def couplings(self) -> Tensor:  # type: ignore[override]
        """[N, N]: N · W."""
        return self.total

    @property
    def scale(self) -> float:
        """1/N."""
        return 1 / self.size

    def insert(self, pattern: Tensor) -> Self:
        """The network that has learned one more pattern [N].

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit.
        """
        return self._add(pattern, 1)

    def remove(self, pattern: Tensor) -> Self:
        """The network without one pattern [N], exactly.

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit, or there is none left to remove.
        """
        if not self.count:
            raise RangeError("HebbianNetwork: remove: the network is empty; wanted one that has learned the pattern.")
        return self._add(pattern, -1)

    def _add(self, pattern: Tensor, sign: int) -> Self:
        pattern = check_binary(type(self).__name__, "pattern", pattern, self.size, self.dtype, axes=1)
        outer = without_diagonal(torch.outer(pattern, pattern))
        return type(self)(self.total + sign * outer, self.count + sign)


@dataclass(frozen=True, eq=False)
class StorkeyNetwork(ClassicalNetwork):
    """Learns one pattern after the other, and less of what is known: ξ_i ξ_j − ξ_i h_ji − h_ij ξ_j, by 1/N.

    h_ij = Σ_{k≠i,j} w_ik ξ_k is the field without the pair (Storkey, 1997). It stays local and incremental like
    Hebb's rule and holds more; what a pattern leaves depends on those before it. So no subtraction takes a pattern
    out again: `remove` learns all the others again, in their order, which is exact and costs as much as learning
    them (P N²).

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import StorkeyNetwork
        >>> patterns = torch.randn(3, 60).sign()
        >>> network = StorkeyNetwork.learn(patterns[:2]).insert(patterns[2])
        >>> torch.equal(network.remove(patterns[0]).weights, StorkeyNetwork.learn(patterns[1:]).weights)
        True
    """

    patterns: Tensor
    """[P, N], in the order in which they were learned."""
    couplings: Tensor
    """W [N, N]."""

    @classmethod
    def learn(cls, patterns: Tensor) -> Self:
        """A network that learns the patterns [P, N] in their order.

        Raises:
            ShapeError, DtypeError, RangeError: They are not ±1, or no [P, N].
        """
        patterns = check_binary(cls.__name__, "patterns", patterns, axes=2)
        size = patterns.shape[1]
        couplings = patterns.new_zeros(size, size)
        for pattern in patterns:
            couplings = _storkey(couplings, pattern)
        return cls(patterns.clone(), couplings)

    def insert(self, pattern: Tensor) -> Self:
        """The network that has learned one more pattern [N].

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit.
        """
        pattern = check_binary(type(self).__name__, "pattern", pattern, self.size, self.dtype, axes=1)
        return type(self)(torch.cat([self.patterns, pattern.unsqueeze(0)]), _storkey(self.couplings, pattern))

    def remove(self, pattern: Tensor) -> Self:
        """The network that has learned the others alone, in the same order.

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit, or is not stored.
        """
        owner = type(self).__name__
        pattern = check_binary(owner, "pattern", pattern, self.size, self.dtype, axes=1)
        place = find_pattern(owner, self.patterns, pattern)
        return type(self).learn(torch.cat([self.patterns[:place], self.patterns[place + 1 :]]))


def _storkey(weights: Tensor, pattern: Tensor) -> Tensor:
    field = (weights @ pattern).unsqueeze(1) - weights * pattern  # h_ij; the diagonal of W is zero
    shared = field * pattern
    return without_diagonal(weights + (torch.outer(pattern, pattern) - (shared + shared.T)) / len(pattern))


@dataclass(frozen=True, eq=False)
class PseudoInverseNetwork(ClassicalNetwork):
    """W = Ξ⁺ Ξ, the projector onto the span of the patterns, without its diagonal (Personnaz et al., 1985).

    Every stored pattern is at rest at any load below 1 (its field is 1 minus the diagonal), so N − 1 independent
    patterns fit; how much noise is corrected shrinks with the load (Kanter and Sompolinsky, 1987). A pattern
    goes in and out by a rank-one change: in along what is new in it, out along what only it holds.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import PseudoInverseNetwork
        >>> patterns = torch.randn(50, 60).sign()
        >>> network = PseudoInverseNetwork.learn(patterns)
        >>> bool(network.stable(patterns).all())
        True
        >>> bool(network.remove(patterns[0]).stable(patterns[1:]).all())
        True
    """

    patterns: Tensor
    """[P, N], linearly independent."""
    projector: Tensor
    """[N, N], onto their span; the diagonal is kept here."""
    inverse: Tensor
    """[P, P], of the patterns' products Ξ Ξᵀ / N."""

    @classmethod
    def learn(cls, patterns: Tensor) -> Self:
        """A network of the patterns [P, N], solved at once and in float64.

        Raises:
            ShapeError, DtypeError, RangeError: They are not ±1, no [P, N], or not linearly independent.
        """
        patterns = check_binary(cls.__name__, "patterns", patterns, axes=2)
        count, size = patterns.shape
        if count > size:
            raise RangeError(f"{cls.__name__}: {count} patterns of {size} units; wanted at most {size}.")
        basis, steps = torch.linalg.qr(patterns.T.double())
        fresh = steps.diagonal().square() / size
        for number in (fresh <= _least_new(patterns.dtype)).nonzero()[:, 0].tolist():
            raise _dependent(cls.__name__, f"pattern {number}", float(fresh[number]))
        inverse = torch.cholesky_inverse(steps, upper=True) * size if count else steps
        dtype = patterns.dtype
        return cls(patterns.clone(), (basis @ basis.T).to(dtype), inverse.to(dtype))

    @functools.cached_property
    def couplings(self) -> Tensor:  # type: ignore[override]
        """W [N, N]: the projector without its diagonal."""
        return without_diagonal(self.projector)

    def insert(self, pattern: Tensor) -> Self:
        """The network with one more pattern [N]: the projector grows along what is new in it.

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit, or is a combination of the stored ones.
        """
        owner = type(self).__name__
        pattern = check_binary(owner, "pattern", pattern, self.size, self.dtype, axes=1)
        shares = self.inverse @ (self.patterns @ pattern) / self.size
        new = pattern - shares @ self.patterns
        fresh = new.dot(new) / self.size
        if float(fresh) <= _least_new(self.dtype):
            raise _dependent(owner, "the pattern", float(fresh))
        column = torch.cat([-shares, shares.new_ones(1)])
        grown = torch.nn.functional.pad(self.inverse, (0, 1, 0, 1)) + torch.outer(column, column) / fresh
        projector = self.projector + torch.outer(new, new) / new.dot(new)
        return type(self)(torch.cat([self.patterns, pattern.unsqueeze(0)]), projector, grown)

    def remove(self, pattern: Tensor) -> Self:
        """The network without one pattern [N]: the projector shrinks along what only that one holds.

        Raises:
            ShapeError, DtypeError, RangeError: It does not fit, or is not stored.
        """
        owner = type(self).__name__
        pattern = check_binary(owner, "pattern", pattern, self.size, self.dtype, axes=1)
        place = find_pattern(owner, self.patterns, pattern)
        column = self.inverse[place]
        own = column @ self.patterns  # at right angles to all other patterns
        rest = [number for number in range(len(self.patterns)) if number != place]
        inverse = (self.inverse - torch.outer(column, column) / column[place])[rest][:, rest]
        return type(self)(self.patterns[rest], self.projector - torch.outer(own, own) / own.dot(own), inverse)


def without_diagonal(matrix: Tensor) -> Tensor:
    """A copy with a zero diagonal."""
    return matrix.clone().fill_diagonal_(0)


def _least_new(dtype: torch.dtype) -> float:
    """The share of a pattern that must lie outside the span of the others, or rounding would blow it up."""
    return torch.finfo(dtype).eps ** 0.5


def _dependent(owner: str, which: str, share: float) -> RangeError:
    return RangeError(
        f"{owner}: {which} is a combination of the patterns before it ({max(share, 0.0):.1g} of it is new); "
        "it is at rest already: leave it out."
    )
