"""Hopfield networks: binary ones against their definitions, retrieval, layers over sets, the memory of a stream."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn import ops
from ssmn.bench.quality.family import hopfield as part
from ssmn.bench.quality.frame import Options, finished, work
from ssmn.config import Plasticity, SSMNConfig, StackConfig, TextSSMNConfig
from ssmn.errors import ConfigError, DtypeError, RangeError, ShapeError, StateError
from ssmn.layers.blocks import build_block
from ssmn.models import SSMN, TextSSMN
from ssmn.plots import Look
from ssmn.relatives import Hopfield
from ssmn.relatives.hopfield import (
    BinaryNetwork,
    ClassicalNetwork,
    DenseNetwork,
    HebbianNetwork,
    HopfieldAssociation,
    HopfieldLookup,
    HopfieldMemory,
    HopfieldPooling,
    HopfieldState,
    PseudoInverseNetwork,
    StorkeyNetwork,
    energy,
    retrieve,
)
from ssmn.relatives.hopfield.classical import without_diagonal
from ssmn.state import State, StreamState

RULES: tuple[Any, ...] = (HebbianNetwork, StorkeyNetwork, PseudoInverseNetwork)


def signs(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


def turned(patterns: Tensor, count: int) -> Tensor:
    """Some bits of every pattern the other way, others for each."""
    places = torch.rand(patterns.shape, generator=torch.Generator().manual_seed(5)).argsort(-1) < count
    return torch.where(places, -patterns, patterns)


# Binary networks


def test_hebbian_weights_by_hand() -> None:
    network = HebbianNetwork.learn(torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]]))
    want = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]) / 3
    assert torch.equal(network.weights, want)
    # E = −(w01 s0 s1 + w02 s0 s2 + w12 s1 s2)
    assert network.energy(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])).tolist() == pytest.approx([2 / 3, -2 / 3])
    assert network.synchronous(torch.tensor([[1.0, 1.0, 1.0]])).tolist() == [[-1.0, 1.0, -1.0]]


def test_storkey_equals_its_definition_pair_by_pair() -> None:
    patterns, size = signs(4, 7), 7
    weights = torch.zeros(size, size, dtype=torch.float64)
    for pattern in patterns:
        change = torch.zeros_like(weights)
        for i in range(size):
            for j in range(size):
                at_i = sum(weights[i, k] * pattern[k] for k in range(size) if k not in (i, j))
                at_j = sum(weights[j, k] * pattern[k] for k in range(size) if k not in (i, j))
                change[i, j] = pattern[i] * pattern[j] - pattern[i] * at_j - at_i * pattern[j]
        weights = without_diagonal(weights + change / size)
    assert (StorkeyNetwork.learn(patterns).weights - weights).abs().max() < 1e-15


def test_pseudo_inverse_is_the_projector() -> None:
    patterns = signs(9, 20)
    network = PseudoInverseNetwork.learn(patterns)
    assert torch.allclose(network.projector, torch.linalg.pinv(patterns) @ patterns, atol=1e-12)
    assert torch.allclose(patterns @ network.projector, patterns, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_patterns_go_in_and_out(rule: Any, dtype: torch.dtype) -> None:
    patterns = signs(13, 40, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    network = rule.learn(patterns[:11])
    before = network.weights.clone()
    whole = rule.learn(patterns).weights
    grown = network.insert(patterns[11]).insert(patterns[12])
    assert (grown.weights - whole).abs().max() <= tolerance
    shrunk = grown.remove(patterns[4]).remove(patterns[12])
    others = rule.learn(torch.cat([patterns[:4], patterns[5:12]])).weights
    assert (shrunk.weights - others).abs().max() <= tolerance
    assert torch.equal(network.weights, before)
    if rule is not PseudoInverseNetwork:
        assert torch.equal(shrunk.weights, others)
        assert torch.equal(grown.weights, whole)


def test_a_pseudo_inverse_network_survives_many_changes() -> None:
    patterns = signs(60, 64)
    network = PseudoInverseNetwork.learn(patterns[:0])
    for pattern in patterns:
        network = network.insert(pattern)
    for pattern in patterns[::2]:
        network = network.remove(pattern)
    want = PseudoInverseNetwork.learn(patterns[1::2])
    assert torch.allclose(network.projector, want.projector, atol=1e-10)
    assert torch.allclose(network.inverse, want.inverse, atol=1e-10)


def networks(units: int, count: int) -> list[BinaryNetwork]:
    patterns = signs(count, units)
    classical = [rule.learn(patterns) for rule in RULES]
    dense = [DenseNetwork.learn(patterns, "polynomial", n) for n in (2, 3, 4)]
    return [*classical, *dense, DenseNetwork.learn(patterns, "rectified"), DenseNetwork.learn(patterns, "exponential")]


@pytest.mark.parametrize("number", range(8))
def test_no_asynchronous_update_raises_the_energy(number: int) -> None:
    network = networks(30, 9)[number]
    state = signs(50, 30, seed=8)
    before, fell = network.energy(state), 0
    for unit in torch.rand(50, 90, generator=torch.Generator().manual_seed(1)).argsort(-1).remainder(30).split(1, 1):
        state = network.update(state, unit)
        after = network.energy(state)
        assert bool((after <= before + 1e-12 * before.abs()).all())
        fell += int((after < before).sum())
        before = after
    assert fell > 50


@pytest.mark.parametrize("number", range(8))
def test_recall_restores_noisy_patterns_and_says_how_it_ended(number: int) -> None:
    network, patterns = networks(120, 5)[number], signs(5, 120)
    noisy = turned(patterns, 12)
    ended = network.recall(noisy, seed=2)
    assert torch.equal(ended.state, patterns)
    assert torch.equal(ended.overlap(patterns), torch.ones(5, dtype=torch.float64))
    assert bool(ended.converged.all()) and not bool(ended.cycling.any())
    assert int(ended.sweeps.min()) >= 1
    assert torch.equal(ended.energy, network.energy(patterns))
    at_rest = network.recall(patterns)
    assert not bool(at_rest.sweeps.any())
    assert torch.equal(network.recall(noisy, seed=2).state, ended.state)
    # A row of a batch ends as it does alone with the same order.
    assert torch.equal(network.recall(noisy[:1], seed=2).state, patterns[:1])


def test_asynchronous_updates_equal_a_loop_over_units() -> None:
    network, state = HebbianNetwork.learn(signs(7, 25)), signs(4, 25, seed=9)
    order = torch.rand(4, 25, generator=torch.Generator().manual_seed(4)).argsort(-1)
    want = state.clone()
    for row in range(4):
        for unit in order[row].tolist():
            field = network.total[unit] @ want[row]
            if field * want[row, unit] < 0:
                want[row, unit] = -want[row, unit]
    assert torch.equal(network.update(state, order), want)
    assert not torch.equal(want, state)


def test_dense_updates_choose_the_lower_energy_and_degree_two_is_hebbian() -> None:
    patterns, state = signs(11, 24), signs(6, 24, seed=9)
    order = torch.rand(6, 24, generator=torch.Generator().manual_seed(4)).argsort(-1)
    dense = DenseNetwork.learn(patterns, "polynomial", 2)
    hebbian = HebbianNetwork.learn(patterns)
    assert torch.equal(dense.update(state, order), hebbian.update(state, order))
    assert torch.allclose(dense.energy(state), 2 * hebbian.energy(state) - 11)
    cubic = DenseNetwork.learn(patterns, "polynomial", 3)
    by_hand = -24 * ((state @ patterns.T) / 24).pow(3).sum(-1)
    assert torch.allclose(cubic.energy(state), by_hand)


def test_dense_networks_hold_more_patterns_than_units() -> None:
    patterns = signs(150, 50)
    noisy = turned(patterns, 3)
    # The cubic one holds about N² / (2 · 3 ln N) = 106 patterns without error and with no noise.
    for network in (DenseNetwork.learn(patterns, "rectified", 5), DenseNetwork.learn(patterns, "exponential")):
        assert float(network.recall(noisy).overlap(patterns).mean()) > 0.99
    assert float(HebbianNetwork.learn(patterns).recall(noisy).overlap(patterns).mean()) < 0.6


def test_dense_patterns_go_in_and_out() -> None:
    patterns = signs(5, 12)
    network = DenseNetwork.learn(patterns[:4], "rectified", 4).insert(patterns[4]).remove(patterns[1])
    assert torch.equal(network.patterns, patterns[[0, 2, 3, 4]])
    assert (network.interaction, network.degree) == ("rectified", 4)


def test_synchronous_updates_may_cycle_and_recall_says_so() -> None:
    # Two units that hold each other's opposite: from (1, 1) both turn, for ever.
    network = HebbianNetwork.learn(torch.tensor([[1.0, -1.0]]))
    ended = network.recall(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), mode="synchronous")
    assert ended.cycling.tolist() == [True, False]
    assert ended.converged.tolist() == [False, True]
    assert network.recall(torch.tensor([[1.0, 1.0]])).converged.tolist() == [True]
    patterns = signs(4, 100)
    found = HebbianNetwork.learn(patterns).recall(turned(patterns, 10), mode="synchronous")
    assert torch.equal(found.state, patterns)
    assert bool(found.converged.all()) and 1 <= int(found.sweeps.max()) < 10


def test_recall_stops_after_max_sweeps() -> None:
    network, state = HebbianNetwork.learn(signs(20, 60)), signs(9, 60, seed=7)
    ended = network.recall(state, max_sweeps=1)
    assert set(ended.sweeps.tolist()) == {1}
    assert not bool(ended.converged.all())


def test_what_binary_networks_refuse() -> None:
    patterns = signs(4, 10)
    network = HebbianNetwork.learn(patterns)
    with pytest.raises(RangeError, match="patterns has values other than -1 and 1; wanted units of ±1"):
        HebbianNetwork.learn(torch.zeros(2, 5))
    with pytest.raises(DtypeError, match=r"patterns is torch.int64; wanted a float32 or float64 tensor"):
        HebbianNetwork.learn(torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(DtypeError, match=r"state is torch.float32 but the network torch.float64; convert it"):
        network.recall(torch.ones(2, 10))
    with pytest.raises(ShapeError, match=r"HebbianNetwork: state has shape \[2, 9\]; wanted \[B, 10\]"):
        network.energy(signs(2, 9))
    with pytest.raises(RangeError, match="max_sweeps=0; wanted a whole number of at least 1"):
        network.recall(patterns, max_sweeps=0)
    with pytest.raises(RangeError, match="mode='both'; wanted one of asynchronous, synchronous"):
        network.recall(patterns, mode="both")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"units is torch.int64 \[3, 1\]; wanted int64 \[B, U\] with B=4"):
        network.update(patterns, torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(RangeError, match="units has 10; wanted numbers from 0 to 9"):
        network.update(patterns, torch.full((4, 1), 10))
    with pytest.raises(RangeError, match="remove: the network is empty"):
        HebbianNetwork.learn(patterns[:0]).remove(patterns[0])
    removable: list[StorkeyNetwork | PseudoInverseNetwork | DenseNetwork] = [
        StorkeyNetwork.learn(patterns), PseudoInverseNetwork.learn(patterns), DenseNetwork.learn(patterns)
    ]  # fmt: skip
    for other in removable:
        with pytest.raises(RangeError, match="remove: the pattern is none of the 4 stored ones"):
            other.remove(-patterns[0])
    with pytest.raises(RangeError, match="the pattern is a combination of the patterns before it"):
        PseudoInverseNetwork.learn(patterns).insert(-patterns[2])
    with pytest.raises(RangeError, match="pattern 4 is a combination of the patterns before it"):
        PseudoInverseNetwork.learn(torch.cat([patterns, patterns[1:2]]))
    with pytest.raises(RangeError, match="11 patterns of 10 units; wanted at most 10"):
        PseudoInverseNetwork.learn(signs(11, 10))
    with pytest.raises(RangeError, match="interaction='cubic'; wanted one of polynomial, rectified, exponential"):
        DenseNetwork.learn(patterns, "cubic")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="degree=1; wanted a whole number of at least 2"):
        DenseNetwork.learn(patterns, degree=1)


# The synaptic memory as a linear Hopfield network


def written(patterns: Tensor, rule: Any, presentations: int = 1, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(what `query` reads, the memory) after patterns / √N were written as keys and as values, η = 1, λ = 0."""
    size = patterns.shape[1]
    steps = (patterns / math.sqrt(size)).repeat(presentations, 1)[None, :, None]
    asked = steps[:, :1] if query is None else query[None, :, None]
    ones = torch.ones(1, steps.shape[1], 1, dtype=patterns.dtype)
    trace, memory = ops.memory_write(steps, steps, eta=ones, log_decay=0 * ones, rule=rule)
    read, _ = ops.synaptic_memory(
        asked, 0 * asked, 0 * asked, eta=0 * ones[:, : asked.shape[1]], log_decay=0 * ones[:, : asked.shape[1]],
        rule="hebbian", initial_state=memory,
    )  # fmt: skip
    assert trace.keys.shape[-1] == size
    return read[0, :, 0], memory[0, 0]


