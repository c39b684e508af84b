"""What torch offers for the same work, written to be as fast as torch allows.

All mixers take heads before time, [B, H, T, D], dense: the layout that torch likes best.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ATTENTION_BLOCK = 256
RETENTION_CHUNK = 128


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's fused causal attention."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, block: int = ATTENTION_BLOCK) -> Tensor:
    """Attention over the last `window` positions by blocks of queries: torch's attention with a mask of the band.

    Args:
        q: [B, H, T, D].
        k: [B, H, T, D].
        v: [B, H, T, D].
        window: Positions that a query sees, its own included.
        block: Queries of a block; each block multiplies with `block + window − 1` keys.

    Returns:
        [B, H, T, D].
    """
    time, past = q.shape[2], window - 1
    block = min(block, time)
    pad = -time % block
    # The keys of block i are those from i · block − past on: an overlapping view of the padded keys.
    keys, values = (functional.pad(x, (0, 0, past, pad)).unfold(2, block + past, block).mT for x in (k, v))
    queries = functional.pad(q, (0, 0, 0, pad)).unflatten(2, (-1, block))
    row = torch.arange(block)[:, None]
    column = torch.arange(block + past)[None]
    band = (column >= row) & (column <= row + past)
    blocks = queries.shape[2]
    first = torch.arange(blocks)[:, None, None] * block + column - past
    mask = band & (first >= 0)  # [blocks, block, block + past]
    shape = (-1, q.shape[1])
    # Blocks join the batch, so that the kernel sees its usual four axes.
    joined = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
    mask = mask.repeat(q.shape[0], 1, 1)[:, None]
    out = functional.scaled_dot_product_attention(*joined, attn_mask=mask)
    return (
        out.unflatten(0, (q.shape[0], blocks))
        .transpose(1, 2)
        .reshape(q.shape[0], shape[1], -1, v.shape[-1])[:, :, :time]
    )


def retention(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, log_decay: Tensor, chunk: int = RETENTION_CHUNK) -> Tensor:
    """The rule `hebbian`, S_t = a_t S_{t−1} + η_t k_t v_tᵀ and o_t = S_tᵀ q_t, in chunks of matrix products.

    With G the running sum of log a within a chunk and Γ_ij = exp(G_i − G_j) for j ≤ i: O = (Q Kᵀ ∘ Γ) (η V) +
    exp(G) Q S, and S goes on as exp(G_C) S + (exp(G_C − G) K)ᵀ (η V) (the chunk form of retention and of linear
    attention with decay). Products are in the dtype of the inputs, decays and the memory in float32.

    Args:
        q: [B, H, T, K].
        k: [B, H, T, K].
        v: [B, H, T, V].
        eta: [B, H, T].
        log_decay: [B, H, T], per step and head.
        chunk: Steps of a chunk.

    Returns:
        [B, H, T, V].
    """
    time, dtype = q.shape[2], v.dtype
    chunk = min(chunk, time)
    pad = -time % chunk
    queries, keys, values = (functional.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    gains, logs = (functional.pad(x.float(), (0, pad)).unflatten(2, (-1, chunk)) for x in (eta, log_decay))
    total = logs.cumsum(-1)
    ahead = torch.ones(chunk, chunk, dtype=torch.bool).triu(1)
    gamma = (total[..., :, None] - total[..., None, :]).masked_fill(ahead, -torch.inf).exp().to(dtype)
    written = gains[..., None].to(dtype) * values
    near = (gamma * (queries @ keys.mT)) @ written
    last = total[..., -1:]
    stored = ((last - total).exp()[..., None].to(dtype) * keys).mT @ written  # [B, H, chunks, K, V]
    keep = last.exp()[..., None]
    state, states = torch.zeros_like(stored[:, :, 0], dtype=torch.float32), []
    for gain, new in zip(keep.unbind(2), stored.unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(new.float(), gain, state)
    far = (total.exp()[..., None].to(dtype) * queries) @ torch.stack(states, 2).to(dtype)
    return (near + far).flatten(2, 3)[:, :, :time]


class Transformer(nn.Module):
    """A causal Transformer over tokens: pre-norm, rotary positions, SwiGLU feed-forward, tied embeddings.

    The stack of `ssmn.TextSSMN` with torch's fused full attention in place of every mixer.

    Args:
        vocab_size: Tokens.
        width: D.
        layers: Blocks.
        heads: Must divide the width.
        ffn_dim: Inner width of the feed-forward.
        rope_theta: Base of the rotary angles.
    """

    def __init__(
        self, vocab_size: int, width: int, layers: int, heads: int, ffn_dim: int, rope_theta: float = 10_000.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.ModuleList(_Block(width, heads, ffn_dim) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.frequencies = width // heads // 2
        self.rope_theta = rope_theta

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, vocab_size] for tokens [B, T]."""
        x = self.embedding(input_ids)
        step = torch.arange(input_ids.shape[1], dtype=torch.float64)[:, None]
        angles = step * self.rope_theta ** (-torch.arange(self.frequencies, dtype=torch.float64) / self.frequencies)
        rotation = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, rotation)
        return functional.linear(self.norm(x), self.embedding.weight)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixer_norm, self.ffn_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.joint = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.gate_and_up = nn.Linear(width, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        joint = self.joint(self.mixer_norm(x)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = joint.chunk(3, 1)
        seen = full_attention(_rotate(q, *rotation), _rotate(k, *rotation), v)
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        gate, up = self.gate_and_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
