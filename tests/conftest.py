"""Settings every test runs under."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)
# A run in the background starts with Ctrl-C ignored, and so would the commands that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """A fixed seed; and torch's deterministic mode, which puts NaN into every tensor that is allocated unfilled."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
