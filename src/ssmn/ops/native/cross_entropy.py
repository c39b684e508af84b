"""The loss of a language model without its logits, as a custom op: `ssmn::linear_cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmn import native
from ssmn.ops.common import check_numbers
from ssmn.ops.native.calls import converted, dense, only_first_derivatives, run

_LOGITS, _LEAST_ROWS = 2**21, 64
"""Logits that stand in memory at a time, and rows that a matrix product should have at least."""
_FORMATS = {torch.float32: 0, torch.bfloat16: 1}


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The loss, its arguments checked: hidden [N, D], weight [V, D], bias [V], targets [N]; a float32 scalar."""
    low = hidden.dtype is weight.dtype is torch.bfloat16
    dtype = torch.bfloat16 if low else torch.float32
    tensors = (converted(hidden, dtype), converted(weight, dtype), None if bias is None else converted(bias, dtype))
    tracked = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return torch.ops.ssmn.linear_cross_entropy(*tensors, converted(targets, torch.int64), tracked)[0]


@torch.library.custom_op("ssmn::linear_cross_entropy", mutates_args=())
def _loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, tracked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients if they will be wanted: they need the logits, which are there now and not later."""
    (count, _), classes = hidden.shape, weight.shape[0]
    check_numbers("linear_cross_entropy", "targets", targets, classes)  # torch.compile leaves out what comes before
    loss, d_hidden, d_weight, d_bias = _results_like(hidden, weight, bias, tracked)
    losses, targets = hidden.new_empty(count, dtype=torch.float32), targets.contiguous()
    # Turned, as a product in bfloat16 is slow if the logits are.
    weight_sums = torch.zeros(d_weight.T.shape, dtype=torch.float32)
    bias_sums = torch.zeros(d_bias.shape, dtype=torch.float32)
    rows = max(_LEAST_ROWS, _LOGITS // classes)
    for begin in range(0, count, rows):
        some = slice(begin, begin + rows)
        part = hidden[some]
        logits = part @ weight.T if bias is None else torch.addmm(bias, part, weight.T)
        call = native.CrossEntropyCall(len(part), classes, _FORMATS[logits.dtype], 1 / count)
        run("ssmn_cross_entropy", call, *dense(targets[some], logits, losses[some]))
        if not tracked:
            continue
        torch.mm(logits, weight, out=d_hidden[some])
        if logits.dtype is torch.float32:
            weight_sums.addmm_(part.T, logits)
        else:
            weight_sums += part.T @ logits
        if bias is not None:
            bias_sums += logits.sum(0, dtype=torch.float32)
    d_weight.copy_(weight_sums.T)
    d_bias.copy_(bias_sums)
    return loss.copy_(losses.mean()), d_hidden, d_weight, d_bias


def _results_like(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tracked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    empty = (0,)
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if tracked else empty),
        weight.new_empty(weight.shape if tracked else (0, 0)),
        weight.new_empty(bias.shape if tracked and bias is not None else empty),
    )


@_loss.register_fake
def _(hidden, weight, bias, targets, tracked):
    return _results_like(hidden, weight, bias, tracked)


@torch.library.custom_op("ssmn::linear_cross_entropy_backward", mutates_args=())
def _loss_backward(d_loss: Tensor, d_hidden: Tensor, d_weight: Tensor, d_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return d_hidden * d_loss, d_weight * d_loss, d_bias * d_loss


@_loss_backward.register_fake
def _(d_loss, d_hidden, d_weight, d_bias):
    return torch.empty_like(d_hidden), torch.empty_like(d_weight), torch.empty_like(d_bias)


only_first_derivatives(_loss_backward)


def _save_gradients(ctx, inputs, output):
    ctx.has_bias = inputs[2] is not None
    ctx.save_for_backward(*output[1:])


def _gradients(ctx, d_loss, *_):
    d_hidden, d_weight, d_bias = torch.ops.ssmn.linear_cross_entropy_backward(d_loss, *ctx.saved_tensors)
    return d_hidden, d_weight, d_bias if ctx.has_bias else None, None, None


_loss.register_autograd(_gradients, setup_context=_save_gradients)
