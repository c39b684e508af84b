"""What the decode loop drives: several streams that read tokens and give logits, on torch or on the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn.config import PLASTICITY_PER_ROW, Plasticity
from ssmn.engine import Engine
from ssmn.state import StreamState

PROMPT_PIECE = 512
"""Tokens of a prompt that are read at once; bounds the memory that a long prompt takes, and the wait for Ctrl-C."""

Logits = NDArray[np.floating]


class LanguageModel(Protocol):
    """What the torch path needs of a model: `TextSSMN`, or anything that is called like it."""

    def __call__(
        self, input_ids: Tensor, state: StreamState | None = None, *, plasticity: Plasticity | None = None
    ) -> tuple[Tensor, StreamState]: ...


class Runner(Protocol):
    """Streams, numbered from 0, each with a state of its own."""

    def read(self, row: int, tokens: Sequence[int]) -> Logits:
        """Reads a prompt; the logits [vocabulary] after it."""
        ...

    def begin(self) -> None:
        """Called once, when every prompt has been read."""
        ...

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Logits:
        """Reads a token of each of the rows, which are never rows that an earlier step left out; logits [rows, V]."""
        ...

    def state(self, row: int) -> StreamState:
        """The row's state now, as a value."""
        ...


class LaterState(StreamState):
    """A state that is fetched when it is first looked at; most states that `generate` gives out never are."""

    @classmethod
    def of(cls, fetch: Callable[[], StreamState]) -> StreamState:
        """The state that `fetch` will return."""
        state = object.__new__(cls)
        object.__setattr__(state, "_fetch", fetch)
        return state

    def __getattr__(self, name: str) -> Any:
        if name not in ("front", "layers", "head", "position") or "_fetch" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        fetched = self.__dict__["_fetch"]()
        for field in dataclasses.fields(fetched):
            object.__setattr__(self, field.name, getattr(fetched, field.name))
        self.__dict__.pop("_fetch", None)
        return getattr(self, name)


class TorchRunner:
    """On a model itself: rows that learn alike go through it as one batch."""

    def __init__(
        self, lm: LanguageModel, states: Sequence[StreamState | None], learning: Sequence[Plasticity | None]
    ) -> None:
        self._lm, self._learning = lm, list(learning)
        self._device = getattr(lm, "device", None)
        self._alone = list(states)
        self._groups: list[_Group] = []

    def read(self, row: int, tokens: Sequence[int]) -> Logits:
        logits: Tensor | None = None
        for piece in torch.tensor([tokens], device=self._device).split(PROMPT_PIECE, dim=1):
            with torch.no_grad():
                logits, self._alone[row] = self._lm(piece, self._alone[row], plasticity=self._learning[row])
        assert logits is not None
        return _numpy(logits[0, -1])

    def begin(self) -> None:
        kinds: dict[Any, list[int]] = {}
        for row, learning in enumerate(self._learning):
            kinds.setdefault(_kind(learning), []).append(row)
        for rows in kinds.values():
            states = [state for row in rows if (state := self._alone[row]) is not None]
            self._groups.append(_Group(rows, states[0] if len(rows) == 1 else StreamState.merge(states)))
        self._alone.clear()

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Logits:
        token_of = dict(zip(rows, tokens, strict=True))
        found: dict[int, Logits] = {}
        for group in self._groups:
            group.keep([row for row in group.rows if row in token_of])
            if not group.rows:
                continue
            batch = torch.tensor([[token_of[row]] for row in group.rows], device=self._device)
            learning = _together([self._learning[row] for row in group.rows])
            with torch.no_grad():
                logits, group.state = self._lm(batch, group.state, plasticity=learning)
            found |= zip(group.rows, _numpy(logits[:, -1]), strict=True)
        return np.stack([found[row] for row in rows])

    def state(self, row: int) -> StreamState:
        (group,) = (group for group in self._groups if row in group.rows)
        batch, place = group.state, group.rows.index(row)
        return batch if len(group.rows) == 1 else LaterState.of(lambda: batch.select([place]))


