"""The loss of a language model: logits that are never kept, against those that are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ssmn import native, ops
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.layers import DTYPES
from ssmn.bench.registry import register
from ssmn.bench.timing import time_alternately
from ssmn.errors import RangeError

OURS = "ssmn loss"


@register("loss", has_floors=False)
def loss(
    lengths: Sequence[int] = (2_048, 4_096),
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    width: int = 192,
    vocab_size: int = 4_096,
    repeats: int = 7,
    patience: float = 15.0,
    processor: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The loss of a language model and its gradients, against torch's linear layer and cross-entropy.

    Logits are of unit size. In bfloat16 the products are, and the softmax is computed in float32 by all. The candidates
    of a row take turns; torch's own `linear_cross_entropy` is one of them where torch has it.

    Args:
        lengths: N, tokens.
        dtypes: Of hidden vectors and weights: `float32`, `bfloat16`.
        width: D.
        vocab_size: V.
        repeats: Timed runs of each.
        patience: Seconds; what takes longer runs once.
        processor: Whether to count processor time, of all threads together, and not the time that passes: for one
            thread on a machine that others use too.
        progress: Called with a line of text before each row.

    Returns:
        `figures`, and `notes` on what was left out and why.

    Raises:
        RangeError: A size is below 1, or a dtype is another.

    Example:
        >>> from ssmn.bench import loss
        >>> loss([9], width=4, vocab_size=30, repeats=1)["figures"][0]["who"]
        'ssmn loss'
    """
    if not lengths or not dtypes or min(*lengths, width, vocab_size, repeats) < 1:
        raise RangeError("loss: lengths and dtypes must not be empty, and every number must be 1 or more.")
    for name in dtypes:
        if name not in DTYPES:
            raise RangeError(f"loss: dtypes has {name!r}; wanted some of {', '.join(DTYPES)}.")
    clock, unit = (time.process_time, "ms of processor time") if processor else (time.perf_counter, "ms")
    candidates: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        OURS: ops.linear_cross_entropy,
        "torch, linear and cross_entropy": _kept,
    }
    fused = getattr(functional, "linear_cross_entropy", None)
    if fused is not None:
        candidates["torch, linear_cross_entropy"] = fused
    figures: list[Figure] = []
    for dtype, length in ((dtype, length) for dtype in dtypes for length in lengths):
        progress(f"loss, {dtype}, N = {length:,}")
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(length, width, generator=generator).to(DTYPES[dtype]).requires_grad_()
        weight = torch.randn(vocab_size, width, generator=generator).div(width**0.5)
        weight = weight.to(DTYPES[dtype]).requires_grad_()
        targets = torch.randint(vocab_size, (length,), generator=generator)
        turns: dict[str, Callable[[], object]] = {
            who: lambda run=run, leaves=(hidden, weight), targets=targets: torch.autograd.grad(
                run(*leaves, targets), leaves
            )
            for who, run in candidates.items()
        }
        with torch.enable_grad():
            seconds = time_alternately(turns, repeats, patience, clock)
        figures += [
            Figure(
                panel=f"loss and gradients, {vocab_size:,} tokens, width {width}, {dtype}", length=length, who=who,
                unit=unit, ours=who == OURS, against=None if who == OURS else OURS,
                **spread([1e3 * run for run in runs]),
            )
            for who, runs in seconds.items()
        ]  # fmt: skip
    notes = [] if native.status().available else [f"no native kernels: {native.status().reason}"]
    return {"figures": plain(figures), "notes": notes}


def _kept(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), targets)
