"""What a memory looks like at one moment: a few numbers per head, and a small signed picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn.probes import state_maps
from ssmn.state import StreamState

MAP_SIDE = 64
"""Most rows and columns of the picture of one layer, all its heads together."""


@dataclass(frozen=True)
class Picture:
    """A memory [H, R, C], reduced: each cell has the value of largest magnitude in its block, as a share of `peak`."""

    cells: NDArray[np.int8]
    """[H, height, width] in −127 .. 127."""
    peak: float
    """Largest magnitude in the memory: what ±127 stands for."""
    rows: int
    """R."""
    columns: int
    """C."""


def memories_of(state: StreamState) -> dict[int, Tensor]:
    """The memories [H, R, C] of a state of one row, by the number of their layer, as `ssmn.probes.state_maps` has them.

    They are the state's own tensors, which nothing ever writes into.
    """
    return {layer: found.values[0] for layer, found in state_maps(state).items()}


def distance(mine: dict[int, Tensor], theirs: dict[int, Tensor]) -> float:
    """How far two models' memories are apart: √Σ (A − B)² / √Σ B², over all layers; NaN if B is empty."""
    apart = sum(float((memory - theirs[layer]).square().sum()) for layer, memory in mine.items())
    size = sum(float(memory.square().sum()) for memory in theirs.values())
    return math.sqrt(apart / size) if size else math.nan


def picture(memory: Tensor) -> Picture:
    """A memory [H, R, C] as a picture of at most `MAP_SIDE`² cells.

    Example:
        >>> import torch
        >>> from ssmn.live.numbers import picture
        >>> small = picture(torch.tensor([[[0.0, -2.0], [1.0, 0.5]]]))
        >>> small.cells.tolist(), small.peak
        ([[[0, -127], [64, 32]]], 2.0)
    """
    heads, rows, columns = memory.shape
    side = max(1, MAP_SIDE // math.ceil(math.sqrt(heads)))
    size = [min(rows, side), min(columns, side)]
    _, strongest = torch.nn.functional.adaptive_max_pool2d(memory.abs(), size, return_indices=True)
    reduced = memory.flatten(1).gather(1, strongest.flatten(1)).view(heads, *size)
    peak = float(reduced.abs().max())
    scaled = (reduced * (127.0 / peak)).round() if peak > 0 and math.isfinite(peak) else torch.zeros_like(reduced)
    return Picture(scaled.to(torch.int8).numpy(), peak, rows, columns)


def finite(value: Any) -> Any:
    """The value with None in place of numbers that are not finite, through lists, tuples and dicts: sound JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
