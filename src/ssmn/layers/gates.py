"""The gates of the memory: how strongly a step is written (its importance), erased, and forgotten."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn.config import Plasticity
from ssmn.errors import ShapeError
from ssmn.ops.common import state_dtype
from ssmn.ops.segments import spread


class ImportanceGate(nn.Module):
    """Data-dependent write strength: η_t = min(1, 2 · plasticity_eta · sigmoid(w·h_t + u·h_{t−1} + b)), per head.

    The importance of a step is its η before any scaling; a separate gate network gained nothing over it.

    Args:
        hidden_dim: D.
        heads: H.
        plasticity_eta: Base η in [0, 1].
    """

    def __init__(self, hidden_dim: int, heads: int, plasticity_eta: float = 0.5) -> None:
        super().__init__()
        self.plasticity_eta = plasticity_eta
        self.present = nn.Linear(hidden_dim, heads)
        self.previous = nn.Linear(hidden_dim, heads, bias=False)
        nn.init.zeros_(self.present.bias)
        nn.init.zeros_(self.previous.weight)

    def forward(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Hidden vectors and those before them, [B, T, D], to sigmoid(..) [B, T, H] in the state dtype."""
        logits = self.present(hidden) + self.previous(previous)
        return logits.to(state_dtype(hidden.dtype)).sigmoid()


class DecayGate(nn.Module):
    """Data-dependent forgetting: log(1 − λ_t) = −exp(L) · softplus(w·h_t + ln(e − 1)), L = log(−log(1 − λ)), per head.

    At the start w = 0 and the softplus is 1, so λ_t is the base λ.

    Args:
        hidden_dim: D.
        decay_lambda: Base λ in [0, 1), one per head.
    """

    def __init__(self, hidden_dim: int, decay_lambda: tuple[float, ...]) -> None:
        super().__init__()
        self.present = nn.Linear(hidden_dim, len(decay_lambda), bias=False)
        nn.init.zeros_(self.present.weight)
        self.log_rate = nn.Parameter(log_rate(torch.tensor(decay_lambda, dtype=torch.float64)).float())

    def forward(self, hidden: Tensor, decay_lambda: Tensor | None = None) -> Tensor:
        """Hidden vectors [B, T, D] to log(1 − λ) [B, T, H]; `decay_lambda`, broadcastable to it, replaces the base."""
        dtype = state_dtype(hidden.dtype)
        swing = functional.softplus(self.present(hidden).to(dtype) + math.log(math.e - 1))
        base = self.log_rate if decay_lambda is None else log_rate(decay_lambda)
        return -base.to(dtype).exp() * swing


class SparseWriting(nn.Module):
    """Trains a memory to write little: a gate that is hard forwards and smooth backwards (straight-through).

    g = [importance ≥ threshold] multiplies η and log(1 − λ), which is exactly a step that is not written;
    backwards it is sigmoid((importance − threshold) / temperature) (Bengio et al., 2013), so that a closed
    gate can open again. While it is part of a memory, it does its work in training mode only.

    Args:
        threshold: Writes of less importance are left out.
        temperature: Width of the smooth step.
    """

    def __init__(self, threshold: float, temperature: float = 0.1) -> None:
        super().__init__()
        self.threshold, self.temperature = threshold, temperature
        self.rate: Tensor | None = None
        """Share of open steps that the last call wrote, with the smooth gradient."""

    def forward(self, importance: Tensor, opened: Tensor | None) -> Tensor:
        """Importance [B, T, H] and the steps that count, [B, T, H] bool or None, to the gate [B, T, H]."""
        smooth = torch.sigmoid((importance - self.threshold) / self.temperature)
        gate = smooth - smooth.detach() + (importance >= self.threshold).to(smooth.dtype)
        self.rate = gate.mean() if opened is None else gate[opened].mean()
        return gate


def log_rate(decay_lambda: Tensor) -> Tensor:
    """L = log(−log(1 − λ)), kept finite for λ = 0: exp(−200) is nothing beside 1."""
    return torch.log(-torch.log1p(-decay_lambda)).clamp(min=-200.0)


def setting(value: Any, name: str, hidden: Tensor, cu_seqlens: Tensor | None, streams: int) -> Tensor:
    """A number, or one per stream, as a tensor that broadcasts against [B, T, H]."""
    dtype = state_dtype(hidden.dtype)
    tensor = torch.as_tensor(value, dtype=dtype, device=hidden.device)
    if tensor.dim() == 0:
        return tensor
    if tensor.shape != (streams,):
        came = list(tensor.shape)
        raise ShapeError(f"Plasticity: {name} has shape {came}; wanted a number or one per stream [{streams}].")
    return spread(tensor, hidden.shape[0], hidden.shape[1], cu_seqlens).unsqueeze(-1)


DEFAULT = Plasticity()
"""The model as it was trained."""
