"""One table of backends, and the public operations that check, choose and call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from ssmn.config import Backend, UpdateRule
from ssmn.errors import BackendError, DtypeError, RangeError, ShapeError
from ssmn.ops import chunked, native, reference, ring
from ssmn.ops.common import (
    MemoryTrace,
    check_choice,
    check_range,
    check_rule,
    check_steps,
    check_tensor,
    coefficients,
    shape_text,
    state_dtype,
)
from ssmn.state import WindowState

_chosen = os.environ.get("SSMN_BACKEND", "auto")
"""What `auto` means, for the whole process: a plain name, since torch.compile cannot trace a context variable."""

_LAST_POSITION = 2**62
"""Beyond any stream; positions are 64-bit integers, and go on from here."""


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Within the block, `backend="auto"` means `name`, in every thread of the process.

    Raises:
        RangeError: `name` is not a backend.

    Example:
        >>> import ssmn
        >>> with ssmn.ops.use_backend("chunked"):
        ...     pass
    """
    check_choice("use_backend", "name", name, get_args(Backend))
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def backend_status(*tensors: Tensor) -> dict[str, str | None]:
    """For every backend None if it can take these tensors, else why not."""
    return {"reference": None, "chunked": None, "native": native.refusal(*tensors)}


def choose_backend(op: str, backend: str, *tensors: Tensor) -> str:
    """Resolves `auto`: what `use_backend` or SSMN_BACKEND (read at import) says, else native if it can, else chunked.

    Raises:
        RangeError: An unknown name.
        BackendError: The backend was asked for by name but cannot take these tensors.
    """
    check_choice(op, "backend", backend, get_args(Backend))
    if backend == "auto":
        backend = _chosen
        check_choice(op, "SSMN_BACKEND", backend, get_args(Backend))
    if backend == "auto":
        return "chunked" if native.refusal(*tensors) else "native"
    if backend == "native":
        reason = native.refusal(*tensors)
        if reason:
            raise BackendError(f"{op}: backend='native' cannot run: {reason}; use backend='chunked' or 'auto'.")
    return backend


