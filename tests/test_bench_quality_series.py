"""The parts on time series: their protocol, their naive rivals, and a run of each at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssmn.bench.quality.frame import Options, Run, Workplace, finished, work
from ssmn.bench.quality.series import classical, forecasting
from ssmn.bench.report import markdown_table
from ssmn.errors import FileError
from ssmn.series import Table


def written(folder: Path, rows: int = 720) -> Path:
    """A folder with a table like ETTh1, two columns wide."""
    (folder / "ETT").mkdir()
    hour = np.arange(rows)
    random = np.random.default_rng(0)
    course = np.sin(2 * np.pi * hour / 24)[:, None] * [3, 1] + [5, 0] + 0.1 * random.standard_normal((rows, 2))
    times = np.datetime64("2016-07-01", "h") + hour
    lines = [f"{time!s}:00,{first:.4f},{second:.4f}" for time, (first, second) in zip(times, course, strict=True)]
    (folder / "ETT" / "ETTh1.csv").write_text("\n".join(["date,HUFL,OT", *lines]))
    return folder


def test_forecasting_at_tiny_size(tmp_path: Path) -> None:
    options = Options(tmp_path / "out", series=written(tmp_path), quick=True)
    assert work(forecasting.PART, options)
    done = finished(forecasting.PART, options.out)
    assert set(done) == {
        "24-forecaster", "24-without-plastic-layers", "24-linear", "24-linear-two-contexts", "24-naive",
    }  # fmt: skip
    linear = done["24-linear"]["results"]
    assert linear["frozen"]["windows"] == linear["online"]["windows"] == 160 - 24 + 1
    assert linear["network_mse"] is None and done["24-forecaster"]["results"]["network_mse"] is not None
    assert linear["frozen"]["mse"] < done["24-naive"]["results"]["seasonal naive"]["mse"]
    errors, chosen = (markdown_table(table) for table in forecasting.PART.tables(done))
    assert "| linear | online |" in errors and "| seasonal naive |" in errors
    assert "| without plastic layers | 24 |" in chosen


def test_the_published_splits() -> None:
    assert forecasting._SPLIT == (12 * 720, 16 * 720, 20 * 720)


def test_naive_errors_by_hand() -> None:
    """Rows 0 1 0 1 ...: repeating the last value is right every second step, the last two always."""
    values = np.array([0.0, 1.0] * 8)[:, None]
    parts = [Table(("x",), values[a:b], None, np.arange(a, b)) for a, b in ((0, 8), (8, 12), (12, 16))]
    one, two = (forecasting.errors(*parts, horizon=2, lag=lag) for lag in (1, 2))
    assert one["windows"] == two["windows"] == 3
    assert two["mse"] == two["mae"] == 0
    assert one["mse"] == pytest.approx(2.0)  # a step of two deviations, half of the time
    assert one["mae"] == pytest.approx(1.0)


def test_without_the_data_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"ETTh1\.csv does not exist; give the folder .* as --series"):
        forecasting.etth1(Options(tmp_path, series=tmp_path))


@pytest.mark.parametrize("method", classical.METHODS)
def test_short_series_with_every_method(method: str, tmp_path: Path) -> None:
    pytest.importorskip("statsmodels", reason='the extra "timeseries" is not installed')
    pytest.importorskip("sktime", reason='the extra "timeseries" is not installed')
    settings = {"series": "nile", "method": method, "season": 1, "horizon": 8, "origins": 2}
    told: list[int] = []
    place = Workplace(Options(tmp_path), tmp_path, lambda done, total, figures: bool(told.append(done)))
    result = classical.measure(Run("nile", settings), place)
    assert result is not None and told == [1, 2]
    assert result["rows"] == 100 and result["first"] == 66 and result["origins"] == 2
    assert 0.3 < result["mase"] < 1.5
    rows = classical.PART.tables({"nile": {"settings": settings, "results": result}})[0].rows
    assert rows[0][:5] == ["nile", "100", "1", "8", "2"]
