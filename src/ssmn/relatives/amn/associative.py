"""AMN: a recurrence with liquid time constants, and an associative manifold that it writes, asks and is driven by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor, nn

from ssmn.config import Initialisation, Pairing, Plasticity, UpdateRule
from ssmn.errors import StateError
from ssmn.layers.checks import check_hidden, check_learning, check_setting, check_state, check_streams
from ssmn.layers.memory import SynapticMemory
from ssmn.relatives.amn.lru import MAX_PHASE, RADIUS, fresh_hidden
from ssmn.relatives.amn.recurrence import DiagonalRecurrence, GatedOutput
from ssmn.relatives.base import Member
from ssmn.state import PlasticState, State, register_state


@register_state("amn")
@dataclass(frozen=True, eq=False, repr=False)
class AMNState(State):
    """What an associative mixer remembers; without a manifold, `hidden` alone."""

    hidden: Annotated[Tensor, "B P N"]
    """[B, 2, N], real and imaginary parts of what the inputs left in the recurrence."""
    recalled: Annotated[Tensor, "B P N"] | None = None
    """[B, 2, N], of what the manifold's reads left in it; h is the sum of the two."""
    memory: Annotated[Tensor, "B H K V"] | None = None
    """[B, H, K, V], the manifold."""
    previous: Annotated[Tensor, "B D"] | None = None
    """[B, D], the vector of the last open step, which keys pair with."""

    def reset_memory(self) -> Self:
        zeros = {
            name: torch.zeros_like(x) for name, x in self.named_tensors().items() if name in ("memory", "previous")
        }
        return self.with_tensors(zeros)


