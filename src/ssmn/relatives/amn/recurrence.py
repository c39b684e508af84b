"""The recurrence that LRU and AMN share: complex, diagonal, stable whatever the weights, and run by the clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn import ops
from ssmn.layers.checks import check_setting
from ssmn.ops.common import state_dtype

_LEAST_GAIN = 1e-12
"""Keeps the root of the gain differentiable where nothing decays."""


class DiagonalRecurrence(nn.Module):
    """h_t = a_t h_{t−1} + γ_t B x_t with a_t = exp(−Δt (r_t − i θ)), complex, one number per channel; y = Re(C h).

    r = exp(ν) > 0 keeps |a| < 1 whatever ν is, θ = exp(φ), and γ_t = √(1 − exp(−2 r_t)) gives |h|² the size of |B x|²
    for white inputs: the linear recurrent unit (Orvieto et al., 2023). a is drawn uniformly from a ring of the unit
    disc. Liquid, the rate depends on the input, r_t = exp(ν) + softplus(W_f x_t + b_f): the closed form, over
    the time Δt, of a liquid time constant dh/dt = −(1/τ + f(x)) h (Hasani et al., 2021; 2022); half of the ring's rate
    is then in b_f. What comes in is an event: γ knows nothing of Δt.

    Args:
        hidden_dim: D.
        channels: N, complex numbers in h.
        radius: The ring's inner and outer radius, 0 ≤ inner < outer < 1: |a| over one unit of time at the start.
        max_phase: θ at the start is uniform in (0, max_phase).
        liquid: Whether the rate depends on the input.
    """

    def __init__(
        self, hidden_dim: int, channels: int, radius: tuple[float, float], max_phase: float, liquid: bool
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("hidden_dim", hidden_dim), ("state_dim", channels)):
            check_setting(owner, name, value, isinstance(value, int) and value >= 1, "at least 1")
        good = isinstance(radius, tuple) and len(radius) == 2 and 0.0 <= radius[0] < radius[1] < 1.0
        check_setting(owner, "radius", radius, good, "(inner, outer) with 0 ≤ inner < outer < 1")
        check_setting(owner, "max_phase", max_phase, 0.0 < max_phase <= 2 * math.pi, "an angle in (0, 2π]")
        self.hidden_dim, self.channels = hidden_dim, channels
        inner, outer = (limit**2 for limit in radius)
        rate = -0.5 * torch.log(inner + (outer - inner) * (1.0 - torch.rand(channels)))
        rate = rate / 2 if liquid else rate
        self.log_rate = nn.Parameter(rate.log())
        self.log_phase = nn.Parameter(torch.log(max_phase * (1.0 - torch.rand(channels))))
        self.input = nn.Linear(hidden_dim, 2 * channels, bias=False)
        self.output = nn.Linear(2 * channels, hidden_dim, bias=False)
        nn.init.normal_(self.input.weight, std=(2 * hidden_dim) ** -0.5)
        nn.init.normal_(self.output.weight, std=channels**-0.5)
        self.liquid = nn.Linear(hidden_dim, channels) if liquid else None
        if self.liquid is not None:
            with torch.no_grad():
                self.liquid.bias.copy_(torch.log(torch.expm1(rate)))

    def dynamics(self, x: Tensor, elapsed: Tensor | None) -> tuple[Tensor, Tensor]:
        """(a [B, T, 2, N] or [2, N] if it is the same at every step, γ [B, T, N] or [N]) for inputs [B, T, D]."""
        compute = state_dtype(x.dtype)
        rate, phase = self.log_rate.to(compute).exp(), self.log_phase.to(compute).exp()
        if self.liquid is not None:
            rate = rate + functional.softplus(self.liquid(x).to(compute))
        gain = (-torch.expm1(-2.0 * rate)).clamp(min=_LEAST_GAIN).sqrt()
        if elapsed is not None:
            time = elapsed.to(compute).unsqueeze(-1)
            rate, phase = rate * time, phase * time
        return torch.exp(-rate).unsqueeze(-2) * torch.stack([phase.cos(), phase.sin()], -2), gain

    def run(
        self,
        x: Tensor,
        dynamics: tuple[Tensor, Tensor],
        state: Tensor,
        mask: Tensor | None,
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(y [B, T, D], h after the last step [B, 2, N]) for inputs [B, T, D] and what `dynamics` returned."""
        a, gain = dynamics
        drive = gain.unsqueeze(-2) * self.input(x).unflatten(-1, (2, self.channels)).to(a.dtype)
        h, final = ops.linear_scan(
            a, drive, mask=mask, reset=reset, cu_seqlens=cu_seqlens, initial_state=state, output_final_state=True
        )
        assert final is not None
        return self.output(h.flatten(2).to(x.dtype)), final


class GatedOutput(nn.Module):
    """W_1 z ∘ σ(W_2 z) with z = gelu(y) (Dauphin et al., 2017), for a recurrence that no feed-forward follows."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.gate = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, y: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        z = functional.gelu(y)
        return self.value(z) * torch.sigmoid(self.gate(z))
