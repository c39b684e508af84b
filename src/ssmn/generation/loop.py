"""The decode loop: prompts in, one token at a time out, with the state after each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from ssmn.config import Plasticity
from ssmn.engine import Engine
from ssmn.errors import BackendError, DtypeError, RangeError, ShapeError, StateError
from ssmn.generation.kept import engine_of, lock_of, why_not_engine
from ssmn.generation.runners import EngineRunner, LanguageModel, Runner, TorchRunner
from ssmn.generation.sampling import Sampler, Sampling
from ssmn.generation.stops import StopStrings
from ssmn.state import StreamState

if TYPE_CHECKING:
    from ssmn.training.tokenizer import StreamDecoder, Tokenizer

Backend = Literal["auto", "engine", "torch"]
Finish = Literal["length", "stop string", "stop token"]


class _Pair(NamedTuple):
    token: int
    state: StreamState


class Step(_Pair):
    """One token of one row; unpacks as `token, state`."""

    row: int
    """Which prompt it continues."""
    text: str
    """What can be given out now: whole characters, up to a stop string and without it. Empty without a tokenizer."""
    finish: Finish | None
    """Why this is the row's last token; None before that."""

    def __new__(cls, token: int, state: StreamState, row: int, text: str, finish: Finish | None) -> Step:
        """A pair with three more attributes."""
        step = super().__new__(cls, token, state)
        step.row, step.text, step.finish = row, text, finish
        return step


class TextOut:
    """The text of tokens that come one by one: whole characters, up to a stop string.

    Args:
        tokenizer: Of the tokens.
        stop: The strings to stop at.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decoder: StreamDecoder = tokenizer.stream_decoder()
        self._stops = StopStrings(stop)

    @property
    def found(self) -> str | None:
        """The stop string that was met."""
        return self._stops.found

    @property
    def is_clear(self) -> bool:
        """Whether all that came has been given out: no unfinished character, nothing that may begin a stop string."""
        return not self._stops.held and not self._decoder.pending

    def push(self, token: int) -> str:
        """What this token lets out."""
        return self._stops.push(self._decoder.push(token))

    @property
    def held(self) -> str:
        """What would still come if this were the end, an unfinished character left out."""
        return self._stops.held

    def finish(self) -> str:
        """The rest, with U+FFFD for an unfinished character."""
        return "" if self.found is not None else self._stops.push(self._decoder.finish()) + self._stops.finish()


def generate(
    lm: LanguageModel | Engine,
    prompt_ids: Any,
    *,
    state: StreamState | Sequence[StreamState | None] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    repetition_window: int | None = 256,
    stop: str | Sequence[str] | None = (),
    stop_tokens: int | Sequence[int] | None = (),
    seed: int | Sequence[int] | None = None,
    plasticity: Plasticity | Sequence[Plasticity | None] | None = None,
    tokenizer: Tokenizer | None = None,
    backend: Backend = "auto",
) -> Iterator[Step]:
    """Continues one text or several, one token at a time.

    The state that comes with a token has read everything up to and including it, a stop string's or stop token too, so
    any of them can be kept, forked, saved or continued from. Rows of a batch are independent: each has its own prompt,
    state, seed and end, and writes what it would write alone (to rounding).

    Args:
        lm: A `TextSSMN` (or a function that is called like one), or an `ssmn.Engine` of one, whose own streams are not
            touched.
        prompt_ids: Token numbers [T] or [B, T], or a list of B prompts of any lengths; with a tokenizer also a text, or
            a list of texts. At least one token each.
        state: Where the streams stand before the prompts: a state of B rows, or one state or None per prompt; None =
            all fresh.
        max_new_tokens: Ends a row after this many, at least 1; `read` reads without writing.
        temperature: Divides the logits; below 1 is safer, 0 always takes the likeliest token.
        top_k: Samples among this many likeliest tokens only.
        top_p: Samples among the fewest likeliest tokens that hold this share of the probability.
        min_p: Samples among tokens at least this share as likely as the likeliest.
        repetition_penalty: Above 1, tokens of the recent past are less likely: positive logits are divided by it,
            negative ones multiplied. 1 = off.
        repetition_window: How many tokens back the penalty looks, prompt included; None = over the whole prompt and all
            that was written. What a given state has read before is not counted.
        stop: Strings that end a row; they and what follows are left out of the text. Needs a tokenizer. None = none.
        stop_tokens: Token numbers that end a row; they have no text. None = none.
        seed: Makes the sampling repeatable; row i is drawn with seed + i, or with the i-th of a list. None = drawn from
            torch's global generator.
        plasticity: How strongly the memory learns and forgets while reading and writing; fields of one number per row,
            or a list of one setting per row, make the streams differ.
        tokenizer: Gives every step its text, and takes prompts as texts.
        backend: `engine` (float32; the weights are packed once and again whenever they have changed), `torch`, or
            `auto`: the engine for float32 models on the CPU if the native library is there and `plasticity` leaves
            the rounds of chat as they are.

    Returns:
        An iterator over steps (token, state), with `row`, `text` and `finish`. Rows take turns.

    Raises:
        ShapeError, DtypeError, RangeError, StateError: An argument is empty, of the wrong form, or out of range.
        BackendError: The engine was asked for and cannot run this model.

    Example:
        >>> import ssmn
        >>> config = ssmn.TextSSMNConfig(vocab_size=50, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> lm = ssmn.TextSSMN(config)
        >>> written = list(ssmn.generate(lm, [1, 2, 3], max_new_tokens=4, seed=0))
        >>> token, state = written[-1]
        >>> len(written), state.position.tolist(), written[-1].finish
        (4, [7], 'length')
        >>> [step.row for step in ssmn.generate(lm, [[1, 2, 3], [4]], max_new_tokens=2, seed=0)]
        [0, 1, 0, 1]
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
    )
    _require_tokenizer(tokenizer)
    prompts = _prompts(prompt_ids, tokenizer)
    _require_known(lm, prompts)
    rows = len(prompts)
    if not _is_whole(max_new_tokens) or max_new_tokens < 1:
        raise RangeError(
            f"generate: max_new_tokens={max_new_tokens!r}; wanted a whole number of at least 1 "
            "(ssmn.generation.read reads a prompt and writes nothing)."
        )
    stop = () if stop is None else stop
    if stop and tokenizer is None:
        raise DtypeError("generate: stop strings need the text of the tokens; give tokenizer= as well.")
    StopStrings(stop)  # for its checks, now rather than at the first token
    ends = _stop_tokens(stop_tokens, _vocabulary(lm))
    states, learning = _states(state, rows), _learning(plasticity, rows)
    seeds = _seeds(seed, rows)
    runner = _runner(lm, states, learning, backend)
    outs = [None if tokenizer is None else TextOut(tokenizer, stop) for _ in range(rows)]
    return _decode(runner, prompts, sampling, int(max_new_tokens), outs, ends, seeds)


