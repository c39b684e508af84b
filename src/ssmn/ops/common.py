"""What every backend shares: dtypes, argument checks, and the rules as coefficients."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ssmn.config import UpdateRule
from ssmn.errors import DtypeError, RangeError, ShapeError

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

FORGOTTEN = -1000.0
"""exp(−1000) is zero in every dtype: a stronger decay is the same, and would only swamp the sums that it enters."""


_FEW = 64
"""Up to so many numbers are looked at one by one: a step of a stream should not wait for two reductions."""


@dataclass(frozen=True)
class MemoryTrace:
    """What `memory_write` leaves for `memory_read`: every state of the memory, in a form that any query can read.

    Attributes:
        backend: The backend that wrote it, and that reads it.
        keys: [B, T, H, K], k_t.
        updates: [B, T, H, V], u_t, the vector that was added along k_t: S_t = a_t S_{t−1} + k_t u_tᵀ.
        log_keep: [B, T, H], log a_t; for `native` log_decay, which closed steps of the mask do not follow.
        states: The memory [.., H, K, V] after every step (`reference`) or before every chunk (`chunked`); None for
            `native`, which computes it again.
        initial_state: [N, H, K, V], the memory before the first step; None = zeros (`native`).
        reset: [B, T] or None.
        cu_seqlens: [N + 1] or None.
        dtype: The dtype of what is read.
        mask: [B, T] or [B, T, H], True = open, or None; for `native`.
    """

    backend: str
    keys: Tensor
    updates: Tensor
    log_keep: Tensor
    states: Tensor | None
    initial_state: Tensor | None
    reset: Tensor | None
    cu_seqlens: Tensor | None
    dtype: torch.dtype
    mask: Tensor | None = None


def check_numbers(op: str, name: str, numbers: Tensor, end: int) -> None:
    """Whether integers, of which there are some, are in [0, end)."""
    low, high = (int(number) for number in numbers.aminmax())
    if low < 0 or high >= end:
        raise RangeError(f"{op}: {name} has {low if low < 0 else high}; wanted integers in [0, {end}).")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def coefficients(
    rule: UpdateRule, eta: Tensor, log_decay: Tensor, erase: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """A rule as (write w, erase e or None, log a), each [B, T, H]; a closed step is exactly zero in all three."""
    gate = None if mask is None else (mask if mask.dim() == 3 else mask.unsqueeze(-1))
    zero = eta.new_zeros(())
    log_decay = log_decay.clamp(min=FORGOTTEN)

    def gated(value: Tensor) -> Tensor:
        return value if gate is None else torch.where(gate, value, zero)

    write = gated(eta)
    if rule == "hebbian":
        return write, None, gated(log_decay)
    if rule == "delta":
        return write, write, gated(log_decay)
    assert erase is not None
    return write, gated(erase), gated(log_decay)


def shape_text(tensor: Tensor) -> str:
    """`[2, 3, 4]`."""
    return str(list(tensor.shape))


def check_tensor(
    op: str, name: str, tensor: object, axes: str, sizes: dict[str, int], *, floating: bool = True
) -> None:
    """Checks the axes of `tensor` against letters ("B T H K"); the sizes of new letters go into `sizes`."""
    if not isinstance(tensor, Tensor):
        raise DtypeError(f"{op}: {name} is {type(tensor).__name__}; wanted a tensor {_wanted(axes)}.")
    if floating and tensor.dtype not in _FLOATS:
        raise DtypeError(f"{op}: {name} is {tensor.dtype}; wanted a floating dtype; convert it with .float().")
    letters, shape = axes.split(), tensor.shape
    if len(shape) != len(letters):
        raise ShapeError(f"{op}: {name} has shape {shape_text(tensor)}; wanted {len(letters)} axes {_wanted(axes)}.")
    for letter, size in zip(letters, shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            known = ", ".join(f"{key}={sizes[key]}" for key in letters if key in sizes)
            raise ShapeError(f"{op}: {name} has shape {shape_text(tensor)}; wanted {_wanted(axes)} with {known}.")


def _wanted(axes: str) -> str:
    return f"[{', '.join(axes.split())}]"


def check_steps(
    op: str, sizes: dict[str, int], mask: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None
) -> int:
    """Checks mask, reset and cu_seqlens against B and T; returns the number of streams (N when packed, else B)."""
    batch, time = sizes["B"], sizes["T"]
    for name, steps in (("mask", mask), ("reset", reset)):
        if steps is None:
            continue
        if not isinstance(steps, Tensor) or steps.dtype != torch.bool:
            came = steps.dtype if isinstance(steps, Tensor) else type(steps).__name__
            raise DtypeError(f"{op}: {name} is {came}; wanted a bool tensor [B, T]; convert it with .bool().")
        per_head = name == "mask" and "H" in sizes and tuple(steps.shape) == (batch, time, sizes["H"])
        if tuple(steps.shape) != (batch, time) and not per_head:
            raise ShapeError(f"{op}: {name} has shape {shape_text(steps)}; wanted [B, T] with B={batch}, T={time}.")
    if cu_seqlens is None:
        return batch
    is_tensor = isinstance(cu_seqlens, Tensor)
    if not is_tensor or cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1:
        came = f"{cu_seqlens.dtype} {shape_text(cu_seqlens)}" if is_tensor else type(cu_seqlens).__name__
        raise DtypeError(f"{op}: cu_seqlens is {came}; wanted an int32 or int64 tensor [N + 1] of segment boundaries.")
    if batch != 1:
        raise ShapeError(f"{op}: cu_seqlens packs the segments into one row, but B={batch}; wanted B=1.")
    if not hides_values():
        check_bounds(op, cu_seqlens, time)
    return cu_seqlens.shape[0] - 1


def hides_values() -> bool:
    """Whether no branch can depend on values: under torch.compile, and under vmap and the like."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def check_bounds(op: str, cu_seqlens: Tensor, time: int) -> None:
    """Refuses boundaries that do not rise from 0 to T."""
    bounds = cu_seqlens.tolist()
    rises = all(a <= b for a, b in itertools.pairwise(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != time or not rises:
        raise RangeError(f"{op}: cu_seqlens={_short(bounds)}; wanted boundaries that rise from 0 to T={time}.")


def check_range(op: str, name: str, tensor: Tensor, low: float, high: float) -> None:
    """Refuses values outside [low, high] and NaN, where values can be seen."""
    if hides_values() or tensor.numel() == 0:
        return
    if tensor.numel() <= _FEW:
        few = tensor if tensor.dim() == 1 else tensor.detach().reshape(-1)
        if all(low <= value <= high for value in few.tolist()):
            return
    least, most = torch.aminmax(tensor.detach())
    if math.isnan(least):
        raise RangeError(f"{op}: {name} is NaN, as the input or a weight may be; wanted [{low:g}, {high:g}].")
    if not (low <= float(least) and float(most) <= high):
        raise RangeError(f"{op}: {name} lies in [{float(least):g}, {float(most):g}]; wanted [{low:g}, {high:g}].")


def check_choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not one of `choices`."""
    if value not in choices:
        raise RangeError(f"{op}: {name}={value!r}; wanted one of {', '.join(choices)}.")


def check_rule(op: str, rule: str, erase: Tensor | None) -> None:
    """The rule must be known; `erase` belongs to the rule `erase` and to no other."""
    check_choice(op, "rule", rule, get_args(UpdateRule))
    if (rule == "erase") != (erase is not None):
        way_out = "pass erase [B, T, H]" if erase is None else "leave erase out, or use rule='erase'"
        raise RangeError(f"{op}: rule={rule!r} with erase {'missing' if erase is None else 'given'}; {way_out}.")


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:6]))}, …, {values[-1]}]"
