"""The tasks of the family's comparison: vectors in, an answer from memory out, an error between 0 and about 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssmn.training.episodes import EPISODES
from ssmn.training.irregular import IrregularTask, Waves, digits
from ssmn.training.tasks import MultiQueryRecall


@dataclass(frozen=True)
class Episode:
    """A batch of short streams.

    Attributes:
        x: [B, T, F], what is seen.
        target: [B, T, O] bits or numbers, or [B, T] int64 classes.
        asked: [B, T] bool, the steps whose answer counts.
        elapsed: [B, T], time since the step before; None = a step takes one.
    """

    x: Tensor
    target: Tensor
    asked: Tensor
    elapsed: Tensor | None = None


Draw = Callable[[torch.Generator, int, str], Episode]


@dataclass(frozen=True)
class FamilyTask:
    """One column of the comparison.

    Attributes:
        name: On the table.
        input_dim: F.
        output_dim: Numbers per answer.
        kind: What an answer is: `bits` (logits), `class` (logits) or `number`.
        draw: Makes a batch from a generator, a number of rows and `train` or `test`.
        measure: What the error is, in words.
    """

    name: str
    input_dim: int
    output_dim: int
    kind: str
    draw: Draw
    measure: str

    def batch(self, step: int, rows: int, seed: int, split: str) -> Episode:
        """The batch of a step; the same arguments give the same batch, and no test batch is a training batch."""
        entropy = np.random.SeedSequence((seed, ("train", "test").index(split), step)).generate_state(2)
        return self.draw(torch.Generator().manual_seed(int(entropy[0]) << 31 ^ int(entropy[1])), rows, split)

    def loss(self, answers: Tensor, episode: Episode) -> Tensor:
        """What is trained on: the mean over the answers that are asked for."""
        given, wanted = answers[episode.asked], episode.target[episode.asked]
        if self.kind == "bits":
            return functional.binary_cross_entropy_with_logits(given, wanted)
        if self.kind == "class":
            return functional.cross_entropy(given, wanted)
        return functional.mse_loss(given, wanted)

    def error(self, answers: Tensor, episode: Episode) -> float:
        """Share of wrong bits or classes, or the mean squared error."""
        given, wanted = answers[episode.asked], episode.target[episode.asked]
        if self.kind == "bits":
            return float(((given > 0) != (wanted > 0.5)).float().mean())
        if self.kind == "class":
            return float((given.argmax(-1) != wanted).float().mean())
        return float(functional.mse_loss(given, wanted))


def _algorithm(name: str, settings: Mapping[str, int]) -> FamilyTask:
    task = EPISODES[name](**settings)

    def draw(generator: torch.Generator, rows: int, split: str) -> Episode:
        batch = task.batch(0, batch_size=rows, seed=int(torch.randint(2**31, (), generator=generator)))
        assert batch.mask is not None
        return Episode(batch.inputs, batch.targets, batch.mask)

    return FamilyTask(name.removesuffix("-vectors"), task.input_dim, task.output_dim, "bits", draw, "wrong bits")


def _recall(pairs: int, symbols: int) -> FamilyTask:
    task = MultiQueryRecall(pairs=pairs, vocab_size=symbols + 8)

    def draw(generator: torch.Generator, rows: int, split: str) -> Episode:
        batch = task.batch(0, batch_size=rows, seed=int(torch.randint(2**31, (), generator=generator)))
        assert batch.mask is not None
        return Episode(functional.one_hot(batch.inputs, symbols + 8).float(), batch.targets, batch.mask)

    return FamilyTask("recall of many keys", symbols + 8, symbols + 8, "class", draw, "wrong answers")


def _adding(length: int) -> FamilyTask:
    """Numbers in [0, 1], one marked in each half: at the end the sum of the two (Hochreiter & Schmidhuber, 1997)."""

    def draw(generator: torch.Generator, rows: int, split: str) -> Episode:
        numbers, marks = torch.rand(rows, length, generator=generator), torch.zeros(rows, length)
        half = length // 2
        for low, high in ((0, half), (half, length)):
            marks[torch.arange(rows), torch.randint(low, high, (rows,), generator=generator)] = 1.0
        total = (numbers * marks).sum(1, keepdim=True)
        asked = torch.zeros(rows, length, dtype=torch.bool)
        asked[:, -1] = True
        # Divided by the deviation of a sum of two uniform numbers: 1 is the error of always saying the mean.
        target = ((total - 1.0) * math.sqrt(6.0)).unsqueeze(1).expand(-1, length, -1)
        return Episode(torch.stack([numbers, marks], -1), target, asked)

    return FamilyTask("adding", 2, 1, "number", draw, "squared error ÷ variance")


def _digits() -> FamilyTask:
    """scikit-learn's 8 × 8 digits, a pixel a step; the class at the end. Every sixth image is for testing."""
    pixels, classes = digits()
    is_test = torch.arange(len(classes)) % 6 == 5

    def draw(generator: torch.Generator, rows: int, split: str) -> Episode:
        pool = torch.nonzero(is_test if split == "test" else ~is_test)[:, 0]
        chosen = pool[torch.randint(len(pool), (rows,), generator=generator)]
        asked = torch.zeros(rows, pixels.shape[1], dtype=torch.bool)
        asked[:, -1] = True
        target = classes[chosen].unsqueeze(1).expand(-1, pixels.shape[1])
        return Episode(pixels[chosen].unsqueeze(-1), target, asked)

    return FamilyTask("digits by pixels", 1, 10, "class", draw, "wrong answers")


