"""The decode loop."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ssmn.native
from ssmn.config import LONG_TERM, Plasticity
from ssmn.engine import Engine
from ssmn.errors import BackendError, DtypeError, RangeError, ShapeError, StateError
from ssmn.generation import generate, kept, runners
from ssmn.models import TextSSMN
from ssmn.state import StreamState
from ssmn.training import Tokenizer
from tiny import row_model, text_model

PROMPT = [72, 101, 108, 108, 111]
BYTES = Tokenizer.for_bytes()
native = pytest.mark.skipif(not ssmn.native.status().available, reason="no native library")


@pytest.fixture(scope="module")
def lm() -> TextSSMN:
    return text_model()


def tokens_of(lm: TextSSMN, prompt: Any = PROMPT, **options: Any) -> list[int]:
    return [token for token, _ in generate(lm, prompt, **{"max_new_tokens": 9, "seed": 0, **options})]


def test_greedy_decoding_takes_the_likeliest_of_the_teacher_forced_pass(lm: TextSSMN) -> None:
    written = tokens_of(lm, temperature=0)
    logits, _ = lm(torch.tensor([PROMPT + written]))
    assert logits[0, len(PROMPT) - 1 : -1].argmax(-1).tolist() == written


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}, {"temperature": 1e-12}])
def test_narrow_sampling_is_greedy(lm: TextSSMN, options: dict[str, float]) -> None:
    assert tokens_of(lm, **options) == tokens_of(lm, temperature=0)


def test_a_seed_repeats_and_seeds_differ(lm: TextSSMN) -> None:
    assert tokens_of(lm, seed=3) == tokens_of(lm, seed=3)
    assert tokens_of(lm, seed=3) != tokens_of(lm, seed=4)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    tokens_of(lm, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_come_from_the_allowed_tokens(lm: TextSSMN) -> None:
    logits, _ = lm(torch.tensor([PROMPT]))
    ranked = logits[0, -1].softmax(-1).sort(descending=True)
    allowed = set(ranked.indices[: int((ranked.values.cumsum(0) < 0.3).sum()) + 1].tolist())
    assert {tokens_of(lm, max_new_tokens=1, seed=seed, top_p=0.3)[0] for seed in range(40)} <= allowed
    five = set(ranked.indices[:5].tolist())
    assert {tokens_of(lm, max_new_tokens=1, seed=seed, top_k=5)[0] for seed in range(40)} <= five


@pytest.mark.parametrize("prompt", [PROMPT, torch.tensor(PROMPT), torch.tensor([PROMPT]), torch.tensor(PROMPT).numpy()])
def test_prompts_of_every_form(lm: TextSSMN, prompt: Any) -> None:
    assert tokens_of(lm, prompt) == tokens_of(lm)


def test_the_state_has_read_up_to_its_token(lm: TextSSMN) -> None:
    steps = list(generate(lm, PROMPT, max_new_tokens=6, seed=0))
    positions = [state.position.item() for _, state in steps]
    assert positions == [len(PROMPT) + n for n in range(1, 7)]
    _, state = steps[2]
    written = [token for token, _ in steps]
    _, wanted = lm(torch.tensor([PROMPT + written[:3]]))
    for name, tensor in wanted.named_tensors().items():
        torch.testing.assert_close(state.named_tensors()[name], tensor.detach(), rtol=1e-4, atol=1e-5)


def test_going_on_from_a_state_is_going_on_with_the_text(lm: TextSSMN) -> None:
    text = list(range(40, 70))
    with torch.no_grad():
        _, state = lm(torch.tensor([text[:20]]))
    before = state.clone()
    assert tokens_of(lm, text[20:], state=state) == tokens_of(lm, text)
    assert all(
        torch.equal(a, b) for a, b in zip(state.named_tensors().values(), before.named_tensors().values(), strict=True)
    )


def test_long_prompts_are_read_in_pieces(lm: TextSSMN, monkeypatch: pytest.MonkeyPatch) -> None:
    text = list(range(40, 77))
    whole = tokens_of(lm, text)
    longest = 0

    def watched(input_ids: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, StreamState]:
        nonlocal longest
        longest = max(longest, input_ids.shape[1])
        return lm(input_ids, *rest, **options)

    monkeypatch.setattr(runners, "PROMPT_PIECE", 8)
    assert [token for token, _ in generate(watched, text, max_new_tokens=9, seed=0)] == whole
    assert longest == 8


def test_plasticity_reaches_the_model(lm: TextSSMN) -> None:
    *_, (_, state) = generate(lm, PROMPT, max_new_tokens=2, seed=0, plasticity=Plasticity(frozen=True))
    assert not state.named_tensors()["layers.1.memory"].any()


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (RangeError, {"prompt": []}, "prompt_ids is empty; wanted at least one token"),
        (
            ShapeError,
            {"prompt": torch.ones(2, 3, 1).long()},
            r"prompt_ids has shape \[2, 3, 1\]; wanted \[T\], ",
        ),
        (RangeError, {"prompt": [[1], []]}, r"prompt_ids\[1\] is empty; wanted at least one token"),
        (DtypeError, {"prompt": "abc"}, "prompt_ids is str; wanted token numbers: tokenizer.encode"),
        (DtypeError, {"prompt": [0.5]}, r"prompt_ids has dtype float64; wanted whole token numbers"),
        (DtypeError, {"prompt": [True]}, "prompt_ids has dtype bool"),
        (RangeError, {"max_new_tokens": 0}, "max_new_tokens=0; wanted a whole number of at least 1 .*read reads"),
        (RangeError, {"max_new_tokens": True}, "max_new_tokens=True; wanted a whole number of at least 1"),
        (RangeError, {"temperature": -1.0}, "temperature=-1.0; wanted a number of 0 or more"),
        (RangeError, {"temperature": float("nan")}, "temperature=nan"),
        (RangeError, {"top_k": 0}, "top_k=0; wanted a whole number of at least 1, or None"),
        (RangeError, {"top_p": 0.0}, r"top_p=0.0; wanted a share in \(0, 1\]"),
        (RangeError, {"top_p": 1.5}, "top_p=1.5"),
        (RangeError, {"min_p": 0}, r"min_p=0; wanted a share in \(0, 1\]"),
        (RangeError, {"repetition_penalty": 0.0}, "repetition_penalty=0.0; wanted a number above 0; 1 is none"),
        (RangeError, {"repetition_window": 0}, "repetition_window=0; wanted a whole number of at least 1, or None"),
        (DtypeError, {"stop": ["a"]}, "stop strings need the text of the tokens; give tokenizer="),
        (RangeError, {"stop": ["a", ""], "tokenizer": BYTES}, "a stop string is empty"),
        (DtypeError, {"stop": [3], "tokenizer": BYTES}, "a stop string is int; wanted str"),
        (DtypeError, {"stop": b"a", "tokenizer": BYTES}, "stop is bytes; wanted a string, or a list of strings"),
        (DtypeError, {"stop": 3, "tokenizer": BYTES}, "stop is int; wanted a string, or a list of strings"),
        (DtypeError, {"stop_tokens": [1.7]}, r"stop_tokens=\[1.7\]; wanted token numbers \(strings .* are stop="),
        (DtypeError, {"stop_tokens": "</s>"}, "stop_tokens='</s>'; wanted token numbers"),
        (DtypeError, {"stop_tokens": True}, "stop_tokens=True; wanted token numbers"),
        (RangeError, {"stop_tokens": 256}, r"stop_tokens=256; wanted token numbers from 0 to 255 \(vocab_size"),
        (RangeError, {"stop_tokens": [3, -1]}, r"stop_tokens=\[3, -1\]; wanted token numbers from 0"),
        (DtypeError, {"tokenizer": "model"}, r"tokenizer is str; wanted a Tokenizer, such as Tokenizer.load"),
        (RangeError, {"seed": True}, "seed=True; wanted a whole number from 0 up, or None"),
        (RangeError, {"seed": -1}, "seed=-1; wanted a whole number from 0 up, or None"),
        (RangeError, {"seed": 0.5}, "seed=0.5; wanted a whole number"),
        (ShapeError, {"seed": [1, 2]}, "seed has 2 numbers; wanted 1, one per prompt"),
        (RangeError, {"backend": "gpu"}, "backend='gpu'; wanted auto, engine or torch"),
        (StateError, {"state": 3}, "state is int; wanted a StreamState, a list of them, or None"),
        (StateError, {"state": [3]}, r"state\[0\] is int; wanted a StreamState or None"),
        (ShapeError, {"state": [None, None]}, "state has 2 states; wanted 1, one per prompt"),
        (DtypeError, {"plasticity": 3}, "plasticity is no ssmn.Plasticity; wanted one, or a list"),
        (ShapeError, {"plasticity": [None, None]}, "plasticity has 2 settings; wanted 1, one per prompt"),
        (ShapeError, {"plasticity": Plasticity(eta_scale=[1, 2])}, r"eta_scale has 2 numbers; wanted one, or one per"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    lm: TextSSMN, error: type[Exception], options: dict[str, Any], message: str
) -> None:
    prompt = options.pop("prompt", PROMPT)
    with pytest.raises(error, match=message):
        generate(lm, prompt, **options)


SHIPPED = Path(ssmn.__file__).parent / "demo" / "assets" / "model"


@pytest.fixture(scope="module")
def shipped() -> TextSSMN:
    return TextSSMN.from_pretrained(SHIPPED).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(SHIPPED / "tokenizer.json")


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "penalised": {"temperature": 0, "repetition_penalty": 1.3},
    "long-term": {"temperature": 0, "plasticity": LONG_TERM},
    "frozen": {"temperature": 0, "plasticity": Plasticity(frozen=True)},
    "threshold": {"temperature": 0, "plasticity": Plasticity(write_threshold=0.3, eta_scale=1.5, decay_scale=2.0)},
    "sampled": {"temperature": 0.9, "top_p": 0.95, "seed": 1},
    "sampled-narrow": {"top_k": 30, "min_p": 0.02, "repetition_penalty": 1.1, "seed": 2},
}


@native
@pytest.mark.parametrize("name", SETTINGS)
def test_engine_and_torch_write_the_same(shipped: TextSSMN, tokenizer: Tokenizer, name: str) -> None:
    prompt = tokenizer.encode("The import statement combines two operations; it ")
    length = 512 if name == "greedy" else 150
    written = [
        [token for token, _ in generate(shipped, prompt, max_new_tokens=length, backend=backend, **SETTINGS[name])]
        for backend in ("engine", "torch")
    ]
    assert len(written[0]) == length
    assert written[0] == written[1]


@pytest.mark.parametrize("backend", ["torch", pytest.param("engine", marks=native)])
def test_rows_of_a_batch_are_as_if_alone(lm: TextSSMN, backend: Any) -> None:
    prompts = [PROMPT, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [200], [65, 66]]
    learning = [None, Plasticity(frozen=True), LONG_TERM, Plasticity(eta_scale=0.5)]
    with torch.no_grad():
        _, before = lm(torch.tensor([[9, 8, 7]]))
    states = [None, before, None, before]
    # A token of the second row ends it early; the others go on.
    alone = [
        list(generate(lm, p, state=s, plasticity=q, seed=5 + row, max_new_tokens=9, backend=backend))
        for row, (p, s, q) in enumerate(zip(prompts, states, learning, strict=True))
    ]
    stop = alone[1][3].token
    rows: list[list[Any]] = [[], [], [], []]
    options: dict[str, Any] = {"state": states, "plasticity": learning, "stop_tokens": stop, "backend": backend}
    for step in generate(lm, prompts, seed=5, max_new_tokens=9, **options):
        rows[step.row].append(step)
    for row, wanted in zip(rows, alone, strict=True):
        tokens = [token for token, _ in wanted]
        end = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert [step.token for step in row] == tokens[:end]
        assert [step.finish for step in row[:-1]] == [None] * (end - 1)
        assert row[-1].finish == ("stop token" if stop in tokens else "length")
        difference = row[-1].state.diff(wanted[end - 1].state)
        assert max(entry.relative for entry in difference) <= 1e-5


@pytest.mark.parametrize("backend", ["torch", pytest.param("engine", marks=native)])
def test_kept_states_are_what_they_were(lm: TextSSMN, backend: Any) -> None:
    steps = list(generate(lm, [PROMPT, [3]], max_new_tokens=12, seed=0, backend=backend))
    row = [step for step in steps if step.row == 0]
    text = PROMPT + [step.token for step in row]
    for place in (7, 2, 5, 11):  # not in the order in which they were written
        with torch.no_grad():
            _, wanted = lm(torch.tensor([text[: len(PROMPT) + place + 1]]))
        state = row[place].state
        assert isinstance(state, StreamState)
        assert max(entry.relative for entry in state.diff(wanted)) <= 1e-5
    state = row[4].state
    again = [step.token for step in generate(lm, [row[5].token], state=state, temperature=0, max_new_tokens=3)]
    fork, _ = state.fork(2)
    assert again == [token for token, _ in generate(lm, [row[5].token], state=fork, temperature=0, max_new_tokens=3)]
    assert state.reset_memory().position.item() == len(PROMPT) + 5


def test_a_list_of_one_is_one_and_a_table_is_a_batch(lm: TextSSMN) -> None:
    assert tokens_of(lm, [PROMPT]) == tokens_of(lm)
    table = torch.tensor([PROMPT, PROMPT])
    rows = [step.row for step in generate(lm, table, max_new_tokens=2, seed=0, state=lm.init_state(2))]
    assert rows == [0, 1, 0, 1]


class TestText:
    """Text of the steps, stop strings and stop tokens, with a model that always says the same."""

    SPEECH = "one é two\n\nthree"

    @staticmethod
    def speaker(speech: bytes) -> Any:
        """A model that writes the bytes after whatever it has read, one after the other."""

        def lm(ids: Tensor, state: Any = None, *, plasticity: Any = None) -> Any:
            position = (0 if state is None else int(state.position)) + ids.shape[1]
            logits = torch.zeros(1, ids.shape[1], 256)
            logits[0, -1, speech[(position - 1) % len(speech)]] = 50.0
            return logits, StreamState(None, (), None, torch.tensor([position]))

        return lm

    def said(self, **options: Any) -> tuple[list[str], Any]:
        lm = self.speaker(self.SPEECH.encode())
        steps = list(generate(lm, "?", tokenizer=BYTES, temperature=0, **{"max_new_tokens": 17, **options}))
        return [step.text for step in steps], steps[-1]

    def test_characters_come_whole(self) -> None:
        texts, last = self.said()
        assert "".join(texts) == self.SPEECH
        assert texts[4:6] == ["", "é"]
        assert last.finish == "length"

    def test_an_unfinished_character_is_shown_at_the_end(self) -> None:
        texts, _ = self.said(max_new_tokens=5)
        assert texts[-1] == "\ufffd"

    @pytest.mark.parametrize("stop", ["\n\n", ["xyz", "\n\nth", "\n\n"]])
    def test_stop_strings_across_tokens(self, stop: Any) -> None:
        texts, last = self.said(stop=stop)
        assert "".join(texts) == "one é two"
        assert last.finish == "stop string"
        assert int(last.state.position) == 1 + len("one é two\n\n".encode())

    def test_what_might_have_been_a_stop_string_comes_in_the_end(self) -> None:
        texts, last = self.said(stop="two\n\nfour", max_new_tokens=13)
        assert "".join(texts) == "one é two\n\nt"
        assert texts[-1] == "two\n\nt"
        texts, last = self.said(stop="two\n\nfour", max_new_tokens=12)
        assert "".join(texts) == "one é two\n\n"
        assert texts[-1] == "two\n\n"
        assert last.finish == "length"

    def test_stop_tokens_have_no_text(self) -> None:
        texts, last = self.said(stop_tokens=[ord("w"), ord("z")])
        assert "".join(texts) == "one é t"
        assert (last.token, last.finish, last.text) == (ord("w"), "stop token", "")

    @pytest.mark.parametrize("ends", [ord("w"), [ord("w")], np.array([ord("w")]), torch.tensor(ord("w")), {ord("w")}])
    def test_stop_tokens_of_every_form(self, ends: Any) -> None:
        assert "".join(self.said(stop_tokens=ends)[0]) == "one é t"

    def test_none_stops_nothing(self) -> None:
        texts, last = self.said(stop=None, stop_tokens=None, max_new_tokens=np.int64(17))
        assert "".join(texts) == self.SPEECH
        assert last.finish == "length"


def test_the_penalty_ends_a_loop(lm: TextSSMN) -> None:
    plain = tokens_of(lm, temperature=0, max_new_tokens=40)
    punished = tokens_of(lm, temperature=0, max_new_tokens=40, repetition_penalty=50.0)
    assert len(set(punished)) == 40 > len(set(plain))
    assert not set(punished) & set(PROMPT)
    forgiven = tokens_of(lm, temperature=0, max_new_tokens=40, repetition_penalty=50.0, repetition_window=3)
    assert len(set(forgiven)) < 40


@native
class TestEngine:
    """What is particular to the engine under `generate`."""

    def test_it_is_packed_once_and_again_when_a_weight_changes(self) -> None:
        lm = text_model()
        first = kept.engine_of(lm)
        tokens_of(lm)
        assert kept.engine_of(lm) is first
        changes: list[Any] = [
            lambda: lm.norm.weight.data.mul_(1.5),
            lambda: lm.embedding.weight.data.neg_(),
            lambda: lm.embedding.weight.data.copy_(lm.embedding.weight.data.flip(0)),
            lambda: lm.load_state_dict(text_model(4).state_dict()),
            lambda: lm.blocks[0].ffn.down.weight.data.view(-1)[7:8].add_(1e-7),
        ]
        for change in changes:
            before = kept.engine_of(lm)
            change()
            assert kept.engine_of(lm) is not before
            assert tokens_of(lm, temperature=0) == tokens_of(lm, temperature=0, backend="torch")

    def test_it_goes_with_its_model(self) -> None:
        lm = text_model()
        engine = weakref.ref(kept.engine_of(lm))
        del lm
        gc.collect()
        assert engine() is None

    def test_models_that_it_does_not_run_take_torch(self, lm: TextSSMN) -> None:
        def refuse(model: Any, reason: str) -> None:
            assert len(list(generate(model, PROMPT, max_new_tokens=2))) == 2
            with pytest.raises(BackendError, match=f"the engine cannot run this model: {reason}.*use backend='torch'"):
                generate(model, PROMPT, backend="engine")

        refuse(text_model().double(), "blocks.0.mixer_norm.weight is torch.float64, and it computes in float32")
        refuse(text_model().bfloat16(), "blocks.0.mixer_norm.weight is torch.bfloat16")
        refuse(lambda *words, **options: lm(*words, **options), "it is function, not a plain TextSSMN")
        hooked = text_model()
        seen: list[Any] = []
        hooked.blocks[1].register_forward_hook(lambda *_: seen.append(1))
        refuse(hooked, r"blocks.1 has a forward hook")
        assert seen

    def test_without_the_library_torch_writes(self, lm: TextSSMN, monkeypatch: pytest.MonkeyPatch) -> None:
        missing = ssmn.native.NativeStatus(False, "there is none")
        monkeypatch.setattr(kept.native, "status", lambda: missing)
        assert tokens_of(lm)
        with pytest.raises(BackendError, match="there is none"):
            generate(lm, PROMPT, backend="engine")

    def test_a_given_engine_is_used_and_its_streams_are_left_alone(self, lm: TextSSMN) -> None:
        engine = Engine(lm, streams=2)
        engine.step([1, 2])
        before = engine.get_state(1)
        assert tokens_of(engine, temperature=0) == tokens_of(lm, temperature=0)  # type: ignore[arg-type]
        *_, (_, state) = generate(engine, [4], state=before, max_new_tokens=2, temperature=0)
        assert state.position.item() == 4
        assert engine.get_state(1).diff(before).identical
        assert engine.streams == 2
        small = Engine(lm, dtype="int8")
        assert len(tokens_of(small)) == 9  # type: ignore[arg-type]
        with pytest.raises(BackendError, match="an Engine runs on the engine only"):
            generate(engine, PROMPT, backend="torch")
        with pytest.raises(DtypeError, match="an engine of a Standard model"):
            generate(Engine(row_model()), PROMPT)

    def test_generations_take_turns_between_threads(self, lm: TextSSMN) -> None:
        wanted = [tokens_of(lm, seed=seed, max_new_tokens=60) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda seed: tokens_of(lm, seed=seed, max_new_tokens=60), range(4)))
        assert found == wanted


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(DtypeError, match="lm is str; wanted a TextSSMN or an Engine of one"):
        generate("model", PROMPT)  # type: ignore[arg-type]


def test_no_seed_follows_torch(lm: TextSSMN) -> None:
    torch.manual_seed(3)
    first = tokens_of(lm, seed=None)
    torch.manual_seed(3)
    assert tokens_of(lm, seed=None) == first != tokens_of(lm, seed=None)


def test_a_batch_state_is_refused(lm: TextSSMN) -> None:
    with pytest.raises(ShapeError, match=r"state has batch 2; wanted one stream: state.select\(\[row\]\)"):
        generate(lm, PROMPT, state=lm.init_state(2))


def test_logits_that_are_not_finite_are_refused() -> None:
    lm = text_model()
    with torch.no_grad():
        lm.norm.weight.fill_(float("nan"))
    with pytest.raises(RangeError, match="logits are not finite; its weights or the given state are damaged"):
        next(generate(lm, PROMPT))


def test_other_rounds_of_chat_are_computed_by_torch() -> None:
    lm = text_model(chat_rounds=2)
    settings = Plasticity(chat_rounds=1)
    made = [step.token for step in generate(lm, [3, 1, 3], max_new_tokens=6, temperature=0.0, plasticity=settings)]
    fewer = lm.with_chat_rounds(1)
    assert made == [step.token for step in generate(fewer, [3, 1, 3], max_new_tokens=6, temperature=0.0)]
