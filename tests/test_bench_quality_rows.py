"""The parts on sequence classification and on learning row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sktime", reason='the extra "timeseries" is not installed')
pytest.importorskip("river", reason='the extra "timeseries" is not installed')

import torch

from ssmn.bench.quality.frame import Options, finished, work
from ssmn.bench.quality.series import classification, updates


@pytest.mark.filterwarnings("default")  # loading sktime's data warns of sktime's own changes to come
def test_classification(tmp_path: Path) -> None:
    part = classification.PART
    assert work(part, Options(tmp_path, seeds=1, quick=True))
    runs = finished(part, tmp_path)
    assert runs["BasicMotions-SSMN-0"]["results"]["accuracy"] > 0.9
    table = part.tables(runs)[0]
    assert [row[:2] for row in table.rows] == [["BasicMotions", name] for name in ("SSMN", "ROCKET", "GRU")]


def test_rocket_by_hand() -> None:
    """Kernels have mean 0: without padding a constant adds nothing to the bias, with it the edges are seen."""
    x = torch.zeros(2, 1, 7)
    x[1] = 5.0
    features = classification.rocket(x, 40, seed=0)
    assert features.shape == (2, 80)
    blind = np.isclose(features[0], features[1], atol=1e-5)
    assert blind.any() and not blind.all()
    assert np.isin(features[0], [0.0, 1.0]).sum() >= 40  # of nothing but a bias, all or no step is above 0


def test_gru_has_as_many_weights() -> None:
    for parameters, channels in ((100_000, 12), (90_000, 1)):
        width = classification.width_for(parameters, channels)
        gru = torch.nn.GRU(channels, width)
        assert abs(sum(p.numel() for p in gru.parameters()) / parameters - 1) < 0.02


def test_updates(tmp_path: Path) -> None:
    part = updates.PART
    assert work(part, Options(tmp_path, quick=True))
    runs = finished(part, tmp_path)
    for kind in (*updates.KINDS, *updates.MODELS):
        found = runs[kind]["results"]
        assert found["growth_mb"] < 8 and found["median_us"] > 0
    assert runs["regressor-rls"]["results"]["error_median"] < 0.2
    for rule in ("rls", "delta"):
        engine, torch_run = (runs[f"model-{rule}-{backend}"]["results"] for backend in ("engine", "torch"))
        assert (engine["backend"], torch_run["backend"]) == ("engine", "torch")
        assert engine["error_median"] == pytest.approx(torch_run["error_median"], rel=1e-4)
    costs, many = part.tables(runs)
    assert len(costs.rows) == 8 and many.rows[0][0] == "50"


def test_each_of_many_series_is_as_it_would_be_alone() -> None:
    readouts = updates.ManyReadouts(5, 3)
    random = np.random.default_rng(0)
    alone = np.zeros(3)
    for _ in range(9):
        which, phi = np.array([1, 4]), random.normal(size=(2, 3)).astype(np.float32)
        error = np.array([1.0, 2.0], np.float32) - readouts(which, phi)
        readouts.learn(which, phi, error)
        row = phi[1].astype(np.float64)
        alone += 0.5 * row * (2.0 - alone @ row) / (1 + row @ row)
    np.testing.assert_allclose(readouts.weights[4], alone, atol=1e-5)
    assert (readouts.weights[[0, 2, 3]] == 0).all()
