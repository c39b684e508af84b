"""The window's ring as one flat range of keys: chunked attention sees neither ring, mask nor reset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmn.ops.rotary import rotate
from ssmn.ops.segments import Packing
from ssmn.state import WindowState


@dataclass(frozen=True)
class Band:
    """What the attention core computes on, and the way back.

    Open steps are compacted to the front of each row; the W − 1 keys before the first step stand in
    front of them, oldest first. Query i then sees the keys in [lo_i, hi_i), at most W of them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lo: Tensor
    hi: Tensor
    final: WindowState
    packing: Packing | None
    rank: Tensor | None
    mask: Tensor | None

    def restore(self, output: Tensor) -> Tensor:
        """Puts compacted outputs back to their steps; closed steps get zeros."""
        if self.rank is not None and self.mask is not None:
            shape = (-1, -1, *output.shape[2:])
            output = output.gather(1, self.rank[:, :, None, None].expand(shape))
            output = torch.where(self.mask[:, :, None, None], output, 0.0)
        return output if self.packing is None else self.packing.pack(output)


def lay_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: int,
    rope_theta: float | None,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    state: WindowState,
) -> Band:
    """Rotates, compacts and prefixes the keys, and computes the ring that follows."""
    packing = None
    if cu_seqlens is not None:
        packing = Packing.of(cu_seqlens, q.shape[1])
        q, k, v = packing.unpack(q), packing.unpack(k), packing.unpack(v)
        mask = packing.valid if mask is None else packing.unpack(mask)
        reset = None if reset is None else packing.unpack(reset)
    batch, time = q.shape[:2]
    slots, device = window_size - 1, q.device
    steps = torch.arange(time, device=device).expand(batch, time)
    start = state.position.unsqueeze(1)

    opened = steps + 1 if mask is None else mask.long().cumsum(1)
    segment = base = torch.zeros_like(steps)
    if reset is not None:
        before = opened - (1 if mask is None else mask.long())
        segment = reset.long().cumsum(1)
        base = torch.cummax(torch.where(reset, before, 0), 1).values if time else base
    # The step after the last: how many steps were open, in which segment they end and where that began.
    count = opened[:, -1:] if time else start.new_zeros(batch, 1)
    final_segment = segment[:, -1:] if time else count.new_zeros(batch, 1)
    final_base = base[:, -1:] if time else count.new_zeros(batch, 1)

    rank = None
    if mask is not None:
        rank = (opened - 1).clamp(min=0)
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        q, k, v = (x.gather(1, order[:, :, None, None].expand(-1, -1, *x.shape[2:])) for x in (q, k, v))
        segment, base = segment.gather(1, order), base.gather(1, order)
    first_segment = segment == 0
    position = steps - base + torch.where(first_segment, start, 0)
    q, k = rotate(q, position, rope_theta), rotate(k, position, rope_theta)

    ring_position = start - slots + torch.arange(slots, device=device)
    slot = torch.remainder(ring_position, max(slots, 1))[:, :, None, None]
    k = torch.cat([state.keys.gather(1, slot.expand(state.keys.shape)), k], 1)
    v = torch.cat([state.values.gather(1, slot.expand(state.values.shape)), v], 1)
    first_key = torch.where(first_segment, slots - start.clamp(max=slots), base + slots)
    hi = steps + window_size
    lo = torch.maximum(steps, first_key)
    lo = torch.where(steps < count, lo, hi)

    final_position = count - final_base + torch.where(final_segment == 0, start, 0)
    held = final_position - 1 - torch.remainder(final_position - 1 - torch.arange(slots, device=device), max(slots, 1))
    source = held + slots + torch.where(final_segment == 0, -start, final_base)
    filled = (held >= 0)[:, :, None, None]
    # A slot that was never filled has no source inside the range.
    source = source.clamp(min=0)[:, :, None, None].expand(-1, -1, *k.shape[2:])
    final = WindowState(
        torch.where(filled, k.gather(1, source), 0.0),
        torch.where(filled, v.gather(1, source), 0.0),
        final_position.squeeze(1),
    )
    return Band(q, k, v, lo.to(torch.int32), hi.to(torch.int32), final, packing, rank, mask)
