"""Where the reads of a long stream come from: of every step the strongest earlier writes, within a fixed budget."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ssmn.config import Plasticity
from ssmn.errors import RangeError
from ssmn.models.stack import Stack
from ssmn.probes.attribution import PieceMap, check_piece, signed_length
from ssmn.probes.novelty import Novelty
from ssmn.probes.watch import MemoryCall, watch_memories
from ssmn.state import StreamState

BUDGET = 1 << 26
"""Bytes that a tracer keeps of earlier writes, unless told otherwise."""

PIECE = 512
"""Steps that the model reads at once."""

CHUNK = 64
"""Steps whose reads are taken apart at once; of a wider memory as many as its keys are wide, up to 256."""

BLOCK = 8192
"""Earlier writes that are looked at together."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Of every step the earlier writes that its reads draw on most. T steps, L layers, k writes.

    The weight of a write j in the read at t is the length of A_tj v_j over all heads together (A as in
    `ssmn.probes.attribution`: what the read would lose without that write), with the sign of the strongest head.
    It is in the units of the read; `reads` has the read's own length. Of internal chat the first read alone is traced.
    """

    layers: tuple[int, ...]
    """Numbers of the layers."""
    steps: Tensor
    """[T] int64: the number of each step: open steps of the stream before it, those before the tracer included."""
    positions: Tensor
    """[T, L, k] int64: the numbers of the steps that wrote, strongest first; −1 = none."""
    weights: Tensor
    """[T, L, k] float32, signed; 0 where there is none."""
    reads: Tensor
    """[T, L] float32: length of the whole read over all heads."""
    importance: Tensor
    """[T, L] float32 in [0, 1]: how strongly the step asks to be written, mean over the heads."""
    written: Tensor
    """[T, L] float32 in [0, 1]: share of the heads that wrote it."""
    carried: Tensor
    """[T, L] float32 in [0, 1]: share of the read that comes from before the tracer began: c / (c + r), c and r the
    lengths of that part and of the rest."""
    dropped: Tensor
    """[T, L] float32 in [0, 1]: share of the read that comes from writes that were dropped to keep the budget."""
    novelty: Tensor | None
    """[T] float64: how unexpected the step was, by what the model said before it: bits of a token, root mean squared
    error of a row; NaN if nothing was said. None if the outputs speak of no input."""

    def __len__(self) -> int:
        return len(self.steps)

    @staticmethod
    def join(traces: Sequence[Trace]) -> Trace:
        """One trace of pieces that follow each other."""
        joined: dict[str, Any] = {}
        for item in dataclasses.fields(Trace):
            parts = [getattr(trace, item.name) for trace in traces]
            joined[item.name] = torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
        return Trace(**joined)


class Tracer:
    """Reads a stream and says, step by step, which earlier writes it draws on.

    It keeps of each earlier write j its value and p_j, what later decay and erasure have left of w_j k_j, so that a
    later query's weight is A_tj = q_t · p_j, exactly. |p_j| |v_j| bounds what the write can ever contribute again and
    never rises: when the budget is full, the eighth of the writes with the least of it is merged into one matrix,
    whose share of each read is told as `dropped`. Everything else stays exact.

    Args:
        model: A model with a synaptic memory.
        state: Where the stream stands; None = fresh. What its memory holds is told as `carried`.
        top: k, writes told for each step.
        budget: Bytes for keys and values of earlier writes, over all layers together.
        layers: Layers to trace; None = all with a synaptic memory.
        plasticity: How strongly to learn and forget, in every push that does not say otherwise.

    Raises:
        ConfigError: The model has no synaptic memory.
        RangeError: `top` is below 1, the budget too small, or a layer has no synaptic memory.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import Tracer
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> tracer = Tracer(ssmn.TextSSMN(config), top=2)
        >>> first, second = tracer.push(torch.randint(16, (1, 9))), tracer.push(torch.randint(16, (1, 4)))
        >>> second.positions.shape, second.steps.tolist()
        (torch.Size([4, 1, 2]), [9, 10, 11, 12])
    """

    def __init__(
        self,
        model: Stack,
        state: StreamState | None = None,
        *,
        top: int = 8,
        budget: int = BUDGET,
        layers: Sequence[int] | None = None,
        plasticity: Plasticity | None = None,
    ) -> None:
        if not isinstance(top, int) or isinstance(top, bool) or top < 1:
            raise RangeError(f"Tracer: top={top!r}; wanted a whole number of at least 1.")
        self.model, self.top, self.plasticity = model, top, plasticity
        self.output: Any = None
        """What the model said to the last push."""
        with torch.no_grad():
            self.state = model.init_state(1) if state is None else state
        if self.state.batch_size != 1:
            raise RangeError(f"Tracer: state has {self.state.batch_size} rows; wanted one: state.select([row]).")
        with watch_memories(model, layers) as seen:
            self.layers = tuple(seen)
        shapes = [self.state.layers[layer].memory.shape[1:] for layer in self.layers]  # type: ignore[union-attr]
        per_write = sum(bytes_of_write(*shape) for shape in shapes)
        capacity = int(budget) // per_write
        if capacity < CHUNK:
            raise RangeError(
                f"Tracer: budget={budget!r}; wanted at least {CHUNK * per_write:,} bytes, for {CHUNK} writes."
            )
        self._kept = [
            _Writes(self.state.layers[layer].memory[0], capacity, top)  # type: ignore[union-attr]
            for layer in self.layers
        ]
        self._steps = int(self.state.position[0])
        self._novelty = Novelty(model)

    @property
    def kept(self) -> int:
        """Earlier writes that are kept, over all layers."""
        return sum(writes.count for writes in self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of them."""
        return sum(writes.nbytes for writes in self._kept)

    def fork(self) -> Self:
        """A tracer of the same stream that goes its own way from here."""
        twin = copy.copy(self)
        twin._kept, twin._novelty = [writes.clone() for writes in self._kept], self._novelty.clone()
        return twin

    @torch.no_grad()
    def push(self, x: Tensor, **options: Any) -> Trace:
        """Reads the next piece of the stream; `output` and `state` then are the model's.

        Args:
            x: What the model reads: one row, [1, T, ...], of any length.
            **options: The model's own; those with a time axis for all T steps.

        Returns:
            The trace of the T steps.

        Raises:
            ShapeError, RangeError: `x` has more than one row, or is packed.
        """
        check_piece("Tracer.push", x, options)
        options = {"plasticity": self.plasticity, **options}
        outputs, traces = [], []
        for start in range(0, max(1, x.shape[1]), PIECE):
            steps = slice(start, start + PIECE)
            cut = {
                name: value[:, steps] if name in self.model.per_step and value is not None else value
                for name, value in options.items()
            }
            with watch_memories(self.model, self.layers) as seen:
                y, self.state = self.model(x[:, steps], self.state, **cut)
            outputs.append(y)
            traces.append(self._take_apart(x[:, steps], y, [calls[-1] for calls in seen.values()], cut.get("mask")))
        self.output = torch.cat(outputs, 1)
        return Trace.join(traces)

    def _take_apart(self, x: Tensor, y: Tensor, calls: Sequence[MemoryCall], mask: Tensor | None) -> Trace:
        opened = torch.ones(x.shape[1], dtype=torch.int64) if mask is None else mask[0].long().cpu()
        steps = self._steps + opened.cumsum(0) - opened
        self._steps += int(opened.sum())
        rows = [writes.take(call, steps) for writes, call in zip(self._kept, calls, strict=True)]
        positions, weights, reads, carried, dropped = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        importance = torch.stack([call.importance[0].float().mean(-1).cpu() for call in calls], 1)
        written = torch.stack([call.written[0].float().mean(-1).cpu() for call in calls], 1)
        return Trace(
            self.layers,
            steps,
            positions,
            weights,
            reads,
            importance,
            written,
            carried,
            dropped,
            self._novelty.of(x, y, mask),
        )


