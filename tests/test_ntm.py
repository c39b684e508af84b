"""The Neural Turing Machine: addressing by hand, writing by hand, sizes, safety, and its place in the models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ssmn
from ssmn.config import Plasticity
from ssmn.errors import ConfigError, RangeError, StateError
from ssmn.relatives import NTM, NeuralTuringMachine
from ssmn.relatives.ntm import LENGTH_EPS, NtmState, address, write
from ssmn.state import StreamState


def column(*values: float) -> Tensor:
    """[1, H, 1], one number per head."""
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def rows(*values: list[float]) -> Tensor:
    """[1, .., ..]."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(0)


MEMORY = rows([3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0])
START = rows([0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.3, 0.0], [0.5, 0.25, 0.25, 0.0])
STAY = [0.0, 1.0, 0.0]


def addressed(**changes: Tensor) -> Tensor:
    """Three heads that go on from where they were, with one thing changed."""
    settings = {
        "key": rows([1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]),
        "strength": column(2.0, 3.0, 4.0),
        "gate": column(0.0, 0.0, 0.0),
        "shift": rows(STAY, STAY, STAY),
        "sharpening": column(1.0, 1.0, 1.0),
    }
    return address(MEMORY, START, **{**settings, **changes})[0]


def test_a_closed_gate_stays_where_it_was() -> None:
    torch.testing.assert_close(addressed(), START[0], atol=1e-11, rtol=0)


def test_content_is_a_softmax_of_cosines() -> None:
    def cosine(of_key: list[float], row: list[float]) -> float:
        sizes = [sum(x * x for x in vector) + LENGTH_EPS for vector in (of_key, row)]
        return sum(x * y for x, y in zip(of_key, row, strict=True)) / math.sqrt(sizes[0] * sizes[1])

    found = addressed(gate=column(1.0, 1.0, 1.0))
    for head, (key, strength) in enumerate((([1.0, 0.0], 2.0), ([0.0, 5.0], 3.0), ([-2.0, 0.0], 4.0))):
        scores = [math.exp(strength * cosine(key, row)) for row in MEMORY[0].tolist()]
        want = torch.tensor([score / sum(scores) for score in scores], dtype=torch.float64)
        torch.testing.assert_close(found[head], want, atol=1e-10, rtol=0)


def test_interpolation_lies_between_the_two() -> None:
    content = addressed(gate=column(1.0, 1.0, 1.0))
    gate = column(0.25, 0.5, 0.9)
    torch.testing.assert_close(addressed(gate=gate), gate[0] * content + (1 - gate[0]) * START[0], atol=1e-11, rtol=0)


def test_shifts_wrap_around() -> None:
    shift = rows([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.5, 0.3])
    want = [
        [0.2, 0.3, 0.4, 0.1],  # one row down, row 0 to the last
        [0.0, 0.7, 0.0, 0.3],  # one row up
        # a half stays, .2 of the row above and .3 of the row below come in
        [0.5 * 0.5 + 0.2 * 0.25, 0.5 * 0.25 + 0.2 * 0.25 + 0.3 * 0.5, 0.5 * 0.25 + 0.3 * 0.25, 0.2 * 0.5 + 0.3 * 0.25],
    ]
    torch.testing.assert_close(addressed(shift=shift)[:2], rows(*want[:2])[0], atol=1e-11, rtol=0)
    torch.testing.assert_close(
        addressed(shift=shift)[2], torch.tensor(want[2], dtype=torch.float64), atol=1e-11, rtol=0
    )


def test_further_shifts() -> None:
    two_up = rows(*[[0.0, 0.0, 0.0, 0.0, 1.0]] * 3)
    torch.testing.assert_close(addressed(shift=two_up), START[0].roll(2, -1), atol=1e-11, rtol=0)
    none = rows(*[[1.0]] * 3)
    torch.testing.assert_close(addressed(shift=none), START[0], atol=1e-11, rtol=0)


def test_sharpening_is_a_power() -> None:
    found = addressed(sharpening=column(2.0, 3.0, 1.0))
    want = [
        [0.01 / 0.3, 0.04 / 0.3, 0.09 / 0.3, 0.16 / 0.3],
        [0.343 / 0.37, 0.0, 0.027 / 0.37, 0.0],
        [0.5, 0.25, 0.25, 0.0],
    ]
    torch.testing.assert_close(found, rows(*want)[0], atol=1e-10, rtol=0)


