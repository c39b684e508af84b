"""The benchmarks: exact counts, tiny runs, and their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssmn import bench
from ssmn.bench.seed_table import stack_costs
from ssmn.bench.timing import time_alternately
from ssmn.errors import RangeError


def test_the_seeds_counts_and_the_exact_ones() -> None:
    assert bench.attention_counts(10_000, 512) == {
        "seed_full": 100_000_000,
        "seed_window": 5_120_000,
        "exact_full": 50_005_000,
        "exact_window": 4_989_184,
    }


@pytest.mark.parametrize(("length", "window"), [(1, 1), (7, 3), (5, 9), (13, 13)])
def test_exact_counts_are_the_pairs_of_a_causal_window(length: int, window: int) -> None:
    counts = bench.attention_counts(length, window)
    assert counts["exact_full"] == sum(1 for t in range(length) for _ in range(t + 1))
    assert counts["exact_window"] == sum(1 for t in range(length) for s in range(t + 1) if t - s < window)


def test_costs_of_the_two_stacks() -> None:
    costs = stack_costs(10_000, 512)
    assert costs["global_cache_bytes"] == 0
    assert costs["full_cache_bytes"] == 5 * 10_000 * 2 * 4 * 64 * 4
    assert costs["window_bytes"] == 4 * 511 * 2 * 4 * 64 * 4
    assert costs["memory_bytes"] == 4 * 64 * 64 * 4
    assert costs["full_multiply_adds"] == 5 * 50_005_000 * 2 * 64 * 4
    assert costs["window_multiply_adds"] == 4 * 4_989_184 * 2 * 64 * 4
    assert costs["memory_multiply_adds"] == 10_000 * 4 * 64 * 64 * 4
    assert stack_costs(20_000, 512)["window_bytes"] == costs["window_bytes"]


def test_a_tiny_seed_table() -> None:
    told: list[str] = []
    record = bench.run("seed-table", lengths=[33, 70], window=8, repeats=2, progress=told.append)
    rows = record["results"]["rows"]
    assert [row["length"] for row in rows] == [33, 70]
    assert told == ["n = 33", "n = 70"]
    for row in rows:
        assert len(row["all_milliseconds"]["sparse_stream"]) == 2
        assert row["speedup"] == row["milliseconds"]["full_attention"] / row["milliseconds"]["sparse_stream"] > 0


def test_a_tiny_soak_grows_nothing_and_refuses_nan() -> None:
    seen: list[int] = []
    results = bench.run("soak", tokens=12_000, progress=seen.append)["results"]
    assert results["tokens"] == seen[-1] == 12_000
    assert results["finite"]
    assert results["nan_pieces"] == results["nan_pieces_refused"] > 0
    assert len(results["microseconds_per_step_per_tenth"]) == 10
    norms = results["largest_memory_norm_per_tenth"]
    assert 0 < max(norms) < 1_000
    assert min(results["resident_bytes_per_tenth"]) > 0


def test_soak_is_repeatable() -> None:
    first, second = (bench.soak(1_500, seed=3)["largest_memory_norm_per_tenth"] for _ in range(2))
    assert first == second


def test_records_say_what_they_depend_on(tmp_path: Path) -> None:
    record = bench.run("soak", tokens=200, progress=lambda _: None)
    assert record["benchmark"] == "soak"
    assert record["settings"] == {"tokens": 200}
    assert {"processor", "threads", "torch", "commit"} <= record["machine"].keys()
    bench.save(record, tmp_path / "soak.json")
    assert json.loads((tmp_path / "soak.json").read_text()) == record


def test_candidates_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = time_alternately(calls, 3)
    assert order == ["a", "b"] * 4
    assert [len(runs) for runs in seconds.values()] == [3, 3]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(RangeError, match="bench: name='sedd-table'; wanted one of seed-table, soak"):
        bench.run("sedd-table")
    with pytest.raises(RangeError, match=r"seed_table: lengths=\[\], window=512, repeats=5; wanted 1 or more"):
        bench.seed_table([])
    with pytest.raises(RangeError, match="soak: tokens=9; wanted at least 10"):
        bench.soak(9)


def test_every_benchmark_is_summarised() -> None:
    assert set(bench.BENCHMARKS) == {"seed-table", "soak"}
    assert all(benchmark.summary.endswith((".", "?")) for benchmark in bench.BENCHMARKS.values())
