"""The one mutable holder: a model and the state of a running stream."""

from __future__ import annotations

import itertools
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ssmn.config import Plasticity
from ssmn.engine import Engine
from ssmn.errors import BackendError, ConfigError, DtypeError, RangeError, StateError
from ssmn.files import PathLike
from ssmn.state import StatefulModel, StreamState, require_same_layout


class StreamModel(StatefulModel, Protocol):
    """What `Stream` needs from a model: two calls `(x, state, **options) -> (y, state)`, and what its files need."""

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, StreamState]: ...

    def step(self, *args: Any, **options: Any) -> tuple[Any, StreamState]: ...


class Stream:
    """A running stream: keeps the state from call to call, so that a caller need not.

    A call that fails leaves the state as it was. Not meant for several threads at once: fork instead.

    Args:
        model: The model; several streams may share it.
        state: Where to start; None starts afresh.
        batch_size: Rows of a fresh state: independent streams that run side by side.
        grad: Records gradients through pushes and steps; off by default, or memory would grow with the stream.
        backend: `torch`, or `engine`: the model as it is now, packed once; for steps and short pieces far quicker. It
            takes the options `elapsed`, `plasticity`, `target`, `future` and `static` only, and later changes of the
            weights do not reach it. `auto` takes the engine where there is one that runs the model.

    Raises:
        StateError: `state` is not one of this model.
        RangeError, ConfigError, DtypeError, BackendError: The engine cannot run this.

    Example:
        >>> import torch, ssmn
        >>> config = ssmn.SSMNConfig(input_dim=3, output_dim=2, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> stream = ssmn.Stream(ssmn.SSMN(config))
        >>> y = stream.push(torch.randn(1, 20, 3))
        >>> mark = stream.checkpoint()
        >>> y_t = stream.step(torch.randn(1, 3))
        >>> stream.rollback(mark)
        >>> stream.position.tolist()
        [20]
    """

    def __init__(
        self,
        model: StreamModel,
        state: StreamState | None = None,
        *,
        batch_size: int = 1,
        grad: bool = False,
        backend: Literal["auto", "engine", "torch"] = "torch",
    ) -> None:
        if backend not in ("auto", "engine", "torch"):
            raise RangeError(f"Stream: backend={backend!r}; wanted auto, engine or torch.")
        if grad and backend == "engine":
            raise ConfigError("Stream: the engine records no gradients; wanted grad=False, or backend='torch'.")
        self.model = model
        self.grad = grad
        self._rows = None
        if backend == "engine" or (backend == "auto" and not grad):
            try:
                self._rows = _EngineRows(Engine(model))
            except (BackendError, ConfigError, DtypeError):
                if backend == "engine":
                    raise
        with torch.no_grad():
            self._state: StreamState | None = model.init_state(batch_size)
        self._like = self._state
        if self._rows is not None:
            self._rows.put(self._state)
        if state is not None:
            self.state = state
        self._checkpoints: dict[str, StreamState] = {}

    @property
    def backend(self) -> Literal["torch", "engine"]:
        """What computes."""
        return "torch" if self._rows is None else "engine"

    @property
    def state(self) -> StreamState:
        """The present state, a value: keep it, fork it, or assign one of the same model to go on from there."""
        if self._state is None:
            assert self._rows is not None
            self._state = self._rows.get()
        return self._state

    @state.setter
    def state(self, state: StreamState) -> None:
        require_same_layout("Stream", state, self._like, names=("the given state", "this stream's model"))
        if self._rows is not None:
            self._rows.put(state)
        self._state = state

    @property
    def position(self) -> Tensor:
        """[B] int64, open steps so far."""
        return self.state.position if self._rows is None else self._rows.positions

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints, oldest first."""
        return tuple(self._checkpoints)

    def push(self, x: Tensor, **options: Any) -> Any:
        """Reads the next piece of the stream.

        Args:
            x: What the model reads, [B, T, ...], of any length T.
            **options: The model's own (`mask`, `reset`, `elapsed`, `plasticity`, ...), which refuses unknown ones.

        Returns:
            The model's output y.
        """
        if self._rows is not None:
            y = self._rows.run(x, **options)
            self._state = None
            return y
        with torch.set_grad_enabled(self.grad):
            y, self._state = self.model(x, self.state, **options)
        return y

    def step(self, x_t: Tensor, **options: Any) -> Any:
        """Reads one step, `x_t` of shape [B, ...]; options as in `push`. Returns the model's output y_t."""
        if self._rows is not None:
            y_t = self._rows.step(x_t, **options)
            self._state = None
            return y_t
        with torch.set_grad_enabled(self.grad):
            y_t, self._state = self.model.step(x_t, self.state, **options)
        return y_t

    def fork(self, n: int) -> list[Self]:
        """`n` streams that go on from here, each on its own; checkpoints stay with this one.

        Raises:
            RangeError: n is below 1.
        """
        return [self._fork(state) for state in self.state.fork(n)]

    def checkpoint(self, name: str | None = None) -> str:
        """Remembers the present state under a name; one that is in use moves on to it.

        Nothing is copied, and nothing is dropped unasked: each checkpoint keeps one state's bytes alive
        until `forget`.

        Returns:
            The name, made up ("checkpoint 1", ...) when none is given.
        """
        if name is None:
            name = next(made for n in itertools.count(1) if (made := f"checkpoint {n}") not in self._checkpoints)
        self._checkpoints.pop(name, None)  # so that a name used again counts as the latest
        self._checkpoints[name] = self.state
        return name

    def rollback(self, name: str | None = None) -> None:
        """Goes back to a checkpoint, the latest if none is named; it stays and can be gone back to again.

        Raises:
            StateError: There is no such checkpoint.
        """
        self.state = self._checkpoints[self._known("rollback", name)]

    def forget(self, name: str | None = None) -> None:
        """Drops a checkpoint, the latest if none is named.

        Raises:
            StateError: There is no such checkpoint.
        """
        del self._checkpoints[self._known("forget", name)]

    def reset_memory(self) -> None:
        """Empties the long-term memory; window and position stay."""
        self.state = self.state.reset_memory()

    def save(self, path: PathLike) -> None:
        """Writes the present state to a file, as `StreamState.save` does."""
        self.state.save(path, self.model)

    def load(self, path: PathLike, allow_other_weights: bool = False) -> None:
        """Goes on from a state file, as `StreamState.load` reads it; the batch size becomes the file's."""
        self.state = StreamState.load(path, self.model, allow_other_weights)

    def _fork(self, state: StreamState) -> Self:
        """A stream of the same kind; on the engine, over the same packed weights."""
        if self._rows is None:
            return type(self)(self.model, state, grad=self.grad)
        made = type(self)(self.model, state)
        made._rows = _EngineRows(self._rows.engine.sibling())
        made.state = state
        return made

    def _known(self, verb: str, name: str | None) -> str:
        if not self._checkpoints:
            raise StateError(f"{verb}: there is no checkpoint; make one with checkpoint() first.")
        if name is None:
            return next(reversed(self._checkpoints))
        if name not in self._checkpoints:
            raise StateError(f"{verb}: name={name!r}; wanted one of {', '.join(map(repr, self._checkpoints))}.")
        return name

    def __repr__(self) -> str:
        return f"Stream({type(self.model).__name__}, position={self.position.tolist()})"


