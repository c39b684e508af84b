"""The plastic output memory: a model's logits, corrected by what it got wrong so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssmn.config import OUTPUT_SWITCH, Plasticity
from ssmn.layers.checks import check_setting
from ssmn.layers.constant import touched, with_untouched
from ssmn.layers.gates import DEFAULT, setting
from ssmn.ops.common import state_dtype
from ssmn.ops.output import output_memory
from ssmn.state import OutputMemoryState

_KEY_EPS = 1e-12


class OutputMemory(nn.Module):
    """logits + M k, k = hidden / |hidden|; M learns from the errors of the predictions, without gradients or weights.

    How far the correction is followed is learned as well, from how it has done so far beside the plain logits.
    `ssmn.ops.output_memory` has the formula. In training the correction is a constant: gradients reach the logits
    that come in, and not the keys.

    Args:
        vocab_size: V.
        hidden_dim: D.
        eta: η ≥ 0, how far an error moves the logit of its token for the same hidden vector.
        decay: λ in [0, 1), the share of the memory that is lost per step.
        switch: Weight in [0, 1] that the plain and the corrected prediction share anew at every step.

    Example:
        >>> import torch, ssmn
        >>> memory = ssmn.layers.OutputMemory(vocab_size=7, hidden_dim=4)
        >>> tokens = torch.randint(7, (2, 5))
        >>> logits, state = memory(torch.zeros(2, 5, 7), torch.randn(2, 5, 4), tokens)
        >>> logits.shape, state.memory.shape
        (torch.Size([2, 5, 7]), torch.Size([2, 7, 4]))
    """

    def __init__(
        self, vocab_size: int, hidden_dim: int, eta: float = 2.0, decay: float = 0.0, switch: float = OUTPUT_SWITCH
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("vocab_size", vocab_size), ("hidden_dim", hidden_dim)):
            check_setting(owner, name, value, value >= 1, "at least 1")
        check_setting(owner, "eta", eta, eta >= 0, "0 or more")
        check_setting(owner, "decay", decay, 0 <= decay < 1, "a share in [0, 1) lost per step")
        check_setting(owner, "switch", switch, 0 <= switch <= 1, "a share in [0, 1]")
        self.vocab_size, self.hidden_dim, self.eta, self.decay = vocab_size, hidden_dim, eta, decay
        self.switch = switch

    def init_state(
        self, batch_size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> OutputMemoryState:
        """A fresh state for `batch_size` streams of a model of this dtype: all zeros."""
        return OutputMemoryState.fresh(batch_size, self.vocab_size, self.hidden_dim, state_dtype(dtype), device)

    def forward(
        self,
        logits: Tensor,
        hidden: Tensor,
        tokens: Tensor,
        state: OutputMemoryState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, OutputMemoryState]:
        """Corrects the next T steps' logits, and learns from what the steps before them got wrong.

        Args:
            logits: [B, T, V].
            hidden: [B, T, D], what the logits were made from.
            tokens: [B, T], what was read at each step.
            state: The memory so far; None = fresh.
            mask: [B, T] bool, True = open.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], time since the step before (1 by default).
            plasticity: `output_eta`, `output_decay` and `frozen` of it matter here.

        Returns:
            (corrected logits [B, T, V], state).

        Raises:
            ShapeError, DtypeError, RangeError, BackendError: An argument does not fit; the message names it.
        """
        asked, dtype = plasticity or DEFAULT, state_dtype(hidden.dtype)
        batch, time = tokens.shape
        streams = batch if cu_seqlens is None else len(cu_seqlens) - 1

        def strength(value: Any, name: str) -> Tensor:
            found = setting(0.0 if asked.frozen else value, name, hidden, cu_seqlens, streams)
            return found.expand(batch, time, 1)[..., 0]

        eta = strength(self.eta if asked.output_eta is None else asked.output_eta, "output_eta")
        decay = strength(self.decay if asked.output_decay is None else asked.output_decay, "output_decay")
        log_decay = torch.log1p(-decay)
        if elapsed is not None:
            log_decay = log_decay * elapsed.to(dtype)
        wide = hidden.detach().to(dtype)
        keys = wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _KEY_EPS)
        if mask is not None:
            tokens = torch.where(mask, tokens, 0)
        corrected, after = output_memory(
            logits.detach(), keys, tokens, eta=eta, log_decay=log_decay, switch=self.switch,
            mask=mask, reset=reset, cu_seqlens=cu_seqlens, initial_state=state,
        )  # fmt: skip
        if not torch.is_grad_enabled():
            return corrected, after
        if logits.requires_grad:
            corrected = logits + (corrected - logits.detach())
        if state is not None and state.memory.requires_grad:
            after = with_untouched(after, state, touched(batch, time, mask, reset, cu_seqlens, logits.device))
        return corrected, after
