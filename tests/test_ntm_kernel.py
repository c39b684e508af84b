"""The compiled step of the heads against the equations in torch: outputs, states and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ssmn
from ssmn import native
from ssmn.config import Plasticity
from ssmn.ops import native as kernels
from ssmn.relatives import NTM

pytestmark = pytest.mark.skipif(not native.status().available, reason="no compiled library")


def outcome(machine: NTM, x: Tensor, begun: Any, **streams: Any) -> dict[str, Tensor]:
    """Output, state and gradients, the cotangents random."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    start = begun.map(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
    machine.zero_grad()
    y, state = machine(x, start, **streams)
    named = {"y": y, **{name: value for name, value in state.named_tensors().items() if value.is_floating_point()}}
    torch.stack([(value * torch.randn_like(value)).sum() for value in named.values()]).sum().backward()
    held = {name: value for name, value in start.named_tensors().items() if value.is_floating_point()}
    gradients = {"x": x, **{f"start {name}": value for name, value in held.items() if value.numel()}}
    gradients |= dict(machine.named_parameters())
    for name, value in gradients.items():
        assert value.grad is not None, name
        named[f"d {name}"] = value.grad
    return {name: value.detach().clone() for name, value in named.items()}


def compare(machine: NTM, x: Tensor, begun: Any, **streams: Any) -> None:
    ours = outcome(machine, x, begun, **streams)
    with ssmn.ops.use_backend("reference"):
        theirs = outcome(machine, x, begun, **streams)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
        torch.testing.assert_close(ours[name] / scale, wanted / scale, atol=2e-5, rtol=0, msg=lambda m, n=name: n + m)


SHAPES = [
    {"memory_slots": 13, "memory_width": 4},
    {"memory_slots": 6, "memory_width": 5, "read_heads": 3, "write_heads": 2},
    {"memory_slots": 3, "memory_width": 2, "shift_range": 4},
    {"memory_slots": 32, "memory_width": 8, "read_heads": 2, "shift_range": 0},
]


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_equations(controller: Any, shape: dict[str, int]) -> None:
    torch.manual_seed(0)
    machine = NTM(5, 9, 7, controller=controller, **shape)
    with torch.no_grad():
        machine.mixer.emit.weight *= 3
    begun = machine(torch.randn(2, 3, 5))[1].map(Tensor.detach)
    compare(machine, torch.randn(2, 11, 5), begun)


def test_masks_resets_and_packed_segments() -> None:
    torch.manual_seed(0)
    machine = NTM(5, 9, 7, memory_slots=6, memory_width=4)
    begun = machine(torch.randn(3, 4, 5))[1].map(Tensor.detach)
    mask, reset = torch.rand(3, 11) < 0.7, torch.rand(3, 11) < 0.2
    compare(machine, torch.randn(3, 11, 5), begun, mask=mask, reset=reset)
    bounds = torch.tensor([0, 4, 5, 12])
    compare(machine, torch.randn(1, 12, 5), begun, cu_seqlens=bounds)


@pytest.mark.parametrize("path", native.status().runnable)
def test_every_set_of_kernels(path: str) -> None:
    torch.manual_seed(0)
    machine = NTM(5, 9, 7, memory_slots=21, memory_width=4, read_heads=2)
    begun = machine(torch.randn(2, 3, 5))[1].map(Tensor.detach)
    try:
        native.use_kernels(path)
        compare(machine, torch.randn(2, 8, 5), begun)
    finally:
        native.use_kernels(None)


def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, unless another backend is chosen."""
    used = []
    run = kernels.turing_machine
    monkeypatch.setattr(kernels, "turing_machine", lambda *arguments: used.append(1) or run(*arguments))
    machine, x = NTM(5, 8, 3, memory_slots=6, memory_width=4), torch.randn(2, 4, 5)
    machine(x)
    assert len(used) == 1
    with ssmn.ops.use_backend("chunked"):
        machine(x)
    machine.double()(x.double())
    assert len(used) == 1
    machine.bfloat16()(x.bfloat16())  # its state is float32
    assert len(used) == 2


def test_frozen() -> None:
    torch.manual_seed(0)
    machine = NTM(5, 9, 7, memory_slots=6, memory_width=4, read_heads=2)
    begun = machine(torch.randn(2, 3, 5))[1].map(Tensor.detach)
    compare(machine, torch.randn(2, 7, 5), begun, plasticity=Plasticity(frozen=True))


@torch.no_grad()
def test_without_gradients_nothing_is_kept_and_all_is_the_same() -> None:
    machine, x = NTM(5, 9, 7, memory_slots=6, memory_width=4), torch.randn(2, 8, 5)
    mask, reset = torch.rand(2, 8) < 0.7, torch.rand(2, 8) < 0.3
    y, state = machine(x, mask=mask, reset=reset)
    with torch.enable_grad():
        again, state_again = machine(x, mask=mask, reset=reset)
    assert torch.equal(y, again)
    for one, other in zip(state.named_tensors().values(), state_again.named_tensors().values(), strict=True):
        assert torch.equal(one, other)


def test_compiled() -> None:
    """The custom op has shapes without numbers and gradients."""
    machine = NTM(5, 9, 7, memory_slots=6, memory_width=4).mixer
    x = torch.randn(2, 4, 9, requires_grad=True)
    weights = (machine.recurrent.weight.mT, machine.emit.weight.mT, machine.emit.bias)
    state = machine.init_state(2)
    held = (state.memory.mT, state.weighting, state.hidden, state.cell, torch.zeros(2, 4))
    arguments = (machine.input(x), *weights, None, None, *held, 1, 1, False, True)
    torch.library.opcheck(torch.ops.ssmn.ntm.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_weights_close_to_one_stay_weights() -> None:
    """A gate that is all but open takes next to nothing from a row with all the weight, and nothing falls below 0."""
    machine = NTM(5, 9, 7, memory_slots=8, memory_width=3, controller="feedforward").mixer
    with torch.no_grad():
        machine.emit.weight.zero_()
        machine.emit.bias.zero_()
        machine.emit.bias[12:14] = 17.0  # gates
        machine.emit.bias[14:16] = 90.0  # strengths
    state = machine.init_state(1)
    state.memory[:] = torch.randn(8, 3)
    placed = machine(torch.randn(1, 3, 9), state)[1].weighting
    assert placed.isfinite().all()
    torch.testing.assert_close(placed.sum(-1), torch.ones(1, 2))