def bytes_of_write(heads: int, width: int, wide: int) -> int:
    """What one layer's write takes: key, value and the value's length per head, and its number."""
    return 4 * heads * (width + wide + 1) + 8


class _Writes:
    """The earlier writes of one layer that still matter, and what the others have left.

    Args:
        memory: [H, K, V], the memory before the tracer began.
        capacity: Writes to keep at most.
        top: Writes to tell for each step.
    """

    def __init__(self, memory: Tensor, capacity: int, top: int) -> None:
        heads, width, wide = memory.shape
        self.capacity, self.top, self.count = capacity, top, 0
        kind = {"dtype": torch.float32, "device": memory.device}
        self.keys, self.values = torch.empty(heads, 0, width, **kind), torch.empty(heads, 0, wide, **kind)
        self.lengths = torch.empty(heads, 0, **kind)
        self.positions = torch.empty(0, dtype=torch.int64, device=memory.device)
        self.chunk = min(max(CHUNK, width), 256, capacity)
        # The whole memory, and its parts from before the tracer and of what was dropped.
        self.memory = self.before = memory.double()
        self.rest = torch.zeros_like(self.before)

    @property
    def nbytes(self) -> int:
        """Bytes of the writes that are kept."""
        heads, _, width = self.keys.shape
        return self.count * bytes_of_write(heads, width, self.values.shape[-1])

    def clone(self) -> _Writes:
        """A copy that shares nothing that is written into."""
        twin = copy.copy(self)
        twin.keys, twin.values = self.keys.clone(), self.values.clone()
        twin.lengths, twin.positions = self.lengths.clone(), self.positions.clone()
        return twin

    def take(self, call: MemoryCall, steps: Tensor) -> tuple[Tensor, ...]:
        """Takes the reads of a piece apart, then keeps its writes.

        Args:
            call: What was written and asked.
            steps: [T], their numbers.

        Returns:
            (positions [T, k], weights [T, k], length of the read [T], shares of what came before and of what was
            dropped [T]).
        """
        starts = range(0, max(1, len(steps)), self.chunk)
        rows = [self._chunk(call, start, steps[start : start + self.chunk]) for start in starts]
        return tuple(torch.cat(part) for part in zip(*rows, strict=True))

    def _chunk(self, call: MemoryCall, start: int, steps: Tensor) -> tuple[Tensor, ...]:
        stop = start + len(steps)
        piece = PieceMap(call, 0, start, stop)
        queries = call.queries[0][0, start:stop].double().transpose(0, 1)
        values = call.values[0, start:stop].double().transpose(0, 1)
        weights, asked, _ = piece.ask(queries)
        first = asked @ self.before
        dropped = asked @ self.rest
        asked32 = asked.float()
        read = asked @ self.memory + weights @ values
        own = (weights * values.norm(dim=-1).unsqueeze(1)).float()
        best = _Best(self.top, len(steps), own.device)
        for begin in range(0, self.count, BLOCK):
            block = slice(begin, min(begin + BLOCK, self.count))
            found = asked32 @ self.keys[:, block].mT
            best.add(found * self.lengths[:, None, block], self.positions[block])
        best.add(own, steps.to(own.device))
        told = (_length(read), _share(first, read - first), _share(dropped, read - dropped))
        self._keep(piece, values, steps)
        return (best.positions.cpu(), best.weights.cpu(), *(x.float().cpu() for x in told))

    def _keep(self, piece: PieceMap, values: Tensor, steps: Tensor) -> None:
        new, kept = piece.end()
        self.memory = kept @ self.memory + new.mT @ values
        self.before, self.rest = kept @ self.before, kept @ self.rest
        written = (piece.write > 0).any(0)
        new, values, steps = new[:, written].float(), values[:, written].float(), steps.to(written.device)[written]
        for begin in range(0, self.count, BLOCK):
            block = self.keys[:, begin : min(begin + BLOCK, self.count)]
            block.copy_(block @ kept.float().mT)
        if self.count + len(steps) > self.capacity:
            self._drop(self.count + len(steps))
        self._reserve(self.count + len(steps))
        place = slice(self.count, self.count + len(steps))
        self.keys[:, place], self.values[:, place], self.positions[place] = new, values, steps
        self.lengths[:, place] = values.norm(dim=-1)
        self.count += len(steps)

    def _reserve(self, wanted: int) -> None:
        """Room for so many writes: twice as much as there was, up to the capacity."""
        have = len(self.positions)
        if wanted <= have:
            return
        more = min(self.capacity, max(wanted, 2 * have)) - have
        heads, device = self.keys.shape[0], self.keys.device
        self.keys, self.values = (
            torch.cat([x, torch.zeros(heads, more, x.shape[-1], device=device)], 1) for x in (self.keys, self.values)
        )
        self.lengths = torch.cat([self.lengths, torch.zeros(heads, more, device=device)], 1)
        self.positions = torch.cat([self.positions, torch.zeros(more, dtype=torch.int64, device=device)])

    def _drop(self, wanted: int) -> None:
        """Merges the writes with the least left to say, so that an eighth of the capacity is free for new ones."""
        room = max(wanted - self.count, self.capacity // 8)
        bound = signed_length(self.keys[:, : self.count].norm(dim=-1) * self.lengths[:, : self.count])
        order = bound.argsort(descending=True)
        stay, gone = order[: self.capacity - room].sort().values, order[self.capacity - room :]
        self.rest = self.rest + self.keys[:, gone].double().mT @ self.values[:, gone].double()
        for x in (self.keys, self.values, self.lengths):
            x[:, : len(stay)] = x[:, stay]
        self.positions[: len(stay)] = self.positions[stay]
        self.count = len(stay)


class _Best:
    """The k strongest of what is added, step by step."""

    def __init__(self, top: int, time: int, device: torch.device) -> None:
        self.positions = torch.full((time, top), -1, dtype=torch.int64, device=device)
        self.weights = torch.zeros(time, top, device=device)

    def add(self, parts: Tensor, positions: Tensor) -> None:
        """Candidates, signed lengths per head [H, T, N], and their numbers [N]."""
        top = min(self.weights.shape[1], parts.shape[-1])
        lengths = parts[0].abs() if len(parts) == 1 else parts.square().sum(0)
        chosen = lengths.topk(top).indices
        found = signed_length(parts.gather(-1, chosen.expand(len(parts), -1, -1)))
        both, numbers = torch.cat([self.weights, found], 1), torch.cat([self.positions, positions[chosen]], 1)
        chosen = both.abs().topk(self.weights.shape[1]).indices
        self.weights = both.gather(1, chosen)
        self.positions = numbers.gather(1, chosen).masked_fill(self.weights == 0, -1)


def _length(x: Tensor) -> Tensor:
    """[H, T, V] to [T], over all heads."""
    return x.square().sum((0, 2)).sqrt()


def _share(part: Tensor, rest: Tensor) -> Tensor:
    mine, others = _length(part), _length(rest)
    return mine / (mine + others).clamp(min=torch.finfo(torch.float64).tiny)


def trace(
    model: Stack,
    x: Tensor | Iterable[Tensor],
    *,
    state: StreamState | None = None,
    top: int = 8,
    budget: int = BUDGET,
    layers: Sequence[int] | None = None,
    plasticity: Plasticity | None = None,
) -> Trace:
    """Of every step of a stream the earlier writes that its reads draw on most, however long ago they were.

    Args:
        model: A model with a synaptic memory.
        x: What it reads, [1, T, ...], or the pieces of it one after the other.
        state: Where the stream stands; None = fresh.
        top: k, writes told for each step.
        budget: Bytes for keys and values of earlier writes, over all layers together.
        layers: Layers to trace; None = all with a synaptic memory.
        plasticity: How strongly to learn and forget.

    Returns:
        The trace of all steps; its own size is T · L · k · 12 bytes and a little.

    Raises:
        ShapeError, RangeError, ConfigError: As for `Tracer`.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import trace
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> found = trace(ssmn.TextSSMN(config), torch.randint(16, (1, 30)), top=3)
        >>> found.layers, found.positions.shape, found.weights.shape
        ((1,), torch.Size([30, 1, 3]), torch.Size([30, 1, 3]))
    """
    tracer = Tracer(model, state, top=top, budget=budget, layers=layers, plasticity=plasticity)
    pieces = [x] if isinstance(x, Tensor) else x
    traces = [tracer.push(piece) for piece in pieces]
    if not traces:
        raise RangeError("trace: x has no pieces; wanted at least one.")
    return Trace.join(traces)
