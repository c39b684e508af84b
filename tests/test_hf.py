"""The model under the interfaces of Hugging Face transformers: the same numbers, by its own machinery."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason='the extra "hf" is not installed')
os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Trainer,
    TrainingArguments,
    pipeline,
)

import foreign
from ssmn.config import LONG_TERM, ConfigError, Plasticity, TextSSMNConfig
from ssmn.errors import FileError, MissingExtraError, ShapeError, StateError
from ssmn.generation import generate
from ssmn.interfaces.hf import SSMNForCausalLM, SSMNTextConfig, tokenizer_from_file
from ssmn.models import TextSSMN, load_model
from ssmn.state import StreamState
from ssmn.training import Tokenizer
from tiny import text_model

KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "all features": {
        "tie_embeddings": False, "semantic_encoder": True, "num_kv_heads": 1, "attention_sinks": True,
        "memory_heads": 2, "update_rule": "erase", "chat_rounds": 1, "write_threshold": 0.4,
    },
    "plastic only": {"layer_types": ("plastic",) * 3, "semantic_encoder": False},
    "static only": {"layer_types": ("static",) * 3},
    "window of one": {"window_size": 1},
}  # fmt: skip
VOCABULARY = 47


def make(kind: str = "usual") -> TextSSMN:
    torch.manual_seed(3)
    settings = {"vocab_size": VOCABULARY, "hidden_dim": 24, "num_layers": 3, "num_heads": 2, "window_size": 6}
    lm = TextSSMN(TextSSMNConfig.from_dict({**settings, **KINDS[kind]})).eval()
    if lm.encoder is not None:
        torch.nn.init.normal_(lm.encoder.down.weight, std=0.2)
    return lm


def ids(batch: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def assert_same(got: StreamState | None, want: StreamState, tolerance: float = 1e-5) -> None:
    assert got is not None
    assert all(part.relative <= tolerance for part in got.diff(want)), str(got.diff(want))


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> tuple[TextSSMN, SSMNForCausalLM]:
    lm = make(request.param)
    return lm, SSMNForCausalLM.from_ssmn(lm)


@pytest.fixture(scope="module")
def model() -> SSMNForCausalLM:
    return SSMNForCausalLM.from_ssmn(make())


# The same numbers


@torch.no_grad()
def test_logits_and_state_are_those_of_the_model(pair: tuple[TextSSMN, SSMNForCausalLM]) -> None:
    lm, hf = pair
    tokens = ids(3, 17)
    want, state = lm(tokens)
    out = hf(tokens)
    torch.testing.assert_close(out.logits, want, rtol=1e-5, atol=1e-5)
    assert_same(hf.stream_state(out.past_key_values), state)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(1, 2), (4, 5), (13, 14), (7, 16)])
def test_pieces_with_a_cache_are_the_whole(pair: tuple[TextSSMN, SSMNForCausalLM], cuts: tuple[int, ...]) -> None:
    lm, hf = pair
    tokens = ids(2, 17)
    want, state = lm(tokens)
    cache = DynamicCache(config=hf.config)
    logits = [hf(piece, past_key_values=cache).logits for piece in tokens.tensor_split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(logits, 1), want, rtol=1e-5, atol=1e-5)
    assert_same(hf.stream_state(cache), state)
    assert cache.get_seq_length() == 17


@torch.no_grad()
def test_padding_anywhere_is_absence(pair: tuple[TextSSMN, SSMNForCausalLM]) -> None:
    """On the left, on the right, and between two pieces that are read with a cache."""
    lm, hf = pair
    lengths, first, second = [(7, 5), (3, 9), (11, 1), (2, 2)], 11, 9
    whole = torch.full((4, first + second), 13)
    mask = torch.zeros_like(whole)
    texts = [ids(1, sum(both), seed)[0] for seed, both in enumerate(lengths)]
    for row, ((a, b), text) in enumerate(zip(lengths, texts, strict=True)):
        start, later = (first - a, first) if row % 2 else (0, first + second - b)
        whole[row, start : start + a], mask[row, start : start + a] = text[:a], 1
        whole[row, later : later + b], mask[row, later : later + b] = text[a:], 1
    out = hf(whole[:, :first], attention_mask=mask[:, :first])
    more = hf(whole[:, first:], attention_mask=mask, past_key_values=out.past_key_values)
    logits = torch.cat([out.logits, more.logits], 1)
    state = hf.stream_state(more.past_key_values)
    assert state is not None
    for row, text in enumerate(texts):
        want, alone = lm(text[None])
        torch.testing.assert_close(logits[row][mask[row].bool()], want[0], rtol=1e-5, atol=1e-5)
        assert_same(state.select([row]), alone)
    # Padding says what the step before it in the call said, and nothing where there is none.
    assert not out.logits[1, : first - 3].any()
    assert torch.equal(out.logits[0, 7:], out.logits[0, 6:7].expand(first - 7, -1))


@torch.no_grad()
def test_packed_sequences_start_fresh(model: SSMNForCausalLM) -> None:
    a, b = ids(1, 9, 1), ids(1, 4, 2)
    positions = torch.cat([torch.arange(9), torch.arange(4)])[None]
    packed = model(torch.cat([a, b], 1), position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(a).logits, model(b).logits], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_may_be_asked_for(model: SSMNForCausalLM) -> None:
    tokens = ids(2, 9)
    out = model(tokens, output_hidden_states=True, labels=tokens)
    assert [tuple(hidden.shape) for hidden in out.hidden_states] == [(2, 9, 24)] * 4
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(out.loss, loss)
    for kept in (2, torch.tensor([7, 8])):
        torch.testing.assert_close(model(tokens, logits_to_keep=kept).logits, out.logits[:, -2:])
    loss, logits = model(tokens, labels=tokens, return_dict=False, use_cache=False)
    torch.testing.assert_close(logits, out.logits)
    assert model(tokens, use_cache=False).past_key_values is None
    assert not torch.equal(model(tokens, plasticity=LONG_TERM).logits, out.logits)


# Generation


def test_greedy_generation_needs_no_cache_and_is_ours(pair: tuple[TextSSMN, SSMNForCausalLM]) -> None:
    lm, hf = pair
    prompt = ids(1, 8)
    options = {"max_new_tokens": 12, "do_sample": False}
    written = hf.generate(prompt, **options)
    assert torch.equal(written, hf.generate(prompt, use_cache=False, **options))
    assert written[0, 8:].tolist() == [token for token, _ in generate(lm, prompt, max_new_tokens=12, temperature=0)]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "top_p": 0.9}, {"prefill_chunk_size": 3}])
def test_other_generation_needs_no_cache(pair: tuple[TextSSMN, SSMNForCausalLM], options: dict[str, Any]) -> None:
    _, hf = pair
    prompt, written = ids(2, 8), []
    options = {"do_sample": False, "max_new_tokens": 10, **options}
    for use_cache in (True, False):
        if not use_cache:
            options.pop("prefill_chunk_size", None)
        torch.manual_seed(5)
        written.append(hf.generate(prompt, use_cache=use_cache, **options))
    assert torch.equal(*written)


def test_beams_carry_their_state(model: SSMNForCausalLM) -> None:
    """The state that comes with the best beam is the one that reading its text gives."""
    out = model.generate(
        ids(2, 8), max_new_tokens=9, num_beams=4, num_return_sequences=4, do_sample=False, return_dict_in_generate=True,
        output_scores=True, renormalize_logits=True,
    )  # fmt: skip
    with torch.no_grad():
        logits = model(out.sequences).logits.log_softmax(-1)
    scores = logits[:, 7:-1].gather(-1, out.sequences[:, 8:, None]).sum((1, 2)) / 9
    torch.testing.assert_close(out.sequences_scores, scores, rtol=1e-4, atol=1e-5)


def test_prompts_of_unequal_length_are_as_if_alone(pair: tuple[TextSSMN, SSMNForCausalLM]) -> None:
    _, hf = pair
    prompts = [ids(1, length, length) for length in (3, 11, 7)]
    batch = torch.cat([torch.cat([torch.zeros(1, 11 - x.shape[1], dtype=torch.int64), x], 1) for x in prompts])
    mask = torch.stack([(torch.arange(11) >= 11 - x.shape[1]).long() for x in prompts])
    options = {"max_new_tokens": 9, "do_sample": False}
    together = hf.generate(batch, attention_mask=mask, **options)[:, 11:]
    alone = torch.cat([hf.generate(x, **options)[:, -9:] for x in prompts])
    assert torch.equal(together, alone)


@torch.no_grad()
def test_generation_goes_on_from_padding_on_the_right(model: SSMNForCausalLM) -> None:
    prompts, options = [ids(1, 3, 5), ids(1, 7, 6)], {"max_new_tokens": 5, "do_sample": False}
    padded = torch.full((2, 7), 13)
    padded[0, :3], padded[1] = prompts[0][0], prompts[1][0]
    mask = torch.tensor([[1] * 3 + [0] * 4, [1] * 7])
    together = model.generate(padded, attention_mask=mask, **options)[:, 7:]
    assert torch.equal(together, torch.cat([model.generate(x, **options)[:, -5:] for x in prompts]))


def test_rows_that_have_ended_are_filled_with_padding(model: SSMNForCausalLM) -> None:
    prompts = ids(2, 6)
    free = model.generate(prompts, max_new_tokens=9, do_sample=False)
    end = int(free[0, 8])
    out = model.generate(prompts, max_new_tokens=9, do_sample=False, eos_token_id=end, pad_token_id=0)
    stop = free[0, 6:].tolist().index(end)
    assert torch.equal(out[0, : 7 + stop], free[0, : 7 + stop]) and not out[0, 7 + stop :].any()


def test_a_conversation_goes_on_with_its_cache(model: SSMNForCausalLM) -> None:
    options = {"max_new_tokens": 7, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(ids(1, 8), **options)
    longer = torch.cat([first.sequences, ids(1, 5, 9)], 1)
    second = model.generate(longer, past_key_values=first.past_key_values, **options)
    assert torch.equal(second.sequences, model.generate(longer, **options).sequences)


def test_plasticity_reaches_generation(model: SSMNForCausalLM) -> None:
    out = model.generate(
        ids(1, 8), max_new_tokens=5, plasticity=Plasticity(frozen=True), return_dict_in_generate=True, do_sample=False
    )
    state = model.stream_state(out.past_key_values)
    assert state is not None
    assert not state.layers[1].named_tensors()["memory"].any()


# The cache


@torch.no_grad()
def test_the_cache_is_transformers_own_and_keeps_its_size(model: SSMNForCausalLM) -> None:
    cache = DynamicCache(config=model.config)
    assert [type(layer).__name__ for layer in cache.layers] == [
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "LinearAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
    ]
    assert model.stream_state(cache) is None
    window, memory = (typing.cast("Any", layer) for layer in cache.layers[:2])
    shapes = []
    for time in (3, 8, 90):
        model(ids(2, time), past_key_values=cache)
        shapes.append([tuple(window.keys.shape), tuple(memory.recurrent_states[0].shape)])
    assert shapes == [[(2, 2, columns, 12), (2, 1, 24, 24)] for columns in (3, 5, 5)]
    assert cache.get_seq_length() == 101
    cache.reset()
    assert model.stream_state(cache) is None and cache.get_seq_length() == 0
    tokens = ids(2, 4)
    torch.testing.assert_close(model(tokens, past_key_values=cache).logits, model(tokens).logits)


def test_what_cannot_be_done_is_refused(model: SSMNForCausalLM) -> None:
    tokens = ids(1, 6)
    with pytest.raises(StateError, match=r"0 layers of other kinds.*wanted DynamicCache\(config=model.config\)"):
        model(tokens, past_key_values=DynamicCache())
    with pytest.raises(StateError, match="wanted DynamicCache"):
        model(tokens, past_key_values=((torch.zeros(1), torch.zeros(1)),))
    with pytest.raises(ShapeError, match="inputs_embeds was given; wanted input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, model.config.hidden_dim))
    with pytest.raises(StateError, match="wanted DynamicCache"):
        model.generate(tokens, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(tokens, max_new_tokens=2, prompt_lookup_num_tokens=2)
    with pytest.raises(ShapeError, match=r"attention_mask has shape \[1, 5\]; wanted \[1, at least 6\]"):
        model(tokens, attention_mask=torch.ones(1, 5))
    with pytest.raises(StateError, match="the state holds 1 streams but the input 2"):
        model(ids(2, 3), past_key_values=model(tokens).past_key_values)


def test_a_state_goes_from_a_cache_to_a_file_and_back(pair: tuple[TextSSMN, SSMNForCausalLM], tmp_path: Path) -> None:
    lm, hf = pair
    text, more = ids(1, 9), ids(1, 3, 7)
    with torch.no_grad():
        cache = hf(text).past_key_values
        state = hf.stream_state(cache)
        assert state is not None
        before = state.clone()
        hf(more, past_key_values=cache)
    assert before.diff(state).identical, "the state was written into by a later call"
    state.save(tmp_path / "state.safetensors", hf.to_ssmn())
    loaded = StreamState.load(tmp_path / "state.safetensors", lm)
    assert loaded.diff(state).identical
    assert hf.stream_state(hf.cache_of(loaded)).diff(loaded).identical  # type: ignore[union-attr]
    written = hf.generate(more, past_key_values=hf.cache_of(loaded), max_new_tokens=8, do_sample=False)
    wanted = [token for token, _ in generate(lm, more, state=loaded, max_new_tokens=8, temperature=0)]
    assert written[0, 3:].tolist() == wanted


def test_gradients_flow_through_the_cache() -> None:
    lm = make("all features")
    first, second = ids(2, 7), ids(2, 5, 1)
    _, state = lm(first)
    logits, _ = lm(second, state)
    logits.square().sum().backward()
    wanted = {name: weight.grad for name, weight in lm.named_parameters()}
    hf = SSMNForCausalLM.from_ssmn(lm)
    cache = DynamicCache(config=hf.config)
    hf(first, past_key_values=cache)
    hf(second, past_key_values=cache).logits.square().sum().backward()
    for name, weight in hf.named_parameters():
        want = wanted[name.removeprefix("model.").replace("lm_head", "output")]
        torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-4, msg=name)


# Files and conversion


def test_the_round_trip_is_exact(pair: tuple[TextSSMN, SSMNForCausalLM], tmp_path: Path) -> None:
    lm, hf = pair
    hf.save_pretrained(tmp_path / "hf")
    assert {file.name for file in (tmp_path / "hf").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(back, SSMNForCausalLM) and not back.training
    ours = back.to_ssmn()
    assert ours.config == lm.config
    ours.save_pretrained(tmp_path / "ours")
    for other in (ours, load_model(tmp_path / "ours")):
        weights = other.state_dict()
        assert weights.keys() == lm.state_dict().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in lm.state_dict().items())


def test_conversion_shares_the_weights(pair: tuple[TextSSMN, SSMNForCausalLM]) -> None:
    lm, hf = pair
    addresses = {parameter.data_ptr() for parameter in lm.parameters()}
    assert {parameter.data_ptr() for parameter in hf.parameters()} == addresses
    assert {parameter.data_ptr() for parameter in hf.to_ssmn().parameters()} == addresses
    assert (hf.lm_head.weight is hf.model.embedding.weight) == lm.config.tie_embeddings
    before = hf.model.embedding.weight.clone()
    hf.init_weights()  # what some tools call once more
    assert torch.equal(hf.model.embedding.weight, before)


def test_weights_load_in_another_dtype(tmp_path: Path, model: SSMNForCausalLM) -> None:
    model.save_pretrained(tmp_path)
    half: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.to_ssmn().embedding.weight.dtype == torch.bfloat16
    tokens = ids(1, 9)
    with torch.no_grad():
        wanted, state = make().to(torch.bfloat16)(tokens)
        out = half(tokens)
    torch.testing.assert_close(out.logits, wanted)
    # transformers leaves in float32 what was made so, the rates of decay: products of bfloat16 round elsewhere then.
    assert_same(half.stream_state(out.past_key_values), state, 1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_new_and_missing_weights_start_as_ours_do(tied: bool, tmp_path: Path) -> None:
    config = SSMNTextConfig(vocab_size=VOCABULARY, hidden_dim=24, num_layers=3, num_heads=2, tie_word_embeddings=tied)
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    lost = "model.blocks.1.mixer.decay.log_rate"
    kept = {name: tensor for name, tensor in weights.items() if ".1.mixer." not in name and "lm_head" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for hf in (fresh, AutoModelForCausalLM.from_pretrained(tmp_path)):
        memory = hf.model.blocks[1].mixer
        assert torch.equal(memory.key.weight, memory.query.weight)
        assert torch.equal(memory.output.weight, memory.value.weight.T)
        assert torch.equal(hf.get_parameter(lost), weights[lost])
        assert (hf.lm_head.weight is hf.model.embedding.weight) == tied
        assert 0.02 < hf.lm_head.weight.detach().std() < 1
    assert torch.equal(hf.model.embedding.weight, weights["model.embedding.weight"])


def test_every_setting_is_mirrored_and_stored(tmp_path: Path) -> None:
    config = make("all features").config
    mirror = SSMNTextConfig.from_ssmn(config)
    mirror.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    absent = {"layer_types", "output_memory", "output_eta", "output_decay", "output_switch"}
    names = {field.name for field in dataclasses.fields(TextSSMNConfig)} - absent | {"block_types"}
    assert names <= stored.keys()
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SSMNTextConfig) and loaded.to_ssmn() == mirror.to_ssmn() == config
    assert (loaded.hidden_size, loaded.num_hidden_layers, loaded.sliding_window) == (24, 3, 6)
    assert loaded.layer_types == ["hybrid_sliding", "linear_attention", "hybrid_sliding"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="output_memory=True; wanted False: the adapter for transformers does not run"
    ):
        SSMNTextConfig(vocab_size=9, output_memory=True)
    with pytest.raises(ConfigError, match="unknown setting 'decay_lamda'; did you mean 'decay_lambda'"):
        SSMNTextConfig(decay_lamda=0.1)
    with pytest.raises(ConfigError, match=r"num_heads=5; wanted a divisor of hidden_dim=24"):
        SSMNTextConfig(hidden_size=24, num_heads=5)
    config = SSMNTextConfig(hidden_size=24, num_heads=2)
    config.num_heads = 5
    with pytest.raises(ConfigError, match="num_heads=5"):
        config.to_ssmn()


@torch.no_grad()
def test_the_vocabulary_can_grow() -> None:
    lm = make()
    hf = SSMNForCausalLM.from_ssmn(lm)
    tokens = ids(1, 9)
    want = hf(tokens).logits
    hf.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    logits = hf(torch.cat([tokens, torch.tensor([[VOCABULARY + 4]])], 1)).logits
    torch.testing.assert_close(logits[:, :9, :VOCABULARY], want)
    assert logits.shape[-1] == hf.to_ssmn().config.vocab_size == VOCABULARY + 5
    assert lm.config.vocab_size == VOCABULARY


# Training


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant: bool) -> None:
    tokens, gradients = ids(2, 9), []
    for checkpointed in (False, True):
        hf = SSMNForCausalLM.from_ssmn(make("all features")).train()
        if checkpointed:
            hf.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert hf.is_activation_checkpointing
        out = hf(tokens, labels=tokens)
        assert out.past_key_values is None
        out.loss.backward()
        gradients.append({name: weight.grad for name, weight in hf.named_parameters()})
    for name, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], want, msg=name)


def test_trainer(tmp_path: Path) -> None:
    text = torch.arange(33) * 7 % VOCABULARY
    rows = [{"input_ids": row, "labels": row} for row in (text, text.flip(0)) * 16]
    hf = SSMNForCausalLM.from_ssmn(make())
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=4,
        save_steps=12, report_to=[], use_cpu=True, disable_tqdm=True, activation_checkpointing=True, seed=1,
        lr_scheduler_type="constant", per_device_eval_batch_size=3,
    )  # fmt: skip
    trainer = Trainer(model=hf, args=arguments, train_dataset=rows, eval_dataset=rows[:5])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < 0.5 * losses[0]
    back: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    with torch.no_grad():
        loss = back(text[None], labels=text[None]).loss + back(text.flip(0)[None], labels=text.flip(0)[None]).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss) / 2, rel=0.2)


# Text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes as transformers saves it, with its tokenizer."""
    out = tmp_path_factory.mktemp("text")
    Tokenizer.for_bytes().save(out / "tokenizer.json")
    SSMNForCausalLM.from_ssmn(text_model().eval()).save_pretrained(out)
    tokenizer_from_file(out).save_pretrained(out)
    return out


