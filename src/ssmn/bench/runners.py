"""Streams of one model by whoever runs them, behind one interface: our engine, our model in torch, llama.cpp."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ssmn import native
from ssmn.bench import peers
from ssmn.config import SSMNConfig, StackConfig, TextSSMNConfig
from ssmn.errors import RangeError
from ssmn.models import SSMN, TextSSMN
from ssmn.state import StreamState, WindowState

FORMATS = ("float32", "bfloat16", "int8", "int4")
"""The engine's formats of weights, largest first."""

_WARM = 1_024

SHAPES: dict[str, StackConfig] = {
    "smollm2-135m": TextSSMNConfig(
        vocab_size=49_152,
        hidden_dim=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        ffn_dim=1_536,
        window_size=512,
        semantic_encoder=False,
    ),
    "control": SSMNConfig(input_dim=8, output_dim=8, hidden_dim=64, num_layers=5, num_heads=4, window_size=64),
    "tiny": TextSSMNConfig(
        vocab_size=256, hidden_dim=64, num_layers=5, num_heads=2, window_size=64, semantic_encoder=False
    ),
}
"""Models with random weights: shaped like SmolLM2-135M, a small controller of vectors, and a text model for a try."""


class Runner(Protocol):
    """One stream of one model."""

    who: str
    weight_bytes: float
    endless: bool
    """Whether its stream may go on for ever."""

    def step(self, item: Any) -> object:
        """Reads a token, or a vector [inputs]."""

    def prefill(self, tokens: Sequence[int]) -> object:
        """Reads tokens."""

    def place(self, depth: int) -> None:
        """Goes to a position."""

    def close(self) -> None:
        """Frees what it holds."""


def build(shape: str) -> SSMN | TextSSMN:
    """A model of one of `SHAPES`, with random weights.

    Raises:
        RangeError: There is no such shape.
    """
    if shape not in SHAPES:
        raise RangeError(f"bench: shape={shape!r}; wanted one of {', '.join(SHAPES)}.")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SHAPES[shape]
        if isinstance(config, SSMNConfig):
            return SSMN(config).eval()
        assert isinstance(config, TextSSMNConfig)
        return TextSSMN(config).eval()


@functools.lru_cache(maxsize=1)  # several runners of one model are placed in turn
def placed(model: SSMN | TextSSMN, depth: int) -> StreamState:
    """A state at position `depth`: that after some real steps, moved on by whole turns of the window's ring.

    What a step costs depends on neither the position nor the content of the state.
    """
    config = model.config
    turn = max(1, config.window_size - 1)
    warm = depth if depth <= _WARM + turn else _WARM + (depth - _WARM) % turn
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        state = model.init_state(1)
        if warm and isinstance(config, TextSSMNConfig):
            _, state = model(torch.randint(config.vocab_size, (1, warm), generator=generator))
        elif warm:
            assert isinstance(config, SSMNConfig)
            _, state = model(torch.randn(1, warm, config.input_dim, generator=generator))

    def move(part: Any) -> Any:
        moves = isinstance(part, StreamState | WindowState)
        return dataclasses.replace(part, position=part.position + (depth - warm)) if moves else part

    moved = move(state)
    return dataclasses.replace(moved, layers=tuple(move(layer) for layer in moved.layers))


def engine_refusal() -> str | None:
    """Why the engine cannot run here, or None if it can."""
    if importlib.util.find_spec("ssmn.engine") is None:
        return "ssmn engine: this version has none"
    return None if native.status().available else f"ssmn engine: {native.status().reason}"


class EngineRunner:
    """`ssmn.Engine`."""

    endless = True

    def __init__(self, model: SSMN | TextSSMN, weights: str, threads: int) -> None:
        self.who = f"ssmn engine, {weights}"
        self.engine = importlib.import_module("ssmn.engine").Engine(model, dtype=weights, threads=threads)
        self.weight_bytes = float(self.engine.weight_nbytes)
        self._model = model

    def step(self, item: Any) -> object:
        """Reads a token or a vector."""
        return self.engine.step(item)

    def prefill(self, tokens: Sequence[int]) -> object:
        """Reads tokens."""
        return self.engine.prefill(tokens)

    def place(self, depth: int) -> None:
        """Goes to a position."""
        if depth:
            self.engine.set_state(0, placed(self._model, depth))
        else:
            self.engine.reset(0)

    def close(self) -> None:
        """Nothing to free."""


class EagerRunner:
    """The model itself, step by step in torch."""

    endless = True

    def __init__(self, model: SSMN | TextSSMN, dtype: str) -> None:
        self._original, model = model, copy.deepcopy(model).to(getattr(torch, dtype))
        self.who = f"torch eager, {dtype}"
        self.weight_bytes = float(sum(parameter.nbytes for parameter in model.parameters()))
        self._model, self._state = model, model.init_state(1)
        self._is_text = isinstance(model, TextSSMN)

    @torch.no_grad()
    def step(self, item: Any) -> object:
        """Reads a token or a vector."""
        x = torch.tensor([item]) if self._is_text else torch.from_numpy(item)[None].to(self._model.norm.weight.dtype)
        y, self._state = self._model.step(x, self._state)
        return y

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> object:
        """Reads tokens."""
        y, self._state = self._model(torch.tensor([list(tokens)]), self._state)
        return y

    def place(self, depth: int) -> None:
        """Goes to a position."""
        self._state = placed(self._original, depth)

    def close(self) -> None:
        """Nothing to free."""


class LlamaRunner:
    """SmolLM2-135M in llama.cpp, in Q4_0."""

    endless = False

    def __init__(self, weights: Path, positions: int, threads: int) -> None:
        self.llama = peers.Llama(weights, positions, threads)
        self.who = f"llama.cpp, {self.llama.format}"
        self.weight_bytes = float(self.llama.weight_bytes)

    def step(self, item: int) -> None:
        """Reads a token."""
        self.llama.step(item)

    def prefill(self, tokens: Sequence[int]) -> None:
        """Reads tokens."""
        self.llama.prefill(tokens)

    def place(self, depth: int) -> None:
        """Goes to a position: back if it has been there, else on by copies of what it has read."""
        if self.llama.position < depth:
            self.llama.fill(depth, random_tokens(self.llama.vocab_size, _WARM))
        self.llama.forget(depth)

    def close(self) -> None:
        """Frees the model."""
        self.llama.close()


@contextmanager
def llama_weights(threads: int) -> Iterator[Path]:
    """SmolLM2-135M in Q4_0, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ssmn-bench-") as folder:
        yield peers.quantised(Path(folder), threads)


def random_tokens(vocab_size: int, count: int) -> list[int]:
    """The same ones every time."""
    return np.random.default_rng(0).integers(vocab_size, size=count).tolist()
