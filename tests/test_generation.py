"""The decode loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmn import generation
from ssmn.config import Plasticity
from ssmn.errors import DtypeError, RangeError, ShapeError
from ssmn.generation import generate
from ssmn.models import TextSSMN
from ssmn.state import StreamState
from tiny import text_model

PROMPT = [72, 101, 108, 108, 111]


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

    monkeypatch.setattr(generation, "PROMPT_PIECE", 8)
    assert [token for token, _ in generate(watched, text, max_new_tokens=9, seed=0)] == whole
    assert longest == 8


def test_plasticity_reaches_the_model(lm: TextSSMN) -> None:
    *_, (_, state) = generate(lm, PROMPT, max_new_tokens=2, seed=0, plasticity=Plasticity(frozen=True))
    assert not state.named_tensors()["layers.1.memory"].any()


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (RangeError, {"prompt": []}, "prompt_ids is empty; wanted at least one token"),
        (ShapeError, {"prompt": torch.ones(2, 3).long()}, r"prompt_ids has shape \[2, 3\]; wanted \[T\] or \[1, T\]"),
        (DtypeError, {"prompt": [0.5]}, r"prompt_ids has dtype torch.float32; wanted whole token numbers"),
        (DtypeError, {"prompt": [True]}, "prompt_ids has dtype torch.bool"),
        (RangeError, {"max_new_tokens": 0}, "max_new_tokens=0; wanted a whole number of at least 1"),
        (RangeError, {"temperature": -1.0}, "temperature=-1.0; wanted a number of 0 or more"),
        (RangeError, {"temperature": float("nan")}, "temperature=nan"),
        (RangeError, {"top_k": 0}, "top_k=0; wanted a whole number of at least 1, or None"),
        (RangeError, {"top_p": 0.0}, r"top_p=0.0; wanted a share in \(0, 1\]"),
        (RangeError, {"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    lm: TextSSMN, error: type[Exception], options: dict[str, Any], message: str
) -> None:
    prompt = options.pop("prompt", PROMPT)
    with pytest.raises(error, match=message):
        generate(lm, prompt, **options)


def test_a_batch_state_is_refused(lm: TextSSMN) -> None:
    with pytest.raises(ShapeError, match=r"state has batch 2; wanted one stream: state.select\(\[row\]\)"):
        generate(lm, PROMPT, state=lm.init_state(2))


def test_logits_that_are_not_finite_are_refused() -> None:
    lm = text_model()
    with torch.no_grad():
        lm.norm.weight.fill_(float("nan"))
    with pytest.raises(RangeError, match="logits are not finite; its weights or the given state are damaged"):
        next(generate(lm, PROMPT))