def read(
    lm: LanguageModel | Engine,
    token_ids: Any,
    *,
    state: StreamState | None = None,
    plasticity: Plasticity | None = None,
    tokenizer: Tokenizer | None = None,
    backend: Backend = "auto",
) -> StreamState:
    """Reads tokens, or with a tokenizer a text, and writes nothing.

    Args:
        lm: As in `generate`.
        token_ids: Token numbers [T] or a text; at least one token.
        state: Where the stream stands; None = fresh.
        plasticity: How strongly the memory learns and forgets while reading.
        tokenizer: Takes the tokens as a text.
        backend: As in `generate`.

    Returns:
        The state after it.

    Raises:
        ShapeError, DtypeError, RangeError, StateError, BackendError: As in `generate`.

    Example:
        >>> import ssmn
        >>> from ssmn.generation import read
        >>> lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=50))
        >>> read(lm, [1, 2, 3]).position.tolist()
        [3]
    """
    _require_tokenizer(tokenizer)
    prompts = _prompts(token_ids, tokenizer)
    _require_known(lm, prompts)
    runner = _runner(lm, _states(state, len(prompts)), _learning(plasticity, len(prompts)), backend)
    for row, prompt in enumerate(prompts):
        runner.read(row, prompt)
    runner.begin()
    return StreamState.merge([runner.state(row) for row in range(len(prompts))])


