"""Every layer equals its formula, written out here one stream and one step at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws import assert_close, randomised
from ssmn.config import Pairing, Plasticity, SSMNConfig, StackConfig, TextSSMNConfig, UpdateRule
from ssmn.layers import Block, SemanticEncoder, SlidingWindowAttention, SwiGLU, SynapticMemory
from ssmn.layers.blocks import build_block
from ssmn.models import SSMN, TextSSMN
from ssmn.state import PlasticState

T, D = 11, 12


def made(module: Any) -> Any:
    """The module in float64, with no weight left at zero or one."""
    randomised(module, torch.float64)
    return module


def drawn(time: int = T, dim: int = D) -> Tensor:
    return torch.randn(time, dim, dtype=torch.float64)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def rms_norm(x: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon)


def l2(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-12)


def memory_by_formula(
    layer: SynapticMemory, stream: Tensor, memory: Tensor, before: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [T, D] and the last memory [H, K, V] of one stream [T, D]."""
    heads, width = layer.heads, layer.head_dim

    def split(x: Tensor) -> Tensor:
        return x.reshape(heads, width)

    floor = (min(layer.importance.plasticity_eta, 0.5) / 5) ** 2 + 1e-12
    outputs = []
    for h, elapsed in zip(stream, times, strict=True):
        key = l2(split(layer.key.weight @ (before if layer.pairing == "previous" else h)))
        value = split(layer.value.weight @ h)
        gate = layer.importance
        swing = sigmoid(gate.present.weight @ h + gate.previous.weight @ before + gate.present.bias)
        eta = torch.clamp(2 * gate.plasticity_eta * swing, max=1.0)
        softplus = torch.log1p(torch.exp(layer.decay.present.weight @ h + math.log(math.e - 1)))
        keep = torch.exp(-torch.exp(layer.decay.log_rate) * softplus * elapsed)
        erase = {"hebbian": torch.zeros_like(eta), "delta": eta}.get(layer.update_rule)
        if erase is None:
            assert layer.erasure is not None
            wipe = layer.erasure
            erase = sigmoid(wipe.present.weight @ h + wipe.previous.weight @ before + wipe.present.bias)
        opened = eta >= layer.write_threshold
        states = []
        for n in range(heads):
            old, k = memory[n], key[n]
            new = keep[n] * (old - erase[n] * torch.outer(k, k @ old)) + eta[n] * torch.outer(k, value[n])
            states.append(new if opened[n] else old)
        memory = torch.stack(states)

        def read(question: Tensor, memory: Tensor = memory) -> Tensor:
            query = l2(split(layer.query.weight @ question))
            answer = torch.stack([memory[n].T @ query[n] for n in range(heads)])
            return (rms_norm(answer, floor) * layer.read_norm).flatten()

        answers = [read(h)]
        mixing = torch.ones(1, dtype=torch.float64)
        if layer.chat is not None:
            for r in range(layer.chat.rounds):
                thought = rms_norm(layer.output.weight @ answers[-1], 1e-2)
                answers.append(read(layer.chat.keep[r] * h + layer.chat.add[r] * thought))
            mixing = len(answers) * torch.softmax(layer.chat.mix.weight @ h, -1)
        answer = sum(share * one for share, one in zip(mixing, answers, strict=True))
        outputs.append(layer.output.weight @ (answer * silu(layer.gate.weight @ h + layer.gate.bias)))
        before = h
    return torch.stack(outputs), memory


@pytest.mark.parametrize("rule", ["hebbian", "delta", "erase"])
@pytest.mark.parametrize(
    ("pairing", "rounds", "threshold"),
    [("previous", 0, 0.0), ("same", 0, 0.0), ("previous", 2, 0.0), ("previous", 1, 0.5)],
)
def test_synaptic_memory(rule: UpdateRule, pairing: Pairing, rounds: int, threshold: float) -> None:
    layer: SynapticMemory = made(
        SynapticMemory(
            D, 3, update_rule=rule, pairing=pairing, plasticity_eta=0.7, chat_rounds=rounds, write_threshold=threshold
        )
    )
    stream, memory, before = drawn(), torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    times = torch.rand(T, dtype=torch.float64) * 3
    y, state = layer(stream[None], PlasticState(memory[None], before[None]), elapsed=times[None])
    wanted, last = memory_by_formula(layer, stream, memory, before, times)
    assert_close({"y": y[0], "S": state.memory[0]}, {"y": wanted, "S": last}, 1e-12)
    assert torch.equal(state.previous[0], stream[-1])


def test_a_faint_read_is_judged_by_the_strength_of_the_writes() -> None:
    """With `hebbian` and a fresh state η scales the memory and the floor of the norm alike: the output stays."""
    layer: SynapticMemory = made(SynapticMemory(D, 3, update_rule="hebbian", plasticity_eta=0.5))
    stream = drawn().expand(2, -1, -1)
    wanted, _ = layer(stream, plasticity=Plasticity(eta_scale=0.1))
    for weak in (Plasticity(plasticity_eta=0.001), Plasticity(eta_scale=torch.tensor([0.002, 0.01]))):
        assert_close({"y": layer(stream, plasticity=weak)[0]}, {"y": wanted}, 1e-4)
    faded, _ = layer(stream[:1], layer.init_state(1), plasticity=Plasticity(frozen=True))
    assert torch.equal(faded, torch.zeros_like(faded))


