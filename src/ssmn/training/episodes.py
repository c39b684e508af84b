"""Algorithmic tasks over binary vectors, after the Neural Turing Machine (Graves et al., 2014, section 4).

An episode is first told something and then has to say it again from memory: while it answers, its input is silent.
All rows of a batch have the same length, drawn anew for every batch; another range of lengths is
`dataclasses.replace(task, shortest=100, longest=100)`. Targets are bits, so the loss is the cross-entropy of logits,
and `bits_per_episode` is the measure of the paper's curves.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ssmn.training.tasks import Batch, Split, Task


@dataclass(frozen=True, kw_only=True)
class _Episodes(Task):
    """Batches of vectors; `mask` has the steps of the answer."""

    measure: ClassVar[str] = "bits"
    width: int = 8
    """Bits per vector."""

    @property
    @abstractmethod
    def input_dim(self) -> int:
        """Channels that come in: the bits and the signs beside them."""

    @property
    def output_dim(self) -> int:
        """Channels that go out."""
        return self.width

    def model_settings(self) -> dict[str, Any]:
        """What a model for this task needs."""
        return {"kind": "standard", "input_dim": self.input_dim, "output_dim": self.output_dim}

    def _check_range(self, low: str, high: str) -> None:
        if getattr(self, low) > getattr(self, high):
            raise self._refusal(low, f"at most {high}={getattr(self, high)}")

    def _bits(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randint(0, 2, (*shape, self.width), generator=generator).float()

    def _batch(self, told: Tensor, answer: Tensor) -> Batch:
        """The told steps, then silence while the answer is due."""
        rows, before, after = told.shape[0], told.shape[1], answer.shape[1]
        mask = torch.zeros(rows, before + after, dtype=torch.bool)
        mask[:, before:] = True
        inputs = functional.pad(told, (0, 0, 0, after))
        return Batch(inputs, functional.pad(answer, (0, 0, before, 0)), mask, self.source)


@dataclass(frozen=True, kw_only=True)
class CopyVectors(_Episodes):
    """L vectors, a sign, and then the same L vectors from memory: 2 L + 1 steps.

    Channels in: the bits, the sign.

    Example:
        >>> from ssmn.training.episodes import CopyVectors
        >>> batch = CopyVectors(shortest=3, longest=3).batch(0, batch_size=5)
        >>> batch.inputs.shape, batch.targets.shape, int(batch.mask[0].sum())
        (torch.Size([5, 7, 9]), torch.Size([5, 7, 8]), 3)
    """

    name: ClassVar[str] = "copy-vectors"
    shortest: int = 1
    """Fewest vectors."""
    longest: int = 20
    """Most vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("shortest", "longest")

    @property
    def input_dim(self) -> int:
        """The bits and the sign."""
        return self.width + 1

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        length = _between(generator, self.shortest, self.longest)
        vectors = self._bits(generator, batch_size, length)
        told = functional.pad(vectors, (0, 1, 0, 1))
        told[:, length, self.width] = 1.0
        return self._batch(told, vectors)