def synaptic_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None = None,
    rule: UpdateRule = "delta",
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Writes every step into a fast-weight memory and reads it back: decay, erase and write, then read.

    S_t = a_t (S_{t−1} − e_t k_t k_tᵀ S_{t−1}) + w_t k_t v_tᵀ,  o_t = S_tᵀ q_t, with a_t = exp(log_decay_t).
    `hebbian` (linear attention with decay: Katharopoulos et al., 2020; Sun et al., 2023) has w = η, e = 0;
    `delta` (Schlag et al., 2021; Yang et al., 2024, Gated DeltaNet) has w = e = η; `erase` has its own e.
    Neither q nor k is scaled or normalised here; the rules with erasure want keys of unit norm.

    Args:
        q: [B, T, H, K], queries.
        k: [B, T, H, K], keys.
        v: [B, T, H, V], values.
        eta: [B, T, H], write strength η in [0, 1].
        log_decay: [B, T, H], log(1 − λ), finite and ≤ 0.
        erase: [B, T, H], erase strength in [0, 1]; for the rule `erase` alone.
        rule: `hebbian`, `delta` or `erase`.
        mask: [B, T] or [B, T, H] bool, True = open. A closed step neither writes nor decays; it still reads.
        reset: [B, T] bool; the memory is zero before such a step.
        cu_seqlens: [N + 1] integer boundaries of segments packed into one row (B = 1); states then have N rows.
        initial_state: [B, H, K, V] (or N rows); None = zeros.
        output_final_state: Whether the second result is the memory after the last step, or None.
        backend: `auto`, `reference`, `chunked` or `native`.

    Returns:
        (o [B, T, H, V] in the dtype of v, final state [B, H, K, V] or None). The state is float32
        (float64 for float64 inputs).

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        BackendError: The backend that was asked for cannot take these tensors.

    Example:
        >>> import torch, ssmn
        >>> q, k, v = torch.randn(3, 2, 5, 1, 4)
        >>> eta, log_decay = torch.full((2, 5, 1), 0.5), torch.full((2, 5, 1), -1e-4)
        >>> o, S = ssmn.ops.synaptic_memory(q, k, v, eta=eta, log_decay=log_decay, output_final_state=True)
        >>> o.shape, S.shape
        (torch.Size([2, 5, 1, 4]), torch.Size([2, 1, 4, 4]))
    """
    sizes: dict[str, int] = {}
    check_tensor("synaptic_memory", "q", q, "B T H K", sizes)
    op = "synaptic_memory"
    _check(op, k, v, eta, log_decay, erase, rule, mask, reset, cu_seqlens, initial_state, sizes)
    if choose_backend(op, backend, q, k, v) == "native":
        return native.remember(
            q, k, v, eta, log_decay, erase, rule, mask, reset, cu_seqlens, initial_state, output_final_state
        )
    trace, final_state = _write(
        op, k, v, eta, log_decay, erase, rule, mask, reset, cu_seqlens, initial_state, backend, sizes
    )
    return _read(q, trace), final_state if output_final_state else None


def memory_write(
    k: Tensor,
    v: Tensor,
    *,
    eta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None = None,
    rule: UpdateRule = "delta",
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[MemoryTrace, Tensor]:
    """The writing half of `synaptic_memory`: every memory of the stream, ready to be read by any number of queries.

    Args:
        k: [B, T, H, K], keys.
        v: [B, T, H, V], values.
        eta: [B, T, H], write strength η in [0, 1].
        log_decay: [B, T, H], log(1 − λ), finite and ≤ 0.
        erase: [B, T, H], erase strength in [0, 1]; for the rule `erase` alone.
        rule: `hebbian`, `delta` or `erase`.
        mask: [B, T] or [B, T, H] bool, True = open.
        reset: [B, T] bool; the memory is zero before such a step.
        cu_seqlens: [N + 1] integer boundaries of segments packed into one row (B = 1); states then have N rows.
        initial_state: [B, H, K, V] (or N rows); None = zeros.
        backend: `auto`, `reference`, `chunked` or `native`.

    Returns:
        (trace for `memory_read`, the memory after the last step [B, H, K, V]).

    Raises:
        ShapeError, DtypeError, RangeError, BackendError: As for `synaptic_memory`.

    Example:
        >>> import torch, ssmn
        >>> k, v = torch.randn(2, 2, 5, 1, 4)
        >>> trace, S = ssmn.ops.memory_write(k, v, eta=torch.ones(2, 5, 1), log_decay=torch.zeros(2, 5, 1))
        >>> ssmn.ops.memory_read(k, trace).shape
        torch.Size([2, 5, 1, 4])
    """
    op = "memory_write"
    sizes: dict[str, int] = {}
    _check(op, k, v, eta, log_decay, erase, rule, mask, reset, cu_seqlens, initial_state, sizes)
    return _write(op, k, v, eta, log_decay, erase, rule, mask, reset, cu_seqlens, initial_state, backend, sizes)


def memory_read(q: Tensor, trace: MemoryTrace) -> Tensor:
    """The reading half: o_t = S_tᵀ q_t with the memories of a trace.

    Args:
        q: [B, T, H, K], one query per step and head.
        trace: What `memory_write` returned.

    Returns:
        [B, T, H, V], in the dtype of the values that were written.

    Raises:
        ShapeError, DtypeError: `q` does not fit the trace's keys.

    Example:
        See `memory_write`.
    """
    if not isinstance(trace, MemoryTrace):
        raise DtypeError(f"memory_read: trace is {type(trace).__name__}; wanted what memory_write returned first.")
    sizes: dict[str, int] = {}
    check_tensor("memory_read", "q", q, "B T H K", sizes)
    batch, time = trace.keys.shape[:2]
    if trace.cu_seqlens is not None and trace.backend == "chunked":  # its keys have a row per segment
        batch, time = 1, int(trace.cu_seqlens[-1])
    if q.shape != (batch, time, *trace.keys.shape[2:]):
        raise ShapeError(
            f"memory_read: q has shape {shape_text(q)} but the trace was written with keys "
            f"{[batch, time, *trace.keys.shape[2:]]}; both must be [B, T, H, K]."
        )
    return _read(q, trace)


def _read(q: Tensor, trace: MemoryTrace) -> Tensor:
    q = q.to(trace.keys.dtype)
    if trace.backend == "native":
        streams = (trace.mask, trace.reset, trace.cu_seqlens, trace.initial_state)
        read = native.read(q, trace.keys, trace.updates, trace.log_keep, *streams)
    else:
        read = (reference if trace.backend == "reference" else chunked).memory_read(q, trace)
    return read.to(trace.dtype)


def _check(
    op: str,
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
    sizes: dict[str, int],
) -> None:
    """Checks the arguments of a write; the sizes of their letters go into `sizes`."""
    check_rule(op, rule, erase)
    check_tensor(op, "k", k, "B T H K", sizes)
    check_tensor(op, "v", v, "B T H V", sizes)
    if not sizes["K"] or not sizes["V"]:
        raise ShapeError(
            f"{op}: k has shape {shape_text(k)} and v {shape_text(v)}; wanted widths K and V of at least 1."
        )
    for name, value in (("eta", eta), ("log_decay", log_decay), ("erase", erase)):
        if name != "erase" or value is not None:
            check_tensor(op, name, value, "B T H", sizes)
    sizes["N"] = check_steps(op, sizes, mask, reset, cu_seqlens)
    if initial_state is not None:
        check_tensor(op, "initial_state", initial_state, "N H K V", sizes)
    check_range(op, "eta", eta, 0.0, 1.0)
    check_range(op, "log_decay", log_decay, -torch.finfo(torch.float32).max, 0.0)
    if erase is not None:
        check_range(op, "erase", erase, 0.0, 1.0)


def _write(
    op: str,
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
    backend: str,
    sizes: dict[str, int],
) -> tuple[MemoryTrace, Tensor]:
    compute = state_dtype(v.dtype)
    backend = choose_backend(op, backend, k, v)
    if backend == "native":
        streams = (mask, reset, cu_seqlens, initial_state)
        keys, updates, final = native.write(k, v, eta, log_decay, erase, rule, *streams)
        trace = MemoryTrace(
            "native", keys, updates, log_decay, None, initial_state, reset, cu_seqlens, v.dtype, mask
        )  # fmt: skip
        return trace, final
    if initial_state is None:
        state = k.new_zeros(sizes["N"], sizes["H"], sizes["K"], sizes["V"], dtype=compute)
    else:
        state = initial_state.to(compute)
    strengths = (eta.to(compute), log_decay.to(compute), None if erase is None else erase.to(compute))
    write, wipe, log_keep = coefficients(rule, strengths[0], strengths[1], strengths[2], mask)
    keys, values = k.to(compute), v.to(compute)
    module = reference if backend == "reference" else chunked
    return module.memory_write(keys, values, write, wipe, log_keep, reset, cu_seqlens, state, v.dtype)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window_size: int,
    rope_theta: float | None = None,
    sinks: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: WindowState | None = None,
    output_final_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, WindowState | None]:
    """Softmax attention over the last `window_size` open steps, the present one included; scores scaled by 1/√D.

    Sliding-window attention (Beltagy et al., 2020) with grouped key/value heads (Ainslie et al., 2023),
    rotary positions (Su et al., 2021) and learned sink logits in the softmax's denominator.

    Args:
        q: [B, T, Hq, D].
        k: [B, T, Hkv, D]; Hkv divides Hq, and query head h uses key head h // (Hq / Hkv).
        v: [B, T, Hkv, D].
        window_size: W ≥ 1.
        rope_theta: Base of the rotary angles (D even), or None for no rotation.
        sinks: [Hq] logits, or None.
        mask: [B, T] bool, True = open. A closed step is seen by nobody, moves no position, and outputs 0.
        reset: [B, T] bool; window and position are fresh before such a step.
        cu_seqlens: [N + 1] integer boundaries of segments packed into one row (B = 1); states then have N rows.
        initial_state: Ring of the last W − 1 rotated keys and values; None = fresh.
        output_final_state: Whether the second result is the ring after the last step, or None.
        backend: `auto`, `reference`, `chunked` or `native`.

    Returns:
        (o [B, T, Hq, D] in the dtype of v, WindowState or None).

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        BackendError: The backend that was asked for cannot take these tensors.

    Example:
        >>> import torch, ssmn
        >>> q, k, v = torch.randn(3, 2, 5, 4, 8)
        >>> o, ring = ssmn.ops.window_attention(q, k, v, window_size=3, output_final_state=True)
        >>> o.shape, ring.keys.shape
        (torch.Size([2, 5, 4, 8]), torch.Size([2, 2, 4, 8]))
    """
    op = "window_attention"
    sizes: dict[str, int] = {}
    if not isinstance(window_size, int) or isinstance(window_size, bool) or window_size < 1:
        raise RangeError(f"{op}: window_size={window_size!r}; wanted an integer of at least 1.")
    check_tensor(op, "q", q, "B T Hq D", sizes)
    check_tensor(op, "k", k, "B T Hkv D", sizes)
    check_tensor(op, "v", v, "B T Hkv D", sizes)
    if sizes["Hkv"] == 0 or sizes["Hq"] % sizes["Hkv"]:
        raise ShapeError(f"{op}: q has {sizes['Hq']} heads and k has {sizes['Hkv']}; k's heads must divide q's.")
    if sizes["D"] == 0:
        raise ShapeError(f"{op}: q has shape {shape_text(q)}; wanted a head width D of at least 1.")
    if rope_theta is not None and (sizes["D"] % 2 or not isinstance(rope_theta, (int, float)) or not rope_theta > 0):
        raise RangeError(
            f"{op}: rope_theta={rope_theta!r} with head width {sizes['D']}; wanted a positive base and an even width, "
            "or rope_theta=None."
        )
    if sinks is not None:
        check_tensor(op, "sinks", sinks, "Hq", sizes)
    streams = check_steps(op, sizes, mask, reset, cu_seqlens)
    shape = {"N": streams, "W-1": window_size - 1, "Hkv": sizes["Hkv"], "D": sizes["D"]}
    if initial_state is not None:
        if not isinstance(initial_state, WindowState):
            raise DtypeError(f"{op}: initial_state is {type(initial_state).__name__}; wanted a WindowState.")
        check_tensor(op, "initial_state.keys", initial_state.keys, "N W-1 Hkv D", shape)
        check_tensor(op, "initial_state.values", initial_state.values, "N W-1 Hkv D", shape)
        check_tensor(op, "initial_state.position", initial_state.position, "N", shape, floating=False)
        check_range(op, "initial_state.position", initial_state.position, 0, _LAST_POSITION)
    chosen = choose_backend(op, backend, q, k, v)
    if chosen == "native":
        output, final = native.attend(
            q, k, v, window_size, rope_theta, sinks, mask, reset, cu_seqlens, initial_state, output_final_state
        )
        return output if output.dtype is v.dtype else output.to(v.dtype), final
    compute = state_dtype(v.dtype)
    if initial_state is None:
        zeros = k.new_zeros(*shape.values(), dtype=compute)
        state = WindowState(zeros, zeros, torch.zeros(streams, dtype=torch.int64, device=k.device))
    else:
        state = WindowState(initial_state.keys.to(compute), initial_state.values.to(compute), initial_state.position)
    query, key, value = q.to(compute), k.to(compute), v.to(compute)
    sink = None if sinks is None else sinks.to(compute)
    if chosen == "reference":
        output, final = reference.window_attention(
            query, key, value, window_size, rope_theta, sink, mask, reset, cu_seqlens, state
        )
    else:
        band = ring.lay_out(query, key, value, window_size, rope_theta, mask, reset, cu_seqlens, state)
        output = band.restore(chunked.attend(band.q, band.k, band.v, band.lo, band.hi, sink, sizes["D"] ** -0.5))
        final = band.final
    return output.to(v.dtype), final if output_final_state else None
