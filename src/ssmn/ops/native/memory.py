"""The compiled memory as a custom op, forward and backward: `ssmn::memory`."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmn import native
from ssmn.config import UpdateRule
from ssmn.ops.native.calls import (
    checked_streams,
    dense,
    empty_like,
    only_first_derivatives,
    optional_like,
    run,
    streams_of,
)

_RULES: dict[UpdateRule, int] = {"hebbian": 0, "delta": 1, "erase": 2}
_STORED = (torch.float32, torch.bfloat16)


def remember(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    rule: UpdateRule,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """`synaptic_memory` in one pass: (o in the dtype of v, the final state or None).

    The arguments are those of `ssmn.ops.synaptic_memory`, already checked.
    """
    dtype = v.dtype
    q, k, v = _alike(q, k, v)
    coefficients = _floats(eta, log_decay, erase)
    streams = (mask, reset, None if cu_seqlens is None else cu_seqlens.long(), *_floats(initial_state))
    o, _, _, final = torch.ops.ssmn.memory(q, k, v, *coefficients, *streams, _RULES[rule], output_final_state)
    return o.to(dtype), final if output_final_state else None


def write(
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    rule: UpdateRule,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`memory_write`: (the keys as they are to be read, the updates u, the final state).

    S_t = a_t S_{t−1} + k_t u_tᵀ, and u is zero at closed steps. The arguments are those of
    `ssmn.ops.memory_write`, already checked.
    """
    k, v = _alike(k, v)
    coefficients = _floats(eta, log_decay, erase)
    streams = (mask, reset, None if cu_seqlens is None else cu_seqlens.long(), *_floats(initial_state))
    _, u, _, final = torch.ops.ssmn.memory(None, k, v, *coefficients, *streams, _RULES[rule], True)
    return k, u, final


def read(
    q: Tensor,
    k: Tensor,
    u: Tensor,
    log_decay: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
) -> Tensor:
    """Reads o_t = S_tᵀ q_t [B, T, H, V] from what `write` returned: updates are values that erase nothing.

    The other arguments are those given to `write`.
    """
    streams = (mask, reset, None if cu_seqlens is None else cu_seqlens.long(), *_floats(initial_state))
    coefficients = (None, *_floats(log_decay), None)
    return torch.ops.ssmn.memory(q.to(k.dtype), k, u, *coefficients, *streams, _RULES["hebbian"], False)[0]


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in one dtype that the kernels read."""
    dtype = tensors[0].dtype
    if dtype in _STORED and all(tensor.dtype == dtype for tensor in tensors):
        return tensors
    return tuple(tensor.float() for tensor in tensors)


def _floats(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.float() for tensor in tensors)


def _memory_call(k: Tensor, v: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, rule: int) -> native.MemoryCall:
    streams = checked_streams("synaptic_memory", k.shape[0], k.shape[1], cu_seqlens)
    mask_heads = 1 if mask is None or mask.dim() == 2 else mask.shape[2]
    return native.MemoryCall(*k.shape, v.shape[-1], streams, v.dtype == torch.bfloat16, rule, mask_heads)


def _remembered_like(
    q: Tensor | None, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, keep_final: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stored = max(0, (k.shape[1] + native.MEMORY_WINDOW - 1) // native.MEMORY_WINDOW - 1)
    streams = streams_of(k.shape[0], cu_seqlens)
    size = (*k.shape[2:], v.shape[-1])
    result, nothing = torch.empty(v.shape, dtype=v.dtype, device=v.device), v.new_empty(0)
    states = torch.empty((k.shape[0], stored, *size), dtype=torch.float32, device=v.device)
    final = torch.empty((streams, *size) if keep_final else (0,), dtype=torch.float32, device=v.device)
    return (nothing, result, states, final) if q is None else (result, nothing, states, final)


@torch.library.custom_op("ssmn::memory", mutates_args=())
def _memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor | None,
    log_decay: Tensor,
    erase: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    rule: int,
    keep_final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o, u, stored states, final states): without q there is no o, and with it no u."""
    inputs = dense(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state)
    o, u, states, final = _remembered_like(q, k, v, cu_seqlens, keep_final)
    call = _memory_call(k, v, mask, cu_seqlens, rule)
    either = (None, u) if q is None else (o, None)
    run("ssmn_memory", call, *inputs, *either, states, final if keep_final else None)
    return o, u, states, final


@_memory.register_fake
def _(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, rule, keep_final):
    return _remembered_like(q, k, v, cu_seqlens, keep_final)


@torch.library.custom_op("ssmn::memory_backward", mutates_args=())
def _memory_backward(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor | None,
    log_decay: Tensor,
    erase: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    rule: int,
    states: Tensor,
    d_o: Tensor | None,
    d_u: Tensor | None,
    d_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = dense(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, states, d_o, d_u, d_final)
    sources = (q, k, v, eta, log_decay, erase, initial_state)
    gradients = _gradients_like(*sources)
    asked = [None if x is None else y for x, y in zip(sources, gradients, strict=True)]
    run("ssmn_memory_backward", _memory_call(k, v, mask, cu_seqlens, rule), *inputs, *asked)
    return gradients


def _gradients_like(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor | None,
    log_decay: Tensor,
    erase: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_k, d_v, d_log_decay = empty_like(k, v, log_decay)
    d_q, d_eta, d_erase, d_initial = (optional_like(x, log_decay) for x in (q, eta, erase, initial_state))
    return d_q, d_k, d_v, d_eta, d_log_decay, d_erase, d_initial


@_memory_backward.register_fake
def _(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, rule, states, d_o, d_u, d_final):
    return _gradients_like(q, k, v, eta, log_decay, erase, initial_state)


only_first_derivatives(_memory_backward)


def _save_memory(ctx, inputs, output):
    *tensors, ctx.rule, ctx.keep_final = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _memory_gradients(ctx, d_o, d_u, d_states, d_final):
    *inputs, states = ctx.saved_tensors
    q, v = inputs[0], inputs[2]
    d_o = torch.zeros_like(v) if d_o is None and q is not None else d_o
    found = torch.ops.ssmn.memory_backward(
        *inputs, ctx.rule, states, None if q is None else d_o, d_u if q is None else None,
        d_final if ctx.keep_final else None,
    )  # fmt: skip
    *gradients, d_initial = (None if x is None else y for x, y in zip((*inputs[:6], inputs[9]), found, strict=True))
    return *gradients, None, None, None, d_initial, None, None


_memory.register_autograd(_memory_gradients, setup_context=_save_memory)
