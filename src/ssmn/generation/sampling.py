"""From logits to a token: pure numpy, the same for every backend."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssmn.errors import RangeError

_NUCLEUS_GUESS = 64
"""Tokens that are sorted first in search of a nucleus; most nuclei are smaller."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn.

    The repetition penalty comes first, then the temperature, then `top_k`, `top_p` and `min_p` narrow the choice,
    each among what the one before has left.
    """

    temperature: float = 1.0
    """Divides the logits; below 1 is safer, 0 always takes the likeliest token."""
    top_k: int | None = None
    """Samples among this many likeliest tokens only."""
    top_p: float | None = None
    """Samples among the fewest likeliest tokens that hold this share of the probability."""
    min_p: float | None = None
    """Samples among tokens at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the recent past are less likely: positive logits are divided by it, negative multiplied."""
    repetition_window: int | None = 256
    """How many tokens back the penalty looks, prompt included; None = over the whole prompt and everything written."""

    def __post_init__(self) -> None:
        def refuse(name: str, wanted: str) -> RangeError:
            return RangeError(f"generate: {name}={getattr(self, name)!r}; wanted {wanted}.")

        if not _is_number(self.temperature) or not 0.0 <= self.temperature < math.inf:
            raise refuse("temperature", "a number of 0 or more")
        if self.top_k is not None and not _is_count(self.top_k):
            raise refuse("top_k", "a whole number of at least 1, or None for all tokens")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not (_is_number(share) and 0.0 < share <= 1.0):
                raise refuse(name, "a share in (0, 1], or None for all tokens")
        if not _is_number(self.repetition_penalty) or not 0.0 < self.repetition_penalty < math.inf:
            raise refuse("repetition_penalty", "a number above 0; 1 is none")
        if self.repetition_window is not None and not _is_count(self.repetition_window):
            raise refuse("repetition_window", "a whole number of at least 1, or None for all tokens")


class Sampler:
    """Draws the tokens of one stream.

    Args:
        sampling: The settings.
        vocab_size: Number of logits.
        seed: Of the draws; the same seed and logits give the same tokens.

    Example:
        >>> import numpy as np
        >>> from ssmn.generation import Sampler, Sampling
        >>> sampler = Sampler(Sampling(temperature=0.0), vocab_size=3, seed=0)
        >>> sampler.choose(np.array([0.5, 2.0, 1.0]))
        1
    """

    def __init__(self, sampling: Sampling, vocab_size: int, seed: int) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(seed)
        self._penalises = sampling.repetition_penalty != 1.0
        self._recent: deque[int] = deque(maxlen=sampling.repetition_window)
        self._counts = np.zeros(vocab_size if self._penalises else 0, np.int64)

    def saw(self, tokens: Iterable[int]) -> None:
        """Notes tokens that were read or written, for the repetition penalty; memory stays within its window."""
        if not self._penalises:
            return
        window = self.sampling.repetition_window
        for token in tokens:
            if window is not None:
                if len(self._recent) == window:
                    self._counts[self._recent[0]] -= 1
                self._recent.append(token)
            self._counts[token] += 1

    def choose(self, logits: NDArray[np.floating]) -> int:
        """A token, drawn from logits [vocabulary].

        Raises:
            RangeError: A logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise RangeError("generate: the model's logits are not finite; its weights or the given state are damaged.")
        if self._penalises:
            logits = self._penalised(logits)
        settings = self.sampling
        if settings.temperature == 0.0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64)
        scaled -= scaled.max()
        # The largest is 0 before the division, so that a tiny temperature overflows to -inf and not to NaN.
        with np.errstate(over="ignore"):
            scaled /= settings.temperature
        return self._draw(scaled, _candidates(scaled, settings))

    def _penalised(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        logits = logits.astype(np.float64)
        seen = np.flatnonzero(self._counts)
        values, penalty = logits[seen], self.sampling.repetition_penalty
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _draw(self, scaled: NDArray[np.float64], candidates: NDArray[np.intp] | None) -> int:
        """One of the candidates, by the race of exponential clocks (Gumbel's trick).

        Every token of the vocabulary has its own clock, so a rounding difference in the logits changes the draw
        only when two of them arrive all but together. With an inverted cumulative sum it would move every border.
        """
        clocks = self._random.standard_exponential(len(scaled))
        with np.errstate(divide="ignore"):
            if candidates is None:
                return int((scaled - np.log(clocks)).argmax())
            return int(candidates[(scaled[candidates] - np.log(clocks[candidates])).argmax()])


def _candidates(scaled: NDArray[np.float64], settings: Sampling) -> NDArray[np.intp] | None:
    """The tokens that may be drawn; None = all."""
    chosen: NDArray[np.intp] | None = None
    if settings.top_k is not None and settings.top_k < len(scaled):
        chosen = _largest(scaled, settings.top_k)
    if settings.top_p is not None and settings.top_p < 1.0:
        chosen = _nucleus(scaled, chosen, settings.top_p)
    if settings.min_p is not None:
        chosen = np.arange(len(scaled)) if chosen is None else chosen
        # The likeliest of all is among the chosen, and its scaled logit is 0.
        chosen = chosen[scaled[chosen] >= math.log(settings.min_p)]
    return chosen


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Where the `count` largest values are, largest first, the earlier first among equals."""
    if count < len(values):
        # All that equal the smallest of them take part in the sort, or chance would choose among them.
        border = np.partition(values, len(values) - count)[len(values) - count]
        among = np.flatnonzero(values >= border)
    else:
        among = np.arange(len(values))
    return among[np.argsort(-values[among], kind="stable")][:count]


def _nucleus(scaled: NDArray[np.float64], chosen: NDArray[np.intp] | None, share: float) -> NDArray[np.intp]:
    """The fewest likeliest of the chosen that hold the share of their probability."""
    if chosen is not None:
        weights = np.exp(scaled[chosen])
        return chosen[: _enough(weights, share * weights.sum())]
    weights = np.exp(scaled)
    wanted, guess = share * weights.sum(), _NUCLEUS_GUESS
    while True:
        ranked = _largest(scaled, guess)
        count = _enough(weights[ranked], wanted)
        if count <= len(ranked) or guess >= len(scaled):
            return ranked[:count]
        guess *= 8


def _enough(weights: NDArray[np.float64], wanted: float) -> int:
    """How many of the weights, from the first on, reach the sum; one more than there are if all of them do not."""
    return int(np.searchsorted(np.cumsum(weights), wanted)) + 1


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
