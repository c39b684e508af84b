"""What the demonstrations share: how a measurement says where it stands, and on how many threads it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Protocol

import torch

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
