"""A conversation: turns that go on from one state, whose state has read exactly what was shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from ssmn.config import Plasticity
from ssmn.engine import Engine
from ssmn.errors import RangeError
from ssmn.generation.loop import Backend, TextOut, generate, read
from ssmn.generation.runners import LanguageModel
from ssmn.generation.sampling import Sampling
from ssmn.generation.turns import Turns
from ssmn.state import StreamState

if TYPE_CHECKING:
    from ssmn.training.tokenizer import Tokenizer

UNDO_TURNS = 16
"""Turns that can be taken back; each keeps one state."""


@dataclass(frozen=True)
class Answer:
    """What became of one turn."""

    text: str
    """As far as it was shown."""
    tokens: int
    """Tokens written, those that were not shown included."""
    finish: Literal["length", "stop", "interrupted"]
    """Why it ended."""


class Conversation:
    """Turns with a model, in constant memory: there is no history, only the state.

    After a turn the state has read what was said, the answer as far as it was shown, and the strings around them,
    whether the answer ended by itself, at its longest, or because nobody wanted more of it.

    Args:
        lm: A `TextSSMN` or an `Engine` of one.
        tokenizer: The model's.
        state: Where to go on from; None = fresh.
        turns: The strings around the turns.
        sampling: How tokens are drawn.
        max_new_tokens: The longest answer.
        seed: Makes the answers repeatable; None = torch's global generator.
        plasticity: How strongly to learn and forget; may be changed between turns.
        backend: As in `generate`.

    Example:
        >>> import ssmn
        >>> from ssmn.generation import Conversation
        >>> from ssmn.training import Tokenizer
        >>> lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=128))
        >>> conversation = Conversation(lm, Tokenizer.for_bytes(), max_new_tokens=5, seed=0)
        >>> answer = "".join(conversation.say("Hello"))
        >>> conversation.position == len(f"Hello\\n{answer}\\n\\n".encode())
        True
        >>> conversation.undo(), conversation.position
        (True, 0)
    """

    def __init__(
        self,
        lm: LanguageModel | Engine,
        tokenizer: Tokenizer,
        *,
        state: StreamState | None = None,
        turns: Turns | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 128,
        seed: int | None = None,
        plasticity: Plasticity | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.lm, self.tokenizer = lm, tokenizer
        self.backend: Backend = backend
        self.turns = turns or Turns()
        self.sampling = sampling or Sampling()
        self.max_new_tokens, self.seed, self.plasticity = max_new_tokens, seed, plasticity
        self.answer: Answer | None = None
        """What became of the last turn."""
        self._state = state
        self._before: deque[StreamState | None] = deque(maxlen=UNDO_TURNS)
        self._said = 0

    @property
    def state(self) -> StreamState | None:
        """The present state; None before anything was read. Assigning one goes on from there, with nothing to undo."""
        return self._state

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self._state, self.answer = state, None
        self._before.clear()

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return 0 if self._state is None else int(self._state.position)

    def say(self, text: str) -> Generator[str, None, None]:
        """Says something and writes the answer, piece by piece.

        To stop an answer, leave the iterator (`close()`, or break and drop it), or interrupt it: it ends there, and the
        turn counts as far as it was given out. An error takes the turn back.

        Args:
            text: What is said.

        Returns:
            The pieces of the answer.

        Raises:
            RangeError: There is nothing to read: the text and the strings before the answer are empty.
        """
        prompt = self._tokens(text)
        if not prompt:
            raise RangeError("say: the text is empty, and so are the strings around it; say something.")
        return self._turn(prompt)

    def read(self, text: str) -> int:
        """Reads a text as it is, without an answer; it can be undone like a turn. Returns the number of its tokens."""
        tokens = self.tokenizer.encode(text).tolist()
        self._settle(self._read(self._state, tokens), None)
        return len(tokens)

    def undo(self) -> bool:
        """Takes the last turn back; False if there is none to take back (any more)."""
        if not self._before:
            return False
        self._state, self.answer = self._before.pop(), None
        return True

    def _tokens(self, text: str) -> list[int]:
        turns = self.turns
        before = turns.prefix if self.position else turns.opening + turns.prefix
        parts = (self._affix(before), self.tokenizer.encode(text).tolist(), self._affix(turns.suffix))
        return [token for part in parts for token in part]

    def _affix(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=self.turns.special).tolist()

    def _turn(self, prompt: list[int]) -> Generator[str, None, None]:
        out, stop_tokens = TextOut(self.tokenizer, self.turns.stop), self.turns.stop_tokens(self.tokenizer)
        shown: list[str] = []
        clear, tail, count = None, "", 0
        finish: Literal["length", "stop", "interrupted"] = "interrupted"
        seed = None if self.seed is None else self.seed + self._said
        self._said += 1
        try:
            for step in generate(
                self.lm,
                prompt,
                state=self._state,
                max_new_tokens=self.max_new_tokens,
                seed=seed,
                plasticity=self.plasticity,
                backend=self.backend,
                **asdict(self.sampling),
            ):
                count += 1
                if step.token in stop_tokens:
                    finish = "stop"
                    break
                piece = out.push(step.token)
                # `clear` is the state up to which everything read has been shown; `tail` what was shown since.
                clear, tail = (step.state, "") if out.is_clear and out.found is None else (clear, tail + piece)
                shown.append(piece)
                if piece:
                    yield piece
                if out.found is not None:
                    finish = "stop"
                    break
            else:
                finish = "length"
            if out.held:
                tail += out.held
                shown.append(out.held)
                yield out.held
        except (GeneratorExit, KeyboardInterrupt):
            self._end(prompt, clear, tail, Answer("".join(shown), count, "interrupted"))
            raise
        self._end(prompt, clear, tail, Answer("".join(shown), count, finish))

    def _end(self, prompt: list[int], clear: StreamState | None, tail: str, answer: Answer) -> None:
        """Brings the state to where it has read what was shown, and the turn's end."""
        state = self._read(self._state, prompt) if clear is None else clear
        rest = [*self.tokenizer.encode(tail).tolist(), *self._affix(self.turns.ending)]
        self._settle(self._read(state, rest), answer)

    def _read(self, state: StreamState | None, tokens: list[int]) -> StreamState | None:
        if not tokens:
            return state
        return read(self.lm, tokens, state=state, plasticity=self.plasticity, backend=self.backend)

    def _settle(self, state: StreamState | None, answer: Answer | None) -> None:
        # A state that `generate` gave out is fetched here: later it would keep the whole answer alive.
        fetched = None if state is None else StreamState(state.front, state.layers, state.head, state.position)
        self._before.append(self._state)
        self._state, self.answer = fetched, answer
