"""The compiled kernels as torch custom ops, forward and backward.

The custom ops of the namespace `ssmn` (`memory`, `window_attention`, `scan` and `ntm`) mirror the functions of
`csrc/include/ssmn.h`, which is their manual; `remember`, `write`, `read`, `attend`, `scan` and `turing_machine` are the
way to call them. The kernels compute in float32; memory and attention take bfloat16 as it is.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ssmn import native
from ssmn.config import UpdateRule
from ssmn.errors import BackendError
from ssmn.state import WindowState

_RULES: dict[UpdateRule, int] = {"hebbian": 0, "delta": 1, "erase": 2}
_STORED = (torch.float32, torch.bfloat16)
_CONVERTED = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)


def refusal(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors here, or None if they can."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the compiled kernels run on the CPU, and a tensor is on {tensor.device}"
        if tensor.dtype not in _CONVERTED:
            return f"the compiled kernels compute in float32, and a tensor is {tensor.dtype}"
    return _missing_library()


@torch.compiler.assume_constant_result
def _missing_library() -> str | None:
    status = native.status()
    return None if status.available else status.reason


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
        q, k, v = _to(q, torch.float32), _to(k, torch.float32), _to(v, torch.float32)
    keys = values = position = None
    if initial_state is not None:
        keys, values = _to(initial_state.keys, torch.float32), _to(initial_state.values, torch.float32)
        position = _to(initial_state.position, torch.int64)
    bounds = None if cu_seqlens is None else _to(cu_seqlens, torch.int64)
    logits = None if sinks is None else _to(sinks, torch.float32)
    tensors = (q, k, v, keys, values, position, mask, reset, bounds, logits)
    # The way through the dispatcher takes longer than a step.
    run = _attended if _nothing_watches(*tensors) else torch.ops.ssmn.window_attention
    o, _, *ring = run(*tensors, window_size, rope_theta, output_final_state)
    return o, WindowState(*ring) if output_final_state else None


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which takes a microsecond even if there is nothing to do."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _nothing_watches(*tensors: Tensor | None) -> bool:
    """Whether a kernel may run without a custom op around it: nothing is traced, and nothing asks for a gradient."""
    if torch.compiler.is_compiling():
        return False
    tracked = torch.is_grad_enabled()
    return not any(x is not None and (type(x) not in _PLAIN or (tracked and x.requires_grad)) for x in tensors)


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if not tensor.is_cpu:
        raise BackendError(f"native: a tensor is on {tensor.device}; wanted all on the CPU, or backend='chunked'.")
    return tensor.data_ptr()


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _run(kernel: str, sizes: ctypes.Structure, *arguments: Tensor | float | None) -> None:
    values = [_pointer(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
    native.call(kernel, ctypes.byref(sizes), *values, torch.get_num_threads())


def _dense_like(*tensors: Tensor) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors]


def _optional_like(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A custom op returns tensors only: an empty one stands for the gradient of an absent input."""
    return other.new_empty(0) if tensor is None else _dense_like(tensor)[0]


def _memory_call(k: Tensor, v: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, rule: int) -> native.MemoryCall:
    streams = k.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    mask_heads = 1 if mask is None or mask.dim() == 2 else mask.shape[2]
    return native.MemoryCall(*k.shape, v.shape[-1], streams, v.dtype == torch.bfloat16, rule, mask_heads)


