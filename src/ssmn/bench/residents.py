"""Processes that decode and do nothing else, for their resident memory: each loads what its users load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STEPS = 8


def engine(folder: str, state: str, weights: str, threads: int) -> dict[str, Any]:
    """Our engine, from files; without torch."""
    import importlib

    running = importlib.import_module("ssmn.engine").Engine.load(folder, dtype=weights, threads=threads)
    running.load_state(0, state)
    for token in range(STEPS):
        running.step(token)
    return _resident()


def eager(folder: str, state: str, dtype: str) -> dict[str, Any]:
    """Our model in torch."""
    import torch

    from ssmn.models import load_model
    from ssmn.state import StreamState

    model: Any = load_model(Path(folder)).eval()
    now = StreamState.load(state, model)
    model = model.to(getattr(torch, dtype))
    with torch.no_grad():
        for token in range(STEPS):
            _, now = model.step(torch.tensor([token]), now)
    return _resident()


def llama(weights: str, depth: int, threads: int) -> dict[str, Any]:
    """llama.cpp, with room for that many positions."""
    from ssmn.bench import peers

    running = peers.Llama(Path(weights), depth + STEPS, threads)
    for token in range(STEPS):
        running.step(token)
    return _resident()


def loaded(names: list[str]) -> dict[str, bool]:
    """Which of these modules the process has loaded so far: it should be no more than it needs."""
    return {name: name in sys.modules for name in names}


def _resident() -> dict[str, Any]:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmRSS:"))
    return {"resident_bytes": int(line.split()[1]) * 1024}
