"""What stands around the turns of a conversation: a model's own chat template, or plain strings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmn.errors import FileError

if TYPE_CHECKING:
    from ssmn.training.tokenizer import Tokenizer

_SAID, _ANSWERED, _SAID_NEXT = "\ue000said\ue000", "\ue000answered\ue000", "\ue000next\ue000"


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The strings around what is said and what is answered.

    A conversation reads `opening` once, then per turn `prefix`, what is said, `suffix`, the answer, and `ending`. The
    default is for a model without a template, which goes on from what it is given: a line, its continuation, an empty
    line.
    """

    opening: str = ""
    """Before the first turn of a fresh stream."""
    prefix: str = ""
    """Before what is said."""
    suffix: str = "\n"
    """Between what is said and the answer."""
    ending: str = "\n\n"
    """After the answer."""
    stop: tuple[str, ...] = ("\n\n",)
    """Strings that end an answer."""
    special: bool = field(default=False)
    """Whether the strings above may spell special tokens; those in `ending` then end an answer."""

    def stop_tokens(self, tokenizer: Tokenizer) -> list[int]:
        """The special tokens that end an answer."""
        if not self.special:
            return []
        return sorted(set(tokenizer.encode(self.ending, special=True).tolist()) & {*tokenizer.special_tokens.values()})

    @classmethod
    def of_folder(cls, folder: Path) -> Turns | None:
        """From the chat template in a model's folder, as Hugging Face's tools write it; None if there is none.

        The template is rendered a few times, in Jinja's sandbox, to learn what it puts around a turn; from then on the
        conversation needs no history. A template that looks at what is said, or counts turns, does not fit that.

        Raises:
            FileError: The template cannot be rendered, or puts no fixed strings around the turns.
        """
        file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        named: dict[str, Any] = {}
        try:
            if settings.is_file():
                named = json.loads(settings.read_text(encoding="utf-8"))
                if not isinstance(named, dict):
                    raise ValueError(f"{settings.name} holds {type(named).__name__}, wanted a JSON object")
            source = file.read_text(encoding="utf-8") if file.is_file() else named.get("chat_template")
        except (OSError, ValueError, RecursionError) as error:
            raise FileError(f"{folder}: the chat template cannot be read ({error}).") from error
        if not source:
            return None
        if not isinstance(source, str):
            raise FileError(f"{settings}: chat_template is {type(source).__name__}; wanted one template, as a string.")
        return _learned(source, named, folder)


def _learned(source: str, named: dict[str, Any], folder: Path) -> Turns:
    """The strings that a template puts around its turns."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def token(name: str) -> str:
        value = named.get(name) or ""
        return value.get("content", "") if isinstance(value, dict) else value

    names = {name: token(name) for name in ("bos_token", "eos_token")}
    said, answered = {"role": "user", "content": _SAID}, {"role": "assistant", "content": _ANSWERED}
    following = {"role": "user", "content": _SAID_NEXT}
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        template = environment.from_string(source)
        first, second = (
            template.render(messages=messages, add_generation_prompt=True, **names)
            for messages in ([said], [said, answered, following])
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise FileError(f"{folder}: the chat template cannot be rendered ({error}).") from error
    begin, found, suffix = first.partition(_SAID)
    rest = second.removeprefix(first).partition(_ANSWERED)
    between, found_next, suffix_next = rest[2].partition(_SAID_NEXT)
    if not (found and second.startswith(first) and not rest[0] and found_next and suffix_next == suffix):
        raise FileError(
            f"{folder}: the chat template does not put the same strings around every turn; give --prefix, --suffix and "
            "--ending instead."
        )
    # What begins every turn is what the first one's beginning and the string between two turns end with alike.
    shared = next(n for n in range(len(begin) + 1) if between.endswith(begin[n:]))
    prefix = begin[shared:]
    ending = between.removesuffix(prefix) if prefix else between
    return Turns(opening=begin[:shared], prefix=prefix, suffix=suffix, ending=ending, stop=(), special=True)