@dataclass(frozen=True, kw_only=True)
class RepeatCopy(_Episodes):
    """L vectors and a number n; then the vectors n times over and a sign that it is done: L + 1 + n L + 1 steps.

    Channels in: the bits, the step of the number, the number less its mean over its deviation (those of the training,
    1 to `usual_repeats`, whatever is drawn). Channels out: the bits, the sign.

    Example:
        >>> from ssmn.training.episodes import RepeatCopy
        >>> task = RepeatCopy(shortest=2, longest=2, fewest_repeats=4, most_repeats=4)
        >>> batch = task.batch(0, batch_size=5)
        >>> batch.inputs.shape, batch.targets.shape, int(batch.mask[0].sum())
        (torch.Size([5, 12, 10]), torch.Size([5, 12, 9]), 9)
    """

    name: ClassVar[str] = "repeat-copy"
    shortest: int = 1
    """Fewest vectors."""
    longest: int = 10
    """Most vectors."""
    fewest_repeats: int = 1
    """Smallest n."""
    most_repeats: int = 10
    """Largest n."""
    usual_repeats: int = 10
    """Largest n of the training: decides how n is told, so leave it when you test with more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("shortest", "longest")
        self._check_range("fewest_repeats", "most_repeats")

    @property
    def input_dim(self) -> int:
        """The bits, the sign and the number."""
        return self.width + 2

    @property
    def output_dim(self) -> int:
        """The bits and the sign."""
        return self.width + 1

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        length = _between(generator, self.shortest, self.longest)
        repeats = _between(generator, self.fewest_repeats, self.most_repeats)
        vectors = self._bits(generator, batch_size, length)
        told = functional.pad(vectors, (0, 2, 0, 1))
        told[:, length, self.width] = 1.0
        spread = max(1.0, math.sqrt((self.usual_repeats**2 - 1) / 12))
        told[:, length, self.width + 1] = (repeats - (self.usual_repeats + 1) / 2) / spread
        answer = functional.pad(vectors.repeat(1, repeats, 1), (0, 1, 0, 1))
        answer[:, -1, self.width] = 1.0
        return self._batch(told, answer)


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(_Episodes):
    """n items of three vectors, then one of them again; the answer is the item that came after it.

    Before every item is a sign, before and after the question another: 4 n + 5 + 3 steps. Channels in: the bits, the
    two signs.

    Example:
        >>> from ssmn.training.episodes import AssociativeRecall
        >>> batch = AssociativeRecall(fewest_items=2, most_items=2).batch(0, batch_size=5)
        >>> batch.inputs.shape, batch.targets.shape, int(batch.mask[0].sum())
        (torch.Size([5, 16, 8]), torch.Size([5, 16, 6]), 3)
    """

    name: ClassVar[str] = "associative-recall"
    width: int = 6
    """Bits per vector."""
    item_length: int = 3
    """Vectors per item."""
    fewest_items: int = 2
    """Fewest items, at least 2."""
    most_items: int = 6
    """Most items."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fewest_items < 2:
            raise self._refusal("fewest_items", "at least 2")
        self._check_range("fewest_items", "most_items")

    @property
    def input_dim(self) -> int:
        """The bits and the two signs."""
        return self.width + 2

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        count = _between(generator, self.fewest_items, self.most_items)
        items = self._bits(generator, batch_size, count, self.item_length)
        asked = torch.randint(count - 1, (batch_size,), generator=generator)
        rows = torch.arange(batch_size)
        told = functional.pad(items, (0, 2, 1, 0))
        told[:, :, 0, self.width] = 1.0
        question = functional.pad(items[rows, asked], (0, 2, 1, 1))
        question[:, [0, -1], self.width + 1] = 1.0
        return self._batch(torch.cat((told.flatten(1, 2), question), 1), items[rows, asked + 1])


EPISODES: dict[str, type[_Episodes]] = {task.name: task for task in (CopyVectors, RepeatCopy, AssociativeRecall)}
"""The algorithmic tasks by name."""


def bits_per_episode(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the answers cost in bits, and how many of their bits are wrong.

    Args:
        logits: [B, T, O], of the bit being 1.
        batch: Of one of the tasks above.

    Returns:
        (cost [B]: the cross-entropy in bits summed over an episode's answer, as in the paper's curves; wrong [B]).

    Example:
        >>> import torch
        >>> from ssmn.training.episodes import CopyVectors, bits_per_episode
        >>> batch = CopyVectors(width=2, shortest=5, longest=5).batch(0, batch_size=3)
        >>> cost, wrong = bits_per_episode(torch.zeros(batch.targets.shape), batch)
        >>> cost.tolist()  # a coin for each of 5 x 2 bits
        [10.0, 10.0, 10.0]
    """
    assert batch.mask is not None
    counted = batch.mask.unsqueeze(-1)
    cost = functional.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none") * counted
    wrong = ((logits > 0) != (batch.targets > 0.5)) & counted
    return cost.sum((1, 2)) / math.log(2), wrong.sum((1, 2))


def _between(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
