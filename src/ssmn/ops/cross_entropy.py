"""The loss of a language model whose logits are never kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssmn.config import Backend
from ssmn.errors import DtypeError, ShapeError
from ssmn.ops import native
from ssmn.ops.common import check_numbers, check_tensor, shape_text
from ssmn.ops.dispatch import choose_backend


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Mean over the positions of log Σ_v exp(z_v) − z_target with z = W h + b, in nats.

    `cross_entropy(linear(hidden, weight, bias), targets)` for large vocabularies. The `native` backend works on some
    two million logits at a time, turns them into their gradients in place, and so needs neither the memory nor the
    passes over it that [N, V] logits, their softmax and its gradient take (Hsu et al., 2024). Products are computed in
    bfloat16 if both `hidden` and `weight` are, the softmax in float32. It has first derivatives alone; the other
    backends are the plain formula.

    Args:
        hidden: [.., D], any number of positions, at least one.
        weight: [V, D].
        targets: [..] integers in [0, V).
        bias: [V], or None.
        backend: `auto`, `reference`, `chunked` or `native`.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        BackendError: The backend that was asked for cannot take these tensors.

    Example:
        >>> import torch, ssmn
        >>> hidden, weight = torch.randn(2, 5, 8), torch.randn(100, 8)
        >>> targets = torch.randint(100, (2, 5))
        >>> loss = ssmn.ops.linear_cross_entropy(hidden, weight, targets)
        >>> plain = torch.nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
        >>> bool((loss - plain).abs() < 1e-5)
        True
    """
    op = "linear_cross_entropy"
    sizes: dict[str, int] = {}
    check_tensor(op, "weight", weight, "V D", sizes)
    if not isinstance(hidden, Tensor) or hidden.dim() == 0 or hidden.shape[-1] != sizes["D"]:
        raise ShapeError(f"{op}: hidden has shape {shape_text(hidden)}; wanted [.., {sizes['D']}], as weight has.")
    check_tensor(op, "hidden", hidden.reshape(-1, sizes["D"]), "N D", sizes)
    if bias is not None:
        check_tensor(op, "bias", bias, "V", sizes)
    _check_targets(op, targets, hidden)
    rows, targets = hidden.reshape(-1, sizes["D"]), targets.reshape(-1)
    if choose_backend(op, backend, hidden, weight) == "native":
        return native.linear_cross_entropy(rows, weight, bias, targets)
    if not torch.compiler.is_compiling():
        check_numbers(op, "targets", targets, sizes["V"])
    logits = functional.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))
    return functional.cross_entropy(logits if logits.dtype is torch.float64 else logits.float(), targets.long())


def _check_targets(op: str, targets: Tensor, hidden: Tensor) -> None:
    if not isinstance(targets, Tensor) or targets.dtype not in (torch.int64, torch.int32):
        came = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise DtypeError(f"{op}: targets is {came}; wanted an int64 or int32 tensor.")
    if targets.shape != hidden.shape[:-1]:
        raise ShapeError(
            f"{op}: targets has shape {shape_text(targets)}; wanted {list(hidden.shape[:-1])}, one for each of hidden."
        )
    if targets.numel() == 0:
        raise ShapeError(f"{op}: hidden has shape {shape_text(hidden)}; wanted at least one position.")
