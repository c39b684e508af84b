"""What a layer checks: its settings when it is made, and what it is given when it is called."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmn.config import Plasticity
from ssmn.errors import ConfigError, DtypeError, RangeError, ShapeError, StateError
from ssmn.ops.common import check_steps, shape_text
from ssmn.state import State


def check_setting(owner: str, name: str, value: object, good: bool, wanted: str) -> None:
    """Refuses a setting that is not good."""
    if not good:
        raise ConfigError(f"{owner}: {name}={value!r}; wanted {wanted}.")


def check_counts(owner: str, **counts: object) -> None:
    """Refuses a size that is no whole number of at least 1."""
    for name, value in counts.items():
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        check_setting(owner, name, value, good, "a whole number of at least 1")


def check_hidden(owner: str, hidden: object, dim: int, weight: Tensor) -> None:
    """`hidden` must be a floating tensor [B, T, dim] in the dtype of the weights."""
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        came = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
        raise DtypeError(f"{owner}: input is {came}; wanted a floating tensor [B, T, D].")
    if hidden.dim() != 3 or hidden.shape[-1] != dim:
        raise ShapeError(f"{owner}: input has shape {shape_text(hidden)}; wanted [B, T, D] with D={dim}.")
    check_dtype(owner, "input", hidden, weight)


def check_dtype(owner: str, name: str, tensor: Tensor, weight: Tensor) -> None:
    """`tensor` must have the dtype of the weights, unless autocast converts it."""
    if tensor.dtype != weight.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise DtypeError(
            f"{owner}: {name} is {tensor.dtype} but the weights are {weight.dtype}; "
            f"convert one of them: {name}.to({weight.dtype}), or the module with .to({tensor.dtype})."
        )


def check_streams(
    owner: str, steps: Tensor, mask: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None
) -> int:
    """Checks mask, reset and cu_seqlens against B and T of `steps`; returns the number of streams."""
    return check_steps(owner, {"B": steps.shape[0], "T": steps.shape[1]}, mask, reset, cu_seqlens)


def check_state(owner: str, state: object, kind: type[State], shapes: dict[str, tuple[int, ...]]) -> None:
    """`state` must be of this kind, with tensors of these shapes."""
    if not isinstance(state, kind):
        raise StateError(f"{owner}: state is {type(state).__name__}; wanted {kind.__name__}, or None for a fresh one.")
    for name, shape in shapes.items():
        came = getattr(state, name).shape
        if tuple(came) != shape:
            raise StateError(
                f"{owner}: the state's {name} has shape {list(came)}; wanted {list(shape)}; "
                "use a state of this model with one row per stream (state.select, init_state)."
            )


def check_learning(owner: str, steps: Tensor, elapsed: object, plasticity: object) -> None:
    """`elapsed` must be finite times [B, T] and `plasticity` a `Plasticity`, if they are given."""
    if plasticity is not None and not isinstance(plasticity, Plasticity):
        raise DtypeError(f"{owner}: plasticity is {type(plasticity).__name__}; wanted ssmn.Plasticity(...).")
    if elapsed is None:
        return
    if not isinstance(elapsed, Tensor) or elapsed.shape != steps.shape[:2]:
        came = shape_text(elapsed) if isinstance(elapsed, Tensor) else type(elapsed).__name__
        raise ShapeError(f"{owner}: elapsed is {came}; wanted a tensor [B, T] = {list(steps.shape[:2])}.")
    if not torch.compiler.is_compiling() and not bool((elapsed.isfinite() & (elapsed >= 0)).all()):
        raise RangeError(f"{owner}: elapsed has negative or non-finite times; wanted finite times ≥ 0.")
