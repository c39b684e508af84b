"""The Neural Turing Machine: a controller that addresses a memory by content and by place (Graves et al., 2014)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn.config import Plasticity, StackConfig
from ssmn.layers.checks import check_hidden, check_learning, check_setting, check_state, check_streams
from ssmn.ops import native
from ssmn.ops.common import state_dtype
from ssmn.ops.dispatch import choose_backend
from ssmn.ops.segments import Packing, count_open
from ssmn.relatives.base import Member
from ssmn.state import State, register_state

Controller = Literal["lstm", "feedforward"]
"""What decides where to write and to read: with a memory of its own, or without."""

LENGTH_EPS = 1e-3
"""Added to the squared length of keys and rows: a row that nothing was written to is like no key, and what seeps
into it while others are written does not yet count as content."""

WEIGHT_EPS = 1e-12
"""Added to weights before their logarithm."""


@register_state("ntm")
@dataclass(frozen=True, eq=False, repr=False)
class NtmState(State):
    """What a Neural Turing Machine remembers. All zeros: an empty memory, and every head on row 0."""

    memory: Annotated[Tensor, "B N M"]
    """[B, N, M], N rows of width M."""
    weighting: Annotated[Tensor, "B H N"]
    """[B, H, N], where the heads were, read heads first; each sums to 1, or is 0 before the first step."""
    hidden: Annotated[Tensor, "B C"]
    """[B, C], the LSTM's output; [B, 0] with a feed-forward controller."""
    cell: Annotated[Tensor, "B C"]
    """[B, C], the LSTM's cells; [B, 0] with a feed-forward controller."""
    position: Annotated[Tensor, "B", torch.int64]
    """[B], open steps so far."""

    def reset_memory(self) -> Self:
        """All of it is fresh: heads and controller would look for what is no longer there."""
        return self.map(torch.zeros_like)


def address(
    memory: Tensor, weighting: Tensor, key: Tensor, strength: Tensor, gate: Tensor, shift: Tensor, sharpening: Tensor
) -> Tensor:
    """Where the heads go: four stages after equations 5 to 9 of the paper.

    Content w_c = softmax(β K[k, M(i)]) with the cosine K; interpolation w_g = g w_c + (1 − g) w; shift
    w_s(i) = Σ_j w_g(i − j) s(j), row N − 1 next to row 0; sharpening w_s(i)^γ / Σ_j w_s(j)^γ.

    Args:
        memory: [B, N, M].
        weighting: w [B, H, N], where the heads were.
        key: k [B, H, M].
        strength: β [B, H, 1], ≥ 0.
        gate: g [B, H, 1] in [0, 1]; 0 = go on from where the head was.
        shift: s [B, H, S], weights that sum to 1 of the moves −⌊S/2⌋ to ⌊S/2⌋; S is odd.
        sharpening: γ [B, H, 1], ≥ 1.

    Returns:
        [B, H, N], weights that sum to 1.

    Example:
        >>> import torch
        >>> from ssmn.relatives.ntm import address
        >>> memory, start = torch.zeros(1, 4, 2), torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
        >>> key, one, closed = torch.ones(1, 1, 2), torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        >>> next_row = torch.tensor([[[0.0, 0.0, 1.0]]])
        >>> address(memory, start, key, one, closed, next_row, one).round(decimals=3)
        tensor([[[1., 0., 0., 0.]]])
    """
    of_key = torch.rsqrt(key.square().sum(-1, keepdim=True) + LENGTH_EPS)
    of_rows = torch.rsqrt(memory.square().sum(-1) + LENGTH_EPS).unsqueeze(1)
    content = (torch.bmm(key * (strength * of_key), memory.mT) * of_rows).softmax(-1)
    mixed = torch.lerp(weighting, content, gate)
    reach = shift.shape[-1] // 2
    moved = mixed * shift[..., reach : reach + 1]
    for move in range(1, reach + 1):
        for signed in (-move, move):
            moved = torch.addcmul(moved, mixed.roll(signed, -1), shift[..., reach + signed, None])
    return (sharpening * (moved + WEIGHT_EPS).log()).softmax(-1)


