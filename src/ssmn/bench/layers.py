"""One mixer: time, useful operations, extra memory and cost per token, against what torch offers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmn import native, ops
from ssmn.bench import rivals
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.floors import GEMM_SIZE, Floor, dtype_name, gemm
from ssmn.bench.footprint import Peak, available_bytes, can_measure, in_fresh_process
from ssmn.bench.registry import register
from ssmn.bench.seed_table import attention_counts
from ssmn.bench.timing import time_alternately
from ssmn.errors import RangeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MIXERS = ("window", "memory")
PASSES = {"forward": "forward", "both": "forward + backward"}
SHARE_OF_MEMORY = 0.5
"""Sequences whose tensors would take more of the free memory than this are left out."""


@dataclass(frozen=True)
class Work:
    """A mixer of a size, and one sequence for it."""

    heads: int
    width: int
    length: int
    window: int
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """Heads × width and dtype."""
        return f"{self.heads} × {self.width}, {dtype_name(self.dtype)}"

    def operations(self, mixer: str, backward: bool) -> float:
        """Useful operations (a multiplication or an addition is one) of one sequence; recomputed ones do not count.

        Attention: 4 · D per pair (score and weighted sum), 8 · D backward (gradients of q, k, v and weights). Memory: a
        write and a read, 4 · K · V per step; the rule `delta` compares with what is stored, 6 · K · V; backward twice
        as many.
        """
        if mixer in ("hebbian", "delta"):
            forward = (6 if mixer == "delta" else 4) * self.length * self.heads * self.width**2
        else:
            pairs = attention_counts(self.length, self.window)["exact_full" if mixer == "full" else "exact_window"]
            forward = 4 * pairs * self.heads * self.width
        return forward * (3.0 if backward else 1.0)


@dataclass(frozen=True)
class Candidate:
    """One way to do a mixer's work."""

    who: str
    mixer: str
    """What it computes: `window`, `full`, `hebbian` or `delta`."""
    run: Callable[..., Tensor]
    """From the tensors of `draw`, in the order that it has them."""
    heads_first: bool = False
    ours: bool = False
    against: str | None = None


def candidates(mixer: str, work: Work, rival: bool = True) -> list[Candidate]:
    """Ours first, then torch's."""
    backends = ("native", "chunked") if native.status().available else ("chunked",)

    def window(backend: Any) -> Callable[..., Tensor]:
        return lambda q, k, v: ops.window_attention(q, k, v, window_size=work.window, backend=backend)[0]

    def memory(rule: Any, backend: Any) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, log_decay: Tensor) -> Tensor:
            return ops.synaptic_memory(q, k, v, eta=eta, log_decay=log_decay, rule=rule, backend=backend)[0]

        return run

    found = []
    for backend in backends[: None if rival else 1]:
        first = backend == backends[0]
        if mixer == "window":
            found.append(Candidate(_ours("window", backend), "window", window(backend), ours=first))
        else:
            rules = ("hebbian", "delta") if first else ("delta",)
            found += [Candidate(_ours(rule, backend), rule, memory(rule, backend), ours=first) for rule in rules]
    if not rival:
        return found
    found = [
        candidate if candidate.ours else Candidate(
            candidate.who, candidate.mixer, candidate.run, against=_ours(candidate.mixer, backends[0])
        )
        for candidate in found
    ]  # fmt: skip
    if mixer == "window":

        def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return rivals.window_attention(q, k, v, work.window)

        ours = _ours("window", backends[0])
        found.append(Candidate("torch SDPA, causal", "full", rivals.full_attention, True, against=ours))
        found.append(Candidate("torch window by blocks", "window", blocks, True, against=ours))
    else:
        name = f"torch hebbian, chunk {rivals.RETENTION_CHUNK}"
        found.append(Candidate(name, "hebbian", rivals.retention, True, against=_ours("hebbian", backends[0])))
    return found


def _ours(mixer: str, backend: str) -> str:
    return f"ssmn {mixer}" if backend == "native" else f"ssmn {mixer}, {backend}"


def draw(mixer: str, work: Work, heads_first: bool, seed: int = 0) -> list[Tensor]:
    """Random q, k, v (for a memory of unit length, with η and log(1 − λ)), time before heads or after them."""
    generator = torch.Generator().manual_seed(seed)

    def make(*last: int) -> Tensor:
        axes = (work.heads, work.length) if heads_first else (work.length, work.heads)
        return torch.randn(1, *axes, *last, generator=generator)

    q, k, v = (make(work.width) for _ in range(3))
    if mixer != "memory":
        return [x.to(work.dtype) for x in (q, k, v)]
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    eta, log_decay = make().sigmoid(), -0.01 * make().sigmoid()
    return [*(x.to(work.dtype) for x in (q, k, v)), eta, log_decay]


