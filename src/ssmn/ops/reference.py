"""The definition: one loop over time, one line per formula. Every other backend is compared with this."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ssmn.ops.common import MemoryTrace
from ssmn.ops.rotary import rotate
from ssmn.state import WindowState


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
    """S_t = a_t (S_{t−1} − e_t k_t k_tᵀ S_{t−1}) + w_t k_t v_tᵀ, one step after the other."""
    streams = _rows(k.shape[0], k.shape[1], cu_seqlens)
    updates, states, finals = [], [], []
    for number, (row, first, last) in enumerate(streams):
        state = initial_state[number]
        for t in range(first, last):
            if reset is not None:
                state = torch.where(reset[row, t], torch.zeros_like(state), state)
            key, keep = k[row, t], log_keep[row, t].exp().unsqueeze(-1)
            update = write[row, t].unsqueeze(-1) * v[row, t]
            if erase is not None:
                recalled = torch.einsum("hk,hkv->hv", key, state)
                update = update - keep * erase[row, t].unsqueeze(-1) * recalled
            state = keep.unsqueeze(-1) * state + key.unsqueeze(-1) * update.unsqueeze(-2)
            updates.append(update)
            states.append(state)
        finals.append(state)
    per_step = k.shape[:2]
    nothing = k.new_zeros(*per_step, *initial_state.shape[1:])
    trace = MemoryTrace(
        backend="reference",
        keys=k,
        updates=torch.stack(updates).reshape(v.shape) if updates else v,
        log_keep=log_keep,
        states=torch.stack(states).unflatten(0, per_step) if states else nothing,
        initial_state=initial_state,
        reset=reset,
        cu_seqlens=cu_seqlens,
        dtype=dtype,
    )
    return trace, torch.stack(finals) if finals else initial_state


def memory_read(q: Tensor, trace: MemoryTrace) -> Tensor:
    """o_t = S_tᵀ q_t."""
    assert trace.states is not None
    return torch.einsum("bthk,bthkv->bthv", q, trace.states)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: int,
    rope_theta: float | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: WindowState,
) -> tuple[Tensor, WindowState]:
    """Softmax over the last `window_size` open steps, read from the ring and the present step."""
    slots, groups = window_size - 1, q.shape[2] // k.shape[2]
    outputs, final = [], []
    for number, (row, first, last) in enumerate(_rows(q.shape[0], q.shape[1], cu_seqlens)):
        position = int(initial_state.position[number])
        filled = (torch.arange(slots, device=q.device) < position).reshape(-1, 1, 1)
        keys = torch.where(filled, initial_state.keys[number], 0.0)
        values = torch.where(filled, initial_state.values[number], 0.0)
        for t in range(first, last):
            if reset is not None and bool(reset[row, t]):
                keys, values, position = torch.zeros_like(keys), torch.zeros_like(values), 0
            if mask is not None and not bool(mask[row, t]):
                outputs.append(torch.zeros_like(q[row, t]))
                continue
            here = torch.tensor(position, device=q.device)
            query, key, value = rotate(q[row, t], here, rope_theta), rotate(k[row, t], here, rope_theta), v[row, t]
            held = min(position, slots)
            seen_keys = torch.cat([keys[:held], key.unsqueeze(0)])
            seen_values = torch.cat([values[:held], value.unsqueeze(0)])
            scores = torch.einsum("gjd,sgd->gjs", query.unflatten(0, (-1, groups)), seen_keys) * q.shape[-1] ** -0.5
            scores = scores.flatten(0, 1)
            if sinks is not None:
                scores = torch.cat([scores, sinks.unsqueeze(-1)], -1)
            weights = torch.softmax(scores, -1)[:, : held + 1].unflatten(0, (-1, groups))
            outputs.append(torch.einsum("gjs,sgd->gjd", weights, seen_values).flatten(0, 1))
            if slots:
                slot = torch.arange(slots, device=q.device).reshape(-1, 1, 1) == position % slots
                keys, values = torch.where(slot, key, keys), torch.where(slot, value, values)
            position += 1
        final.append((keys, values, position))
    output = torch.stack(outputs).reshape(q.shape) if outputs else q
    if not final:
        return output, initial_state
    keys, values, positions = zip(*final, strict=True)
    return output, WindowState(
        torch.stack(keys), torch.stack(values), torch.tensor(positions, dtype=torch.int64, device=q.device)
    )


def _rows(batch: int, time: int, cu_seqlens: Tensor | None) -> list[tuple[int, int, int]]:
    """(row, first step, end) of every stream."""
    if cu_seqlens is None:
        return [(row, 0, time) for row in range(batch)]
    bounds = cu_seqlens.tolist()
    return [(0, a, b) for a, b in itertools.pairwise(bounds)]
