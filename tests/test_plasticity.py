"""Learning rate, forgetting and importance, tuned per call and per stream without touching the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ssmn
from laws import ModelSubject, assert_close, assert_identical, randomised
from ssmn.config import Plasticity, SSMNConfig, TextSSMNConfig, UpdateRule, default_decay_lambda
from ssmn.errors import ConfigError, RangeError
from ssmn.layers import DecayGate, SynapticMemory
from ssmn.models import SSMN, TextSSMN
from ssmn.state import PlasticState, StreamState

B, T, D, H = 2, 70, 12, 3
K = D // H


def memory(**settings: Any) -> SynapticMemory:
    """A layer in float64 whose gates depend on the data."""
    layer = SynapticMemory(D, H, **settings)
    randomised(layer, torch.float64)
    return layer


def hidden(time: int = T, seed: int = 1) -> Tensor:
    return torch.randn(B, time, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def started(layer: SynapticMemory) -> PlasticState:
    """A memory that holds something."""
    return layer(hidden(seed=2))[1].detach()


def model(**settings: Any) -> SSMN:
    sizes = {"hidden_dim": D, "num_layers": 3, "num_heads": 2, "memory_heads": H, "window_size": 6}
    return SSMN(SSMNConfig(input_dim=5, output_dim=2, **sizes, **settings))


@pytest.mark.parametrize("rule", ["hebbian", "delta", "erase"])
def test_frozen_keeps_the_memory_bit_identical(rule: UpdateRule) -> None:
    layer = memory(update_rule=rule)
    state = started(layer)
    for steps in (T, 1):
        y, after = layer(hidden(steps), state, plasticity=Plasticity(frozen=True, eta_scale=3.0, decay_scale=9.0))
        assert torch.equal(after.memory, state.memory)
        assert torch.equal(after.previous, hidden(steps)[:, -1])
        # It is still read: other questions get other answers.
        assert y.std() > 0.01
    elapsed = torch.full((B, T), 1e6, dtype=torch.float64)
    _, after = layer(hidden(), state, elapsed=elapsed, plasticity=Plasticity(frozen=True))
    assert torch.equal(after.memory, state.memory)


def test_eta_zero_stops_writing_while_decay_goes_on() -> None:
    layer = memory(update_rule="delta")
    state = started(layer)
    still = Plasticity(plasticity_eta=0.0)
    _, after = layer(hidden(), state, plasticity=still)
    kept = layer.decay(hidden()).sum(1).exp()[..., None, None]
    assert_close({"S": after.memory}, {"S": state.memory * kept}, 1e-12)
    assert_identical({"S": layer(hidden(), state, plasticity=Plasticity(eta_scale=0.0))[1].memory}, {"S": after.memory})
    # Without decay as well, the memory stays what it was.
    _, after = layer(hidden(), state, plasticity=Plasticity(plasticity_eta=0.0, decay_scale=0.0))
    assert_close({"S": after.memory}, {"S": state.memory}, 1e-12)


def gate_off(layer: SynapticMemory) -> None:
    """Makes η and λ constant: the base values."""
    with torch.no_grad():
        for weight in (*layer.importance.parameters(), layer.decay.present.weight):
            weight.zero_()


def test_the_base_eta_is_what_a_fresh_layer_writes_with() -> None:
    layer = SynapticMemory(D, H, plasticity_eta=0.3, update_rule="delta").double()
    gate_off(layer)
    importance = layer.importance(hidden(), hidden())
    assert_close({"eta": 2 * 0.3 * importance}, {"eta": torch.full((B, T, H), 0.3, dtype=torch.float64)}, 1e-12)
    wanted = torch.tensor(default_decay_lambda(H), dtype=torch.float64).expand(B, T, H)
    torch.testing.assert_close(-torch.expm1(layer.decay(hidden())), wanted, rtol=1e-5, atol=0)


def test_absolute_values_replace_the_base_and_keep_the_data_dependence() -> None:
    layer = memory(update_rule="delta", plasticity_eta=0.4)
    state = started(layer)
    plain, plain_state = layer(hidden(), state)
    same, same_state = layer(hidden(), state, plasticity=Plasticity(plasticity_eta=0.4))
    assert_close({"y": same, "S": same_state.memory}, {"y": plain, "S": plain_state.memory}, 1e-12)
    # The base itself: a layer built with the other η.
    other = memory(update_rule="delta", plasticity_eta=0.9)
    other.load_state_dict(layer.state_dict())
    wanted, _ = other(hidden(), state)
    got, _ = layer(hidden(), state, plasticity=Plasticity(plasticity_eta=0.9))
    assert_close({"y": got}, {"y": wanted}, 1e-12)
    # Absolute and relative values multiply, and the cap comes before the scale.
    wanted, _ = other(hidden(), state, plasticity=Plasticity(eta_scale=0.5))
    got, _ = layer(hidden(), state, plasticity=Plasticity(plasticity_eta=0.9, eta_scale=0.5))
    assert_close({"y": got}, {"y": wanted}, 1e-12)
    # λ: with the same base for every head, as given or as stored.
    with torch.no_grad():
        layer.decay.log_rate.fill_(float(torch.log(-torch.log1p(torch.tensor(-0.02, dtype=torch.float64)))))
    wanted, _ = layer(hidden(), state)
    with torch.no_grad():
        layer.decay.log_rate.normal_()
    got, _ = layer(hidden(), state, plasticity=Plasticity(decay_lambda=0.02))
    assert_close({"y": got}, {"y": wanted}, 1e-12)


def test_eta_stays_at_most_one() -> None:
    layer = memory(update_rule="delta", plasticity_eta=1.0)
    state = started(layer)
    huge, _ = layer(hidden(), state, plasticity=Plasticity(eta_scale=1e6))
    most, _ = layer(hidden(), state, plasticity=Plasticity(eta_scale=1e7))
    assert_identical({"y": huge}, {"y": most})


@pytest.mark.parametrize("rule", ["hebbian", "delta", "erase"])
def test_the_threshold_skips_steps_as_a_mask_does(rule: UpdateRule) -> None:
    """A step whose importance is below the threshold writes, erases and forgets nothing; it is still read."""
    layer = memory(update_rule=rule)
    x, state = hidden(), started(layer)
    previous = torch.cat([state.previous[:, None], x[:, :-1]], 1)
    importance = layer.importance(x, previous).detach()
    threshold = importance.median().item()
    skipped = importance < threshold
    assert 0.3 < skipped.double().mean() < 0.7
    got, after = layer(x, state, plasticity=Plasticity(write_threshold=threshold, eta_scale=0.5))
    eta, log_decay = 0.5 * importance, layer.decay(x)

    def heads(projection: torch.nn.Linear, values: Tensor) -> Tensor:
        return projection(values).unflatten(-1, (H, K))

    _, wanted = ssmn.ops.memory_write(
        torch.nn.functional.normalize(heads(layer.key, previous), dim=-1),
        heads(layer.value, x),
        eta=torch.where(skipped, 0.0, eta),
        log_decay=torch.where(skipped, 0.0, log_decay),
        erase=None if layer.erasure is None else torch.where(skipped, 0.0, layer.erasure(x, previous)),
        rule=rule,
        initial_state=state.memory,
    )
    assert_close({"S": after.memory}, {"S": wanted}, 1e-11)
    # Built in, it is the same; zero switches it off.
    layer.write_threshold = threshold
    built_in, _ = layer(x, state, plasticity=Plasticity(eta_scale=0.5))
    assert_identical({"y": built_in}, {"y": got})
    off, _ = layer(x, state, plasticity=Plasticity(write_threshold=0.0))
    layer.write_threshold = 0.0
    assert_identical({"y": off}, {"y": layer(x, state)[0]})
    # Above every importance: as good as frozen.
    _, after = layer(x, state, plasticity=Plasticity(write_threshold=1.0))
    assert torch.equal(after.memory, state.memory)


def test_decay_scale_moves_the_half_life() -> None:
    layer = SynapticMemory(D, H, decay_lambda=(0.1, 0.01, 0.001)).double()
    gate_off(layer)
    state = started(layer)
    for scale in (0.1, 1.0, 4.0):
        _, after = layer(hidden(), state, plasticity=Plasticity(plasticity_eta=0.0, decay_scale=scale))
        kept = (after.memory / state.memory).mean((0, 2, 3))
        lost = torch.tensor([0.1, 0.01, 0.001], dtype=torch.float64)
        torch.testing.assert_close(kept, (1 - lost) ** (scale * T), rtol=1e-5, atol=0)


def test_elapsed_time_multiplies_the_decay() -> None:
    layer = memory()
    state = started(layer)
    times = torch.rand(B, T, dtype=torch.float64) * 4
    y, after = layer(hidden(), state, elapsed=times)
    log_decay = layer.decay(hidden()) * times[..., None]
    _, silent = layer(hidden(), state, elapsed=times, plasticity=Plasticity(plasticity_eta=0.0))
    assert_close({"S": silent.memory}, {"S": state.memory * log_decay.sum(1).exp()[..., None, None]}, 1e-12)
    ones, one_state = layer(hidden(), state, elapsed=torch.ones(B, T, dtype=torch.float64))
    assert_identical(
        {"y": ones, "S": one_state.memory}, {"y": layer(hidden(), state)[0], "S": layer(hidden(), state)[1].memory}
    )
    assert not torch.equal(y, ones)
    # No time: no decay. For ever: nothing is left of the past, and what comes next is not blurred.
    _, after = layer(
        hidden(), state, elapsed=torch.zeros(B, T, dtype=torch.float64), plasticity=Plasticity(eta_scale=0.0)
    )
    assert_close({"S": after.memory}, {"S": state.memory}, 1e-12)
    pause = torch.ones(B, T, dtype=torch.float64)
    pause[:, 40] = 1e12
    _, after = layer(hidden(), state, elapsed=pause)
    _, later = layer(hidden()[:, 40:], PlasticState(torch.zeros_like(state.memory), hidden()[:, 39]))
    assert_close({"S": after.memory}, {"S": later.memory}, 1e-12)


def test_seed_presets() -> None:
    assert (ssmn.LONG_TERM.plasticity_eta, ssmn.LONG_TERM.decay_lambda) == (0.05, 1e-4)
    assert (ssmn.SHORT_TERM.plasticity_eta, ssmn.SHORT_TERM.decay_lambda) == (0.001, 0.01)


PER_STREAM: list[dict[str, tuple[Any, Any]]] = [
    {"eta_scale": (0.3, 2.0)},
    {"decay_scale": (0.0, 30.0)},
    {"plasticity_eta": (0.05, 1.0)},
    {"decay_lambda": (0.0, 0.2)},
    {"write_threshold": (0.0, 0.5)},
    {"eta_scale": (0.5, 1.0), "decay_lambda": (0.3, 0.001), "write_threshold": (0.4, 0.0)},
]


@pytest.mark.parametrize("values", PER_STREAM, ids=lambda values: "-".join(values))
@pytest.mark.parametrize("wrap", [list, lambda pair: torch.tensor(pair, dtype=torch.float64)], ids=["list", "tensor"])
def test_per_stream_values_equal_separate_runs(wrap: Callable[[Any], Any], values: dict[str, tuple[Any, Any]]) -> None:
    subject = ModelSubject("auto", torch.float64, model())
    network, x, state = subject.module, subject.inputs(B, T)["x"], subject.started(B)
    assert isinstance(state, StreamState)
    y, after = network(x, state, plasticity=Plasticity(**{name: wrap(pair) for name, pair in values.items()}))
    alone = [
        network(
            x[row : row + 1],
            state.select([row]),
            plasticity=Plasticity(**{name: pair[row] for name, pair in values.items()}),
        )
        for row in range(B)
    ]
    wanted = StreamState.merge([final for _, final in alone]).named_tensors()
    assert_close({"y": y, **after.named_tensors()}, {"y": torch.cat([out for out, _ in alone]), **wanted}, 1e-12)
    # Packed into one row, a value belongs to a segment.
    packed = Plasticity(**{name: wrap(pair) for name, pair in values.items()})
    row = torch.cat([x[0], x[1, : T - 9]])[None]
    y, _ = network(row, state, cu_seqlens=torch.tensor([0, T, 2 * T - 9]), plasticity=packed)
    assert_close({"y": y}, {"y": torch.cat([alone[0][0], alone[1][0][:, : T - 9]], 1)}, 1e-12)
    assert not torch.equal(alone[1][0], network(x[1:], state.select([1]))[0])


def test_hebbian_does_not_feel_a_constant_eta_from_a_fresh_state() -> None:
    """The read is normalised, so only λ, and η relative to what is stored, matter; with delta η is a learning rate."""
    rules: tuple[tuple[UpdateRule, bool], ...] = (("hebbian", False), ("delta", True))
    for rule, felt in rules:
        layer = SynapticMemory(D, H, update_rule=rule).double()
        gate_off(layer)
        strong, _ = layer(hidden(), plasticity=Plasticity(plasticity_eta=0.5))
        weak, _ = layer(hidden(), plasticity=Plasticity(plasticity_eta=0.05))
        error = (strong - weak).abs().max()
        assert (error > 0.01) if felt else (error < 1e-6)
        started_strong, _ = layer(hidden(), started(layer), plasticity=Plasticity(plasticity_eta=0.5))
        started_weak, _ = layer(hidden(), started(layer), plasticity=Plasticity(plasticity_eta=0.05))
        assert (started_strong - started_weak).abs().max() > 0.01


def test_plasticity_leaves_no_trace() -> None:
    network = model().double()
    x = torch.randn(B, T, 5, dtype=torch.float64)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    before = network(x)[0]
    settings = Plasticity(eta_scale=0.0, decay_scale=5.0, write_threshold=0.9)
    changed, state = network(x, plasticity=settings)
    assert not torch.equal(changed, before)
    assert "plasticity" not in "".join(state.named_tensors())
    assert_identical(network.state_dict(), weights)
    assert_identical({"y": network(x)[0]}, {"y": before})
    with pytest.raises(AttributeError):
        settings.frozen = True  # pyright: ignore[reportAttributeAccessIssue]


def test_gradients_reach_the_gates_and_the_tuning() -> None:
    layer = memory(update_rule="erase", write_threshold=0.3)
    scale = torch.tensor([0.7, 0.9], dtype=torch.float64, requires_grad=True)
    y, _ = layer(hidden(), started(layer), plasticity=Plasticity(eta_scale=scale))
    y.square().mean().backward()
    for name, weight in layer.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name
    assert scale.grad is not None
    assert (scale.grad != 0).all()


def test_freeze_static_leaves_the_plastic_blocks_trainable() -> None:
    network = model(layer_types=("static", "plastic", "static")).double()
    assert network.freeze_static() is network
    trainable = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trainable == {
        name for name, _ in network.named_parameters() if name.startswith(("blocks.1.mixer.", "blocks.1.mixer_norm."))
    }
    network(torch.randn(B, T, 5, dtype=torch.float64))[0].square().mean().backward()
    for name, weight in network.named_parameters():
        assert (weight.grad is not None) == (name in trainable), name


def test_no_decay_at_all() -> None:
    gate = DecayGate(D, (0.0, 0.5))
    log_decay = gate(torch.randn(B, T, D))
    assert log_decay[..., 0].eq(0).all()
    assert log_decay[..., 1].lt(0).all()
    log_decay.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in gate.parameters())


def test_fewer_rounds_of_chat_are_the_first_ones() -> None:
    config = TextSSMNConfig(
        vocab_size=20, hidden_dim=12, num_layers=3, num_heads=2, window_size=5, chat_rounds=2, memory_heads=3
    )
    model = TextSSMN(config)
    for block in model.blocks:
        if block.plastic:
            torch.nn.init.normal_(block.mixer.chat.mix.weight)
    tokens = torch.randint(20, (2, 9))
    whole, state = model(tokens)
    outputs = []
    for rounds in range(3):
        fewer = model.with_chat_rounds(rounds)
        assert fewer.config.chat_rounds == rounds
        output, after = model(tokens, plasticity=Plasticity(chat_rounds=rounds))
        torch.testing.assert_close(output, fewer(tokens)[0], rtol=0, atol=1e-5)
        # Chat reads and never writes.
        torch.testing.assert_close(after.layers[1].memory, state.layers[1].memory, rtol=0, atol=0)
        outputs.append(output)
    torch.testing.assert_close(outputs[2], whole, rtol=0, atol=0)
    assert not torch.allclose(outputs[0], outputs[1])


def test_more_rounds_than_the_model_has_are_refused() -> None:
    model = TextSSMN(TextSSMNConfig(vocab_size=20, hidden_dim=12, num_layers=3, num_heads=2, window_size=5))
    with pytest.raises(RangeError, match=r"chat_rounds=1; wanted at most the 0 that the model was built with"):
        model(torch.zeros(1, 2, dtype=torch.int64), plasticity=Plasticity(chat_rounds=1))
    with pytest.raises(ConfigError, match="rounds=1; wanted 0 to the model's 0"):
        model.with_chat_rounds(1)
    wrongs: list[Any] = [-1, True, 1.0]
    for wrong in wrongs:
        with pytest.raises(RangeError, match=r"chat_rounds=.*; wanted a whole number of at least 0"):
            Plasticity(chat_rounds=wrong)
