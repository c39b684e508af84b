"""Recall of tokens.

Facts are adjacent tokens, `key value key value ...`, and a question is a key alone: the model must say the value at the
position of the asked key. With a window too short to reach the facts only the memory knows the answer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ssmn.training.filler import text_filler
from ssmn.training.tasks.base import Batch, Split, Task

Filler = Literal["noise", "pairs", "mixed"]

_RESERVED = 8
"""Tokens kept for punctuation: 0 separates facts and starts a question; the others are spare."""


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
