"""The compiled window attention as a custom op, forward and backward: `ssmn::window_attention`."""

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
from ssmn.state import WindowState

_WIDEST = 2**48
"""No stream is as long: a wider window sees no more, and sums of wider ones would not fit 64 bits."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: int,
    rope_theta: float | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: WindowState | None,
    output_final_state: bool,
) -> tuple[Tensor, WindowState | None]:
    """`window_attention`, its arguments checked; None for `initial_state` means fresh.

    Returns:
        (o [B, T, Hq, D], bfloat16 if q, k and v all are and else float32; the ring after the last step or None).
    """
    if not q.dtype == k.dtype == v.dtype == torch.bfloat16:
        q, k, v = converted(q, torch.float32), converted(k, torch.float32), converted(v, torch.float32)
    keys = values = position = None
    if initial_state is not None:
        keys, values = converted(initial_state.keys, torch.float32), converted(initial_state.values, torch.float32)
        position = converted(initial_state.position, torch.int64)
    bounds = None if cu_seqlens is None else converted(cu_seqlens, torch.int64)
    logits = None if sinks is None else converted(sinks, torch.float32)
    tensors = (q, k, v, keys, values, position, mask, reset, bounds, logits)
    # The way through the dispatcher takes longer than a step.
    run = _attended if nothing_watches(*tensors) else torch.ops.ssmn.window_attention
    o, _, *ring = run(*tensors, window_size, rope_theta, output_final_state)
    return o, WindowState(*ring) if output_final_state else None


def _window_call(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, window_size: int, rope_theta: float | None
) -> tuple[native.WindowSizes, int, float, float]:
    """The arguments of the kernel that are no arrays: sizes, type, scale and base."""
    streams = checked_streams("window_attention", q.shape[0], q.shape[1], cu_seqlens)
    window = min(window_size, _WIDEST)
    sizes = native.WindowSizes(*q.shape[:3], k.shape[2], q.shape[3], streams, window)
    return sizes, int(q.dtype == torch.bfloat16), q.shape[3] ** -0.5, rope_theta or 0.0


def _attended_like(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, window_size: int, output_final_state: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    streams = streams_of(q.shape[0], cu_seqlens)
    ring = (streams, window_size - 1, *k.shape[2:]) if output_final_state else (0,)
    return (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        q.new_empty(q.shape[:3], dtype=torch.float32),
        q.new_empty(ring, dtype=torch.float32),
        q.new_empty(ring, dtype=torch.float32),
        q.new_empty(streams if output_final_state else 0, dtype=torch.int64),
    )


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_keys: Tensor | None,
    ring_values: Tensor | None,
    position: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    sinks: Tensor | None,
    window_size: int,
    rope_theta: float | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes, *numbers = _window_call(q, k, cu_seqlens, window_size, rope_theta)
    inputs = dense(q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks)
    outputs = _attended_like(q, k, cu_seqlens, window_size, output_final_state)
    asked = outputs if output_final_state else (*outputs[:2], None, None, None)
    run("ssmn_window_attention", sizes, numbers[0], *inputs, *numbers[1:], *asked)
    return outputs


_window_attention = torch.library.custom_op("ssmn::window_attention", _attended, mutates_args=())


@_window_attention.register_fake
def _(
    q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks, window_size, rope_theta,
    output_final_state,
):  # fmt: skip
    return _attended_like(q, k, cu_seqlens, window_size, output_final_state)


@torch.library.custom_op("ssmn::window_attention_backward", mutates_args=())
def _window_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_keys: Tensor | None,
    ring_values: Tensor | None,
    position: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    sinks: Tensor | None,
    window_size: int,
    rope_theta: float | None,
    o: Tensor,
    lse: Tensor,
    d_o: Tensor,
    d_final_keys: Tensor | None,
    d_final_values: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes, *numbers = _window_call(q, k, cu_seqlens, window_size, rope_theta)
    inputs = dense(q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks)
    saved = dense(o, lse, d_o, d_final_keys, d_final_values)
    optional = (ring_keys, ring_values, sinks)
    d_q, d_k, d_v = empty_like(q, k, v)
    d_keys, d_values, d_sinks = (optional_like(x, lse) for x in optional)
    asked = [None if x is None else y for x, y in zip(optional, (d_keys, d_values, d_sinks), strict=True)]
    run("ssmn_window_attention_backward", sizes, numbers[0], *inputs, *numbers[1:], *saved, d_q, d_k, d_v, *asked)
    return d_q, d_k, d_v, d_keys, d_values, d_sinks


@_window_attention_backward.register_fake
def _(
    q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks, window_size, rope_theta,
    o, lse, d_o, d_final_keys, d_final_values,
):  # fmt: skip
    return (*empty_like(q, k, v), *[optional_like(x, lse) for x in (ring_keys, ring_values, sinks)])


only_first_derivatives(_window_attention_backward)


def _save_attention(ctx, inputs, output):
    *tensors, ctx.window_size, ctx.rope_theta, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[4])
    ctx.save_for_backward(*tensors, *output[:2])


def _attention_gradients(ctx, d_o, d_lse, d_final_keys, d_final_values, d_final_position):
    *inputs, o, lse = ctx.saved_tensors
    if d_o is None:
        d_o = torch.zeros_like(o)
    *gradients, d_ring_keys, d_ring_values, d_sinks = torch.ops.ssmn.window_attention_backward(
        *inputs, ctx.window_size, ctx.rope_theta, o, lse, d_o, d_final_keys, d_final_values
    )
    ring = (None, None) if inputs[3] is None else (d_ring_keys, d_ring_values)
    return *gradients, *ring, None, None, None, None, None if inputs[9] is None else d_sinks, None, None, None


_window_attention.register_autograd(_attention_gradients, setup_context=_save_attention)
