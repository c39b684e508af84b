"""The modern continuous Hopfield network: retrieval by softmax, and its energy (Ramsauer et al., 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmn.errors import DtypeError, RangeError, ShapeError
from ssmn.ops.common import shape_text


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What a retrieval gave.

    Attributes:
        pattern: [.., Q, D], where each query came to rest; or [.., Q, V], what it read of the values from there.
        steps: [.., Q] int64, updates of the query; the read of the values is not counted.
        converged: [.., Q] bool, whether the last of these moved it by no more than the tolerance.
    """

    pattern: Tensor
    steps: Tensor
    converged: Tensor


def retrieve(
    query: Tensor,
    stored: Tensor,
    *,
    beta: float | Tensor,
    values: Tensor | None = None,
    mask: Tensor | None = None,
    max_steps: int = 1,
    tolerance: float = 0.0,
) -> Retrieval:
    """Updates queries, ξ ← Xᵀ softmax(β X ξ), until they are at rest among the stored patterns, the rows of X.

    One update is attention with keys X and values X; a large β finds one pattern, a small one the mean of several
    (Ramsauer et al., 2020). Each update lowers `energy`. With `values` the last update reads those in place of
    the patterns: retrieval of what belongs to a pattern. Gradients flow through every update.

    Args:
        query: [.., Q, D], where to start.
        stored: [.., P, D], the patterns; P = 0 gives zeros.
        beta: Inverse temperature > 0; a number, or a tensor that is broadcast against [.., Q, 1].
        values: [.., P, V], what the last update reads; None = the patterns.
        mask: [.., P] bool, True = there; where nothing is there the result is zero.
        max_steps: Updates at most, the last read included.
        tolerance: An update that moves a query by no more (Euclidean norm) is its last; 0 = always `max_steps`, or
            until nothing moves at all.

    Returns:
        The patterns or values, and how each query ended.

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import retrieve
        >>> stored = torch.nn.functional.normalize(torch.randn(50, 64), dim=-1)
        >>> found = retrieve(stored[:2] + 0.02 * torch.randn(2, 64), stored, beta=40.0, max_steps=5, tolerance=1e-4)
        >>> torch.allclose(found.pattern, stored[:2], atol=1e-3), found.converged.tolist()
        (True, [True, True])
    """
    _check_patterns("retrieve", query, stored, values, mask, beta)
    if not isinstance(max_steps, int) or max_steps < 1:
        raise RangeError(f"retrieve: max_steps={max_steps!r}; wanted a whole number of at least 1.")
    if not tolerance >= 0:
        raise RangeError(f"retrieve: tolerance={tolerance!r}; wanted a distance of at least 0.")
    shape = torch.broadcast_shapes(query.shape[:-2], stored.shape[:-2])
    query = query.expand(*shape, *query.shape[-2:])
    steps = torch.zeros(query.shape[:-1], dtype=torch.int64, device=query.device)
    at_rest = torch.zeros_like(steps, dtype=torch.bool)
    for _ in range(max_steps if values is None else max_steps - 1):
        if bool(at_rest.all()):
            break
        after = _weights(query, stored, beta, mask) @ stored
        distance = (after - query).detach().norm(dim=-1)
        query = torch.where(at_rest.unsqueeze(-1), query, after)
        steps = steps + (~at_rest).long()
        at_rest = at_rest | (distance <= tolerance)
    pattern = query if values is None else _weights(query, stored, beta, mask) @ values
    return Retrieval(pattern, steps, at_rest)


def energy(query: Tensor, stored: Tensor, *, beta: float | Tensor, mask: Tensor | None = None) -> Tensor:
    """E(ξ) = −lse(β, X ξ) + ½ ξᵀξ + log(P) / β + ½ M², M the largest norm of a pattern; never negative.

    lse(β, x) = log Σ exp(β x) / β. `retrieve` lowers it at every update (Ramsauer et al., 2020, theorem 1).

    Args:
        query: [.., Q, D].
        stored: [.., P, D], at least one pattern.
        beta: As in `retrieve`.
        mask: [.., P] bool, True = there.

    Returns:
        [.., Q].

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
    """
    _check_patterns("energy", query, stored, None, mask, beta)
    there = torch.ones(stored.shape[:-1], dtype=torch.bool, device=stored.device) if mask is None else mask
    if not bool(there.any(-1).all()):
        raise RangeError("energy: a set is empty; wanted at least one pattern.")
    scores = (query @ stored.mT).masked_fill(~there.unsqueeze(-2), -torch.inf)
    scale = beta if isinstance(beta, Tensor) else torch.as_tensor(beta, dtype=scores.dtype)
    largest = stored.square().sum(-1).masked_fill(~there, 0.0).amax(-1, keepdim=True)
    number = there.sum(-1, keepdim=True).to(scores.dtype)
    mixed = torch.logsumexp(scale * scores, -1)
    per_query = scale.squeeze(-1) if scale.dim() else scale
    return (number.log() - mixed) / per_query + 0.5 * (query.square().sum(-1) + largest)


def _weights(query: Tensor, stored: Tensor, beta: float | Tensor, mask: Tensor | None) -> Tensor:
    scores = beta * (query @ stored.mT)
    if mask is None:
        return torch.softmax(scores, -1)
    there = mask.unsqueeze(-2)
    # Finite, so that an empty set gives zeros and no NaN, in the gradient too.
    scores = scores.masked_fill(~there, torch.finfo(scores.dtype).min)
    return torch.where(there, torch.softmax(scores, -1), 0.0)


def _check_patterns(
    owner: str, query: Tensor, stored: Tensor, values: Tensor | None, mask: Tensor | None, beta: float | Tensor
) -> None:
    for name, tensor in (("query", query), ("stored", stored), ("values", values)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype != query.dtype:
            came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise DtypeError(f"{owner}: {name} is {came}; wanted a floating tensor, all of the same dtype.")
        if tensor.dim() < 2:
            raise ShapeError(f"{owner}: {name} has shape {shape_text(tensor)}; wanted [.., patterns, features].")
    if query.shape[-1] != stored.shape[-1]:
        raise ShapeError(
            f"{owner}: query has shape {shape_text(query)} but stored {shape_text(stored)}; wanted equal last axes."
        )
    if values is not None and values.shape[:-1] != stored.shape[:-1]:
        raise ShapeError(
            f"{owner}: values has shape {shape_text(values)} but stored {shape_text(stored)}; "
            "wanted a value for each pattern."
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != stored.shape[:-1]):
        raise ShapeError(f"{owner}: mask is {mask.dtype} {shape_text(mask)}; wanted bool {list(stored.shape[:-1])}.")
    least = float(beta.detach().min()) if isinstance(beta, Tensor) else beta
    if not (0 < least < math.inf):
        raise RangeError(f"{owner}: beta={least!r}; wanted a finite inverse temperature above 0.")
