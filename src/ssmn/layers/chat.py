"""Internal recurrent chat: the memory is asked again, with what it answered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn.config import THOUGHT_EPS


class InternalRecurrentChat(nn.Module):
    """R further reads of one written memory, which answer questions of R + 1 hops.

    h⁽⁰⁾ = h;  h⁽ʳ⁺¹⁾ = ρ_r h + α_r RMSNorm(W_o o⁽ʳ⁾);  o⁽ʳ⁺¹⁾ = read(h⁽ʳ⁺¹⁾); the reads are mixed by
    (R + 1) · softmax(W_m h). Every round reads the same memory, and no read is ever written back. A call may
    ask for fewer rounds: the first r, mixed by (r + 1) · softmax of the first r + 1 rows of W_m h.

    Args:
        hidden_dim: D.
        rounds: R ≥ 1.
        eps: Epsilon of the norm; a small one would blow up what a faded read left.
    """

    def __init__(self, hidden_dim: int, rounds: int, eps: float = THOUGHT_EPS) -> None:
        super().__init__()
        self.rounds, self.eps = rounds, eps
        self.keep = nn.Parameter(torch.full((rounds,), 0.5))
        self.add = nn.Parameter(torch.ones(rounds))
        self.mix = nn.Linear(hidden_dim, rounds + 1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(
        self,
        hidden: Tensor,
        read: Callable[[Tensor], Tensor],
        output: Callable[[Tensor], Tensor],
        rounds: int | None = None,
    ) -> Tensor:
        """Reads, re-asks and mixes.

        Args:
            hidden: [B, T, D].
            read: [B, T, D] to the memory's normalised answer [B, T, D].
            output: The projection W_o back to the width of `hidden`.
            rounds: 0 to R; None = R.

        Returns:
            [B, T, D], the mixed answer, before W_o.
        """
        rounds = self.rounds if rounds is None else rounds
        weights = torch.softmax(self.mix(hidden)[..., : rounds + 1], -1) * (rounds + 1)
        answer = read(hidden)
        mixed = weights[..., :1] * answer
        for number in range(rounds):
            thought = functional.rms_norm(output(answer), hidden.shape[-1:], eps=self.eps)
            answer = read(self.keep[number] * hidden + self.add[number] * thought)
            mixed = mixed + weights[..., number + 1 : number + 2] * answer
        return mixed
