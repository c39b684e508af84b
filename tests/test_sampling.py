"""From logits to a token: the choice follows the probabilities and the limits set to it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ssmn.generation import Sampler, Sampling, StopStrings

LOGITS = np.array([1.0, -0.5, 2.0, 0.3, -4.0, 2.0, 0.9], np.float32)


def draws(logits: np.ndarray, count: int, **settings: Any) -> np.ndarray:
    sampler = Sampler(Sampling(**settings), len(logits), seed=0)
    return np.bincount([sampler.choose(logits) for _ in range(count)], minlength=len(logits))


def probabilities(logits: np.ndarray, kept: list[int], temperature: float = 1.0) -> np.ndarray:
    weights = np.zeros(len(logits))
    weights[kept] = np.exp(logits[kept].astype(np.float64) / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_k": 3}, [0, 2, 5]),
        ({"top_k": 1}, [2]),
        ({"top_k": 99}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_p": 0.6}, [2, 5]),
        ({"top_p": 0.7}, [0, 2, 5]),
        ({"top_k": 4, "top_p": 0.8}, [0, 2, 5]),
        ({"min_p": 0.3}, [0, 2, 5, 6]),
        ({"top_p": 0.7, "min_p": 0.5}, [2, 5]),
        ({"top_k": 3, "min_p": 1.0}, [2, 5]),
    ],
)
def test_draws_follow_the_probabilities(settings: dict[str, Any], kept: list[int]) -> None:
    wanted = probabilities(LOGITS, kept, settings.get("temperature", 1.0))
    count = 6000
    found = draws(LOGITS, count, **settings)
    assert set(np.flatnonzero(found)) <= set(kept)
    spread = np.sqrt(count * wanted * (1 - wanted)) + 1e-9
    assert (np.abs(found - count * wanted) <= 4 * spread).all()


def test_large_nuclei_are_found_whole() -> None:
    logits = np.random.default_rng(0).standard_normal(3000)
    ranked = np.argsort(-logits, kind="stable")
    share = np.cumsum(probabilities(logits, list(range(3000)))[ranked])
    for top_p in (0.01, 0.5, 0.9, 0.999, 1.0):
        kept = ranked[: int((share < top_p).sum()) + 1] if top_p < 1 else ranked
        found = draws(logits, 100, top_p=top_p)
        assert set(np.flatnonzero(found)) <= set(kept.tolist())
    small, large = draws(logits, 500, top_p=0.05), draws(logits, 500, top_p=0.9)
    assert np.count_nonzero(small) < np.count_nonzero(large)


def test_equals_are_taken_in_order() -> None:
    flat = np.zeros(9)
    assert set(np.flatnonzero(draws(flat, 300, top_k=3))) == {0, 1, 2}
    assert draws(flat, 20, temperature=0.0)[0] == 20


def test_a_rounding_difference_hardly_ever_changes_a_draw() -> None:
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((800, 1500)).astype(np.float32) * 2
    noise = generator.uniform(-1e-5, 1e-5, logits.shape).astype(np.float32)
    one, other = (Sampler(Sampling(top_p=0.95), 1500, seed=3) for _ in range(2))
    assert [one.choose(row) for row in logits] == [other.choose(row) for row in logits + noise]


def test_the_penalty_looks_back_over_its_window_only() -> None:
    def penalised(window: int | None, seen: list[int]) -> list[float]:
        settings = Sampling(temperature=0.0, repetition_penalty=4.0, repetition_window=window)
        sampler = Sampler(settings, len(LOGITS), seed=0)
        sampler.saw(seen)
        return sampler._penalised(LOGITS).tolist()

    plain = LOGITS.astype(np.float64).tolist()
    assert penalised(2, [2, 0, 0, 1]) == [plain[0] / 4, plain[1] * 4, *plain[2:]]
    assert penalised(None, [2, 0, 0, 1]) == [plain[0] / 4, plain[1] * 4, plain[2] / 4, *plain[3:]]
    assert penalised(2, [2, 3, 3, 3]) == [*plain[:3], pytest.approx(plain[3] / 4), *plain[4:]]


def test_the_penalty_takes_constant_memory() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0, repetition_window=50), 10, seed=0)
    sampler.saw(itertools.islice(itertools.cycle(range(10)), 10_000))
    assert len(sampler._recent) == 50
    assert sampler._counts.tolist() == [5] * 10
    unlimited = Sampler(Sampling(repetition_penalty=2.0, repetition_window=None), 10, seed=0)
    unlimited.saw(range(10))
    assert not unlimited._recent


@pytest.mark.parametrize("cut", range(1, 12))
def test_stop_strings_do_not_depend_on_the_cuts(cut: int) -> None:
    text = "a<b<<end>>c"
    for stops, wanted, found in [
        (["<end>"], "a<b<", "<end>"),
        (["<<", "<end>"], "a<b", "<<"),
        (["<end", "<end>"], "a<b<", "<end"),
        (["end", "<end>", "b<<end>>c"], "a<b<<", "end"),
        (["<ending>"], text, None),
        ([], text, None),
    ]:
        stop = StopStrings(stops)
        given = "".join(stop.push(text[start : start + cut]) for start in range(0, len(text), cut))
        if found is None:
            given += stop.finish()
        assert given == wanted
        assert stop.found == found
        assert stop.held == ""