def _remembered_like(
    q: Tensor | None, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, keep_final: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stored = max(0, (k.shape[1] + native.MEMORY_WINDOW - 1) // native.MEMORY_WINDOW - 1)
    streams = k.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
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
    inputs = _dense(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state)
    o, u, states, final = _remembered_like(q, k, v, cu_seqlens, keep_final)
    call = _memory_call(k, v, mask, cu_seqlens, rule)
    either = (None, u) if q is None else (o, None)
    _run("ssmn_memory", call, *inputs, *either, states, final if keep_final else None)
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
    inputs = _dense(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, states, d_o, d_u, d_final)
    sources = (q, k, v, eta, log_decay, erase, initial_state)
    gradients = _gradients_like(*sources)
    asked = [None if x is None else y for x, y in zip(sources, gradients, strict=True)]
    _run("ssmn_memory_backward", _memory_call(k, v, mask, cu_seqlens, rule), *inputs, *asked)
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
    d_k, d_v, d_log_decay = _dense_like(k, v, log_decay)
    d_q, d_eta, d_erase, d_initial = (_optional_like(x, log_decay) for x in (q, eta, erase, initial_state))
    return d_q, d_k, d_v, d_eta, d_log_decay, d_erase, d_initial


@_memory_backward.register_fake
def _(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, rule, states, d_o, d_u, d_final):
    return _gradients_like(q, k, v, eta, log_decay, erase, initial_state)


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


def _window_call(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, window_size: int, rope_theta: float | None
) -> tuple[native.WindowSizes, int, float, float]:
    """The arguments of the kernel that are no arrays: sizes, type, scale and base."""
    streams = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    sizes = native.WindowSizes(*q.shape[:3], k.shape[2], q.shape[3], streams, window_size)
    return sizes, int(q.dtype == torch.bfloat16), q.shape[3] ** -0.5, rope_theta or 0.0


def _attended_like(
    q: Tensor, k: Tensor, cu_seqlens: Tensor | None, window_size: int, output_final_state: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    streams = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
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
    inputs = _dense(q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks)
    outputs = _attended_like(q, k, cu_seqlens, window_size, output_final_state)
    asked = outputs if output_final_state else (*outputs[:2], None, None, None)
    _run("ssmn_window_attention", sizes, numbers[0], *inputs, *numbers[1:], *asked)
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
    inputs = _dense(q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks)
    saved = _dense(o, lse, d_o, d_final_keys, d_final_values)
    optional = (ring_keys, ring_values, sinks)
    d_q, d_k, d_v = _dense_like(q, k, v)
    d_keys, d_values, d_sinks = (_optional_like(x, lse) for x in optional)
    asked = [None if x is None else y for x, y in zip(optional, (d_keys, d_values, d_sinks), strict=True)]
    _run("ssmn_window_attention_backward", sizes, numbers[0], *inputs, *numbers[1:], *saved, d_q, d_k, d_v, *asked)
    return d_q, d_k, d_v, d_keys, d_values, d_sinks


@_window_attention_backward.register_fake
def _(
    q, k, v, ring_keys, ring_values, position, mask, reset, cu_seqlens, sinks, window_size, rope_theta,
    o, lse, d_o, d_final_keys, d_final_values,
):  # fmt: skip
    return (*_dense_like(q, k, v), *[_optional_like(x, lse) for x in (ring_keys, ring_values, sinks)])


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
    bounds = None if cu_seqlens is None else _to(cu_seqlens, torch.int64)
    state = None if initial_state is None else _to(initial_state, torch.float32)
    tensors = (_to(a, torch.float32), _to(x, torch.float32), mask, reset, bounds, state)
    # The way through the dispatcher takes longer than a step.
    run = _scanned if _nothing_watches(*tensors) else torch.ops.ssmn.scan
    h, final = run(*tensors, output_final_state)
    return h, final if output_final_state else None


def _scan_call(h: Tensor, a: Tensor, cu_seqlens: Tensor | None) -> native.ScanCall:
    streams = h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return native.ScanCall(h.shape[0], h.shape[1], h.shape[3], streams, a.dim() == 2)


def _scanned_like(x: Tensor, cu_seqlens: Tensor | None, keep_final: bool) -> tuple[Tensor, Tensor]:
    streams = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return _dense_like(x)[0], x.new_empty((streams, *x.shape[2:]) if keep_final else (0,))


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
    inputs = _dense(a, x, mask, reset, cu_seqlens, initial_state)
    _run("ssmn_scan", _scan_call(x, a, cu_seqlens), *inputs, h, final if keep_final else None)
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
    call, inputs = _scan_call(h, a, cu_seqlens), _dense(a, mask, reset, cu_seqlens, initial_state, h, d_h, d_final)
    gradients = _scan_gradients_like(a, cu_seqlens, initial_state, h)
    _run("ssmn_scan_backward", call, *inputs, *gradients[:2], None if initial_state is None else gradients[2])
    return gradients


def _scan_gradients_like(
    a: Tensor, cu_seqlens: Tensor | None, initial_state: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors that all steps share get a gradient per stream."""
    streams = h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_a = h.new_empty(streams, *a.shape) if a.dim() == 2 else _dense_like(a)[0]
    return d_a, _dense_like(h)[0], _optional_like(initial_state, h)


@_scan_backward.register_fake
def _(a, mask, reset, cu_seqlens, initial_state, h, d_h, d_final):
    return _scan_gradients_like(a, cu_seqlens, initial_state, h)


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


def turing_machine(
    driven: Tensor,
    recurrent: Tensor,
    emit: Tensor,
    emit_bias: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    read_heads: int,
    shift_range: int,
    frozen: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The steps of a Neural Turing Machine from the controller's share of the input, in float32.

    Args:
        driven: [B, T, G], G = 4 C with an LSTM as controller, else C; T ≥ 1.
        recurrent: [R M + C, G], or [R M, G] without an LSTM.
        emit: [C, E].
        emit_bias: [E].
        mask: [B, T] or None.
        reset: [B, T] or None.
        state: (memory [B, N, M], weighting [B, H, N], hidden [B, C], cell [B, C]); [B, 0] without an LSTM.
        read_heads: R.
        shift_range: A head moves by at most so many rows.
        frozen: Whether nothing is written.

    Returns:
        (controls [B, T, C], reads [B, T, R M], the state after the last step).
    """
    memory, weighting, hidden, cell = state
    read = torch.bmm(weighting[:, :read_heads], memory).flatten(1)
    tensors = (driven, recurrent, emit, emit_bias, mask, reset, memory.mT, weighting, hidden, cell, read)
    settings = (read_heads, shift_range, frozen)
    if _nothing_watches(*tensors):
        results = _ntm_steps(*tensors, *settings, False)
    else:
        results = torch.ops.ssmn.ntm(*tensors, *settings, torch.is_grad_enabled())
    controls, reads, memory, weighting, cell, *_ = results
    hidden = controls[:, -1].contiguous() if hidden.shape[1] else hidden
    return controls, reads, (memory.mT.contiguous(), weighting, hidden, cell)


def _ntm_call(
    driven: Tensor, memory: Tensor, weighting: Tensor, hidden: Tensor, read_heads: int, shift_range: int, frozen: bool
) -> native.NtmCall:
    streams, steps, gates = driven.shape
    (_, width, slots), heads, is_lstm = memory.shape, weighting.shape[1], hidden.shape[1] > 0
    controls = gates // 4 if is_lstm else gates
    sizes = (streams, steps, slots, width, controls, read_heads, heads - read_heads, shift_range)
    return native.NtmCall(*sizes, is_lstm, frozen)


def _ntm_like(
    driven: Tensor, emit: Tensor, memory: Tensor, weighting: Tensor, cell: Tensor, read: Tensor, keep_trace: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(controls, reads, memory, weighting and cell at the end; those three after every step, gates, active)."""
    steps = driven.shape[:2]

    def after_all(*tensors: Tensor) -> list[Tensor]:
        return [driven.new_empty((steps[0], steps[1], *x.shape[1:]) if keep_trace else (0,)) for x in tensors]

    controls, reads = driven.new_empty(*steps, emit.shape[0]), driven.new_empty(*steps, read.shape[1])
    last_memory, last_weighting, last_cell = _dense_like(memory, weighting, cell)
    memories, weightings, cells, gates, active = after_all(
        memory, weighting, cell, driven[:, 0], emit[:1].expand(steps[0], -1)
    )
    finals = (last_memory, last_weighting, last_cell)
    return controls, reads, *finals, memories, weightings, cells, gates, active


def _ntm_steps(
    driven: Tensor,
    recurrent: Tensor,
    emit: Tensor,
    emit_bias: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    memory: Tensor,
    weighting: Tensor,
    hidden: Tensor,
    cell: Tensor,
    read: Tensor,
    read_heads: int,
    shift_range: int,
    frozen: bool,
    keep_trace: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = _ntm_like(driven, emit, memory, weighting, cell, read, keep_trace)
    call = _ntm_call(driven, memory, weighting, hidden, read_heads, shift_range, frozen)
    inputs = _dense(driven, recurrent, emit, emit_bias, mask, reset, memory, weighting, hidden, cell, read)
    _run("ssmn_ntm", call, *inputs, *(results if keep_trace else (*results[:5], *[None] * 5)))
    return results


_ntm = torch.library.custom_op("ssmn::ntm", _ntm_steps, mutates_args=())


@_ntm.register_fake
def _(driven, recurrent, emit, emit_bias, mask, reset, memory, weighting, hidden, cell, read, *settings):
    return _ntm_like(driven, emit, memory, weighting, cell, read, settings[-1])


@torch.library.custom_op("ssmn::ntm_backward", mutates_args=())
def _ntm_backward(
    recurrent: Tensor,
    emit: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    memory: Tensor,
    weighting: Tensor,
    cell: Tensor,
    memories: Tensor,
    weightings: Tensor,
    cells: Tensor,
    gates: Tensor,
    active: Tensor,
    d_controls: Tensor,
    d_reads: Tensor,
    d_memory: Tensor,
    d_weighting: Tensor,
    d_cell: Tensor,
    read_heads: int,
    shift_range: int,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of (driven, what was emitted, memory, weighting, cell, hidden, read)."""
    call = _ntm_call(gates, memory, weighting, cell, read_heads, shift_range, frozen)
    inputs = _dense(
        recurrent, emit, mask, reset, memory, weighting, cell, memories, weightings, cells, gates, active, d_controls,
        d_reads,
    )  # fmt: skip
    results = _ntm_gradients_like(gates, active, d_memory, d_weighting, d_cell, d_reads)
    for result, last in zip(results[2:5], (d_memory, d_weighting, d_cell), strict=True):
        result.copy_(last)
    _run("ssmn_ntm_backward", call, *inputs, *results)
    return results


def _ntm_gradients_like(
    gates: Tensor, active: Tensor, d_memory: Tensor, d_weighting: Tensor, d_cell: Tensor, d_reads: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_driven, d_emitted = _dense_like(gates, active)
    d_hidden, d_read = _dense_like(d_cell, d_reads[:, 0])
    d_memory, d_weighting, d_cell = _dense_like(d_memory, d_weighting, d_cell)
    return d_driven, d_emitted, d_memory, d_weighting, d_cell, d_hidden, d_read


@_ntm_backward.register_fake
def _(*arguments):
    gates, active, _, d_reads, *finals = arguments[10:17]
    return _ntm_gradients_like(gates, active, *finals, d_reads)


def _save_ntm(ctx, inputs, output):
    _, recurrent, emit, _, *streams = inputs[:11]
    *ctx.settings, _ = inputs[11:]
    controls, reads, *_ = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(recurrent, emit, *streams, controls, reads, *output[5:])


def _ntm_gradients(ctx, d_controls, d_reads, d_memory, d_weighting, d_cell, *_):
    recurrent, emit, mask, reset, memory, weighting, hidden, cell, read, controls, reads, *trace = ctx.saved_tensors
    given = zip(
        (d_controls, d_reads, d_memory, d_weighting, d_cell), (controls, reads, memory, weighting, cell), strict=True
    )
    gradients = [torch.zeros_like(result) if gradient is None else gradient for gradient, result in given]
    d_driven, d_emitted, d_memory, d_weighting, d_cell, d_hidden, d_read = torch.ops.ssmn.ntm_backward(
        recurrent, emit, mask, reset, memory, weighting, cell, *trace, *gradients, *ctx.settings
    )
    # What the controller was told by the step before. Closed steps have no gradient here.
    told = torch.cat((read.unsqueeze(1), reads[:, :-1]), 1)
    if hidden.shape[1]:
        told = torch.cat((told, torch.cat((hidden.unsqueeze(1), controls[:, :-1]), 1)), -1)
    if reset is not None:
        told = torch.where(reset.unsqueeze(-1), 0.0, told)
    d_recurrent = told.flatten(0, 1).mT @ d_driven.flatten(0, 1)
    d_emit = controls.flatten(0, 1).mT @ d_emitted.flatten(0, 1)
    d_weights = (d_driven, d_recurrent, d_emit, d_emitted.sum((0, 1)))
    return *d_weights, None, None, d_memory, d_weighting, d_hidden, d_cell, d_read, *[None] * 4


_ntm.register_autograd(_ntm_gradients, setup_context=_save_ntm)
