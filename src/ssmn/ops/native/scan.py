"""The compiled scan as a custom op, forward and backward: `ssmn::scan`."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmn import native
from ssmn.ops.native.calls import (
    checked_streams,
    converted,
    dense,
    empty_like,
    nothing_watches,
    only_first_derivatives,
    optional_like,
    run,
    streams_of,
)


def scan(
    a: Tensor,
    x: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """`linear_scan`, its arguments checked: (h [B, T, 2, C] in float32, the final state or None)."""
    bounds = None if cu_seqlens is None else converted(cu_seqlens, torch.int64)
    state = None if initial_state is None else converted(initial_state, torch.float32)
    tensors = (converted(a, torch.float32), converted(x, torch.float32), mask, reset, bounds, state)
    # The way through the dispatcher takes longer than a step.
    run = _scanned if nothing_watches(*tensors) else torch.ops.ssmn.scan
    h, final = run(*tensors, output_final_state)
    return h, final if output_final_state else None


def _scan_call(h: Tensor, a: Tensor, cu_seqlens: Tensor | None) -> native.ScanCall:
    streams = checked_streams("linear_scan", h.shape[0], h.shape[1], cu_seqlens)
    return native.ScanCall(h.shape[0], h.shape[1], h.shape[3], streams, a.dim() == 2)


def _scanned_like(x: Tensor, cu_seqlens: Tensor | None, keep_final: bool) -> tuple[Tensor, Tensor]:
    streams = streams_of(x.shape[0], cu_seqlens)
    return empty_like(x)[0], x.new_empty((streams, *x.shape[2:]) if keep_final else (0,))


def _scanned(
    a: Tensor,
    x: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    keep_final: bool,
) -> tuple[Tensor, Tensor]:
    h, final = _scanned_like(x, cu_seqlens, keep_final)
    inputs = dense(a, x, mask, reset, cu_seqlens, initial_state)
    run("ssmn_scan", _scan_call(x, a, cu_seqlens), *inputs, h, final if keep_final else None)
    return h, final


_scan = torch.library.custom_op("ssmn::scan", _scanned, mutates_args=())


@_scan.register_fake
def _(a, x, mask, reset, cu_seqlens, initial_state, keep_final):
    return _scanned_like(x, cu_seqlens, keep_final)


@torch.library.custom_op("ssmn::scan_backward", mutates_args=())
def _scan_backward(
    a: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    h: Tensor,
    d_h: Tensor,
    d_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    call, inputs = _scan_call(h, a, cu_seqlens), dense(a, mask, reset, cu_seqlens, initial_state, h, d_h, d_final)
    gradients = _scan_gradients_like(a, cu_seqlens, initial_state, h)
    run("ssmn_scan_backward", call, *inputs, *gradients[:2], None if initial_state is None else gradients[2])
    return gradients


def _scan_gradients_like(
    a: Tensor, cu_seqlens: Tensor | None, initial_state: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors that all steps share get a gradient per stream."""
    streams = streams_of(h.shape[0], cu_seqlens)
    d_a = h.new_empty(streams, *a.shape) if a.dim() == 2 else empty_like(a)[0]
    return d_a, empty_like(h)[0], optional_like(initial_state, h)


@_scan_backward.register_fake
def _(a, mask, reset, cu_seqlens, initial_state, h, d_h, d_final):
    return _scan_gradients_like(a, cu_seqlens, initial_state, h)


only_first_derivatives(_scan_backward)


def _save_scan(ctx, inputs, output):
    a, _, *flags_and_state, ctx.keep_final = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(a, *flags_and_state, output[0])


def _scan_gradients(ctx, d_h, d_final):
    *inputs, h = ctx.saved_tensors
    d_h = torch.zeros_like(h) if d_h is None else d_h
    d_a, d_x, d_initial = torch.ops.ssmn.scan_backward(*inputs, h, d_h, d_final if ctx.keep_final else None)
    d_a = d_a.sum(0) if inputs[0].dim() == 2 else d_a
    return d_a, d_x, None, None, None, None if inputs[4] is None else d_initial, None


_scan.register_autograd(_scan_gradients, setup_context=_save_scan)
