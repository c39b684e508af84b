"""Where a read comes from: the matrix against brute force, and the trace of a long stream against the matrix."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmn import ops
from ssmn.bench.quality.frame import Options, finished, work
from ssmn.bench.quality.memory import attribution
from ssmn.config import Plasticity, SSMNConfig, TextSSMNConfig
from ssmn.errors import ConfigError, RangeError, ShapeError
from ssmn.layers.memory import SynapticMemory
from ssmn.models import SSMN, TextSSMN
from ssmn.probes import MemoryCall, Trace, Tracer, attribution_matrix, trace, watch_memories
from ssmn.probes.attribution import PieceMap
from ssmn.state import PlasticState

RULES = ("hebbian", "delta", "erase")
HEADS, WIDTH, TIME = 3, 7, 19


def memory_of(rule: str, **settings: Any) -> SynapticMemory:
    """A layer whose gates depend on what comes."""
    memory = SynapticMemory(
        HEADS * WIDTH, HEADS, update_rule=rule, decay_lambda=(0.05, 0.01, 0.0), **settings  # type: ignore[arg-type]
    ).double()  # fmt: skip
    gates = [memory.importance, memory.decay] + ([] if memory.erasure is None else [memory.erasure])
    for gate in gates:
        torch.nn.init.normal_(gate.present.weight, std=0.3)  # type: ignore[arg-type]
    torch.nn.init.normal_(memory.key.weight, std=0.3)
    return memory


def state_of(memory: SynapticMemory) -> PlasticState:
    fresh = memory.init_state(1)
    return fresh.map(torch.randn_like)


def options_of(case: str) -> dict[str, Any]:
    mask = torch.rand(1, TIME) > 0.3
    mask[0, -1] = True
    reset = torch.zeros(1, TIME, dtype=torch.bool)
    reset[0, [0, 8, 13]] = torch.tensor([case == "reset from the start", True, True])
    return {
        "plain": {},
        "mask": {"mask": mask},
        "threshold": {"plasticity": Plasticity(write_threshold=0.5)},
        "elapsed": {"elapsed": 5 * torch.rand(1, TIME)},
        "reset": {"reset": reset},
        "reset from the start": {"reset": reset},
        "frozen": {"plasticity": Plasticity(frozen=True)},
        "all": {
            "mask": mask, "reset": reset, "elapsed": 5 * torch.rand(1, TIME),
            "plasticity": Plasticity(write_threshold=0.4, eta_scale=0.7, decay_scale=3.0),
        },
    }[case]  # fmt: skip


CASES = ("plain", "mask", "threshold", "elapsed", "reset", "reset from the start", "frozen", "all")


def read_by_hand(call: MemoryCall, without: int | None = None, blank: bool = False) -> Tensor:
    """The first read [H, T, V] by the definition; without one write (its erasure and decay stay), or from no memory."""
    write, erase, log_keep = call.coefficients()
    if without is not None:
        write = write.clone()
        write[:, without] = 0.0
    start = torch.zeros_like(call.initial_state) if blank else call.initial_state
    read, _ = ops.synaptic_memory(
        call.queries[0], call.keys, call.values, eta=write, log_decay=log_keep, erase=erase, rule="erase",
        reset=call.reset, initial_state=start, backend="reference",
    )  # fmt: skip
    return read[0].transpose(0, 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_what_a_write_contributes_is_what_is_missing_without_it(rule: str, case: str) -> None:
    memory, x = memory_of(rule), torch.randn(1, TIME, HEADS * WIDTH, dtype=torch.float64)
    state, options = state_of(memory), options_of(case)
    found = attribution_matrix(memory, x, state=state, **options)
    with watch_memories(memory) as seen:
        memory(x, state, **options)
    whole = read_by_hand(seen[0][0])
    torch.testing.assert_close(found.read, whole)
    torch.testing.assert_close(found.weights @ found.values + found.carried, whole)
    torch.testing.assert_close(found.carried, whole - read_by_hand(seen[0][0], blank=True))
    for step in range(TIME):
        missing = whole - read_by_hand(seen[0][0], without=step)
        share = found.weights[:, :, step].unsqueeze(-1) * found.values[:, step].unsqueeze(1)
        torch.testing.assert_close(share, missing)
    asked = found.reads[0]
    torch.testing.assert_close(asked.carried_query @ found.memory, asked.carried)
    kept = PieceMap(seen[0][0]).growth.unsqueeze(-1) * seen[0][0].queries[0][0].transpose(0, 1)
    torch.testing.assert_close(asked.stored @ found.updates + kept @ found.memory, whole)
    assert (found.weights.triu(1) == 0).all()


def test_sums_to_the_read_in_float32_over_many_steps() -> None:
    config = TextSSMNConfig(
        vocab_size=30, hidden_dim=24, num_layers=4, num_heads=2, window_size=5, memory_heads=3,
        layer_types=("static", "plastic", "plastic", "static"),
    )  # fmt: skip
    model, tokens = TextSSMN(config), torch.randint(30, (1, 700))
    _, state = model(torch.randint(30, (1, 50)))
    for layer in (1, 2):
        found = attribution_matrix(model, tokens, layer=layer, state=state)
        assert found.layer == layer
        with watch_memories(model) as seen:
            model(tokens, state)
        call = seen[layer][0]
        read, _ = ops.synaptic_memory(
            call.queries[0], call.keys, call.values, eta=call.eta, log_decay=call.log_decay, rule=call.rule,
            initial_state=call.initial_state,
        )  # fmt: skip
        summed = found.weights @ found.values + found.carried
        assert (summed - read[0].transpose(0, 1)).abs().max() <= 1e-5


def test_every_round_of_chat_is_a_read_of_its_own() -> None:
    memory, x = memory_of("delta", chat_rounds=2), torch.randn(1, TIME, HEADS * WIDTH, dtype=torch.float64)
    state = state_of(memory)
    found = attribution_matrix(memory, x, state=state)
    assert len(found.reads) == 3
    with watch_memories(memory) as seen:
        memory(x, state)
    call = seen[0][0]
    for number, read in enumerate(found.reads):
        wanted = read_by_hand(dataclasses.replace(call, queries=[call.queries[number]]))
        torch.testing.assert_close(read.weights @ found.values + read.carried, wanted)
    assert not torch.allclose(found.reads[0].weights, found.reads[1].weights)
    assert len(attribution_matrix(memory, x, plasticity=Plasticity(chat_rounds=1)).reads) == 2


def test_an_overwritten_value_is_gone() -> None:
    """The same key twice, written in full: what the first write stored is erased, and the weights say so."""
    key = torch.nn.functional.normalize(torch.randn(1, 1, HEADS, WIDTH), dim=-1).expand(1, 2, -1, -1)
    values, ones = torch.randn(1, 2, HEADS, 5), torch.ones(1, 2, HEADS)
    call = MemoryCall(
        key, values, ones, eta=ones, log_decay=torch.zeros(1, 2, HEADS), erase=None, rule="delta", mask=None,
        reset=None, cu_seqlens=None, initial_state=torch.zeros(1, HEADS, WIDTH, 5),
    )  # fmt: skip
    piece = PieceMap(call)
    weights, _, stored = piece.ask(key[0].double().transpose(0, 1))
    torch.testing.assert_close(weights[:, 1], torch.tensor([0.0, 1.0]).double().expand(HEADS, -1))
    # As it lies there, the first write still is there in full: the second one took it back.
    torch.testing.assert_close(stored[:, 1], torch.ones(HEADS, 2).double())
    updates = piece.updates(values[0].double().transpose(0, 1), torch.zeros(HEADS, WIDTH, 5).double())
    torch.testing.assert_close(updates[:, 1], (values[0, 1] - values[0, 0]).double())


def traced_model(rule: Any = "delta", **settings: Any) -> TextSSMN:
    config = TextSSMNConfig(
        vocab_size=30, hidden_dim=24, num_layers=4, num_heads=2, window_size=5, memory_heads=3, update_rule=rule,
        layer_types=("static", "plastic", "plastic", "static"), **settings,
    )  # type: ignore[arg-type]  # fmt: skip
    model = TextSSMN(config)
    for block in model.blocks[1:3]:
        torch.nn.init.normal_(block.mixer.importance.present.weight, std=0.5)
        torch.nn.init.normal_(block.mixer.key.weight, std=0.3)
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", ["plain", "masked"])
def test_a_trace_is_the_matrix_however_the_stream_is_cut(rule: str, case: str) -> None:
    model, tokens = traced_model(rule, write_threshold=0.3), torch.randint(30, (1, 150))
    _, state = model(torch.randint(30, (1, 11)))
    options: dict[str, Any] = {}
    if case == "masked":
        reset = torch.zeros(1, 150, dtype=torch.bool)
        reset[0, 90] = True
        options = {"mask": torch.rand(1, 150) > 0.2, "reset": reset, "elapsed": 3 * torch.rand(1, 150)}
    tracer = Tracer(model, state, top=4)
    cuts = (0, 37, 38, 38, 110, 150)
    pieces = [
        tracer.push(tokens[:, a:b], **{name: value[:, a:b] for name, value in options.items()})
        for a, b in itertools.pairwise(cuts)
    ]
    found = Trace.join(pieces)
    opened = options.get("mask", torch.ones(1, 150, dtype=torch.bool))[0]
    steps = 11 + opened.cumsum(0) - opened.long()
    assert torch.equal(found.steps, steps)
    for place, layer in enumerate(found.layers):
        exact = attribution_matrix(model, tokens, layer=layer, state=state, **options)
        strongest = exact.contributions().gather(1, exact.contributions().abs().topk(4).indices)
        torch.testing.assert_close(found.weights[:, place], strongest, atol=2e-5, rtol=1e-4)
        numbers = torch.full((int(steps[-1]) + 1,), -1)
        numbers[steps[opened]] = torch.arange(150)[opened]  # closed steps write nothing
        at = found.positions[:, place]
        rows = torch.arange(150).unsqueeze(1).expand_as(at)
        there = at >= 0
        torch.testing.assert_close(
            found.weights[:, place][there], exact.contributions()[rows[there], numbers[at[there]]], atol=2e-5, rtol=1e-4
        )
        assert bool((found.weights[:, place][~there] == 0).all())
        carried = exact.carried.square().sum((0, 2)).sqrt()
        others = (exact.read - exact.carried).square().sum((0, 2)).sqrt()
        torch.testing.assert_close(
            found.carried[:, place], (carried / (carried + others)).nan_to_num(), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(found.reads[:, place], exact.read.square().sum((0, 2)).sqrt(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.importance[:, place], exact.importance.mean(0))
        torch.testing.assert_close(found.written[:, place], exact.written.float().mean(0))
    assert bool((found.dropped == 0).all())
    logits, after = model(tokens, state, **options)
    torch.testing.assert_close(tracer.output, logits[:, cuts[-2] :], atol=1e-4, rtol=1e-4)
    assert all(entry.relative < 1e-5 for entry in tracer.state.diff(after))
    bits = torch.nn.functional.cross_entropy(logits[0][opened][:-1], tokens[0][opened][1:], reduction="none") / 0.693147
    torch.testing.assert_close(found.novelty[opened][1:].float(), bits, atol=1e-3, rtol=1e-4)  # type: ignore[index]
    assert bool(found.novelty[0].isnan()) and bool(found.novelty[~opened].isnan().all())  # type: ignore[index]


def test_a_full_budget_drops_what_can_say_least_and_leaves_the_rest_exact() -> None:
    model, tokens = traced_model(), torch.randint(30, (1, 900))
    per_write = 2 * (4 * 3 * (8 + 8 + 1) + 8)
    small = Tracer(model, top=5, budget=200 * per_write)
    found, kept = [], []
    for piece in tokens.split(123, 1):
        found.append(small.push(piece))
        kept.append(small.kept)
        assert small.nbytes <= 200 * per_write
    assert max(kept) <= 400 and kept[-1] > 300
    cut = Trace.join(found)
    whole = trace(model, tokens.split(400, 1), top=900)
    assert bool((cut.dropped[:150] == 0).all()) and float(cut.dropped[-1].max()) > 0
    at, weights = cut.positions, cut.weights
    exact = torch.zeros(900, 2, 901).scatter_(2, whole.positions % 901, whole.weights)
    torch.testing.assert_close(weights, torch.where(at >= 0, exact.gather(2, at % 901), 0.0), atol=2e-5, rtol=1e-4)
    # What is kept, what was dropped and what was there before are the whole memory.
    for writes, layer in zip(small._kept, small.layers, strict=True):
        kept_part = writes.keys[:, : writes.count].mT @ writes.values[:, : writes.count]
        parts = kept_part.double() + writes.rest + writes.before
        memory = small.state.layers[layer].memory[0]  # type: ignore[union-attr]
        torch.testing.assert_close(parts.float(), memory, atol=1e-4, rtol=1e-4)
        assert float(writes.rest.abs().max()) > 0


def test_a_fork_goes_its_own_way() -> None:
    model, tokens = traced_model(), torch.randint(30, (1, 90))
    tracer = Tracer(model)
    tracer.push(tokens[:, :40])
    twin = tracer.fork()
    twin.push(torch.randint(30, (1, 70)))
    wanted = trace(model, tokens)
    found = tracer.push(tokens[:, 40:])
    assert torch.equal(found.positions, wanted.positions[40:])
    torch.testing.assert_close(found.weights, wanted.weights[40:], atol=1e-5, rtol=1e-4)


def test_rows_of_numbers_are_traced_too() -> None:
    config = SSMNConfig(
        input_dim=3, output_dim=2, hidden_dim=12, num_layers=3, num_heads=2, window_size=4, future_dim=1
    )
    model, x, future = SSMN(config), torch.randn(1, 20, 3), torch.randn(1, 20, 1)
    tracer = Tracer(model)
    found = tracer.push(x, future=future)
    assert found.novelty is not None
    errors = (tracer.output[0, :-1] - x[0, 1:, :2]).square().mean(-1).sqrt()
    torch.testing.assert_close(found.novelty[1:].float(), errors)
    silent = SSMN(dataclasses.replace(config, targets=(), future_dim=0))
    assert trace(silent, x).novelty is None


def test_refusals_say_what_to_do() -> None:
    model, tokens = traced_model(), torch.randint(30, (2, 7))
    with pytest.raises(ShapeError, match=r"x is of shape \[2, 7\]; wanted one row, \[1, T, ...\]: take x\[row"):
        attribution_matrix(model, tokens)
    with pytest.raises(RangeError, match="cu_seqlens is given; wanted one stream at a time"):
        attribution_matrix(model, tokens[:1], cu_seqlens=torch.tensor([0, 3, 7]))
    with pytest.raises(RangeError, match=r"layer=3; wanted one with a synaptic memory: 1, 2\."):
        attribution_matrix(model, tokens[:1], layer=3)
    with pytest.raises(RangeError, match=r"x has 4,097 steps; wanted at most 4,096.*use ssmn.probes.trace"):
        attribution_matrix(model, torch.zeros(1, 4097, dtype=torch.int64))
    with pytest.raises(RangeError, match="top=0; wanted a whole number"):
        Tracer(model, top=0)
    with pytest.raises(RangeError, match="budget=100; wanted at least 27,136 bytes, for 64 writes"):
        Tracer(model, budget=100)
    with pytest.raises(RangeError, match=r"state has 2 rows; wanted one: state.select"):
        Tracer(model, model.init_state(2))
    with pytest.raises(RangeError, match="x has no pieces"):
        trace(model, [])
    window = TextSSMN(TextSSMNConfig(vocab_size=9, hidden_dim=8, num_layers=1, num_heads=2, layer_types=("static",)))
    with pytest.raises(ConfigError, match="none has a synaptic memory"):
        trace(window, tokens[:1])


def test_the_part_of_the_quality_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ssmn.plots import Look

    options = Options(tmp_path, seeds=1, quick=True)
    work(attribution.PART, options)
    runs = finished(attribution.PART, tmp_path)
    passkeys, lives, sums, planted, cost = attribution.PART.tables(runs)
    assert passkeys.rows[0][:4] == ["0", "noise", "40", "6"]
    (found,) = runs["passkey-0"]["results"]["found"].values()
    assert 0 <= found["first"] <= found["third"] <= found["trials"] == 6
    for _, theory, applied, read_only, hebbian, overwritten in lives.rows:
        assert float(applied) == pytest.approx(float(theory), rel=1e-3)
        assert float(read_only) == pytest.approx(float(theory), rel=1e-3)
        assert float(hebbian) == pytest.approx(float(theory), rel=1e-3) and float(overwritten) < float(theory)
    assert all(float(error) <= 1e-5 for _, error in sums.rows)
    assert len(planted.rows) == 10 and len(cost.rows) == 1
    assert attribution.PART.drawing(runs, Look()) is not None
