"""Conversations: the state has read what was shown, however a turn ends, and templates say what stands around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken

import foreign
import ssmn.native
from ssmn.config import Plasticity
from ssmn.errors import FileError, RangeError
from ssmn.generation import Answer, Conversation, Sampling, Turns
from ssmn.generation.conversation import UNDO_TURNS
from ssmn.models import TextSSMN
from ssmn.training import Tokenizer
from tiny import text_model

BYTES = Tokenizer.for_bytes()
native = pytest.mark.skipif(not ssmn.native.status().available, reason="no native library")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("engine", marks=native)])


@pytest.fixture(scope="module")
def lm() -> TextSSMN:
    """A model that knows ASCII only: each of its tokens is a character."""
    return text_model(vocab_size=128)


def conversation_of(lm: TextSSMN, **options: Any) -> Conversation:
    return Conversation(lm, BYTES, **{"max_new_tokens": 12, "seed": 3, "turns": Turns(stop=()), **options})


def check_has_read(conversation: Conversation, lm: TextSSMN, text: str) -> None:
    """The state is the one of a stream that has read this text."""
    assert conversation.state is not None
    with torch.no_grad():
        _, wanted = lm(torch.tensor([list(text.encode())]))
    assert conversation.position == len(text.encode())
    assert max(entry.relative for entry in conversation.state.diff(wanted)) <= 1e-5


@backends
def test_the_state_has_read_what_was_shown(lm: TextSSMN, backend: Any) -> None:
    conversation = conversation_of(lm, backend=backend)
    read = ""
    for said in ("Hello", "and again"):
        answer = "".join(conversation.say(said))
        assert conversation.answer == Answer(answer, 12, "length")
        read += f"{said}\n{answer}\n\n"
        check_has_read(conversation, lm, read)


@backends
@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_an_answer_that_is_left_counts_as_far_as_it_was_shown(lm: TextSSMN, backend: Any, pieces: int) -> None:
    conversation = conversation_of(lm, backend=backend)
    answer = conversation.say("Hello")
    shown = "".join(next(answer) for _ in range(pieces))
    answer.close()
    if not pieces:  # it was never begun
        assert conversation.position == 0
        return
    assert conversation.answer is not None
    assert conversation.answer.finish == "interrupted"
    check_has_read(conversation, lm, f"Hello\n{shown}\n\n")


@backends
def test_an_answer_ends_before_its_stop_string(lm: TextSSMN, backend: Any) -> None:
    whole = "".join(conversation_of(lm, backend=backend).say("Hello"))
    stop = whole[6:8]
    conversation = conversation_of(lm, backend=backend, turns=Turns(stop=(stop,)))
    shown = "".join(conversation.say("Hello"))
    assert shown == whole[: whole.index(stop)]
    assert conversation.answer is not None
    assert (conversation.answer.text, conversation.answer.finish) == (shown, "stop")
    check_has_read(conversation, lm, f"Hello\n{shown}\n\n")


def test_half_a_stop_string_at_the_end_is_shown_and_half_a_character_is_not() -> None:
    class Speaker:
        """Writes these bytes after a prompt of two."""

        speech = "ab é".encode()

        def __call__(self, input_ids: Any, state: Any = None, *, plasticity: Any = None) -> Any:
            logits, after = model(input_ids, state)
            logits = torch.zeros_like(logits)
            logits[0, -1, self.speech[max(0, int(after.position) - 2) % 5]] = 9.0
            return logits, after

    model = text_model()
    options: dict[str, Any] = {"turns": Turns(stop=("b é!",), ending=""), "sampling": Sampling(temperature=0.0)}
    conversation = Conversation(Speaker(), BYTES, max_new_tokens=4, **options)
    assert "".join(conversation.say("?")) == "ab "
    check_has_read(conversation, model, "?\nab ")
    conversation = Conversation(Speaker(), BYTES, max_new_tokens=5, **options)
    assert "".join(conversation.say("?")) == "ab é"
    check_has_read(conversation, model, "?\nab é")


def test_turns_are_taken_back_one_by_one(lm: TextSSMN) -> None:
    conversation = conversation_of(lm, max_new_tokens=1)
    positions = [0]
    for _ in range(UNDO_TURNS + 2):
        list(conversation.say("x"))
        positions.append(conversation.position)
    for position in reversed(positions[2:-1]):
        assert conversation.undo()
        assert conversation.position == position
    assert not conversation.undo()
    assert conversation.read("a text") == 6
    assert conversation.undo()
    assert conversation.position == positions[2]
    conversation.state = None
    assert not conversation.undo()


def test_an_error_takes_the_turn_back(lm: TextSSMN) -> None:
    conversation = conversation_of(lm)
    list(conversation.say("Hello"))
    before = conversation.state
    conversation.max_new_tokens = 0
    with pytest.raises(RangeError, match="max_new_tokens=0"):
        list(conversation.say("again"))
    assert conversation.state is before
    silent = conversation_of(lm, turns=Turns(suffix=""))
    with pytest.raises(RangeError, match="say: the text is empty, and so are the strings around it"):
        silent.say("")


def test_answers_repeat_with_a_seed_and_learn_as_told(lm: TextSSMN) -> None:
    first, second = ("".join(conversation_of(lm).say("Hello")) for _ in range(2))
    assert first == second
    other = conversation_of(lm)
    assert "".join(other.say("Hello")) == first
    other.undo()
    assert "".join(other.say("Hello")) != first  # another try is another draw
    frozen = conversation_of(lm, plasticity=Plasticity(frozen=True))
    list(frozen.say("Hello"))
    assert frozen.state is not None
    assert not frozen.state.named_tensors()["layers.1.memory"].any()


TEMPLATE = """{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def folder_with(folder: Path, template: Any, **settings: Any) -> Path:
    values = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def test_a_chat_template_gives_the_strings_around_the_turns(tmp_path: Path) -> None:
    assert Turns.of_folder(tmp_path) is None
    folder = folder_with(tmp_path, TEMPLATE)
    wanted = Turns(
        opening="<s>",
        prefix="<|im_start|>user\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        ending="<|im_end|>\n",
        stop=(),
        special=True,
    )
    assert Turns.of_folder(folder) == wanted
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("im_", "on_"))
    turns = Turns.of_folder(folder)
    assert turns is not None
    assert turns.ending == "<|on_end|>\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nonsense", "the chat template cannot be rendered"),
        ("{{ raise_exception('no users') }}", r"cannot be rendered \(no users\)"),
        ("{{ messages | length }}{{ messages[0]['content'] }}", "does not put the same strings around every turn"),
        ("{{ messages.__class__.__mro__ }}{{ messages[0]['content'] }}", "the chat template"),
        ("{{ 1 / 0 }}", r"cannot be rendered \(division by zero\)"),
        ("{{ range(1000000000) | length }}", "cannot be rendered .*Range too big"),
        (["a"], "chat_template is list; wanted one template"),
    ],
)
def test_templates_that_do_not_fit_are_refused(template: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message):
        Turns.of_folder(folder_with(tmp_path, template))


