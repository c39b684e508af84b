"""Synthetic tasks that show what the memory can do; every batch is a pure function of seed and step.

Recall tasks write facts as adjacent tokens, `key value key value ...`, and ask with a key alone: the
model must say the value at the position of the asked key. With a window too short to reach the facts
only the memory knows the answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ssmn.errors import ConfigError
from ssmn.training.filler import text_filler

Split = Literal["train", "test"]
Filler = Literal["noise", "pairs", "mixed"]

_RESERVED = 8
"""Tokens kept for punctuation: 0 separates facts and starts a question; the others are spare."""


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


_MAY_BE_ZERO = {"rebinds", "distance"}


@dataclass(frozen=True, kw_only=True)
class _TokenTask(Task):
    vocab_size: int = 1032
    """Tokens, 8 of them punctuation."""

    def model_settings(self) -> dict[str, Any]:
        return {"kind": "text", "vocab_size": self.vocab_size}

    def _pools(self, *shares: int) -> list[range]:
        """Cuts the symbols into ranges in proportion to `shares`."""
        symbols, total = self.vocab_size - _RESERVED, sum(shares)
        edges = [_RESERVED + symbols * sum(shares[:i]) // total for i in range(len(shares) + 1)]
        return [range(low, high) for low, high in itertools.pairwise(edges)]

    def _need_symbols(self, setting: str, pool: range) -> None:
        if getattr(self, setting) > len(pool):
            raise self._refusal(setting, f"at most {len(pool)} with vocab_size={self.vocab_size}")


@dataclass(frozen=True, kw_only=True)
class Copy(_TokenTask):
    """Says a sequence of distinct tokens again: `; a b c ; a b c`."""

    name: ClassVar[str] = "copy"

    length: int = 32
    """Tokens to remember."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_symbols("length", self._pools(1)[0])

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        sequence = _distinct(generator, batch_size, self.length, self._pools(1)[0])
        separator = torch.zeros(batch_size, 1, dtype=torch.int64)
        once = torch.cat((separator, sequence), 1)
        row = torch.cat((once, once, separator), 1)
        mask = torch.zeros(batch_size, row.shape[1] - 1, dtype=torch.bool)
        mask[:, self.length + 1 : -1] = True
        return Batch(row[:, :-1], row[:, 1:], mask, self.source)


