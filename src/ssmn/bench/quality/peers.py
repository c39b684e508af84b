"""The field's recurrent layers as block kinds of the same stack: only the mixer differs.

| kind | after |
| --- | --- |
| `lstm` | Hochreiter and Schmidhuber, 1997, with forget gates (Gers et al., 2000); torch's own kernel |
| `gru` | Cho et al., 2014; torch's own kernel |
| `retention` | RetNet (Sun et al., 2023): rotated queries and keys, a fixed decay per head |
| `ssd` | Mamba-2 (Dao and Gu, 2024): short convolution, data-dependent step and decay, one key for all heads |
| `gated-delta` | Gated DeltaNet (Yang et al., 2024): short convolutions, keys of unit norm, gated delta rule |

Full attention needs no kind of its own: it is `static` with a window as long as the context. The last three run on
`ssmn.ops.synaptic_memory`, so they have the same kernels as ours. They take `reset`, but no masks and no packing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn import ops
from ssmn.config import StackConfig
from ssmn.errors import ConfigError, RangeError
from ssmn.layers.blocks import register_mixer
from ssmn.layers.memory import unit
from ssmn.ops.common import state_dtype
from ssmn.ops.rotary import rotate
from ssmn.ops.segments import count_open, shift_to_previous
from ssmn.state import State, register_state
from ssmn.training.loop import build_model

ConfigT = TypeVar("ConfigT", bound=StackConfig)

CONVOLUTION = 4
"""Steps that a short convolution sees."""


@register_state("peer-memory")
@dataclass(frozen=True, eq=False, repr=False)
class PeerState(State):
    """What a linear-attention layer remembers."""

    memory: Annotated[Tensor, "B H K V"]
    """[B, H, K, V]."""
    recent: Annotated[Tensor, "B N D"]
    """[B, 3, D], what the short convolution has seen, newest first; [B, 0, 0] without one."""
    position: Annotated[Tensor, "B", torch.int64]
    """[B], steps so far."""


@register_state("peer-lstm")
@dataclass(frozen=True, eq=False, repr=False)
class LstmState(State):
    """What an LSTM remembers."""

    hidden: Annotated[Tensor, "B D"]
    cell: Annotated[Tensor, "B D"]


@register_state("peer-gru")
@dataclass(frozen=True, eq=False, repr=False)
class GruState(State):
    """What a GRU remembers."""

    hidden: Annotated[Tensor, "B D"]


class ShortConvolution(nn.Module):
    """A causal convolution over the last four steps of each channel, followed by SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(CONVOLUTION)
        self.weight = nn.Parameter(torch.empty(CONVOLUTION, channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, recent: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, T, D] and the last three steps [B, 3, D], newest first, to the same."""
        total, shifted, latest = x * self.weight[0], x, []
        for lag in range(1, CONVOLUTION):
            shifted, last = shift_to_previous(shifted, recent[:, lag - 1].to(x.dtype), None, reset)
            total = total + shifted * self.weight[lag]
            latest.append(last)
        return functional.silu(total), torch.stack(latest, 1).to(recent.dtype)


class _Mixer(nn.Module):
    """What the linear-attention layers share: the state, and what they refuse."""

    def __init__(self, heads: int, key_dim: int, value_dim: int, convolved: int) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.convolved = heads, key_dim, value_dim, convolved

    def init_state(self, batch_size: int) -> PeerState:
        """A fresh state for `batch_size` streams: all zeros."""
        weight = next(self.parameters())
        empty = torch.zeros(batch_size, dtype=state_dtype(weight.dtype), device=weight.device)
        return PeerState(
            empty.new_zeros(batch_size, self.heads, self.key_dim, self.value_dim),
            empty.new_zeros(batch_size, CONVOLUTION - 1 if self.convolved else 0, self.convolved),
            empty.long(),
        )

    def _remember(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        strength: Tensor,
        log_decay: Tensor,
        state: PeerState,
        recent: Tensor,
        reset: Tensor | None,
        rule: Any,
    ) -> tuple[Tensor, PeerState]:
        read, memory = ops.synaptic_memory(
            q, k, v, eta=strength, log_decay=log_decay, rule=rule, reset=reset,
            initial_state=state.memory, output_final_state=True,
        )  # fmt: skip
        assert memory is not None
        position = count_open(state.position, v.shape[0], v.shape[1], None, reset)
        return read, PeerState(memory, recent, position)


class Retention(_Mixer):
    """S_t = γ S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t with rotated q and k, γ_h = 1 − 2^(−5−h); values are 2 D wide.

    y = W_o (norm_per_head(o) · silu(W_g x)); the norm undoes any constant factor on the keys.
    """

    def __init__(self, hidden_dim: int, heads: int) -> None:
        super().__init__(heads, hidden_dim // heads, 2 * hidden_dim // heads, 0)
        self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.value = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.gate = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.output = nn.Linear(2 * hidden_dim, hidden_dim, bias=False)
        self.rates = torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64))))

    def forward(
        self, hidden: Tensor, state: PeerState | None = None, *, reset: Tensor | None = None, **refused: Any
    ) -> tuple[Tensor, PeerState]:
        """[B, T, D] and the state to the same."""
        _refuse(refused)
        batch, time, _ = hidden.shape
        state = self.init_state(batch) if state is None else state
        position = _positions(state.position, time, reset)
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value)
        )
        query, key = (rotate(x, position, 10_000.0) for x in (query, key * self.key_dim**-0.5))
        steps = torch.ones_like(value[..., 0])
        log_decay = steps * self.rates.to(steps)
        read, state = self._remember(query, key, value, steps, log_decay, state, state.recent, reset, "hebbian")
        normed = functional.rms_norm(read, read.shape[-1:], eps=1e-6).flatten(2)
        return self.output(normed * functional.silu(self.gate(hidden))), state


class StateSpaceDual(_Mixer):
    """h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_tᵀ, y_t = h_tᵀ C_t + D x_t with Δ_t = softplus(w·u_t + b); x is 2 D wide.

    x, B and C come out of one short convolution; all heads share B and C. The output is W_o RMSNorm(y · silu(z)).
    """

    def __init__(self, hidden_dim: int, heads: int, state_dim: int = 64) -> None:
        width = 2 * hidden_dim
        super().__init__(heads, state_dim, width // heads, width + 2 * state_dim)
        self.gate = nn.Linear(hidden_dim, width, bias=False)
        self.joint = nn.Linear(hidden_dim, self.convolved, bias=False)
        self.rate = nn.Linear(hidden_dim, heads, bias=False)
        self.convolution = ShortConvolution(self.convolved)
        # Δ begins spread over [0.001, 0.1] and −A over [1, 16], as the paper's code draws them.
        first = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.rate_bias = nn.Parameter(first + torch.log(-torch.expm1(-first)))
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, hidden_dim, bias=False)

    def forward(
        self, hidden: Tensor, state: PeerState | None = None, *, reset: Tensor | None = None, **refused: Any
    ) -> tuple[Tensor, PeerState]:
        """[B, T, D] and the state to the same."""
        _refuse(refused)
        state = self.init_state(hidden.shape[0]) if state is None else state
        mixed, recent = self.convolution(self.joint(hidden), state.recent, reset)
        x, key, query = mixed.split([self.heads * self.value_dim, self.key_dim, self.key_dim], -1)
        x = x.unflatten(-1, (self.heads, -1))
        key, query = (part.unsqueeze(2).expand(-1, -1, self.heads, -1) for part in (key, query))
        delta = functional.softplus(self.rate(hidden) + self.rate_bias)
        log_decay = -self.log_a.exp() * delta
        # Δ may exceed 1, so it scales the values and the write strength stays 1.
        value = x * delta.unsqueeze(-1)
        read, state = self._remember(
            query, key, value, torch.ones_like(delta), log_decay, state, recent, reset, "hebbian"
        )
        y = (read + x * self.skip.unsqueeze(-1)).flatten(2)
        return self.output(self.norm(y * functional.silu(self.gate(hidden)))), state


class GatedDelta(_Mixer):
    """S_t = α_t (S_{t−1} − β_t k_t k_tᵀ S_{t−1}) + β_t k_t v_tᵀ, o_t = S_tᵀ q_t; q, k, v by short convolutions.

    q and k have unit norm, β_t = sigmoid(w·x), α_t = exp(−exp(a) · softplus(u·x + b)) per head; the output is
    W_o (RMSNorm_per_head(o) · silu(W_g x)). Keys and values are D wide.
    """

    def __init__(self, hidden_dim: int, heads: int) -> None:
        super().__init__(heads, hidden_dim // heads, hidden_dim // heads, 3 * hidden_dim)
        self.joint = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.convolution = ShortConvolution(3 * hidden_dim)
        self.strength = nn.Linear(hidden_dim, heads, bias=False)
        self.rate = nn.Linear(hidden_dim, heads, bias=False)
        first = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.rate_bias = nn.Parameter(first + torch.log(-torch.expm1(-first)))
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1e-3, 16).log())
        self.gate = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.norm = nn.RMSNorm(self.value_dim, eps=1e-5)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(
        self, hidden: Tensor, state: PeerState | None = None, *, reset: Tensor | None = None, **refused: Any
    ) -> tuple[Tensor, PeerState]:
        """[B, T, D] and the state to the same."""
        _refuse(refused)
        state = self.init_state(hidden.shape[0]) if state is None else state
        mixed, recent = self.convolution(self.joint(hidden), state.recent, reset)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in mixed.chunk(3, -1))
        log_decay = -self.log_a.exp() * functional.softplus(self.rate(hidden) + self.rate_bias)
        strength = self.strength(hidden).sigmoid()
        read, state = self._remember(unit(query), unit(key), value, strength, log_decay, state, recent, reset, "delta")
        return self.output(self.norm(read).flatten(2) * functional.silu(self.gate(hidden))), state


class Lstm(nn.Module):
    """Torch's LSTM of width D with a projection behind it."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(hidden_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)
        with torch.no_grad():  # the forget gate begins open, at sigmoid(1)
            for name, value in (("bias_hh_l0", 1.0), ("bias_ih_l0", 0.0)):
                getattr(self.cell, name)[hidden_dim : 2 * hidden_dim] = value

    def init_state(self, batch_size: int) -> LstmState:
        """A fresh state for `batch_size` streams: all zeros."""
        zeros = self.output.weight.new_zeros(batch_size, self.output.in_features)
        return LstmState(zeros, zeros.clone())

    def forward(
        self, hidden: Tensor, state: LstmState | None = None, *, reset: Tensor | None = None, **refused: Any
    ) -> tuple[Tensor, LstmState]:
        """[B, T, D] and the state to the same."""
        _refuse(refused)
        state = self.init_state(hidden.shape[0]) if state is None else state
        carried, parts = (state.hidden.unsqueeze(0), state.cell.unsqueeze(0)), []
        for begin, end, keep in _stretches(hidden, reset):
            carried = carried if keep is None else (carried[0] * keep, carried[1] * keep)
            part, carried = self.cell(hidden[:, begin:end].contiguous(), carried)
            parts.append(part)
        seen = torch.cat(parts, 1) if parts else hidden
        return self.output(seen), LstmState(carried[0][0], carried[1][0])


class Gru(nn.Module):
    """Torch's GRU of width D with a projection behind it."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.cell = nn.GRU(hidden_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def init_state(self, batch_size: int) -> GruState:
        """A fresh state for `batch_size` streams: all zeros."""
        return GruState(self.output.weight.new_zeros(batch_size, self.output.in_features))

    def forward(
        self, hidden: Tensor, state: GruState | None = None, *, reset: Tensor | None = None, **refused: Any
    ) -> tuple[Tensor, GruState]:
        """[B, T, D] and the state to the same."""
        _refuse(refused)
        state = self.init_state(hidden.shape[0]) if state is None else state
        carried, parts = state.hidden.unsqueeze(0), []
        for begin, end, keep in _stretches(hidden, reset):
            carried = carried if keep is None else carried * keep
            part, carried = self.cell(hidden[:, begin:end].contiguous(), carried)
            parts.append(part)
        return self.output(torch.cat(parts, 1) if parts else hidden), GruState(carried[0])


def _stretches(hidden: Tensor, reset: Tensor | None) -> Iterator[tuple[int, int, Tensor | None]]:
    """(first step, end, [B, 1] rows that go on or None) of the stretches between resets."""
    starts = [] if reset is None else reset.any(0).nonzero()[:, 0].tolist()
    for begin, end in itertools.pairwise(sorted({0, hidden.shape[1], *starts})):
        keep = (~reset[:, begin]).to(hidden.dtype).unsqueeze(-1) if reset is not None and begin in starts else None
        yield begin, end, keep


def _positions(position: Tensor, time: int, reset: Tensor | None) -> Tensor:
    """[B, T] int64: steps since the stream began or was last reset."""
    steps = torch.arange(time, device=position.device).expand(position.shape[0], -1)
    if reset is None:
        return position.unsqueeze(1) + steps
    last = torch.where(reset, steps, -1).cummax(1).values
    return steps + torch.where(last >= 0, -last, position.unsqueeze(1))


def _refuse(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise RangeError(f"peers: {given[0]} was given; the field's layers take reset alone.")


def _build(layer: type[nn.Module], *names: str) -> Any:
    def build(config: StackConfig) -> nn.Module:
        mixer: Any = layer(config.hidden_dim, *(getattr(config, name) for name in names))
        # As for attention, so that the residual stream keeps its size.
        nn.init.normal_(mixer.output.weight, std=0.5 / math.sqrt(mixer.output.in_features * config.num_layers))
        return mixer

    return build


PEERS = {
    "lstm": _build(Lstm),
    "gru": _build(Gru),
    "retention": _build(Retention, "num_heads"),
    "ssd": _build(StateSpaceDual, "num_heads"),
    "gated-delta": _build(GatedDelta, "num_heads"),
}
"""What builds a mixer of each kind."""

for _name, _builder in PEERS.items():
    register_mixer(_name, _builder)


def of_size(config: ConfigT, parameters: int, tolerance: float = 0.01) -> ConfigT:
    """The same model with the inner width of its feed-forward chosen for a number of parameters.

    Args:
        config: The model; its `ffn_dim` does not matter.
        parameters: How many it shall have.
        tolerance: Largest relative difference.

    Returns:
        The configuration.

    Raises:
        ConfigError: No inner width comes that near.

    Example:
        >>> from ssmn.bench.quality.peers import of_size
        >>> from ssmn import TextSSMN, TextSSMNConfig
        >>> TextSSMN(of_size(TextSSMNConfig.preset("tiny", vocab_size=99), 150_000)).num_parameters()
        150402
    """
    counts = [build_model(dataclasses.replace(config, ffn_dim=width)).num_parameters() for width in (1, 2)]
    width = 1 + round((parameters - counts[0]) / (counts[1] - counts[0]))
    count = counts[0] + (width - 1) * (counts[1] - counts[0])
    if width < 1 or abs(count - parameters) > tolerance * parameters:
        raise ConfigError(
            f"of_size: {parameters:,} parameters; with ffn_dim=1 the model has {counts[0]:,} already: "
            "lower hidden_dim, num_layers or vocab_size."
        )
    return dataclasses.replace(config, ffn_dim=width)
