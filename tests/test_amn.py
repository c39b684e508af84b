"""AMN and the linear recurrent unit: formulas, elapsed time, stability, ablations, and as layers of whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ssmn
from ssmn import ops
from ssmn.errors import ConfigError, StateError
from ssmn.models import SSMN, TextSSMN
from ssmn.relatives import AMN, LRU, AMNState, AssociativeMixer, LinearRecurrentUnit, LRUState
from ssmn.state import PlasticState, StreamState


def moved(module: torch.nn.Module) -> Any:
    """In float64, every weight moved: one that starts at zero would hide what it multiplies."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return module.double()


def as_complex(rows: Tensor) -> Tensor:
    return torch.complex(rows[..., 0, :], rows[..., 1, :])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_unit_is_the_paper_s_recurrence() -> None:
    unit = moved(LinearRecurrentUnit(5, 3))
    x, recurrence = normal(2, 7, 5), unit.recurrence
    a = torch.exp(torch.complex(-recurrence.log_rate.exp(), recurrence.log_phase.exp()))
    gamma = (1 - a.abs().square()).sqrt()
    b = torch.complex(recurrence.input.weight[:3], recurrence.input.weight[3:])
    c = torch.complex(recurrence.output.weight[:, :3], -recurrence.output.weight[:, 3:])
    h, wanted = torch.zeros(2, 3, dtype=torch.complex128), []
    for t in range(7):
        h = a * h + gamma * (x[:, t].to(b.dtype) @ b.T)
        wanted.append((h @ c.T).real + unit.skip * x[:, t])
    y, state = unit(x)
    torch.testing.assert_close(y, torch.stack(wanted, 1))
    torch.testing.assert_close(as_complex(state.hidden), h)


def test_the_read_of_the_manifold_is_an_input_of_the_recurrence() -> None:
    """The two scans are one recurrence, h_t = a_t h_{t−1} + γ_t B (x_t + m_t), taken step by step."""
    mixer = moved(AssociativeMixer(6, 4, memory_heads=2))
    x, elapsed = normal(2, 9, 6), normal(2, 9, seed=1).abs()
    y, state = mixer(x, elapsed=elapsed)
    recurrence = mixer.recurrence
    b = torch.complex(recurrence.input.weight[:4], recurrence.input.weight[4:])
    c = torch.complex(recurrence.output.weight[:, :4], -recurrence.output.weight[:, 4:])
    a, gamma = recurrence.dynamics(x, elapsed)
    h = taken = torch.zeros(2, 4, dtype=torch.complex128)
    memory = mixer.manifold.init_state(2)
    for t in range(9):
        now = x[:, t].to(b.dtype)
        taken = as_complex(a[:, t]) * taken + gamma[:, t] * (now @ b.T)
        asked = (taken @ c.T).real + mixer.skip * x[:, t]
        read, memory = mixer.manifold(mixer.norm(asked)[:, None], memory, elapsed=elapsed[:, t : t + 1])
        h = as_complex(a[:, t]) * h + gamma[:, t] * ((now + read[:, 0]) @ b.T)
        torch.testing.assert_close(y[:, t], (h @ c.T).real + mixer.skip * x[:, t])
    torch.testing.assert_close(as_complex(state.hidden + state.recalled), h)
    torch.testing.assert_close(state.memory, memory.memory)


@pytest.mark.parametrize("liquid", [False, True])
def test_two_half_steps_without_input_are_one_whole_step(liquid: bool) -> None:
    unit = moved(LinearRecurrentUnit(5, 3, liquid=liquid))
    before = LRUState(normal(2, 2, 3))
    nothing = torch.zeros(2, 2, 5, dtype=torch.float64)
    gap = torch.tensor([[0.8], [3.0]], dtype=torch.float64)
    whole = unit(nothing[:, :1], before, elapsed=gap)[1]
    halves = unit(nothing, before, elapsed=(gap / 2).expand(2, 2))[1]
    parts = unit(nothing, before, elapsed=gap * torch.tensor([0.25, 0.75]))[1]
    torch.testing.assert_close(halves.hidden, whole.hidden)
    torch.testing.assert_close(parts.hidden, whole.hidden)
    assert not torch.allclose(whole.hidden, unit(nothing[:, :1], before)[1].hidden)
    none = unit(nothing[:, :1], before, elapsed=0 * gap)[1]
    torch.testing.assert_close(none.hidden, before.hidden)