def _irregular(task: IrregularTask) -> FamilyTask:
    """With the elapsed time as a column for all, and as time for those that have a clock."""

    def draw(generator: torch.Generator, rows: int, split: str) -> Episode:
        made = task.episodes("test" if split == "test" else "train", rows, generator)
        return Episode(made.features(), made.target, made.asked, made.elapsed)

    return FamilyTask(
        "irregular waves", task.input_dim + 1, task.output_dim, "number", draw, "squared error ÷ variance"
    )


def _completion(patterns: int, width: int) -> FamilyTask:
    """Random patterns of ±1, one a step, then each again in another order with half of it gone: the whole is wanted."""

    def draw(generator: torch.Generator, rows: int, split: str) -> Episode:
        whole = 2.0 * torch.randint(0, 2, (rows, patterns, width), generator=generator) - 1
        order = torch.rand(rows, patterns, generator=generator).argsort(1)
        again = whole.gather(1, order.unsqueeze(-1).expand(-1, -1, width))
        kept = torch.rand(rows, patterns, width, generator=generator).argsort(2) < width // 2
        x = torch.cat([whole, again * kept], 1)
        asking = torch.cat([torch.zeros(rows, patterns, 1), torch.ones(rows, patterns, 1)], 1)
        target = torch.cat([torch.zeros_like(whole), (again + 1) / 2], 1)
        asked = asking[..., 0].bool()
        return Episode(torch.cat([x, asking], -1), target, asked)

    return FamilyTask("pattern completion", width + 1, width, "bits", draw, "wrong bits")


def _lengths(quick: bool) -> dict[str, int]:
    return {"shortest": 2, "longest": 3} if quick else {"shortest": 1, "longest": 20}


def _repeats(quick: bool) -> dict[str, int]:
    return {**_lengths(quick), "longest": 3 if quick else 8, "fewest_repeats": 1, "most_repeats": 2 if quick else 5}


_BUILDERS: dict[str, Callable[[bool], FamilyTask]] = {
    "copy": lambda quick: _algorithm("copy-vectors", _lengths(quick)),
    "repeat-copy": lambda quick: _algorithm("repeat-copy", _repeats(quick)),
    "associative-recall": lambda quick: _algorithm(
        "associative-recall", {"fewest_items": 2, "most_items": 3 if quick else 6}
    ),
    "recall of many keys": lambda quick: _recall(2 if quick else 8, 16 if quick else 64),
    "adding": lambda quick: _adding(6 if quick else 64),
    "digits by pixels": lambda quick: _digits(),
    "irregular waves": lambda quick: _irregular(Waves(length=12 if quick else 64)),
    "pattern completion": lambda quick: _completion(2 if quick else 8, 8 if quick else 24),
}
TASK_NAMES = tuple(_BUILDERS)
"""The eight tasks, in the order of the table."""


def family_task(name: str, quick: bool = False) -> FamilyTask:
    """One of the tasks; `quick` ones are tiny."""
    return _BUILDERS[name](quick)
