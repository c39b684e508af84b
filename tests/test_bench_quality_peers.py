"""The field's layers against their definitions, step by step in float64; carried state, resets, equal sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ssmn import TextSSMN, TextSSMNConfig
from ssmn.bench.quality import peers
from ssmn.errors import ConfigError, RangeError
from ssmn.layers.blocks import build_block

BATCH, TIME, WIDTH, HEADS = 2, 11, 12, 3


def layer(kind: str) -> Any:
    torch.manual_seed(5)
    config = TextSSMNConfig(
        vocab_size=7, hidden_dim=WIDTH, num_layers=4, num_heads=HEADS, layer_types=(kind,) * 4, ffn_dim=8
    )
    return build_block(kind, config).mixer.double()


def inputs() -> Tensor:
    return torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def convolved(mixer: Any, joint: Tensor) -> Tensor:
    out = torch.zeros_like(joint)
    for t in range(TIME):
        for lag in range(4):
            if t >= lag:
                out[:, t] += mixer.convolution.weight[lag] * joint[:, t - lag]
    return functional.silu(out)


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotated(x: Tensor, t: int) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1))
    angles = t * 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    turned = turned * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def retention(mixer: Any, x: Tensor) -> Tensor:
    out = []
    q, k, v = (part(x).unflatten(-1, (HEADS, -1)) for part in (mixer.query, mixer.key, mixer.value))
    gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))
    memory = torch.zeros(BATCH, HEADS, 4, 8, dtype=torch.float64)
    for t in range(TIME):
        key = rotated(k[:, t], t) / math.sqrt(4)
        memory = gamma[:, None, None] * memory + key.unsqueeze(-1) * v[:, t].unsqueeze(-2)
        out.append(torch.einsum("bhk,bhkv->bhv", rotated(q[:, t], t), memory))
    return mixer.output(rms(torch.stack(out, 1), 1e-6).flatten(2) * functional.silu(mixer.gate(x)))


def ssd(mixer: Any, x: Tensor) -> Tensor:
    out = []
    value, b, c = convolved(mixer, mixer.joint(x)).split([2 * WIDTH, 64, 64], -1)
    value = value.unflatten(-1, (HEADS, -1))
    delta = functional.softplus(mixer.rate(x) + mixer.rate_bias)
    memory = torch.zeros(BATCH, HEADS, 64, 8, dtype=torch.float64)
    for t in range(TIME):
        keep = torch.exp(-delta[:, t] * mixer.log_a.exp())[..., None, None]
        new = b[:, t, None, :, None] * value[:, t, :, None, :] * delta[:, t, :, None, None]
        memory = keep * memory + new
        out.append(torch.einsum("bk,bhkv->bhv", c[:, t], memory) + mixer.skip[:, None] * value[:, t])
    return mixer.output(mixer.norm(torch.stack(out, 1).flatten(2) * functional.silu(mixer.gate(x))))


def gated_delta(mixer: Any, x: Tensor) -> Tensor:
    out = []
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in convolved(mixer, mixer.joint(x)).chunk(3, -1))
    q, k = (functional.normalize(part, dim=-1) for part in (q, k))
    alpha = torch.exp(-mixer.log_a.exp() * functional.softplus(mixer.rate(x) + mixer.rate_bias))
    beta = mixer.strength(x).sigmoid()
    memory = torch.zeros(BATCH, HEADS, 4, 4, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    for t in range(TIME):
        key, strength = k[:, t], beta[:, t, :, None, None]
        erase = eye - strength * key.unsqueeze(-1) * key.unsqueeze(-2)
        memory = alpha[:, t, :, None, None] * (erase @ memory) + strength * key.unsqueeze(-1) * v[:, t].unsqueeze(-2)
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return mixer.output(mixer.norm(torch.stack(out, 1)).flatten(2) * functional.silu(mixer.gate(x)))


def lstm(mixer: Any, x: Tensor) -> Tensor:
    hidden = cell = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    out = []
    for t in range(TIME):
        gates = (
            x[:, t] @ mixer.cell.weight_ih_l0.T + mixer.cell.bias_ih_l0
            + hidden @ mixer.cell.weight_hh_l0.T + mixer.cell.bias_hh_l0
        )  # fmt: skip
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        out.append(hidden)
    return mixer.output(torch.stack(out, 1))


def gru(mixer: Any, x: Tensor) -> Tensor:
    hidden, cell = torch.zeros(BATCH, WIDTH, dtype=torch.float64), mixer.cell
    out = []
    for t in range(TIME):
        told = (x[:, t] @ cell.weight_ih_l0.T + cell.bias_ih_l0).chunk(3, -1)
        kept = (hidden @ cell.weight_hh_l0.T + cell.bias_hh_l0).chunk(3, -1)
        reset, update = (told[0] + kept[0]).sigmoid(), (told[1] + kept[1]).sigmoid()
        hidden = update * hidden + (1 - update) * (told[2] + reset * kept[2]).tanh()
        out.append(hidden)
    return mixer.output(torch.stack(out, 1))


DEFINITIONS = {"retention": retention, "ssd": ssd, "gated-delta": gated_delta, "lstm": lstm, "gru": gru}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_layer_is_its_recurrence(kind: str) -> None:
    mixer, x = layer(kind), inputs()
    torch.testing.assert_close(mixer(x)[0], DEFINITIONS[kind](mixer, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_pieces_with_carried_state_are_the_whole(kind: str) -> None:
    mixer, x = layer(kind), inputs()
    whole, last = mixer(x)
    first, state = mixer(x[:, :4])
    kept = state.clone()
    second, state_after = mixer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-10)
    for name, tensor in last.named_tensors().items():
        torch.testing.assert_close(state_after.named_tensors()[name], tensor, rtol=0, atol=1e-10)
        torch.testing.assert_close(state.named_tensors()[name], kept.named_tensors()[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_reset_is_a_fresh_start(kind: str) -> None:
    mixer, x = layer(kind), inputs()
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    reset[0, 5] = reset[1, 0] = True
    _, state = mixer(inputs().flip(0))
    y, after = mixer(x, state, reset=reset)
    torch.testing.assert_close(y[:1, 5:], mixer(x[:1, 5:])[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(y[:1, :5], mixer(x[:1, :5], state.select([0]))[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(y[1:], mixer(x[1:])[0], rtol=0, atol=1e-10)
    fresh = mixer(x[:1, 5:])[1].named_tensors()
    for name, tensor in after.select([0]).named_tensors().items():
        torch.testing.assert_close(tensor, fresh[name], rtol=0, atol=1e-10)


def test_what_they_do_not_take_is_refused() -> None:
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    for kind in DEFINITIONS:
        with pytest.raises(RangeError, match="peers: mask was given; the field's layers take reset alone"):
            layer(kind)(inputs(), mask=mask)


@pytest.mark.parametrize("kind", ["plastic", "static", *DEFINITIONS])
def test_models_of_equal_size(kind: str) -> None:
    config = TextSSMNConfig(
        vocab_size=99, hidden_dim=24, num_layers=5, num_heads=3, layer_types=(kind, "static", *(kind,) * 3)
    )
    model = TextSSMN(peers.of_size(config, 60_000))
    assert abs(model.num_parameters() - 60_000) <= 600
    logits, state = model(torch.randint(99, (2, 7)))
    again, _ = model(torch.randint(99, (2, 1)), state.detach())
    (logits.sum() + again.sum()).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_size_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ConfigError, match="of_size: 1,000 parameters; with ffn_dim=1 the model has"):
        peers.of_size(TextSSMNConfig.preset("tiny", vocab_size=99), 1_000)