def test_the_input_sets_the_clock_of_a_liquid_recurrence() -> None:
    for liquid in (False, True):
        recurrence = moved(LinearRecurrentUnit(5, 3, liquid=liquid)).recurrence
        x = torch.stack([normal(1, 5), normal(1, 5, seed=3)], 1)
        a = recurrence.dynamics(x, torch.ones(1, 2, dtype=torch.float64))[0]
        assert torch.equal(a[:, 0], a[:, 1]) is not liquid


@pytest.mark.parametrize("shift", [-12.0, 0.0, 12.0])
def test_no_weight_makes_it_unstable(shift: float) -> None:
    """|a| < 1 over any time, and γ is a number, whatever training does; gradients stay finite."""
    recurrence = LinearRecurrentUnit(4, 9, liquid=True).recurrence.double()
    with torch.no_grad():
        assert recurrence.liquid is not None
        for weight in (recurrence.log_rate, recurrence.log_phase, recurrence.liquid.bias):
            weight.add_(shift)
    x = (20 * normal(2, 6, 4)).requires_grad_()
    a, gain = recurrence.dynamics(x, torch.full((2, 6), 0.01, dtype=torch.float64))
    assert (as_complex(a).abs() < 1).all()
    assert ((gain > 0) & (gain <= 1)).all()
    (a.sum() + gain.sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert recurrence.log_rate.grad is not None and recurrence.log_rate.grad.isfinite().all()


@pytest.mark.parametrize("liquid", [False, True])
def test_the_start_is_a_ring(liquid: bool) -> None:
    torch.manual_seed(0)
    recurrence = LinearRecurrentUnit(3, 500, liquid=liquid, radius=(0.4, 0.9), max_phase=0.5).recurrence
    a, gain = recurrence.dynamics(torch.zeros(1, 1, 3), None)
    size, angle = as_complex(a).abs().flatten(), as_complex(a).angle().flatten()
    assert 0.4 < size.min() < 0.45 and 0.88 < size.max() < 0.9
    assert abs(size.square().mean() - (0.4**2 + 0.9**2) / 2) < 0.03
    assert 0 < angle.min() < 0.01 and 0.49 < angle.max() < 0.5
    torch.testing.assert_close(gain.flatten(), (1 - size.square()).sqrt())


def test_each_part_can_be_switched_off() -> None:
    x, elapsed = torch.randn(2, 7, 6), torch.rand(2, 7)
    everything, plain = AssociativeMixer(6), AssociativeMixer(6, liquid=False, manifold=False)
    assert plain.recurrence.liquid is None and plain.manifold is None
    assert everything.init_state(3).memory is not None
    unit = LinearRecurrentUnit(6)
    unit.load_state_dict(plain.state_dict())
    y, state = plain(x, elapsed=elapsed)
    wanted, hidden = unit(x, elapsed=elapsed)
    assert torch.equal(y, wanted) and torch.equal(state.hidden, hidden.hidden)
    assert list(state.named_tensors()) == ["hidden"]


def test_plasticity_reaches_the_manifold() -> None:
    mixer = AssociativeMixer(6)
    x = torch.randn(2, 7, 6)
    _, before = mixer(x)
    _, after = mixer(x, before, plasticity=ssmn.Plasticity(frozen=True))
    assert torch.equal(after.memory, before.memory)
    assert not torch.equal(after.hidden, before.hidden)
    assert not torch.equal(mixer(x, before)[1].memory, before.memory)
    emptied = before.reset_memory()
    assert emptied.memory is not None and not emptied.memory.any() and torch.equal(emptied.hidden, before.hidden)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradients(backend: Any) -> None:
    models = [
        moved(LRU(3, 4, 2)),
        moved(AMN(3, 4, 2, memory_heads=2)),
        moved(AMN(3, 4, 2, liquid=False)),
        moved(AMN(3, 4, 2, manifold=False)),
    ]
    mask = torch.tensor([[True, False, True, True, True], [True, True, True, False, True]])
    for model in models:
        x, elapsed = normal(2, 5, 3).requires_grad_(), normal(2, 5, seed=1).abs().requires_grad_()
        start = model(normal(2, 4, 3, seed=2))[1].detach()
        leaves = [x, elapsed, *[tensor.requires_grad_() for tensor in start.named_tensors().values()]]

        def run(x: Tensor, elapsed: Tensor, *tensors: Tensor, model: Any = model, start: Any = start) -> Any:
            state = start.with_tensors(dict(zip(start.named_tensors(), tensors, strict=True)))
            with ops.use_backend(backend):
                y, after = model(x, state, mask=mask, elapsed=elapsed)
            return y, *after.named_tensors().values()

        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["lru", "amn"])
