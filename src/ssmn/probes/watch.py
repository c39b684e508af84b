"""Looking on while a model reads: what every synaptic memory is given to write, and what it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssmn.config import UpdateRule
from ssmn.errors import RangeError
from ssmn.layers.memory import SynapticMemory, unit
from ssmn.models.stack import Stack
from ssmn.ops.common import coefficients, state_dtype
from ssmn.probes.writes import memories


@dataclass(frozen=True, eq=False)
class MemoryCall:
    """What one call gave to one synaptic memory, without gradients: the arguments of `ssmn.ops.synaptic_memory`."""

    keys: Tensor
    """[B, T, H, K]."""
    values: Tensor
    """[B, T, H, V]."""
    importance: Tensor
    """[B, T, H] in [0, 1]: how strongly each step asks to be written, before any scaling by the call."""
    eta: Tensor
    """[B, T, H], the write strength in force, where a step is written at all."""
    log_decay: Tensor
    """[B, T, H], log(1 − λ) of the step, its elapsed time included."""
    erase: Tensor | None
    """[B, T, H], for the rule `erase` alone."""
    rule: UpdateRule
    """The update rule."""
    mask: Tensor | None
    """[B, T, H] bool: open for writing (mask, threshold and `frozen` together); None = all."""
    reset: Tensor | None
    """[B, T] bool, or None."""
    cu_seqlens: Tensor | None
    """[N + 1], or None."""
    initial_state: Tensor
    """[N, H, K, V], the memory before the first step."""
    queries: list[Tensor] = field(default_factory=list)
    """[B, T, H, K] each: the first read's, then one for each round of internal chat."""

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """(w, e, log a), [B, T, H] each, of S_t = a_t (S_{t−1} − e_t k_t k_tᵀ S_{t−1}) + w_t k_t v_tᵀ."""
        write, erase, log_keep = coefficients(self.rule, self.eta, self.log_decay, self.erase, self.mask)
        return write, torch.zeros_like(write) if erase is None else erase, log_keep

    @property
    def written(self) -> Tensor:
        """[B, T, H] bool: whether the step was written; a strength of exactly 0 counts as not."""
        return self.coefficients()[0] > 0


@contextmanager
def watch_memories(
    model: Stack | SynapticMemory, layers: Iterable[int] | None = None
) -> Iterator[dict[int, list[MemoryCall]]]:
    """Within it, what each synaptic memory of the model is given: for each call one entry, by the number of the layer.

    Nothing is computed twice and nothing changes for the model. A model is watched once at a time, and not while
    another thread uses it.

    Args:
        model: One of our models, or a `SynapticMemory` by itself (then layer 0).
        layers: The layers to watch; None = all that have a synaptic memory.

    Raises:
        ConfigError: The model has no synaptic memory.
        RangeError: A layer is not one with a synaptic memory.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import watch_memories
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> model = ssmn.TextSSMN(config)
        >>> with watch_memories(model) as seen:
        ...     _ = model(torch.randint(16, (2, 9)))
        >>> seen[1][0].keys.shape, seen[1][0].rule
        (torch.Size([2, 9, 1, 12]), 'delta')
    """
    found = {0: model} if isinstance(model, SynapticMemory) else memories(model)
    chosen = list(found) if layers is None else list(layers)
    for layer in chosen:
        if layer not in found:
            raise RangeError(f"probes: layer={layer!r}; wanted one with a synaptic memory: {_listed(found)}.")
    watchers = [_Watcher(found[layer]) for layer in chosen]
    try:
        for watcher in watchers:
            watcher.begin()
        yield {layer: watcher.calls for layer, watcher in zip(chosen, watchers, strict=True)}
    finally:
        for watcher in watchers:
            watcher.end()


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


class _Watcher:
    """The hooks on one memory: in a call first its gate speaks, then its writes, then its queries, round by round."""

    def __init__(self, memory: SynapticMemory) -> None:
        self.memory, self.calls = memory, []
        self._importance: Tensor | None = None
        self._handles: list[Any] = []

    def begin(self) -> None:
        self.memory.watch = self._write
        self._handles = [
            self.memory.importance.register_forward_hook(self._ask_gate),
            self.memory.query.register_forward_hook(self._ask),
        ]

    def end(self) -> None:
        self.memory.watch = None
        for handle in self._handles:
            handle.remove()

    def _ask_gate(self, gate: Any, arguments: Any, swing: Tensor) -> None:
        self._importance = (2 * gate.plasticity_eta * swing.detach()).clamp(max=1.0)

    def _write(self, keys: Tensor, values: Tensor, options: dict[str, Any]) -> None:
        assert self._importance is not None
        given = {name: value.detach() if isinstance(value, Tensor) else value for name, value in options.items()}
        self.calls.append(MemoryCall(keys.detach(), values.detach(), self._importance, **given))

    def _ask(self, query: Any, arguments: Any, asked: Tensor) -> None:
        heads = asked.detach().unflatten(-1, (self.memory.heads, self.memory.head_dim))
        self.calls[-1].queries.append(unit(heads).to(state_dtype(asked.dtype)))