TEXTS = ["Hello, world", " two  spaces\n\tand a tab ", "naïve Ā – 漢字 🙂", "don't you 've 12,345"]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_tokenizer_encodes_and_decodes_the_same(kind: str, tmp_path: Path) -> None:
    ours = Tokenizer.for_bytes() if kind == "bytes" else Tokenizer.train_bpe(TEXTS * 5, 290)
    ours.save(tmp_path / "tokenizer.json")
    tokenizer_from_file(tmp_path / "tokenizer.json").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ours.encode(text).tolist()
        assert tokenizer.decode(ours.encode(text).tolist()) == text
    assert len(tokenizer) == ours.vocab_size
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()


@pytest.mark.parametrize("kind", foreign.KINDS)
def test_foreign_tokenizers_read_a_stream_there_as_they_do_here(kind: str, tmp_path: Path) -> None:
    ours = Tokenizer(foreign.KINDS[kind]())
    ours.save(tmp_path / "tokenizer.json")
    tokenizer_from_file(tmp_path).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The memory recalls né 日本, and it's now.", " two  spaces"):
        tokens = ours.encode(text).tolist()
        assert tokenizer(text)["input_ids"] == tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == ours.decode(tokens).strip()


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        tokenizer_from_file(tmp_path)


def test_text_generation_pipeline(folder: Path) -> None:
    generator = pipeline("text-generation", model=str(folder), device="cpu")
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    both = generator(["Hello", "What is a window?"], batch_size=2, **options)
    encoder = Tokenizer.for_bytes()
    for prompt, written in zip(["Hello", "What is a window?"], both, strict=True):
        tokens = [t for t, _ in generate(text_model().eval(), encoder.encode(prompt), max_new_tokens=6, temperature=0)]
        assert written[0]["generated_text"] == encoder.decode(tokens)


