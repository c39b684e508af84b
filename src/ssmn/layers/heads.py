"""What a model of series says about the next step: a point, a normal distribution or quantiles."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from ssmn.config import SSMNConfig, middle_of
from ssmn.layers.front import LIMIT

LEAST_DEVIATION = 1e-3
"""Least standard deviation of the Gaussian head, in normalised units."""


def spread_out(raw: Tensor, config: SSMNConfig) -> Tensor:
    """A linear layer's numbers [.., O · parts] as the head's values: [.., O], [.., O, 2] or [.., O, Q].

    `gaussian`: mean, and softplus(raw + ln(e − 1)) + 0.001, about 1 at the start. `quantile`: the one nearest to the
    median is raw, and each further one is a softplus away from its neighbour, at the start about as far as those of the
    standard normal distribution; so they cannot cross.
    """
    if config.head == "point":
        return raw
    raw = raw.unflatten(-1, (config.output_dim, config.output_parts))
    if config.head == "gaussian":
        mean, width = raw.unbind(-1)
        deviation = functional.softplus(width + math.log(math.e - 1)) + LEAST_DEVIATION
        return torch.stack([mean, deviation], -1)
    middle = middle_of(config.quantiles)
    normal = torch.special.ndtri(torch.tensor(config.quantiles, dtype=torch.float64, device=raw.device))
    gaps = torch.log(torch.expm1(normal.diff())).to(raw.dtype)  # the inverse of softplus
    steps = functional.softplus(torch.cat([raw[..., :middle], raw[..., middle + 1 :]], -1) + gaps)
    centre = raw[..., middle : middle + 1] + normal[middle].to(raw.dtype)
    below = centre - steps[..., :middle].flip(-1).cumsum(-1).flip(-1)
    return torch.cat([below, centre, centre + steps[..., middle:].cumsum(-1)], -1)


@dataclass(frozen=True)
class Prediction:
    """What a Standard model says about the steps after those that it read.

    Attributes:
        config: The model's.
        values: [B, T, O], [B, T, O, 2] or [B, T, O, Q], in normalised units if the model normalises.
        centre: [B, T, O], the mean of each output's column at the time of the prediction; None = not normalised.
        scale: [B, T, O], the deviation likewise.
        settled: [B, T, O] bool, whether enough was seen for these to mean something.
    """

    config: SSMNConfig
    values: Tensor
    centre: Tensor | None = None
    scale: Tensor | None = None
    settled: Tensor | None = None

    def in_units(self) -> Tensor:
        """The values in the units of the input."""
        if self.centre is None or self.scale is None:
            return self.values
        if self.config.head == "point":
            return (self.values * self.scale + self.centre).to(self.values.dtype)
        scale, centre = self.scale.unsqueeze(-1), self.centre.unsqueeze(-1)
        if self.config.head == "gaussian":
            centre = torch.cat([centre, torch.zeros_like(centre)], -1)
        return (self.values * scale + centre).to(self.values.dtype)

    def points(self) -> Tensor:
        """[B, T, O], in the units of the input: the point, the mean, or the quantile nearest to the median."""
        return points_of(self.in_units(), self.config)

    def normalised(self, target: Tensor) -> Tensor:
        """A target [B, T, O] in the units of `values`, within ± 10 deviations if the model normalises."""
        if self.centre is None or self.scale is None:
            return target
        return ((target - self.centre) / self.scale).clamp(-LIMIT, LIMIT).to(target.dtype)

    def shifted(self, shift: Tensor) -> Self:
        """The same moved by [B, T, O] normalised units; a deviation stays."""
        if self.config.head == "point":
            return dataclasses.replace(self, values=self.values + shift)
        shift = shift.unsqueeze(-1)
        if self.config.head == "gaussian":
            shift = torch.cat([shift, torch.zeros_like(shift)], -1)
        return dataclasses.replace(self, values=self.values + shift)

    def detach(self) -> Self:
        """The same without gradients."""
        return dataclasses.replace(self, values=self.values.detach())


def points_of(values: Tensor, config: SSMNConfig) -> Tensor:
    """The one number per output that stands for a head's values: [B, T, O]."""
    if config.head == "point":
        return values
    return values[..., 0 if config.head == "gaussian" else middle_of(config.quantiles)]
