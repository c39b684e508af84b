"""The output memory: prediction errors, written along the key of the hidden vector that made them.

A definition that steps (`reference`), the same in chunks (`chunked`), and the way to the compiled kernel (`native`).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ssmn import native
from ssmn.config import OUTPUT_SWITCH, OUTPUT_THRESHOLD, Backend
from ssmn.errors import DtypeError, RangeError, ShapeError
from ssmn.ops.common import FORGOTTEN, check_choice, check_range, check_steps, check_tensor, shape_text, state_dtype
from ssmn.ops.dispatch import choose_backend
from ssmn.ops.segments import bounds_of
from ssmn.state import OutputMemoryState

CHUNK = 32
"""Steps that `chunked` computes with one product with the memory."""

MOST_TRUST = 80.0
"""Log-odds: a weight of exp(−80) is nothing, and has a logarithm in float32."""


@torch.no_grad()
def output_memory(
    logits: Tensor,
    keys: Tensor,
    tokens: Tensor,
    *,
    eta: Tensor,
    log_decay: Tensor,
    threshold: float = OUTPUT_THRESHOLD,
    switch: float = OUTPUT_SWITCH,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: OutputMemoryState | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, OutputMemoryState]:
    """Corrects the logits of a stream by what was wrong with those before; exact and sequential, without gradients.

    The step that brings the token y, after a step with key k' and prediction p' (zeros before the first):

        M = exp(log_decay) M − η e k'ᵀ,  e = shrink(p' − onehot(y)),  p = softmax(logits + M k)

    with shrink(e) = sign(e) · max(|e| − threshold, 0). It is one step of gradient descent on the loss of the last
    prediction, in the output weights alone: dynamic evaluation (Krause et al., 2018) of one layer as a fast-weight
    memory with an error-correcting rule (Schlag et al., 2021).

    What comes out is a mixture of two experts, w p + (1 − w) softmax(logits), as logits: with the ratio
    r = log p − log softmax(logits) and the trust s = log(w / (1 − w)), which each token settles anew,

        s = share(s + r'[y])  if η > 0        adapted = logits + softplus(s + r) − softplus(s)

    where share(s) has w ← (1 − switch) w + switch / 2 (fixed share: Herbster and Warmuth, 1998). So a memory that does
    harm is set aside: over T steps the loss is at most log 2 − T log(1 − switch / 2) nats above that without it.

    Args:
        logits: [B, T, V], of a model that knows nothing of the memory.
        keys: [B, T, D], of unit length.
        tokens: [B, T] integers in [0, V): what the model read at each step, so what the step before should have said.
        eta: [B, T], learning rate η ≥ 0.
        log_decay: [B, T], log(1 − λ) ≤ 0.
        threshold: In [0, 1): errors up to it are not written, larger ones are shortened by it.
        switch: In [0, 1]: what both experts share of their weight at every step; 1 = half of each always.
        mask: [B, T] bool, True = open. A closed step changes nothing; its logits come back as they are.
        reset: [B, T] bool, True = the state is fresh before this step.
        cu_seqlens: [N + 1] integer boundaries of segments packed into one row (B = 1); states then have N rows.
        initial_state: The memory so far; None = fresh.
        backend: `auto`, `reference`, `chunked` or `native`.

    Returns:
        (adapted logits [B, T, V] in the dtype of `logits`, the state after the last step).

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        BackendError: The backend that was asked for cannot take these tensors.

    Example:
        >>> import torch, ssmn
        >>> logits, keys = torch.zeros(1, 3, 5), torch.tensor([1.0, 0.0]).expand(1, 3, 2)
        >>> tokens = torch.tensor([[4, 4, 4]])
        >>> steps = {"eta": torch.ones(1, 3), "log_decay": torch.zeros(1, 3)}
        >>> adapted, state = ssmn.ops.output_memory(logits, keys, tokens, **steps)
        >>> adapted[0, :, 4].gt(adapted[0, :, 0]).tolist()
        [False, True, True]
    """
    op = "output_memory"
    sizes: dict[str, int] = {}
    check_tensor(op, "logits", logits, "B T V", sizes)
    check_tensor(op, "keys", keys, "B T D", sizes)
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        came = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise DtypeError(f"{op}: tokens is {came}; wanted an int64 or int32 tensor [B, T].")
    if tokens.shape != logits.shape[:2]:
        raise ShapeError(f"{op}: tokens has shape {shape_text(tokens)}; wanted [B, T] = {list(logits.shape[:2])}.")
    check_tensor(op, "eta", eta, "B T", sizes)
    check_tensor(op, "log_decay", log_decay, "B T", sizes)
    sizes["N"] = check_steps(op, sizes, mask, reset, cu_seqlens)
    check_choice(op, "backend", backend, get_args(Backend))
    largest = torch.finfo(torch.float32).max
    check_range(op, "tokens", tokens, 0, sizes["V"] - 1)
    check_range(op, "eta", eta, 0.0, largest)
    check_range(op, "log_decay", log_decay, -largest, 0.0)
    if not 0.0 <= threshold < 1.0:
        raise RangeError(f"{op}: threshold={threshold!r}; wanted a number in [0, 1).")
    if not 0.0 <= switch <= 1.0:
        raise RangeError(f"{op}: switch={switch!r}; wanted a number in [0, 1].")
    compute = state_dtype(logits.dtype)
    state = _state_of(initial_state, sizes, compute, logits.device)
    chosen = choose_backend(op, backend, logits, keys)
    steps = _Steps(
        logits.to(compute), keys.to(compute), tokens.long(), eta.to(compute), log_decay.to(compute).clamp(min=FORGOTTEN)
    )
    if chosen == "native":
        adapted, final = _native(steps, threshold, switch, mask, reset, cu_seqlens, state)
    else:
        chunk = 1 if chosen == "reference" else CHUNK
        adapted, final = _walk(steps, threshold, switch, mask, reset, cu_seqlens, state, chunk)
    return adapted.to(logits.dtype), final


@dataclass(frozen=True)
class _Steps:
    """What each step brings; [B, T, ..], or [T, ..] of one stretch."""

    logits: Tensor
    keys: Tensor
    tokens: Tensor
    eta: Tensor
    log_decay: Tensor

    def at(self, *index: Tensor | int | slice) -> _Steps:
        return _Steps(*(x[index] for x in (self.logits, self.keys, self.tokens, self.eta, self.log_decay)))


def _state_of(
    given: OutputMemoryState | None, sizes: dict[str, int], compute: torch.dtype, device: torch.device
) -> OutputMemoryState:
    streams, tokens, width = sizes["N"], sizes["V"], sizes["D"]
    if given is None:
        return OutputMemoryState.fresh(streams, tokens, width, compute, device)
    if not isinstance(given, OutputMemoryState):
        raise DtypeError(f"output_memory: initial_state is {type(given).__name__}; wanted an OutputMemoryState.")
    for name, axes in (("memory", "N V D"), ("key", "N D"), ("prediction", "N V"), ("ratio", "N V"), ("trust", "N")):
        check_tensor("output_memory", f"initial_state.{name}", getattr(given, name), axes, sizes)
    return given.map(lambda x: x.to(compute))


def _stretches(
    batch: int, time: int, mask: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
) -> Iterator[tuple[int, list[tuple[bool, Tensor]]]]:
    """Every stream with its stretches between resets: (whether it begins afresh, its open steps as flat numbers)."""
    bounds = bounds_of(batch, time, cu_seqlens, device)
    opened = None if mask is None else mask.reshape(-1)
    for stream in range(len(bounds) - 1):
        first, last = int(bounds[stream]), int(bounds[stream + 1])
        cuts = [first, last]
        fresh = [] if reset is None else (reset.reshape(-1)[first:last].nonzero()[:, 0] + first).tolist()
        cuts = [first, *fresh, last]
        parts = []
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            steps = torch.arange(start, stop, device=device)
            parts.append((number > 0, steps if opened is None else steps[opened[start:stop]]))
        yield stream, parts


def _walk(
    steps: _Steps,
    threshold: float,
    switch: float,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    state: OutputMemoryState,
    chunk: int,
) -> tuple[Tensor, OutputMemoryState]:
    batch, time, _ = steps.logits.shape
    flat = _Steps(*(x.flatten(0, 1) for x in (steps.logits, steps.keys, steps.tokens, steps.eta, steps.log_decay)))
    adapted, finals = flat.logits.clone(), []
    for stream, parts in _stretches(batch, time, mask, reset, cu_seqlens, steps.logits.device):
        here = _Stream(*(x[stream] for x in state.named_tensors().values()))
        for fresh, places in parts:
            if fresh:
                here = _Stream(*(torch.zeros_like(x) for x in here))
            for piece in places.split(chunk) if len(places) else ():
                adapted[piece], here = _chunk(flat.at(piece), threshold, switch, here)
        finals.append(here)
    final = OutputMemoryState(*(torch.stack(x) for x in zip(*finals, strict=True)))
    return adapted.unflatten(0, (batch, time)), final


class _Stream(NamedTuple):
    """One row of an `OutputMemoryState`."""

    memory: Tensor
    key: Tensor
    prediction: Tensor
    ratio: Tensor
    trust: Tensor


def _chunk(steps: _Steps, threshold: float, switch: float, stream: _Stream) -> tuple[Tensor, _Stream]:
    """Open steps of one stream; a chunk of one step is the definition.

    With G the running sum of log a, M_t = exp(G_t) M_0 − Σ_{j ≤ t} η_j exp(G_t − G_j) e_j k_{j−1}ᵀ: the memory of the
    chunk's start votes once for all steps, and the errors since then vote through the products of the keys.
    """
    memory, key, prediction, ratio, trust = stream
    total = steps.log_decay.cumsum(0)
    before = torch.cat([key.unsqueeze(0), steps.keys[:-1]])
    votes = total.exp().unsqueeze(1) * (steps.keys @ memory.T)
    kept = (total.unsqueeze(1) - total).tril().exp().tril()
    across = kept * steps.eta * (steps.keys @ before.T)
    adapted, errors, plain = torch.empty_like(votes), torch.empty_like(votes), steps.logits.logsumexp(1)
    for t, token in enumerate(steps.tokens):
        error = prediction.clone()
        error[token] -= 1
        errors[t] = error.sign() * (error.abs() - threshold).clamp(min=0)
        trust = torch.where(steps.eta[t] > 0, _shared(trust + ratio[token], switch), trust)
        votes[t] -= across[t, : t + 1] @ errors[: t + 1]
        corrected = steps.logits[t] + votes[t]
        prediction = corrected.softmax(0)
        ratio = votes[t] - (corrected.logsumexp(0) - plain[t])
        adapted[t] = steps.logits[t] + _softplus(trust + ratio) - _softplus(trust)
    written = (errors * (steps.eta * kept[-1]).unsqueeze(1)).T @ before
    return adapted, _Stream(total[-1].exp() * memory - written, steps.keys[-1], prediction, ratio, trust)


def _shared(trust: Tensor, switch: float) -> Tensor:
    """The log-odds of (1 − switch) w + switch / 2."""
    trust = trust.clamp(-MOST_TRUST, MOST_TRUST)
    corrected, plain = ((1 - switch) * torch.sigmoid(x) + switch / 2 for x in (trust, -trust))
    return corrected.log() - plain.log()


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _native(
    steps: _Steps,
    threshold: float,
    switch: float,
    mask: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    state: OutputMemoryState,
) -> tuple[Tensor, OutputMemoryState]:
    batch, time, tokens = steps.logits.shape
    bounds = None if cu_seqlens is None else cu_seqlens.long()
    call = native.OutputCall(batch, time, tokens, steps.keys.shape[-1], state.batch_size, threshold, switch)
    flags = (mask, reset, bounds)
    given = (steps.keys, steps.tokens, steps.eta, steps.log_decay, *flags, steps.logits)
    given = [None if x is None else x.contiguous() for x in (*given, *state.named_tensors().values())]
    final = state.map(lambda x: torch.empty(x.shape, dtype=x.dtype))
    adapted = torch.empty(steps.logits.shape, dtype=steps.logits.dtype)
    arrays = (*given, adapted, *final.named_tensors().values())
    pointers = [None if x is None else x.data_ptr() for x in arrays]
    native.call("ssmn_output_memory", ctypes.byref(call), *pointers, torch.get_num_threads())
    return adapted, final
