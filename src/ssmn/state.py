"""Stream states as values: the kinds, the verbs that every state has, and their files.

A state is a frozen dataclass of tensors, batch on axis 0; all zeros is a fresh one. Nothing ever
writes into a state: each verb returns a new one. To torch it is a tree of its tensors, so it goes in and out of what
`torch.export` exports, and through `torch.func`.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn.errors import DtypeError, FileError, RangeError, ShapeError, StateError
from ssmn.files import (
    BFLOAT16,
    Origin,
    PathLike,
    first_difference,
    model_fingerprint,
    read_file,
    write_state_arrays,
)

StateT = TypeVar("StateT", bound="State")
StateClass = TypeVar("StateClass", bound="type[State]")


class StatefulModel(Protocol):
    """What a state's file needs from a model."""

    @property
    def config(self) -> Any:
        """Anything with `to_dict()`."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def init_state(self, batch_size: int) -> StreamState: ...


@dataclass(frozen=True)
class FieldSpec:
    """What one tensor of a state must be: its axes by letter (equal letters, equal sizes), its type."""

    axes: tuple[str, ...]
    integer: bool
    optional: bool


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """The verbs of every state. Subclasses are frozen dataclasses of tensors, batch on axis 0."""

    kind: ClassVar[str]
    specs: ClassVar[dict[str, FieldSpec]]

    @property
    def batch_size(self) -> int:
        """B, the number of rows: independent streams that run side by side."""
        return next(iter(self.named_tensors().values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; the same at every position of a stream."""
        return sum(tensor.nbytes for tensor in self.named_tensors().values())

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors by name; an optional one that is absent is left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """A state of the same structure with the given tensors, named as in `named_tensors`."""
        return dataclasses.replace(self, **tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A state of the same structure with `function` applied to every tensor."""
        return self.with_tensors({name: function(tensor) for name, tensor in self.named_tensors().items()})

    def clone(self) -> Self:
        """A copy that shares no memory with this state; gradients flow through it."""
        return self.map(Tensor.clone)

    def detach(self) -> Self:
        """The same values cut from the graph, as truncated back-propagation needs between pieces."""
        return self.map(Tensor.detach)

    def fork(self, n: int) -> tuple[Self, ...]:
        """`n` independent copies of the same batch, each free to go its own way.

        Raises:
            RangeError: n is below 1.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise RangeError(f"fork: n={n!r}; wanted a whole number of copies, 1 or more.")
        return tuple(self.clone() for _ in range(n))

    def select(self, rows: Sequence[int] | Tensor) -> Self:
        """The given batch rows, in the given order; a row may be given more than once.

        Args:
            rows: Row numbers from 0 to B - 1, as a list or a 1-d integer tensor.

        Raises:
            DtypeError, ShapeError, RangeError: rows is no list of whole numbers, or one is outside the batch.
        """
        try:
            index = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError):
            raise DtypeError(f"select: rows={rows!r}; wanted a list of row numbers.") from None
        if index.ndim != 1:
            raise ShapeError(f"select: rows has shape {list(index.shape)}; wanted one axis: a list of row numbers.")
        if not len(index):
            index = index.to(torch.int64)  # an empty list has no dtype of its own
        if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise DtypeError(
                f"select: rows has dtype {_short(index.dtype)}; wanted whole numbers (of a mask: mask.nonzero()[:, 0])."
            )
        outside = [row for row in index.tolist() if not 0 <= row < self.batch_size]
        if outside:
            raise RangeError(
                f"select: rows has {outside[0]}; wanted 0 to {self.batch_size - 1} (a batch of {self.batch_size})."
            )
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device, torch.int64)))

    @staticmethod
    def merge(states: Sequence[StateT]) -> StateT:
        """Stacks the rows of several states, in order, into one batch.

        Raises:
            StateError: There is none, or two differ in kind, number of layers, shape, dtype or device.
        """
        states = list(states)
        if not states:
            raise StateError("merge: states is empty; wanted at least one state.")
        for number, state in enumerate(states[1:], start=1):
            require_same_layout("merge", states[0], state, names=("states[0]", f"states[{number}]"))
        tables = [state.named_tensors() for state in states]
        return states[0].with_tensors({name: torch.cat([table[name] for table in tables]) for name in tables[0]})

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """The state on another device, or in the other state dtype; positions stay int64.

        Args:
            device: A device, or a dtype alone: `state.to("cpu")`, `state.to(torch.float64)`.
            dtype: float32 or float64.

        Raises:
            DtypeError: dtype is another one: a state is kept in float32 at least.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in (None, torch.float32, torch.float64):
            raise DtypeError(f"to: dtype={_short(dtype)}; wanted float32 or float64: a rounded state drifts.")
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def reset_memory(self) -> Self:
        """The state with its long-term memory empty; a kind without one is unchanged."""
        return self

    def diff(self, other: Self) -> StateDiff:
        """How far another state is from this one, tensor by tensor.

        Raises:
            StateError: The two differ in kind, number of layers, shape or dtype.
        """
        require_same_layout("diff", self, other, names=("this state", "the other"), device=False, batch=True)
        mine, theirs = self.named_tensors(), other.named_tensors()
        return StateDiff(tuple(_tensor_diff(name, mine[name], theirs[name]) for name in mine))

    def __repr__(self) -> str:
        tensors = (f"{name}={_describe(tensor)}" for name, tensor in self.named_tensors().items())
        return f"{type(self).__name__}({', '.join(tensors)})"


_KINDS: dict[str, type[State]] = {}


def register_state(kind: str) -> Callable[[StateClass], StateClass]:
    """Class decorator: puts a state dataclass into the table of kinds that files may hold.

    Every field is `Annotated[Tensor, "B H K V"]`: its axes by letter, B first, floating point; int64
    is `Annotated[Tensor, "B", torch.int64]`. A field added later is `... | None = None`: files from
    before it still load. Adding one raises `ssmn.files.FORMAT_VERSION`.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Annotated
        >>> from torch import Tensor
        >>> from ssmn.state import State, register_state
        >>> @register_state("doctest-average")
        ... @dataclass(frozen=True, eq=False, repr=False)
        ... class AverageState(State):
        ...     mean: Annotated[Tensor, "B D"]
    """

    def register(cls: StateClass) -> StateClass:
        if _KINDS.setdefault(kind, cls) is not cls:
            raise StateError(f"register_state: kind={kind!r} is taken by {_KINDS[kind].__name__}; choose another name.")
        if cls.__dict__.get("kind") != kind:
            cls.kind, cls.specs = kind, _specs(cls)
            _register_tree(cls)
        return cls

    return register


def _register_tree(cls: type[State]) -> None:
    """Makes a state a tree of its tensors to `torch.export`, `torch.func` and `torch.utils`."""
    torch.export.register_dataclass(cls, serialized_type_name=f"ssmn.{cls.kind}")
    torch.serialization.add_safe_globals([cls])  # plain data: an exported program is loaded with its examples


def _specs(cls: type[State]) -> dict[str, FieldSpec]:
    hints = typing.get_type_hints(cls, include_extras=True)
    specs = {}
    for field in dataclasses.fields(cls):
        parts = [part for part in typing.get_args(hints[field.name]) if typing.get_origin(part) is Annotated]
        axes, *dtype = (parts[0] if parts else hints[field.name]).__metadata__
        specs[field.name] = FieldSpec(tuple(axes.split()), torch.int64 in dtype, bool(parts))
    return specs


@register_state("window")
@dataclass(frozen=True, eq=False, repr=False)
class WindowState(State):
    """What sliding-window attention remembers: the last W - 1 open steps, as a ring.

    The step at position p lies in slot p mod (W - 1); slots that no step has reached are zeros. A
    window of 1 has no slots.
    """

    keys: Annotated[Tensor, "B N Hkv D"]
    """[B, W - 1, Hkv, D], rotated."""
    values: Annotated[Tensor, "B N Hkv D"]
    """[B, W - 1, Hkv, D]."""
    position: Annotated[Tensor, "B", torch.int64]
    """[B], open steps so far."""


@register_state("plastic")
@dataclass(frozen=True, eq=False, repr=False)
class PlasticState(State):
    """What a plastic layer remembers: the synaptic memory and the hidden vector that keys pair with."""

    memory: Annotated[Tensor, "B H K V"]
    """[B, H, K, V], rows pre-synaptic, columns post-synaptic."""
    previous: Annotated[Tensor, "B D"]
    """[B, D], the normalised hidden vector of the last open step."""

    def reset_memory(self) -> Self:
        return dataclasses.replace(self, memory=torch.zeros_like(self.memory), previous=torch.zeros_like(self.previous))


@register_state("encoder")
@dataclass(frozen=True, eq=False, repr=False)
class EncoderState(State):
    """What the semantic encoder remembers."""

    recent: Annotated[Tensor, "B N D"]
    """[B, 3, D], embeddings of the last three tokens, oldest first."""


@register_state("output")
@dataclass(frozen=True, eq=False, repr=False)
class OutputMemoryState(State):
    """What the output memory remembers, and the prediction that the next token will prove right or wrong."""

    memory: Annotated[Tensor, "B Y D"]
    """[B, vocab_size, D], what is added to the logits for a key of unit length."""
    key: Annotated[Tensor, "B D"]
    """[B, D], the key of the last open step; zeros if there was none."""
    prediction: Annotated[Tensor, "B Y"]
    """[B, vocab_size], the corrected logits' probabilities at the last open step."""
    ratio: Annotated[Tensor, "B Y"]
    """[B, vocab_size], the logarithm of these over those of the model's own logits."""
    trust: Annotated[Tensor, "B"]
    """[B], log-odds of the corrected against the plain prediction."""

    @classmethod
    def fresh(
        cls, batch_size: int, vocab_size: int, hidden_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> Self:
        """All zeros: nothing stored, nothing predicted, both predictions trusted alike."""
        shapes = ((vocab_size, hidden_dim), (hidden_dim,), (vocab_size,), (vocab_size,), ())
        return cls(*(torch.zeros(batch_size, *shape, dtype=dtype, device=device) for shape in shapes))

    def reset_memory(self) -> Self:
        return self.map(torch.zeros_like)


@register_state("front")
@dataclass(frozen=True, eq=False, repr=False)
class FrontState(State):
    """What the front of a model of series remembers: how its columns lie, and time that has not been told yet.

    C is the number of input columns, or 0 without normalisation.
    """

    mean: Annotated[Tensor, "B C"]
    """[B, C], running means; together with `rest`."""
    rest: Annotated[Tensor, "B C"]
    """[B, C], what rounding the means left over, so that a large offset costs no precision."""
    deviation: Annotated[Tensor, "B C"]
    """[B, C], running standard deviations."""
    count: Annotated[Tensor, "B C"]
    """[B, C], values seen, up to 1 / rate."""
    pending: Annotated[Tensor, "B"]
    """[B], elapsed time of the absent rows since the last present one."""


@register_state("readout")
@dataclass(frozen=True, eq=False, repr=False)
class ReadoutState(State):
    """What the plastic read-out has learned, and the prediction that the next target will prove right or wrong.

    F is the width of the features, the hidden vector's and a constant.
    """

    memory: Annotated[Tensor, "B F O"]
    """[B, F, O]: by the rule `delta` the weights; by `rls` the sum of features times errors."""
    key: Annotated[Tensor, "B F"]
    """[B, F], the features of the last open step; zeros if there was none."""
    prediction: Annotated[Tensor, "B O"]
    """[B, O], the model's own output at the last open step, in normalised units."""
    moment: Annotated[Tensor, "B F F"] | None = None
    """[B, F, F], the sum of features times features; for the rule `rls` alone."""

    def reset_memory(self) -> Self:
        return self.map(torch.zeros_like)


@dataclass(frozen=True, eq=False, repr=False)
class StreamState(State):
    """Everything that a model carries from one call to the next.

    Example:
        >>> import torch
        >>> from ssmn.state import PlasticState, StreamState
        >>> layer = PlasticState(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8))
        >>> state = StreamState(None, (layer,), None, torch.zeros(1, dtype=torch.int64))
        >>> left, right = state.fork(2)
        >>> StreamState.merge([left, right]).batch_size
        2
    """

    kind: ClassVar[str] = "stream"

    front: State | None
    """What comes before the stack (the semantic encoder, the front of series), if it has a state."""
    layers: tuple[State, ...]
    """One state per layer."""
    head: State | None
    """What comes after the stack, if it has a state."""
    position: Tensor
    """[B] int64, open steps so far."""

    @property
    def batch_size(self) -> int:
        return self.position.shape[0]

    def children(self) -> Iterator[tuple[str, State]]:
        """The parts that are there, by the name that prefixes their tensors."""
        if self.front is not None:
            yield "front", self.front
        for number, layer in enumerate(self.layers):
            yield f"layers.{number}", layer
        if self.head is not None:
            yield "head", self.head

    def named_tensors(self) -> dict[str, Tensor]:
        parts = {f"{prefix}.{name}": tensor for prefix, child in self.children()
                 for name, tensor in child.named_tensors().items()}  # fmt: skip
        return {**parts, "position": self.position}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        def part(prefix: str, child: State) -> State:
            return child.with_tensors({name: tensors[f"{prefix}.{name}"] for name in child.named_tensors()})

        return dataclasses.replace(self._map_children(part), position=tensors["position"])

    def reset_memory(self) -> Self:
        """Empties every layer's memory (and the vector that its next key pairs with).

        The window, the encoder and the position stay: what was just read is still in view.
        """
        return self._map_children(lambda _, child: child.reset_memory())

    def _map_children(self, function: Callable[[str, State], State]) -> Self:
        made = {prefix: function(prefix, child) for prefix, child in self.children()}
        return dataclasses.replace(
            self,
            front=made.get("front"),
            layers=tuple(made[f"layers.{number}"] for number in range(len(self.layers))),
            head=made.get("head"),
        )

    def save(self, path: PathLike, model: StatefulModel) -> None:
        """Writes the state to a file that belongs to `model`; the whole new file or, on failure, the old one.

        The file carries the model's fingerprint, so the cost is that of hashing the weights as well.

        Args:
            path: The file to write or replace; its folder must exist.
            model: The model that the state comes from.

        Raises:
            StateError: The state is not of this model, or has values that are not finite.
            FileError: The file cannot be written.
        """
        _require_fit("save", self, model, "the state")
        write_state_file(path, self, origin_of(model))

    @classmethod
    def load(cls, path: PathLike, model: StatefulModel | None = None, allow_other_weights: bool = False) -> StreamState:
        """Reads a state; checks the file's sum first, then that it belongs to `model`.

        Args:
            path: A file of `save`.
            model: The model that is to go on; None skips the check and loads to the CPU.
            allow_other_weights: Takes a state of other weights or settings whose shapes fit.

        Returns:
            The state, on the model's device.

        Raises:
            FileError: The file is missing, damaged, no state, holds values that are not finite, or its parts disagree
                about the position.
            StateError: The file belongs to another model; the first difference is named.
        """
        state, origin = read_state_file(path)
        if model is None:
            return state
        if not allow_other_weights:
            way_out = "use the model that the state was saved with, or pass allow_other_weights=True"
            origin.require("load", origin_of(model), names=(str(path), "the model"), way_out=way_out)
        return state.to(_require_fit("load", state, model, str(path)).position.device)


_register_tree(StreamState)


def origin_of(model: StatefulModel) -> Origin:
    """The origin of states that `model` makes now, with its present weights."""
    # Through JSON, so that it compares equal to what a file gives back.
    return Origin(fingerprint(model), json.loads(json.dumps(model.config.to_dict())))


def fingerprint(model: StatefulModel) -> str:
    """SHA-256 over a model's configuration and weights, in hexadecimal.

    It reads every weight once: about a tenth of a second per 100 MB.
    """
    weights = {name: to_numpy(tensor) for name, tensor in model.state_dict().items()}
    return model_fingerprint(model.config.to_dict(), weights)


def write_state_file(path: PathLike, state: StreamState, origin: Origin) -> None:
    """Writes a state that belongs to `origin`; `StreamState.save` is this with a model's origin.

    Raises:
        StateError: A tensor has values that are not finite.
        FileError: The file cannot be written.
    """
    tensors = {name: to_numpy(tensor) for name, tensor in state.named_tensors().items()}
    write_state_arrays(path, tensors, _layout(state), origin)


def state_from_arrays(arrays: Mapping[str, NDArray[Any]], layout: Mapping[str, Any]) -> StreamState:
    """A state from sound tensors, named as in a state file, and the kinds of its parts."""

    def part(prefix: str, kind: str | None) -> State | None:
        if kind is None:
            return None
        cls = _KINDS[kind]
        given = {name: arrays.get(f"{prefix}.{name}") for name in cls.specs}
        return cls(**{name: from_numpy(array) for name, array in given.items() if array is not None})

    return StreamState(
        front=part("front", layout["front"]),
        layers=tuple(
            typing.cast("State", part(f"layers.{number}", kind)) for number, kind in enumerate(layout["layers"])
        ),
        head=part("head", layout["head"]),
        position=from_numpy(arrays["position"]),
    )


def read_state_file(path: PathLike) -> tuple[StreamState, Origin]:
    """Reads a state without a model, and the origin that it names.

    Raises:
        FileError: The file is missing, damaged, no state, of an unknown kind, its tensors are not what the kinds
            ask for, or its parts disagree about the position.
    """
    arrays, header = read_file(path, kind="state")
    tensors = {name: from_numpy(array) for name, array in arrays.items()}
    layout: Any = header.get("layout")
    mark, config = header.get("fingerprint"), header.get("config")
    if not _is_layout(layout) or not isinstance(mark, str) or not isinstance(config, dict):
        raise FileError(
            f"load: {path} lacks a sound layout, fingerprint or config in its header; save the state again."
        )
    sizes: dict[str, int] = {}

    def take(name: str, spec: FieldSpec, letters: dict[str, int]) -> Tensor | None:
        tensor = tensors.pop(name, None)
        if tensor is None:
            if spec.optional:
                return None
            raise FileError(f"load: {path} has no tensor {name!r}; wanted one of {len(spec.axes)} axes.")
        _check_tensor(path, name, tensor, spec, letters)
        return tensor

    def part(prefix: str, kind: str | None) -> State | None:
        if kind is None:
            return None
        cls = _KINDS.get(kind)
        if cls is None:
            raise FileError(
                f"load: {path} has a state of kind {kind!r} at {prefix}; known are {', '.join(sorted(_KINDS))}; "
                f"import the module that registers it first."
            )
        letters = {"B": sizes["B"]}
        return cls(**{name: take(f"{prefix}.{name}", spec, letters) for name, spec in cls.specs.items()})

    position = take("position", FieldSpec(("B",), integer=True, optional=False), sizes)
    assert position is not None
    layers = tuple(part(f"layers.{number}", kind) for number, kind in enumerate(layout["layers"]))
    state = StreamState(
        front=part("front", layout["front"]),
        layers=typing.cast("tuple[State, ...]", layers),
        head=part("head", layout["head"]),
        position=position,
    )
    if tensors:
        raise FileError(f"load: {path} has a tensor {min(tensors)!r} that no part of the state wants; save it again.")
    for prefix, child in state.children():
        _check_position(path, prefix, child, position)
    return state, Origin(mark, config)


@dataclass(frozen=True)
class TensorDiff:
    """How far one tensor is from another."""

    name: str
    max_abs: float
    """Largest |difference|."""
    relative: float
    """Largest |difference| / max(1, largest |value of the first|)."""


@dataclass(frozen=True)
class StateDiff:
    """The differences of two states, tensor by tensor; printed, only those that differ."""

    tensors: tuple[TensorDiff, ...]

    @property
    def identical(self) -> bool:
        """Whether no value differs."""
        return not self.differing

    @property
    def differing(self) -> tuple[TensorDiff, ...]:
        """The tensors with a difference."""
        return tuple(entry for entry in self.tensors if entry.max_abs != 0)

    def __iter__(self) -> Iterator[TensorDiff]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __str__(self) -> str:
        if self.identical:
            return f"identical ({len(self)} tensors)"
        width = max(len(entry.name) for entry in self.differing)
        lines = [f"{entry.name:<{width}}  max |difference| {entry.max_abs:.3g}, relative {entry.relative:.3g}"
                 for entry in self.differing]  # fmt: skip
        return "\n".join([*lines, f"{len(self.differing)} of {len(self)} tensors differ"])


def require_same_layout(
    owner: str, first: State, second: State, names: tuple[str, str], device: bool = True, batch: bool = False
) -> None:
    """Raises a StateError that names the first tensor in which two states cannot stand for each other.

    Args:
        owner: The verb, for the message.
        first: A state.
        second: The state to hold against it.
        names: What to call them in the message.
        device: Whether the devices must agree.
        batch: Whether the batch sizes must agree.
    """

    def refuse(what: str, mine: object, theirs: object) -> StateError:
        return StateError(f"{owner}: {what} {mine} in {names[0]} but {theirs} in {names[1]}; they must agree.")

    if not isinstance(first, State) or not isinstance(second, State):
        raise refuse("the type is", type(first).__name__, type(second).__name__)
    difference = first_difference(_layout(first), _layout(second), "state")
    if difference is not None:
        raise refuse(f"{difference[0]} is", difference[1], difference[2])
    mine, theirs = first.named_tensors(), second.named_tensors()
    if mine.keys() != theirs.keys():
        name = min(mine.keys() ^ theirs.keys())
        raise refuse(f"{name} is", *("present" if name in table else "absent" for table in (mine, theirs)))
    for name, tensor in mine.items():
        other = theirs[name]
        if tensor.ndim != other.ndim or tensor.shape[not batch :] != other.shape[not batch :]:
            raise refuse(f"{name} has shape", list(tensor.shape), list(other.shape))
        if tensor.dtype != other.dtype:
            raise refuse(f"{name} has dtype", _short(tensor.dtype), _short(other.dtype))
        if device and tensor.device != other.device:
            raise refuse(f"{name} is on device", tensor.device, other.device)


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """The tensor as a numpy array for `ssmn.files`, bfloat16 as its raw bits under `BFLOAT16`."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def from_numpy(array: NDArray[Any]) -> Tensor:
    """The reverse of `to_numpy`; shares the array's memory."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _require_fit(owner: str, state: StreamState, model: StatefulModel, name: str) -> StreamState:
    with torch.no_grad():
        template = model.init_state(1)
    require_same_layout(owner, state, template, names=(name, "the model"), device=False)
    return template


def _layout(state: State) -> Any:
    if not isinstance(state, StreamState):
        return state.kind
    return {
        "front": state.front and state.front.kind,
        "layers": [layer.kind for layer in state.layers],
        "head": state.head and state.head.kind,
    }


def _is_layout(layout: Any) -> bool:
    return (
        isinstance(layout, dict)
        and set(layout) == {"front", "layers", "head"}
        and isinstance(layout["layers"], list)
        and all(isinstance(kind, str) for kind in layout["layers"])
        and all(kind is None or isinstance(kind, str) for kind in (layout["front"], layout["head"]))
    )


def _check_tensor(path: PathLike, name: str, tensor: Tensor, spec: FieldSpec, letters: dict[str, int]) -> None:
    """Checks one tensor of a file against its field, and binds its axes' letters to sizes."""
    wanted = [letters.get(axis, axis) for axis in spec.axes]
    if tensor.ndim != len(wanted) or any(
        isinstance(w, int) and w != n for w, n in zip(wanted, tensor.shape, strict=True)
    ):
        shape = ", ".join(map(str, wanted))
        raise FileError(f"load: {path}: {name} has shape {list(tensor.shape)}; wanted [{shape}]; save the state again.")
    letters.update(zip(spec.axes, tensor.shape, strict=True))
    dtypes = (torch.int64,) if spec.integer else (torch.float32, torch.float64)
    if tensor.dtype not in dtypes:
        choices = " or ".join(map(_short, dtypes))
        raise FileError(
            f"load: {path}: {name} has dtype {_short(tensor.dtype)}; wanted {choices}; save the state again."
        )
    if spec.integer and (tensor < 0).any():
        raise FileError(f"load: {path}: {name} is negative; wanted positions from 0 on; save the state again.")
    if _not_finite({name: tensor}):
        raise FileError(f"load: {path}: {name} has NaN or infinite values; go back to an earlier file of this stream.")


def _check_position(path: PathLike, prefix: str, child: State, position: Tensor) -> None:
    """A part has counted no more steps than the stream, and a window all of them; an emptied memory counts anew."""
    counted = child.named_tensors().get("position")
    if counted is None:
        return
    exactly = isinstance(child, WindowState)
    wrong = (counted != position if exactly else counted > position).nonzero()[:, 0].tolist()
    if wrong:
        row = wrong[0]
        raise FileError(
            f"load: {path}: row {row} is at step {position[row]} by position but at step {counted[row]} by "
            f"{prefix}.position; wanted {'the same' if exactly else 'no more'}; "
            "go back to an earlier file of this stream."
        )


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def _tensor_diff(name: str, mine: Tensor, theirs: Tensor) -> TensorDiff:
    if not mine.numel():
        return TensorDiff(name, 0.0, 0.0)
    mine, theirs = (tensor.detach().to("cpu", torch.float64) for tensor in (mine, theirs))
    largest = (mine - theirs).abs().max().item()
    return TensorDiff(name, largest, largest / max(1.0, mine.abs().max().item()))


def _describe(value: Tensor) -> str:
    return f"{_short(value.dtype)}{list(value.shape)}"


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
