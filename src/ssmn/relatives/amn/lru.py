"""The linear recurrent unit, by itself and as a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ssmn.config import Plasticity
from ssmn.layers.checks import check_hidden, check_learning, check_setting, check_state, check_streams
from ssmn.relatives.amn.recurrence import DiagonalRecurrence, GatedOutput
from ssmn.relatives.base import Member
from ssmn.state import State, register_state

RADIUS = (0.5, 0.999)
"""|a| over one unit of time, at the start: from a few steps of memory to a thousand."""

MAX_PHASE = math.pi
"""The fastest turn in one unit of time, at the start: the highest frequency that steps of 1 can show."""


@register_state("lru")
@dataclass(frozen=True, eq=False, repr=False)
class LRUState(State):
    """What a linear recurrent unit remembers."""

    hidden: Annotated[Tensor, "B P N"]
    """[B, 2, N], real and imaginary parts of h."""


class LinearRecurrentUnit(nn.Module):
    """y = Re(C h) + d ∘ x of `DiagonalRecurrence`, the mixer of the block kind `lru` (Orvieto et al., 2023).

    Linear in x unless `gated` or `liquid`; in a block the feed-forward is what bends. A step costs 2 · D · 2N products
    for B and C and 4 N for the recurrence; the state is 2 N numbers.

    Args:
        hidden_dim: D.
        state_dim: N, complex channels; None = D / 2 rounded up, as many numbers as the hidden vector.
        liquid: Whether the decay depends on the input.
        gated: Whether a gated output follows, for use without a feed-forward.
        radius: Inner and outer radius of the ring that |a| starts on, over one unit of time.
        max_phase: The largest angle per unit of time at the start.

    Example:
        >>> import torch
        >>> from ssmn.relatives import LinearRecurrentUnit
        >>> unit = LinearRecurrentUnit(6)
        >>> y, state = unit(torch.randn(2, 5, 6))
        >>> y.shape, state.hidden.shape
        (torch.Size([2, 5, 6]), torch.Size([2, 2, 3]))
    """

    def __init__(
        self,
        hidden_dim: int,
        state_dim: int | None = None,
        *,
        liquid: bool = False,
        gated: bool = False,
        radius: tuple[float, float] = RADIUS,
        max_phase: float = MAX_PHASE,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("liquid", liquid), ("gated", gated)):
            check_setting(owner, name, value, isinstance(value, bool), "true or false")
        check_setting(owner, "hidden_dim", hidden_dim, isinstance(hidden_dim, int) and hidden_dim >= 1, "at least 1")
        channels = (hidden_dim + 1) // 2 if state_dim is None else state_dim
        self.hidden_dim, self.state_dim = hidden_dim, channels
        self.recurrence = DiagonalRecurrence(hidden_dim, channels, radius, max_phase, liquid)
        self.skip = nn.Parameter(torch.randn(hidden_dim))
        self.gated = GatedOutput(hidden_dim) if gated else None

    def init_state(self, batch_size: int) -> LRUState:
        """A fresh state: h = 0."""
        return LRUState(fresh_hidden(self.recurrence, batch_size))

    def forward(
        self,
        hidden: Tensor,
        state: LRUState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, LRUState]:
        """Decays, turns, adds and reads.

        Args:
            hidden: [B, T, D].
            state: h so far; None = fresh.
            mask: [B, T] bool, True = open; a closed step leaves h as it is.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], time since the step before (≥ 0, 1 by default); h decays and turns by it.
            plasticity: Has no effect: nothing here learns at inference.

        Returns:
            (y [B, T, D], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, hidden, self.hidden_dim, self.skip)
        streams = check_streams(owner, hidden, mask, reset, cu_seqlens)
        check_learning(owner, hidden, elapsed, plasticity)
        if state is None:
            state = self.init_state(streams)
        check_state(owner, state, LRUState, {"hidden": (streams, 2, self.state_dim)})
        dynamics = self.recurrence.dynamics(hidden, elapsed)
        y, final = self.recurrence.run(hidden, dynamics, state.hidden, mask, reset, cu_seqlens)
        y = y + self.skip * hidden
        return y if self.gated is None else self.gated(y), LRUState(final)


def fresh_hidden(recurrence: DiagonalRecurrence, batch_size: int) -> Tensor:
    """The zeros [B, 2, N] that `batch_size` streams begin with."""
    weight = recurrence.log_rate
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.zeros(batch_size, 2, recurrence.channels, dtype=dtype, device=weight.device)


class LRU(Member):
    """A linear recurrent unit with a gated output between two projections.

    Args:
        input_dim: Features per step that come in.
        hidden_dim: D, the width of the unit.
        output_dim: Features per step that go out.
        state_dim: N, complex channels; None = D / 2 rounded up.
        liquid: As in `LinearRecurrentUnit`.
        radius: As in `LinearRecurrentUnit`.
        max_phase: As in `LinearRecurrentUnit`.

    Example:
        >>> import torch, ssmn
        >>> model = ssmn.relatives.LRU(input_dim=3, hidden_dim=8, output_dim=2)
        >>> y, state = model(torch.randn(4, 7, 3), elapsed=torch.rand(4, 7))
        >>> y, state = model.step(torch.randn(4, 3), state)
        >>> y.shape, model.state_size()
        (torch.Size([4, 2]), 8)
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        state_dim: int | None = None,
        liquid: bool = False,
        radius: tuple[float, float] = RADIUS,
        max_phase: float = MAX_PHASE,
    ) -> None:
        mixer = LinearRecurrentUnit(
            hidden_dim, state_dim, liquid=liquid, gated=True, radius=radius, max_phase=max_phase
        )
        super().__init__(mixer, input_dim, hidden_dim, output_dim)
