"""Where a read comes from: the implicit attention matrix of a synaptic memory, exactly, for a piece of a stream.

A read is linear in the values that were written and in the memory before the piece. With Γ_tj the decay between the
steps j ≤ t, w and e the strengths of write and erasure, and G the running sum of log a (Yang et al., 2024, has the
chunkwise form of the delta rule; the rules differ in e alone):

    M = I + tril(diag(e) (Γ ∘ K Kᵀ), −1)
    A = (Γ ∘ Q Kᵀ) M⁻¹ diag(w)                                   C = exp(G) Q − (Γ ∘ Q Kᵀ) M⁻¹ diag(e) exp(G) K
    O = A V + C S_0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmn.errors import RangeError, ShapeError
from ssmn.layers.memory import SynapticMemory
from ssmn.models.stack import Stack
from ssmn.ops.common import state_dtype
from ssmn.probes.watch import MemoryCall, watch_memories
from ssmn.state import PlasticState, StreamState

LONGEST = 4096
"""Steps whose matrix is computed at once at most; `trace` goes on from there."""


@dataclass(frozen=True, eq=False)
class Read:
    """One read of the memory at every step, taken apart.

    `weights` answers "what would be missing without this write?", erasures by later writes included: A_tj v_j is
    exactly what the read loses if w_j is set to 0 while e_j and the decay stay. `stored` takes the memory as it lies
    there, a sum of outer products Γ_tj k_j u_jᵀ: what the step j itself added, u_j = w_j v_j − e_j a_j S_{j−1}ᵀ k_j,
    its corrections of older writes included. Both sum to the read; with the rule `hebbian` they are the same.
    """

    weights: Tensor
    """A [H, T, T]: the coefficient of v_j in the read at t; 0 above the diagonal."""
    carried: Tensor
    """[H, T, V]: the part of the read that comes from the memory before the piece, C S_0."""
    carried_query: Tensor
    """C [H, T, K]: what that memory is in effect asked with."""
    stored: Tensor
    """Γ ∘ Q Kᵀ [H, T, T]: the coefficient of u_j in the read at t."""
    read: Tensor
    """[H, T, V]: what was read, S_tᵀ q_t, before its normalisation."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """The reads of one layer over a piece, taken apart: Σ_j weights[h, t, j] values[h, j] + carried[h, t] = read[h, t].

    `weights`, `carried` and the like are those of the first read; `reads` has one for each round of internal chat too.
    """

    layer: int
    """Number of the layer."""
    values: Tensor
    """v [H, T, V]."""
    updates: Tensor
    """u [H, T, V], what each step added along its key: the values as the rule corrected them."""
    importance: Tensor
    """[H, T] in [0, 1]: how strongly each step asks to be written."""
    written: Tensor
    """[H, T] bool: whether it was."""
    memory: Tensor
    """S_0 [H, K, V], the memory before the piece."""
    reads: tuple[Read, ...]
    """The first read, then one for each round of internal chat."""

    @property
    def weights(self) -> Tensor:
        """A [H, T, T] of the first read: how much of the value of write j is in the read at t."""
        return self.reads[0].weights

    @property
    def carried(self) -> Tensor:
        """[H, T, V]: the part of the first read that comes from the memory before the piece."""
        return self.reads[0].carried

    @property
    def read(self) -> Tensor:
        """[H, T, V]: the first read."""
        return self.reads[0].read

    def contributions(self) -> Tensor:
        """[T, T]: length of A_tj v_j over all heads together, the sign that of the strongest head."""
        return signed_length(self.weights * self.values.norm(dim=-1).unsqueeze(1))


def signed_length(parts: Tensor) -> Tensor:
    """[H, ..], signed lengths per head, to [..]: the length over all heads, with the sign of the strongest."""
    strongest = parts.gather(0, parts.abs().argmax(0, keepdim=True))[0]
    return parts.square().sum(0).sqrt() * strongest.sign()


class PieceMap:
    """How the reads of a piece, and the memory after it, depend on its writes and on the memory before it.

    Args:
        call: What was written; row `row` of it, not packed.
        row: The row.
        start: The first step of the piece.
        stop: One past the last; None = the call's end.
    """

    def __init__(self, call: MemoryCall, row: int = 0, start: int = 0, stop: int | None = None) -> None:
        # In float64: what sums over a whole piece must still agree with the read to rounding.
        steps = slice(start, stop)
        self.keys = call.keys[row, steps].double().transpose(0, 1)
        self.write, self.erase, log_keep = (x[row, steps].double().T for x in call.coefficients())
        time, device = self.keys.shape[1], self.keys.device
        total = log_keep.cumsum(-1)
        ahead = torch.ones(time, time, dtype=torch.bool, device=device).triu(1)
        since_start = torch.ones(time, dtype=torch.float64, device=device)
        if call.reset is not None:
            fresh = call.reset[row, steps].double().cumsum(0)
            ahead = ahead | (fresh.unsqueeze(1) != fresh)
            since_start = (fresh == 0).double()
        exponents = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(ahead, -torch.inf)
        self.decay = exponents.exp()
        """Γ [H, T, T]."""
        self.growth = total.exp() * since_start
        """[H, T]: what the decay leaves of the memory before the piece."""
        self.seen_keys = self.keys * self.growth.unsqueeze(-1)
        self.system = (self.erase.unsqueeze(-1) * self.decay * (self.keys @ self.keys.mT)).tril(-1)

    def _through(self, rows: Tensor) -> Tensor:
        """What [H, .., T] is after M⁻¹ from the right."""
        return torch.linalg.solve_triangular(self.system, rows, upper=False, left=False, unitriangular=True)

    def ask(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [H, T, K], one per step, to (A [H, T, T], C [H, T, K], Γ ∘ Q Kᵀ [H, T, T])."""
        stored = self.decay * (queries @ self.keys.mT)
        solved = self._through(stored)
        carried = self.growth.unsqueeze(-1) * queries - (solved * self.erase.unsqueeze(-2)) @ self.seen_keys
        return solved * self.write.unsqueeze(-2), carried, stored

    def end(self) -> tuple[Tensor, Tensor]:
        """The memory after the piece is Σ_j p_j v_jᵀ + P S_0: (p [H, T, K], P [H, K, K])."""
        heads, time, width = self.keys.shape
        identity = torch.eye(width, dtype=self.keys.dtype, device=self.keys.device).expand(heads, -1, -1)
        if time == 0:
            return self.keys, identity
        solved = self._through((self.keys * self.decay[:, -1].unsqueeze(-1)).mT)
        kept = self.growth[:, -1, None, None] * identity - (solved * self.erase.unsqueeze(-2)) @ self.seen_keys
        return (solved * self.write.unsqueeze(-2)).mT, kept

    def updates(self, values: Tensor, memory: Tensor) -> Tensor:
        """What the steps add along their keys, u [H, T, V], of values [H, T, V] and the memory before [H, K, V]."""
        right = self.write.unsqueeze(-1) * values - self.erase.unsqueeze(-1) * (self.seen_keys @ memory)
        return torch.linalg.solve_triangular(self.system, right, upper=False, unitriangular=True)


