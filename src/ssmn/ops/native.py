"""The compiled kernels as torch custom ops, forward and backward.

The custom ops of the namespace `ssmn` (`memory`, `memory_write`, `memory_read`, `window_attention`) mirror the
functions of `csrc/include/ssmn.h`, which is their manual; `remember`, `write`, `read` and `attend` are the way to call
them. The kernels compute in float32. `memory` and `window_attention` take bfloat16 as it is; the halves of the memory
have inputs converted and results in float32.
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
    if not (dtype == q.dtype == k.dtype and dtype in _STORED):
        q, k, v = q.float(), k.float(), v.float()
    wipe = None if erase is None else erase.float()
    bounds = None if cu_seqlens is None else cu_seqlens.long()
    state = None if initial_state is None else initial_state.float()
    coefficients = (eta.float(), log_decay.float(), wipe)
    o, _, final = torch.ops.ssmn.memory(
        q, k, v, *coefficients, mask, reset, bounds, state, _RULES[rule], output_final_state
    )
    return o.to(dtype), final if output_final_state else None


def write(
    k: Tensor,
    v: Tensor,
    write: Tensor,
    erase: Tensor | None,
    log_keep: Tensor,
    begin: Tensor,
    end: Tensor,
    initial_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes a stream into the memory.

    Args:
        k: [B, T, H, K] keys.
        v: [B, T, H, V] values.
        write: [B, T, H], w_t.
        erase: [B, T, H], e_t, or None for a rule that erases nothing.
        log_keep: [B, T, H], log a_t ≤ 0.
        begin: [B, T] int32: −1 goes on, −2 starts from zeros at this step, n ≥ 0 starts from `initial_state[n]`.
        end: [B, T] int32: −1, or n ≥ 0 to keep the state after this step as `final_state[n]`.
        initial_state: [N, H, K, V].

    Returns:
        u [B, T, H, V] with S_t = a_t S_{t−1} + k_t u_tᵀ; the states before every chunk of `native.CHUNK` steps
        [B, ⌈T / C⌉, H, K, V]; the final states [N, H, K, V] (a stream without steps keeps its initial state).
    """
    coefficients = (write.float(), None if erase is None else erase.float(), log_keep.float())
    return torch.ops.ssmn.memory_write(k.float(), v.float(), *coefficients, begin, end, initial_state.float())


def read(
    q: Tensor, k: Tensor, u: Tensor, log_keep: Tensor, begin: Tensor, initial_state: Tensor, chunk_states: Tensor
) -> Tensor:
    """Reads o_t = S_tᵀ q_t [B, T, H, V] from what `write` returned; the other arguments are those given to `write`."""
    return torch.ops.ssmn.memory_read(
        q.float(), k.float(), u.float(), log_keep.float(), begin, initial_state.float(), chunk_states.float()
    )


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


def _memory_sizes(k: Tensor, v: Tensor, initial_state: Tensor) -> native.MemorySizes:
    return native.MemorySizes(*k.shape, v.shape[-1], initial_state.shape[0])


