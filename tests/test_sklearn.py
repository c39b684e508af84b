"""The scikit-learn estimators: the library's own checks, and what it does not check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='the extra "timeseries" is not installed')

from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import ssmn
from ssmn.errors import ConfigError, FileError, RangeError, ShapeError
from ssmn.files import read_file, write_file
from ssmn.interfaces.features import (
    QUANTILES,
    delayed,
    hidden_map,
    levels_of,
    paces_for,
    pooled,
    random_stack,
    sequence_features,
)
from ssmn.interfaces.ridge import Ridge
from ssmn.interfaces.sklearn import SSMNClassifier, SSMNRegressor


@parametrize_with_checks([SSMNRegressor(), SSMNClassifier()])
def test_own_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def waves(count: int, channels: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences of 11 to 17 steps in two classes, by frequency."""
    random, labels = np.random.default_rng(5), np.arange(count) % 2
    made = []
    for label in labels:
        steps = np.arange(random.integers(11, 18))[:, None]
        made.append(np.sin(steps * (0.5 + 0.7 * label) + random.uniform(0, 6, channels)))
    return made, labels


def test_sequences_of_unequal_length_and_what_padding_does() -> None:
    x, y = waves(24)
    model = SSMNClassifier(16, random_state=1).fit(x[:16], y[:16])
    assert model.score(x[16:], y[16:]) >= 0.9
    # Each sequence alone gives what it gives beside longer ones.
    alone = np.concatenate([model.predict_proba([sequence]) for sequence in x])
    np.testing.assert_allclose(model.predict_proba(x), alone, atol=1e-4)
    equal = np.stack([sequence[:11] for sequence in x])
    np.testing.assert_allclose(model.predict_proba(equal), model.predict_proba(list(equal)), atol=1e-6)


def test_partial_fit_is_exact() -> None:
    """Enough rows that the kept factor is made smaller on the way."""
    random = np.random.default_rng(2)
    x = random.normal(size=(150, 3))
    y = np.stack([x[:, 0] * x[:, 1], x[:, 2]], 1) + 0.1 * random.normal(size=(150, 2))
    parts = SSMNRegressor(8, random_state=0, num_heads=2)
    for begin in (0, 40, 41, 97):
        parts.partial_fit(
            x[begin : {0: 40, 40: 41, 41: 97, 97: 150}[begin]], y[begin : {0: 40, 40: 41, 41: 97, 97: 150}[begin]]
        )
    assert parts.ridge_.rows is not None and len(parts.ridge_.rows) < 2 * parts.ridge_.rows.shape[1] + 60
    features = parts.ridge_.scale * 0 + np.concatenate([parts._features(*parts._read(x, is_first=False)[:2])])
    centred = (features - parts.ridge_.mean) / parts.ridge_.scale
    level, target = centred.mean(0), y.mean(0)
    gram = (centred - level).T @ (centred - level) + parts.ridge_.ridge * np.eye(centred.shape[1])  # type: ignore[operator]
    weights = np.linalg.solve(gram, (centred - level).T @ (y - target))
    np.testing.assert_allclose(parts.predict(x), (centred - level) @ weights + target, atol=1e-8)


@pytest.mark.parametrize(("rows", "columns"), [(9, 5), (9, 8), (7, 12), (11, 20_000)])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e5])
def test_leave_one_out_errors_are_those_of_leaving_one_out(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, strength: float
) -> None:
    monkeypatch.setattr("ssmn.interfaces.ridge.STRENGTHS", (strength,))
    random = np.random.default_rng(3)
    x, y = random.normal(size=(rows, columns)), random.normal(size=(rows, 2))
    read = Ridge()
    read.add(x, y)
    assert read.held_out is not None and read.ridge == strength
    for row in range(rows):
        rest = np.arange(rows) != row
        other = Ridge(strength)
        other.add(x[:1], y[:1])
        other.mean, other.scale, other.rows, other.targets = (
            x.mean(0), x.std(0), np.zeros((0, columns + 1)), np.zeros((0, 2))
        )  # fmt: skip
        other.add(x[rest], y[rest])
        np.testing.assert_allclose(other(x[row : row + 1])[0], read.held_out[row], atol=1e-6)


def test_gradient_epochs_change_the_stack_and_a_given_one_stays() -> None:
    x, y = waves(12)
    untouched = SSMNClassifier(8, num_heads=2, random_state=3).fit(x, y)
    trained = SSMNClassifier(8, num_heads=2, random_state=3, epochs=1).fit(x, y)
    again = SSMNClassifier(8, num_heads=2, random_state=3, epochs=1).fit(x, y)
    moved = (untouched.model_.input.weight - trained.model_.input.weight).abs().max()  # type: ignore[operator]
    assert 1e-4 < moved < 0.1
    np.testing.assert_array_equal(trained.predict_proba(x), again.predict_proba(x))
    given = ssmn.SSMN(
        ssmn.SSMNConfig(input_dim=2, output_dim=3, hidden_dim=8, num_layers=2, num_heads=2, window_size=5)
    )
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    model = SSMNClassifier(model=given, lags=1, epochs=1).fit(x, y)
    assert all((given.state_dict()[name] == tensor).all() for name, tensor in before.items())
    again_model: Any = clone(model)
    assert again_model.get_params()["epochs"] == 1


def test_a_row_of_a_table_can_be_a_series() -> None:
    x, y = waves(20, channels=1)
    table = np.stack([sequence[:11, 0] for sequence in x])
    model = SSMNClassifier(16, layout="series", random_state=0).fit(table, y)
    assert model.n_features_in_ == 11
    np.testing.assert_allclose(model.predict_proba(table), model.predict_proba(table[:, :, None]), atol=1e-6)