class _EngineRows:
    """A batch of streams on an engine, one engine stream per row."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._plasticity: Plasticity | None = None

    @property
    def positions(self) -> Tensor:
        """[B]."""
        return torch.tensor([self.engine.position(row) for row in range(self.engine.streams)])

    def get(self) -> StreamState:
        """The state of all rows."""
        return self.engine.get_states()

    def put(self, state: StreamState) -> None:
        """Goes on from a state, with as many rows as it has."""
        fresh = self.engine.sibling(state.batch_size)
        fresh.set_states(state)
        self.engine, self._plasticity = fresh, None

    def run(
        self,
        x: Tensor,
        *,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
        target: Tensor | None = None,
        future: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
        """Outputs [B, T, ...] of x [B, T, ...]."""
        self._learn(plasticity)
        rows = {"elapsed": elapsed, "target": target, "future": future}
        arrays = {name: array.swapaxes(0, 1) for name, array in _arrays(rows).items()}
        ys = self.engine.run(_array("x", x).swapaxes(0, 1), **arrays, **_arrays({"static": static}))
        return torch.from_numpy(ys).transpose(0, 1)

    def step(
        self,
        x_t: Tensor,
        *,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
        target: Tensor | None = None,
        future: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
        """Outputs [B, ...] of x_t [B, ...]."""
        self._learn(plasticity)
        arrays = _arrays({"elapsed": elapsed, "target": target, "future": future, "static": static})
        return torch.from_numpy(self.engine.step(_array("x", x_t), **arrays).copy())

    def _learn(self, plasticity: Plasticity | None) -> None:
        if plasticity is not self._plasticity:
            self.engine.set_plasticity(plasticity or Plasticity())
            self._plasticity = plasticity


def _arrays(tensors: dict[str, Tensor | None]) -> dict[str, Any]:
    return {name: _array(name, value) for name, value in tensors.items() if value is not None}


def _array(name: str, x: Tensor) -> np.ndarray:
    if not isinstance(x, Tensor):
        raise DtypeError(f"Stream: {name} is {type(x).__name__}; wanted a tensor with axis B first.")
    return x.detach().numpy()