def test_lm_evaluation_harness(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums of log-probabilities are those of the model (`make check-hf` installs it: 600 MB)."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; `make check-hf` does it")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(Path(__file__).parent / "lm_eval_task")
    simple_evaluate = pkgutil.resolve_name("lm_eval:simple_evaluate")
    HFLM = pkgutil.resolve_name("lm_eval.models.huggingface:HFLM")
    TaskManager = pkgutil.resolve_name("lm_eval.tasks:TaskManager")

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", batch_size=3, max_length=512,
        prefix_token_id=10,
    )  # fmt: skip
    results = simple_evaluate(
        harness, tasks=["ssmn_capitals"], task_manager=TaskManager(include_path="."), bootstrap_iters=0
    )
    right, lm, encoder = 0, text_model().eval(), Tokenizer.for_bytes()
    for sample in results["samples"]["ssmn_capitals"]:
        likely = []
        for (got,), choice in zip(sample["resps"], sample["doc"]["choices"], strict=True):
            question, answer = (
                encoder.encode(x) for x in (f"The capital of {sample['doc']['country']} is", f" {choice}")
            )
            tokens = torch.tensor([[*question.tolist(), *answer.tolist()]])
            with torch.no_grad():
                logs = lm(tokens)[0].log_softmax(-1)[0, len(question) - 1 : -1]
            likely.append(float(logs.gather(-1, tokens[0, len(question) :, None]).sum()))
            assert got[0] == pytest.approx(likely[-1], abs=1e-3)
        right += likely.index(max(likely)) == sample["doc"]["answer"]
    assert results["results"]["ssmn_capitals"]["acc,none"] == right / 4


def test_without_the_extra_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "ssmn.interfaces.hf")
    with pytest.raises(MissingExtraError, match=r"ssmn\.interfaces\.hf: .*pip install 'sparse-stream\[hf\]'"):
        importlib.import_module("ssmn.interfaces.hf")