@pytest.mark.parametrize("kind", [SSMNRegressor, SSMNClassifier])
def test_files_bring_back_the_estimator(kind: Any, tmp_path: Path) -> None:
    x, y = waves(14)
    model = kind(8, num_heads=2, random_state=4, ridge=0.5).fit(
        x, np.array(["a", "b"])[y] if kind is SSMNClassifier else y
    )
    model.save(tmp_path / "m.safetensors")
    same = kind.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(same.predict(x), model.predict(x))
    assert same.get_params() == model.get_params()
    same.partial_fit(x[:3], model.predict(x[:3]))  # goes on from there
    other = SSMNRegressor if kind is SSMNClassifier else SSMNClassifier
    with pytest.raises(FileError, match=f"holds {kind.__name__}; wanted {other.__name__}"):
        other.load(tmp_path / "m.safetensors")
    tensors, header = read_file(tmp_path / "m.safetensors")
    del tensors["levels"]
    write_file(tmp_path / "old.safetensors", tensors, {"kind": "model", "config": header["config"]})
    with pytest.raises(FileError, match="an estimator without levels_, of an earlier version; fit and save it again"):
        kind.load(tmp_path / "old.safetensors")


def test_features_by_hand() -> None:
    import torch

    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert delayed(x, 2, 2).tolist() == [[[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]]
    assert paces_for(20, 3) == (1, 2, 4) and paces_for(1, 3) == (1,) and paces_for(99, 1) == (1,)
    found = pooled(torch.tensor([[[1.0], [-3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    np.testing.assert_allclose(found, [[-1.0, 2.0, 1.0, -3.0, 0.5]], rtol=1e-6)
    hidden, mask = torch.tensor([[[1.0, 5.0], [-3.0, 6.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]])
    levels = torch.tensor([[-4.0, 5.0], [-3.0, 6.0]])
    np.testing.assert_allclose(pooled(hidden, mask, levels)[:, 8:], [[0.5, 1.0, 1.0, 0.5, 0.5, 0.0]])
    state = torch.get_rng_state()
    one, two = random_stack(3, hidden_dim=8, num_heads=2, seed=1), random_stack(3, hidden_dim=8, num_heads=2, seed=1)
    assert torch.equal(one.input.weight, two.input.weight) and torch.equal(state, torch.get_rng_state())
    y, _ = hidden_map(one)(x.expand(-1, -1, 3))
    assert torch.equal(y, one(x.expand(-1, -1, 3))[0])


def test_levels_are_the_quantiles_of_hidden_units() -> None:
    import torch

    model = random_stack(2, hidden_dim=8, num_heads=2, seed=1)
    x, mask = torch.randn(3, 50, 1, generator=torch.Generator().manual_seed(0)), torch.ones(3, 50, dtype=torch.bool)
    mask[1, 40:] = False
    found = levels_of(model, x, mask, 2, (1, 4))
    assert found.shape == (2, 6, 8)
    hidden = model(delayed(x, 2, 4), mask=mask)[0][mask]
    shares = (hidden > found[1].unsqueeze(1)).double().mean(1)
    np.testing.assert_allclose(shares, np.tile(1 - np.array([QUANTILES]).T, 8), atol=0.01)
    features = sequence_features(model, x, mask, 2, (1, 4), found)
    assert features.shape == (3, 2 * 11 * 8)
    alone = sequence_features(model, x[1:2, :40], mask[1:2, :40], 2, (1, 4), found)
    torch.testing.assert_close(features[1:2], alone, atol=1e-4, rtol=1e-4)


def small() -> SSMNRegressor:
    return SSMNRegressor(8, num_heads=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: SSMNRegressor(lags=0).fit(x, y), RangeError, "lags=0; wanted a whole number of at least 1"),
        (lambda x, y: SSMNRegressor(ridge=-1.0).fit(x, y), RangeError, "ridge=-1.0; wanted a number of at least 0"),
        (lambda x, y: SSMNRegressor(learning_rate=0).fit(x, y), RangeError, "learning_rate=0; wanted a positive"),
        (lambda x, y: SSMNRegressor(layout="rows").fit(x, y), RangeError, "layout='rows'; wanted features or series"),  # type: ignore[arg-type]
        (lambda x, y: SSMNRegressor().fit([x[0], x[1][:, :1]], y[:2]), ShapeError, "sequence 1 of X has 1 channels"),
        (lambda x, y: small().fit(x, y).predict(np.eye(2)), ShapeError, "X holds features; wanted sequences"),
        (lambda x, y: SSMNClassifier().partial_fit(x, y, classes=[1, 2]), RangeError, "y has the label .*; wanted"),
        (lambda x, y: SSMNRegressor(model=random_stack(2)).fit(x, y), ConfigError, "model takes 2 inputs .*gives 6"),
        (lambda x, y: SSMNRegressor(model="mine").fit(x, y), ConfigError, "model is str; wanted an ssmn.SSMN"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_does_not_fit(call: Any, error: type[Exception], message: str) -> None:
    x, y = waves(6)
    with pytest.raises(error, match=message):
        call(x, y)


def test_a_model_that_scales_its_own_inputs_is_refused() -> None:
    config = ssmn.SSMNConfig.preset("tiny", input_dim=2, output_dim=2, normalise="running")
    with pytest.raises(ConfigError, match="model has normalise='running'; wanted 'none'"):
        hidden_map(ssmn.SSMN(config))
