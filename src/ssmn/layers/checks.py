"""The check every layer makes on what it is given."""

from __future__ import annotations

from torch import Tensor

from ssmn.errors import DtypeError, ShapeError


def check_hidden(owner: str, hidden: object, dim: int) -> None:
    """`hidden` must be a floating tensor [B, T, dim]."""
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        came = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
        raise DtypeError(f"{owner}: input is {came}; wanted a floating tensor [B, T, D].")
    if hidden.dim() != 3 or hidden.shape[-1] != dim:
        raise ShapeError(f"{owner}: input has shape {list(hidden.shape)}; wanted [B, T, D] with D={dim}.")