def _decode(
    runner: Runner,
    prompts: list[list[int]],
    sampling: Sampling,
    max_new_tokens: int,
    outs: list[TextOut | None],
    stop_tokens: frozenset[int],
    seeds: list[int],
) -> Iterator[Step]:
    first = [runner.read(row, prompt) for row, prompt in enumerate(prompts)]
    runner.begin()
    samplers = [Sampler(sampling, len(logits), seed) for logits, seed in zip(first, seeds, strict=True)]
    for sampler, prompt in zip(samplers, prompts, strict=True):
        sampler.saw(prompt)
    alive, logits = list(range(len(prompts))), np.stack(first)
    for count in range(1, max_new_tokens + 1):
        tokens = [samplers[row].choose(scores) for row, scores in zip(alive, logits, strict=True)]
        logits = runner.step(alive, tokens)
        going = []
        for place, (row, token) in enumerate(zip(alive, tokens, strict=True)):
            samplers[row].saw((token,))
            text, finish = _spoken(outs[row], token, token in stop_tokens, count == max_new_tokens)
            if finish is None:
                going.append(place)
            yield Step(token, runner.state(row), row, text, finish)
        if not going:
            return
        if len(going) < len(alive):
            alive, logits = [alive[place] for place in going], logits[going]


def _spoken(out: TextOut | None, token: int, is_stop: bool, is_last: bool) -> tuple[str, Finish | None]:
    """What a token lets out, and why it is the last one."""
    text = "" if out is None or is_stop else out.push(token)
    if out is not None and out.found is not None:
        return text, "stop string"
    finish: Finish | None = "stop token" if is_stop else "length" if is_last else None
    return (text if out is None or finish is None else text + out.finish()), finish


def _runner(lm: Any, states: list[StreamState | None], learning: list[Plasticity | None], backend: Backend) -> Runner:
    if backend not in ("auto", "engine", "torch"):
        raise RangeError(f"generate: backend={backend!r}; wanted auto, engine or torch.")
    if isinstance(lm, Engine):
        if lm.config.kind != "text":
            raise DtypeError("generate: lm is an engine of a Standard model; wanted one of a TextSSMN.")
        if backend == "torch":
            raise BackendError("generate: an Engine runs on the engine only; give the model for backend='torch'.")
        return EngineRunner(lm, lock_of(lm), states, learning)
    model: Any = lm
    if not callable(lm):
        raise DtypeError(f"generate: lm is {type(lm).__name__}; wanted a TextSSMN or an Engine of one.")
    other_rounds = any(one is not None and one.chat_rounds is not None for one in learning)
    if backend == "torch" or (backend == "auto" and (other_rounds or why_not_engine(model) is not None)):
        return TorchRunner(model, states, learning)
    engine = engine_of(model)
    return EngineRunner(engine, lock_of(engine), states, learning)


def _prompts(given: Any, tokenizer: Tokenizer | None) -> list[list[int]]:
    """The prompts as lists of token numbers."""
    if isinstance(given, (str, bytes)):
        return [_prompt(given, tokenizer, "prompt_ids")]
    if isinstance(given, (list, tuple)) and given and not isinstance(given[0], (int, np.integer, float)):
        return [_prompt(one, tokenizer, f"prompt_ids[{row}]" if len(given) > 1 else "prompt_ids")
                for row, one in enumerate(given)]  # fmt: skip
    array = _numbers(given, "prompt_ids")
    if array.ndim == 2 and len(array):
        return [_prompt(row, tokenizer, "prompt_ids") for row in array]
    return [_prompt(array, tokenizer, "prompt_ids")]


def _prompt(given: Any, tokenizer: Tokenizer | None, name: str) -> list[int]:
    if isinstance(given, (str, bytes)):
        if tokenizer is None:
            raise DtypeError(
                f"generate: {name} is {type(given).__name__}; wanted token numbers: tokenizer.encode(text), or give "
                "tokenizer= as well."
            )
        given = tokenizer.encode(given)
    array = _numbers(given, name)
    if array.ndim != 1:
        raise ShapeError(f"generate: {name} has shape {list(array.shape)}; wanted [T], [B, T] or a list of B prompts.")
    if not array.size:
        raise RangeError(f"generate: {name} is empty; wanted at least one token to go on from.")
    return array.tolist()


def _numbers(given: Any, name: str) -> np.ndarray:
    array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    if array.size and array.dtype.kind not in "iu":
        raise DtypeError(f"generate: {name} has dtype {array.dtype}; wanted whole token numbers.")
    return array


def _require_tokenizer(given: Any) -> None:
    if given is not None and not callable(getattr(given, "stream_decoder", None)):
        raise DtypeError(
            f"generate: tokenizer is {type(given).__name__}; wanted a Tokenizer, such as Tokenizer.load(path)."
        )


