"""Tasks whose samples come at uneven times: real timestamps, dropped rows, dropped pixels.

An episode is a batch of short streams with the time that has passed before every step. All randomness comes from the
generator that is given, so a seed makes the same episodes everywhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssmn.errors import FileError, MissingExtraError, RangeError

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Episodes:
    """A batch of streams.

    Attributes:
        x: [B, T, F], what is seen at each step.
        elapsed: [B, T], time since the step before; 0 at the first.
        target: [B, T, O] numbers, or [B, T] int64 classes.
        asked: [B, T] bool, the steps whose target counts.
    """

    x: Tensor
    elapsed: Tensor
    target: Tensor
    asked: Tensor

    def features(self) -> Tensor:
        """[B, T, F + 1]: x with the elapsed time as one more column, for models that know no other clock."""
        return torch.cat([self.x, self.elapsed.unsqueeze(-1)], -1)


class IrregularTask(ABC):
    """Episodes with uneven gaps, and how an answer is scored.

    Attributes:
        name: For tables and settings.
        input_dim: F; one less than the columns of `Episodes.features`.
        output_dim: Numbers per answer.
        measure: What `score` is, in words.
    """

    name: str
    input_dim: int
    output_dim: int
    measure: str

    @abstractmethod
    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        """`count` streams of a split, drawn by `generator`."""

    @abstractmethod
    def loss(self, answers: Tensor, episodes: Episodes) -> Tensor:
        """What is trained on: the mean over the steps that are asked, of answers [B, T, O]."""

    def error(self, answers: Tensor, episodes: Episodes) -> float:
        """What is reported, smaller = better; the loss unless a task has its own."""
        return float(self.loss(answers, episodes))


class _Forecast(IrregularTask):
    measure = "mean squared error, 1 = the spread of the series"

    def loss(self, answers: Tensor, episodes: Episodes) -> Tensor:
        asked = episodes.asked
        return functional.mse_loss(answers[asked], episodes.target[asked])


class Waves(_Forecast):
    """Sums of damped sines, seen and asked for at random times.

    Every stream has its own frequencies (0.2 to 1.2 radians per unit of time), sizes, phases and decays. Its steps come
    after exponential gaps of one unit on average; at a step the value is either shown or, half of the time and after
    the first eight steps, hidden and to be said.

    Args:
        length: T.
        sines: How many make up a stream.
        noise: Deviation of the noise on values that are shown.

    Example:
        >>> import torch
        >>> from ssmn.training.irregular import Waves
        >>> made = Waves(length=20).episodes("train", 3, torch.Generator().manual_seed(0))
        >>> made.x.shape, made.elapsed.shape, bool(made.asked[:, :8].any())
        (torch.Size([3, 20, 2]), torch.Size([3, 20]), False)
    """

    name, input_dim, output_dim = "waves", 2, 1

    def __init__(self, length: int = 64, sines: int = 2, noise: float = 0.02) -> None:
        if length <= _SHOWN:
            raise RangeError(f"Waves: length={length!r}; wanted more than the {_SHOWN} steps that are shown first.")
        self.length, self.sines, self.noise = length, sines, noise

    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1, self.sines, generator=generator)

        gaps = -torch.log1p(-torch.rand(count, self.length, generator=generator))
        gaps[:, 0] = 0.0
        time = gaps.cumsum(1).unsqueeze(-1)
        size = uniform(0.5, 1.5) / math.sqrt(self.sines)
        wave = size * torch.exp(-uniform(0.0, 0.02) * time)
        value = (wave * torch.sin(uniform(0.2, 1.2) * time + uniform(0.0, 2 * math.pi))).sum(-1, keepdim=True)
        asked = torch.rand(count, self.length, generator=generator) < 0.5
        asked[:, :_SHOWN] = False
        shown = (~asked).float().unsqueeze(-1)
        seen = value + self.noise * torch.randn(value.shape, generator=generator)
        return Episodes(torch.cat([seen * shown, shown], -1), gaps, value / _WAVE_SPREAD, asked)


_SHOWN = 8
_WAVE_SPREAD = 0.56
"""About the deviation of the waves over 64 steps, so that an error of 1 is that of saying zero."""


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 8 × 8 digits: brightness in [0, 1] [N, 64], and the classes [N].

    Raises:
        MissingExtraError: scikit-learn, which holds the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            f"digits: {error}; the images are scikit-learn's: pip install 'sparse-stream[timeseries]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.asarray(images, np.float32)) / 16.0
    return pixels, torch.from_numpy(np.asarray(labels, np.int64))


class DroppedDigits(IrregularTask):
    """scikit-learn's 8 × 8 digits, pixel by pixel, with half of the pixels dropped; the class is asked at the end.

    A step shows one kept pixel's brightness in [0, 1]; the time since the step before is the number of pixels that have
    passed, so where a pixel lies is known by the clock alone. Images are split by number: two thirds to train, a sixth
    each to validate and test. Every draw drops other pixels.

    Args:
        kept: T, pixels of the 64 that are kept.

    Raises:
        MissingExtraError: scikit-learn, which holds the images, is not installed.

    Example:
        >>> import torch
        >>> from ssmn.training.irregular import DroppedDigits
        >>> made = DroppedDigits(kept=32).episodes("test", 5, torch.Generator().manual_seed(0))
        >>> made.x.shape, bool((made.elapsed.sum(1) <= 63).all()), made.asked.sum().item()
        (torch.Size([5, 32, 1]), True, 5)
    """

    name, input_dim, output_dim = "digits", 1, 10
    measure = "share of wrong answers"

    def __init__(self, kept: int = 32) -> None:
        if not 1 <= kept <= 64:
            raise RangeError(f"DroppedDigits: kept={kept!r}; wanted 1 to the 64 pixels of an image.")
        self.kept = kept
        self._images, self._labels = digits()

    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        parts = torch.arange(len(self._labels)) % 6
        rows = torch.nonzero({"train": parts < 4, "validation": parts == 4, "test": parts == 5}[split])[:, 0]
        chosen = rows[torch.randint(len(rows), (count,), generator=generator)]
        places = torch.rand(count, 64, generator=generator).argsort(1)[:, : self.kept].sort(1).values
        pixels = self._images[chosen].gather(1, places)
        gaps = torch.diff(places, dim=1, prepend=torch.zeros(count, 1, dtype=torch.int64)).float()
        asked = torch.zeros(count, self.kept, dtype=torch.bool)
        asked[:, -1] = True
        target = self._labels[chosen].unsqueeze(1).expand(-1, self.kept)
        return Episodes(pixels.unsqueeze(-1), gaps, target, asked)

    def loss(self, answers: Tensor, episodes: Episodes) -> Tensor:
        asked = episodes.asked
        return functional.cross_entropy(answers[asked], episodes.target[asked])

    def error(self, answers: Tensor, episodes: Episodes) -> float:
        asked = episodes.asked
        return float((answers[asked].argmax(-1) != episodes.target[asked]).float().mean())


class DroppedRows(_Forecast):
    """A table of hourly readings (ETTh1) with half of its rows dropped: forecast all columns at the next kept time.

    A step shows a kept row, standardised by the training part, and how many hours lie ahead of the next; the answer is
    what is to be added to the row. Train, validation and test are the first 12, 4 and 4 months of 30 days.

    Args:
        path: The file ETTh1.csv.
        length: T, kept rows of a stream.
        dropped: Share of rows that are dropped.

    Raises:
        FileError: There is no such file.
    """

    name, input_dim, output_dim = "rows", 8, 7

    def __init__(self, path: Path, length: int = 64, dropped: float = 0.5) -> None:
        if not path.exists():
            raise FileError(f"DroppedRows: {path} does not exist; wanted ETTh1.csv of the ETT benchmark.")
        if not 0.0 <= dropped < 1.0:
            raise RangeError(f"DroppedRows: dropped={dropped!r}; wanted a share in [0, 1).")
        rows = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=range(1, 8), dtype=np.float32)
        train = rows[: _MONTH * 12]
        self._rows = torch.from_numpy((rows - train.mean(0)) / train.std(0))
        self.length, self.dropped = length, dropped

    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        low, high = {"train": (0, 12), "validation": (12, 16), "test": (16, 20)}[split]
        # Long enough that more than `length` rows are kept but for one draw in many millions.
        span = math.ceil((self.length + 1) / (1 - self.dropped) * 1.25) + 24
        first = low * _MONTH + torch.randint((high - low) * _MONTH - span, (count, 1), generator=generator)
        gone = torch.rand(count, span, generator=generator) < self.dropped
        # Kept hours first, in their order.
        hours = gone.to(torch.int8).argsort(dim=1, stable=True)[:, : self.length + 1]
        rows = self._rows[first + hours]
        gaps = torch.diff(hours, dim=1).float()
        elapsed = functional.pad(gaps[:, :-1], (1, 0))
        x = torch.cat([rows[:, :-1], gaps.unsqueeze(-1)], -1)
        asked = torch.ones(count, self.length, dtype=torch.bool)
        return Episodes(x, elapsed, rows[:, 1:] - rows[:, :-1], asked)


_MONTH = 30 * 24
