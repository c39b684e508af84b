"""What this machine can do at best: its matrix products per second and its reads per second, for any number of threads.

A floor is a call that takes turns with the candidates of a benchmark, so that a share of it compares two things that
ran in the same minute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ssmn.bench.figures import spread
from ssmn.bench.timing import time_alternately

GEMM_SIZE = 2048
READ_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Floor:
    """A call and what it gets done."""

    name: str
    call: Callable[[], object]
    amount: float
    """Operations or bytes of one call, in billions."""
    unit: str

    def rate(self, seconds: float) -> float:
        """`unit` at that duration of a call."""
        return self.amount / seconds


def gemm(dtype: torch.dtype, size: int = GEMM_SIZE) -> Floor:
    """Torch's product of two square matrices; an operation is a multiplication or an addition."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return Floor(f"GEMM {dtype_name(dtype)}", lambda: torch.mm(left, right, out=out), 2e-9 * size**3, "GFLOP/s")


def read(count: int = READ_BYTES) -> Floor:
    """One pass over `count` bytes: the Euclidean norm, torch's fastest reader on the machines at hand."""
    values = torch.ones(count // 4)
    return Floor("read", lambda: torch.linalg.vector_norm(values), values.nbytes / 1e9, "GB/s")


def measure(gemm_size: int = GEMM_SIZE, read_bytes: int = READ_BYTES, repeats: int = 7) -> dict[str, Any]:
    """The floors of this machine with torch's present number of threads.

    Args:
        gemm_size: Rows of the matrices.
        read_bytes: Bytes that are read; more than the caches hold.
        repeats: Runs of each; they take turns.

    Returns:
        By name (`GEMM float32`, `GEMM bfloat16`, `read`) the median rate, its quartiles and the unit.

    Example:
        >>> from ssmn.bench import floors
        >>> sorted(floors.measure(gemm_size=64, read_bytes=4096, repeats=1))
        ['GEMM bfloat16', 'GEMM float32', 'read']
    """
    all_floors = [gemm(torch.float32, gemm_size), gemm(torch.bfloat16, gemm_size), read(read_bytes)]
    seconds = time_alternately({floor.name: floor.call for floor in all_floors}, repeats)
    return {
        floor.name: {**spread([floor.rate(run) for run in seconds[floor.name]]), "unit": floor.unit}
        for floor in all_floors
    }


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
