"""Parallel PyTorch: the same recurrence and window, a chunk of steps at a time (derivation in README.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssmn.ops.common import MemoryTrace
from ssmn.ops.segments import Packing

MEMORY_CHUNK = 64
ATTENTION_BLOCK = 128


def memory_write(
    k: Tensor,
    v: Tensor,
    write: Tensor,
    erase: Tensor | None,
    log_keep: Tensor,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor,
    dtype: torch.dtype,
) -> tuple[MemoryTrace, Tensor]:
    """Solves every chunk's updates at once, then carries the memory from chunk to chunk."""
    if cu_seqlens is not None:
        # Segments become rows: a chunk never straddles two. Padding has zero coefficients, so it changes nothing.
        packing = Packing.of(cu_seqlens, k.shape[1])
        k, v, write, log_keep = (packing.unpack(x) for x in (k, v, write, log_keep))
        erase = None if erase is None else packing.unpack(erase)
        reset = None if reset is None else packing.unpack(reset)
    batch, time = k.shape[:2]
    chunk = max(1, min(MEMORY_CHUNK, time))
    keys, values = _cut(k, chunk), _cut(v, chunk)
    gains = _cut(write.unsqueeze(-1), chunk)
    total, same, since_start = _decays(log_keep, reset, chunk)
    growth = total.exp()
    if erase is None:
        updates, response = gains * values, None
    else:
        strength = _cut(erase.unsqueeze(-1), chunk)
        system = (strength * same * (keys @ keys.mT)).tril(-1)
        right = torch.cat([gains * values, strength * (growth * since_start) * keys], -1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        updates, response = solved.split([v.shape[-1], k.shape[-1]], -1)
    last = same[..., -1:, :].mT
    stored = keys * last
    carry = (growth * since_start)[..., -1, :].unsqueeze(-1)
    state, states, solved_updates = initial_state, [], []
    for number in range(keys.shape[2]):
        states.append(state)
        update = updates[:, :, number]
        if response is not None:
            update = update - response[:, :, number] @ state
        state = carry[:, :, number] * state + stored[:, :, number].mT @ update
        solved_updates.append(update)
    empty = initial_state.new_zeros(batch, 0, *initial_state.shape[1:])
    trace = MemoryTrace(
        backend="chunked",
        keys=k,
        updates=_join(torch.stack(solved_updates, 2), time) if solved_updates else v,
        log_keep=log_keep,
        states=torch.stack(states, 1) if states else empty,
        initial_state=initial_state,
        reset=reset,
        cu_seqlens=cu_seqlens,
        dtype=dtype,
    )
    return trace, state


def memory_read(q: Tensor, trace: MemoryTrace) -> Tensor:
    """O = exp(G) Q S_0 + (Γ ∘ Q Kᵀ) U in every chunk."""
    assert trace.states is not None
    packing = None if trace.cu_seqlens is None else Packing.of(trace.cu_seqlens, q.shape[1])
    if packing is not None:
        q = packing.unpack(q)
    time = q.shape[1]
    chunk = max(1, min(MEMORY_CHUNK, time))
    queries, keys, updates = _cut(q, chunk), _cut(trace.keys, chunk), _cut(trace.updates, chunk)
    total, same, since_start = _decays(trace.log_keep, trace.reset, chunk)
    carried = (total.exp() * since_start * queries) @ trace.states.transpose(1, 2)
    output = _join(carried + (same * (queries @ keys.mT)) @ updates, time)
    return output if packing is None else packing.pack(output)


def _cut(x: Tensor, chunk: int) -> Tensor:
    """[B, T, H, X] to [B, H, chunks, C, X], padded with zeros."""
    pad = -x.shape[1] % chunk
    x = functional.pad(x, (0, 0, 0, 0, 0, pad)) if pad else x
    return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)


def _join(x: Tensor, time: int) -> Tensor:
    """[B, H, chunks, C, X] to [B, T, H, X]."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :time]


def _decays(log_keep: Tensor, reset: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """G [.., C, 1]; Γ [.., C, C], lower triangular; [.., C, 1], 1 where a step still sees the first state."""
    # In float64: after a strong decay G is large, and neighbouring steps still differ by little.
    total = _cut(log_keep.double().unsqueeze(-1), chunk).cumsum(-2)
    ahead = torch.ones(chunk, chunk, dtype=torch.bool, device=total.device).triu(1)
    since_start = torch.ones_like(total, dtype=log_keep.dtype)
    if reset is not None:
        fresh = _cut(reset.to(total.dtype)[:, :, None, None], chunk).cumsum(-2)
        ahead = ahead | (fresh != fresh.mT)
        since_start = (fresh == 0).to(log_keep.dtype)
    # Masked before exp: the exponents above the diagonal are positive and would overflow.
    gamma = (total - total.mT).to(log_keep.dtype).masked_fill(ahead, -torch.inf).exp()
    return total.to(log_keep.dtype), gamma, since_start


def attend(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, sinks: Tensor | None, scale: float) -> Tensor:
    """Softmax attention of every query over its own range of keys, block by block.

    Args:
        q: [B, T, Hq, D].
        k: [B, E, Hkv, D], E = W − 1 + T: the carried keys, then the present ones.
        v: [B, E, Hkv, D].
        lo: [B, T] int32, the first key of each query; never below the query's own number.
        hi: [B, T] int32, one past the last key; never above the query's number + W.
        sinks: [Hq] logits or None.
        scale: Factor on the scores.

    Returns:
        [B, T, Hq, D]; zero where the range is empty.
    """
    time, extra = q.shape[1], k.shape[1] - q.shape[1]
    groups = q.shape[2] // k.shape[2]
    blocks = []
    for start in range(0, time, ATTENTION_BLOCK):
        stop = min(time, start + ATTENTION_BLOCK)
        index = torch.arange(start, stop + extra, device=q.device)
        seen = (index >= lo[:, start:stop, None]) & (index < hi[:, start:stop, None])
        query = q[:, start:stop].unflatten(2, (-1, groups)) * scale
        scores = torch.einsum("btgjd,bsgd->bgjts", query, k[:, start : stop + extra])
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
        peak = scores.detach().amax(-1, keepdim=True)
        if sinks is not None:
            sink = sinks.reshape(-1, groups)[None, :, :, None, None]
            peak = torch.maximum(peak, sink.detach())
        peak = peak.masked_fill(peak == -torch.inf, 0.0)
        weights = (scores - peak).exp()
        mass = weights.sum(-1, keepdim=True)
        if sinks is not None:
            mass = mass + (sink - peak).exp()
        weights = weights / mass.masked_fill(mass == 0, 1.0)
        blocks.append(torch.einsum("bgjts,bsgd->btgjd", weights, v[:, start : stop + extra]).flatten(2, 3))
    return torch.cat(blocks, 1) if blocks else q
