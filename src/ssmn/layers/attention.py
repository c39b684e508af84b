"""Sliding-window attention: the eyes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssmn import ops
from ssmn.layers.checks import check_counts, check_hidden, check_setting, check_state, check_streams
from ssmn.ops.common import state_dtype
from ssmn.state import WindowState


class SlidingWindowAttention(nn.Module):
    """Multi-head attention over the last W open steps, with rotary positions and grouped key/value heads.

    Args:
        hidden_dim: D.
        num_heads: Query heads; must divide D.
        window_size: W, the present step included.
        num_kv_heads: Key/value heads; None = `num_heads`.
        rope_theta: Base of the rotary angles, or None.
        sinks: Adds one learned logit per query head to the softmax denominator.

    Example:
        >>> import torch, ssmn
        >>> y, state = ssmn.layers.SlidingWindowAttention(16, 2, 4)(torch.randn(1, 6, 16))
        >>> y.shape, state.keys.shape
        (torch.Size([1, 6, 16]), torch.Size([1, 3, 2, 8]))
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        window_size: int = 512,
        *,
        num_kv_heads: int | None = None,
        rope_theta: float | None = 10_000.0,
        sinks: bool = False,
    ) -> None:
        super().__init__()
        owner, kv_heads = type(self).__name__, num_heads if num_kv_heads is None else num_kv_heads
        check_counts(owner, hidden_dim=hidden_dim, num_heads=num_heads, window_size=window_size)
        divides = hidden_dim % num_heads == 0
        check_setting(owner, "num_heads", num_heads, divides, f"a divisor of hidden_dim={hidden_dim}")
        shares = kv_heads >= 1 and num_heads % kv_heads == 0
        check_setting(owner, "num_kv_heads", num_kv_heads, shares, f"a divisor of num_heads={num_heads}")
        rotates = rope_theta is None or (rope_theta > 0 and hidden_dim // num_heads % 2 == 0)
        check_setting(owner, "rope_theta", rope_theta, rotates, "a positive base with an even head width, or None")
        self.num_heads, self.num_kv_heads = num_heads, kv_heads
        self.head_dim, self.window_size, self.rope_theta = hidden_dim // num_heads, window_size, rope_theta
        self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.key = nn.Linear(hidden_dim, self.num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(hidden_dim, self.num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if sinks else None

    def init_state(self, batch_size: int) -> WindowState:
        """A fresh state for `batch_size` streams: all zeros."""
        weight = self.query.weight
        ring = torch.zeros(
            batch_size, self.window_size - 1, self.num_kv_heads, self.head_dim,
            dtype=state_dtype(weight.dtype), device=weight.device,
        )  # fmt: skip
        return WindowState(ring, ring.clone(), torch.zeros(batch_size, dtype=torch.int64, device=weight.device))

    def forward(
        self,
        hidden: Tensor,
        state: WindowState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, WindowState]:
        """Attends.

        Args:
            hidden: [B, T, D].
            state: Ring of the last W − 1 keys and values; None = fresh.
            mask: [B, T] bool, True = open.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).

        Returns:
            (y [B, T, D], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, hidden, self.query.in_features, self.query.weight)
        streams = check_streams(owner, hidden, mask, reset, cu_seqlens)
        if state is not None:
            ring = (streams, self.window_size - 1, self.num_kv_heads, self.head_dim)
            check_state(owner, state, WindowState, {"keys": ring, "values": ring, "position": (streams,)})
        query = self.query(hidden).unflatten(-1, (self.num_heads, self.head_dim))
        key = self.key(hidden).unflatten(-1, (self.num_kv_heads, self.head_dim))
        value = self.value(hidden).unflatten(-1, (self.num_kv_heads, self.head_dim))
        seen, final = ops.window_attention(
            query, key, value,
            window_size=self.window_size, rope_theta=self.rope_theta, sinks=self.sinks,
            mask=mask, reset=reset, cu_seqlens=cu_seqlens, initial_state=state, output_final_state=True,
        )  # fmt: skip
        assert final is not None
        return self.output(seen.flatten(2)), final
