"""A Hopfield network over a stream: it stores a pattern at every step and retrieves among the last N."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, get_args

import torch
from torch import Tensor, nn

from ssmn import ops
from ssmn.config import Initialisation, Pairing, Plasticity, StackConfig
from ssmn.layers.checks import check_hidden, check_learning, check_setting, check_state, check_streams
from ssmn.layers.memory import unit
from ssmn.ops.common import state_dtype
from ssmn.ops.segments import Packing, shift_to_previous
from ssmn.relatives.hopfield.association import initial_beta
from ssmn.relatives.hopfield.continuous import retrieve
from ssmn.state import State, WindowState, register_state


@register_state("hopfield")
@dataclass(frozen=True, eq=False, repr=False)
class HopfieldState(State):
    """What a Hopfield memory remembers: the last N patterns and what belongs to them, as a ring.

    The pattern stored at position p lies in slot p mod N; slots that no step has reached are zeros.
    """

    keys: Annotated[Tensor, "B N H D"]
    """[B, N, H, D / H], stored patterns of unit length."""
    values: Annotated[Tensor, "B N H D"]
    """[B, N, H, D / H], what is read for each."""
    position: Annotated[Tensor, "B", torch.int64]
    """[B], patterns stored so far."""
    previous: Annotated[Tensor, "B W"]
    """[B, D], the hidden vector of the last open step."""

    def reset_memory(self) -> HopfieldState:
        return self.map(torch.zeros_like)


class HopfieldMemory(nn.Module):
    """Every step stores a pattern, then retrieves by R softmax updates among the last N stored ones and its own.

    Per head k_t = l2(W_k h_{t−1}), v_t = W_v h_t, ξ = l2(W_q h_t); R − 1 times ξ ← K_tᵀ softmax(β K_t ξ), K_t the
    stored keys up to t; then y_t = W_o V_tᵀ softmax(β K_t ξ) (Ramsauer et al., 2020, over a stream). As in the synaptic
    memory the key is the step before, so a query finds what followed things like it; `pairing="same"` stores h_t
    itself. β > 0 is learned, one for each head.

    Each update is one window attention with its kernels: N is all it costs, at every position. A pattern is kept
    whole, for N steps, then it is gone: there is no decay, so `elapsed` has no meaning here, and of `plasticity` only
    `frozen` has: then nothing is stored, and the read goes on.

    Args:
        hidden_dim: D.
        num_heads: H; must divide D.
        slots: N, patterns in the state.
        update_steps: R.
        beta: Where β starts; None = √(D / H), which weighs as attention with its 1/√(D / H) does.
        pairing: `previous` or `same`.
        initialisation: `associative` (W_k = W_q and W_o = W_vᵀ, orthogonal) or `standard`.

    Raises:
        ConfigError: A setting does not fit; the message names it.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import HopfieldMemory
        >>> y, state = HopfieldMemory(16, 2, slots=5)(torch.randn(1, 7, 16))
        >>> y.shape, state.keys.shape, state.position
        (torch.Size([1, 7, 16]), torch.Size([1, 5, 2, 8]), tensor([7]))
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int = 1,
        *,
        slots: int = 128,
        update_steps: int = 1,
        beta: float | None = None,
        pairing: Pairing = "previous",
        initialisation: Initialisation = "associative",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.log_beta = initial_beta(owner, hidden_dim, num_heads, beta)
        for name, number in (("slots", slots), ("update_steps", update_steps)):
            check_setting(owner, name, number, isinstance(number, int) and number >= 1, "a whole number of at least 1")
        for name, value, choices in (
            ("pairing", pairing, get_args(Pairing)),
            ("initialisation", initialisation, get_args(Initialisation)),
        ):
            check_setting(owner, name, value, value in choices, f"one of {', '.join(choices)}")
        self.hidden_dim, self.num_heads, self.head_dim = hidden_dim, num_heads, hidden_dim // num_heads
        self.slots, self.update_steps, self.pairing = slots, update_steps, pairing
        self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.value = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)
        if initialisation == "associative":
            nn.init.orthogonal_(self.query.weight)
            nn.init.orthogonal_(self.value.weight)
            with torch.no_grad():
                self.key.weight.copy_(self.query.weight)
                self.output.weight.copy_(self.value.weight.T)

    @classmethod
    def of(cls, config: StackConfig) -> HopfieldMemory:
        """The mixer of a block `hopfield`: `num_heads`, `memory_slots`, `pairing` and `initialisation` of the model."""
        memory = cls(
            config.hidden_dim,
            config.num_heads,
            slots=config.memory_slots,
            pairing=config.pairing,
            initialisation=config.initialisation,
        )
        if config.initialisation == "standard":  # as every other output of the stack
            nn.init.normal_(memory.output.weight, std=0.5 / math.sqrt(config.hidden_dim * config.num_layers))
        return memory

    @property
    def beta(self) -> Tensor:
        """[H], the inverse temperature of each head."""
        return self.log_beta.exp()

    @property
    def window_size(self) -> int:
        """Patterns that a step retrieves among: N, and its own."""
        return self.slots + 1

    def init_state(self, batch_size: int) -> HopfieldState:
        """A fresh state for `batch_size` streams: all zeros."""
        weight = self.query.weight
        options = {"dtype": state_dtype(weight.dtype), "device": weight.device}
        ring = torch.zeros(batch_size, self.slots, self.num_heads, self.head_dim, **options)
        position = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return HopfieldState(ring, ring.clone(), position, torch.zeros(batch_size, self.hidden_dim, **options))

    def forward(
        self,
        hidden: Tensor,
        state: HopfieldState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, HopfieldState]:
        """Stores and retrieves.

        Args:
            hidden: [B, T, D].
            state: The stored patterns; None = fresh.
            mask: [B, T] bool, True = open; a closed step stores nothing and gives 0.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], checked and without effect: nothing here fades with time.
            plasticity: With `frozen` nothing is stored and steps retrieve among the patterns of `state` (zeros while
                there are none); its other settings have no effect.

        Returns:
            (y [B, T, D], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, hidden, self.hidden_dim, self.query.weight)
        streams = check_streams(owner, hidden, mask, reset, cu_seqlens)
        check_learning(owner, hidden, elapsed, plasticity)
        if state is None:
            state = self.init_state(streams)
        ring = (streams, self.slots, self.num_heads, self.head_dim)
        shapes = {"keys": ring, "values": ring, "position": (streams,), "previous": (streams, self.hidden_dim)}
        check_state(owner, state, HopfieldState, shapes)
        previous, latest = shift_to_previous(hidden, state.previous.to(hidden.dtype), mask, reset, cu_seqlens)
        latest = latest.to(state.previous.dtype)
        query = unit(self._heads(self.query(hidden)))
        if plasticity is not None and plasticity.frozen:
            read, after = self._read_only(query, state, mask, reset, cu_seqlens)
            return self.output(read.flatten(2)), dataclasses.replace(after, previous=latest)
        key = unit(self._heads(self.key(previous if self.pairing == "previous" else hidden)))
        value = self._heads(self.value(hidden))
        # Window attention divides by √D: so it is told β √D.
        sharpness = (self.beta * math.sqrt(self.head_dim)).to(hidden.dtype).unsqueeze(-1)

        def attend(values: Tensor, held: Tensor) -> tuple[Tensor, WindowState]:
            seen, final = ops.window_attention(
                query * sharpness, key, values,
                window_size=self.window_size, mask=mask, reset=reset, cu_seqlens=cu_seqlens,
                initial_state=WindowState(state.keys, held, state.position), output_final_state=True,
            )  # fmt: skip
            assert final is not None
            return seen, final

        for _ in range(self.update_steps - 1):
            query, _ = attend(key, state.keys)
        read, final = attend(value, state.values)
        return self.output(read.flatten(2)), HopfieldState(final.keys, final.values, final.position, latest)

    def _read_only(
        self,
        query: Tensor,
        state: HopfieldState,
        mask: Tensor | None,
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, HopfieldState]:
        """Retrieval among the patterns of the state alone, none after a reset; the state after it."""
        packing = None if cu_seqlens is None else Packing.of(cu_seqlens, query.shape[1])
        if packing is not None:
            query = packing.unpack(query)
            reset = None if reset is None else packing.unpack(reset)
        found = retrieve(
            query.transpose(1, 2),
            state.keys.to(query.dtype).transpose(1, 2),
            values=state.values.to(query.dtype).transpose(1, 2),
            beta=self.beta.to(query.dtype)[:, None, None],
            mask=self._filled(state).unsqueeze(1).expand(-1, self.num_heads, -1),
            max_steps=self.update_steps,
        ).pattern.transpose(1, 2)
        if reset is not None:
            found = torch.where((reset.cumsum(1) > 0)[:, :, None, None], 0.0, found)
            emptied = reset.any(1)
            state = state.map(lambda x: torch.where(emptied.reshape(-1, *[1] * (x.dim() - 1)), torch.zeros_like(x), x))
        found = found if packing is None else packing.pack(found)
        return found if mask is None else torch.where(mask[:, :, None, None], found, 0.0), state

    def _filled(self, state: HopfieldState) -> Tensor:
        """[B, N] bool, the slots that a step has reached."""
        return torch.arange(self.slots, device=state.position.device) < state.position.unsqueeze(1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))