@torch.no_grad()
def attribution_matrix(
    model: Stack | SynapticMemory,
    x: Tensor,
    *,
    layer: int | None = None,
    state: StreamState | PlasticState | None = None,
    **options: Any,
) -> Attribution:
    """How much every write of a piece is in every read of it: exact, for every rule, per head.

    Args:
        model: One of our models, or a `SynapticMemory` by itself.
        x: What it reads: one row, [1, T, ...], of at most 4,096 steps.
        layer: Number of the layer; None = the first with a synaptic memory.
        state: The stream before the piece; None = fresh. It stays as it is.
        **options: The model's own (`plasticity`, `elapsed`, `mask`, `reset`, ...), which refuses unknown ones.

    Returns:
        The matrix, and what it is about, in the dtype of the state.

    Raises:
        ShapeError: `x` has more than one row.
        RangeError: The piece is too long, it is packed, or the layer has no synaptic memory.
        ConfigError: The model has no synaptic memory.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import attribution_matrix
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> found = attribution_matrix(ssmn.TextSSMN(config), torch.randint(16, (1, 9)))
        >>> found.layer, found.weights.shape
        (1, torch.Size([1, 9, 9]))
        >>> torch.allclose(found.weights @ found.values + found.carried, found.read, atol=1e-5)
        True
    """
    check_piece("attribution_matrix", x, options)
    if x.shape[1] > LONGEST:
        raise RangeError(
            f"attribution_matrix: x has {x.shape[1]:,} steps; wanted at most {LONGEST:,}, whose matrix fits into "
            "memory; for longer streams use ssmn.probes.trace."
        )
    with watch_memories(model, None if layer is None else [layer]) as seen:
        model(x, state, **options)
    number = next(iter(seen))
    call = seen[number][-1]
    dtype, piece = state_dtype(call.values.dtype), PieceMap(call)
    values, memory = call.values[0].double().transpose(0, 1), call.initial_state[0].double()
    reads = []
    for queries in call.queries:
        weights, asked, stored = piece.ask(queries[0].double().transpose(0, 1))
        carried = asked @ memory
        parts = (weights, carried, asked, stored, weights @ values + carried)
        reads.append(Read(*(part.to(dtype) for part in parts)))
    return Attribution(
        number, values.to(dtype), piece.updates(values, memory).to(dtype),
        call.importance[0].T, call.written[0].T, call.initial_state[0], tuple(reads),
    )  # fmt: skip


def check_piece(owner: str, x: object, options: dict[str, Any]) -> None:
    """`x` must be one row that is not packed."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] != 1:
        came = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{owner}: x is {came}; wanted one row, [1, T, ...]: take x[row : row + 1].")
    if options.get("cu_seqlens") is not None:
        raise RangeError(
            f"{owner}: cu_seqlens is given; wanted one stream at a time, since each segment has a memory of "
            "its own: cut x at the boundaries, with state.select([segment]) for each."
        )
