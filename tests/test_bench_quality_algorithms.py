"""The part about algorithmic tasks runs from end to end in tiny sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmn.bench.quality.family import algorithms
from ssmn.bench.quality.frame import Options, finished, work
from ssmn.plots import Look
from ssmn.training.episodes import EPISODES, RepeatCopy


@pytest.mark.parametrize("parameters", [20_000, 35_200])
def test_the_rival_has_as_many_parameters(parameters: int) -> None:
    assert algorithms.LstmReader(9, 7, parameters).num_parameters() == pytest.approx(parameters, rel=0.02)


def test_episodes_grow_from_the_smallest_to_the_largest() -> None:
    task = RepeatCopy(shortest=2, longest=5, fewest_repeats=1, most_repeats=4)
    sizes = [grown for share in range(8) if isinstance(grown := algorithms._grown(task, share / 8), RepeatCopy)]
    assert [(size.shortest, size.longest) for size in sizes] == [(2, top) for top in (2, 2, 3, 3, 4, 4, 5, 5)]
    assert [(size.fewest_repeats, size.most_repeats) for size in sizes] == [
        (1, top) for top in (1, 1, 2, 2, 3, 3, 4, 4)
    ]
    assert algorithms._grown(EPISODES["associative-recall"](), 0.99) == EPISODES["associative-recall"]()


def test_the_part(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = Options(tmp_path, seeds=2, quick=True)
    work(algorithms.PART, options, only=["copy-vectors-*", "associative*-ntm-0.003-0", "safety"])
    runs = finished(algorithms.PART, tmp_path)
    assert len(runs) == 2 * (2 + 1) + 1 + 1
    assert runs["safety"]["results"] == {"not_finite": {"feedforward": [], "lstm": []}}
    ours, theirs = (runs[f"copy-vectors-{model}-0.003-0"]["results"] for model in ("ntm", "lstm"))
    assert theirs["parameters"] == pytest.approx(ours["parameters"], rel=0.02)
    assert list(ours["sizes"]) == ["10 vectors", "20 vectors", "40 vectors", "100 vectors"]
    assert ours["sizes"]["40 vectors"]["bits"] == 40 * 8
    copy, recall, safety = algorithms.PART.tables(runs)
    assert len(copy.rows) == 6
    factor = sum(run["sizes"]["40 vectors"]["cost"] for run in _chosen(runs, "lstm")) / sum(
        run["sizes"]["40 vectors"]["cost"] for run in _chosen(runs, "ntm")
    )
    assert copy.caption.endswith(f"at 40 vectors: {factor:.3g}")
    assert recall.caption.endswith("not measured")
    assert [row[1] for row in safety.rows] == ["0", "0"]
    assert algorithms.PART.drawing(runs, Look()) is not None


def _chosen(runs: dict, model: str) -> list:
    """The results with the rate that is better with seed 0 at 20 vectors."""
    rates = {rate: runs[f"copy-vectors-{model}-{rate}-0"]["results"] for rate in ("0.003", "0.001")}
    best = min(rates, key=lambda rate: rates[rate]["sizes"]["20 vectors"]["cost"])
    return [runs[f"copy-vectors-{model}-{best}-{seed}"]["results"] for seed in (0, 1)]


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=1, quick=True)
    run = next(algorithms.PART.runs(options))
    place = algorithms.Workplace(options, tmp_path, lambda done, total, figures: done == 1)
    assert algorithms.PART.measure(run, place) is None


def test_a_run_is_a_function_of_its_settings(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=1, quick=True)
    run = next(algorithms.PART.runs(options))
    place = algorithms.Workplace(options, tmp_path, lambda done, total, figures: False)
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        result = algorithms.PART.measure(run, place)
        assert result is not None
        results.append(result["sizes"])
    assert results[0] == results[1]