@dataclass(frozen=True, kw_only=True)
class MultiQueryRecall(_TokenTask):
    """Multi-query associative recall: `key value key value ...`, then every key is asked once.

    With `rebinds`, every key is bound again that many times to other values, in random order, and
    the newest value is the answer.
    """

    name: ClassVar[str] = "mqar"

    pairs: int = 32
    """Distinct keys."""
    rebinds: int = 0
    """How many times every key gets a new value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_symbols("pairs", self._pools(1, 1)[0])

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        key_pool, value_pool = self._pools(1, 1)
        keys = _distinct(generator, batch_size, self.pairs, key_pool)
        rounds = self.rebinds + 1
        # Each round binds every key once, in an order of its own.
        order = torch.rand(batch_size, rounds, self.pairs, generator=generator).argsort(2)
        bound_keys = keys.unsqueeze(1).expand(-1, rounds, -1).gather(2, order)
        values = torch.randint(value_pool.start, value_pool.stop, order.shape, generator=generator)
        newest = torch.empty_like(keys).scatter_(1, order[:, -1], values[:, -1])
        facts = torch.stack((bound_keys, values), -1).flatten(1)
        asked = torch.rand(batch_size, self.pairs, generator=generator).argsort(1)
        return _questions(facts, keys.gather(1, asked), newest.gather(1, asked), self.source)


@dataclass(frozen=True, kw_only=True)
class ReboundRecall(MultiQueryRecall):
    """Multi-query recall whose keys are bound again: the newest value wins."""

    name: ClassVar[str] = "mqar-rebound"

    rebinds: int = 1


@dataclass(frozen=True, kw_only=True)
class SpreadRecall(_TokenTask):
    """Multi-query associative recall as Zoology defines it (Arora et al., 2023): the questions are spread out.

    The pairs come first, in one block. The rest of the row, `length` tokens in all, is token 0 (as for the
    published figures), or with `noise` random tokens of the whole vocabulary (the default of Zoology's
    generator); at even places in it stand the questions, the key of every pair once. A place is
    drawn without return with the probability of a power law, p(n) ∝ n^(power − 1), so most questions come
    soon. Keys are of the lower half of the vocabulary and values of the upper half, all different. A batch
    of the training has 4, 8, 16 ... or `pairs` pairs, and one of a test has `pairs`.

    `mqar` differs: its questions follow each other without anything between, in random order, its rows
    are as long as that makes them, values may repeat, and eight tokens are kept for punctuation.
    """

    name: ClassVar[str] = "mqar-spread"

    vocab_size: int = 8192
    """Tokens; token 0 is neither a key nor a value."""
    pairs: int = 32
    """Distinct keys."""
    length: int = 256
    """Tokens of a row; at least four for every pair."""
    noise: bool = False
    """Random tokens between the questions in place of token 0; a quarter of their neighbours look like a fact."""
    power: float = 0.01
    """Exponent a of the power law; 1 spreads the questions evenly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs * 4 > self.length:
            raise self._refusal("pairs", f"at most a quarter of length={self.length}")
        if self.vocab_size <= self.length:
            raise self._refusal("vocab_size", f"more than length={self.length}")

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        half, pairs = self.vocab_size // 2, self.pairs
        if split == "train":
            fewer = [number for number in (4, 8, 16, 32, 64, 128, 256) if number < pairs]
            pairs = [*fewer, pairs][int(torch.randint(len(fewer) + 1, (), generator=generator))]
        keys = _distinct(generator, batch_size, pairs, range(1, half))
        values = _distinct(generator, batch_size, pairs, range(half, self.vocab_size))
        facts = torch.stack((keys, values), -1).flatten(1)
        rest = self.length - 2 * pairs
        between = _any(generator, (batch_size, rest), range(1, self.vocab_size))
        inputs = torch.cat((facts, between if self.noise else torch.zeros_like(between)), 1)
        chance = torch.arange(1, rest // 2 + 1, dtype=torch.float64) ** (self.power - 1)
        places = 2 * pairs + 2 * torch.multinomial(chance.expand(batch_size, -1), pairs, generator=generator)
        inputs.scatter_(1, places, keys)
        targets = torch.zeros_like(inputs).scatter_(1, places, values)
        return Batch(inputs, targets, targets > 0, self.source)


@dataclass(frozen=True, kw_only=True)
class MultiHopRecall(_TokenTask):
    """Facts `; a b` and `; b c` in any order; asked `; a`, the answer is c, `hops` facts away."""

    name: ClassVar[str] = "multi-hop"

    hops: int = 2
    """Facts between a question and its answer."""
    chains: int = 12
    """Chains of facts; each is asked once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chains * (self.hops + 1) > self.vocab_size - _RESERVED:
            raise self._refusal("chains", f"chains * (hops + 1) symbols within vocab_size={self.vocab_size}")

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        links = self.hops + 1
        chain = _distinct(generator, batch_size, self.chains * links, self._pools(1)[0])
        chain = chain.view(batch_size, self.chains, links)
        facts = torch.stack((torch.zeros_like(chain[..., 1:]), chain[..., :-1], chain[..., 1:]), -1).flatten(1, 2)
        order = torch.rand(facts.shape[:2], generator=generator).argsort(1)
        facts = facts.gather(1, order.unsqueeze(-1).expand_as(facts)).flatten(1)
        return _questions(facts, chain[..., 0], chain[..., -1], self.source, separated=True)


@dataclass(frozen=True, kw_only=True)
class RecallAtDistance(_TokenTask):
    """Pairs, then a long stretch that is never asked about, then the questions.

    The stretch is noise tokens, or hard distractors: further `key value` facts with the same values
    and with keys of a pool that is never asked. Training draws the stretch's length up to
    `distance`, and a test has it exactly.
    """

    name: ClassVar[str] = "distance"

    pairs: int = 8
    """Facts to remember."""
    distance: int = 512
    """Tokens between the facts and the questions."""
    filler: Filler = "noise"
    """`noise`, `pairs` (hard distractors), or `mixed` (each row one of the two)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_symbols("pairs", self._pools(1, 1, 1, 1)[0])

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        key_pool, value_pool, other_keys, noise_pool = self._pools(1, 1, 1, 1)
        keys = _distinct(generator, batch_size, self.pairs, key_pool)
        values = _any(generator, (batch_size, self.pairs), value_pool)
        length = self.distance
        if split == "train":
            length = int(torch.randint(0, self.distance + 1, (), generator=generator))
        distractors = _any(generator, (batch_size, length), other_keys)
        distractors[:, 1::2] = _any(generator, distractors[:, 1::2].shape, value_pool)
        noise = _any(generator, (batch_size, length), noise_pool)
        hard = {"noise": 0.0, "pairs": 1.0, "mixed": 0.5}[self.filler]
        is_hard = torch.rand(batch_size, 1, generator=generator) < hard
        facts = torch.stack((keys, values), -1).flatten(1)
        facts = torch.cat((facts, torch.where(is_hard, distractors, noise)), 1)
        asked = torch.rand(batch_size, self.pairs, generator=generator).argsort(1)
        return _questions(facts, keys.gather(1, asked), values.gather(1, asked), self.source)


@dataclass(frozen=True, kw_only=True)
class RecallInText(_TokenTask):
    """Facts in a stretch of real text, and the questions at its end.

    A fact is three tokens, `FACT key value`, and a question two, `ASK key`. FACT and ASK are the last two
    of the vocabulary and never occur in the text; keys and values are any tokens of the text's own
    vocabulary, so the text is full of pairs that look like a fact without being one.

    Training draws the number of the text's tokens up to `distance`, short ones as often as long ones, and
    states the facts of half of the rows at its beginning and of the others all over it. A test states
    them at the beginning and has exactly `distance` tokens of held-out text after them.
    """

    name: ClassVar[str] = "text-recall"

    vocab_size: int = 1026
    """Tokens: byte pairs learnt from the text, and the two marks."""
    pairs: int = 8
    """Facts to remember."""
    distance: int = 1024
    """Tokens of text."""
    text: str = "data/text"
    """Folder with the text to train on in `train` and to test on in `held-out`."""
    text_bytes: int = 4_000_000
    """About how much of either is read, evenly out of all files."""
    scattered: bool = False
    """Tests, too, state the facts all over the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 256 + 2:
            raise self._refusal("vocab_size", "at least 258: 256 bytes and two marks")

    @property
    def fact(self) -> int:
        """The token that begins a fact."""
        return self.vocab_size - 2

    @property
    def ask(self) -> int:
        """The token that begins a question."""
        return self.vocab_size - 1

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        filler = text_filler(self.text, self.vocab_size - 2, self.text_bytes)
        is_training = split == "train"
        length = self.distance
        if is_training:
            share = float(torch.rand((), generator=generator))
            length = round((self.distance + 1) ** share) - 1
        words = filler.draw(generator, batch_size, length, "train" if is_training else "held-out")
        pool = range(self.vocab_size - 2)
        keys = _distinct(generator, batch_size, self.pairs, pool)
        values = _any(generator, (batch_size, self.pairs), pool)
        facts = torch.stack((torch.full_like(keys, self.fact), keys, values), -1)
        # Each fact stands before the text's token of this number.
        before = (torch.rand(batch_size, self.pairs, generator=generator) * (length + 1)).long()
        is_scattered = torch.rand(batch_size, 1, generator=generator) < (0.5 if is_training else float(self.scattered))
        before = torch.where(is_scattered, before, 0).sort(1).values
        place = torch.cat((2 * before.repeat_interleave(3, 1), 2 * torch.arange(length).expand(batch_size, -1) + 1), 1)
        order = place.argsort(dim=1, stable=True)
        stream = torch.cat((facts.flatten(1), words), 1).gather(1, order)
        asked = torch.rand(batch_size, self.pairs, generator=generator).argsort(1)
        marks = torch.full_like(keys, self.ask)
        questions = torch.stack((marks, keys.gather(1, asked)), -1).flatten(1)
        answers = torch.stack((torch.zeros_like(marks), values.gather(1, asked)), -1).flatten(1)
        inputs, targets = torch.cat((stream, questions), 1), torch.cat((torch.zeros_like(stream), answers), 1)
        mask = torch.zeros_like(inputs, dtype=torch.bool)
        mask[:, stream.shape[1] + 1 :: 2] = True
        return Batch(inputs, targets, mask, self.source)


@dataclass(frozen=True, kw_only=True)
class DriftingSystem(Task):
    """A linear system x_{t+1} = A x_t whose rotation A is replaced at random times; predict x_{t+1}.

    A rotation keeps the length of x, here 1 per component on average, so 1.0 is the squared error
    of a model that knows nothing, and a model that re-learns A at once goes towards 0.
    """

    name: ClassVar[str] = "drift"
    measure: ClassVar[str] = "error_64+"

    dim: int = 8
    """Components of the system."""
    length: int = 384
    """Steps per row."""
    switch_after: int = 128
    """Mean steps between two switches; the gaps are uniform within half and one and a half of it."""

    def model_settings(self) -> dict[str, Any]:
        return {"kind": "standard", "input_dim": self.dim, "output_dim": self.dim}

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        regime, elapsed, count = _switches(generator, batch_size, self.length, self.switch_after)
        square = torch.randn(batch_size, count, self.dim, self.dim, generator=generator, dtype=torch.float64)
        rotations = torch.linalg.qr(square).Q
        x = torch.randn(batch_size, self.dim, generator=generator, dtype=torch.float64)
        x = x * self.dim**0.5 / x.norm(dim=1, keepdim=True)
        row, rows = [x], torch.arange(batch_size)
        for step in range(self.length):
            row.append(torch.einsum("bij,bj->bi", rotations[rows, regime[:, step]], row[-1]))
        path = torch.stack(row, 1).float()
        return Batch(path[:, :-1], path[:, 1:], None, self.source, elapsed=elapsed)


@dataclass(frozen=True, kw_only=True)
class LinearSystem(Task):
    """A driven linear system x_{t+1} = A x_t + B u_t + noise, replaced at random times; x_t and u_t are read.

    A is a matrix of normal numbers, scaled to a spectral radius of .95, and B another, scaled so that the signal has
    variance 1 per component; u is white noise. The drive is there since such a system left to its noise would stay
    within about ten times its variance: with it 1.0 is the squared error of a model that knows nothing, and `noise`
    that of one that knows A and B.
    """

    name: ClassVar[str] = "system"
    measure: ClassVar[str] = "error_64+"

    dim: int = 8
    """Components of x, and of u."""
    length: int = 256
    """Steps per row."""
    switch_after: int = 128
    """Mean steps between two switches; the gaps are uniform within half and one and a half of it."""
    radius: float = 0.95
    """Spectral radius of A."""
    noise: float = 0.01
    """Variance of the process noise as a share of the signal's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.radius < 1.0:
            raise self._refusal("radius", "a number in (0, 1)")
        if not 0.0 <= self.noise < 1.0 - self.radius**2:
            raise self._refusal("noise", f"a share in [0, {1 - self.radius**2:.4g}), with radius={self.radius}")

    def model_settings(self) -> dict[str, Any]:
        return {"kind": "standard", "input_dim": 2 * self.dim, "output_dim": self.dim}

    def _draw(self, generator: torch.Generator, batch_size: int, split: Split) -> Batch:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        regime, elapsed, count = _switches(generator, batch_size, self.length, self.switch_after)
        shape = (batch_size, count, self.dim, self.dim)
        moves = normal(*shape)
        moves = moves * (self.radius / torch.linalg.eigvals(moves).abs().amax(-1))[..., None, None]
        drives = normal(*shape)
        noise = self.noise * _stationary(moves, torch.eye(self.dim, dtype=torch.float64).expand(shape))
        # A system that makes too much of the noise alone (about one in thousands) is driven all the same.
        left = (1 - noise).clamp(min=0.1) / _stationary(moves, drives @ drives.mT)
        drives = drives * left.sqrt()[..., None, None]
        row, rows, told = (
            [normal(batch_size, self.dim)],
            torch.arange(batch_size),
            normal(batch_size, self.length, self.dim),
        )
        kicks = self.noise**0.5 * normal(batch_size, self.length, self.dim)
        for step in range(self.length):
            both = torch.cat((moves, drives), -1)[rows, regime[:, step]]
            state = torch.cat((row[-1], told[:, step]), -1)
            row.append((both @ state.unsqueeze(-1)).squeeze(-1) + kicks[:, step])
        path = torch.stack(row, 1)
        inputs = torch.cat((path[:, :-1], told), -1)
        return Batch(inputs.float(), path[:, 1:].float(), None, self.source, elapsed=elapsed)


def _stationary(moves: Tensor, spread: Tensor) -> Tensor:
    """Mean variance per component of x_{t+1} = A x_t + w for A [.., D, D] and the covariance of w."""
    for _ in range(9):  # the sum of A^k w wᵀ A^kᵀ over 512 steps
        spread, moves = spread + moves @ spread @ moves.mT, moves @ moves
    return spread.diagonal(dim1=-2, dim2=-1).mean(-1)


def _switches(
    generator: torch.Generator, batch_size: int, length: int, switch_after: int
) -> tuple[Tensor, Tensor, int]:
    """(number of the system at each step [B, T], steps since it came [B, T], systems per row)."""
    low, high = max(1, switch_after // 2), switch_after + switch_after // 2
    count = length // low + 2
    gaps = torch.randint(low, high + 1, (batch_size, count), generator=generator)
    switches = torch.cat((torch.zeros(batch_size, 1, dtype=torch.int64), gaps.cumsum(1)), 1)
    time = torch.arange(length).expand(batch_size, -1).contiguous()
    regime = torch.searchsorted(switches, time, right=True) - 1
    return regime, time - switches.gather(1, regime), count + 1


TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Copy,
        MultiQueryRecall,
        ReboundRecall,
        SpreadRecall,
        MultiHopRecall,
        RecallAtDistance,
        RecallInText,
        DriftingSystem,
        LinearSystem,
    )
}
"""Every task by the name that `ssmn train --task` takes."""


def _any(generator: torch.Generator, shape: tuple[int, ...] | torch.Size, pool: range) -> Tensor:
    return torch.randint(pool.start, pool.stop, shape, generator=generator)


def _distinct(generator: torch.Generator, rows: int, count: int, pool: range) -> Tensor:
    """`count` different symbols of the pool per row, in random order."""
    return pool.start + torch.rand(rows, len(pool), generator=generator).argsort(1)[:, :count]


def _questions(facts: Tensor, asked: Tensor, answers: Tensor, source: str, separated: bool = False) -> Batch:
    """Appends the questions; the answers are targets only, never inputs."""
    if separated:
        asked = torch.stack((torch.zeros_like(asked), asked), -1).flatten(1)
        answers = torch.stack((torch.zeros_like(answers), answers), -1).flatten(1)
    inputs = torch.cat((facts, asked), 1)
    targets = torch.cat((torch.zeros_like(facts), answers), 1)
    return Batch(inputs, targets, targets > 0, source)
