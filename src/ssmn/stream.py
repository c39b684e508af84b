"""The one mutable holder: a model and the state of a running stream."""

from __future__ import annotations

import itertools
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ssmn.errors import StateError
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

    Raises:
        StateError: `state` is not one of this model.

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
        self, model: StreamModel, state: StreamState | None = None, *, batch_size: int = 1, grad: bool = False
    ) -> None:
        self.model = model
        self.grad = grad
        with torch.no_grad():
            self._state = model.init_state(batch_size)
        if state is not None:
            self.state = state
        self._checkpoints: dict[str, StreamState] = {}

    @property
    def state(self) -> StreamState:
        """The present state, a value: keep it, fork it, or assign one of the same model to go on from there."""
        return self._state

    @state.setter
    def state(self, state: StreamState) -> None:
        require_same_layout("Stream", state, self._state, names=("the given state", "this stream's model"))
        self._state = state

    @property
    def position(self) -> Tensor:
        """[B] int64, open steps so far."""
        return self._state.position

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
        with torch.set_grad_enabled(self.grad):
            y, self._state = self.model(x, self._state, **options)
        return y

    def step(self, x_t: Tensor, **options: Any) -> Any:
        """Reads one step, `x_t` of shape [B, ...]; options as in `push`. Returns the model's output y_t."""
        with torch.set_grad_enabled(self.grad):
            y_t, self._state = self.model.step(x_t, self._state, **options)
        return y_t

    def fork(self, n: int) -> list[Self]:
        """`n` streams that go on from here, each on its own; checkpoints stay with this one.

        Raises:
            RangeError: n is below 1.
        """
        return [type(self)(self.model, state, grad=self.grad) for state in self._state.fork(n)]

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
        self._checkpoints[name] = self._state
        return name

    def rollback(self, name: str | None = None) -> None:
        """Goes back to a checkpoint, the latest if none is named; it stays and can be gone back to again.

        Raises:
            StateError: There is no such checkpoint.
        """
        self._state = self._checkpoints[self._known("rollback", name)]

    def forget(self, name: str | None = None) -> None:
        """Drops a checkpoint, the latest if none is named.

        Raises:
            StateError: There is no such checkpoint.
        """
        del self._checkpoints[self._known("forget", name)]

    def reset_memory(self) -> None:
        """Empties the long-term memory; window and position stay."""
        self._state = self._state.reset_memory()

    def save(self, path: PathLike) -> None:
        """Writes the present state to a file, as `StreamState.save` does."""
        self._state.save(path, self.model)

    def load(self, path: PathLike, allow_other_weights: bool = False) -> None:
        """Goes on from a state file, as `StreamState.load` reads it; the batch size becomes the file's."""
        self._state = StreamState.load(path, self.model, allow_other_weights)

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
