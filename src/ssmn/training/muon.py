"""Muon: momentum, made orthogonal, as the step of a weight matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration X ← a X + (b A + c A²) X with A = X Xᵀ: steep at zero, so that five turns are enough."""
_TURNS = 5
_EPS = 1e-7


def orthogonalised(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ: its singular values are brought to between 0.5 and 1.5 (Jordan et al., 2024).

    Args:
        matrix: [m, n].
        dtype: Of the products; None = the matrix's own. bfloat16 is enough, and quicker where the processor
            multiplies it.

    Returns:
        [m, n].

    Example:
        >>> import torch
        >>> values = torch.linalg.svdvals(orthogonalised(torch.randn(8, 5)))
        >>> bool(values.min() > 0.3) and bool(values.max() < 1.6)
        True
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = (x / x.norm().clamp(min=_EPS)).to(dtype)
    a, b, c = _COEFFICIENTS
    for _ in range(_TURNS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum made orthogonal, with AdamW's decoupled decay and the size of AdamW's steps (Liu et al., 2025).

    `torch.optim.Muon` computes the same, always in bfloat16, which takes most of a training step on a processor that
    has no instructions for it. This one leaves the dtype to the caller, and needs no newer torch.

    Args:
        weights: Matrices.
        lr: Learning rate; a step has the root mean square 0.2 · lr.
        momentum: Averaging factor of the gradients.
        weight_decay: Share of the weights, times the learning rate, that is lost at each step.
        dtype: Of the products that make a step orthogonal; None = the weights' own.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(4, 4))
        >>> (weight - torch.eye(4)).square().sum().backward()
        >>> _ = Muon([weight], lr=0.1).step()
        >>> bool((weight.diagonal() > 0).all())
        True
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                step = orthogonalised(weight.grad.lerp(average, group["momentum"]), self.dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step, alpha=-0.2 * math.sqrt(max(weight.shape)) * group["lr"])
