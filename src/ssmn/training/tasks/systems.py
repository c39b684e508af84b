"""Prediction of linear systems that are replaced at random times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssmn.training.tasks.base import Batch, Split, Task


@dataclass(frozen=True, kw_only=True)
class DriftingSystem(Task):
    """A linear system x_{t+1} = A x_t whose rotation A is replaced at random times; predict x_{t+1}.

    A rotation keeps the length of x, here 1 per component on average, so 1.0 is the squared error
    of a model that knows nothing, and a model that re-learns A at once goes towards 0.
    """

    name: ClassVar[str] = "drift"
    measure: ClassVar[str] = "error_64+"

    dim: int = 8
    """Components of the system."""
    length: int = 384
    """Steps per row."""
    switch_after: int = 128
    """Mean steps between two switches; the gaps are uniform within half and one and a half of it."""

    def model_settings(self) -> dict[str, Any]:
        return {"kind": "standard", "input_dim": self.dim, "output_dim": self.dim}

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        regime, elapsed, count = _switches(generator, batch_size, self.length, self.switch_after)
        square = torch.randn(batch_size, count, self.dim, self.dim, generator=generator, dtype=torch.float64)
        rotations = torch.linalg.qr(square).Q
        x = torch.randn(batch_size, self.dim, generator=generator, dtype=torch.float64)
        x = x * self.dim**0.5 / x.norm(dim=1, keepdim=True)
        row, rows = [x], torch.arange(batch_size)
        for step in range(self.length):
            row.append(torch.einsum("bij,bj->bi", rotations[rows, regime[:, step]], row[-1]))
        path = torch.stack(row, 1).float()
        return Batch(path[:, :-1], path[:, 1:], None, self.source, elapsed=elapsed)


@dataclass(frozen=True, kw_only=True)
class LinearSystem(Task):
    """A driven linear system x_{t+1} = A x_t + B u_t + noise, replaced at random times; x_t and u_t are read.

    A is a matrix of normal numbers, scaled to a spectral radius of .95, and B another, scaled so that the signal has
    variance 1 per component; u is white noise. The drive is there since such a system left to its noise would stay
    within about ten times its variance: with it 1.0 is the squared error of a model that knows nothing, and `noise`
    that of one that knows A and B.
    """

    name: ClassVar[str] = "system"
    measure: ClassVar[str] = "error_64+"

    dim: int = 8
    """Components of x, and of u."""
    length: int = 256
    """Steps per row."""
    switch_after: int = 128
    """Mean steps between two switches; the gaps are uniform within half and one and a half of it."""
    radius: float = 0.95
    """Spectral radius of A."""
    noise: float = 0.01
    """Variance of the process noise as a share of the signal's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.radius < 1.0:
            raise self._refusal("radius", "a number in (0, 1)")
        if not 0.0 <= self.noise < 1.0 - self.radius**2:
            raise self._refusal("noise", f"a share in [0, {1 - self.radius**2:.4g}), with radius={self.radius}")

    def model_settings(self) -> dict[str, Any]:
        return {"kind": "standard", "input_dim": 2 * self.dim, "output_dim": self.dim}

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        regime, elapsed, count = _switches(generator, batch_size, self.length, self.switch_after)
        shape = (batch_size, count, self.dim, self.dim)
        moves = normal(*shape)
        moves = moves * (self.radius / torch.linalg.eigvals(moves).abs().amax(-1))[..., None, None]
        drives = normal(*shape)
        noise = self.noise * _stationary(moves, torch.eye(self.dim, dtype=torch.float64).expand(shape))
        # A system that makes too much of the noise alone (about one in thousands) is driven all the same.
        left = (1 - noise).clamp(min=0.1) / _stationary(moves, drives @ drives.mT)
        drives = drives * left.sqrt()[..., None, None]
        row, rows, told = (
            [normal(batch_size, self.dim)],
            torch.arange(batch_size),
            normal(batch_size, self.length, self.dim),
        )
        kicks = self.noise**0.5 * normal(batch_size, self.length, self.dim)
        for step in range(self.length):
            both = torch.cat((moves, drives), -1)[rows, regime[:, step]]
            state = torch.cat((row[-1], told[:, step]), -1)
            row.append((both @ state.unsqueeze(-1)).squeeze(-1) + kicks[:, step])
        path = torch.stack(row, 1)
        inputs = torch.cat((path[:, :-1], told), -1)
        return Batch(inputs.float(), path[:, 1:].float(), None, self.source, elapsed=elapsed)


def _stationary(moves: Tensor, spread: Tensor) -> Tensor:
    """Mean variance per component of x_{t+1} = A x_t + w for A [.., D, D] and the covariance of w."""
    for _ in range(9):  # the sum of A^k w wᵀ A^kᵀ over 512 steps
        spread, moves = spread + moves @ spread @ moves.mT, moves @ moves
    return spread.diagonal(dim1=-2, dim2=-1).mean(-1)


def _switches(
    generator: torch.Generator, batch_size: int, length: int, switch_after: int
) -> tuple[Tensor, Tensor, int]:
    """(number of the system at each step [B, T], steps since it came [B, T], systems per row)."""
    low, high = max(1, switch_after // 2), switch_after + switch_after // 2
    count = length // low + 2
    gaps = torch.randint(low, high + 1, (batch_size, count), generator=generator)
    switches = torch.cat((torch.zeros(batch_size, 1, dtype=torch.int64), gaps.cumsum(1)), 1)
    time = torch.arange(length).expand(batch_size, -1).contiguous()
    regime = torch.searchsorted(switches, time, right=True) - 1
    return regime, time - switches.gather(1, regime), count + 1