def _written_like(k: Tensor, v: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chunks = (k.shape[1] + native.CHUNK - 1) // native.CHUNK
    u = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    chunk_states = v.new_empty(k.shape[0], chunks, *initial_state.shape[1:])
    return u, chunk_states, torch.empty(initial_state.shape, dtype=v.dtype, device=v.device)


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
    k: Tensor, v: Tensor, cu_seqlens: Tensor | None, keep_final: bool
) -> tuple[Tensor, Tensor, Tensor]:
    stored = max(0, (k.shape[1] + native.MEMORY_WINDOW - 1) // native.MEMORY_WINDOW - 1)
    streams = k.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    size = (*k.shape[2:], v.shape[-1])
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    states = torch.empty((k.shape[0], stored, *size), dtype=torch.float32, device=v.device)
    final = torch.empty((streams, *size) if keep_final else (0,), dtype=torch.float32, device=v.device)
    return o, states, final


@torch.library.custom_op("ssmn::memory", mutates_args=())
def _memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    rule: int,
    keep_final: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _dense(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state)
    o, states, final = _remembered_like(k, v, cu_seqlens, keep_final)
    call = _memory_call(k, v, mask, cu_seqlens, rule)
    _run("ssmn_memory", call, *inputs, o, states, final if keep_final else None)
    return o, states, final


@_memory.register_fake
def _(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, rule, keep_final):
    return _remembered_like(k, v, cu_seqlens, keep_final)


@torch.library.custom_op("ssmn::memory_backward", mutates_args=())
def _memory_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    rule: int,
    states: Tensor,
    d_o: Tensor,
    d_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _dense(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, states, d_o, d_final)
    d_q, d_k, d_v, d_eta, d_log_decay = gradients = _dense_like(q, k, v, eta, log_decay)
    d_erase, d_initial = _optional_like(erase, eta), _optional_like(initial_state, eta)
    optional = (None if erase is None else d_erase, None if initial_state is None else d_initial)
    _run("ssmn_memory_backward", _memory_call(k, v, mask, cu_seqlens, rule), *inputs, *gradients, *optional)
    return d_q, d_k, d_v, d_eta, d_log_decay, d_erase, d_initial


@_memory_backward.register_fake
def _(q, k, v, eta, log_decay, erase, mask, reset, cu_seqlens, initial_state, rule, states, d_o, d_final):
    optional = (_optional_like(erase, eta), _optional_like(initial_state, eta))
    return *_dense_like(q, k, v, eta, log_decay), *optional


def _save_memory(ctx, inputs, output):
    *tensors, ctx.rule, ctx.keep_final = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _memory_gradients(ctx, d_o, d_states, d_final):
    *inputs, states = ctx.saved_tensors
    v, erase, initial_state = inputs[2], inputs[5], inputs[9]
    d_o = torch.zeros_like(v) if d_o is None else d_o
    d_final = d_final if ctx.keep_final else None
    *gradients, d_erase, d_initial = torch.ops.ssmn.memory_backward(*inputs, ctx.rule, states, d_o, d_final)
    d_erase = None if erase is None else d_erase
    return *gradients, d_erase, None, None, None, None if initial_state is None else d_initial, None, None


_memory.register_autograd(_memory_gradients, setup_context=_save_memory)


@torch.library.custom_op("ssmn::memory_write", mutates_args=())
def _memory_write(
    k: Tensor,
    v: Tensor,
    write: Tensor,
    erase: Tensor | None,
    log_keep: Tensor,
    begin: Tensor,
    end: Tensor,
    initial_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _dense(k, v, write, erase, log_keep, begin, end, initial_state)
    outputs = _written_like(k, v, initial_state)
    _run("ssmn_memory_write", _memory_sizes(k, v, initial_state), *inputs, *outputs)
    return outputs


@_memory_write.register_fake
def _(k, v, write, erase, log_keep, begin, end, initial_state):
    return _written_like(k, v, initial_state)


@torch.library.custom_op("ssmn::memory_write_backward", mutates_args=())
def _memory_write_backward(
    k: Tensor,
    v: Tensor,
    write: Tensor,
    erase: Tensor | None,
    log_keep: Tensor,
    begin: Tensor,
    end: Tensor,
    initial_state: Tensor,
    u: Tensor,
    chunk_states: Tensor,
    d_u: Tensor | None,
    d_chunk_states: Tensor | None,
    d_final_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _dense(
        k, v, write, erase, log_keep, begin, end, initial_state, u, chunk_states, d_u, d_chunk_states, d_final_state
    )
    d_k, d_v, d_write, d_log_keep, d_initial_state = _dense_like(k, v, write, log_keep, initial_state)
    d_erase = _optional_like(erase, write)
    outputs = (d_k, d_v, d_write, None if erase is None else d_erase, d_log_keep, d_initial_state)
    _run("ssmn_memory_write_backward", _memory_sizes(k, v, initial_state), *inputs, *outputs)
    return d_k, d_v, d_write, d_erase, d_log_keep, d_initial_state


@_memory_write_backward.register_fake
def _(k, v, write, erase, log_keep, begin, end, initial_state, u, chunk_states, d_u, d_chunk_states, d_final_state):
    d_k, d_v, d_write, d_log_keep, d_initial_state = _dense_like(k, v, write, log_keep, initial_state)
    return d_k, d_v, d_write, _optional_like(erase, write), d_log_keep, d_initial_state


def _save_write(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output[:2])


def _write_gradients(ctx, d_u, d_chunk_states, d_final_state):
    saved = ctx.saved_tensors
    d_k, d_v, d_write, d_erase, d_log_keep, d_initial_state = torch.ops.ssmn.memory_write_backward(
        *saved, d_u, d_chunk_states, d_final_state
    )
    return d_k, d_v, d_write, None if saved[3] is None else d_erase, d_log_keep, None, None, d_initial_state


_memory_write.register_autograd(_write_gradients, setup_context=_save_write)


@torch.library.custom_op("ssmn::memory_read", mutates_args=())
def _memory_read(
    q: Tensor, k: Tensor, u: Tensor, log_keep: Tensor, begin: Tensor, initial_state: Tensor, chunk_states: Tensor
) -> Tensor:
    inputs = _dense(q, k, u, log_keep, begin, initial_state, chunk_states)
    (o,) = _dense_like(u)
    _run("ssmn_memory_read", _memory_sizes(k, u, initial_state), *inputs, o)
    return o


@_memory_read.register_fake
def _(q, k, u, log_keep, begin, initial_state, chunk_states):
    return _dense_like(u)[0]


@torch.library.custom_op("ssmn::memory_read_backward", mutates_args=())
def _memory_read_backward(
    q: Tensor,
    k: Tensor,
    u: Tensor,
    log_keep: Tensor,
    begin: Tensor,
    initial_state: Tensor,
    chunk_states: Tensor,
    d_o: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _dense(q, k, u, log_keep, begin, initial_state, chunk_states, d_o)
    d_q, d_k, d_u, d_log_keep, d_initial, d_chunks = _dense_like(q, k, u, log_keep, initial_state, chunk_states)
    outputs = (d_q, d_k, d_u, d_log_keep, d_initial, d_chunks)
    _run("ssmn_memory_read_backward", _memory_sizes(k, u, initial_state), *inputs, *outputs)
    return outputs


@_memory_read_backward.register_fake
def _(q, k, u, log_keep, begin, initial_state, chunk_states, d_o):
    return tuple(_dense_like(q, k, u, log_keep, initial_state, chunk_states))


def _save_read(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _read_gradients(ctx, d_o):
    d_q, d_k, d_u, d_log_keep, d_initial, d_chunks = torch.ops.ssmn.memory_read_backward(*ctx.saved_tensors, d_o)
    return d_q, d_k, d_u, d_log_keep, None, d_initial, d_chunks


_memory_read.register_autograd(_read_gradients, setup_context=_save_read)


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
