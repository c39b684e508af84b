"""The part about system identification: its textbook methods by hand, and a run from end to end in tiny sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ssmn.bench.quality.frame import Options, finished, work
from ssmn.bench.quality.series import system_identification as systems
from ssmn.plots import Look
from ssmn.training.tasks import Batch, LinearSystem


def test_recursive_least_squares_are_the_weighted_ridge_regression() -> None:
    batch = LinearSystem(dim=2, length=30).batch(0, batch_size=3)
    x, y = batch.inputs.double(), batch.targets.double()
    for forget in (0.0, 0.1):
        came = systems.least_squares(batch, forget, ridge=0.3)
        assert not came[:, 0].any()
        for t in (1, 7, 29):
            weight = (1 - forget) ** torch.arange(t - 1, -1, -1, dtype=torch.float64)
            keys = x[:, :t] * weight.sqrt().reshape(-1, 1)
            moment = keys.mT @ keys + 0.3 * (1 - forget) ** t * torch.eye(4, dtype=torch.float64)
            cross = (x[:, :t] * weight.reshape(-1, 1)).mT @ y[:, :t]
            wanted = x[:, t : t + 1] @ torch.linalg.solve(moment, cross)
            torch.testing.assert_close(came[:, t], wanted[:, 0].float(), atol=1e-4, rtol=1e-4)


def test_normalised_lms_by_hand() -> None:
    batch = LinearSystem(dim=2, length=3).batch(0, batch_size=1)
    x, y = batch.inputs[0], batch.targets[0]
    weights = 0.5 * x[0][:, None] * y[0] / x[0].square().sum()
    weights = weights + 0.5 * x[1][:, None] * (y[1] - x[1] @ weights) / x[1].square().sum()
    torch.testing.assert_close(systems.least_mean_squares(batch, 0.5)[0, 2], x[2] @ weights)


def test_errors_are_told_apart_by_switches() -> None:
    elapsed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6]])
    targets = torch.arange(10.0).reshape(1, 10, 1)
    batch = Batch(targets, targets, None, "test", elapsed=elapsed)
    found = systems.by_steps([batch], [torch.zeros(1, 10, 1)])
    assert found["fresh"]["0-7"] == pytest.approx((0 + 1 + 4) / 3)
    assert found["switched"]["0-7"] == pytest.approx(sum(n * n for n in range(3, 10)) / 7)
    assert found["fresh"]["128+"] is None


def test_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = Options(tmp_path, seeds=1, quick=True)
    work(systems.PART, options, only=["rec*", "norm*", "ssmn-*", "GRU-*"])
    runs = finished(systems.PART, tmp_path)
    assert len(runs) == 2 + 3
    sizes = {run["results"]["parameters"] for run in runs.values() if "parameters" in run["results"]}
    assert max(sizes) < 1.02 * min(sizes)
    assert all(math.isfinite(run["results"]["chosen_by"]) for run in runs.values())
    fresh, switched = systems.PART.tables(runs)
    names = [row[0] for row in fresh.rows]
    assert names == [
        "recursive least squares", "normalised LMS", "ssmn", "ssmn, memory frozen", "ssmn, rls read-out",
        "ssmn, rls read-out, memory frozen", "GRU",
    ]  # fmt: skip
    assert all(len(row) == len(table.head) for table in (fresh, switched) for row in table.rows)
    assert systems.PART.drawing(runs, Look()) is not None
