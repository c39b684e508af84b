"""For layers whose states are constants: gradients pass through the rows where nothing happened, and no others."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ssmn.ops.segments import bounds_of
from ssmn.state import State

StateT = TypeVar("StateT", bound=State)


def touched(
    batch: int, time: int, mask: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
) -> Tensor:
    """[N] bool: the streams that have an open step or a reset."""
    steps = torch.ones(batch, time, dtype=torch.bool, device=device) if mask is None else mask
    steps = steps if reset is None else steps | reset
    counts = functional.pad(steps.reshape(-1).cumsum(0), (1, 0))
    bounds = bounds_of(batch, time, cu_seqlens, device)
    return counts[bounds[1:]] > counts[bounds[:-1]]


def with_untouched(after: StateT, before: StateT, touched: Tensor) -> StateT:
    """The rows of `before` where nothing happened: a gradient passes through them."""
    old = before.named_tensors()
    return after.with_tensors(
        {
            name: torch.where(touched.reshape(-1, *[1] * (new.dim() - 1)), new, old[name])
            for name, new in after.named_tensors().items()
        }
    )
