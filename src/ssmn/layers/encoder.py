"""The semantic encoder: tokens to thought embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn.layers.checks import check_hidden, check_setting, check_state, check_streams
from ssmn.ops.common import state_dtype
from ssmn.ops.segments import shift_to_previous
from ssmn.state import EncoderState

CONTEXT = 4


class SemanticEncoder(nn.Module):
    """thought_t = e_t + W_2 (silu(W_1 c_t) ∘ W_3 c_t), c_t = the embeddings of the last four tokens.

    W_2 starts at zero, so a fresh encoder passes the embeddings through.

    Args:
        hidden_dim: D.

    Example:
        >>> import torch, ssmn
        >>> thought, state = ssmn.layers.SemanticEncoder(8)(torch.randn(1, 5, 8))
        >>> thought.shape, state.recent.shape
        (torch.Size([1, 5, 8]), torch.Size([1, 3, 8]))
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        check_setting(type(self).__name__, "hidden_dim", hidden_dim, hidden_dim >= 1, "at least 1")
        self.hidden_dim = hidden_dim
        self.gate = nn.Linear(CONTEXT * hidden_dim, hidden_dim, bias=False)
        self.up = nn.Linear(CONTEXT * hidden_dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, hidden_dim, bias=False)
        nn.init.zeros_(self.down.weight)

    def init_state(self, batch_size: int) -> EncoderState:
        """A fresh state for `batch_size` streams: all zeros."""
        weight = self.down.weight
        shape = (batch_size, CONTEXT - 1, self.hidden_dim)
        return EncoderState(torch.zeros(shape, dtype=state_dtype(weight.dtype), device=weight.device))

    def forward(
        self,
        embedding: Tensor,
        state: EncoderState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, EncoderState]:
        """Mixes.

        Args:
            embedding: [B, T, D].
            state: The last three tokens' embeddings; None = fresh.
            mask: [B, T] bool, True = open.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).

        Returns:
            (thought [B, T, D], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, embedding, self.hidden_dim, self.down.weight)
        streams = check_streams(owner, embedding, mask, reset, cu_seqlens)
        if state is None:
            state = self.init_state(streams)
        check_state(owner, state, EncoderState, {"recent": (streams, CONTEXT - 1, self.hidden_dim)})
        context, recent, values = [embedding], [], embedding
        for age in range(CONTEXT - 1):
            carried = state.recent[:, CONTEXT - 2 - age].to(embedding.dtype)
            values, latest = shift_to_previous(values, carried, mask, reset, cu_seqlens)
            context.append(values)
            recent.append(latest)
        mixed = torch.cat(context, -1)
        thought = embedding + self.down(functional.silu(self.gate(mixed)) * self.up(mixed))
        return thought, EncoderState(torch.stack(recent[::-1], 1).to(state.recent.dtype))
