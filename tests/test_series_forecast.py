"""Forecasting: the read-out that learns late truths, the forecaster's laws, its files and its command."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssmn.cli import main
from ssmn.errors import ConfigError, FileError, RangeError, ShapeError, StateError
from ssmn.series import Forecaster, ForecasterConfig, Table, read_table
from ssmn.series.fitted import averaged
from ssmn.series.readout import DelayedReadout, ridge
from ssmn.series.tables import Times
from ssmn.series.windows import Regressors, Rows, WindowSpec, calendar, moments

HORIZON = 5


def hours(count: int, begin: str = "2024-01-01") -> Times:
    return np.datetime64(begin, "ns") + np.arange(count) * np.timedelta64(1, "h")


def waves(count: int, columns: int = 2, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(count)[:, None]
    clean = np.sin(2 * np.pi * time / 12 + np.arange(columns)) * (1 + np.arange(columns)) + 20 * np.arange(columns)
    return clean + noise * random.standard_normal((count, columns))


def table_of(values: np.ndarray, begin: str = "2024-01-01") -> Table:
    names = tuple("abcdef"[: values.shape[1]])
    return Table(names, values, hours(len(values), begin), np.arange(1, len(values) + 1), "date")


def fitted(count: int = 220, **settings: Any) -> Forecaster:
    config = ForecasterConfig(**{"horizon": HORIZON, "contexts": (13, 24), "steps": 0, **settings})
    return Forecaster(config).fit(table_of(waves(count)))


def same(one: Forecaster, other: Forecaster, tolerance: float = 0.0) -> None:
    mine, theirs = one.predict(), other.predict()
    np.testing.assert_allclose(mine.mean, theirs.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(mine.quantiles, theirs.quantiles, rtol=tolerance, atol=tolerance)


# The read-out


def test_each_step_ahead_is_what_ridge_on_the_truths_so_far_would_be() -> None:
    """With forget 1, weights of step h equal the closed form on all windows whose truth h rows later has come."""
    random = np.random.default_rng(1)
    rows, features, channels, horizon = 23, 4, 3, 5
    phi = random.standard_normal((rows, channels, features)).astype(np.float32).astype(np.float64)
    series = random.standard_normal((rows + 1, channels))
    shift = random.standard_normal((rows, channels))
    penalty = np.full(features, 0.7)
    readout = DelayedReadout(np.zeros((features, horizon)), np.diag(1 / penalty), channels, forget=1.0)
    for row in range(rows):
        readout.learn(series[row])
        readout.observe(phi[row], shift[row], np.ones(channels))
    for ahead in range(1, horizon + 1):
        known = [row for row in range(rows) if row + ahead < rows]
        x = np.concatenate([phi[row] for row in known])
        y = np.concatenate([series[row + ahead] - shift[row] for row in known])
        wanted = ridge(x.T @ x, (x.T @ y)[:, None], penalty)[:, 0]
        np.testing.assert_allclose(readout.weights[ahead - 1], wanted, atol=2e-4)


def test_a_truth_that_is_unknown_teaches_nothing() -> None:
    readout = DelayedReadout(np.ones((2, 3)), np.eye(2), channels=2, forget=0.9)
    readout.observe(np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros(2), np.ones(2))
    before = readout.weights.copy()
    errors, _ = readout.learn(np.array([np.nan, np.nan]))
    assert np.isnan(errors).all()
    np.testing.assert_array_equal(readout.weights, before)


def test_forgetting_without_news_does_not_blow_up() -> None:
    readout = DelayedReadout(np.zeros((3, 2)), np.eye(3), channels=1, forget=0.9)
    for _ in range(500):
        readout.learn(np.array([1.0]))
        readout.observe(np.array([[1.0, 0.0, 0.0]]), np.zeros(1), np.ones(1))
    assert np.trace(readout.covariance) < 34  # ten times the first, and one step of forgetting
    assert np.isfinite(readout.weights).all()


def test_moments_are_those_of_all_windows() -> None:
    rows = Rows(waves(31), np.zeros((31, 0)), np.zeros((36, 0)))
    make = Regressors(WindowSpec(context=7, horizon=HORIZON))
    sums = moments(make, rows, 9, 31)
    assert sums.windows == 2 * (31 - HORIZON - 9 + 1)
    weights = np.random.default_rng(0).standard_normal((7 + 2, HORIZON))
    errors = []
    for channel in range(2):
        for origin in range(9, 31 - HORIZON + 1):
            phi, shift, _ = make(rows, np.array([origin]), channel)
            errors.append(phi[0] @ weights + shift[0] - rows.values[origin : origin + HORIZON, channel])
    assert sums.error(weights) == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


# The forecaster


def test_it_learns_a_season_and_its_intervals_hold() -> None:
    forecaster = fitted()
    test = table_of(waves(400)[220:], "2024-01-10T04")
    result = forecaster.backtest(test)
    assert result.windows == 180 - HORIZON + 1
    assert forecaster.choice.context in (13, 24)
    assert result.column_mae[0] < 0.15 and result.column_mae[1] < 0.15
    assert 0.65 < result.coverage < 0.95 and result.level == pytest.approx(0.8)
    np.testing.assert_allclose(result.mse_by_step.mean(), result.mse)
    assert forecaster.season == 24


def test_backtest_counts_what_predict_says() -> None:
    forecaster = fitted()
    values = waves(260)
    test = table_of(values[220:], "2024-01-10T04")
    result = forecaster.backtest(test, stride=7)
    deviation = values[:220].std(0)
    errors = []
    for origin in range(220, 260 - HORIZON + 1, 7):
        mean = forecaster.predict(table_of(values[:origin])).mean
        errors.append((mean - values[origin : origin + HORIZON]) / deviation)
    assert result.windows == len(errors)
    assert result.mse == pytest.approx(np.mean(np.square(errors)), rel=1e-4)
    assert result.mae == pytest.approx(np.mean(np.abs(errors)), rel=1e-4)


def test_a_learning_backtest_is_predict_and_update_in_turn_and_changes_nothing() -> None:
    values = waves(240)
    values[225:, 0] += 4  # something to learn
    test = table_of(values[220:], "2024-01-10T04")
    forecaster, walked = fitted(), fitted()
    before = forecaster.predict().mean
    result = forecaster.backtest(test, learn=True)
    np.testing.assert_array_equal(forecaster.predict().mean, before)
    deviation = values[:220].std(0)
    errors = []
    for row in range(20):
        if row <= 20 - HORIZON:
            errors.append((walked.predict().mean - test.values[row : row + HORIZON]) / deviation)
        walked.update(test[row : row + 1])
    assert result.mse == pytest.approx(np.mean(np.square(errors)), rel=1e-4)
    assert result.mse != pytest.approx(forecaster.backtest(test).mse, rel=1e-3)


def test_any_cut_of_the_rows_learns_the_same() -> None:
    test = table_of(waves(260)[220:], "2024-01-10T04")
    whole, cut = fitted(), fitted()
    assert whole.update(test) == 40
    for begin, end in ((0, 1), (1, 18), (18, 40)):
        cut.update(test[begin:end])
    same(whole, cut, 1e-6)
    assert len(whole.recent) == whole.choice.context + HORIZON


def test_it_follows_a_change_without_a_refit() -> None:
    random = np.random.default_rng(3)
    values = np.zeros((900, 1))
    for row in range(2, 900):  # the sign of the recursion flips at row 400
        strength = 0.95 if row < 400 else -0.95
        values[row] = strength * values[row - 1] + random.standard_normal()
    config = ForecasterConfig(horizon=2, contexts=(6,), steps=0, forget=0.99)
    forecaster = Forecaster(config).fit(values[:400])
    frozen, online = (forecaster.backtest(values[400:], learn=learn) for learn in (False, True))
    assert online.mse < 0.5 * frozen.mse


def test_saved_and_loaded_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    forecaster = fitted(calendar=True)
    test = table_of(waves(250)[220:], "2024-01-10T04")
    forecaster.update(test[:9])
    forecaster.save(tmp_path / "f.safetensors")
    loaded = Forecaster.load(tmp_path / "f.safetensors")
    assert loaded.config == forecaster.config and loaded.choice == forecaster.choice
    same(forecaster, loaded)
    forecaster.update(test[9:])
    loaded.update(test[9:])
    same(forecaster, loaded)


def test_the_network_is_trained_resumed_used_and_saved(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "hidden_dim": 8, "patch": 4, "ridges": (0.1,)}
    values = waves(220)
    config = ForecasterConfig(horizon=HORIZON, contexts=(13, 24), **settings)
    folder = tmp_path / "training"
    with pytest.raises(KeyboardInterrupt):
        Forecaster(config).fit(values, folder=folder, on_step=lambda progress: progress.step == 2)
    seen: list[int] = []
    resumed = Forecaster(config).fit(values, folder=folder, on_step=lambda progress: seen.append(progress.step))
    straight = Forecaster(config).fit(values)
    assert seen == [3]
    same(resumed, straight)
    assert straight.choice.network_mse is not None
    if straight.network is not None:
        assert straight.network.config.layer_types == ("static", "plastic", "static")
    straight.save(tmp_path / "f.safetensors")
    same(straight, Forecaster.load(tmp_path / "f.safetensors"))


def test_a_network_that_helps_is_read() -> None:
    """The logistic map has no linear correlation from one value to the next."""
    values = np.full((600, 1), 0.3)
    for row in range(1, 600):
        values[row] = 1 - 1.9 * values[row - 1] ** 2
    config = ForecasterConfig(
        horizon=1, contexts=(6,), steps=150, hidden_dim=24, patch=2, learning_rate=1e-2, shifts=("mean",)
    )
    forecaster = Forecaster(config).fit(values)
    choice = forecaster.choice
    assert choice.network_mse is not None and choice.network_mse < 0.9 * choice.linear_mse
    assert forecaster.network is not None and choice.validation_mse == choice.network_mse
    frozen = forecaster.backtest(values[-60:])
    assert frozen.windows == 60


def test_further_inputs_and_inputs_known_ahead() -> None:
    random = np.random.default_rng(2)
    count = 420
    known, before = random.standard_normal(count), random.standard_normal(count)
    target = np.zeros(count)
    target[1:] = 2 * known[1:] + 3 * before[:-1]
    table = table_of(np.stack([target, before, known], 1))
    shared: dict[str, Any] = {"horizon": 3, "contexts": (6,), "steps": 0, "targets": ("a",)}
    forecaster = Forecaster(ForecasterConfig(**shared, exogenous=("b",), future=("c",))).fit(table[:340])
    blind = Forecaster(ForecasterConfig(**shared)).fit(table[:340])
    rest = table[340:]
    seeing = forecaster.backtest(rest)
    assert seeing.mse_by_step[0] < 0.1 * blind.backtest(rest).mse_by_step[0]
    ahead = forecaster.predict(future=rest[:3])
    assert abs(ahead.mean[0, 0] - target[340]) < 0.5
    assert forecaster.backtest(rest, learn=True).windows == 80 - 2
    whole, cut = Forecaster(forecaster.config).fit(table[:340]), Forecaster(forecaster.config).fit(table[:340])
    whole.update(rest[:20])
    cut.update(rest[:7])
    cut.update(rest[7:20])
    future = table.values[360:363, 2:]
    np.testing.assert_allclose(whole.predict(future=future).mean, cut.predict(future=future).mean, atol=1e-6)
    with pytest.raises(RangeError, match="predict: future is missing; wanted c of the next rows"):
        forecaster.predict()
    with pytest.raises(ShapeError, match=r"future has shape \[2, 1\]; wanted \[3, 1\]"):
        forecaster.predict(future=future[:2])


def test_missing_values_and_gaps_are_borne() -> None:
    values = waves(240)
    values[50:53, 0] = np.nan
    values[225, 1] = np.nan
    table = table_of(values)
    kept = np.ones(240, bool)
    kept[100:103] = False
    assert table.times is not None
    holed = Table(table.names, values[kept], table.times[kept], table.lines[kept], "date")
    config = ForecasterConfig(horizon=HORIZON, contexts=(13,), steps=0)
    forecaster = Forecaster(config).fit(holed[:217])
    assert forecaster.update(holed[217:]) == 20
    ahead = forecaster.predict()
    assert np.isfinite(ahead.mean).all() and np.isfinite(ahead.quantiles).all()
    assert ahead.times is not None
    np.testing.assert_array_equal(ahead.times, hours(HORIZON, "2024-01-11"))
    assert np.abs(ahead.mean - waves(245, noise=0.0)[240:]).max() < 0.5


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e98])
def test_numbers_of_any_size(unit: float) -> None:
    """The unit is a matter of taste: tiny numbers are not taken to be all alike, and large ones do not overflow."""
    rows = waves(200) + 5
    config = ForecasterConfig(horizon=HORIZON, contexts=(24,), steps=0)
    plain, other = (Forecaster(config).fit(values).predict() for values in (rows, rows * unit))
    np.testing.assert_allclose(other.mean / unit, plain.mean, rtol=1e-4)


@pytest.mark.parametrize("shift", ["mean", "last"])
def test_two_contexts_averaged_are_one_read_out(shift: Any) -> None:
    """As far as the deviation of the window goes, which is read here by neither."""
    random = np.random.default_rng(0)
    values = random.standard_normal((40, 1))
    rows, origins, found = Rows(values, np.zeros((40, 0)), np.zeros((43, 0))), np.arange(13, 38), []
    longer, shorter = (random.standard_normal((context + 2, 3)) for context in (13, 8))
    for weights in (longer, shorter):
        weights[-2] = 0.0
    for weights in (longer, shorter, averaged(longer, shorter, 13, shift)):
        make = Regressors(WindowSpec(context=len(weights) - 2, horizon=3, shift=shift))
        features, shifts, _ = make(rows, origins, 0)
        found.append(features @ weights + shifts[:, None])
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, atol=1e-5)


def test_contexts_are_averaged_where_validation_likes_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((400, 2))
    for row in range(1, 400):
        rows[row] += 0.9 * rows[row - 1]
    config = ForecasterConfig(horizon=HORIZON, contexts=(13, 24, 48), steps=0)
    alone, both = (Forecaster(each).fit(rows[:300]) for each in (config, dataclasses.replace(config, average=True)))
    assert alone.choice.averaged is None and (both.choice.context, both.choice.averaged) == (24, 13)
    assert both.choice.validation_mse == both.choice.linear_mse < 0.99 * alone.choice.validation_mse
    both.update(rows[300:320])
    both.save(tmp_path / "f.safetensors")
    same(both, Forecaster.load(tmp_path / "f.safetensors"))
    assert Forecaster.load(tmp_path / "f.safetensors").choice == both.choice


def test_columns_that_do_not_move() -> None:
    rows = np.stack([np.full(240, 1e-6), waves(240, columns=1)[:, 0]], 1)
    forecaster = Forecaster(ForecasterConfig(horizon=HORIZON, contexts=(13,), steps=0)).fit(rows[:200])
    np.testing.assert_allclose(forecaster.predict().mean[:, 0], 1e-6, rtol=0.02)
    mase = forecaster.backtest(rows[200:]).mase
    assert math.isnan(mase[0]) and 0 < mase[1] < 3


def test_quantiles_never_cross() -> None:
    forecaster = fitted(quantiles=(0.05, 0.2, 0.5, 0.9))
    forecaster.update(table_of(waves(400, noise=2.0)[220:], "2024-01-10T04"))
    ahead = forecaster.predict()
    assert ahead.quantiles.shape == (HORIZON, 2, 4)
    assert (np.diff(ahead.quantiles, axis=-1) >= 0).all()


def test_calendar_columns() -> None:
    step = np.timedelta64(1, "h")
    assert calendar(hours(30), step).shape == (30, 10)
    np.testing.assert_allclose(calendar(hours(30), step)[0, :4], calendar(hours(30), step)[24, :4], atol=1e-9)
    months = np.arange("2020-01", "2021-01", dtype="datetime64[M]").astype("datetime64[ns]")
    assert calendar(months, np.timedelta64(30, "D")).shape == (12, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon=0; wanted a whole number of at least 1"),
        ({"contexts": ()}, "contexts=.*at least one"),
        ({"contexts": (1,)}, "contexts=.*at least 2"),
        ({"shifts": ("median",)}, "names out of mean, last"),
        ({"quantiles": (0.9, 0.1)}, "rising numbers between 0 and 1"),
        ({"ridges": (0.0,)}, "positive numbers"),
        ({"forget": 1.5}, "a share above 0.5"),
        ({"steps": -1}, "steps=-1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ForecasterConfig(**settings)


def test_wrong_calls_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="call fit or load first"):
        Forecaster().predict()
    with pytest.raises(RangeError, match=r"fit: 60 rows; wanted about \d+ at least for horizon=96"):
        Forecaster().fit(waves(60))
    with pytest.raises(ShapeError, match=r"shape \[5\]; wanted \[rows, columns\]"):
        Forecaster().fit(np.zeros(5))
    with pytest.raises(RangeError, match="there is no column 'z'"):
        Forecaster(ForecasterConfig(targets=("z",))).fit(table_of(waves(50)))
    short = ForecasterConfig(horizon=4, contexts=(8,))
    with pytest.raises(RangeError, match="fit: column '2' has fewer than two values in the 50 rows to fit on"):
        Forecaster(short).fit(np.stack([np.arange(50.0), np.full(50, math.nan)], 1))
    with pytest.raises(RangeError, match=r"fit: column '1' has numbers of up to 4\.9e\+301; wanted at most 1e\+100"):
        Forecaster(short).fit(np.arange(50.0)[:, None] * 1e300)
    with pytest.raises(RangeError, match="needs times"):
        Forecaster(dataclasses.replace(short, calendar=True)).fit(waves(50))
    forecaster = fitted()
    with pytest.raises(ShapeError, match="have no column 'b'"):
        forecaster.update(table_of(waves(5, columns=1), "2024-01-10T04"))
    with pytest.raises(FileError, match="wanted rows in order of time"):
        forecaster.update(table_of(waves(5)))
    with pytest.raises(RangeError, match="backtest: 3 rows"):
        forecaster.backtest(waves(3))
    with pytest.raises(RangeError, match="predict: 4 rows; wanted at least the context"):
        forecaster.predict(waves(4))
    with pytest.raises(RangeError, match="names no column; leave it out"):
        forecaster.predict(future=np.zeros((5, 1)))
    from ssmn.files import write_file

    write_file(tmp_path / "other.safetensors", {"x": np.zeros(2)}, {"kind": "checkpoint"})
    with pytest.raises(FileError, match="holds no forecaster"):
        Forecaster.load(tmp_path / "other.safetensors")


# The command


def written(path: Path, values: np.ndarray, begin: str = "2024-01-01") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "load", "heat"])
        writer.writerows(
            [str(t)[:19].replace("T", " "), *row] for t, row in zip(hours(len(values), begin), values, strict=True)
        )
    return path


def test_command_fits_tests_saves_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = waves(300)
    data = written(Path("data.csv"), values[:260])
    words = ["forecast", str(data), "--target", "load", "-n", "6", "--context", "24", "--steps", "0"]
    assert main([*words, "--plot", "f.png", "--model", "f.safetensors"]) == 0
    told = capsys.readouterr()
    assert "frozen: 47 windows" in told.err and "learning: 47 windows" in told.err
    rows = list(csv.DictReader(io.StringIO(told.out)))
    assert [row["date"] for row in rows[:2]] == ["2024-01-11 20:00:00", "2024-01-11 21:00:00"]
    assert set(rows[0]) == {"date", "load", "load_q0.1", "load_q0.5", "load_q0.9"}
    assert Path("f.png").read_bytes()[:4] == b"\x89PNG" and not Path("f.safetensors.training").exists()

    new = written(Path("new.csv"), values)
    assert main(["forecast", str(new), "--update", "--model", "f.safetensors", "--out", "next.csv"]) == 0
    assert "Learned from 40 new rows" in capsys.readouterr().err
    first = next(csv.DictReader(io.StringIO(Path("next.csv").read_text())))
    assert first["date"] == "2024-01-13 12:00:00"
    one, other = Forecaster.load("f.safetensors"), Forecaster(ForecasterConfig(
        horizon=6, contexts=(24,), steps=0, targets=("load",))).fit(read_table(new)[:208])  # fmt: skip
    other.update(read_table(new)[208:])
    same(one, other, 1e-5)
    assert main(["forecast", str(new), "--update", "--model", "f.safetensors"]) == 1
    assert "which the forecaster has read" in capsys.readouterr().err
    assert main(["forecast", str(new), "--update", "-t", "load", "--model", "f.safetensors"]) == 1
    assert "--target is decided when fitting" in capsys.readouterr().err


def test_command_refuses_what_it_cannot_read_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = written(Path("data.csv"), waves(120))

    def refused(*words: str) -> str:
        assert main(["forecast", *words]) == 1
        told = capsys.readouterr()
        assert not told.out and "Fitting" not in told.err
        return " ".join(told.err.split())

    for content in ("", "\n\n", "date,load\n"):
        Path("none.csv").write_text(content)
        assert "none.csv: there is no row of numbers" in refused("none.csv")
    lines = data.read_text().splitlines()
    Path("mixed.csv").write_text("\n".join([lines[0], *lines[20:], *lines[1:20]]))
    assert "mixed.csv: line 103: the row is of 2024-01-01T00:00:00" in refused("mixed.csv")
    assert "nowhere does not exist; make it first" in refused(str(data), "--out", "nowhere/f.csv")

    words = ["-n", "4", "--context", "12", "--steps", "0", "--no-backtest"]
    assert main(["forecast", str(data), *words]) == 0
    capsys.readouterr()
    later = written(Path("later.csv"), waves(140)).read_text().splitlines()
    Path("mixed.csv").write_text("\n".join([later[0], *later[130:], *later[1:130]]))
    assert "mixed.csv: line 13: the row is of 2024-01-01T00:00:00" in refused("mixed.csv", "--update")

    Path("plain.csv").write_text("\n".join(["load", *(line.split(",")[1] for line in lines[1:])]))
    assert main(["forecast", "plain.csv", *words]) == 0
    told = capsys.readouterr()
    assert "rows count as equally far apart" in " ".join(told.err.split()) and told.out.startswith("step,load,")


def test_command_stopped_in_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssmn.cli import train as training

    monkeypatch.chdir(tmp_path)
    data = written(Path("data.csv"), waves(260))
    words = ["forecast", str(data), "-n", "6", "--context", "32", "--steps", "3", "--quiet", "--no-backtest"]
    with monkeypatch.context() as patched:
        patched.setattr(training.Display, "show", lambda self, progress: True)
        assert main(words) == 130
    assert Path("forecaster.safetensors.training").is_dir() and not Path("forecaster.safetensors").exists()
    assert main(words) == 0
    assert Path("forecaster.safetensors").exists() and not Path("forecaster.safetensors.training").exists()
    assert len(capsys.readouterr().out.splitlines()) == 7
