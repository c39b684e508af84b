"""Training that makes a model write little: a target for the share of written steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmn.errors import ConfigError
from ssmn.layers.gates import SparseWriting
from ssmn.layers.memory import SynapticMemory
from ssmn.models.stack import Stack

if TYPE_CHECKING:
    from ssmn.training.settings import OptimisationConfig

_MULTIPLIER_RATE = 0.05
"""How far a multiplier moves in a step by which the share is off by 1."""


class SparseTraining:
    """Puts a straight-through gate into every memory of a model and says what the loss has to be added.

    The threshold is the model's `write_threshold`, with which it then writes as little at inference. Per
    memory, with the share ρ of written steps, the target ρ* = `write_rate` and w = `write_rate_weight`:

    - `penalty` adds w · max(0, ρ − ρ*);
    - `multiplier` adds μ · (ρ − ρ*), where μ ≥ 0 follows μ ← μ + 0.05 w (ρ − ρ*) (a Lagrange multiplier);
    - `annealing` adds nothing and raises the threshold from 0 over the first half of the steps: the share
      that comes out is the model's choice, and `write_rate` is not used.

    Args:
        model: The model; the gates stay in it until `remove`.
        settings: The training's.

    Raises:
        ConfigError: The model has no memory, or no write threshold.
    """

    def __init__(self, model: Stack, settings: OptimisationConfig) -> None:
        if model.config.write_threshold <= 0:
            raise ConfigError(
                f"train: write_rate={settings.write_rate} with model.write_threshold={model.config.write_threshold}; "
                f"wanted a threshold above 0, such as --set model.write_threshold=0.5."
            )
        self._memories = [block.mixer for block in model.blocks if isinstance(block.mixer, SynapticMemory)]
        if not self._memories:
            raise ConfigError(f"train: write_rate={settings.write_rate}, but the model has no plastic layer.")
        self._settings = settings
        self._multipliers = torch.zeros(len(self._memories))
        for memory in self._memories:
            memory.sparse = SparseWriting(memory.write_threshold)

    def prepare(self, step: int) -> None:
        """To be called before the forward pass of a step (from 0)."""
        if self._settings.write_training == "annealing":
            share = min(1.0, 2 * (step + 1) / self._settings.steps)
            for memory in self._memories:
                assert memory.sparse is not None
                memory.sparse.threshold = share * memory.write_threshold

    def penalty(self) -> Tensor:
        """What to add to the loss of the forward pass that has just been done."""
        settings, rates = self._settings, self._rates()
        assert settings.write_rate is not None
        above = rates - settings.write_rate
        if settings.write_training == "penalty":
            return settings.write_rate_weight * above.clamp(min=0.0).sum()
        if settings.write_training == "annealing":
            return torch.zeros(())
        cost = (self._multipliers * above).sum()
        moved = self._multipliers + _MULTIPLIER_RATE * settings.write_rate_weight * above.detach()
        self._multipliers = moved.clamp(min=0.0)
        return cost

    @property
    def rate(self) -> float:
        """Share of steps that the last forward pass wrote, over all memories."""
        return float(self._rates().detach().mean())

    def _rates(self) -> Tensor:
        rates = [memory.sparse.rate for memory in self._memories if memory.sparse is not None]
        return torch.stack([rate for rate in rates if rate is not None])

    def tensors(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        return {"sparse.multipliers": self._multipliers}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `tensors`."""
        self._multipliers = tensors.get("sparse.multipliers", self._multipliers)

    def remove(self) -> None:
        """Takes the gates out again; the model then skips writes by its threshold."""
        for memory in self._memories:
            memory.sparse = None
