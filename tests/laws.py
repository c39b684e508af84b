"""The laws of a stateful module, and the modules that must obey them.

A subject is one module under one backend and one dtype. A law is a function of a subject; it compares
two ways to compute the same thing on outputs, final states and gradients (inputs, weights, initial
state), from a state that is not zero.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssmn import ops
from ssmn.config import Backend, SSMNConfig, StackConfig, TextSSMNConfig
from ssmn.layers import SemanticEncoder, SlidingWindowAttention, SynapticMemory
from ssmn.layers.blocks import Block, build_block
from ssmn.models import SSMN, TextSSMN
from ssmn.ops.chunked import MEMORY_CHUNK
from ssmn.relatives import AMN, LRU, AssociativeMixer, Hopfield, LinearRecurrentUnit, LRUState, NeuralTuringMachine
from ssmn.relatives.base import Member
from ssmn.relatives.hopfield import HopfieldMemory
from ssmn.state import Origin, PlasticState, State, StreamState, WindowState, read_state_file, write_state_file

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest |difference| / max(1, largest |reference|)."""

Inputs = dict[str, Tensor]
Run = Callable[[Inputs, State], tuple[Tensor, State]]


def assert_close(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    """Every tensor of `got` is within tolerance · max(1, largest |want|); integers are equal.

    In float32 the weights' gradient is one vector: that of a scalar weight is a long sum whose terms cancel,
    and its rounding is in proportion to the terms. In float64 every weight counts by itself.
    """
    assert got.keys() == want.keys()
    largest = {name: float(x.detach().abs().max()) if x.numel() else 0.0 for name, x in want.items()}
    steepest = max((size for name, size in largest.items() if name.startswith("gradient of weights")), default=0.0)
    wrong = []
    for name, reference in want.items():
        value = got[name]
        assert value.shape == reference.shape, f"{name}: {list(value.shape)} instead of {list(reference.shape)}"
        assert value.dtype == reference.dtype, f"{name}: {value.dtype} instead of {reference.dtype}"
        if not reference.numel():
            continue
        if not reference.is_floating_point():
            assert torch.equal(value, reference), f"{name}: {value} instead of {reference}"
            continue
        shared = reference.dtype != torch.float64 and name.startswith("gradient of weights")
        error = float((value.double() - reference.double()).detach().abs().max())
        limit = tolerance * max(1.0, steepest if shared else largest[name])
        if not error <= limit:
            wrong.append(f"{name}: off by {error:.3g}, allowed {limit:.3g}")
    assert not wrong, "; ".join(wrong)


def assert_identical(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Bit by bit."""
    assert got.keys() == want.keys()
    for name, reference in want.items():
        assert got[name].dtype == reference.dtype, f"{name}: {got[name].dtype} instead of {reference.dtype}"
        assert torch.equal(got[name].nan_to_num(99.0), reference.nan_to_num(99.0)), f"{name} differs"  # NaN = missing


class Subject(ABC):
    """A stateful module: how to call it, what to feed it, and what its state and weights are."""

    name: str
    window: int = 1
    """W, if the module has a window."""
    silent = False
    """Whether a closed step outputs zeros (else it may still read)."""

    def __init__(self, backend: Backend, dtype: torch.dtype) -> None:
        self.backend: Backend = backend
        self.dtype = dtype

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def weights(self) -> Inputs:
        return {}

    @abstractmethod
    def inputs(self, batch: int, time: int, seed: int = 1) -> Inputs:
        """Tensors [B, T, ..] by argument name."""

    @abstractmethod
    def fresh(self, batch: int) -> State:
        """The state that streams begin with."""

    @abstractmethod
    def call(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        """Reads the inputs."""

    def run(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        with ops.use_backend(self.backend):
            return self.call(inputs, state, **steps)

    def started(self, batch: int) -> State:
        """A state that is not zero: the first row has not filled its window, the others have read more than it holds.

        A memory that is nearly empty is read as noise: the read is normalised, so rounding would be too.
        """
        longest = 2 * self.window + 24
        lengths = longest - (7 * torch.arange(batch)) % self.window
        if self.window > 2:
            lengths[0] = self.window - 2
        mask = torch.arange(longest) < lengths.unsqueeze(1)
        with torch.no_grad():
            return self.run(self.inputs(batch, longest, seed=7), self.fresh(batch), mask=mask)[1].clone()


def steps_of(inputs: Inputs) -> tuple[int, int]:
    """(B, T)."""
    batch, time = next(iter(inputs.values())).shape[:2]
    return batch, time


def pieces_of(inputs: Inputs, lengths: Sequence[int]) -> Iterable[Inputs]:
    """The inputs cut along time."""
    cuts = {name: x.split(list(lengths), 1) for name, x in inputs.items()}
    return (dict(zip(cuts, piece, strict=True)) for piece in zip(*cuts.values(), strict=True))


def joined(inputs: Sequence[Inputs]) -> Inputs:
    """The reverse of `pieces_of`."""
    return {name: torch.cat([piece[name] for piece in inputs], 1) for name in inputs[0]}


def evaluate(subject: Subject, run: Run, inputs: Inputs, state: State) -> dict[str, Tensor]:
    """Output, final state, and every gradient of a random projection of both."""
    leaves = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    held = state.map(lambda x: x.clone().requires_grad_(x.is_floating_point()))
    output, final = run(leaves, held)
    results = {"output": output, **{f"final {name}": x for name, x in final.named_tensors().items()}}
    sources = {f"inputs {name}": x for name, x in leaves.items()}
    sources |= {f"weights {name}": x for name, x in subject.weights().items()}
    sources |= {f"state {name}": x for name, x in held.named_tensors().items()}
    sources = {name: x for name, x in sources.items() if x.requires_grad}
    generator = torch.Generator().manual_seed(11)
    loss = torch.zeros((), dtype=subject.dtype)
    for x in results.values():
        if x.is_floating_point():
            loss = loss + (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum()
    gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True, materialize_grads=True)
    return {
        **{name: x.detach() for name, x in results.items()},
        **{f"gradient of {name}": x for name, x in zip(sources, gradients, strict=True)},
    }


def apart(
    subject: Subject,
    inputs: Inputs,
    state: State,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:
    """What masks, resets and packing must equal: each stream alone, cut at its resets, without its closed steps."""
    batch, time = steps_of(inputs)
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    streams = (
        [(row, 0, time) for row in range(batch)]
        if bounds is None
        else [(0, *ends) for ends in itertools.pairwise(bounds)]
    )
    outputs, rows, times, finals = [], [], [], []
    for number, (row, first, last) in enumerate(streams):
        here = state.select([number])
        resets = [] if reset is None else [t for t in range(first, last) if reset[row, t]]
        for start, stop in itertools.pairwise([first, *resets, last]):
            if start in resets and start < stop:
                here = subject.fresh(1)
            opened = [t for t in range(start, stop) if mask is None or mask[row, t]]
            output, here = subject.run({name: x[row : row + 1, opened] for name, x in inputs.items()}, here)
            outputs.append(output[0])
            rows += [row] * len(opened)
            times += opened
        finals.append(here)
    read = torch.cat(outputs)
    whole = read.new_zeros(batch, time, *read.shape[1:])
    return whole.index_put(
        (torch.tensor(rows, dtype=torch.int64), torch.tensor(times, dtype=torch.int64)), read
    ), State.merge(finals)


def opened_only(output: Tensor, mask: Tensor) -> Tensor:
    """Zeros at closed steps, where a layer may still read."""
    return torch.where(mask.reshape(*mask.shape, *[1] * (output.dim() - 2)), output, 0.0)


def random_steps(batch: int, time: int, share: float, seed: int) -> Tensor:
    """[B, T] bool, true for about `share` of the steps."""
    return torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < share


def sample_resets(batch: int, time: int) -> Tensor:
    """Rare random resets, with the edge cases: the first step, two in a row, the last step."""
    reset = random_steps(batch, time, 0.03, seed=3)
    reset[0, 0] = reset[-1, -1] = True
    reset[-1, time // 2 : time // 2 + 2] = True
    return reset


CHUNK = MEMORY_CHUNK
TIME = 2 * CHUNK + 3


def partition(subject: Subject, *, closed: bool = False) -> None:
    """Any partition of a stream equals the whole; with `closed`, masks and resets are cut with it."""
    batch, lengths = 2, (0, 1, CHUNK - 2, 2, 0, CHUNK + 1, 1)
    inputs, state = subject.inputs(batch, TIME), subject.started(batch)
    steps = {"mask": random_steps(batch, TIME, 0.7, seed=2), "reset": sample_resets(batch, TIME)} if closed else {}

    def in_pieces(inputs: Inputs, state: State) -> tuple[Tensor, State]:
        outputs = []
        for piece in pieces_of({**inputs, **steps}, lengths):
            options = {name: piece.pop(name) for name in steps}
            output, state = subject.run(piece, state, **options)
            outputs.append(output)
        return torch.cat(outputs, 1), state

    whole = evaluate(subject, lambda x, s: subject.run(x, s, **steps), inputs, state)
    assert_close(evaluate(subject, in_pieces, inputs, state), whole, subject.tolerance)


def partition_with_masks_and_resets(subject: Subject) -> None:
    """The same with closed steps and resets on both sides of the cuts."""
    partition(subject, closed=True)


def one_by_one(subject: Subject) -> None:
    """Step after step equals the whole."""
    batch, time = 2, subject.window + 7
    inputs, state = subject.inputs(batch, time), subject.started(batch)

    def stepwise(inputs: Inputs, state: State) -> tuple[Tensor, State]:
        outputs = []
        for piece in pieces_of(inputs, [1] * time):
            output, state = subject.run(piece, state)
            outputs.append(output)
        return torch.cat(outputs, 1), state

    assert_close(
        evaluate(subject, stepwise, inputs, state), evaluate(subject, subject.run, inputs, state), subject.tolerance
    )


def state_is_a_value(subject: Subject) -> None:
    """Forks that go different ways, forwards and backwards, leave parent and inputs bit-identical."""
    batch, time = 2, CHUNK + 5
    first, second = subject.inputs(batch, time, seed=1), subject.inputs(batch, time + 4, seed=2)
    parent = subject.started(batch)
    kept, alone = parent.clone(), evaluate(subject, subject.run, first, parent)
    left, right = parent.fork(2)
    after_left, after_right = evaluate(subject, subject.run, first, left), evaluate(subject, subject.run, second, right)
    with torch.no_grad():
        _, final = subject.run(first, left)
        final.map(lambda x: x.zero_())
        right.map(lambda x: x.fill_(1))
    assert_identical(parent.named_tensors(), kept.named_tensors())
    assert_identical(first, subject.inputs(batch, time, seed=1))
    assert_identical(after_left, alone)
    assert any(not torch.equal(after_left[name], x) for name, x in after_right.items() if name.startswith("final"))
    assert_identical(evaluate(subject, subject.run, first, parent), alone)


def save_load_go_on(subject: Subject, folder: Path) -> None:
    """Save, load and go on equals going on, bit by bit."""
    batch, time = 2, CHUNK + 5
    inputs, state, path = subject.inputs(batch, time), subject.started(batch), folder / "state.safetensors"
    if isinstance(state, StreamState):
        assert isinstance(subject, ModelSubject)
        state.save(path, subject.module)
        loaded: State = StreamState.load(path, subject.module)
    else:
        position = state.named_tensors().get("position", torch.zeros(batch, dtype=torch.int64))
        stream = StreamState(None, (state,), None, position)
        write_state_file(path, stream, Origin("0" * 64, {}))
        loaded = read_state_file(path)[0].layers[0]
    assert_identical(loaded.named_tensors(), state.named_tensors())
    assert_identical(evaluate(subject, subject.run, inputs, loaded), evaluate(subject, subject.run, inputs, state))


PADDINGS = ("left", "right", "interior", "both", "mixed", "closed")


def padding_mask(kinds: Sequence[str], time: int) -> Tensor:
    """[B, T] bool, one kind of padding per row."""
    steps = torch.arange(time)
    rows = {
        "left": steps >= time // 3,
        "right": steps < time - time // 4,
        "interior": (steps < time // 5) | (steps >= time // 2),
        "both": (steps >= time // 7) & (steps < time - time // 6),
        "mixed": random_steps(1, time, 0.6, seed=5)[0],
        "closed": torch.zeros(time, dtype=torch.bool),
    }
    return torch.stack([rows[kind] for kind in kinds])


def padding(subject: Subject) -> None:
    """Padding equals absence, over two calls in which every row is padded differently."""
    time, more = CHUNK + 9, CHUNK - 3
    inputs = [subject.inputs(len(PADDINGS), time, seed=1), subject.inputs(len(PADDINGS), more, seed=2)]
    masks = [padding_mask(PADDINGS, time), padding_mask(PADDINGS[::-1], more)]
    state = subject.started(len(PADDINGS))

    def padded(inputs: Inputs, state: State) -> tuple[Tensor, State]:
        outputs = []
        for piece, mask in zip(pieces_of(inputs, (time, more)), masks, strict=True):
            output, state = subject.run(piece, state, mask=mask)
            if subject.silent:
                assert not output[~mask].any()
            outputs.append(opened_only(output, mask))
        return torch.cat(outputs, 1), state

    def absent(inputs: Inputs, state: State) -> tuple[Tensor, State]:
        return apart(subject, inputs, state, mask=torch.cat(masks, 1))

    both = joined(inputs)
    assert_close(evaluate(subject, padded, both, state), evaluate(subject, absent, both, state), subject.tolerance)


def rows(subject: Subject) -> None:
    """A batch row equals the row alone."""
    batch, time = 9, CHUNK + 2
    inputs, state = subject.inputs(batch, time), subject.started(batch)
    alone = evaluate(subject, lambda x, s: apart(subject, x, s), inputs, state)
    assert_close(evaluate(subject, subject.run, inputs, state), alone, subject.tolerance)


def nothing(subject: Subject) -> None:
    """T = 0 changes nothing, bit by bit; the gradient passes through."""
    batch = 2
    with torch.no_grad():  # ring slots that no step has reached pass no gradient: fill them
        state = subject.run(subject.inputs(batch, subject.window), subject.started(batch))[1]
    inputs = subject.inputs(batch, 0)
    output, final = subject.run(inputs, state)
    assert output.shape[:2] == (batch, 0)
    assert output.shape[2:] == subject.run(subject.inputs(batch, 1), state)[0].shape[2:]
    assert_identical(final.named_tensors(), state.named_tensors())
    whole = evaluate(subject, subject.run, inputs, state)
    none = evaluate(subject, lambda x, s: (output, s), inputs, state)
    assert_close(whole, none, subject.tolerance)
    mask = torch.ones(batch, 0, dtype=torch.bool)
    assert_identical(subject.run(inputs, state, mask=mask, reset=mask)[1].named_tensors(), state.named_tensors())
    empty = torch.zeros(batch + 1, dtype=torch.int64)
    packed = subject.run(subject.inputs(1, 0), state, cu_seqlens=empty)[1]
    assert_identical(packed.named_tensors(), state.named_tensors())


def resets(subject: Subject) -> None:
    """A reset inside a row equals separate runs; also where the step of the reset is closed."""
    batch, time = 2, TIME
    inputs, state, reset = subject.inputs(batch, time), subject.started(batch), sample_resets(batch, time)
    mask = random_steps(batch, time, 0.8, seed=4)
    for opened in (torch.ones_like(mask), mask):
        options = {"reset": reset, "mask": None if opened.all() else opened}

        def together(
            inputs: Inputs, state: State, options: dict[str, Any] = options, opened: Tensor = opened
        ) -> tuple[Tensor, State]:
            output, state = subject.run(inputs, state, **options)
            return opened_only(output, opened), state

        def separate(inputs: Inputs, state: State, options: dict[str, Any] = options) -> tuple[Tensor, State]:
            return apart(subject, inputs, state, **options)

        assert_close(
            evaluate(subject, together, inputs, state), evaluate(subject, separate, inputs, state), subject.tolerance
        )


def packing(subject: Subject) -> None:
    """Segments packed into one row equal separate runs from their own states; with masks and resets as well."""
    window = subject.window
    lengths = (0, 1, max(0, window - 1), 0, 0, window + 1, CHUNK - 1, CHUNK + 1, 2, 0)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    time = int(cu_seqlens[-1])
    inputs, state = subject.inputs(1, time), subject.started(len(lengths))
    mask, reset = random_steps(1, time, 0.8, seed=4), sample_resets(1, time)
    for options in ({}, {"mask": mask, "reset": reset}):
        opened = options.get("mask", torch.ones_like(mask))

        def packed(
            inputs: Inputs, state: State, options: dict[str, Any] = options, opened: Tensor = opened
        ) -> tuple[Tensor, State]:
            output, state = subject.run(inputs, state, cu_seqlens=cu_seqlens, **options)
            return opened_only(output, opened), state

        def separate(inputs: Inputs, state: State, options: dict[str, Any] = options) -> tuple[Tensor, State]:
            return apart(subject, inputs, state, cu_seqlens=cu_seqlens, **options)

        assert_close(
            evaluate(subject, packed, inputs, state), evaluate(subject, separate, inputs, state), subject.tolerance
        )


LAWS: tuple[Callable[[Subject], None], ...] = (
    partition,
    partition_with_masks_and_resets,
    one_by_one,
    state_is_a_value,
    padding,
    rows,
    nothing,
    resets,
    packing,
)
"""Every law of one argument; `save_load_go_on` needs a folder besides."""


class MemoryOp(Subject):
    """`synaptic_memory`; its state, a bare tensor, stands in a `PlasticState` to have the verbs."""

    heads, key_dim, value_dim = 3, 5, 7

    def __init__(self, backend: Backend, dtype: torch.dtype, rule: Literal["hebbian", "delta", "erase"]) -> None:
        super().__init__(backend, dtype)
        self.rule: Literal["hebbian", "delta", "erase"] = rule

    def inputs(self, batch: int, time: int, seed: int = 1) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, time, self.heads, *shape, generator=generator, dtype=torch.float64)

        def uniform() -> Tensor:
            return torch.rand(batch, time, self.heads, generator=generator, dtype=torch.float64)

        made = {
            "q": normal(self.key_dim),
            "k": nn.functional.normalize(normal(self.key_dim), dim=-1),
            "v": normal(self.value_dim),
            "eta": uniform(),
            "log_decay": -0.3 * uniform(),
        }
        if self.rule == "erase":
            made["erase"] = uniform()
        return {name: x.to(self.dtype) for name, x in made.items()}

    def fresh(self, batch: int) -> PlasticState:
        memory = torch.zeros(batch, self.heads, self.key_dim, self.value_dim, dtype=self.dtype)
        return PlasticState(memory, torch.zeros(batch, 0, dtype=self.dtype))

    def call(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        assert isinstance(state, PlasticState)
        output, memory = ops.synaptic_memory(
            **inputs, **steps, rule=self.rule, initial_state=state.memory, output_final_state=True
        )
        assert memory is not None
        return output, PlasticState(memory, state.previous)


class WindowOp(Subject):
    """`window_attention`."""

    silent = True
    heads, kv_heads, dim = 8, 4, 12

    def __init__(
        self, backend: Backend, dtype: torch.dtype, window: int, rope_theta: float | None = None, sinks: bool = False
    ) -> None:
        super().__init__(backend, dtype)
        self.window, self.rope_theta = window, rope_theta
        self.sinks = torch.linspace(-1, 2, self.heads, dtype=dtype, requires_grad=True) if sinks else None

    def weights(self) -> Inputs:
        return {} if self.sinks is None else {"sinks": self.sinks}

    def inputs(self, batch: int, time: int, seed: int = 1) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        heads = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        return {
            name: torch.randn(batch, time, number, self.dim, generator=generator, dtype=torch.float64).to(self.dtype)
            for name, number in heads.items()
        }

    def fresh(self, batch: int) -> WindowState:
        ring = torch.zeros(batch, self.window - 1, self.kv_heads, self.dim, dtype=self.dtype)
        return WindowState(ring, ring.clone(), torch.zeros(batch, dtype=torch.int64))

    def call(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        assert isinstance(state, WindowState)
        output, final = ops.window_attention(
            **inputs, **steps, window_size=self.window, rope_theta=self.rope_theta, sinks=self.sinks,
            initial_state=state, output_final_state=True,
        )  # fmt: skip
        assert final is not None
        return output, final


class ScanOp(Subject):
    """`linear_scan`."""

    channels = 11

    def __init__(self, backend: Backend, dtype: torch.dtype, shared: bool) -> None:
        super().__init__(backend, dtype)
        self.shared = self.factors(1, 1, seed=3)[0, 0].requires_grad_() if shared else None

    def factors(self, batch: int, time: int, seed: int) -> Tensor:
        """Within the unit circle."""
        generator = torch.Generator().manual_seed(seed)
        size, angle = torch.rand(2, batch, time, self.channels, generator=generator, dtype=torch.float64)
        return (size * torch.stack([torch.cos(6 * angle), torch.sin(6 * angle)])).movedim(0, -2).to(self.dtype)

    def weights(self) -> Inputs:
        return {} if self.shared is None else {"a": self.shared}

    def inputs(self, batch: int, time: int, seed: int = 1) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        made = {"x": torch.randn(batch, time, 2, self.channels, generator=generator, dtype=torch.float64)}
        if self.shared is None:
            made["a"] = self.factors(batch, time, seed + 1)
        return {name: x.to(self.dtype) for name, x in made.items()}

    def fresh(self, batch: int) -> LRUState:
        return LRUState(torch.zeros(batch, 2, self.channels, dtype=self.dtype))

    def call(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        assert isinstance(state, LRUState)
        a = inputs["a"] if self.shared is None else self.shared
        output, final = ops.linear_scan(a, inputs["x"], **steps, initial_state=state.hidden, output_final_state=True)
        assert final is not None
        return output, LRUState(final)


def randomised(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Moves every weight: one that starts at zero would hide what it multiplies."""
    generator = torch.Generator().manual_seed(13)
    with torch.no_grad():
        for weight in module.parameters():
            fan_in = weight.shape[-1] if weight.dim() > 1 else 4
            weight += torch.randn(weight.shape, generator=generator) * 0.3 / fan_in**0.5
    return module.to(dtype)


class LayerSubject(Subject):
    """A layer or block over hidden vectors."""

    def __init__(self, backend: Backend, dtype: torch.dtype, module: nn.Module, elapsed: bool = False) -> None:
        super().__init__(backend, dtype)
        self.module, self.elapsed = randomised(module, dtype), elapsed
        mixer = module.mixer if isinstance(module, (Block, Member)) else module
        self.silent = isinstance(module, Member)
        self.mixer: Any = mixer
        self.window = getattr(mixer, "window_size", 1)
        self.dim = next(weight.shape[-1] for weight in module.parameters() if weight.dim() == 2)
        if isinstance(mixer, SemanticEncoder):
            self.dim = mixer.hidden_dim

    def weights(self) -> Inputs:
        return dict(self.module.named_parameters())

    def inputs(self, batch: int, time: int, seed: int = 1) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        made = {"hidden": torch.randn(batch, time, self.dim, generator=generator, dtype=torch.float64).to(self.dtype)}
        if self.elapsed:
            made["elapsed"] = (3 * torch.rand(batch, time, generator=generator, dtype=torch.float64)).to(self.dtype)
        return made

    def fresh(self, batch: int) -> State:
        return self.mixer.init_state(batch)

    def call(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        first, *rest = inputs.items()
        return self.module(first[1], state, **dict(rest), **steps)


class ModelSubject(Subject):
    """A whole model."""

    silent = True

    def __init__(self, backend: Backend, dtype: torch.dtype, module: SSMN | TextSSMN, elapsed: bool = False) -> None:
        super().__init__(backend, dtype)
        self.module, self.elapsed = module, elapsed
        randomised(module, dtype)
        self.window = module.config.window_size

    def weights(self) -> Inputs:
        return dict(self.module.named_parameters())

    def inputs(self, batch: int, time: int, seed: int = 1) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        config = self.module.config
        if isinstance(config, TextSSMNConfig):
            made = {"input_ids": torch.randint(config.vocab_size, (batch, time), generator=generator)}
        else:
            assert isinstance(config, SSMNConfig)
            made = {"x": torch.randn(batch, time, config.input_dim, generator=generator, dtype=torch.float64)}
            made |= self._series(config, made["x"], generator)
        if self.elapsed:
            made["elapsed"] = 3 * torch.rand(batch, time, generator=generator, dtype=torch.float64)
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in made.items()}

    @staticmethod
    def _series(config: SSMNConfig, x: Tensor, generator: torch.Generator) -> Inputs:
        """What a model of series is given besides, and the gaps and outliers that it must bear."""
        shape, made = x.shape[:2], {}

        def chosen(share: float, *more: int) -> Tensor:
            return torch.rand(*shape, *more, generator=generator, dtype=torch.float64) < share

        if config.normalise != "none":
            x *= torch.where(chosen(0.02, 1), 30.0, 1.0)
            x += 5
        if config.readout != "none":
            target = torch.randn(*shape, config.output_dim, generator=generator, dtype=torch.float64)
            unknown = chosen(0.2, 1) | chosen(0.2, config.output_dim)
            made["target"] = torch.where(unknown, torch.nan, target)
        if config.missing == "mask":
            x[chosen(0.1, config.input_dim) | chosen(0.1, 1)] = torch.nan
        if config.future_dim:
            made["future"] = torch.randn(*shape, config.future_dim, generator=generator, dtype=torch.float64)
        return made

    def fresh(self, batch: int) -> StreamState:
        return self.module.init_state(batch)

    def call(self, inputs: Inputs, state: State, **steps: Any) -> tuple[Tensor, State]:
        first, *rest = inputs.items()
        return self.module(first[1], state, **dict(rest), **steps)


@dataclass(frozen=True)
class Entry:
    """A line of the list: a name, and how to build the subject for a backend and dtype."""

    name: str
    build: Callable[[Backend, torch.dtype], Subject]


def _memory_op(rule: Literal["hebbian", "delta", "erase"]) -> Entry:
    return Entry(f"memory-op-{rule}", lambda backend, dtype: MemoryOp(backend, dtype, rule))


def _window_op(name: str, window: int, **settings: Any) -> Entry:
    return Entry(f"window-op-{name}", lambda backend, dtype: WindowOp(backend, dtype, window, **settings))


def _layer(name: str, build: Callable[[], nn.Module], **settings: Any) -> Entry:
    return Entry(name, lambda backend, dtype: LayerSubject(backend, dtype, build(), **settings))


def _model(name: str, build: Callable[[], SSMN | TextSSMN], **settings: Any) -> Entry:
    def trained() -> SSMN | TextSSMN:
        model = build()
        if isinstance(model, SSMN) and model.readout is not None:
            model.output.reset_parameters()  # it begins at 0, where no law could see the blocks
        return model

    return Entry(name, lambda backend, dtype: ModelSubject(backend, dtype, trained(), **settings))


def _scan_op(name: str, shared: bool) -> Entry:
    return Entry(f"scan-op-{name}", lambda backend, dtype: ScanOp(backend, dtype, shared))


def _memory(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: SynapticMemory(48, **{"heads": 3, **settings})


def _attention(window: int, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: SlidingWindowAttention(24, **{"num_heads": 4, "window_size": window, **settings})


def _block(kind: str) -> Callable[[], nn.Module]:
    config = StackConfig(
        hidden_dim=24, num_layers=3, num_heads=6, num_kv_heads=3, memory_heads=3, window_size=14, memory_slots=17
    )
    return lambda: build_block(kind, config)


def _machine() -> nn.Module:
    return NeuralTuringMachine(
        16, memory_slots=7, memory_width=5, read_heads=3, write_heads=2, controller="feedforward", shift_range=2
    )


_EVERYTHING: dict[str, Any] = {
    "hidden_dim": 48, "num_layers": 3, "layer_types": ("static", "plastic", "static"), "num_heads": 6,
    "num_kv_heads": 3, "memory_heads": 3, "window_size": 14, "attention_sinks": True, "write_threshold": 0.3,
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "hidden_dim": 24, "num_layers": 2, "layer_types": ("plastic", "static"), "num_heads": 4, "memory_heads": 1,
    "window_size": 7, "rope_theta": None, "update_rule": "hebbian",
}  # fmt: skip

_SERIES: dict[str, Any] = {
    "missing": "mask", "normalise": "running", "norm_rate": 0.05, "targets": (4, 0, 4), "head": "quantile",
    "future_dim": 2, "readout": "delta", "readout_forget": 0.02,
}  # fmt: skip
_RLS: dict[str, Any] = {
    "missing": "mask",
    "head": "gaussian",
    "readout": "rls",
    "readout_forget": 0.02,
    "readout_features": "both",
}
_HOPFIELD: dict[str, Any] = {**_EVERYTHING, "layer_types": ("static", "hopfield", "static"), "memory_slots": 17}
_OUTPUT: dict[str, Any] = {"output_memory": True, "output_eta": 1.5}

OPS: tuple[Entry, ...] = (
    _memory_op("hebbian"),
    _memory_op("delta"),
    _memory_op("erase"),
    _window_op("rope-sinks", 14, rope_theta=100.0, sinks=True),
    _window_op("plain", 37),
    _window_op("one", 1, rope_theta=100.0, sinks=True),
    _scan_op("every-step", shared=False),
    _scan_op("shared", shared=True),
)
LAYERS: tuple[Entry, ...] = (
    _layer("memory-delta", _memory()),
    _layer("memory-hebbian", _memory(update_rule="hebbian", pairing="same", heads=1), elapsed=True),
    _layer("memory-erase", _memory(update_rule="erase", write_threshold=0.4, heads=4)),
    _layer("attention", _attention(14, num_heads=6, num_kv_heads=3)),
    _layer("attention-sinks", _attention(8, sinks=True, rope_theta=None)),
    _layer("encoder", lambda: SemanticEncoder(13)),
    _layer("block-static", _block("static")),
    _layer("block-plastic", _block("plastic")),
    _layer("lru", lambda: LinearRecurrentUnit(10, 7)),
    _layer("lru-liquid", lambda: LRU(10, 7, 3, liquid=True), elapsed=True),
    _layer("amn", lambda: AMN(10, 12, 3, memory_heads=2), elapsed=True),
    _layer("amn-constant", lambda: AssociativeMixer(10, 7, liquid=False, gated=True)),
    _layer("amn-no-manifold", lambda: AssociativeMixer(10, manifold=False), elapsed=True),
    _layer("amn-chat", lambda: AssociativeMixer(12, memory_heads=3, chat_rounds=1, write_threshold=0.4), elapsed=True),
    _layer("block-amn", _block("amn")),
    _layer("block-hopfield", _block("hopfield"), elapsed=True),
    _layer("hopfield-updates", lambda: HopfieldMemory(24, 3, slots=11, update_steps=3, pairing="same")),
    _layer("hopfield-member", lambda: Hopfield(5, 24, 7, num_heads=3, memory_slots=11, update_steps=2)),
    _layer("block-ntm", _block("ntm")),
    _layer("ntm-feedforward", _machine),
)
MODELS: tuple[Entry, ...] = (
    _model("standard", lambda: SSMN(SSMNConfig(input_dim=5, output_dim=3, **_EVERYTHING)), elapsed=True),
    _model("standard-series", lambda: SSMN(SSMNConfig(input_dim=5, output_dim=3, **_SERIES, **_SMALL)), elapsed=True),
    _model("standard-rls", lambda: SSMN(SSMNConfig(input_dim=5, output_dim=3, **_RLS, **_SMALL))),
    _model("standard-hopfield", lambda: SSMN(SSMNConfig(input_dim=5, output_dim=3, **_HOPFIELD))),
    _model("text", lambda: TextSSMN(TextSSMNConfig(vocab_size=19, **_EVERYTHING))),
    _model(
        "text-untied",
        lambda: TextSSMN(TextSSMNConfig(vocab_size=19, tie_embeddings=False, semantic_encoder=False, **_SMALL)),
    ),
    _model("text-output-memory", lambda: TextSSMN(TextSSMNConfig(vocab_size=19, **_OUTPUT, **_SMALL))),
    _model(
        "text-output-memory-decay",
        lambda: TextSSMN(TextSSMNConfig(vocab_size=19, output_decay=0.05, **_OUTPUT, **_SMALL)),
        elapsed=True,
    ),
)


def _every_memory(chat_rounds: int) -> Iterator[Entry]:
    for rule, pairing, heads, threshold in itertools.product(
        ("hebbian", "delta", "erase"), ("previous", "same"), (1, 3), (0.0, 0.4)
    ):
        name = f"memory-{rule}-{pairing}-{heads}-threshold{threshold}-chat{chat_rounds}"
        settings = {"update_rule": rule, "pairing": pairing, "heads": heads, "write_threshold": threshold}
        yield _layer(name, _memory(chat_rounds=chat_rounds, **settings), elapsed=heads > 1)


def _every_attention() -> Iterator[Entry]:
    for window, kv_heads, rope_theta, sinks in itertools.product(
        (1, 2, 5, 40, 200), (1, 2, 4), (None, 100.0), (False, True)
    ):
        name = f"attention-{window}-kv{kv_heads}-rope{rope_theta}-{'sinks' if sinks else 'plain'}"
        yield _layer(name, _attention(window, num_kv_heads=kv_heads, rope_theta=rope_theta, sinks=sinks))


CHAT: tuple[Entry, ...] = (
    _layer("memory-chat", _memory(chat_rounds=1, write_threshold=0.4), elapsed=True),
    _layer("memory-chat-2", _memory(chat_rounds=2)),
    _model("standard-chat", lambda: SSMN(SSMNConfig(input_dim=5, output_dim=3, chat_rounds=1, **_EVERYTHING))),
)
EXHAUSTIVE: tuple[Entry, ...] = (*_every_memory(chat_rounds=0), *_every_attention())
"""Every combination of settings, for the slow run."""
EXHAUSTIVE_CHAT: tuple[Entry, ...] = tuple(_every_memory(chat_rounds=2))
"""The same with chat."""