def calls(mixer: str, work: Work, chosen: Sequence[Candidate], backward: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by candidate: the operation without gradients, or with the gradients of all its inputs."""
    inputs = {first: draw(mixer, work, first) for first in {candidate.heads_first for candidate in chosen}}

    def forward(candidate: Candidate) -> Callable[[], object]:
        tensors = inputs[candidate.heads_first]

        @torch.no_grad()
        def call() -> None:
            candidate.run(*tensors)

        return call

    def both(candidate: Candidate) -> Callable[[], object]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs[candidate.heads_first]]
        cotangent = torch.ones_like(leaves[2])

        @torch.enable_grad()
        def call() -> None:
            torch.autograd.grad(candidate.run(*leaves), leaves, cotangent)

        return call

    make = both if backward else forward
    return {candidate.who: make(candidate) for candidate in chosen}


@register("layers")
def layers(
    lengths: Sequence[int] = (10_240,),
    *,
    shapes: Sequence[str] = ("4x64",),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    mixers: Sequence[str] = MIXERS,
    passes: Sequence[str] = tuple(PASSES),
    window: int = 512,
    flat_lengths: Sequence[int] = (8_192, 65_536, 1_048_576),
    footprint: bool = True,
    rivals_to: int = 131_072,
    repeats: int = 7,
    patience: float = 15.0,
    gemm_size: int = GEMM_SIZE,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """One mixer against torch's: time, share of the machine's matrix products, extra memory, cost per token.

    Window attention (ours, native and chunked; torch's causal attention; torch's attention by blocks of the
    window) and synaptic memory (ours with the rules `hebbian` and `delta`; the chunk form of `hebbian` in
    torch; our chunked path for `delta`), batch 1. The candidates of a row take turns with each other and with
    a product of two matrices of that dtype.

    Args:
        lengths: n, tokens of the sequence.
        shapes: Heads x width, e.g. "4x64" or "1x256".
        dtypes: Of q, k and v: `float32`, `bfloat16`.
        mixers: `window`, `memory`.
        passes: `forward`, and `both` for forward + backward (gradients of all inputs).
        window: w.
        flat_lengths: Lengths at which our cost per token is compared; none = left out.
        footprint: Whether to measure the extra memory of forward + backward, in processes of their own.
        rivals_to: Longest sequence at which rivals run.
        repeats: Timed runs of each.
        patience: Seconds; what takes longer runs once.
        gemm_size: Rows of the matrices.
        progress: Called with a line of text before each row.

    Returns:
        `figures`, and `notes` on what was left out and why.

    Example:
        >>> from ssmn.bench import layers
        >>> small = layers([40], mixers=["window"], dtypes=["float32"], flat_lengths=(), footprint=False, gemm_size=64)
        >>> small["figures"][0]["unit"]
        'ms'
    """
    wanted = {"lengths": lengths, "shapes": shapes, "dtypes": dtypes, "mixers": mixers, "passes": passes}
    for name, values in wanted.items():
        if not values:
            raise RangeError(f"layers: {name}=[]; wanted at least one.")
    for name, values, known in (("dtypes", dtypes, DTYPES), ("mixers", mixers, MIXERS), ("passes", passes, PASSES)):
        for value in values:
            if value not in known:
                raise RangeError(f"layers: {name} has {value!r}; wanted some of {', '.join(known)}.")
    if min(*lengths, *flat_lengths, window, repeats) < 1:
        raise RangeError("layers: lengths, flat_lengths, window and repeats must be 1 or more.")
    sizes = [parse_shape(shape) for shape in shapes]
    figures: list[Figure] = []
    notes = [] if native.status().available else [f"no native kernels: {native.status().reason}"]
    for dtype in (DTYPES[name] for name in dtypes):
        floor = gemm(dtype, gemm_size)
        for (heads, width), mixer in ((size, mixer) for size in sizes for mixer in mixers):
            works = [Work(heads, width, length, window, dtype) for length in lengths]
            for work, way in ((work, way) for work in works for way in passes):
                progress(f"{mixer}, {PASSES[way]}, {work.label}, n = {work.length:,}")
                figures += _times(mixer, work, way, floor, repeats, patience, work.length <= rivals_to)
            if footprint:
                figures += _footprints(mixer, works[0], notes, progress)
            for way in passes if flat_lengths else ():
                progress(f"{mixer}, {PASSES[way]}, {works[0].label}: cost per token")
                figures += _flatness(mixer, works[0], way, flat_lengths, repeats, patience, notes)
    return {"figures": plain(figures), "notes": notes}


def parse_shape(text: str) -> tuple[int, int]:
    """(heads, width) of "4x64"."""
    heads, _, width = text.partition("x")
    if not (heads.isdigit() and width.isdigit() and int(heads) and int(width)):
        raise RangeError(f"layers: shapes has {text!r}; wanted heads x width, such as 4x64.")
    return int(heads), int(width)


def _times(
    mixer: str, work: Work, way: str, floor: Floor, repeats: int, patience: float, rival: bool
) -> Iterator[Figure]:
    backward = way == "both"
    chosen = candidates(mixer, work, rival)
    turns: Mapping[str, Callable[[], object]] = {
        **calls(mixer, work, chosen, backward), floor.name: floor.call
    }  # fmt: skip
    seconds = time_alternately(turns, repeats, patience)
    rate = floor.rate(statistics.median(seconds[floor.name]))
    for candidate in chosen:
        runs = seconds[candidate.who]
        useful = work.operations(candidate.mixer, backward) / 1e9 / statistics.median(runs)
        yield Figure(
            panel=f"{mixer if mixer == 'memory' else f'window {work.window}'}, {PASSES[way]}, {work.label}",
            length=work.length,
            who=candidate.who,
            unit="ms",
            **spread([1e3 * run for run in runs]),
            ours=candidate.ours,
            against=candidate.against,
            details={"GFLOP/s": useful, "share of GEMM": useful / rate},
        )


def _footprints(mixer: str, work: Work, notes: list[str], progress: Callable[[str], None]) -> Iterator[Figure]:
    refused = can_measure()
    if refused:
        notes.append(f"extra memory was not measured: {refused}")
        return
    for candidate in candidates(mixer, work):
        progress(f"extra memory of {candidate.who}, {work.label}")
        settings = {"mixer": mixer, "who": candidate.who, "heads": work.heads, "width": work.width}
        settings |= {"length": work.length, "window": work.window, "dtype": dtype_name(work.dtype)}
        found = in_fresh_process("ssmn.bench.layers:extra_memory", torch.get_num_threads(), **settings)
        yield Figure(
            panel=f"extra memory of forward + backward, {mixer}, {work.label}",
            length=work.length,
            who=candidate.who,
            unit="MiB",
            **spread([found["extra_bytes"] / 2**20]),
            ours=candidate.ours,
            against=candidate.against,
        )


def extra_memory(mixer: str, who: str, heads: int, width: int, length: int, window: int, dtype: str) -> dict[str, int]:
    """The peak of resident memory during forward + backward, above inputs, output, cotangent and gradients.

    Meant for a process of its own. A short sequence runs first, so that code and threads are there.
    """
    short = Work(heads, width, min(length, 2 * native.CHUNK), window, DTYPES[dtype])
    work = Work(heads, width, length, window, DTYPES[dtype])
    for now in (short, work):
        (candidate,) = (candidate for candidate in candidates(mixer, now) if candidate.who == who)
        leaves = [tensor.requires_grad_() for tensor in draw(mixer, now, candidate.heads_first)]
        cotangent = torch.ones_like(leaves[2])
        peak = Peak()
        output = candidate.run(*leaves)
        gradients = torch.autograd.grad(output, leaves, cotangent)
        above = peak.above
        extra = above - output.nbytes - sum(gradient.nbytes for gradient in gradients)
    return {"extra_bytes": max(0, extra), "output_bytes": output.nbytes}


def _flatness(
    mixer: str, work: Work, way: str, lengths: Sequence[int], repeats: int, patience: float, notes: list[str]
) -> Iterator[Figure]:
    backward = way == "both"
    turns: dict[str, Callable[[], object]] = {}
    kept: dict[str, tuple[int, Candidate]] = {}
    for length in sorted(lengths):
        now = Work(work.heads, work.width, length, work.window, work.dtype)
        need = length * work.heads * work.width * 4 * (24 if backward else 10)
        if need > SHARE_OF_MEMORY * available_bytes():
            notes.append(f"cost per token of {mixer}, {PASSES[way]}, {work.label} at n = {length:,}: too little memory")
            continue
        chosen = candidates(mixer, now, rival=False)
        for who, call in calls(mixer, now, chosen, backward).items():
            name = f"{who} {length}"
            turns[name] = call
            kept[name] = length, next(candidate for candidate in chosen if candidate.who == who)
    seconds = time_alternately(turns, repeats, patience)
    medians = {name: statistics.median(runs) / kept[name][0] for name, runs in seconds.items()}
    for name, (length, candidate) in kept.items():
        first = next(other for other, (_, same) in kept.items() if same.who == candidate.who)
        yield Figure(
            panel=f"cost per token, {mixer}, {PASSES[way]}, {work.label}",
            length=length,
            who=candidate.who,
            unit="µs",
            **spread([1e6 * run / length for run in seconds[name]]),
            ours=True,
            details={"÷ shortest": medians[name] / medians[first]},
        )