def test_special_tokens_of_a_template_are_read_and_end_answers(tmp_path: Path) -> None:
    backend = foreign.byte_level()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<s>")])
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()))
    turns = Turns.of_folder(folder_with(tmp_path, TEMPLATE))
    assert turns is not None
    end = tokenizer.special_tokens["<|im_end|>"]
    assert turns.stop_tokens(tokenizer) == [end]
    assert Turns().stop_tokens(tokenizer) == []

    model = text_model(vocab_size=tokenizer.vocab_size)
    prompt = [
        *tokenizer.encode("<s><|im_start|>user\n", special=True),
        *tokenizer.encode("Hello<|im_end|>"),  # what is said cannot end a turn: it is text
        *tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n", special=True),
    ]
    assert prompt.count(end) == 1
    answer = [*tokenizer.encode("ab").tolist(), end]

    def lm(input_ids: Any, state: Any = None, *, plasticity: Any = None) -> Any:
        """Writes the answer after the prompt."""
        logits, after = model(input_ids, state)
        logits = torch.zeros_like(logits)
        logits[0, -1, answer[max(0, int(after.position) - len(prompt)) % len(answer)]] = 9.0
        return logits, after

    conversation = Conversation(lm, tokenizer, turns=turns, sampling=Sampling(temperature=0.0))
    assert "".join(conversation.say("Hello<|im_end|>")) == "ab"
    assert conversation.answer == Answer("ab", len(answer), "stop")
    ids = [*prompt, *answer[:-1], *tokenizer.encode("<|im_end|>\n", special=True)]
    with torch.no_grad():
        _, wanted = model(torch.tensor([[int(token) for token in ids]]))
    assert conversation.state is not None
    assert max(entry.relative for entry in conversation.state.diff(wanted)) <= 1e-5
