"""The decode loop: a prompt in, one token at a time out, with the state after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssmn.config import Plasticity
from ssmn.errors import DtypeError, RangeError, ShapeError, StateError
from ssmn.state import StreamState

PROMPT_PIECE = 512
"""Tokens of a prompt that are read at once; bounds the memory that a long prompt takes."""


class LanguageModel(Protocol):
    """What the decode loop needs of a model: `TextSSMN`, or anything that is called like it."""

    def __call__(
        self, input_ids: Tensor, state: StreamState | None = None, *, plasticity: Plasticity | None = None
    ) -> tuple[Tensor, StreamState]: ...


def generate(
    lm: LanguageModel,
    prompt_ids: Sequence[int] | np.ndarray | Tensor,
    *,
    state: StreamState | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    plasticity: Plasticity | None = None,
) -> Iterator[tuple[int, StreamState]]:
    """Continues a text, one token at a time.

    The state that comes with a token has read everything up to and including it, so any of them can
    be kept, forked, saved or continued from.

    Args:
        lm: A `TextSSMN`.
        prompt_ids: Token numbers [T] or [1, T], at least one.
        state: Where the stream stands before the prompt; None = fresh. Batch of 1.
        max_new_tokens: Stops after this many.
        temperature: Divides the logits; below 1 is safer, 0 always takes the likeliest token.
        top_k: Samples among this many likeliest tokens only.
        top_p: Samples among the fewest likeliest tokens that hold this share of the probability.
        seed: Makes the sampling repeatable; None = torch's global generator.
        plasticity: How strongly the memory learns and forgets while reading and writing.

    Returns:
        An iterator over (token, state).

    Raises:
        ShapeError, DtypeError, RangeError, StateError: An argument is empty, of the wrong form, or out of range.

    Example:
        >>> import ssmn
        >>> config = ssmn.TextSSMNConfig(vocab_size=50, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> lm = ssmn.TextSSMN(config)
        >>> written = list(ssmn.generate(lm, [1, 2, 3], max_new_tokens=4, seed=0))
        >>> token, state = written[-1]
        >>> len(written), state.position.tolist()
        (4, [7])
    """
    if isinstance(prompt_ids, (str, bytes)):
        raise DtypeError(
            f"generate: prompt_ids is {type(prompt_ids).__name__}; wanted token numbers: tokenizer.encode(text)."
        )
    prompt = torch.as_tensor(prompt_ids)
    prompt = prompt.unsqueeze(0) if prompt.dim() == 1 else prompt
    if prompt.dim() != 2 or prompt.shape[0] != 1:
        raise ShapeError(f"generate: prompt_ids has shape {list(prompt.shape)}; wanted [T] or [1, T], one stream.")
    if prompt.shape[1] == 0:
        raise RangeError("generate: prompt_ids is empty; wanted at least one token to go on from.")
    if prompt.is_floating_point() or prompt.dtype == torch.bool:
        raise DtypeError(f"generate: prompt_ids has dtype {prompt.dtype}; wanted whole token numbers.")
    if state is not None and not isinstance(state, StreamState):
        raise StateError(f"generate: state is {type(state).__name__}; wanted a StreamState, or None for a fresh one.")
    if state is not None and state.batch_size != 1:
        raise ShapeError(f"generate: state has batch {state.batch_size}; wanted one stream: state.select([row]).")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise RangeError(f"generate: max_new_tokens={max_new_tokens!r}; wanted a whole number of at least 1.")
    if not 0.0 <= temperature < float("inf"):
        raise RangeError(f"generate: temperature={temperature!r}; wanted a number of 0 or more.")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise RangeError(f"generate: top_k={top_k!r}; wanted a whole number of at least 1, or None for all tokens.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise RangeError(f"generate: top_p={top_p!r}; wanted a share in (0, 1], or None for all tokens.")
    return _decode(lm, prompt.long(), state, max_new_tokens, temperature, top_k, top_p, seed, plasticity)


def _decode(
    lm: LanguageModel,
    prompt: Tensor,
    state: StreamState | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    plasticity: Plasticity | None,
) -> Iterator[tuple[int, StreamState]]:
    logits: Tensor | None = None
    for piece in prompt.split(PROMPT_PIECE, dim=1):
        with torch.no_grad():
            logits, state = lm(piece, state, plasticity=plasticity)
    assert logits is not None
    generator = None if seed is None else torch.Generator(device=logits.device).manual_seed(seed)
    for _ in range(max_new_tokens):
        token = _choose(logits[0, -1].double(), temperature, top_k, top_p, generator)
        with torch.no_grad():
            logits, state = lm(token.view(1, 1), state, plasticity=plasticity)
        assert state is not None
        yield int(token), state


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """One token number [1] drawn from logits [vocabulary]."""
    if not torch.isfinite(logits).all():
        raise RangeError("generate: the model's logits are not finite; its weights or the given state are damaged.")
    if temperature == 0.0:
        return logits.argmax(keepdim=True)
    ranked, tokens = logits.sort(descending=True, stable=True)
    ranked, tokens = ranked[:top_k], tokens[:top_k]
    # Shifted to a largest of 0 before the division, so that a tiny temperature overflows to -inf and not to NaN.
    probabilities = torch.softmax((ranked - ranked[0]) / temperature, dim=0)
    if top_p is not None:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return tokens[torch.multinomial(probabilities, 1, generator=generator)]
