"""Synaptic memory: the brain. Fast weights that are written and read in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn import ops
from ssmn.config import READ_FLOOR, Initialisation, Pairing, Plasticity, UpdateRule, default_decay_lambda
from ssmn.errors import RangeError
from ssmn.layers.chat import InternalRecurrentChat
from ssmn.layers.checks import check_counts, check_hidden, check_learning, check_setting, check_state, check_streams
from ssmn.layers.gates import DEFAULT, DecayGate, ImportanceGate, SparseWriting, setting
from ssmn.ops.common import state_dtype
from ssmn.ops.segments import shift_to_previous
from ssmn.state import PlasticState

UNIT_EPS = 1e-12
"""Keeps the length of a key or query of zeros finite."""


class SynapticMemory(nn.Module):
    """A memory S [H, K, V] that stores "what followed this" and is asked "what followed things like now".

    k_t = l2(W_k h_{t−1}), q_t = l2(W_q h_t), v_t = W_v h_t; S_t by `ssmn.ops.synaptic_memory`;
    y_t = W_o (norm(S_tᵀ q_t) · silu(W_g h_t + 1)), norm(o) = o / √(mean o² + (η/5)²), η the base
    plasticity of the call. The pairing of h_t with h_{t−1} is the seed's
    ΔW_f = η (h_t ⊗ h_{t−1}) − λ W_f, with S the transpose of W_f; the rules are those of linear attention
    with decay (Katharopoulos et al., 2020) and Gated DeltaNet (Yang et al., 2024).

    Args:
        hidden_dim: D; K = V = D / heads.
        heads: H; must divide D.
        update_rule: `hebbian`, `delta` or `erase`.
        pairing: `previous`, or `same` for ablation.
        plasticity_eta: Base η in [0, 1].
        decay_lambda: Base λ in [0, 1) per head; None = 1e-4 for one head, else log-spaced 3e-2 to 1e-5.
        write_threshold: Steps whose importance is below this are not written; 0 = off.
        chat_rounds: R, rounds of internal recurrent chat.
        initialisation: `associative` (W_k = W_q and W_o = W_vᵀ, orthogonal: what is read points back at what
            was stored), or `standard` for ablation.

    Example:
        >>> import torch, ssmn
        >>> memory = ssmn.layers.SynapticMemory(16)
        >>> y, state = memory(torch.randn(2, 7, 16))
        >>> y, state = memory(torch.randn(2, 1, 16), state, plasticity=ssmn.LONG_TERM)
        >>> y.shape, state.memory.shape
        (torch.Size([2, 1, 16]), torch.Size([2, 1, 16, 16]))
    """

    def __init__(
        self,
        hidden_dim: int,
        heads: int = 1,
        *,
        update_rule: UpdateRule = "delta",
        pairing: Pairing = "previous",
        plasticity_eta: float = 0.5,
        decay_lambda: tuple[float, ...] | None = None,
        write_threshold: float = 0.0,
        chat_rounds: int = 0,
        initialisation: Initialisation = "associative",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_counts(owner, hidden_dim=hidden_dim, heads=heads)
        decay = default_decay_lambda(heads) if decay_lambda is None else decay_lambda
        for name, value, choices in (
            ("update_rule", update_rule, get_args(UpdateRule)),
            ("pairing", pairing, get_args(Pairing)),
            ("initialisation", initialisation, get_args(Initialisation)),
        ):
            check_setting(owner, name, value, value in choices, f"one of {', '.join(choices)}")
        check_setting(owner, "heads", heads, hidden_dim % heads == 0, f"a divisor of hidden_dim={hidden_dim}")
        for name, value in (("plasticity_eta", plasticity_eta), ("write_threshold", write_threshold)):
            check_setting(owner, name, value, 0.0 <= value <= 1.0, "a number in [0, 1]")
        shares = isinstance(decay, tuple) and len(decay) == heads and all(0.0 <= share < 1.0 for share in decay)
        check_setting(owner, "decay_lambda", decay_lambda, shares, f"a tuple of heads={heads} shares in [0, 1)")
        check_setting(owner, "chat_rounds", chat_rounds, chat_rounds >= 0, "0 or more")
        self.hidden_dim, self.heads, self.head_dim = hidden_dim, heads, hidden_dim // heads
        self.update_rule: UpdateRule = update_rule
        self.pairing, self.write_threshold = pairing, write_threshold
        self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.value = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.read_norm = nn.Parameter(torch.ones(self.head_dim))
        self.importance = ImportanceGate(hidden_dim, heads, plasticity_eta)
        self.erasure = ImportanceGate(hidden_dim, heads) if update_rule == "erase" else None
        self.decay = DecayGate(hidden_dim, decay)
        self.chat = InternalRecurrentChat(hidden_dim, chat_rounds) if chat_rounds else None
        self.sparse: SparseWriting | None = None  # put in by the training that wants few writes
        self.watch: Callable[[Tensor, Tensor, dict[str, Any]], None] | None = None
        """Put in by `ssmn.probes` while it looks on: called with k, v and the options that the operation is given."""
        nn.init.ones_(self.gate.bias)
        if initialisation == "associative":
            nn.init.orthogonal_(self.query.weight)
            nn.init.orthogonal_(self.value.weight)
            with torch.no_grad():
                self.key.weight.copy_(self.query.weight)
                self.output.weight.copy_(self.value.weight.T)

    def init_state(self, batch_size: int) -> PlasticState:
        """A fresh state for `batch_size` streams: all zeros."""
        weight = self.query.weight
        dtype = state_dtype(weight.dtype)
        memory = torch.zeros(batch_size, self.heads, self.head_dim, self.head_dim, dtype=dtype, device=weight.device)
        return PlasticState(memory, torch.zeros(batch_size, self.hidden_dim, dtype=dtype, device=weight.device))

    def forward(
        self,
        hidden: Tensor,
        state: PlasticState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, PlasticState]:
        """Writes and reads.

        Args:
            hidden: [B, T, D], normalised hidden vectors.
            state: Memory and previous hidden vector; None = fresh.
            mask: [B, T] bool, True = open.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], time since the step before (≥ 0, 1 by default); multiplies the decay.
            plasticity: How strongly to learn and forget in this call; None = as trained.

        Returns:
            (y [B, T, D], state). At a closed step y is a read without a write.

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, hidden, self.hidden_dim, self.query.weight)
        streams = check_streams(owner, hidden, mask, reset, cu_seqlens)
        check_learning(owner, hidden, elapsed, plasticity)
        if state is None:
            state = self.init_state(streams)
        shapes = {"memory": (streams, self.heads, self.head_dim, self.head_dim), "previous": (streams, self.hidden_dim)}
        check_state(owner, state, PlasticState, shapes)
        plasticity = plasticity or DEFAULT
        self._check_rounds(owner, plasticity)
        before = state.previous.to(hidden.dtype)
        previous, latest = shift_to_previous(hidden, before, mask, reset, cu_seqlens)
        paired = previous if self.pairing == "previous" else hidden
        eta, log_decay, erase, opened, strength = self._gates(
            hidden, previous, mask, elapsed, plasticity, cu_seqlens, streams
        )
        floor = (READ_FLOOR * strength).square() + UNIT_EPS
        key, value = unit(self._heads(self.key(paired))), self._heads(self.value(hidden))
        options: dict[str, Any] = {
            "eta": eta,
            "log_decay": log_decay,
            "erase": erase,
            "rule": self.update_rule,
            "mask": opened,
            "reset": reset,
            "cu_seqlens": cu_seqlens,
            "initial_state": state.memory,
        }
        if self.watch is not None:
            self.watch(key, value, options)

        def ask(question: Tensor) -> Tensor:
            return unit(self._heads(self.query(question)))

        def normalised(answer: Tensor) -> Tensor:
            answer = answer.to(memory.dtype)
            size = torch.rsqrt(answer.square().mean(-1, keepdim=True) + floor)
            return (answer * size).to(hidden.dtype).mul(self.read_norm).flatten(2)

        if self.chat is None:
            answer, final = ops.synaptic_memory(ask(hidden), key, value, output_final_state=True, **options)
            assert final is not None
            memory = final
            answer = normalised(answer)
        else:
            trace, memory = ops.memory_write(key, value, **options)
            answer = self.chat(
                hidden,
                lambda question: normalised(ops.memory_read(ask(question), trace)),
                self.output,
                plasticity.chat_rounds,
            )
        y = self.output(answer * functional.silu(self.gate(hidden)))
        return y, PlasticState(memory, latest.to(state.previous.dtype))

    def _check_rounds(self, owner: str, plasticity: Plasticity) -> None:
        most = 0 if self.chat is None else self.chat.rounds
        if plasticity.chat_rounds is not None and plasticity.chat_rounds > most:
            raise RangeError(
                f"{owner}: plasticity.chat_rounds={plasticity.chat_rounds}; wanted at most the {most} that the model "
                f"was built with (chat_rounds in its configuration)."
            )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    def _gates(
        self,
        hidden: Tensor,
        previous: Tensor,
        mask: Tensor | None,
        elapsed: Tensor | None,
        plasticity: Plasticity,
        cu_seqlens: Tensor | None,
        streams: int,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """(η, log(1 − λ), erasure or None, open steps or None: all [B, T, H]; base η: one or [.., .., 1, 1])."""

        def chosen(name: str) -> Tensor | None:
            value = getattr(plasticity, name)
            return None if value is None else setting(value, name, hidden, cu_seqlens, streams)

        swing = self.importance(hidden, previous)
        importance = (2 * self.importance.plasticity_eta * swing).clamp(max=1.0)
        base = chosen("plasticity_eta")
        eta = importance if base is None else (2 * base * swing).clamp(max=1.0)
        scale = chosen("eta_scale")
        assert scale is not None
        eta = (scale * eta).clamp(max=1.0)
        strength = (scale * (self.importance.plasticity_eta if base is None else base)).clamp(max=0.5)
        if strength.dim():
            strength = strength.unsqueeze(-1)

        log_decay = self.decay(hidden, chosen("decay_lambda")) * chosen("decay_scale")
        if elapsed is not None:
            log_decay = log_decay * elapsed.to(log_decay.dtype).unsqueeze(-1)

        erase = None if self.erasure is None else self.erasure(hidden, previous)
        opened = None if mask is None else mask.unsqueeze(-1).expand_as(eta)
        threshold = chosen("write_threshold")
        if self.sparse is not None and self.training:
            gate = self.sparse(importance, opened)
            eta, log_decay, erase = eta * gate, log_decay * gate, None if erase is None else erase * gate
        elif threshold is not None or self.write_threshold > 0:
            important = importance >= (self.write_threshold if threshold is None else threshold)
            opened = important if opened is None else opened & important
        if plasticity.frozen:
            opened = torch.zeros_like(eta, dtype=torch.bool)
        return eta, log_decay, erase, opened, strength


def unit(x: Tensor) -> Tensor:
    """Last axis scaled to norm 1 in the state dtype: x · rsqrt(Σ x² + 1e-12)."""
    wide = x.to(state_dtype(x.dtype))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + UNIT_EPS)).to(x.dtype)