def test_a_fresh_memory_has_the_gates_of_its_settings() -> None:
    """At the start η and λ are the base values at every step, whatever the input."""
    layer = SynapticMemory(D, 3, plasticity_eta=0.3, decay_lambda=(0.2, 0.01, 0.0)).double()
    with torch.no_grad():
        layer.importance.present.weight.zero_()
    hidden = drawn()[None]
    eta = 2 * layer.importance.plasticity_eta * layer.importance(hidden, hidden)
    torch.testing.assert_close(eta, torch.full_like(eta, 0.3))
    kept = torch.tensor([0.8, 0.99, 1.0], dtype=torch.float64).expand(1, T, 3)
    torch.testing.assert_close(layer.decay(hidden).exp(), kept, rtol=1e-6, atol=0)


def rotated(x: Tensor, position: int, theta: float | None) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers, turned by position · theta^(−2i/D)."""
    if theta is None:
        return x
    half = x.shape[-1] // 2
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("theta", [None, 30.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [1, 5, 40])
def test_sliding_window_attention(window: int, sinks: bool, theta: float | None) -> None:
    heads, kv_heads, dim = 6, 3, 4
    layer: SlidingWindowAttention = made(
        SlidingWindowAttention(heads * dim, heads, window, num_kv_heads=kv_heads, rope_theta=theta, sinks=sinks)
    )
    stream = drawn(dim=heads * dim)
    query = (stream @ layer.query.weight.T).reshape(T, heads, dim)
    key = (stream @ layer.key.weight.T).reshape(T, kv_heads, dim)
    value = (stream @ layer.value.weight.T).reshape(T, kv_heads, dim)
    outputs = torch.zeros(T, heads, dim, dtype=torch.float64)
    for t in range(T):
        for h in range(heads):
            shared = h // (heads // kv_heads)
            seen = range(max(0, t - window + 1), t + 1)
            scores = [rotated(query[t, h], t, theta) @ rotated(key[s, shared], s, theta) / math.sqrt(dim) for s in seen]
            weights = torch.stack(scores).exp()
            mass = weights.sum() + (0 if layer.sinks is None else layer.sinks[h].exp())
            outputs[t, h] = sum(weight * value[s, shared] for weight, s in zip(weights / mass, seen, strict=True))
    wanted = outputs.flatten(1) @ layer.output.weight.T
    y, state = layer(stream[None])
    assert_close({"y": y[0]}, {"y": wanted}, 1e-12)
    assert state.position.tolist() == [T]


def test_semantic_encoder() -> None:
    encoder: SemanticEncoder = made(SemanticEncoder(D))
    stream = drawn()
    tokens = torch.cat([torch.zeros(3, D, dtype=torch.float64), stream])
    wanted = []
    for t in range(T):
        context = torch.cat([tokens[t + 3], tokens[t + 2], tokens[t + 1], tokens[t]])
        mixed = silu(encoder.gate.weight @ context) * (encoder.up.weight @ context)
        wanted.append(stream[t] + encoder.down.weight @ mixed)
    y, state = encoder(stream[None])
    assert_close({"y": y[0], "recent": state.recent[0]}, {"y": torch.stack(wanted), "recent": stream[-3:]}, 1e-12)
    assert torch.equal(SemanticEncoder(D)(stream[None].float())[0], stream[None].float())


def feed_forward(ffn: SwiGLU, x: Tensor) -> Tensor:
    return (silu(x @ ffn.gate.weight.T) * (x @ ffn.up.weight.T)) @ ffn.down.weight.T


def block_by_formula(block: Block, x: Tensor, epsilon: float) -> Tensor:
    mixed, _ = block.mixer((rms_norm(x, epsilon) * block.mixer_norm.weight)[None])
    x = x + mixed[0]
    return x + feed_forward(block.ffn, rms_norm(x, epsilon) * block.ffn_norm.weight)


@pytest.mark.parametrize("kind", ["static", "plastic"])
def test_block(kind: str) -> None:
    config = StackConfig(hidden_dim=D, num_layers=2, num_heads=3, window_size=5, ffn_dim=17, norm_eps=1e-3)
    block: Block = made(build_block(kind, config))
    stream = drawn()
    y, _ = block(stream[None], block.mixer.init_state(1))
    assert_close({"y": y[0]}, {"y": block_by_formula(block, stream, 1e-3)}, 1e-12)


def stacked(model: SSMN | TextSSMN, x: Tensor) -> Tensor:
    for block in model.blocks:
        assert isinstance(block, Block)
        x = block_by_formula(block, x, model.config.norm_eps)
    return rms_norm(x, model.config.norm_eps) * model.norm.weight


SIZES: dict[str, Any] = {"hidden_dim": D, "num_layers": 3, "num_heads": 3, "window_size": 5}


def test_standard_model() -> None:
    model: SSMN = made(SSMN(SSMNConfig(input_dim=5, output_dim=2, **SIZES)))
    stream = drawn(dim=5)
    wanted = nn.functional.linear(stacked(model, stream @ model.input.weight.T + model.input.bias), model.output.weight)
    assert_close({"y": model(stream[None])[0][0]}, {"y": wanted + model.output.bias}, 1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_text_model(tied: bool) -> None:
    model: TextSSMN = made(TextSSMN(TextSSMNConfig(vocab_size=19, tie_embeddings=tied, semantic_encoder=True, **SIZES)))
    ids = torch.randint(19, (T,))
    assert model.encoder is not None
    thought, _ = model.encoder(model.embedding.weight[ids][None])
    output = model.embedding.weight if model.output is None else model.output.weight
    assert (model.output is None) == tied
    assert_close({"y": model(ids[None])[0][0]}, {"y": stacked(model, thought[0]) @ output.T}, 1e-12)
