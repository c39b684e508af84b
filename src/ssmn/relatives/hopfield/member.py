"""The Hopfield memory by itself: between two projections, called like every model here."""

from __future__ import annotations

from ssmn.relatives.base import Member
from ssmn.relatives.hopfield.memory import HopfieldMemory


class Hopfield(Member):
    """y = W_out hopfield(W_in x): stores every step and retrieves among the last ones (Ramsauer et al., 2020).

    Args:
        input_dim: Features per step that come in.
        hidden_dim: D, the width of the memory.
        output_dim: Features per step that go out.
        num_heads: H; must divide D.
        memory_slots: N, patterns in the state.
        update_steps: Softmax updates of each retrieval.
        beta: Where the inverse temperatures start; None = √(D / H).

    Raises:
        ConfigError: A setting does not fit; the message names it.

    Example:
        >>> import torch
        >>> from ssmn.relatives import Hopfield
        >>> model = Hopfield(input_dim=3, hidden_dim=16, output_dim=2, num_heads=2, memory_slots=10)
        >>> y, state = model(torch.randn(1, 7, 3))
        >>> y, state = model.step(torch.randn(1, 3), state)
        >>> y.shape, state.position, model.state_size()
        (torch.Size([1, 2]), tensor([8]), 337)
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        num_heads: int = 1,
        memory_slots: int = 128,
        update_steps: int = 1,
        beta: float | None = None,
    ) -> None:
        mixer = HopfieldMemory(hidden_dim, num_heads, slots=memory_slots, update_steps=update_steps, beta=beta)
        super().__init__(mixer, input_dim, hidden_dim, output_dim)
