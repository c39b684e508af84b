"""What the memory of a model wrote: how strongly each step asks to be written, and whether it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssmn.config import Plasticity
from ssmn.errors import ConfigError
from ssmn.layers.memory import SynapticMemory
from ssmn.models.stack import Stack
from ssmn.stream import Stream


@dataclass(frozen=True)
class Writes:
    """What the memory of a model wrote while it read a piece of one stream."""

    layers: tuple[int, ...]
    """Numbers of the layers with a synaptic memory, L of them."""
    importance: np.ndarray
    """[T, L, H] in [0, 1]: how strongly each step asks to be written, before any scaling by the call."""
    written: np.ndarray
    """[T, L, H] bool: whether it was written; False where the importance is below the threshold in force."""

    @property
    def strength(self) -> np.ndarray:
        """[T]: mean importance over layers and heads; a step that was not written counts 0."""
        return np.where(self.written, self.importance, 0.0).mean((1, 2))


def memories(model: Stack) -> dict[int, SynapticMemory]:
    """The model's synaptic memories by the number of their layer.

    Raises:
        ConfigError: It has none.
    """
    found = {number: block.mixer for number, block in enumerate(model.blocks)}
    found = {number: mixer for number, mixer in found.items() if isinstance(mixer, SynapticMemory)}
    if not found:
        kinds = ", ".join(model.config.layer_types or ())
        raise ConfigError(f"probes: the model's layers are {kinds}: none has a synaptic memory; nothing is written.")
    return found


def writers(model: Stack) -> dict[int, SynapticMemory]:
    """The synaptic memories by the number of their layer, those inside other mixers (`amn`) too; there may be none."""
    found = {
        number: next((part for part in block.mixer.modules() if isinstance(part, SynapticMemory)), None)
        for number, block in enumerate(model.blocks)
    }
    return {number: memory for number, memory in found.items() if memory is not None}


def _needed(model: Stack) -> dict[int, SynapticMemory]:
    return writers(model) or memories(model)


def read_writes(stream: Stream, x: torch.Tensor, *, plasticity: Plasticity | None = None) -> Writes:
    """Reads the next piece of a stream and says what was written on the way.

    Args:
        stream: A `Stream` of one row over one of our models; it moves on.
        x: What the model reads, [1, T, ...].
        plasticity: How strongly to learn and forget while reading; `write_threshold` as one number.

    Returns:
        The writes of the T steps.

    Raises:
        ConfigError: The model has no synaptic memory.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import read_writes
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> stream = ssmn.Stream(ssmn.TextSSMN(config))
        >>> writes = read_writes(stream, torch.randint(16, (1, 9)))
        >>> writes.layers, writes.importance.shape, bool(writes.written.all())
        ((1,), (9, 1, 1), True)
    """
    found = _needed(stream.model)  # type: ignore[arg-type]
    with watch_importance(stream.model) as seen:  # type: ignore[arg-type]
        stream.push(x, plasticity=plasticity)
    importance = np.stack([calls[-1][0].numpy() for calls in seen.values()], 1)
    asked = None if plasticity is None else plasticity.write_threshold
    thresholds = [memory.write_threshold if asked is None else float(asked) for memory in found.values()]
    written = importance >= np.array(thresholds)[:, None]
    if plasticity is not None and plasticity.frozen:
        written[:] = False
    return Writes(tuple(found), importance, written)


@contextmanager
def watch_importance(model: Stack) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Within it, how strongly each step asks to be written: for each call [B, T, H], by the number of the layer.

    Raises:
        ConfigError: The model has no synaptic memory.
    """
    found = _needed(model)
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in found}

    def keep(number: int) -> Any:
        def hook(gate: Any, arguments: Any, swing: torch.Tensor) -> None:
            seen[number].append((2 * gate.plasticity_eta * swing.detach()).clamp(max=1.0).float())

        return hook

    handles = [memory.importance.register_forward_hook(keep(number)) for number, memory in found.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
