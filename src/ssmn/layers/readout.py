"""The plastic read-out: a linear layer beside a model's output that learns from each error, without gradients."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn import ops
from ssmn.config import LEAST_FORGET, Plasticity
from ssmn.errors import StateError
from ssmn.layers.checks import check_hidden, check_learning, check_setting, check_state, check_streams
from ssmn.layers.constant import touched, with_untouched
from ssmn.ops.common import check_tensor, state_dtype
from ssmn.ops.segments import Packing, shift_to_previous
from ssmn.state import ReadoutState

ReadoutRule = Literal["delta", "rls"]

_NOISE = 1e-6
"""Ridge as a share of the whole evidence, above what rounding the sums to float32 leaves."""

_SOLVED_AT_ONCE = 1 << 22
"""Numbers of the systems that are solved together."""


class PlasticReadout(nn.Module):
    """corrected = output + Rᵀ φ, φ = [f ; 1] / √2 of some features f; R learns from what the step before got wrong.

    With φ' and output' of the last open step, and its truth y, which arrives with this one, e = y − output':

        delta   R ← a R + η φ' (e − a Rᵀφ')ᵀ / |φ'|²     normalised LMS (Widrow & Hoff, 1960), the memory's own rule
        rls     A ← a A + φ' φ'ᵀ,  b ← a b + φ' eᵀ,  R = (A + ridge · I)⁻¹ b          (recursive least squares)

    with a = (1 − forget) ^ elapsed. Only a step that brings a truth learns and forgets. The ridge of `rls` does not
    fade, so that where nothing is learned any more R goes back to 0, A stays bounded, and the inverse never grows
    beyond 1 / ridge. A truth that is known in part counts for `delta` by output, and for `rls` only as a whole.

    The read-out has no weights, and is a constant in training: gradients reach the output that comes in alone.

    Args:
        features: Width of f.
        outputs: O.
        rule: `delta` or `rls`.
        eta: η of `delta`, in [0, 1].
        forget: Share in [0, 1) that is forgotten per learning step (`rls`: at least 1e-6).
        ridge: Of `rls`, > 0.

    Example:
        >>> import torch, ssmn
        >>> readout = ssmn.layers.PlasticReadout(features=2, outputs=1, eta=1.0)
        >>> f, truth = torch.ones(1, 3, 2), torch.full((1, 3, 1), 7.0)
        >>> y, state = readout(torch.zeros(1, 3, 1), f, target=truth)
        >>> [round(value, 3) for value in y.flatten().tolist()]
        [0.0, 7.0, 7.0]
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        rule: ReadoutRule = "delta",
        eta: float = 0.5,
        forget: float = 0.0,
        ridge: float = 0.1,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("features", features), ("outputs", outputs)):
            check_setting(owner, name, value, value >= 1, "at least 1")
        check_setting(owner, "rule", rule, rule in get_args(ReadoutRule), "delta or rls")
        check_setting(owner, "eta", eta, 0 <= eta <= 1, "a number in [0, 1]")
        check_setting(owner, "forget", forget, 0 <= forget < 1, "a share in [0, 1) lost per step")
        check_setting(owner, "ridge", ridge, ridge > 0, "a positive number")
        self.features, self.outputs, self.rule = features, outputs, rule
        self.eta, self.ridge = eta, ridge
        self.forget = forget if rule == "delta" else max(forget, LEAST_FORGET)

    def init_state(
        self, batch_size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> ReadoutState:
        """A fresh state for `batch_size` streams of a model of this dtype: all zeros."""
        width = self.features + 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch_size, *shape, dtype=state_dtype(dtype), device=device)

        moment = zeros(width, width) if self.rule == "rls" else None
        return ReadoutState(zeros(width, self.outputs), zeros(width), zeros(self.outputs), moment)

    def forward(
        self,
        output: Tensor,
        features: Tensor,
        state: ReadoutState | None = None,
        *,
        target: Tensor | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, ReadoutState]:
        """Corrects the next T steps' outputs, and learns from what the steps before them got wrong.

        Args:
            output: [B, T, O], the model's own.
            features: [B, T, features], what to correct it by, of about unit length.
            state: What was learned so far; None = fresh.
            target: [B, T, O], at each step the truth of what was predicted at the open step before; NaN = unknown;
                None = none is known.
            mask: [B, T] bool, True = open.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1).
            elapsed: [B, T], time since the step before (1 by default).
            plasticity: `frozen` of it matters here.

        Returns:
            (corrected output [B, T, O], state). A closed step's output comes back as it is.

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, features, self.features, output)
        sizes = {"B": features.shape[0], "T": features.shape[1], "O": self.outputs}
        check_tensor(owner, "output", output, "B T O", sizes)
        if target is not None:
            check_tensor(owner, "target", target, "B T O", sizes)
        streams = check_streams(owner, features, mask, reset, cu_seqlens)
        check_learning(owner, features, elapsed, plasticity)
        if state is None:
            state = self.init_state(streams, features.dtype, features.device)
        width = self.features + 1
        shapes = {
            "memory": (streams, width, self.outputs),
            "key": (streams, width),
            "prediction": (streams, self.outputs),
        }
        check_state(owner, state, ReadoutState, shapes)
        if (state.moment is not None) != (self.rule == "rls"):
            came = "rls" if self.rule == "delta" else "delta"
            raise StateError(f"{owner}: the state is of the rule {came}; wanted one of {self.rule!r}; use init_state.")
        if self.rule == "rls":
            check_state(owner, state, ReadoutState, {"moment": (streams, width, width)})
        with torch.no_grad():
            corrected, after = self._learn(
                output.detach(), features.detach(), state.detach(), target, mask, reset, cu_seqlens, elapsed,
                plasticity is not None and plasticity.frozen,
            )  # fmt: skip
        if torch.is_grad_enabled():
            corrected = output + (corrected - output.detach())
            if state.memory.requires_grad:
                batch, time = output.shape[:2]
                after = with_untouched(after, state, touched(batch, time, mask, reset, cu_seqlens, output.device))
        return corrected, after

    def _learn(
        self,
        output: Tensor,
        features: Tensor,
        state: ReadoutState,
        target: Tensor | None,
        mask: Tensor | None,
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
        elapsed: Tensor | None,
        frozen: bool,
    ) -> tuple[Tensor, ReadoutState]:
        dtype, width = state.key.dtype, self.features + 1
        wide = output.to(dtype)
        features = functional.pad(features.to(dtype), (0, 1), value=1.0) / math.sqrt(2)
        told, last = torch.cat([features, wide], -1), torch.cat([state.key, state.prediction], -1)
        before, latest = shift_to_previous(told, last, mask, reset, cu_seqlens)
        keys, predicted = before.split([width, self.outputs], -1)
        truth = torch.full_like(wide, math.nan) if target is None or frozen else target.to(dtype)
        known = truth.isfinite() & (keys[..., -1:] > 0)  # the constant feature is 0 where nothing was predicted
        known = known if mask is None else known & mask.unsqueeze(-1)
        errors = torch.where(known, truth - predicted, 0.0)
        log_keep = torch.full_like(keys[..., 0], math.log1p(-self.forget))
        log_keep = log_keep if elapsed is None else log_keep * elapsed.to(dtype)
        if self.rule == "delta":
            correction, memory = self._delta(features, keys, errors, known, log_keep, reset, cu_seqlens, state.memory)
            moment = None
        else:
            packing = None if cu_seqlens is None else Packing.of(cu_seqlens, output.shape[1])

            def by_stream(steps: Tensor) -> Tensor:
                return steps if packing is None else packing.unpack(steps)

            correction, memory, moment = self._squares(
                by_stream(features), by_stream(keys), by_stream(errors), by_stream(known.all(-1)), by_stream(log_keep),
                None if reset is None else by_stream(reset), state,
            )  # fmt: skip
            correction = correction if packing is None else packing.pack(correction)
        corrected = wide + correction.to(dtype)
        corrected = corrected if mask is None else torch.where(mask.unsqueeze(-1), corrected, wide)
        key, prediction = latest.split([width, self.outputs], -1)
        return corrected.to(output.dtype), ReadoutState(memory, key, prediction, moment)

    def _delta(
        self,
        features: Tensor,
        keys: Tensor,
        errors: Tensor,
        known: Tensor,
        log_keep: Tensor,
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
        memory: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(correction [B, T, O], memory [N, F, O])."""
        # The memory wants keys of unit length; and it is gated by head: outputs share one if always known together.
        length = keys.norm(dim=-1, keepdim=True).clamp(min=0.5)  # the constant alone has more, and what is not there 0
        keys, errors = keys / length, errors / length
        together = bool((known == known[..., :1]).all())
        if together:
            known, errors, memory = known[..., :1], errors.unsqueeze(2), memory.unsqueeze(1)
        else:
            errors, memory = errors.unsqueeze(-1), memory.transpose(1, 2).unsqueeze(-1)
        heads = errors.shape[2]
        read, final = ops.synaptic_memory(
            features.unsqueeze(2).expand(-1, -1, heads, -1), keys.unsqueeze(2).expand(-1, -1, heads, -1), errors,
            eta=log_keep.new_full(known.shape, self.eta), log_decay=log_keep.unsqueeze(-1).expand_as(known),
            mask=known, reset=reset, cu_seqlens=cu_seqlens, initial_state=memory, output_final_state=True,
        )  # fmt: skip
        assert final is not None
        return read.flatten(2), final.squeeze(1) if together else final.squeeze(-1).transpose(1, 2)

    def _squares(
        self,
        features: Tensor,
        keys: Tensor,
        errors: Tensor,
        learns: Tensor,
        log_keep: Tensor,
        reset: Tensor | None,
        state: ReadoutState,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(correction [N, L, O], b [N, F, O], A [N, F, F]); sums and systems in float64."""
        assert state.moment is not None
        features, keys, errors = features.double(), keys.double(), errors.double()
        moment, memory = state.moment.double(), state.memory.double()
        if not bool(learns.any()):
            weights = self._solve(memory, moment)
            correction = features @ weights
            if reset is not None:
                correction = torch.where(reset.cumsum(1).unsqueeze(-1) > 0, 0.0, correction)
                fresh = reset.any(1)[:, None, None]
                memory, moment = torch.where(fresh, 0.0, memory), torch.where(fresh, 0.0, moment)
            return correction, memory.to(state.memory.dtype), moment.to(state.memory.dtype)
        keep = torch.where(learns, log_keep.double().exp(), 1.0)
        keys = torch.where(learns.unsqueeze(-1), keys, 0.0)
        at_once = max(1, _SOLVED_AT_ONCE // moment.numel())
        corrections, moments, memories = [], [], []
        steps = features.shape[1]
        for t in range(steps):
            if reset is not None:
                fresh = reset[:, t, None, None]
                memory, moment = torch.where(fresh, 0.0, memory), torch.where(fresh, 0.0, moment)
            kept, key = keep[:, t, None, None], keys[:, t]
            moment = torch.baddbmm(kept * moment, key.unsqueeze(2), key.unsqueeze(1))
            memory = torch.baddbmm(kept * memory, key.unsqueeze(2), errors[:, t].unsqueeze(1))
            moments.append(moment)
            memories.append(memory)
            if len(moments) == at_once or t == steps - 1:
                asked = features[:, t + 1 - len(moments) : t + 1].unsqueeze(-1)
                sums = torch.stack(memories, 1)
                corrections.append((self._solve(asked, torch.stack(moments, 1)).mT @ sums).squeeze(-2))
                moments, memories = [], []
        return torch.cat(corrections, 1), memory.to(state.memory.dtype), moment.to(state.memory.dtype)

    def _solve(self, right: Tensor, moment: Tensor) -> Tensor:
        """(A + ridge · I)⁻¹ right."""
        trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
        factor = torch.linalg.cholesky(moment + (self.ridge + _NOISE * trace) * identity)
        return torch.cholesky_solve(right, factor)
