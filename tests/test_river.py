"""The river estimators: the library's own checks, and what it does not check."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("river", reason='the extra "timeseries" is not installed')

from river.checks import yield_checks

import ssmn
from ssmn.errors import RangeError, ShapeError
from ssmn.interfaces.online import PlasticReadout, RunningScale
from ssmn.interfaces.river import SSMNClassifier, SSMNForecaster, SSMNRegressor


def _checks() -> list[Any]:
    made = []
    for kind in (SSMNRegressor, SSMNClassifier, SSMNForecaster):
        for number, check in enumerate(yield_checks(kind())):
            made.append(pytest.param(kind, check, id=f"{kind.__name__}-{number}-{check.__name__}"))
    return made


@pytest.mark.parametrize(("kind", "check"), _checks())
def test_own_checks_of_river(kind: Any, check: functools.partial[None]) -> None:
    check(kind())


def stream(rows: int, switch: int | None = None) -> Iterator[tuple[dict[str, float], float]]:
    """A linear system of five features that becomes another one."""
    random = np.random.default_rng(0)
    systems = random.normal(size=(2, 5))
    for step in range(rows):
        x = random.normal(size=5)
        system = systems[int(switch is not None and step >= switch)]
        yield dict(zip("abcde", x.tolist(), strict=True)), float(10 + 3 * (x @ system) + 0.1 * random.normal())


def errors(model: Any, data: Iterator[tuple[dict[str, float], float]]) -> np.ndarray:
    found = []
    for x, y in data:
        found.append(model.predict_one(x) - y)
        model.learn_one(x, y)
    return np.array(found) ** 2


@pytest.mark.parametrize(("rule", "forget"), [("rls", 0.98), ("delta", 1.0)])
def test_it_follows_a_system_that_switches(rule: Any, forget: float) -> None:
    found = errors(SSMNRegressor(16, num_heads=2, rule=rule, forget=forget, norm_rate=0.01), stream(1200, switch=600))
    variance = 9 * 5
    before, at, after = found[500:600].mean(), found[600:620].mean(), found[1100:].mean()
    assert before < 0.03 * variance and after < 0.03 * variance < at


def test_engine_and_torch_give_the_same_numbers() -> None:
    pytest.importorskip("ssmn.native").library()
    found = []
    for backend in ("engine", "torch"):
        model = SSMNRegressor(16, num_heads=2, backend=backend)  # type: ignore[arg-type]
        assert model._stream.backend == backend
        found.append(errors(model, stream(60)))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)


def test_predictions_are_no_part_of_the_stream() -> None:
    one, two = SSMNRegressor(8, num_heads=2), SSMNRegressor(8, num_heads=2)
    data = list(stream(40))
    for x, y in data:
        one.predict_one(x)
        one.predict_one({"a": 1.0})
        one.learn_one(x, y)
        two.learn_one(x, y)
    assert one.predict_one(data[0][0]) == two.predict_one(data[0][0])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_copy_goes_on_as_the_original_also_after_a_prediction(backend: Any) -> None:
    model, series = SSMNRegressor(8, num_heads=2, backend=backend), SSMNForecaster(3, hidden_dim=8, backend=backend)
    data = list(stream(40))
    for x, y in data[:30]:
        model.learn_one(x, y)
        series.learn_one(y)
    model.predict_one(data[30][0])
    series.forecast(2)
    others = [pickle.loads(pickle.dumps(each)) for each in (model, series)]
    for x, y in data[30:]:
        for one, many in ((model, series), others):
            one.learn_one(x, y)
            many.learn_one(y)
    assert model.predict_one(data[0][0]) == pytest.approx(others[0].predict_one(data[0][0]), abs=1e-6)
    assert series.forecast(3) == pytest.approx(others[1].forecast(3), abs=1e-6)


def test_features_late_missing_and_not_a_number() -> None:
    model = SSMNRegressor(8, num_heads=2)
    data = list(stream(80))
    for number, (x, y) in enumerate(data):
        if number == 30:
            model.learn_one({**x, "new": 1.0, 5: 2.0}, y)
        model.learn_one({**x, "b": [None, math.nan, math.inf, x["b"]][number % 4]}, y)  # type: ignore[dict-item]
    whole: Any = dict(data[0][0])
    average: Any = {**whole, "b": float(model._scale.mean[1 + model._columns.places["b"]])}
    del whole["b"]
    assert model.predict_one(whole) == pytest.approx(model.predict_one(average), abs=1e-6)
    with pytest.raises(ShapeError, match="features: 'c' is 'red'; wanted a number"):
        model.predict_one({"c": "red"})


def test_a_trained_stack_has_its_inputs_in_order() -> None:
    given = ssmn.SSMN(
        ssmn.SSMNConfig(input_dim=3, output_dim=1, hidden_dim=8, num_layers=2, num_heads=2, window_size=5)
    )
    model = SSMNRegressor(model=given, features=("z", "a"))
    model.learn_one({"a": 1.0, "z": 2.0, "q": 3.0, "beyond": 4.0}, 1.0)
    np.testing.assert_array_equal(
        model._columns.directions, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    )  # z, a, beyond, q


def test_labels_of_any_kind_may_come_late() -> None:
    model, random = SSMNClassifier(16, num_heads=2), np.random.default_rng(1)
    right = []
    for step in range(400):
        label = ("low", "high", 7)[int(random.integers(3 if step > 100 else 2))]
        x: dict[Any, Any] = {
            "v": {"low": -2.0, "high": 2.0, 7: 0.0}[label] + 0.3 * random.normal(),
            "w": random.normal(),
        }
        right.append(model.predict_one(x) == label)
        model.learn_one(x, label)
    assert np.mean(right[-100:]) > 0.85
    assert sum(model.predict_proba_one({"v": 0.0}).values()) == pytest.approx(1.0)


def test_a_forecast_changes_nothing_and_follows_what_is_known_ahead() -> None:
    model, random = SSMNForecaster(lags=3, hidden_dim=8, num_heads=2), np.random.default_rng(2)
    coming = random.normal(size=130)
    for value in coming[:120]:
        model.learn_one(5 + 2 * value, {"x": value})
    xs = [{"x": float(value)} for value in coming[120:]]
    found = model.forecast(10, xs)
    assert found == model.forecast(10, xs)
    assert np.abs(np.array(found) - 5 - 2 * coming[120:]).mean() < 0.3
    with pytest.raises(ShapeError, match="xs has 10 rows; wanted horizon=4"):
        model.forecast(4, xs)
    assert SSMNForecaster().forecast(2) == [0.0, 0.0]


def test_recursive_least_squares_is_ridge_regression() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=(40, 6)), random.normal(size=(40, 2))
    read = PlasticReadout(6, 2, ridge=0.7)
    for row, target in zip(x, y, strict=True):
        read.learn(row, target - read(row))
    exact = np.linalg.solve(x.T @ x + 0.7 * np.eye(6), x.T @ y)
    np.testing.assert_allclose(read.weights, exact, atol=1e-10)


@pytest.mark.parametrize("rule", ["rls", "delta"])
def test_the_same_numbers_as_the_read_out_inside_the_model(rule: Any) -> None:
    """Beside a model whose own output is 0, in its features; its `rls` forgets a millionth per step."""
    torch.manual_seed(0)
    layer = ssmn.layers.PlasticReadout(5, 2, rule, eta=0.4, ridge=0.2)
    hidden, truth = torch.nn.functional.normalize(torch.randn(1, 50, 5), dim=-1), torch.randn(1, 50, 2)
    target = torch.cat([torch.full((1, 1, 2), math.nan), truth[:, :-1]], 1)
    said, _ = layer(torch.zeros(1, 50, 2), hidden, target=target)
    read = PlasticReadout(6, 2, rule, eta=0.4, ridge=0.2 if rule == "rls" else 1e-9)
    for step in range(50):
        phi = np.append(hidden[0, step].double().numpy(), 1.0) / math.sqrt(2)
        np.testing.assert_allclose(said[0, step], read(phi), atol=2e-3)
        read.learn(phi, truth[0, step].double().numpy() - read(phi))


def test_what_is_never_excited_stays_bounded_while_forgetting() -> None:
    read, random = PlasticReadout(4, 1, forget=0.9, ridge=0.5), np.random.default_rng(4)
    for _ in range(20_000):
        phi = np.array([1.0, random.normal(), 0.0, 0.0])
        read.learn(phi, phi[1:2] - read(phi))
    # Between two turns, 4 steps apart, a feature's share of the ridge fades to 0.9⁴ at most.
    assert np.diag(read.inverse).max() <= 1 / 0.5 / 0.9**4 * 1.3
    np.testing.assert_allclose(read.inverse, read.inverse.T, rtol=1e-12)
    assert np.isfinite(read.weights).all() and read.weights[1, 0] == pytest.approx(1.0, abs=0.2)
    assert (read.weights[2:] == 0).all()


def test_running_scale_by_hand() -> None:
    scale = RunningScale(2, 0.25)
    for row in ([1.0, math.nan], [3.0, 4.0], [5.0, 4.0]):
        scale.learn(np.array(row))
    np.testing.assert_allclose(scale.mean, [3.0, 4.0])
    np.testing.assert_allclose(scale.variance, [8 / 3, 0.0])
    np.testing.assert_allclose(scale.apply(np.array([3 + math.sqrt(8 / 3), 9.0])), [1.0, 0.0])
    scale.widen(1)
    np.testing.assert_allclose(scale.apply(np.array([1e9, math.nan, 1.0])), [8.0, 0.0, 0.0])


def test_one_wild_value_moves_little_and_a_new_level_is_reached() -> None:
    scale, random = RunningScale(1, 0.05), np.random.default_rng(5)
    for value in random.normal(size=100):
        scale.learn(np.array([value]))
    scale.learn(np.array([1e9]))
    assert abs(scale.mean[0]) < 1.0
    for value in 500 + random.normal(size=300):
        scale.learn(np.array([value]))
    assert abs(scale.mean[0] - 500) < 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SSMNRegressor(rule="sgd"), "rule='sgd'; wanted rls or delta"),  # type: ignore[arg-type]
        (lambda: SSMNRegressor(forget=0.0), "forget=0.0; wanted a share in"),
        (lambda: SSMNRegressor(ridge=0.0), "ridge=0.0; wanted a positive number"),
        (lambda: SSMNRegressor(eta=2.0), "eta=2.0; wanted a number in"),
        (lambda: SSMNRegressor(norm_rate=1.0), "rate=1.0; wanted a share in"),
        (lambda: SSMNForecaster(lags=0), "lags=0; wanted a whole number"),
        (lambda: SSMNForecaster(season=True), "season=True; wanted a whole number"),
    ],
)
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(RangeError, match=message):
        make()
