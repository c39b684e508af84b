"""Forecasting ETTh1 by the usual protocol, frozen and online, beside a linear rival and the naive forecasts.

Train, validation and test are the first 12, 4 and 4 months of 30 days; all seven channels, standardised with the
training part; every window of the test part counts. Published for 96 steps ahead (mean squared error): PatchTST 0.370,
DLinear 0.375, iTransformer 0.386.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.errors import FileError
from ssmn.series import Backtest, Forecaster, ForecasterConfig, read_table
from ssmn.series import Table as Series
from ssmn.training import Progress

HORIZONS = (96, 192, 336, 720)
GOALS = {96: 0.370, 192: 0.405, 336: 0.422, 720: 0.447}
"""Mean squared errors to reach, frozen."""

VARIANTS: dict[str, dict[str, Any]] = {
    "forecaster": {"steps": 200},
    "without plastic layers": {"steps": 200, "layer_types": ["static", "static", "static"]},
    "linear": {"steps": 0},
    "linear, two contexts": {"steps": 0, "average": True},
}
"""Settings of the forecaster; `linear` is the ridge with the same normalisation, of the form of RLinear and DLinear."""

_PUBLISHED = {"PatchTST": 0.370, "DLinear": 0.375, "iTransformer": 0.386}
_SPLIT = (8640, 11520, 14400)
_QUICK = (400, 560, 720)
_CONTEXTS = (96, 192, 336, 512)


def etth1(options: Options) -> tuple[Series, Series, Series]:
    """Training, validation and test rows."""
    path = Path(options.series) / "ETT" / "ETTh1.csv"
    if not path.exists():
        raise FileError(f"quality: {path} does not exist; give the folder with ETT/ETTh1.csv as --series.")
    table = read_table(path)
    first, second, last = _QUICK if options.quick else _SPLIT
    return table[:first], table[first:second], table[second:last]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every horizon with every variant, and the naive forecasts."""
    for horizon in (24,) if options.quick else HORIZONS:
        contexts = [48, 96] if options.quick else list(_CONTEXTS)
        for variant, settings in VARIANTS.items():
            quick = {"steps": min(2, settings["steps"])} if options.quick else {}
            shared = {"horizon": horizon, "contexts": contexts, "seed": 0}
            yield Run(
                f"{horizon}-{variant.replace(', ', '-').replace(' ', '-')}",
                {"variant": variant, **settings, **shared, **quick},
            )
        yield Run(f"{horizon}-naive", {"variant": "naive", "horizon": horizon})


def measure(run: Run, place: Workplace) -> Result | None:
    """Test errors of the frozen model, and of one pass over the test part that learns from each revealed row."""
    train, validation, test = etth1(place.options)
    if run.settings["variant"] == "naive":
        return {name: errors(train, validation, test, run.settings["horizon"], lag)
                for name, lag in (("last value", 1), ("seasonal naive", 24))}  # fmt: skip
    settings = {name: value for name, value in run.settings.items() if name != "variant"}

    def step(progress: Progress) -> bool:
        return place.on_step(progress.step, progress.steps, f"training, loss {progress.loss:.3f}")

    forecaster = Forecaster(ForecasterConfig(**settings))
    try:
        forecaster.fit(train, validation, folder=place.folder / "network", on_step=step)
    except KeyboardInterrupt:
        return None
    choice = forecaster.choice
    frozen, online = (
        forecaster.backtest(test, learn=learn, on_step=lambda done, total: _tell(place, done, total))
        for learn in (False, True)
    )
    return {
        "context": choice.context,
        "averaged": choice.averaged,
        "shift": choice.shift,
        "ridge": choice.ridge,
        "summary_ridge": choice.summary_ridge,
        "validation_mse": choice.validation_mse,
        "linear_mse": choice.linear_mse,
        "network_mse": choice.network_mse,
        "frozen": plain(frozen),
        "online": plain(online),
    }


def _tell(place: Workplace, done: int, total: int) -> None:
    if done % 100 == 0:
        place.on_step(done, total, "test")


def plain(backtest: Backtest) -> Result:
    """What a run keeps of a backtest."""
    return {
        "windows": backtest.windows,
        "mse": backtest.mse,
        "mae": backtest.mae,
        "coverage": backtest.coverage,
        "level": backtest.level,
    }


def errors(train: Series, validation: Series, test: Series, horizon: int, lag: int) -> Result:
    """Errors of repeating the last `lag` values, over every window of the test part."""
    centre, deviation = train.values.mean(0), train.values.std(0)
    values = np.concatenate([train.values, validation.values, test.values])
    values = (values - centre) / deviation
    begin = len(train) + len(validation)
    origins = np.arange(begin, len(values) - horizon + 1)
    square = absolute = 0.0
    for ahead in range(horizon):
        difference = values[origins + ahead] - values[origins - lag + ahead % lag]
        square += float((difference**2).mean())
        absolute += float(np.abs(difference).mean())
    return {"windows": len(origins), "mse": square / horizon, "mae": absolute / horizon}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Errors by horizon, frozen and online, and what validation chose."""
    horizons = sorted({run["settings"]["horizon"] for run in finished.values()})
    found = {(run["settings"]["horizon"], run["settings"]["variant"]): run["results"] for run in finished.values()}
    rows = []
    for variant in VARIANTS:
        for mode in ("frozen", "online"):
            cells = [found.get((horizon, variant), {}).get(mode) for horizon in horizons]
            rows.append([variant, mode, *map(_cell, cells)])
    for name in ("last value", "seasonal naive"):
        rows.append([name, "", *(_cell(found.get((horizon, "naive"), {}).get(name)) for horizon in horizons)])
    rows.append(["goal", "frozen", *(f"{GOALS[horizon]:.3f}" if horizon in GOALS else "" for horizon in horizons)])
    published = ", ".join(f"{name} {value:.3f}" for name, value in _PUBLISHED.items())
    head = ["", "", *(str(horizon) for horizon in horizons)]
    title = "ETTh1: test error by steps ahead, mean squared / mean absolute"
    caption = f"published at 96 steps: {published}; `linear` is the linear rival with the same normalisation"
    chosen = []
    for horizon in horizons:
        for variant in VARIANTS:
            result = found.get((horizon, variant))
            if result is not None:
                network = "none" if result["network_mse"] is None else f"{result['network_mse']:.4f}"
                chosen.append([
                    variant, str(horizon), _contexts(result), result["shift"], f"{result['ridge']:g}",
                    f"{result['linear_mse']:.4f}", network,
                    f"{100 * result['frozen']['coverage']:.1f} %", f"{100 * result['online']['coverage']:.1f} %",
                ])  # fmt: skip
    chosen_head = [
        "", "ahead", "context", "freed of", "ridge", "validation: linear", "with network", "80 % interval, frozen",
        "online",
    ]  # fmt: skip
    return [
        Table(title, head, rows, caption),
        Table("ETTh1: what validation chose, and how often the truth is within the interval", chosen_head, chosen,
              "the network is read only where it lowers the validation error", texts=2),
    ]  # fmt: skip


def _contexts(result: Result) -> str:
    shorter = result.get("averaged")
    return str(result["context"]) if shorter is None else f"{shorter} and {result['context']}"


def _cell(result: Result | None) -> str:
    return "" if result is None else f"{result['mse']:.4f} / {result['mae']:.4f}"


PART = Part("forecasting", "ETTh1, 96 to 720 steps ahead: frozen, and learning from each row.", runs, measure, tables)
