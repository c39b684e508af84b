"""Looking on while a model reads: what every layer starts from and ends with, what is written, what is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssmn.config import UpdateRule
from ssmn.errors import RangeError
from ssmn.layers.attention import SlidingWindowAttention
from ssmn.layers.memory import SynapticMemory, unit
from ssmn.models.stack import Stack
from ssmn.ops.common import coefficients, state_dtype
from ssmn.ops.ring import lay_out
from ssmn.probes.writes import memories
from ssmn.state import State, WindowState


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

    def first(self, rows: int) -> MemoryCall:
        """The first rows of a call that is not packed."""
        cut = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "queries"}
        cut: dict[str, Any] = {k: value[:rows] if isinstance(value, Tensor) else value for k, value in cut.items()}
        return MemoryCall(**cut, queries=[query[:rows] for query in self.queries])

    @property
    def written(self) -> Tensor:
        """[B, T, H] bool: whether the step was written; a strength of exactly 0 counts as not."""
        return self.coefficients()[0] > 0


@contextmanager
def watch_memories(
    model: Stack | SynapticMemory, layers: Iterable[int] | None = None
) -> Iterator[dict[int, list[MemoryCall]]]:
    """Within it, what each synaptic memory of the model is given: for each call one entry, by the number of the layer.

    Nothing is computed twice and nothing changes for the model. It must not be used by another thread meanwhile.

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
        self._outer: Any = None
        self._handles: list[Any] = []

    def begin(self) -> None:
        self._outer, self.memory.watch = self.memory.watch, self._write
        self._handles = [
            self.memory.importance.register_forward_hook(self._ask_gate),
            self.memory.query.register_forward_hook(self._ask),
        ]

    def end(self) -> None:
        self.memory.watch = self._outer
        for handle in self._handles:
            handle.remove()

    def _ask_gate(self, gate: Any, arguments: Any, swing: Tensor) -> None:
        self._importance = (2 * gate.plasticity_eta * swing.detach()).clamp(max=1.0)

    def _write(self, keys: Tensor, values: Tensor, options: dict[str, Any]) -> None:
        assert self._importance is not None
        given: dict[str, Any] = {
            name: value.detach() if isinstance(value, Tensor) else value for name, value in options.items()
        }
        self.calls.append(MemoryCall(keys.detach(), values.detach(), self._importance, **given))
        if self._outer is not None:
            self._outer(keys, values, options)

    def _ask(self, query: Any, arguments: Any, asked: Tensor) -> None:
        heads = asked.detach().unflatten(-1, (self.memory.heads, self.memory.head_dim))
        self.calls[-1].queries.append(unit(heads).to(state_dtype(asked.dtype)))


ENTROPY_STEPS = 64
"""Last steps of a piece whose attention is looked at."""


@dataclass(eq=False)
class BlockCall:
    """One call of one layer, without gradients; of a batch the first rows."""

    before: State
    """The layer's state before the piece."""
    after: State
    """The layer's state after it."""
    memory: MemoryCall | None
    """What was written, if the layer has a synaptic memory."""
    entropy: Tensor | None
    """[B, Hq], mean entropy of the attention over the last steps of the piece in nats, if the layer has a window."""