@dataclasses.dataclass
class _Group:
    """Rows that go through the model together."""

    rows: list[int]
    state: StreamState

    def keep(self, rows: list[int]) -> None:
        if rows != self.rows:
            if rows:
                self.state = self.state.select([self.rows.index(row) for row in rows])
            self.rows = rows


class EngineRunner:
    """On an engine's weights, with streams of its own."""

    def __init__(
        self,
        engine: Engine,
        lock: Any,
        states: Sequence[StreamState | None],
        learning: Sequence[Plasticity | None],
    ) -> None:
        self._lock = lock
        with lock:
            self._engine = engine.sibling(len(states))
            self._spare: Engine | None = None
        for row, (state, plasticity) in enumerate(zip(states, learning, strict=True)):
            if state is not None:
                self._engine.set_state(row, state)
            if plasticity is not None:
                self._engine.set_plasticity(plasticity, row)
        self._learning = list(learning)
        self._read: list[list[int]] = [[] for _ in states]
        """What each row has read since `begin`."""
        self._start: list[StreamState] = []
        """Each row's state at `begin`."""
        self._found: dict[int, tuple[int, StreamState]] = {}
        """Each row's state that was found again last, and how many tokens it had read."""

    def read(self, row: int, tokens: Sequence[int]) -> Logits:
        numbers, logits = np.asarray(tokens, np.int64), None
        for start in range(0, len(numbers), PROMPT_PIECE):
            with self._lock:
                logits = self._engine.prefill(numbers[start : start + PROMPT_PIECE], streams=[row])
        assert logits is not None
        return logits

    def begin(self) -> None:
        with self._lock:
            self._start = [self._engine.get_state(row) for row in range(self._engine.streams)]

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Logits:
        with self._lock:
            if self._engine.streams == 1:
                logits = self._engine.step(tokens[0])[np.newaxis]
            else:
                logits = self._engine.step(np.array(tokens), streams=rows)
        for row, token in zip(rows, tokens, strict=True):
            self._read[row].append(token)
        return logits

    def state(self, row: int) -> StreamState:
        count = len(self._read[row])
        return LaterState.of(lambda: self._state_at(row, count))

    def _state_at(self, row: int, count: int) -> StreamState:
        """The state after `count` tokens: as it is, or found again by reading them once more, equal to the bit."""
        with self._lock:
            if count == len(self._read[row]):
                return self._engine.get_state(row)
            done, state = self._found.get(row, (0, self._start[row]))
            if done > count:
                done, state = 0, self._start[row]
            if self._spare is None:
                self._spare = self._engine.sibling()
            self._spare.set_state(0, state)
            self._spare.set_plasticity(self._learning[row] or Plasticity())
            if count > done:
                self._spare.prefill(np.asarray(self._read[row][done:count], np.int64))
            self._found[row] = count, self._spare.get_state(0)
            return self._found[row][1]


def _kind(learning: Plasticity | None) -> Any:
    """What two rows must share to go through a model in one call."""
    learning = learning or Plasticity()
    return learning.frozen, learning.chat_rounds, *(getattr(learning, name) is None for name in PLASTICITY_PER_ROW)


def _together(learning: Sequence[Plasticity | None]) -> Plasticity | None:
    """Settings of several rows of one kind as the settings of their batch."""
    if all(one == learning[0] for one in learning):
        return learning[0]
    rows = [one or Plasticity() for one in learning]

    def column(name: str) -> list[Any] | None:
        values = [getattr(row, name) for row in rows]
        return None if values[0] is None else values

    settings: dict[str, Any] = {name: column(name) for name in PLASTICITY_PER_ROW}
    return Plasticity(frozen=rows[0].frozen, chat_rounds=rows[0].chat_rounds, **settings)


def _numpy(logits: Tensor) -> Logits:
    return logits.detach().cpu().float().numpy() if logits.dtype == torch.bfloat16 else logits.detach().cpu().numpy()
