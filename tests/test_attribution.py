"""Where a read comes from: the matrix against brute force, and the trace of a long stream against the matrix."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import ssmn
from ssmn import ops
from ssmn.config import Plasticity, SSMNConfig, TextSSMNConfig
from ssmn.errors import ConfigError, RangeError, ShapeError
from ssmn.layers.memory import SynapticMemory
from ssmn.models import SSMN, TextSSMN
from ssmn.probes import MemoryCall, Tracer, attribution_matrix, trace, watch_memories
from ssmn.probes.attribution import PieceMap, signed_length
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