class AssociativeMixer(nn.Module):
    """The mixer of the block kind `amn`: h_t = a_t h_{t−1} + γ_t B (x_t + m_t), y_t = Re(C h_t) + d ∘ x_t.

    a and γ are those of `DiagonalRecurrence` with liquid time constants. m_t is what a synaptic memory
    (`ssmn.layers.SynapticMemory`, delta rule) answers: it is written and asked with s_t = Re(C h¹_t) + d ∘ x_t,
    h¹_t = a_t h¹_{t−1} + γ_t B x_t, the part of h that the inputs alone have made. The recurrence is linear, so
    h = h¹ + r with r_t = a_t r_{t−1} + γ_t B m_t: a scan, the memory in chunks, and a scan again. No step waits for the
    read of another, so whole sequences are parallel and any cut of a stream is exact; and a read never drives the
    writes of its own memory, which would be unstable.

    Args:
        hidden_dim: D.
        state_dim: N, complex channels; None = D / 2 rounded up.
        liquid: Whether the decay depends on the input (False = constant time constants).
        manifold: Whether there is a memory (False = the recurrence alone).
        gated: Whether a gated output follows, for use without a feed-forward.
        radius: Inner and outer radius of the ring that |a| starts on, over one unit of time.
        max_phase: The largest angle per unit of time at the start.
        memory_heads: H of the manifold; must divide D.
        update_rule: The manifold's, as in `SynapticMemory`.
        pairing: The manifold's, as in `SynapticMemory`.
        plasticity_eta: The manifold's, as in `SynapticMemory`.
        decay_lambda: The manifold's, as in `SynapticMemory`.
        write_threshold: The manifold's, as in `SynapticMemory`.
        chat_rounds: The manifold's, as in `SynapticMemory`.
        initialisation: The manifold's, as in `SynapticMemory`.

    Example:
        >>> import torch
        >>> from ssmn.relatives import AssociativeMixer
        >>> mixer = AssociativeMixer(6)
        >>> y, state = mixer(torch.randn(2, 5, 6), elapsed=torch.rand(2, 5))
        >>> y.shape, state.hidden.shape, state.memory.shape
        (torch.Size([2, 5, 6]), torch.Size([2, 2, 3]), torch.Size([2, 1, 6, 6]))
    """

    def __init__(
        self,
        hidden_dim: int,
        state_dim: int | None = None,
        *,
        liquid: bool = True,
        manifold: bool = True,
        gated: bool = False,
        radius: tuple[float, float] = RADIUS,
        max_phase: float = MAX_PHASE,
        memory_heads: int = 1,
        update_rule: UpdateRule = "delta",
        pairing: Pairing = "previous",
        plasticity_eta: float = 0.5,
        decay_lambda: tuple[float, ...] | None = None,
        write_threshold: float = 0.0,
        chat_rounds: int = 0,
        initialisation: Initialisation = "associative",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("liquid", liquid), ("manifold", manifold), ("gated", gated)):
            check_setting(owner, name, value, isinstance(value, bool), "true or false")
        check_setting(owner, "hidden_dim", hidden_dim, isinstance(hidden_dim, int) and hidden_dim >= 1, "at least 1")
        channels = (hidden_dim + 1) // 2 if state_dim is None else state_dim
        self.hidden_dim, self.state_dim = hidden_dim, channels
        self.recurrence = DiagonalRecurrence(hidden_dim, channels, radius, max_phase, liquid)
        self.skip = nn.Parameter(torch.randn(hidden_dim))
        self.norm = self.manifold = None
        if manifold:
            self.norm = nn.RMSNorm(hidden_dim, eps=1e-6)
            self.manifold = SynapticMemory(
                hidden_dim,
                memory_heads,
                update_rule=update_rule,
                pairing=pairing,
                plasticity_eta=plasticity_eta,
                decay_lambda=decay_lambda,
                write_threshold=write_threshold,
                chat_rounds=chat_rounds,
                initialisation=initialisation,
            )
        self.gated = GatedOutput(hidden_dim) if gated else None

    def init_state(self, batch_size: int) -> AMNState:
        """A fresh state: all zeros."""
        hidden = fresh_hidden(self.recurrence, batch_size)
        if self.manifold is None:
            return AMNState(hidden)
        empty = self.manifold.init_state(batch_size)
        return AMNState(hidden, torch.zeros_like(hidden), empty.memory, empty.previous)

    def forward(
        self,
        hidden: Tensor,
        state: AMNState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, AMNState]:
        """Takes in, asks what that brings to mind, and takes in the answer too.

        Args:
            hidden: [B, T, D].
            state: What came out of the call before; None = fresh.
            mask: [B, T] bool, True = open; a closed step changes nothing.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], time since the step before (≥ 0, 1 by default): h decays and turns by it, the manifold
                forgets by it.
            plasticity: How strongly the manifold learns and forgets in this call; None = as trained.

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
        shapes = self._shapes(streams)
        if isinstance(state, AMNState) and set(state.named_tensors()) != set(shapes):
            raise StateError(
                f"{owner}: the state has {', '.join(state.named_tensors())}; wanted {', '.join(shapes)}: "
                f"it is of a mixer with{'out' if 'memory' in shapes else ''} a manifold."
            )
        check_state(owner, state, AMNState, shapes)
        dynamics = self.recurrence.dynamics(hidden, elapsed)
        y, taken = self.recurrence.run(hidden, dynamics, state.hidden, mask, reset, cu_seqlens)
        y = y + self.skip * hidden
        final = AMNState(taken)
        if self.manifold is not None and self.norm is not None:
            assert state.memory is not None and state.previous is not None and state.recalled is not None
            read, after = self.manifold(
                self.norm(y), PlasticState(state.memory, state.previous), mask=mask, reset=reset,
                cu_seqlens=cu_seqlens, elapsed=elapsed, plasticity=plasticity,
            )  # fmt: skip
            echo, recalled = self.recurrence.run(read, dynamics, state.recalled, mask, reset, cu_seqlens)
            y = y + echo
            final = AMNState(taken, recalled, after.memory, after.previous)
        return y if self.gated is None else self.gated(y), final

    def _shapes(self, streams: int) -> dict[str, tuple[int, ...]]:
        hidden = (streams, 2, self.state_dim)
        if self.manifold is None:
            return {"hidden": hidden}
        heads, width = self.manifold.heads, self.manifold.head_dim
        return {
            "hidden": hidden,
            "recalled": hidden,
            "memory": (streams, heads, width, width),
            "previous": (streams, self.hidden_dim),
        }


class AMN(Member):
    """An associative mixer with a gated output between two projections.

    Args:
        input_dim: Features per step that come in.
        hidden_dim: D, the width of the mixer.
        output_dim: Features per step that go out.
        state_dim: N, complex channels; None = D / 2 rounded up.
        liquid: Whether the decay depends on the input.
        manifold: Whether there is an associative memory.
        memory_heads: H of the manifold; must divide `hidden_dim`.
        radius: As in `AssociativeMixer`.
        max_phase: As in `AssociativeMixer`.
        plasticity_eta: As in `AssociativeMixer`.
        decay_lambda: As in `AssociativeMixer`.

    Example:
        >>> import torch, ssmn
        >>> model = ssmn.relatives.AMN(input_dim=3, hidden_dim=8, output_dim=2)
        >>> y, state = model(torch.randn(4, 7, 3), elapsed=torch.rand(4, 7))
        >>> y, state = model(torch.randn(4, 5, 3), state)
        >>> y.shape, model.state_size()
        (torch.Size([4, 5, 2]), 88)
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        state_dim: int | None = None,
        liquid: bool = True,
        manifold: bool = True,
        memory_heads: int = 1,
        radius: tuple[float, float] = RADIUS,
        max_phase: float = MAX_PHASE,
        plasticity_eta: float = 0.5,
        decay_lambda: tuple[float, ...] | None = None,
    ) -> None:
        mixer = AssociativeMixer(
            hidden_dim,
            state_dim,
            liquid=liquid,
            manifold=manifold,
            gated=True,
            radius=radius,
            max_phase=max_phase,
            memory_heads=memory_heads,
            plasticity_eta=plasticity_eta,
            decay_lambda=decay_lambda,
        )
        super().__init__(mixer, input_dim, hidden_dim, output_dim)