@contextmanager
def watch_blocks(model: Stack, rows: int = 4) -> Iterator[dict[int, BlockCall]]:
    """Within it, what the layers of a model did in the last call, by their number.

    Args:
        model: One of our models; no other thread may use it meanwhile.
        rows: Rows of a batch that are looked at; of packed calls none are.

    Example:
        See `ssmn.probes.measure_blocks`.
    """
    seen: dict[int, BlockCall] = {}
    entropies: dict[int, Tensor] = {}
    inner = {n: block.mixer for n, block in enumerate(model.blocks) if isinstance(block.mixer, SynapticMemory)}
    watchers = {number: _Watcher(memory) for number, memory in inner.items()}

    def attend(number: int) -> Any:
        def hook(module: SlidingWindowAttention, given: Any, options: Any) -> None:
            if options.get("cu_seqlens") is None and given[0].shape[1]:
                flags: dict[str, Any] = {
                    name: options[name][:rows] for name in ("mask", "reset") if options.get(name) is not None
                }
                start: Any = _first(given[1], rows)
                entropies[number] = attention_entropy(module, given[0][:rows], start, **flags)

        return hook

    def keep(number: int) -> Any:
        def hook(block: Any, given: Any, result: Any) -> None:
            watcher = watchers.get(number)
            memory = watcher.calls.pop() if watcher is not None else None
            if memory is None or memory.cu_seqlens is None:
                before, after = _first(given[1], rows), _first(result[1], rows)
                seen[number] = BlockCall(before, after, memory and memory.first(rows), entropies.get(number))

        return hook

    handles = []
    try:
        for watcher in watchers.values():
            watcher.begin()
        for number, block in enumerate(model.blocks):
            if isinstance(block.mixer, SlidingWindowAttention):
                handles.append(block.mixer.register_forward_pre_hook(attend(number), with_kwargs=True))
            handles.append(block.register_forward_hook(keep(number)))
        yield seen
    finally:
        for watcher in watchers.values():
            watcher.end()
        for handle in handles:
            handle.remove()


def _first(state: State, rows: int) -> State:
    return state.map(lambda value: value[:rows].detach())


@torch.no_grad()
def attention_entropy(
    attention: SlidingWindowAttention,
    hidden: Tensor,
    state: WindowState | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    last: int = ENTROPY_STEPS,
) -> Tensor:
    """How spread out the attention of a window layer is: mean of −Σ p ln p over the last open steps of a piece.

    Args:
        attention: The layer.
        hidden: [B, T, D], what it is given.
        state: Its state before; None = fresh.
        mask: [B, T] bool, True = open.
        reset: [B, T] bool, True = fresh before this step.
        last: Steps to look at.

    Returns:
        [B, Hq] in nats, from 0 to ln W; a sink's share of the attention counts as one more position. NaN if no step is
        open.

    Example:
        >>> import math, ssmn, torch
        >>> from ssmn.probes import attention_entropy
        >>> layer = ssmn.layers.SlidingWindowAttention(8, 2, window_size=4)
        >>> entropy = attention_entropy(layer, torch.randn(1, 9, 8))
        >>> entropy.shape, bool((entropy > 0).all() and (entropy < math.log(4)).all())
        (torch.Size([1, 2]), True)
    """
    reach = last + attention.window_size - 1
    if mask is None and reset is None and hidden.shape[1] > reach:
        # What lies before the windows of the last steps has no say, and rotary positions count from anywhere.
        hidden, state = hidden[:, -reach:], None
    query, key = attention.query(hidden), attention.key(hidden)
    query = query.unflatten(-1, (attention.num_heads, attention.head_dim))
    key = key.unflatten(-1, (attention.num_kv_heads, attention.head_dim))
    state = attention.init_state(len(hidden)) if state is None else state
    band = lay_out(query, key, key, attention.window_size, attention.rope_theta, mask, reset, None, state)
    # Open steps stand in front; the last of them are looked at.
    opened = torch.full((len(hidden),), hidden.shape[1]) if mask is None else mask.sum(1).cpu()
    groups, sums = attention.num_heads // attention.num_kv_heads, []
    for row, count in enumerate(opened.tolist()):
        steps = slice(max(0, count - last), count)
        index = torch.arange(steps.start, steps.stop + attention.window_size - 1, device=hidden.device)
        seen = (index >= band.lo[row, steps, None]) & (index < band.hi[row, steps, None])
        asked = band.q[row, steps].unflatten(1, (-1, groups)) * attention.head_dim**-0.5
        scores = torch.einsum("tgjd,sgd->gjts", asked, band.k[row, index]).masked_fill(~seen, -torch.inf)
        scores = scores.flatten(0, 1)
        if attention.sinks is not None:
            sinks = attention.sinks.reshape(-1, 1, 1).expand(-1, scores.shape[1], 1)
            scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
        sums.append(torch.special.entr(torch.softmax(scores, -1)).sum(-1).mean(-1))
    return torch.stack(sums)
