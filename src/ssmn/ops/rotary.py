"""Rotary positions with float64 angles: a stream has no last position."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, position: Tensor, theta: float | None) -> Tensor:
    """Rotates pairs (i, i + D/2) of the last axis by position · theta^(−2i/D) (Su et al., 2021).

    Args:
        x: [.., H, D], D even.
        position: [..] int64, the axes of `x` before H (broadcast against them).
        theta: Base of the angles; None leaves `x` as it is.

    Returns:
        [.., H, D] in the dtype of `x`. Angles are computed in float64 from the integer position, since
        float32 has lost the unit by position 16,777,216.
    """
    if theta is None:
        return x
    half = x.shape[-1] // 2
    frequency = theta ** (torch.arange(half, dtype=torch.float64, device=x.device) / -half)
    angle = (position.to(torch.float64).unsqueeze(-1) * frequency).unsqueeze(-2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