def test_a_hebbian_synaptic_memory_is_the_classical_network_before_its_sign() -> None:
    count, size = 7, 50
    patterns, state = signs(count, size), signs(3, size, seed=9)
    read, memory = written(patterns, "hebbian", query=state)
    network = HebbianNetwork.learn(patterns)
    # The memory keeps the diagonal, P / N; the network leaves it out.
    diagonal = count / size * torch.eye(size, dtype=torch.float64)
    assert (memory - (network.weights + diagonal)).abs().max() < 1e-14
    field = state @ network.weights
    assert (read - (field + count / size * state)).abs().max() < 1e-13
    assert torch.equal((read - count / size * state).sign(), network.synchronous(state))


def test_the_delta_rule_approaches_the_pseudo_inverse() -> None:
    """I − S is multiplied by (I − ξ ξᵀ / N) at every step, so it goes to the projector onto the complement."""
    patterns = signs(12, 40)
    projector = PseudoInverseNetwork.learn(patterns).projector
    far = [float((written(patterns, "delta", n)[1] - projector).abs().max()) for n in (1, 3, 10, 30, 100)]
    assert far[0] > 0.1
    assert all(after < 0.6 * before for before, after in itertools.pairwise(far))
    assert far[-1] < 1e-5
    wide = PseudoInverseNetwork.learn(patterns[:1])
    assert (written(patterns[:1], "delta")[1] - wide.projector).abs().max() < 1e-14


