"""Streams inside a batch: segments of packed rows, resets inside a row, masked steps.

Several of these functions see a batch as one packed row: row b of [B, T] is the segment [b·T, (b + 1)·T).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def bounds_of(batch: int, time: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """Segment boundaries [N + 1] int64 of the flattened [B·T] row."""
    if cu_seqlens is not None:
        return cu_seqlens.to(device=device, dtype=torch.int64)
    return torch.arange(batch + 1, device=device) * time


def segment_of(bounds: Tensor, total: int) -> Tensor:
    """The segment that each of `total` flattened steps belongs to, [total] int64."""
    steps = torch.arange(total, device=bounds.device)
    return torch.searchsorted(bounds, steps, right=True) - 1


def _running(index: Tensor) -> Tensor:
    return torch.cummax(index, 0).values if index.numel() else index


def shift_to_previous(
    values: Tensor,
    previous: Tensor,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every step's value at the last open step before it.

    Args:
        values: [B, T, D].
        previous: [N, D], the value at the last open step before this call (zeros for a fresh stream).
        mask: [B, T] bool, True = open.
        reset: [B, T] bool, True = fresh before this step.
        cu_seqlens: [N + 1] boundaries of packed segments.

    Returns:
        ([B, T, D] shifted values, [N, D] the value at the last open step of every stream).
    """
    batch, time, dim = values.shape
    if mask is None and reset is None and cu_seqlens is None:
        if time == 0:
            return values, previous
        # A copy: a view would keep all of `values` alive for as long as the state.
        return torch.cat([previous.unsqueeze(1), values[:, :-1]], 1), values[:, -1].clone()
    total, device = batch * time, values.device
    bounds = bounds_of(batch, time, cu_seqlens, device)
    streams = bounds.shape[0] - 1
    segment = segment_of(bounds, total)
    steps = torch.arange(total, device=device)
    nothing = steps.new_full((), -1)
    last_open = _running(steps if mask is None else torch.where(mask.reshape(-1), steps, nothing))
    last_reset = _running(nothing.expand(total) if reset is None else torch.where(reset.reshape(-1), steps, nothing))
    before = torch.cat([nothing.expand(1), last_open])[:total]

    # Sources: 0 is a fresh stream's zero, 1 .. N the values carried in, N + 1 .. the steps of this call.
    sources = torch.cat([values.new_zeros(1, dim), previous, values.reshape(total, dim)])

    def source(open_step: Tensor, reset_step: Tensor, stream: Tensor) -> Tensor:
        start = bounds[stream]
        carried = torch.where(reset_step >= start, 0, stream + 1)
        return torch.where(open_step >= torch.maximum(start, reset_step), open_step + streams + 1, carried)

    shifted = sources[source(before, last_reset, segment)].reshape(batch, time, dim)
    every = torch.arange(streams, device=device)
    ends = bounds[1:]
    last_open = torch.cat([nothing.expand(1), last_open])[ends]
    last_reset = torch.cat([nothing.expand(1), last_reset])[ends]
    return shifted, sources[source(last_open, last_reset, every)]


def count_open(
    position: Tensor,
    batch: int,
    time: int,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Positions [N] int64 after this call: open steps since the stream began or was last reset."""
    if mask is None and reset is None and cu_seqlens is None:
        return position + time
    total, device = batch * time, position.device
    bounds = bounds_of(batch, time, cu_seqlens, device)
    steps = torch.arange(total, device=device)
    nothing = steps.new_full((), -1)
    opened = torch.ones_like(steps) if mask is None else mask.reshape(-1).long()
    opened = torch.cat([steps.new_zeros(1), opened.cumsum(0)])
    last_reset = _running(nothing.expand(total) if reset is None else torch.where(reset.reshape(-1), steps, nothing))
    last_reset = torch.cat([nothing.expand(1), last_reset])[bounds[1:]]
    was_reset = last_reset >= bounds[:-1]
    start = torch.where(was_reset, last_reset, bounds[:-1])
    return opened[bounds[1:]] - opened[start] + torch.where(was_reset, 0, position)


@dataclass(frozen=True)
class Packing:
    """How a packed row [1, T, ..] becomes a right-padded batch [N, L, ..], and back."""

    gather: Tensor
    """[N, L] int64, the packed step of every batch entry (0 where there is none)."""
    valid: Tensor
    """[N, L] bool, True where there is one."""
    place: Tensor
    """[T] int64, the flattened batch entry of every packed step."""

    @classmethod
    def of(cls, cu_seqlens: Tensor, total: int) -> Packing:
        bounds = cu_seqlens.to(torch.int64)
        lengths = bounds[1:] - bounds[:-1]
        longest = int(lengths.max()) if lengths.numel() else 0
        offsets = torch.arange(longest, device=bounds.device)
        valid = offsets < lengths.unsqueeze(1)
        gather = torch.where(valid, bounds[:-1].unsqueeze(1) + offsets, 0)
        segment = segment_of(bounds, total)
        place = segment * longest + torch.arange(total, device=bounds.device) - bounds[segment]
        return cls(gather, valid, place)

    def unpack(self, packed: Tensor) -> Tensor:
        """[1, T, ..] to [N, L, ..], zeros where there is no step."""
        if packed.shape[1] == 0:
            return packed.new_zeros(*self.valid.shape, *packed.shape[2:])
        shape = self.valid.shape + (1,) * (packed.dim() - 2)
        return packed[0][self.gather] * self.valid.reshape(shape).to(packed.dtype)

    def pack(self, padded: Tensor) -> Tensor:
        """[N, L, ..] to [1, T, ..]."""
        return padded.flatten(0, 1)[self.place].unsqueeze(0)


def spread(value: Tensor, batch: int, time: int, cu_seqlens: Tensor | None) -> Tensor:
    """One number per stream [N] to one per step: [B, 1], or [1, T] when packed."""
    if cu_seqlens is None:
        return value.unsqueeze(1)
    bounds = bounds_of(batch, time, cu_seqlens, value.device)
    return value[segment_of(bounds, time)].unsqueeze(0)