def test_a_series_model_trains_steps_and_is_stored(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ssmn.SSMNConfig(
        input_dim=3, output_dim=2, hidden_dim=12, num_layers=3, layer_types=("static", kind, "static"), num_heads=2,
        memory_heads=3, window_size=5,
    )  # fmt: skip
    model, x, elapsed = SSMN(config), torch.randn(2, 9, 3), torch.rand(2, 9)
    _train_a_step(model, lambda: model(x, elapsed=elapsed)[0].square().mean())
    y, state = model(x, elapsed=elapsed)
    stepped, outputs = None, []
    for t in range(9):
        out, stepped = model.step(x[:, t], stepped, elapsed=elapsed[:, t])
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 1), y, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = SSMN.from_pretrained(tmp_path)
    state.save(tmp_path / "state.safetensors", model)
    loaded = StreamState.load(tmp_path / "state.safetensors", again)
    assert isinstance(loaded.layers[1], AMNState if kind == "amn" else LRUState)
    assert torch.equal(again(x, loaded)[0], model(x, state)[0])


@pytest.mark.parametrize("kind", ["lru", "amn"])
def test_a_text_model_trains_and_generates(kind: str) -> None:
    torch.manual_seed(0)
    config = ssmn.TextSSMNConfig(
        vocab_size=17, hidden_dim=12, num_layers=3, layer_types=("static", kind, "static"), num_heads=2, window_size=5
    )
    model, tokens = TextSSMN(config), torch.randint(17, (2, 8))
    _train_a_step(model, lambda: torch.nn.functional.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten()))
    with torch.no_grad():
        logits, state = model(tokens)
        assert torch.allclose(model(tokens[:, 5:], model(tokens[:, :5])[1])[0], logits[:, 5:], atol=1e-5)
    assert len([token for token, _ in ssmn.generate(model, tokens[:1], max_new_tokens=3, seed=0)]) == 3
    assert state.nbytes == model(tokens, state)[1].nbytes


def _train_a_step(model: torch.nn.Module, loss: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    before = loss()
    before.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    optimizer.step()
    assert loss() < before


def test_settings_and_states_that_do_not_fit_are_refused() -> None:
    for call, message in (
        (lambda: LinearRecurrentUnit(0), "LinearRecurrentUnit: hidden_dim=0; wanted at least 1"),
        (lambda: LinearRecurrentUnit(4, 0), "state_dim=0; wanted at least 1"),
        (lambda: LinearRecurrentUnit(4, radius=(0.5, 1.0)), r"radius=\(0.5, 1.0\); wanted \(inner, outer\) with 0"),
        (lambda: LinearRecurrentUnit(4, max_phase=0.0), r"max_phase=0.0; wanted an angle in \(0, 2π\]"),
        (lambda: AssociativeMixer(4, manifold=1), "manifold=1; wanted true or false"),  # pyright: ignore[reportArgumentType]
        (lambda: AMN(3, 6, 2, memory_heads=4), "heads=4; wanted a divisor of hidden_dim=6"),
        (lambda: AMN(0, 6, 2), "AMN: input_dim=0; wanted at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    unit, mixer = LinearRecurrentUnit(4), AssociativeMixer(4)
    with pytest.raises(StateError, match="LinearRecurrentUnit: state is PlasticState; wanted LRUState"):
        unit(torch.zeros(1, 2, 4), PlasticState(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4)))
    with pytest.raises(StateError, match=r"the state's hidden has shape \[2, 2, 2\]; wanted \[1, 2, 2\]"):
        unit(torch.zeros(1, 2, 4), unit.init_state(2))
    with pytest.raises(
        StateError, match="the state has hidden; wanted hidden, recalled, memory, previous: it is of a mixer without"
    ):
        mixer(torch.zeros(1, 2, 4), AssociativeMixer(4, manifold=False).init_state(1))


def test_a_member_by_itself_takes_plasticity() -> None:
    torch.manual_seed(0)
    model, x = AMN(input_dim=3, hidden_dim=8, output_dim=2), torch.randn(2, 7, 3)
    frozen = ssmn.Plasticity(frozen=True)
    _, state = model(x, plasticity=frozen)
    assert not state.memory.any()
    _, learned = model(x)
    assert learned.memory.any()
    _, kept = model.step(x[:, 0], learned, plasticity=frozen)
    assert torch.equal(kept.memory, learned.memory)