# Continuous retrieval


def test_one_update_is_attention() -> None:
    generator = torch.Generator().manual_seed(2)
    query, stored, values = (torch.randn(2, n, d, generator=generator) for n, d in ((5, 8), (9, 8), (9, 3)))
    want = functional.scaled_dot_product_attention(query, stored, values, scale=1.7)
    assert (retrieve(query, stored, values=values, beta=1.7).pattern - want).abs().max() < 1e-6
    mask = torch.rand(2, 9, generator=generator) < 0.6
    want = functional.scaled_dot_product_attention(query, stored, stored, scale=1.7, attn_mask=mask.unsqueeze(1))
    assert (retrieve(query, stored, beta=1.7, mask=mask).pattern - want).abs().max() < 1e-6


def test_updates_lower_the_energy_until_they_are_at_rest() -> None:
    generator = torch.Generator().manual_seed(2)
    stored = torch.randn(2, 30, 16, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 7, 16, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 30, generator=generator) < 0.7
    before = energy(query, stored, beta=0.4, mask=mask)
    for _ in range(12):
        query = retrieve(query, stored, beta=0.4, mask=mask).pattern
        after = energy(query, stored, beta=0.4, mask=mask)
        assert bool((after <= before + 1e-12).all()) and bool((after >= 0).all())
        before = after