def test_all_heads_erase_before_any_adds() -> None:
    memory = rows([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    weighting = rows([1.0, 0.0], [0.5, 0.5])
    erase = rows([1.0, 0.5, 0.0], [0.0, 1.0, 1.0])
    add = rows([10.0, 0.0, 0.0], [0.0, 2.0, 4.0])
    want = [[0.0 + 10, 2 * 0.5 * 0.5 + 1, 3 * 0.5 + 2], [4.0, 5 * 0.5 + 1, 6 * 0.5 + 2]]
    torch.testing.assert_close(write(memory, weighting, erase, add), rows(*want))


def tiny(**settings: Any) -> NTM:
    return NTM(5, 8, 3, **{"memory_slots": 6, "memory_width": 4, "read_heads": 2, **settings})


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_gradients(controller: Any) -> None:
    torch.manual_seed(0)
    machine = tiny(controller=controller, write_heads=2).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        begun = machine(torch.randn(2, 3, 5, dtype=torch.float64))[1]
    held = [tensor.requires_grad_() for tensor in begun.named_tensors().values() if tensor.is_floating_point()]
    weights = [weight for weight in machine.parameters() if weight.numel() < 90]

    def run(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        y, state = machine(x, begun)
        return y, state.memory, state.weighting

    assert torch.autograd.gradcheck(run, (x, *(tensor for tensor in held if tensor.numel()), *weights))


def test_fresh_is_zero_and_the_heads_begin_on_row_0() -> None:
    machine = tiny().mixer
    state = machine.init_state(3)
    assert not any(tensor.any() for tensor in state.named_tensors().values())
    machine.emit.weight.data.zero_()
    machine.emit.bias.data.zero_()
    first = machine.emit.bias.data[-3 * 3 :].view(3, 3)
    first[:, 1] = 50.0  # no move
    bounded, opened, *_ = machine._emitted
    machine.emit.bias.data[bounded + opened - 3 : bounded + opened] = -50.0  # closed gates
    state = machine(torch.randn(3, 2, 8), state)[1]
    assert state.weighting[..., 0].min() > 0.999
    assert state.position.tolist() == [2, 2, 2]


def test_an_emptied_memory_is_a_fresh_state() -> None:
    machine = tiny()
    state = machine(torch.randn(3, 4, 5))[1]
    assert state.memory.any() and state.position.any()
    emptied = state.reset_memory()
    assert not any(tensor.any() for tensor in emptied.named_tensors().values())


def test_another_number_of_rows_after_training() -> None:
    machine = tiny()
    larger = machine.with_memory_slots(11)
    assert machine.mixer.memory_slots == 6
    assert larger.init_state(2).memory.shape == (2, 11, 4)
    assert all(torch.equal(a, b) for a, b in zip(machine.parameters(), larger.parameters(), strict=True))
    x = torch.randn(2, 7, 5)
    assert larger(x)[0].shape == (2, 7, 3)
    with pytest.raises(StateError, match=r"the state's memory has shape \[2, 6, 4\]; wanted \[2, 11, 4\]"):
        larger(x, machine(x)[1])
    with pytest.raises(ConfigError, match="with_memory_slots: memory_slots=0; wanted a whole number of at least 1"):
        machine.with_memory_slots(0)


def test_a_copy_of_a_trained_size_goes_on_in_a_larger_memory() -> None:
    """Heads that walk never notice how many rows there are until they come round."""
    machine = tiny(memory_slots=30).mixer
    bounded, opened, *_ = machine._emitted
    with torch.no_grad():
        machine.emit.weight[bounded : bounded + opened].zero_()
        machine.emit.bias[bounded + opened - 3 : bounded + opened] = -50.0
        machine.emit.weight[-9:].zero_()
        machine.emit.bias[-9:] = torch.tensor([0.0, 0.0, 50.0] * 3)
    x = torch.randn(1, 20, 8)
    small, large = machine(x)[0], machine.with_memory_slots(50)(x)[0]
    torch.testing.assert_close(small, large, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_slots": 0}, "memory_slots=0; wanted a whole number of at least 1"),
        ({"memory_width": 2.5}, "memory_width=2.5; wanted a whole number of at least 1"),
        ({"read_heads": 0}, "read_heads=0; wanted a whole number of at least 1"),
        ({"write_heads": True}, "write_heads=True; wanted a whole number"),
        ({"shift_range": -1}, "shift_range=-1; wanted a whole number of at least 0"),
        ({"controller": "gru"}, "controller='gru'; wanted one of lstm, feedforward"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"NeuralTuringMachine: {message}"):
        tiny(**change)


def test_frozen_writes_nothing() -> None:
    machine = tiny().mixer
    x = torch.randn(2, 9, 8)
    state = machine(x)[1]
    frozen, written = machine(x, state, plasticity=Plasticity(frozen=True))[1], machine(x, state)[1]
    assert torch.equal(frozen.memory, state.memory)
    assert not torch.equal(frozen.hidden, state.hidden)
    assert not torch.equal(frozen.weighting, state.weighting)
    assert not torch.equal(written.memory, state.memory)


def test_elapsed_is_checked_and_has_no_effect() -> None:
    machine = tiny()
    x = torch.randn(2, 4, 5)
    assert torch.equal(machine(x, elapsed=torch.full((2, 4), 3.0))[0], machine(x)[0])
    with pytest.raises(RangeError, match="elapsed has negative"):
        machine(x, elapsed=torch.full((2, 4), -3.0))


def test_low_precision_keeps_its_state_in_float32() -> None:
    machine = tiny().bfloat16()
    x = torch.randn(2, 6, 5)
    y, state = machine(x.bfloat16())
    assert (y.dtype, state.memory.dtype, state.weighting.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    whole = tiny()
    whole.load_state_dict(machine.state_dict())
    torch.testing.assert_close(y.float(), whole(x)[0], atol=3e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert whole(x)[1].memory.dtype == torch.float32


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_nothing_is_nan(controller: Any) -> None:
    """20 seeds of extreme inputs and weights, forwards and backwards."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        machine = tiny(controller=controller)
        with torch.no_grad():
            for weight in machine.parameters():
                weight *= (1.0, 30.0, 1000.0)[seed % 3]
        size = 10.0 ** torch.randint(-30, 16, (3, 25, 1), generator=generator)
        x = torch.randn(3, 25, 5, generator=generator) * size
        x[:, 7] = 0.0
        x.requires_grad_()
        y, state = machine(x)
        y.tanh().sum().backward()
        gradients = {name: weight.grad for name, weight in machine.named_parameters()} | {"x": x.grad}
        for name, tensor in {"y": y, **state.named_tensors(), **gradients}.items():
            assert tensor is not None
            assert tensor.isfinite().all(), (seed, name)


def trained(model: Any, batches: list[Any]) -> list[float]:
    optimiser, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for x, target in batches:
        y, _ = model(x)
        loss = torch.nn.functional.mse_loss(y, target)
        optimiser.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    return losses


LAYERS: dict[str, Any] = {
    "hidden_dim": 16, "num_layers": 3, "num_heads": 2, "window_size": 4, "memory_slots": 7,
    "layer_types": ("static", "ntm", "static"),
}  # fmt: skip


def goes_on(model: Any, inputs: Tensor, folder: Path) -> None:
    """Step after step equals the whole; state and model come back from their files; more rows need no new weights."""
    model.eval()
    with torch.no_grad():
        whole, last = model(inputs)
        first, state = model(inputs[:, :5])
        state.save(folder / "state.safetensors", model)
        model.save_pretrained(folder / "model")
        again = type(model).from_pretrained(folder / "model")
        state = StreamState.load(folder / "state.safetensors", again)
        parts = [first]
        for x in inputs[:, 5:].unbind(1):
            y, state = again.step(x, state)
            parts.append(y.unsqueeze(1))
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        assert isinstance(last, StreamState) and isinstance(last.layers[1], NtmState)
        larger = type(model).from_pretrained(folder / "model", memory_slots=19)
        assert larger.init_state(1).layers[1].memory.shape == (1, 19, 8)
        assert larger(inputs)[0].shape == whole.shape


def test_as_a_layer_of_the_standard_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ssmn.SSMN(ssmn.SSMNConfig(input_dim=5, output_dim=3, **LAYERS))
    batch = torch.randn(2, 9, 5), torch.randn(2, 9, 3)
    losses = trained(model, [batch] * 4)
    assert losses[-1] < losses[0]
    goes_on(model, batch[0], tmp_path)


def test_as_a_layer_of_the_text_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ssmn.TextSSMN(ssmn.TextSSMNConfig(vocab_size=13, **LAYERS))
    ids = torch.randint(13, (2, 9))
    losses = trained(model, [(ids, torch.nn.functional.one_hot(ids, 13).float())] * 4)
    assert losses[-1] < losses[0]
    goes_on(model, ids, tmp_path)


def test_the_order_of_the_heads_is_that_of_their_weightings() -> None:
    """Read heads first: what the second read head reads is in the second half of the reads."""
    machine = NeuralTuringMachine(8, memory_slots=6, memory_width=4, read_heads=2).double()
    machine.output.weight.data.zero_()
    machine.output.weight.data[:, 8:] = torch.eye(8, dtype=torch.float64)
    y, state = machine(torch.randn(3, 5, 8, dtype=torch.float64))
    read = torch.bmm(state.weighting[:, :2], state.memory).flatten(1)
    torch.testing.assert_close(y[:, -1], read)
