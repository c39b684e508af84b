"""The long soak: a million steps in odd pieces with hostile stretches, and what it does to memory, state and speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmn.bench.registry import register
from ssmn.config import SSMNConfig
from ssmn.errors import RangeError
from ssmn.models import SSMN
from ssmn.probes import resident_bytes
from ssmn.state import PlasticState
from ssmn.stream import Stream

LONGEST_PIECE = 512
SPIKE = 1e4
KINDS = ("ordinary", "not a number", "zeros", "ordinary", "constant", "ordinary", "spikes", "ordinary")
"""What the stretches of the stream are made of, in turn; each lasts a few pieces."""
STRETCH = 3


@register("soak", has_floors=False)
def soak(tokens: int = 1_000_000, *, seed: int = 0, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """One long stream in odd pieces with zeros, constants, spikes and NaN: does anything grow, break or slow down?

    Pieces are 1 to 512 steps long. The model is an untrained Standard model (8 inputs, width 64, five
    layers with a window of 64, one of them plastic). Every tenth of the stream has the same piece lengths
    and the same kinds of stretches, so that their times can be compared. A piece with NaN must be refused
    and leave the stream as it was.

    Args:
        tokens: Length of the stream, at least 10.
        seed: Of weights, pieces and input.
        progress: Called with the position after every piece.

    Returns:
        The most resident memory in each tenth, and by how much the most after warm-up (the first tenth)
        is above it; refused pieces; the largest norm of the memory in each tenth; the median
        microseconds per step in each tenth, and the ratio of the last tenth to the second.

    Raises:
        RangeError: tokens is below 10.

    Example:
        >>> from ssmn.bench import soak
        >>> soak(2_000)["finite"]
        True
    """
    if tokens < 10:
        raise RangeError(f"soak: tokens={tokens}; wanted at least 10.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = SSMNConfig(input_dim=8, output_dim=8, hidden_dim=64, num_layers=5, num_heads=4, window_size=64)
        stream = Stream(SSMN(config))
    lengths = _piece_lengths(tokens // 10, seed)
    per_step = np.zeros((10, len(lengths)))
    norms, resident, refused, finite = np.zeros(10), np.zeros(10, dtype=np.int64), 0, True
    for tenth in range(10):
        for index, length in enumerate(lengths):
            kind = KINDS[index // STRETCH % len(KINDS)]
            x = _piece(kind, length, config.input_dim, generator)
            if kind == "not a number":
                refused += _refuses(stream, x)
                x = torch.nan_to_num(x)
            start = time.perf_counter()
            y = stream.push(x)
            per_step[tenth, index] = (time.perf_counter() - start) / length
            finite = finite and bool(y.isfinite().all())
            norms[tenth] = max(norms[tenth], _memory_norm(stream))
            resident[tenth] = max(resident[tenth], resident_bytes())
            progress(int(stream.position))
    medians = np.median(per_step, axis=1) * 1e6
    pieces_refused = 10 * sum(KINDS[index // STRETCH % len(KINDS)] == "not a number" for index in range(len(lengths)))
    return {
        "tokens": int(stream.position),
        "pieces": 10 * len(lengths),
        "resident_bytes_per_tenth": resident.tolist(),
        "resident_bytes_growth": int(resident[1:].max() - resident[0]),
        "finite": finite and bool(np.isfinite(norms).all()),
        "nan_pieces": pieces_refused,
        "nan_pieces_refused": refused,
        "state_bytes": stream.state.nbytes,
        "largest_memory_norm_per_tenth": norms.tolist(),
        "microseconds_per_step_per_tenth": medians.tolist(),
        "last_to_second_tenth": float(medians[9] / medians[1]),
    }


def _piece_lengths(total: int, seed: int) -> list[int]:
    """Lengths of 1 to 512 that add up to `total`."""
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    while total:
        lengths.append(min(total, int(random.integers(1, LONGEST_PIECE + 1))))
        total -= lengths[-1]
    return lengths


def _piece(kind: str, length: int, width: int, generator: torch.Generator) -> Tensor:
    """[1, length, width] of one kind."""
    if kind == "zeros":
        return torch.zeros(1, length, width)
    if kind == "constant":
        return torch.randn(1, 1, width, generator=generator).expand(1, length, width)
    x = torch.randn(1, length, width, generator=generator)
    where = int(torch.randint(length, (), generator=generator))
    if kind == "spikes":
        x[:, where :: max(1, length // 4)] *= SPIKE
    if kind == "not a number":
        x[:, where, 0] = float("nan")
    return x


def _refuses(stream: Stream, x: Tensor) -> bool:
    before = stream.state
    try:
        stream.push(x)
    except RangeError:
        return stream.state is before
    return False


def _memory_norm(stream: Stream) -> float:
    """The largest Frobenius norm of any head's memory."""
    memories = [layer.memory for layer in stream.state.layers if isinstance(layer, PlasticState)]
    return max(float(torch.linalg.matrix_norm(memory).max()) for memory in memories)