def test_energy_equals_its_formula_and_takes_a_beta_per_query() -> None:
    stored = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    query = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    want = -math.log(math.exp(0.5 * 3) + math.exp(0.5 * 2)) / 0.5 + 2.5 + math.log(2) / 0.5 + 4.5
    assert float(energy(query, stored, beta=0.5)) == pytest.approx(want, rel=1e-14)
    both = energy(query.expand(2, 2), stored, beta=torch.tensor([[0.5], [2.0]], dtype=torch.float64))
    assert float(both[0]) == pytest.approx(want)
    assert float(both[1]) == pytest.approx(float(energy(query, stored, beta=2.0)))
    one = energy(query, stored, beta=0.5, mask=torch.tensor([False, True]))
    assert float(one) == pytest.approx(-2 + 2.5 + 0.5)


def test_the_tolerance_stops_each_query_by_itself() -> None:
    stored = functional.normalize(torch.randn(20, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    near, between = stored[:1] * 0.9, 0.1 * stored.sum(0, keepdim=True)
    found = retrieve(torch.cat([near, between]), stored, beta=30.0, max_steps=50, tolerance=1e-3)
    alone = retrieve(near, stored, beta=30.0, max_steps=50, tolerance=1e-3)
    assert found.steps[0] < found.steps[1] < 50
    assert found.converged.tolist() == [True, True]
    assert torch.equal(found.pattern[:1], alone.pattern)
    short = retrieve(between, stored, beta=30.0, max_steps=1, tolerance=1e-3)
    assert short.steps.tolist() == [1] and short.converged.tolist() == [False]
    read = retrieve(near, stored, values=stored, beta=30.0, max_steps=3)
    assert read.steps.tolist() == [2]
    assert torch.equal(read.pattern, retrieve(near, stored, beta=30.0, max_steps=3).pattern)


def test_retrieval_passes_gradcheck_and_empty_sets_give_zeros() -> None:
    query, stored, values = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
                             for shape in ((3, 4), (5, 4), (5, 2)))  # fmt: skip
    beta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        query, stored, values, beta = leaves
        first = retrieve(query, stored, beta=beta, max_steps=3).pattern
        return first, retrieve(query, stored, values=values, beta=beta, mask=mask, max_steps=2).pattern

    assert not run(query, stored, values, beta)[1][1].any()
    assert torch.autograd.gradcheck(run, (query, stored, values, beta))
    assert retrieve(query, stored[:, :0], beta=1.0).pattern.abs().max() == 0


def test_what_retrieval_refuses() -> None:
    query, stored = torch.randn(2, 4), torch.randn(3, 4)
    for beta in (0.0, math.inf, torch.tensor(-1.0)):
        with pytest.raises(RangeError, match=r"beta=.*wanted a finite inverse temperature above 0"):
            retrieve(query, stored, beta=beta)
    with pytest.raises(ShapeError, match=r"query has shape \[2, 4\] but stored \[3, 5\]; wanted equal last axes"):
        retrieve(query, torch.randn(3, 5), beta=1.0)
    with pytest.raises(ShapeError, match="wanted a value for each pattern"):
        retrieve(query, stored, beta=1.0, values=torch.randn(2, 4))
    with pytest.raises(ShapeError, match=r"mask is torch.bool \[2\]; wanted bool \[3\]"):
        retrieve(query, stored, beta=1.0, mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(DtypeError, match=r"stored is torch.float64; wanted a floating tensor, all of the same dtype"):
        retrieve(query, stored.double(), beta=1.0)
    with pytest.raises(ShapeError, match=r"query has shape \[4\]; wanted \[.., patterns, features\]"):
        retrieve(query[0], stored, beta=1.0)
    with pytest.raises(RangeError, match="max_steps=0"):
        retrieve(query, stored, beta=1.0, max_steps=0)
    with pytest.raises(RangeError, match="tolerance=-1"):
        retrieve(query, stored, beta=1.0, tolerance=-1.0)
    with pytest.raises(RangeError, match="a set is empty"):
        energy(query, stored, beta=1.0, mask=torch.zeros(3, dtype=torch.bool))


# Layers over sets


def test_association_by_hand_of_masked_and_reordered_sets() -> None:
    torch.manual_seed(1)
    layer = HopfieldAssociation(5, 7, 12, 3, num_heads=2, update_steps=2, beta=4.0).double()
    asks, stored = torch.randn(2, 4, 5).double(), torch.randn(2, 9, 7).double()
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    out = layer(asks, stored, mask)
    order = torch.randperm(9)
    assert torch.allclose(layer(asks, stored[:, order], mask[:, order]), out, atol=1e-14)
    assert torch.allclose(layer(asks[1:], stored[1:, :6]), out[1:], atol=1e-14)
    query, key = layer.query(asks[0]).view(4, 2, 6), layer.key(stored[0]).view(9, 2, 6)
    value, heads = layer.value(stored[0]).view(9, 2, 6), []
    for head in range(2):
        keys = functional.normalize(key[:, head], dim=-1)
        at = functional.normalize(query[:, head], dim=-1)
        at = torch.softmax(4 * at @ keys.T, -1) @ keys
        heads.append(torch.softmax(4 * at @ keys.T, -1) @ value[:, head])
    assert torch.allclose(layer.output(torch.cat(heads, -1)), out[0], atol=1e-10)


@pytest.mark.parametrize("name", ["association", "pooling", "lookup"])
def test_layers_over_sets_pass_gradcheck(name: str) -> None:
    torch.manual_seed(1)
    options: dict[str, Any] = {"num_heads": 2, "update_steps": 2}
    layers: dict[str, nn.Module] = {
        "association": HopfieldAssociation(3, 5, 8, 2, **options),
        "pooling": HopfieldPooling(5, 8, 2, num_queries=3, **options),
        "lookup": HopfieldLookup(3, 8, 2, 7, **options),
    }
    layer = layers[name].double()
    asks = torch.randn(2, 4, 3).double().requires_grad_()
    stored = torch.randn(2, 6, 5).double().requires_grad_()
    mask = torch.arange(6) < torch.tensor([[6], [0]])
    given = {"association": (asks, stored, mask), "pooling": (stored, mask), "lookup": (asks,)}[name]
    weights = list(layer.parameters())

    def run(*leaves: Tensor) -> Tensor:
        return layer(*given)

    assert run().shape == {"association": (2, 4, 2), "pooling": (2, 3, 2), "lookup": (2, 4, 2)}[name]
    leaves = [x for x in (*given, *weights) if x.requires_grad]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_what_layers_over_sets_refuse() -> None:
    layer = HopfieldAssociation(3, 5, 8, 2)
    with pytest.raises(ConfigError, match="HopfieldAssociation: num_heads=3; wanted a divisor of hidden_dim=8"):
        HopfieldAssociation(3, 5, 8, 2, num_heads=3)
    with pytest.raises(ConfigError, match=r"beta=0.0; wanted a finite inverse temperature above 0"):
        HopfieldAssociation(3, 5, 8, 2, beta=0.0)
    with pytest.raises(ConfigError, match="HopfieldPooling: num_queries=0"):
        HopfieldPooling(3, 8, 2, num_queries=0)
    with pytest.raises(ConfigError, match="HopfieldLookup: num_patterns=0"):
        HopfieldLookup(3, 8, 2, 0)
    with pytest.raises(ConfigError, match="update_steps=0"):
        HopfieldAssociation(3, 5, 8, 2, update_steps=0)
    with pytest.raises(ShapeError, match=r"stored has shape \[2, 6, 4\]; wanted \[B, .., 5\]"):
        layer(torch.randn(2, 4, 3), torch.randn(2, 6, 4))
    with pytest.raises(ShapeError, match=r"mask is torch.bool \[2, 5\]; wanted bool \[2, 6\]"):
        layer(torch.randn(2, 4, 3), torch.randn(2, 6, 5), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(DtypeError, match="convert one of them"):
        layer(torch.randn(2, 4, 3).double(), torch.randn(2, 6, 5).double())


# The memory of a stream


def by_the_definition(memory: HopfieldMemory, hidden: Tensor) -> Tensor:
    """One stream [T, D], step by step from the formulas."""
    kept: list[tuple[Tensor, Tensor]] = []
    outputs, previous = [], torch.zeros_like(hidden[0])
    for h in hidden:
        source = previous if memory.pairing == "previous" else h
        key = functional.normalize(memory.key(source).view(memory.num_heads, -1), dim=-1)
        kept = [*kept, (key, memory.value(h).view(memory.num_heads, -1))][-memory.slots - 1 :]
        query = functional.normalize(memory.query(h).view(memory.num_heads, -1), dim=-1)
        keys, values = (torch.stack(column, 1) for column in zip(*kept, strict=True))
        for step in range(memory.update_steps):
            weights = torch.softmax(memory.beta[:, None] * (keys @ query.unsqueeze(-1)).squeeze(-1), -1)
            target = values if step == memory.update_steps - 1 else keys
            query = (weights.unsqueeze(1) @ target).squeeze(1)
        outputs.append(memory.output(query.flatten()))
        previous = h
    return torch.stack(outputs)


@pytest.mark.parametrize(("steps", "pairing"), [(1, "previous"), (3, "same"), (2, "previous")])
def test_the_memory_equals_its_definition(steps: int, pairing: Any) -> None:
    torch.manual_seed(2)
    memory = HopfieldMemory(12, 2, slots=5, update_steps=steps, pairing=pairing, beta=3.0).double()
    hidden = torch.randn(1, 17, 12).double()
    y, state = memory(hidden)
    # A key of zeros, the first step's, has no direction: l2 leaves it zero, as normalize does.
    assert torch.allclose(y[0], by_the_definition(memory, hidden[0]), atol=1e-9)
    assert state.position.tolist() == [17]
    assert torch.equal(state.previous[0], hidden[0, -1])
    source = hidden[0, 11:16] if pairing == "previous" else hidden[0, 12:17]
    order = [slot for slot, _ in sorted(enumerate(p % 5 for p in range(12, 17)), key=lambda pair: pair[1])]
    want = functional.normalize(memory.key(source).view(5, 2, 6), dim=-1)[order]
    assert torch.allclose(state.keys[0], want, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_memory_passes_gradcheck(steps: int) -> None:
    torch.manual_seed(2)
    memory = HopfieldMemory(8, 2, slots=3, update_steps=steps, initialisation="standard").double()
    hidden = torch.randn(2, 6, 8).double().requires_grad_()
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    with torch.no_grad():
        started = memory(torch.randn(2, 4, 8).double())[1]
    floating = {"keys", "values", "previous"}
    held = {n: x.clone().requires_grad_() for n, x in started.named_tensors().items() if n in floating}

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        y, after = memory(hidden, dataclasses.replace(started, **held), mask=mask)
        frozen, _ = memory(hidden, dataclasses.replace(started, **held), plasticity=Plasticity(frozen=True))
        return y, after.keys, after.values, frozen

    leaves = (hidden, *held.values(), *memory.parameters())
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_frozen_stores_nothing_and_reads_what_is_stored() -> None:
    torch.manual_seed(2)
    memory = HopfieldMemory(12, 2, slots=5, update_steps=2).double()
    frozen = Plasticity(frozen=True)
    _, state = memory(torch.randn(3, 4, 12).double())
    hidden = torch.randn(3, 6, 12).double()
    y, after = memory(hidden, state, plasticity=frozen)
    for name in ("keys", "values", "position"):
        assert torch.equal(getattr(after, name), getattr(state, name))
    assert torch.equal(after.previous, hidden[:, -1])
    # Among the four patterns that are there, not the empty slot: as retrieval says.
    query = functional.normalize(memory.query(hidden).view(3, 6, 2, 6), dim=-1).transpose(1, 2)
    held = [x[:, :4].transpose(1, 2) for x in (state.keys, state.values)]
    read = retrieve(query, held[0], values=held[1], beta=memory.beta[:, None, None], max_steps=2).pattern
    assert torch.allclose(y, memory.output(read.transpose(1, 2).flatten(2)), atol=1e-9)
    assert not memory(hidden, plasticity=frozen)[0].any()

    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    reset = torch.zeros(3, 6, dtype=torch.bool)
    reset[1, 3] = True
    some, emptied = memory(hidden, state, mask=mask, reset=reset, plasticity=frozen)
    want = torch.where(mask.unsqueeze(-1), y, 0.0)
    want[1, 3:] = 0
    assert torch.allclose(some, want, atol=1e-12)
    assert emptied.position.tolist() == [4, 0, 4] and not emptied.keys[1].any()

    cu_seqlens = torch.tensor([0, 2, 2, 6])
    packed, _ = memory(hidden[:1], state, cu_seqlens=cu_seqlens, plasticity=frozen)
    first, _ = memory(hidden[:1, :2], state.select([0]), plasticity=frozen)
    last, _ = memory(hidden[:1, 2:], state.select([2]), plasticity=frozen)
    assert torch.allclose(packed, torch.cat([first, last], 1), atol=1e-12)


def test_the_memory_recalls_what_followed_a_repeated_step() -> None:
    """By its associative start, without training: what comes out after a known step is what followed it."""
    torch.manual_seed(2)
    memory = HopfieldMemory(64, 1, slots=30, beta=30.0)
    symbols = functional.normalize(torch.randn(20, 64), dim=-1)
    _, state = memory(symbols[None])
    y, _ = memory(symbols[None, 7:8], state)
    assert int((y[0, 0] @ symbols.T).argmax()) == 8


def test_elapsed_has_no_effect_and_is_checked() -> None:
    memory = HopfieldMemory(12, 2, slots=5)
    hidden = torch.randn(2, 7, 12)
    assert torch.equal(memory(hidden, elapsed=torch.full((2, 7), 3.0))[0], memory(hidden)[0])
    with pytest.raises(RangeError, match="elapsed has negative or non-finite times"):
        memory(hidden, elapsed=torch.full((2, 7), -1.0))


def test_what_the_memory_refuses() -> None:
    memory = HopfieldMemory(12, 2, slots=5)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"slots": 0}, "HopfieldMemory: slots=0; wanted a whole number of at least 1"),
        ({"update_steps": 0}, "update_steps=0; wanted a whole number of at least 1"),
        ({"num_heads": 5}, "num_heads=5; wanted a divisor of hidden_dim=12"),
        ({"beta": -1.0}, r"beta=-1.0; wanted a finite inverse temperature"),
        ({"pairing": "next"}, "pairing='next'; wanted one of previous, same"),
        ({"initialisation": "random"}, "initialisation='random'; wanted one of associative, standard"),
    )
    for settings, message in refused:
        with pytest.raises(ConfigError, match=message):
            HopfieldMemory(12, **settings)
    with pytest.raises(StateError, match=r"keys has shape \[2, 4, 2, 6\]; wanted \[2, 5, 2, 6\]"):
        memory(torch.randn(2, 3, 12), HopfieldMemory(12, 2, slots=4).init_state(2))
    with pytest.raises(StateError, match="wanted HopfieldState"):
        memory(torch.randn(2, 3, 12), State())
    with pytest.raises(ConfigError, match="Hopfield: input_dim=0; wanted at least 1"):
        Hopfield(0, 12, 3)


def test_the_block_follows_the_config() -> None:
    config = StackConfig(hidden_dim=24, num_layers=2, num_heads=3, rope_theta=None, memory_slots=9, pairing="same",
                         initialisation="standard")  # fmt: skip
    mixer = build_block("hopfield", config).mixer
    assert (mixer.num_heads, mixer.slots, mixer.pairing) == (3, 9, "same")
    assert not torch.equal(mixer.key.weight, mixer.query.weight)
    assert float(mixer.output.weight.detach().std()) == pytest.approx(0.5 / math.sqrt(24 * 2), rel=0.2)
    assert mixer.beta.tolist() == pytest.approx([math.sqrt(8)] * 3)


_MODEL: dict[str, Any] = {
    "hidden_dim": 24, "num_layers": 3, "num_heads": 3, "window_size": 4, "memory_slots": 6,
    "layer_types": ("static", "hopfield", "static"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["standard", "text"])
def test_a_model_trains_a_step_steps_and_saves(kind: str, tmp_path: Path) -> None:
    if kind == "standard":
        model: Any = SSMN(SSMNConfig(input_dim=3, output_dim=2, **_MODEL))
        x: Any = torch.randn(2, 11, 3)
    else:
        model = TextSSMN(TextSSMNConfig(vocab_size=13, **_MODEL))
        x = torch.randint(13, (2, 11))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = model(x)[0].square().mean()
    before.backward()
    gradient = model.blocks[1].mixer.log_beta.grad
    assert gradient is not None and bool(gradient.any())
    optimizer.step()
    y, state = model(x)
    assert y.square().mean() < before
    stepped, after = model.step(x[:, 0], state)
    assert torch.equal(after.position, torch.full((2,), 12))
    assert isinstance(after.layers[1], HopfieldState)
    path = tmp_path / "state.safetensors"
    after.save(path, model)
    loaded = StreamState.load(path, model)
    assert after.diff(loaded).identical
    assert torch.equal(model.step(x[:, 1], loaded)[0], model.step(x[:, 1], after)[0])
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert again.config.memory_slots == 6
    assert torch.equal(again.step(x[:, 0], state)[0], stepped)
    empty = after.reset_memory().layers[1]
    assert isinstance(empty, HopfieldState) and not any(x.any() for x in empty.named_tensors().values())


# The benchmark's part


def test_the_part_runs_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = Options(tmp_path, seeds=1, quick=True)
    work(
        part.PART,
        options,
        only=["load-*", "tenth-*", "energy-0", "synaptic-0", "retrieval-0", "ceiling-0", "pooling-Hopfield-*"],
    )
    runs = finished(part.PART, tmp_path)
    by_load, tenth, energy, synaptic, retrieval, ceiling, pooling = part.PART.tables(runs)
    for table in (by_load, tenth):
        assert {row[0] for row in table.rows} == {"Hebbian", "Storkey", "pseudo-inverse"}
    assert [row[2] for row in tenth.rows] == 3 * ["0.0", "0.1"]
    assert {row[1] for row in energy.rows} == {"10 of 10"}
    assert float(synaptic.rows[0][1]) < 1e-12
    assert float(synaptic.rows[0][-1]) < 1e-3 < float(synaptic.rows[-1][2])
    assert len(retrieval.rows) == 2 * len(part.BETAS)
    # Of 100 patterns none is so near to another that a fifth of the entries would hide it.
    assert [row[1] for row in ceiling.rows] == 6 * ["1.0000"]
    assert runs["retrieval-0"]["results"]["difference_from_attention"]["float32"] < 1e-6
    assert [row[0] for row in pooling.rows] == ["0.003", "0.01"]
    assert part.PART.drawing(runs, Look()) is not None
    assert part.PART.drawing({}, Look()) is None
    assert part.PART.tables({}) == []


def test_a_stopped_run_is_no_result(tmp_path: Path) -> None:
    from ssmn.bench.quality.frame import Workplace

    place = Workplace(Options(tmp_path, quick=True), tmp_path, lambda done, total, figures: True)
    generator = part.runs(Options(tmp_path, seeds=1, quick=True))
    kinds, run = set(), next(generator)
    while run is not None:
        if run.settings["what"] not in kinds:
            kinds.add(run.settings["what"])
            assert part.measure(run, place) is None
        try:
            run = generator.send(None)
        except StopIteration:
            run = None
    assert kinds == {"load", "tenth", "energy", "synaptic", "retrieval", "ceiling", "pooling"}


def test_every_classical_network_has_symmetric_weights_without_a_diagonal() -> None:
    for rule in RULES:
        network: ClassicalNetwork = rule.learn(signs(6, 21))
        assert torch.allclose(network.weights, network.weights.T, rtol=0, atol=1e-15)
        assert not network.weights.diagonal().any()
