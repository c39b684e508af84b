"""The output memory: what it computes, on every backend; how it is switched on; what it does not touch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ssmn
from ssmn import ops
from ssmn.config import Backend, Plasticity, TextSSMNConfig
from ssmn.engine import Engine
from ssmn.errors import ConfigError, DtypeError, RangeError, ShapeError, StateError
from ssmn.layers import OutputMemory
from ssmn.models import TextSSMN, load_model
from ssmn.ops import backend_status
from ssmn.state import OutputMemoryState, StreamState
from tiny import text_model

FASTER = [name for name in get_args(Backend) if name in ("chunked", "native")]


def inputs(
    batch: int, time: int, tokens: int = 41, width: int = 7, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "logits": 2 * normal(batch, time, tokens),
        "keys": functional.normalize(normal(batch, time, width), dim=-1),
        "tokens": torch.randint(tokens, (batch, time), generator=generator),
        "eta": 2 * torch.rand(batch, time, generator=generator, dtype=torch.float64).to(dtype),
        "log_decay": -0.1 * torch.rand(batch, time, generator=generator, dtype=torch.float64).to(dtype),
    }


def test_three_steps_by_hand() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]])
    tokens, zeros = torch.tensor([[2, 0, 1]]), torch.zeros(1, 3)
    for backend in ("reference", *FASTER):
        adapted, state = ops.output_memory(
            torch.zeros(1, 3, 4), keys, tokens, eta=zeros + 2, log_decay=zeros + math.log(0.5), threshold=0.05,
            switch=0.1, backend=backend,  # type: ignore[arg-type]
        )  # fmt: skip
        # The first step predicts a quarter each; then the token 0 comes. Errors are shortened by 0.05.
        memory = torch.zeros(4, 2)
        memory[:, 0] = torch.tensor([2 * 0.7, -2 * 0.2, -2 * 0.2, -2 * 0.2])
        second = memory @ keys[0, 1]
        torch.testing.assert_close(adapted[0, 0], torch.zeros(4))
        # Both had said the same of the token 0: half of each is what comes out, a quarter without the memory.
        torch.testing.assert_close(adapted[0, 1].softmax(0), 0.5 * second.softmax(0) + 0.5 * 0.25)
        error = second.softmax(0) - torch.tensor([0.0, 1.0, 0.0, 0.0])
        error = error.sign() * (error.abs() - 0.05).clamp(min=0)
        memory = 0.5 * memory - 2 * torch.outer(error, keys[0, 1])
        third = (memory @ keys[0, 2]).softmax(0)
        # The token 1 was less likely with the memory: its weight falls, and a tenth of all weight is shared anew.
        corrected, plain = 0.5 * second.softmax(0)[1], 0.5 * torch.tensor(0.25)
        weight = 0.9 * corrected / (corrected + plain) + 0.05
        torch.testing.assert_close(adapted[0, 2].softmax(0), weight * third + (1 - weight) * 0.25)
        torch.testing.assert_close(state.memory[0], memory)
        torch.testing.assert_close(state.key, keys[:, 2])
        torch.testing.assert_close(state.prediction[0], third)
        torch.testing.assert_close(state.ratio[0], third.log() - math.log(0.25))
        torch.testing.assert_close(state.trust.sigmoid(), weight.unsqueeze(0))


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("time", [0, 1, 31, 32, 33, 100])
def test_faster_backends_do_what_the_reference_does(backend: Backend, time: int) -> None:
    if backend_status()[backend]:
        pytest.skip(f"{backend}: {backend_status()[backend]}")
    generator = torch.Generator().manual_seed(3)
    mask, reset = torch.rand(3, time, generator=generator) < 0.8, torch.rand(3, time, generator=generator) < 0.04
    start = ops.output_memory(**inputs(3, 9), backend="reference")[1]
    cases: list[dict[str, Any]] = [{}, {"mask": mask, "reset": reset}]
    for options in cases:
        want, final = ops.output_memory(**inputs(3, time), **options, initial_state=start, backend="reference")
        got, state = ops.output_memory(**inputs(3, time), **options, initial_state=start, backend=backend)
        assert float((got - want).abs().max() if time else 0) <= 2e-5 * max(1.0, float(want.abs().max() if time else 0))
        assert all(entry.relative <= 2e-5 for entry in final.diff(state))
        if "mask" in options and time:
            assert torch.equal(got[~mask], inputs(3, time)["logits"][~mask])


@pytest.mark.parametrize("backend", ["reference", *FASTER])
def test_packed_segments_are_streams(backend: Backend) -> None:
    if backend_status()[backend]:
        pytest.skip(f"{backend}: {backend_status()[backend]}")
    given = inputs(1, 60)
    bounds = [0, 0, 17, 60]
    start = ops.output_memory(**inputs(3, 9), backend="reference")[1]
    packed, final = ops.output_memory(**given, cu_seqlens=torch.tensor(bounds), initial_state=start, backend=backend)
    for n, (first, last) in enumerate(itertools.pairwise(bounds)):
        part: dict[str, Any] = {name: x[:, first:last] for name, x in given.items()}
        alone, state = ops.output_memory(**part, initial_state=start.select([n]), backend=backend)
        torch.testing.assert_close(packed[:, first:last], alone)
        assert all(entry.relative <= 1e-6 for entry in state.diff(final.select([n])))


@pytest.mark.parametrize("backend", ["reference", *FASTER])
@pytest.mark.parametrize("switch", [0.0, 1e-3])
def test_a_stream_never_loses_more_than_the_choice_costs(backend: Backend, switch: float) -> None:
    """Tokens that nobody can foresee and a memory that learns them by heart: alone it does harm without end."""
    if backend_status()[backend]:
        pytest.skip(f"{backend}: {backend_status()[backend]}")
    given, steps = inputs(2, 400), 399
    given["eta"] = torch.full((2, 400), 30.0)
    said = {"plain": given["logits"]}
    said["adapted"], state = ops.output_memory(**given, switch=switch, backend=backend)
    said["trusting"], _ = ops.output_memory(**given, switch=1.0, backend=backend)
    nats = {
        name: functional.cross_entropy(logits[:, :-1].transpose(1, 2), given["tokens"][:, 1:], reduction="none").sum(1)
        for name, logits in said.items()
    }
    bound = math.log(2) - steps * math.log1p(-switch / 2)
    assert (nats["adapted"] <= nats["plain"] + bound + 1e-3).all()
    assert (nats["trusting"] > nats["plain"] + 2 * bound).all()
    assert (state.trust < (-20 if switch == 0 else -1)).all()


def test_rounding_cannot_decide_what_is_written() -> None:
    """An error just above the threshold writes next to nothing: two ways to compute it cannot part."""
    state = dataclasses.replace(
        OutputMemoryState.fresh(1, 3, 1, torch.float32, "cpu"),
        key=torch.ones(1, 1), prediction=torch.tensor([[0.02, 0.02, 0.96]]),
    )  # fmt: skip
    given: dict[str, Any] = {"logits": torch.zeros(1, 1, 3), "keys": torch.ones(1, 1, 1), "tokens": torch.tensor([[2]])}
    steps: dict[str, Any] = {"eta": torch.ones(1, 1), "log_decay": torch.zeros(1, 1)}
    above = dataclasses.replace(state, prediction=state.prediction + torch.tensor([1e-6, 0.0, 0.0]))
    first, second = (ops.output_memory(**given, **steps, threshold=0.02, initial_state=s)[0] for s in (state, above))
    assert float((first - second).abs().max()) < 2e-6


def model(**options: Any) -> TextSSMN:
    torch.manual_seed(0)
    return TextSSMN(
        TextSSMNConfig(
            vocab_size=23, hidden_dim=16, num_layers=3, num_heads=2, window_size=6, output_memory=True, **options
        )
    ).eval()


def losses(lm: TextSSMN, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        logits, _ = lm(tokens[:, :-1], **options)
    return functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def test_it_learns_what_it_got_wrong() -> None:
    tokens = torch.randint(23, (2, 40), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    lm = model()
    adapted, plain = losses(lm, tokens), losses(lm, tokens, plasticity=Plasticity(output_eta=0.0))
    assert float(adapted[:, 80:].mean()) < float(plain[:, 80:].mean()) - 0.2
    rows = losses(lm, tokens, plasticity=Plasticity(output_eta=[0.0, lm.config.output_eta]))
    torch.testing.assert_close(rows, torch.stack([plain[0], adapted[1]]))


def test_without_learning_it_changes_nothing() -> None:
    lm = model()
    off = TextSSMN(TextSSMNConfig.from_dict({**lm.config.to_dict(), "output_memory": False}))
    off.load_state_dict(lm.state_dict())
    tokens = torch.randint(23, (2, 40))
    with torch.no_grad():
        y, state = lm(tokens, plasticity=Plasticity(output_eta=0.0))
        torch.testing.assert_close(y, off(tokens)[0], rtol=0, atol=0)
        _, state = lm(tokens, state)
        _, frozen = lm(tokens, state, plasticity=Plasticity(frozen=True))
    assert isinstance(state.head, OutputMemoryState)
    assert isinstance(frozen.head, OutputMemoryState)
    assert torch.equal(state.head.memory, frozen.head.memory)
    assert not torch.equal(state.head.prediction, frozen.head.prediction)


def test_reset_memory_empties_it() -> None:
    _, state = model()(torch.randint(23, (1, 12)))
    emptied = state.reset_memory().head
    assert emptied is not None
    assert not any(x.any() for x in emptied.named_tensors().values())


def test_gradients_take_it_for_a_constant() -> None:
    lm = model()
    tokens = torch.randint(23, (2, 12))
    logits, state = lm(tokens)
    functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:]).backward()
    assert lm.embedding.weight.grad is not None
    assert lm.embedding.weight.grad.abs().sum() > 0
    assert not any(x.requires_grad for x in state.head.named_tensors().values())  # type: ignore[union-attr]


def test_any_saved_model_can_have_one(tmp_path: Path) -> None:
    text_model().save_pretrained(tmp_path / "model")
    plain, adapting = load_model(tmp_path / "model"), load_model(tmp_path / "model", output_memory=True, output_eta=0.7)
    assert isinstance(adapting, TextSSMN)
    assert adapting.output_memory is not None
    assert adapting.output_memory.eta == 0.7
    tokens = torch.randint(256, (1, 30))
    _, state = adapting(tokens)
    state.save(tmp_path / "state.safetensors", adapting)
    assert StreamState.load(tmp_path / "state.safetensors", adapting).diff(state).identical
    with pytest.raises(StateError, match=r"config\.output_decay is 0\.0 in .* but absent in the model"):
        StreamState.load(tmp_path / "state.safetensors", plain)
    adapting.save_pretrained(tmp_path / "other")
    assert load_model(tmp_path / "other").config == adapting.config
    engine = Engine.load(tmp_path / "model", output_memory=True, output_eta=0.7)
    engine.load_state(0, tmp_path / "state.safetensors")
    assert engine.get_state(0).diff(state).identical


def test_a_model_without_one_is_what_it_was() -> None:
    assert not [name for name in text_model().config.to_dict() if name.startswith("output")]
    assert text_model().init_state(1).head is None
    with pytest.raises(StateError, match="the state has no part for the output memory; use"):
        model()(torch.zeros(1, 2, dtype=torch.int64), TextSSMN(TextSSMNConfig(
            vocab_size=23, hidden_dim=16, num_layers=3, num_heads=2, window_size=6)).init_state(1))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tokens": torch.zeros(2, 3)}, DtypeError, "tokens is torch.float32; wanted an int64 or int32 tensor"),
        ({"tokens": torch.zeros(2, 4, dtype=torch.int64)}, ShapeError, r"tokens has shape \[2, 4\]; wanted \[B, T\]"),
        ({"tokens": torch.full((2, 3), 41)}, RangeError, r"tokens lies in \[41, 41\]; wanted \[0, 40\]"),
        ({"eta": -torch.ones(2, 3)}, RangeError, r"eta lies in \[-1, -1\]"),
        ({"log_decay": torch.ones(2, 3)}, RangeError, r"log_decay lies in \[1, 1\]"),
        ({"threshold": 1.0}, RangeError, r"threshold=1.0; wanted a number in \[0, 1\)"),
        ({"switch": 1.5}, RangeError, r"switch=1.5; wanted a number in \[0, 1\]"),
        ({"keys": torch.zeros(2, 4, 7)}, ShapeError, r"keys has shape \[2, 4, 7\]"),
        ({"initial_state": torch.zeros(2)}, DtypeError, "initial_state is Tensor; wanted an OutputMemoryState"),
    ],
)
def test_what_it_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ops.output_memory(**{**inputs(2, 3), **change})


def test_settings_it_refuses() -> None:
    with pytest.raises(ConfigError, match=r"output_eta=-1.0; wanted 0 or more"):
        model(output_eta=-1.0)
    with pytest.raises(ConfigError, match=r"output_decay=1.0; wanted a share in \[0, 1\)"):
        model(output_decay=1.0)
    with pytest.raises(ConfigError, match=r"output_switch=1.5; wanted a share in \[0, 1\]"):
        model(output_switch=1.5)
    with pytest.raises(ConfigError, match="OutputMemory: decay=2; wanted a share"):
        OutputMemory(5, 4, decay=2)
    with pytest.raises(ConfigError, match=r"OutputMemory: switch=-1; wanted a share in \[0, 1\]"):
        OutputMemory(5, 4, switch=-1)
    with pytest.raises(RangeError, match=r"output_decay=1.0; wanted finite numbers in \[0, 1\)"):
        Plasticity(output_decay=1.0)
    with pytest.raises(ShapeError, match=r"output_eta has shape \[3\]; wanted a number or one per stream \[1\]"):
        model()(torch.zeros(1, 2, dtype=torch.int64), plasticity=Plasticity(output_eta=[1.0, 1.0, 1.0]))


def test_generation_goes_on_learning() -> None:
    lm = model()
    prompt = torch.randint(23, (30,)).tolist()
    steps = list(ssmn.generate(lm, prompt, max_new_tokens=5, temperature=0.0))
    tokens = [token for token, _ in steps]
    head = steps[-1][1].head
    assert isinstance(head, OutputMemoryState)
    with torch.no_grad():
        logits, _ = lm(torch.tensor([prompt + tokens[:-1]]))
    assert int(logits[0, -1].argmax()) == tokens[-1]
