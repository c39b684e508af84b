"""What a task is: batches that are a pure function of seed and step."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ssmn.errors import ConfigError

Split = Literal["train", "test"]

_MAY_BE_ZERO = {"rebinds", "distance"}


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's worth of data.

    Attributes:
        inputs: Tokens `[B, T]` (int64) or vectors `[B, T, I]` (float32).
        targets: What to predict at each position: tokens `[B, T]` or vectors `[B, T, O]`.
        mask: Positions that count in the loss, bool `[B, T]`; None = all.
        source: Where the data is from, for error messages.
        fresh: Whether this batch starts new streams (False = it continues the batch before).
        fresh_rows: Rows `[B]` (bool) whose stream starts anew although the others go on; None = none.
        target_bytes: Bytes that the counted targets stand for, when they are text.
        elapsed: Steps since the last hidden change `[B, T]`, for tasks that switch.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None
    source: str
    fresh: bool = True
    target_bytes: int | None = None
    elapsed: Tensor | None = None
    fresh_rows: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A generator of batches with its own settings."""

    name: ClassVar[str]
    measure: ClassVar[str] = "accuracy"
    """The figure that evaluation reports first."""

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            least = 0 if setting.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise self._refusal(setting.name, f"at least {least}")

    def _refusal(self, setting: str, wanted: str) -> ConfigError:
        return ConfigError(f"task {self.name}: {setting}={getattr(self, setting)!r}; wanted {wanted}.")

    @abstractmethod
    def model_settings(self) -> dict[str, Any]:
        """The settings of the model's configuration that follow from the task."""

    @abstractmethod
    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        """Draws one batch."""

    def batch(self, step: int, *, batch_size: int, seed: int = 0, split: Split = "train") -> Batch:
        """The batch of a step; the same arguments give the same batch.

        Args:
            step: Which batch, from 0.
            batch_size: Rows.
            seed: Which series of batches.
            split: `test` batches are never among the `train` ones.

        Returns:
            The batch.

        Example:
            >>> from ssmn.training import TASKS
            >>> batch = TASKS["mqar"](pairs=4).batch(0, batch_size=2)
            >>> batch.inputs.shape, int(batch.mask.sum())
            (torch.Size([2, 12]), 8)
        """
        entropy = np.random.SeedSequence((seed, ("train", "test").index(split), step)).generate_state(2)
        generator = torch.Generator().manual_seed(int(entropy[0]) << 31 ^ int(entropy[1]))
        return self._draw(generator, batch_size, split)

    @property
    def source(self) -> str:
        """What error messages call the data."""
        return f"task {self.name}"
