"""The seed's table: operations, cache and time of full attention and of the sparse-stream mixers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmn import ops
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.registry import register
from ssmn.bench.timing import time_alternately
from ssmn.errors import RangeError

LAYERS, WINDOW_LAYERS, MEMORY_LAYERS = 5, 4, 1
HEADS, HEAD_DIM = 4, 64
BYTES = {"float32": 4, "bfloat16": 2}
STATE_BYTES = 4
"""The stream's state is float32 for either."""
FULL, STREAM = "torch SDPA, causal", "ssmn"


def attention_counts(length: int, window: int) -> dict[str, int]:
    """Query-key pairs of one attention layer, by the seed's count (n², n·w) and exactly (causal).

    Args:
        length: n, tokens.
        window: w, positions that a query sees, its own included.

    Example:
        >>> from ssmn.bench import attention_counts
        >>> attention_counts(10_000, 512)
        {'seed_full': 100000000, 'seed_window': 5120000, 'exact_full': 50005000, 'exact_window': 4989184}
    """
    near = min(length, window)
    return {
        "seed_full": length * length,
        "seed_window": length * window,
        "exact_full": length * (length + 1) // 2,
        "exact_window": near * (near + 1) // 2 + (length - near) * window,
    }


def stack_costs(length: int, window: int, dtype: str = "float32") -> dict[str, int]:
    """Multiply-adds and bytes of five layers of full attention, and of four window layers and one memory.

    A pair costs a score and a weighted sum, 2·D per head. A step of the memory (rule `delta`) decays
    its K × V entries, compares with what is stored, writes and reads: 4·K·V per head. Kept between
    steps: every key and value seen (full), or the window's and the memory (sparse stream).
    """
    counts = attention_counts(length, window)
    pair = 2 * HEAD_DIM * HEADS
    key_and_value = 2 * HEADS * HEAD_DIM
    return {
        "full_multiply_adds": LAYERS * counts["exact_full"] * pair,
        "window_multiply_adds": WINDOW_LAYERS * counts["exact_window"] * pair,
        "memory_multiply_adds": MEMORY_LAYERS * length * 4 * HEAD_DIM * HEAD_DIM * HEADS,
        "full_cache_bytes": LAYERS * length * key_and_value * BYTES[dtype],
        "global_cache_bytes": 0,
        "window_bytes": WINDOW_LAYERS * (window - 1) * key_and_value * STATE_BYTES,
        "memory_bytes": MEMORY_LAYERS * HEADS * HEAD_DIM * HEAD_DIM * STATE_BYTES,
    }


@register("seed-table")
def seed_table(
    lengths: Sequence[int] = (1_000, 10_000),
    *,
    window: int = 512,
    dtype: str = "float32",
    repeats: int = 5,
    patience: float = 20.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Operations, cache and time against full attention, per sequence length.

    What is timed: the token mixers of five layers alone (no projections, norms or feed-forwards), one
    forward pass over one sequence, 4 heads × 64, without gradients. Full attention is torch's
    `scaled_dot_product_attention` with `is_causal=True`, five times; the sparse stream is
    `window_attention` four times and `synaptic_memory` (rule `delta`) once. Memory updates are those of
    one layer of five (80 % static, 20 % plastic) and of all five: `memory_write`. All take turns in the
    same process with the same threads; medians are reported.

    Args:
        lengths: n, tokens of the sequence.
        window: w of the window layers.
        dtype: Of q, k and v: `float32` or `bfloat16`.
        repeats: Timed runs of each.
        patience: Seconds; what takes longer runs once.
        progress: Called with a line of text before each length.

    Returns:
        `backend`, `rows` (per length the counts, costs, times in milliseconds, the ratio of the mixers and
        that of the memory updates), and the times as `figures`.

    Example:
        >>> from ssmn.bench import seed_table
        >>> seed_table([64], window=8, repeats=1)["rows"][0]["length"]
        64
    """
    if not lengths or min(lengths) < 1 or window < 1 or repeats < 1:
        raise RangeError(f"seed_table: lengths={list(lengths)}, window={window}, repeats={repeats}; wanted 1 or more.")
    if dtype not in BYTES:
        raise RangeError(f"seed_table: dtype={dtype!r}; wanted one of {', '.join(BYTES)}.")
    rows, figures = [], []
    for length in lengths:
        progress(f"n = {length:,}")
        seconds = _time_mixers(length, window, getattr(torch, dtype), repeats, patience)
        milliseconds = {name: 1e3 * statistics.median(runs) for name, runs in seconds.items()}
        rows.append(
            {
                "length": length,
                "counts": attention_counts(length, window),
                "costs": stack_costs(length, window, dtype),
                "milliseconds": milliseconds,
                "all_milliseconds": {name: [1e3 * run for run in runs] for name, runs in seconds.items()},
                "speedup": milliseconds["full_attention"] / milliseconds["sparse_stream"],
                "update_speedup": milliseconds["updates_all_plastic"] / milliseconds["updates"],
            }
        )
        for panel, ours, rival, names in (
            ("mixers of five layers", "sparse_stream", "full_attention", (STREAM, FULL)),
            ("memory updates", "updates", "updates_all_plastic", ("one layer of five plastic", "all five")),
        ):
            for name, who in zip((ours, rival), names, strict=True):
                times = spread([1e3 * run for run in seconds[name]])
                against = names[0] if name == rival else None
                figures.append(
                    Figure(
                        panel=f"{panel}, {dtype}", length=length, who=who, unit="ms", ours=name == ours,
                        against=against, **times,
                    )
                )  # fmt: skip
    backend = ops.choose_backend("seed_table", "auto", torch.zeros(1))
    return {"backend": backend, "window": window, "dtype": dtype, "rows": rows, "figures": plain(figures)}


def _time_mixers(length: int, window: int, dtype: torch.dtype, repeats: int, patience: float) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    # Each side gets the layout that is its own: heads before time for torch, after it for the stream.
    full_q, full_k, full_v = (draw(1, HEADS, length, HEAD_DIM) for _ in range(3))
    q, k, v = (draw(1, length, HEADS, HEAD_DIM) for _ in range(3))
    unit_q, unit_k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    eta = draw(1, length, HEADS).float().sigmoid()
    log_decay = torch.full((1, length, HEADS), -1e-4)

    @torch.no_grad()
    def full_attention() -> None:
        for _ in range(LAYERS):
            torch.nn.functional.scaled_dot_product_attention(full_q, full_k, full_v, is_causal=True)

    @torch.no_grad()
    def sparse_stream() -> None:
        for _ in range(WINDOW_LAYERS):
            ops.window_attention(q, k, v, window_size=window)
        for _ in range(MEMORY_LAYERS):
            ops.synaptic_memory(unit_q, unit_k, v, eta=eta, log_decay=log_decay, rule="delta")

    def update(layers: int) -> Callable[[], None]:
        @torch.no_grad()
        def call() -> None:
            for _ in range(layers):
                ops.memory_write(unit_k, v, eta=eta, log_decay=log_decay, rule="delta")

        return call

    turns = {
        "full_attention": full_attention,
        "sparse_stream": sparse_stream,
        "updates": update(MEMORY_LAYERS),
        "updates_all_plastic": update(LAYERS),
    }
    return time_alternately(turns, repeats, patience)
