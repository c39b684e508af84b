"""The front of a model of series: running normalisation, missing values, and the time that absent rows took."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmn.layers.checks import check_learning, check_setting, check_state, check_streams
from ssmn.layers.constant import touched, with_untouched
from ssmn.ops.common import state_dtype
from ssmn.ops.segments import Packing
from ssmn.state import FrontState

SETTLED = 8
"""Values of a column after which its statistics are trusted: outliers are then clipped, and errors train."""

CLIP = 4.0
"""Deviations from the mean beyond which a value moves the statistics no further."""

LIMIT = 10.0
"""Standardised values are kept within ± this."""

_TINY = 1e-40


@dataclass(frozen=True)
class Statistics:
    """How the columns lie at each step; constants without gradients.

    Attributes:
        mean: [B, T, C], the step itself included.
        scale: [B, T, C], their deviations, never zero.
        mean_before: [B, T, C], as of the step before.
        scale_before: [B, T, C], likewise.
        count: [B, T, C], values seen, up to 1 / rate.
    """

    mean: Tensor
    scale: Tensor
    mean_before: Tensor
    scale_before: Tensor
    count: Tensor


@dataclass(frozen=True)
class Fronted:
    """What the front makes of the next steps.

    Attributes:
        x: [B, T, C], standardised if the front normalises, 0 where missing or closed.
        absent: [B, T, C] bool, True = missing in an open step; None if missing values are errors.
        mask: [B, T] bool, True = open and present; None = all.
        elapsed: [B, T] or None, with the time of absent rows added.
        statistics: How the columns lie, if the front normalises.
    """

    x: Tensor
    absent: Tensor | None
    mask: Tensor | None
    elapsed: Tensor | None
    statistics: Statistics | None


class RunningFront(nn.Module):
    """Standardises a stream by what it has shown so far; it has no weights.

    Per column, for every value seen, with n their number, d the deviation from the mean before it, and s the
    deviation before it:

        r = max(rate, 1/n)     d' = d clipped to ± 4 s     m ← m + r d'     s² ← (1 − r)(s² + r d'²)     z = (x − m) / s

    These are the exponentially weighted mean and variance of West (1979), with plain averages at the start. The first
    eight values are not clipped, nor is what follows a constant. An outlier of any size thus moves the deviation by at
    most a factor √(1 + 16 r), yet after a shift the deviation grows by that factor at every step, so that the shift is
    let in after a few dozen. z is kept within ± 10. The mean is kept in two parts: an offset costs no precision.

    Args:
        columns: C.
        rate: Rate of the averages, in (0, 1]; None = no normalisation.
        masks_missing: Whether NaN is a missing value; else it must not come.

    Example:
        >>> import torch, ssmn
        >>> front = ssmn.layers.RunningFront(columns=1, rate=0.1)
        >>> fronted, state = front(torch.tensor([[[1005.0], [1003.0], [1004.0]]]))
        >>> state.mean.tolist(), [round(z, 3) for z in fronted.x.flatten().tolist()]
        ([[1004.0]], [0.0, -1.0, 0.0])
    """

    def __init__(self, columns: int, rate: float | None, masks_missing: bool = False) -> None:
        super().__init__()
        owner = type(self).__name__
        check_setting(owner, "columns", columns, columns >= 1, "at least 1")
        check_setting(owner, "rate", rate, rate is None or 0.0 < rate <= 1.0, "a number in (0, 1], or None")
        self.columns, self.rate, self.masks_missing = columns, rate, masks_missing

    def init_state(
        self, batch_size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> FrontState:
        """A fresh state for `batch_size` streams of a model of this dtype: all zeros."""
        width = 0 if self.rate is None else self.columns
        kind = {"dtype": state_dtype(dtype), "device": device}
        return FrontState(
            *(torch.zeros(batch_size, width, **kind) for _ in range(4)), pending=torch.zeros(batch_size, **kind)
        )

    def forward(
        self,
        x: Tensor,
        state: FrontState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
    ) -> tuple[Fronted, FrontState]:
        """Reads the next T steps.

        Args:
            x: [B, T, C]; NaN = missing, if that is allowed; what is closed is not looked at.
            state: The statistics so far; None = fresh.
            mask: [B, T] bool, True = open.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], time since the step before (1 by default).

        Returns:
            (what the model reads, state). Gradients reach x through z, and not the statistics.

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        streams = check_streams(owner, x, mask, reset, cu_seqlens)
        check_learning(owner, x, elapsed, None)
        if state is None:
            state = self.init_state(streams, x.dtype, x.device)
        width = 0 if self.rate is None else self.columns
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "rest", "deviation", "count"), (streams, width))
        check_state(owner, state, FrontState, {**shapes, "pending": (streams,)})
        absent, opened = None, mask
        if self.masks_missing:
            elapsed = None if elapsed is None else elapsed.detach()
            absent = x.isnan() if mask is None else x.isnan() & mask.unsqueeze(-1)
            lost = absent.all(-1)
            if bool(lost.any()):
                opened = ~lost if mask is None else mask & ~lost
                absent = absent & opened.unsqueeze(-1)
        x = x if opened is None else torch.where(opened.unsqueeze(-1), x, 0.0)
        x = x if absent is None else torch.where(absent, 0.0, x)
        after, statistics = state, None
        with torch.no_grad():
            packing = None if cu_seqlens is None else Packing.of(cu_seqlens, x.shape[1])
            times, pending = self._times(x, state, opened, mask, reset, elapsed, packing)
            if self.rate is not None:
                seen = torch.ones_like(x, dtype=torch.bool)
                seen = seen if opened is None else seen & opened.unsqueeze(-1)
                seen = seen if absent is None else seen & ~absent
                statistics, after = self._statistics(x, seen, reset, packing, state)
            after = FrontState(after.mean, after.rest, after.deviation, after.count, pending)
        if torch.is_grad_enabled() and state.pending.requires_grad:
            after = with_untouched(after, state, touched(x.shape[0], x.shape[1], mask, reset, cu_seqlens, x.device))
        if statistics is not None:
            z = (x.double() - statistics.mean) / statistics.scale
            z = z.clamp(-LIMIT, LIMIT)
            x = torch.where(seen, z, 0.0).to(x.dtype)
        return Fronted(x, absent, opened, times, statistics), after

    def _times(
        self,
        x: Tensor,
        state: FrontState,
        opened: Tensor | None,
        mask: Tensor | None,
        reset: Tensor | None,
        elapsed: Tensor | None,
        packing: Packing | None,
    ) -> tuple[Tensor | None, Tensor]:
        """(elapsed [B, T] or None, time that is still pending [N])."""
        pending = state.pending.double()
        if opened is mask and not (x.shape[1] and bool(pending.any())):
            return elapsed, state.pending.detach()  # nothing is absent and nothing is pending
        shape = x.shape[:2]
        steps = torch.ones(shape, dtype=torch.float64, device=x.device) if elapsed is None else elapsed.double()
        present = torch.ones(shape, dtype=torch.bool, device=x.device) if opened is None else opened
        steps = steps if mask is None else torch.where(mask, steps, 0.0)
        rows = [steps, present, torch.zeros_like(present) if reset is None else reset]
        rows = rows if packing is None else [packing.unpack(row) for row in rows]
        times = []
        for step, is_present, is_fresh in zip(*(row.unbind(1) for row in rows), strict=True):
            told = torch.where(is_fresh, 0.0, pending) + step
            pending = torch.where(is_present, 0.0, told)
            times.append(told)
        told = torch.stack(times, 1) if times else rows[0]
        told = told if packing is None else packing.pack(told)
        return told.to(state.pending.dtype), pending.to(state.pending.dtype)

    def _statistics(
        self, x: Tensor, seen: Tensor, reset: Tensor | None, packing: Packing | None, state: FrontState
    ) -> tuple[Statistics, FrontState]:
        assert self.rate is not None
        values = x.double()
        if packing is not None:
            values, seen = packing.unpack(values), packing.unpack(seen)
            reset = None if reset is None else packing.unpack(reset)
        eps = torch.finfo(state_dtype(x.dtype)).eps
        count = self._counts(seen, reset, state.count.double())
        rate = torch.where(seen, (1 / count.clamp(min=1)).clamp(min=self.rate), 0.0)
        clip = torch.where(count > SETTLED, CLIP, math.inf)
        mean, variance = state.mean.double() + state.rest.double(), state.deviation.double().square()
        first = mean, variance
        means, variances = [], []
        for t in range(values.shape[1]):
            if reset is not None:
                fresh = reset[:, t].unsqueeze(-1)
                mean, variance = (torch.where(fresh, 0.0, value) for value in (mean, variance))
            known = variance > (eps * mean).square()
            limit = torch.where(known, clip[:, t] * variance.sqrt(), math.inf)
            deviation = (values[:, t] - mean).clamp(-limit, limit)
            change = rate[:, t] * deviation
            mean = mean + change
            variance = torch.addcmul(variance, change, deviation) * (1 - rate[:, t])
            means.append(mean)
            variances.append(variance)
        after = FrontState(
            high := mean.to(state.mean.dtype),
            (mean - high.double()).to(state.mean.dtype),
            variance.sqrt().to(state.mean.dtype),
            (count[:, -1] if len(means) else state.count).to(state.mean.dtype),
            state.pending,
        )

        def scale(mean: Tensor, variance: Tensor) -> Tensor:
            return torch.maximum(variance, (eps * mean).square() + _TINY).sqrt()

        def restored(rows: Tensor) -> Tensor:
            return rows if packing is None else packing.pack(rows)

        all_means = torch.stack([first[0], *means], 1)
        all_scales = scale(all_means, torch.stack([first[1], *variances], 1))
        parts = (all_means[:, 1:], all_scales[:, 1:], all_means[:, :-1], all_scales[:, :-1], count)
        return Statistics(*map(restored, parts)), after

    def _counts(self, seen: Tensor, reset: Tensor | None, before: Tensor) -> Tensor:
        """[N, L, C]: values seen since the stream began or was last reset, up to 1 / rate."""
        assert self.rate is not None
        total = seen.double().cumsum(1)
        if reset is None:
            counts = total + before.unsqueeze(1)
        else:
            fresh = reset.unsqueeze(-1)
            start = torch.where(fresh, total - seen.double(), 0.0)
            start = start.cummax(1).values if start.shape[1] else start
            counts = total - start + torch.where(fresh.cumsum(1) > 0, 0.0, before.unsqueeze(1))
        return counts.clamp(max=math.ceil(1 / self.rate))
