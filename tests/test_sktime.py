"""The sktime forecaster: the library's own checks, and what it does not check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sktime", reason='the extra "timeseries" is not installed')

import pandas
from sktime import datasets
from sktime.utils.estimator_checks import check_estimator

import ssmn
from ssmn.interfaces.online import OnlineForecaster
from ssmn.interfaces.sktime import SSMNForecaster

pd: Any = pandas
load_airline: Any = datasets.load_airline
Forecaster: Any = SSMNForecaster

pytestmark = pytest.mark.filterwarnings("default")  # sktime's checks warn of sktime's own changes to come

SMALL: dict[str, Any] = {"hidden_dim": 16, "num_heads": 2}


def test_some_of_sktimes_own_checks() -> None:
    names = ["test__y_when_refitting", "test_predict_quantiles", "test_fit_idempotent"]
    found = check_estimator(SSMNForecaster, tests_to_run=names, raise_exceptions=True, verbose=False)
    assert len(found) > 20 and set(found.values()) == {"PASSED"}


@pytest.mark.slow
def test_own_checks_of_sktime() -> None:
    found = check_estimator(SSMNForecaster, raise_exceptions=True, verbose=False)
    assert len(found) > 700 and set(found.values()) == {"PASSED"}


@pytest.mark.filterwarnings("error")
def test_updates_are_fitting_the_whole_and_cost_a_step_each(monkeypatch: pytest.MonkeyPatch) -> None:
    y = load_airline()
    whole = Forecaster(**SMALL).fit(y[:130], fh=range(1, 8))
    parts = Forecaster(**SMALL).fit(y[:40], fh=range(1, 8))
    learned: list[float] = []
    learn = OnlineForecaster.learn

    def counted(self: OnlineForecaster, value: float, *rest: Any, **options: Any) -> None:
        learned.append(value)
        learn(self, value, *rest, **options)

    monkeypatch.setattr(OnlineForecaster, "learn", counted)
    for begin, end in ((40, 41), (41, 97), (97, 130)):
        parts.update(y[begin:end])
    assert learned == y[40:130].tolist()
    pd.testing.assert_series_equal(parts.predict(), whole.predict())
    frozen = Forecaster(**SMALL).fit(y[:40], fh=range(1, 8))
    weights = frozen._online.readout.weights.copy()
    frozen.update(y[40:60], update_params=False)
    np.testing.assert_array_equal(frozen._online.readout.weights, weights)
    assert frozen.predict().index[0] == y.index[60]


def test_forecasts_beat_last_years_values_and_quantiles_are_in_order() -> None:
    y, errors, naive = load_airline(), [], []
    for cut in (84, 108, 132):
        forecaster = Forecaster(lags=13).fit(y[:cut], fh=range(1, 13))
        errors.append(np.abs(forecaster.predict() - y[cut : cut + 12]).mean())
        naive.append(np.abs(y[cut : cut + 12].to_numpy() - y[cut - 12 : cut].to_numpy()).mean())
        quantiles = forecaster.predict_quantiles(alpha=[0.05, 0.5, 0.9]).to_numpy()
        assert (np.diff(quantiles, axis=1) > 0).all()
    assert np.mean(errors) < 0.75 * np.mean(naive)


def test_intervals_hold_what_they_say() -> None:
    """An autoregressive series of known noise: four fifths of what comes lie within the 80 % interval, about."""
    random, held, y = np.random.default_rng(0), [], np.zeros(700)
    for step in range(1, 700):
        y[step] = 0.8 * y[step - 1] + random.normal()
    series = pd.Series(y)
    forecaster = Forecaster(lags=2, **SMALL).fit(series[:400], fh=[1, 3])
    for at in range(400, 696, 4):
        low, high = forecaster.predict_interval(coverage=0.8).to_numpy().T
        held += [low[0] < y[at] < high[0], low[1] < y[at + 2] < high[1]]
        forecaster.update(series[at : at + 4])
    assert 0.7 < np.mean(held) < 0.9


def test_a_gap_is_filled_and_teaches_nothing() -> None:
    y = pd.Series(np.sin(np.arange(200) / 3))
    y[150:156] = np.nan
    forecaster = Forecaster(lags=4, ridge=0.01, **SMALL).fit(y, fh=[1, 2])
    assert np.abs(forecaster.predict().to_numpy() - np.sin(np.array([200, 201]) / 3)).max() < 0.05


def test_a_trained_stack_reads_lags_and_exogenous_columns() -> None:
    config = ssmn.SSMNConfig(input_dim=3, output_dim=1, hidden_dim=8, num_layers=2, num_heads=2, window_size=5)
    y, x = pd.Series(np.arange(30.0) % 4), pd.DataFrame({"x": np.arange(33.0) % 3})
    forecaster = Forecaster(lags=2, model=ssmn.SSMN(config)).fit(y, X=x[:30], fh=[3])
    np.testing.assert_array_equal(forecaster._online.columns.directions, np.eye(3))
    assert np.isfinite(forecaster.predict(X=x[30:]).to_numpy()).all()
