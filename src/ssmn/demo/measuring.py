"""What the demonstrations share: how a measurement says where it stands, its threads, a state to disk and back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch

from ssmn.models.stack import Stack
from ssmn.state import StreamState

ASSETS = resources.files("ssmn.demo") / "assets"


class Progress(Protocol):
    """How a measurement says where it stands: a name, how much is done, of how much, and a remark."""

    def __call__(self, stage: str, done: float, total: float, remark: str = "") -> None: ...


def silent(stage: str, done: float, total: float, remark: str = "") -> None:
    """A `Progress` that nobody sees."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs what is inside on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def saved_and_reloaded(state: StreamState, model: Stack) -> tuple[StreamState, dict[str, Any]]:
    """The state out of a file of its own; the file's size, the times, and whether the two are bit-identical."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        start = time.perf_counter()
        state.save(path, model)
        saved = time.perf_counter()
        reloaded = StreamState.load(path, model)
        loaded = time.perf_counter()
        size = path.stat().st_size
    return reloaded, {
        "file_bytes": size,
        "save_milliseconds": 1e3 * (saved - start),
        "load_milliseconds": 1e3 * (loaded - saved),
        "reloaded_identical": is_same(state, reloaded),
    }


def is_same(first: StreamState, second: StreamState) -> bool:
    """Whether two states of one model are equal bit for bit."""
    pairs = zip(first.named_tensors().values(), second.named_tensors().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
