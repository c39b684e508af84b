"""What the networks of ±1 units share: checks, asynchronous recall, and its report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ssmn.errors import DtypeError, RangeError, ShapeError
from ssmn.ops.common import shape_text


@dataclass(frozen=True, eq=False)
class Recall:
    """How a recall ended, row by row.

    Attributes:
        state: [B, N], ±1.
        sweeps: [B] int64, sweeps in which the row was not yet at rest.
        converged: [B] bool, whether no unit wants to turn.
        cycling: [B] bool, whether the row goes to and fro between two states (synchronous updates alone).
        energy: [B], of `state`.
    """

    state: Tensor
    sweeps: Tensor
    converged: Tensor
    cycling: Tensor
    energy: Tensor

    def overlap(self, patterns: Tensor) -> Tensor:
        """[B], m = pattern · state / N with the pattern of each row, [B, N] or [N]; 1 = every bit, 0 = chance."""
        return (self.state * patterns).mean(-1)


class BinaryNetwork(ABC):
    """N units of ±1 with an energy that no asynchronous update raises.

    A network is a value: learning returns a new one.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """N, the number of units."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """float32 or float64, of patterns and states."""

    @classmethod
    @abstractmethod
    def learn(cls, patterns: Tensor) -> Self:
        """A network of the patterns [P, N]."""

    @abstractmethod
    def insert(self, pattern: Tensor) -> Self:
        """The network with one more pattern [N]."""

    @abstractmethod
    def remove(self, pattern: Tensor) -> Self:
        """The network without one pattern [N]."""

    @abstractmethod
    def energy(self, state: Tensor) -> Tensor:
        """[B, N] to the energy of each row, [B]."""

    @abstractmethod
    def stable(self, state: Tensor) -> Tensor:
        """[B, N] to [B] bool: whether no unit of the row wants to turn."""

    @abstractmethod
    def _update(self, state: Tensor, units: Tensor) -> Tensor: ...

    def update(self, state: Tensor, units: Tensor) -> Tensor:
        """Asynchronous updates: of every row some units, one after the other, all rows at once.

        A unit that is torn both ways stays as it is, so the energy of no row rises.

        Args:
            state: [B, N], ±1.
            units: [B, U] int64, which units of each row, in order.

        Returns:
            [B, N].

        Raises:
            ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        state = check_binary(owner, "state", state, self.size, self.dtype, axes=2)
        if units.dtype != torch.int64 or units.dim() != 2 or units.shape[0] != state.shape[0]:
            came = f"{units.dtype} {shape_text(units)}"
            raise ShapeError(f"{owner}: units is {came}; wanted int64 [B, U] with B={state.shape[0]}.")
        outside = units[(units < 0) | (units >= self.size)]
        if outside.numel():
            raise RangeError(f"{owner}: units has {int(outside[0])}; wanted numbers from 0 to {self.size - 1}.")
        return self._update(state, units)

    def recall(self, state: Tensor, *, max_sweeps: int = 100, seed: int = 0) -> Recall:
        """Asynchronous updates until every row is at rest: sweeps over all units, each in a random order of its own.

        Args:
            state: [B, N], ±1; where to start.
            max_sweeps: Sweeps at most.
            seed: Of the orders.

        Returns:
            The states at rest, and which are.

        Raises:
            ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        """
        state = self._check_recall(state, max_sweeps)
        generator = torch.Generator().manual_seed(seed)
        sweeps = torch.zeros(state.shape[0], dtype=torch.int64)
        at_rest = self.stable(state)
        for _ in range(max_sweeps):
            if bool(at_rest.all()):
                break
            # Drawn for all rows, so that a row's order does not depend on which others are at rest.
            orders = torch.rand(state.shape, generator=generator).argsort(-1)
            moving = (~at_rest).nonzero()[:, 0]
            state = state.index_copy(0, moving, self._update(state[moving], orders[moving]))
            sweeps[moving] += 1
            at_rest = self.stable(state)
        return Recall(state, sweeps, at_rest, torch.zeros_like(at_rest), self.energy(state))

    def _check_recall(self, state: Tensor, max_sweeps: int) -> Tensor:
        owner = type(self).__name__
        if not isinstance(max_sweeps, int) or max_sweeps < 1:
            raise RangeError(f"{owner}: max_sweeps={max_sweeps!r}; wanted a whole number of at least 1.")
        return check_binary(owner, "state", state, self.size, self.dtype, axes=2)


def check_binary(
    owner: str, name: str, values: object, size: int | None = None, dtype: torch.dtype | None = None, *, axes: int
) -> Tensor:
    """`values` as a tensor of ±1 with so many axes, the last of `size` units."""
    if not isinstance(values, Tensor) or values.dtype not in (torch.float32, torch.float64):
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise DtypeError(f"{owner}: {name} is {came}; wanted a float32 or float64 tensor of -1 and 1.")
    if dtype is not None and values.dtype != dtype:
        raise DtypeError(f"{owner}: {name} is {values.dtype} but the network {dtype}; convert it with .to({dtype}).")
    wanted = f"[{'B, ' if axes == 2 else ''}{'N' if size is None else size}]"
    if values.dim() != axes or values.shape[-1] < 1 or (size is not None and values.shape[-1] != size):
        raise ShapeError(f"{owner}: {name} has shape {shape_text(values)}; wanted {wanted}.")
    if not bool((values.abs() == 1).all()):
        raise RangeError(f"{owner}: {name} has values other than -1 and 1; wanted units of ±1 (sign of your numbers).")
    return values


def find_pattern(owner: str, patterns: Tensor, pattern: Tensor) -> int:
    """The place of `pattern` [N] among the stored ones [P, N]."""
    found = (patterns == pattern).all(-1).nonzero()[:, 0]
    if not found.numel():
        raise RangeError(f"{owner}: remove: the pattern is none of the {len(patterns)} stored ones.")
    return int(found[0])