def _vocabulary(lm: Any) -> int | None:
    """How many tokens the model has, as far as it says so."""
    return getattr(getattr(lm, "config", None), "vocab_size", None)


def _require_known(lm: Any, prompts: list[list[int]]) -> None:
    """Refuses tokens that the model does not have."""
    size = _vocabulary(lm)
    low, high = min(map(min, prompts)), max(map(max, prompts))
    if size is not None and not 0 <= low <= high < size:
        raise RangeError(
            f"generate: prompt_ids lie in [{low}, {high}]; wanted [0, {size - 1}] (vocab_size − 1); encode with the "
            "tokenizer that was saved with the model."
        )


def _states(given: Any, rows: int) -> list[StreamState | None]:
    """One state of one row, or None, per prompt."""
    if given is None:
        return [None] * rows
    if isinstance(given, StreamState):
        if given.batch_size != rows:
            way_out = "state.select([row])" if rows == 1 else "one row per prompt, or a list of states"
            raise ShapeError(f"generate: state has batch {given.batch_size}; wanted {_streams(rows)}: {way_out}.")
        return [given] if rows == 1 else [given.select([row]) for row in range(rows)]
    if not isinstance(given, (list, tuple)):
        raise StateError(
            f"generate: state is {type(given).__name__}; wanted a StreamState, a list of them, or None for a fresh one."
        )
    if len(given) != rows:
        raise ShapeError(f"generate: state has {len(given)} states; wanted {rows}, one per prompt.")
    for row, one in enumerate(given):
        if one is not None and not isinstance(one, StreamState):
            raise StateError(f"generate: state[{row}] is {type(one).__name__}; wanted a StreamState or None.")
        if one is not None and one.batch_size != 1:
            raise ShapeError(f"generate: state[{row}] has batch {one.batch_size}; wanted one stream.")
    return list(given)


def _learning(given: Any, rows: int) -> list[Plasticity | None]:
    """One setting of plain numbers, or None, per prompt."""
    if given is None:
        return [None] * rows
    if isinstance(given, Plasticity):
        return [*given.per_row(rows)]
    if not isinstance(given, (list, tuple)) or any(not isinstance(one, Plasticity | None) for one in given):
        raise DtypeError(
            "generate: plasticity is no ssmn.Plasticity; wanted one, or a list of one (or None) per prompt."
        )
    if len(given) != rows:
        raise ShapeError(f"generate: plasticity has {len(given)} settings; wanted {rows}, one per prompt.")
    return [None if one is None else one.per_row(1)[0] for one in given]


def _stop_tokens(given: Any, size: int | None) -> frozenset[int]:
    """The tokens that end a row, all of them in a vocabulary of `size`."""
    if given is None:
        return frozenset()
    numbers = given.tolist() if isinstance(given, (torch.Tensor, np.ndarray)) else given
    numbers = [numbers] if isinstance(numbers, (int, np.integer)) else numbers
    if isinstance(numbers, (str, bytes)) or not isinstance(numbers, Iterable) or not all(map(_is_whole, numbers)):
        raise DtypeError(f"generate: stop_tokens={given!r}; wanted token numbers (strings that end a row are stop=).")
    found = frozenset(map(int, numbers))
    if found and (min(found) < 0 or (size is not None and max(found) >= size)):
        end = "up" if size is None else f"to {size - 1} (vocab_size − 1)"
        raise RangeError(f"generate: stop_tokens={given!r}; wanted token numbers from 0 {end}.")
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _seeds(given: Any, rows: int) -> list[int]:
    if given is None:
        return torch.randint(2**62, [rows]).tolist()
    if isinstance(given, (list, tuple, np.ndarray)):
        if len(given) != rows:
            raise ShapeError(f"generate: seed has {len(given)} numbers; wanted {rows}, one per prompt.")
        seeds = list(given)
    else:
        seeds = [given + row for row in range(rows)] if _is_whole(given) else [given]
    for seed in seeds:
        if not _is_whole(seed) or seed < 0:
            raise RangeError(f"generate: seed={seed!r}; wanted a whole number from 0 up, or None.")
    return [int(seed) for seed in seeds]


def _streams(rows: int) -> str:
    return "one stream" if rows == 1 else f"{rows} streams"
