"""The diagonal recurrence: the compiled kernel, the parallel scan in torch, and a loop over time in torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmn import native, ops
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.registry import register
from ssmn.bench.timing import time_alternately
from ssmn.errors import RangeError


def loop(a: Tensor, x: Tensor) -> Tensor:
    """h_t = a_t h_{t−1} + x_t step by step, [B, T, C] complex."""
    h, states = torch.zeros_like(x[:, 0]), []
    for factor, step in zip(a.unbind(1), x.unbind(1), strict=True):
        h = factor * h + step
        states.append(h)
    return torch.stack(states, 1)


@register("scan", has_floors=False)
def scan(
    lengths: Sequence[int] = (4_096,),
    *,
    batch: int = 1,
    channels: int = 128,
    repeats: int = 7,
    patience: float = 15.0,
    processor: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The scan of linear recurrent units, forward and forward + backward, against a loop over time in torch.

    Float32, another factor at every step, no mask. The loop computes with torch's complex numbers, ours with two rows
    of reals; the candidates of a row take turns.

    Args:
        lengths: T, steps.
        batch: B, streams.
        channels: C, complex numbers per step.
        repeats: Timed runs of each.
        patience: Seconds; what takes longer runs once.
        processor: Whether to count processor time, of all threads together, and not the time that passes: for one
            thread on a machine that others use too.
        progress: Called with a line of text before each row.

    Returns:
        `figures`, and `notes` on what was left out and why.

    Raises:
        RangeError: A size is below 1.

    Example:
        >>> from ssmn.bench import scan
        >>> [figure["who"] for figure in scan([9], batch=1, channels=3, repeats=1)["figures"]][-1]
        'torch loop'
    """
    if not lengths or min(*lengths, batch, channels, repeats) < 1:
        raise RangeError("scan: lengths, batch, channels and repeats must be 1 or more.")
    backends = ("native", "chunked") if native.status().available else ("chunked",)
    clock, unit = (time.process_time, "ms of processor time") if processor else (time.perf_counter, "ms")
    figures: list[Figure] = []
    for length in lengths:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, length, channels)
        angle, inputs = torch.randn(shape, generator=generator), torch.randn(*shape, 2, generator=generator)
        a, x = torch.polar(torch.full(shape, 0.99), angle), torch.view_as_complex(inputs)
        for backward in (False, True):
            way = "forward + backward" if backward else "forward"
            progress(f"scan, {way}, T = {length:,}")
            turns: dict[str, Callable[[], object]] = {
                _ours(backend): _call(_scan(backend), (_rows(a), _rows(x)), backward) for backend in backends
            }
            turns["torch loop"] = _call(loop, (a, x), backward)
            seconds = time_alternately(turns, repeats, patience, clock)
            for who, runs in seconds.items():
                first = who == _ours(backends[0])
                figures.append(
                    Figure(
                        panel=f"scan, {way}, {batch} × {channels} channels, float32",
                        length=length,
                        who=who,
                        unit=unit,
                        **spread([1e3 * run for run in runs]),
                        ours=first,
                        against=None if first else _ours(backends[0]),
                    )
                )
    notes = [] if native.status().available else [f"no native kernels: {native.status().reason}"]
    return {"figures": plain(figures), "notes": notes}


def _ours(backend: str) -> str:
    return "ssmn scan" if backend == "native" else f"ssmn scan, {backend}"


def _scan(backend: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, x: ops.linear_scan(a, x, backend=backend)[0]


def _rows(x: Tensor) -> Tensor:
    return torch.view_as_real(x).transpose(-1, -2).contiguous()


def _call(run: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], backward: bool) -> Callable[[], None]:
    leaves = [tensor.clone().requires_grad_(backward) for tensor in inputs]
    cotangent = torch.ones_like(leaves[1])

    def call() -> None:
        with torch.set_grad_enabled(backward):
            h = run(leaves[0], leaves[1])
            if backward:
                torch.autograd.grad(h, leaves, cotangent)

    return call