def write(memory: Tensor, weighting: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """M(i) ∏_h (1 − w_h(i) e_h) + Σ_h w_h(i) a_h (equations 3 and 4): all heads erase, then all add.

    Args:
        memory: [B, N, M].
        weighting: w [B, H, N] of the write heads.
        erase: e [B, H, M] in [0, 1].
        add: a [B, H, M].

    Returns:
        [B, N, M].
    """
    columns = weighting.mT
    for head in range(weighting.shape[1]):
        outer = torch.bmm(columns[:, :, head : head + 1], erase[:, head : head + 1])
        memory = torch.addcmul(memory, memory, outer, value=-1)
    return torch.baddbmm(memory, columns, add)


class NeuralTuringMachine(nn.Module):
    """A memory of N rows, read and written by heads that a controller steers: the mixer of `ntm` blocks.

    At every step the controller sees the input and what the heads read last, and emits for every head a key k, its
    strength β, the gate g, the shift s and the sharpening γ, and for every write head the erase vector e and the add
    vector a. All heads take their places by the memory before the step (`address`); then the write heads write
    (`write`), and the read heads read the new memory: r = Σ_i w(i) M(i). y = W_o [controller; reads].

    Keys and add vectors go through tanh, e and g through the logistic function, β = softplus, γ = 1 + softplus. The
    memory starts empty and every head on row 0, so no weight depends on N: `with_memory_slots`.

    Args:
        hidden_dim: D, width of the input, of the output and of the controller.
        memory_slots: N, rows of the memory.
        memory_width: M, width of a row.
        read_heads: Heads that read.
        write_heads: Heads that write.
        controller: `lstm`, or `feedforward`, which remembers nothing but what it reads.
        shift_range: A head moves by at most so many rows in a step, beside its jumps to what the key names.

    Raises:
        ConfigError: A setting is out of its range.

    Example:
        >>> import torch
        >>> from ssmn.relatives import NeuralTuringMachine
        >>> machine = NeuralTuringMachine(16, memory_slots=10, memory_width=6, read_heads=2)
        >>> y, state = machine(torch.randn(3, 7, 16))
        >>> y.shape, state.memory.shape, state.weighting.shape
        (torch.Size([3, 7, 16]), torch.Size([3, 10, 6]), torch.Size([3, 3, 10]))
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        memory_slots: int = 128,
        memory_width: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        controller: Controller = "lstm",
        shift_range: int = 1,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value, least in (
            ("hidden_dim", hidden_dim, 1),
            ("memory_slots", memory_slots, 1),
            ("memory_width", memory_width, 1),
            ("read_heads", read_heads, 1),
            ("write_heads", write_heads, 1),
            ("shift_range", shift_range, 0),
        ):
            _check_count(owner, name, value, least)
        choices = get_args(Controller)
        check_setting(owner, "controller", controller, controller in choices, f"one of {', '.join(choices)}")
        self.hidden_dim, self.memory_slots, self.memory_width = hidden_dim, memory_slots, memory_width
        self.read_heads, self.write_heads, self.heads = read_heads, write_heads, read_heads + write_heads
        self.controller: Controller = controller
        self.shift_range = shift_range
        gates, self.carried = (4, hidden_dim) if controller == "lstm" else (1, 0)
        reads = read_heads * memory_width
        self.input = nn.Linear(hidden_dim, gates * hidden_dim)
        self.recurrent = nn.Linear(reads + self.carried, gates * hidden_dim, bias=False)
        self.emit = nn.Linear(hidden_dim, sum(self._emitted))
        self.output = nn.Linear(hidden_dim + reads, hidden_dim, bias=False)
        if controller == "lstm":
            with torch.no_grad():  # the forget gate begins open
                self.input.bias[hidden_dim : 2 * hidden_dim] = 1.0

    @property
    def _emitted(self) -> tuple[int, int, int, int]:
        """How many numbers the controller emits for: tanh (k, a), the logistic (e, g), softplus (β, γ), softmax (s)."""
        vectors = self.write_heads * self.memory_width
        keys, shifts = self.heads * self.memory_width, self.heads * (2 * self.shift_range + 1)
        return keys + vectors, vectors + self.heads, 2 * self.heads, shifts

    def with_memory_slots(self, memory_slots: int) -> Self:
        """A copy with the same weights and another number of rows; states of the two do not fit each other.

        Args:
            memory_slots: N, at least 1.

        Raises:
            ConfigError: It is below 1.

        Example:
            >>> from ssmn.relatives import NeuralTuringMachine
            >>> NeuralTuringMachine(8, memory_slots=5).with_memory_slots(9).init_state(1).memory.shape
            torch.Size([1, 9, 20])
        """
        _check_count("with_memory_slots", "memory_slots", memory_slots, 1)
        other = copy.deepcopy(self)
        other.memory_slots = memory_slots
        return other

    def init_state(self, batch_size: int) -> NtmState:
        """A fresh state for `batch_size` streams: all zeros."""
        weight = self.input.weight
        memory = torch.zeros(
            batch_size, self.memory_slots, self.memory_width, dtype=state_dtype(weight.dtype), device=weight.device
        )
        return NtmState(
            memory,
            memory.new_zeros(batch_size, self.heads, self.memory_slots),
            memory.new_zeros(batch_size, self.carried),
            memory.new_zeros(batch_size, self.carried),
            memory.new_zeros(batch_size, dtype=torch.int64),
        )

    def forward(
        self,
        hidden: Tensor,
        state: NtmState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, NtmState]:
        """Reads and writes, step after step.

        Args:
            hidden: [B, T, D].
            state: Memory, heads and controller; None = fresh.
            mask: [B, T] bool, True = open; a closed step changes nothing and gives 0.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1; the state has N rows).
            elapsed: [B, T], checked and without effect: this memory knows steps, not time.
            plasticity: With `frozen` nothing is written; heads and controller go on. Its other fields have no effect.

        Returns:
            (y [B, T, D], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        check_hidden(owner, hidden, self.hidden_dim, self.input.weight)
        streams = check_streams(owner, hidden, mask, reset, cu_seqlens)
        check_learning(owner, hidden, elapsed, plasticity)
        if state is None:
            state = self.init_state(streams)
        shapes = {
            "memory": (streams, self.memory_slots, self.memory_width),
            "weighting": (streams, self.heads, self.memory_slots),
            "hidden": (streams, self.carried),
            "cell": (streams, self.carried),
            "position": (streams,),
        }
        check_state(owner, state, NtmState, shapes)
        batch, time, _ = hidden.shape
        if time == 0:
            return hidden, state
        position = count_open(state.position, batch, time, mask, reset, cu_seqlens)
        driven, opened = self.input(hidden).to(state.memory.dtype), mask
        packing = None
        if cu_seqlens is not None:
            packing = Packing.of(cu_seqlens, time)
            driven = packing.unpack(driven)
            opened = packing.valid if mask is None else packing.unpack(mask)
            reset = None if reset is None else packing.unpack(reset)
        with torch.autocast(hidden.device.type, enabled=False):
            seen, after = self._steps(driven, state, opened, reset, plasticity is not None and plasticity.frozen)
        seen = seen if packing is None else packing.pack(seen)
        y = self.output(seen.to(hidden.dtype))
        y = y if mask is None else torch.where(mask.unsqueeze(-1), y, 0.0)
        weighting = after.weighting
        if opened is not None:
            weighting = torch.where((position > 0)[:, None, None], weighting, 0.0)
        return y, NtmState(after.memory, weighting, after.hidden, after.cell, position)

    def _steps(
        self, driven: Tensor, state: NtmState, mask: Tensor | None, reset: Tensor | None, frozen: bool
    ) -> tuple[Tensor, NtmState]:
        """([B, T, C + reads], state) from the controller's share of the input; heads that never moved are on row 0."""
        home = torch.zeros_like(state.weighting[:1])
        home[..., 0] = 1.0
        weighting = torch.where((state.position > 0)[:, None, None], state.weighting, home)
        state = replace(state, weighting=weighting)
        dtype = driven.dtype
        weights = (self.recurrent.weight.to(dtype).mT, self.emit.weight.to(dtype).mT, self.emit.bias.to(dtype))
        if choose_backend("ntm", "auto", driven) != "native":
            return self._loop(driven, *weights, state, home, mask, reset, frozen)
        held = (state.memory, state.weighting, state.hidden, state.cell)
        controls, reads, held = native.turing_machine(
            driven, *weights, mask, reset, held, self.read_heads, self.shift_range, frozen
        )
        return torch.cat((controls, reads), -1), NtmState(*held, state.position)

    def _loop(
        self,
        driven: Tensor,
        recurrent: Tensor,
        emit: Tensor,
        emit_bias: Tensor,
        state: NtmState,
        home: Tensor,
        mask: Tensor | None,
        reset: Tensor | None,
        frozen: bool,
    ) -> tuple[Tensor, NtmState]:
        """The definition."""
        time, lstm = driven.shape[1], self.controller == "lstm"
        memory, weighting, hidden, cell = state.memory, state.weighting, state.hidden, state.cell
        closes = [False] * time if mask is None else (~mask.all(0)).tolist()
        resets = [False] * time if reset is None else reset.any(0).tolist()
        read = torch.bmm(weighting[:, : self.read_heads], memory).flatten(1)
        controls, reads = [], []
        for step, drive in enumerate(driven.unbind(1)):
            if resets[step]:
                assert reset is not None
                row = reset[:, step, None]
                memory = torch.where(row.unsqueeze(-1), 0.0, memory)
                weighting = torch.where(row.unsqueeze(-1), home, weighting)
                hidden, cell, read = (torch.where(row, 0.0, then) for then in (hidden, cell, read))
            before = (memory, weighting, hidden, cell, read)
            if lstm:
                gates = torch.addmm(drive, torch.cat((read, hidden), -1), recurrent)
                into, keep, out, new = gates.chunk(4, -1)
                cell = torch.addcmul(keep.sigmoid() * cell, into.sigmoid(), new.tanh())
                hidden = control = out.sigmoid() * cell.tanh()
            else:
                control = torch.addmm(drive, read, recurrent).tanh()
            weighting, erase, add = self._steer(torch.addmm(emit_bias, control, emit), memory, weighting)
            if not frozen:
                memory = write(memory, weighting[:, self.read_heads :], erase, add)
            read = torch.bmm(weighting[:, : self.read_heads], memory).flatten(1)
            controls.append(control)
            reads.append(read)
            if closes[step]:
                assert mask is not None
                row, wide = mask[:, step, None], mask[:, step, None, None]
                memory, weighting = torch.where(wide, memory, before[0]), torch.where(wide, weighting, before[1])
                hidden, cell, read = (
                    torch.where(row, now, then) for now, then in zip((hidden, cell, read), before[2:], strict=True)
                )
        seen = torch.cat((torch.stack(controls, 1), torch.stack(reads, 1)), -1)
        return seen, NtmState(memory, weighting, hidden, cell, state.position)

    def _steer(self, emitted: Tensor, memory: Tensor, weighting: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weighting [B, H, N], erase, add [B, write heads, M]) from what the controller emits."""
        bounded, opened, positive, shift = emitted.split(self._emitted, -1)
        key, add = bounded.tanh().unflatten(-1, (-1, self.memory_width)).split((self.heads, self.write_heads), 1)
        erase, gate = opened.sigmoid().split((self.write_heads * self.memory_width, self.heads), -1)
        strength, sharpening = functional.softplus(positive).unsqueeze(-1).split(self.heads, 1)
        moves = shift.unflatten(-1, (self.heads, -1)).softmax(-1)
        weighting = address(memory, weighting, key, strength, gate.unsqueeze(-1), moves, 1 + sharpening)
        return weighting, erase.unflatten(-1, (self.write_heads, -1)), add


def build_ntm(config: StackConfig) -> NeuralTuringMachine:
    """The mixer of an `ntm` block.

    N = `memory_slots`, `num_heads` read heads (so what they read is as wide as the block), one write head, rows of
    width D / `num_heads`, an LSTM as controller. The output starts small, as the attention's does.
    """
    mixer = NeuralTuringMachine(
        config.hidden_dim,
        memory_slots=config.memory_slots,
        memory_width=config.hidden_dim // config.num_heads,
        read_heads=config.num_heads,
    )
    nn.init.normal_(mixer.output.weight, std=0.5 / math.sqrt(mixer.output.in_features * config.num_layers))
    return mixer


class NTM(Member):
    """A Neural Turing Machine by itself: y = W_out machine(W_in x).

    Args:
        input_dim: Features per step that come in.
        hidden_dim: Width of the controller.
        output_dim: Features per step that go out.
        memory_slots: N, rows of the memory; `with_memory_slots` changes it after training.
        memory_width: M, width of a row.
        read_heads: Heads that read.
        write_heads: Heads that write.
        controller: `lstm` or `feedforward`.
        shift_range: A head moves by at most so many rows in a step.

    Example:
        >>> import torch
        >>> from ssmn.relatives import NTM
        >>> machine = NTM(input_dim=9, hidden_dim=32, output_dim=8, controller="feedforward")
        >>> y, state = machine(torch.randn(2, 5, 9))
        >>> y, state = machine.step(torch.randn(2, 9), state)
        >>> y.shape, machine.with_memory_slots(200).state_size()
        (torch.Size([2, 8]), 4401)
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        memory_slots: int = 128,
        memory_width: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        controller: Controller = "lstm",
        shift_range: int = 1,
    ) -> None:
        mixer = NeuralTuringMachine(
            hidden_dim,
            memory_slots=memory_slots,
            memory_width=memory_width,
            read_heads=read_heads,
            write_heads=write_heads,
            controller=controller,
            shift_range=shift_range,
        )
        super().__init__(mixer, input_dim, hidden_dim, output_dim)

    def with_memory_slots(self, memory_slots: int) -> Self:
        """A copy with the same weights and another number of rows, as `NeuralTuringMachine.with_memory_slots`."""
        other = copy.deepcopy(self)
        other.mixer = self.mixer.with_memory_slots(memory_slots)
        return other


def _check_count(owner: str, name: str, value: object, least: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check_setting(owner, name, value, good, f"a whole number of at least {least}")
