"""Static and plastic blocks, and the table of block kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ssmn.config import Plasticity, StackConfig, register_layer_type
from ssmn.layers.attention import SlidingWindowAttention
from ssmn.layers.memory import SynapticMemory
from ssmn.state import State


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) ∘ W_up x) (Shazeer, 2020)."""

    def __init__(self, hidden_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, ffn_dim, bias=False)
        self.up = nn.Linear(hidden_dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + feed-forward(norm(x)).

    `kind` is the name in `layer_types`; a plastic block's mixer takes `elapsed` and `plasticity` too.
    """

    def __init__(self, kind: str, config: StackConfig, mixer: nn.Module) -> None:
        super().__init__()
        assert config.ffn_dim is not None
        self.kind = kind
        self.mixer_norm = nn.RMSNorm(config.hidden_dim, eps=config.norm_eps)
        self.mixer: Any = mixer
        self.ffn_norm = nn.RMSNorm(config.hidden_dim, eps=config.norm_eps)
        self.ffn = SwiGLU(config.hidden_dim, config.ffn_dim)

    @property
    def plastic(self) -> bool:
        """Whether the block learns at inference."""
        return self.kind != "static"

    def init_state(self, batch_size: int) -> State:
        """The mixer's fresh state for `batch_size` streams."""
        return self.mixer.init_state(batch_size)

    def forward(
        self,
        x: Tensor,
        state: State,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, State]:
        """[B, T, D] and the mixer's state to the same."""
        learning = {"elapsed": elapsed, "plasticity": plasticity} if self.plastic else {}
        mixed, state = self.mixer(self.mixer_norm(x), state, mask=mask, reset=reset, cu_seqlens=cu_seqlens, **learning)
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x)), state


def _static(config: StackConfig) -> nn.Module:
    return SlidingWindowAttention(
        config.hidden_dim,
        config.num_heads,
        config.window_size,
        num_kv_heads=config.num_kv_heads,
        rope_theta=config.rope_theta,
        sinks=config.attention_sinks,
    )


def memory_settings(config: StackConfig) -> dict[str, Any]:
    """The settings of a model's synaptic memories but for their heads."""
    names = (
        "update_rule", "pairing", "plasticity_eta", "decay_lambda", "write_threshold", "chat_rounds", "initialisation",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names}


def _plastic(config: StackConfig) -> nn.Module:
    assert config.memory_heads is not None
    return SynapticMemory(config.hidden_dim, config.memory_heads, **memory_settings(config))


_MIXERS: dict[str, Callable[[StackConfig], nn.Module]] = {"static": _static, "plastic": _plastic}


def register_mixer(name: str, build: Callable[[StackConfig], nn.Module]) -> None:
    """Adds a block kind: `build(config)` returns a module with `init_state(batch)` and `(y, state)` forward."""
    register_layer_type(name)
    _MIXERS[name] = build


def build_block(kind: str, config: StackConfig) -> Block:
    """The block that `layer_types` names."""
    return Block(kind, config, _MIXERS[kind](config))
