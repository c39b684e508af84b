"""Learning row by row: what a call costs, whether a million keep their memory, and ten thousand series at once."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.config import SSMNConfig
from ssmn.engine import Engine
from ssmn.interfaces.features import random_stack
from ssmn.models import SSMN
from ssmn.probes import resident_bytes
from ssmn.stream import Stream

WIDTH = 64
FEATURES = 8
PIECE = 500

KINDS = {
    "regressor-rls": 1_000_000,
    "regressor-delta": 50_000,
    "classifier-rls": 50_000,
    "forecaster-rls": 50_000,
}
"""Rows that each estimator reads."""

MODELS = {
    "model-rls-engine": 50_000,
    "model-delta-engine": 50_000,
    "model-rls-torch": 1_000,
    "model-delta-torch": 1_000,
}
"""Rows that each model reads whose own read-out learns, one call a row."""


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Each estimator, each model, and many series at once."""
    for kind, rows in {**KINDS, **MODELS}.items():
        few = PIECE if kind in MODELS else 2 * PIECE
        yield Run(kind, {"kind": kind, "rows": few if options.quick else rows, "width": WIDTH})
    series = 50 if options.quick else 10_000
    yield Run("many-series", {"kind": "many-series", "series": series, "rounds": 3 if options.quick else 40})


def measure(run: Run, place: Workplace) -> Result | None:
    """Microseconds and resident memory."""
    settings = run.settings
    if settings["kind"] == "many-series":
        return many_series(settings["series"], settings["rounds"])
    return _one_by_one(settings["kind"], settings["rows"], place)


class _Estimator:
    """A river estimator: a row is predicted, then learned."""

    def __init__(self, name: str, rule: str) -> None:
        from ssmn.interfaces import river

        kinds = {
            "regressor": river.SSMNRegressor, "classifier": river.SSMNClassifier, "forecaster": river.SSMNForecaster,
        }  # fmt: skip
        self.name = name
        self.model: Any = kinds[name](hidden_dim=WIDTH, rule=rule, forget=0.999)

    @property
    def backend(self) -> str:
        return (self.model._online.stream if self.name == "forecaster" else self.model._stream).backend

    def rows(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[Any]:
        names = [f"feature {number}" for number in range(FEATURES)]
        return [dict(zip(names, row, strict=True)) for row in x.tolist()]

    def learn(self, row: Any, target: float) -> float:
        model = self.model
        if self.name == "forecaster":
            error = (model.forecast(1)[0] - target) ** 2
            model.learn_one(target)
        elif self.name == "classifier":
            error = model.predict_one(row) != (target > 0)
            model.learn_one(row, target > 0)
        else:
            error = (model.predict_one(row) - target) ** 2
            model.learn_one(row, target)
        return error


class _Model:
    """A model with a front and a plastic read-out: a row teaches what the one before should have said of it.

    Its columns are the features and, of the row before, the value that they give.
    """

    def __init__(self, rule: Any, backend: Any) -> None:
        config = SSMNConfig(
            input_dim=FEATURES + 1, output_dim=1, targets=(FEATURES,), hidden_dim=WIDTH, num_layers=2, num_heads=4,
            window_size=16, plastic_ratio=0.5, missing="mask", normalise="running", norm_rate=0.001, readout=rule,
            readout_features="both", readout_forget=0.001,
        )  # fmt: skip
        torch.manual_seed(0)
        self.stream = Stream(SSMN(config).eval(), backend=backend)
        self.last = 0.0

    @property
    def backend(self) -> str:
        return self.stream.backend

    def rows(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[Any]:
        before, self.last = np.concatenate([[self.last], y[:-1]]), float(y[-1])
        return list(torch.from_numpy(np.concatenate([x, before[:, None]], 1).astype(np.float32)).split(1))

    def learn(self, row: Any, target: float) -> float:
        return (float(self.stream.step(row, target=row[:, FEATURES:])) - target) ** 2


def _one_by_one(kind: str, rows: int, place: Workplace) -> Result | None:
    """A linear system that switches every 10,000 rows, with noise of deviation 0.1, predicted and then learned."""
    random, (name, *settings) = np.random.default_rng(0), kind.split("-")
    model = _Model(*settings) if name == "model" else _Estimator(name, *settings)
    wall, cpu, errors, resident = [], [], [], []
    for begin in range(0, rows, PIECE):
        if begin % 10_000 == 0:
            system = random.normal(size=FEATURES) / np.sqrt(FEATURES)
        x = random.normal(size=(PIECE, FEATURES))
        y = x @ system + 0.1 * random.normal(size=PIECE)
        data = list(zip(model.rows(x, y), y.tolist(), strict=True))
        squares = 0.0
        clock, used = time.perf_counter(), time.process_time()
        for row, target in data:
            squares += model.learn(row, target)
        wall.append((time.perf_counter() - clock) / PIECE * 1e6)
        cpu.append((time.process_time() - used) / PIECE * 1e6)
        errors.append(squares / PIECE)
        resident.append(resident_bytes())
        if place.on_step(begin + PIECE, rows, f"{cpu[-1]:.0f} µs"):
            return None
    settled = max(1, len(resident) // 10)
    return {
        "backend": model.backend,
        "median_us": float(np.median(wall)),
        "median_cpu_us": float(np.median(cpu)),
        "best_us": float(np.min(wall)),
        "error_early": errors[0],
        "error_median": float(np.median(errors)),
        "resident_mb": resident[-1] / 2**20,
        "growth_mb": (max(resident[settled:] or resident) - max(resident[:settled])) / 2**20,
    }


class ManyReadouts:
    """A plastic read-out by the delta rule for each of n series; rows of one call learn side by side.

    Args:
        series: n.
        features: F.
        eta: Step of the rule in (0, 2).
    """

    def __init__(self, series: int, features: int, eta: float = 0.5) -> None:
        self.weights, self.eta = np.zeros((series, features), np.float32), eta

    def __call__(self, which: NDArray[np.int64], phi: NDArray[np.float32]) -> NDArray[np.float32]:
        """Series [n] and their features [n, F] to [n]."""
        return np.einsum("nf,nf->n", self.weights[which], phi)

    def learn(self, which: NDArray[np.int64], phi: NDArray[np.float32], error: NDArray[np.float32]) -> None:
        """One step of each of some different series."""
        size = 1.0 + np.einsum("nf,nf->n", phi, phi)
        self.weights[which] += (self.eta * error / size)[:, None] * phi


def many_series(series: int, rounds: int) -> Result:
    """Each series has a state, a read-out and a clock of its own; in every round about half of them have a new value.

    A series is a sine of its own period, sampled whenever its turn comes; the time since its last value goes into the
    decay of its memory. It is predicted from its last value and the stack, then learned.
    """
    random = np.random.default_rng(0)
    before = resident_bytes()
    model = random_stack(2, hidden_dim=WIDTH)
    engine, readouts = Engine(model, streams=series), ManyReadouts(series, WIDTH + 3)
    period, clock = random.uniform(10, 50, series), np.zeros(series)
    last, phi = np.zeros(series, np.float32), np.zeros((series, WIDTH + 3), np.float32)
    seconds, steps, since = 0.0, 0, np.zeros(series)
    error = value = np.zeros(0, np.float32)
    for _ in range(rounds):
        since += random.uniform(0.5, 1.5, series)
        which = np.flatnonzero(random.random(series) < 0.5)
        begun = time.perf_counter()
        clock[which] += since[which]
        value = np.sin(2 * np.pi * clock[which] / period[which]).astype(np.float32)
        error = value - readouts(which, phi[which])
        readouts.learn(which, phi[which], error)
        x = np.stack([value, value - last[which]], 1)
        hidden = engine.step(x, streams=which, elapsed=since[which])
        phi[which] = np.concatenate([np.ones((len(which), 1)), x, hidden / np.sqrt(WIDTH)], 1)
        last[which], since[which] = value, 0.0
        seconds += time.perf_counter() - begun
        steps += len(which)
    return {
        "rows_per_second": steps / seconds,
        "us_per_row": seconds / steps * 1e6,
        "state_bytes_each": engine.stream_nbytes + readouts.weights[0].nbytes,
        "resident_mb": (resident_bytes() - before) / 2**20,
        "positions": [int(engine.position(number)) for number in range(3)],
        "error": float((error**2).mean()),
        "variance": float((value**2).mean()),
    }


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Cost of a call, and of many series."""
    rows = []
    for run in finished.values():
        settings, found = run["settings"], run["results"]
        if settings["kind"] != "many-series":
            rows.append([
                settings["kind"], f"{settings['rows']:,}", f"{found['median_us']:.0f}", f"{found['median_cpu_us']:.0f}",
                f"{found['best_us']:.0f}", f"{found['error_median']:.3f}", f"{found['resident_mb']:.0f}",
                f"{found['growth_mb']:+.1f}", found["backend"],
            ])  # fmt: skip
    made = [
        Table(
            f"learn_one and predict_one together, or one step of a model with its own read-out, width {WIDTH}",
            [
                "estimator", "rows", "µs, median", "CPU µs, median", "µs, best", "error", "resident MB",
                "growth after a tenth, MB", "on",
            ], rows, f"medians over pieces of {PIECE} rows; error: squared, of the classifier the share of wrong ones",
            texts=1,
        )
    ] if rows else []  # fmt: skip
    if "many-series" in finished:
        found, settings = finished["many-series"]["results"], finished["many-series"]["settings"]
        made.append(
            Table(
                "Many series, each with its own state, read-out and clock",
                ["series", "rows/s", "µs a row", "bytes each", "resident MB", "squared error at the end", "variance"],
                [[
                    f"{settings['series']:,}", f"{found['rows_per_second']:,.0f}", f"{found['us_per_row']:.1f}",
                    f"{found['state_bytes_each']:,}", f"{found['resident_mb']:.0f}", f"{found['error']:.3f}",
                    f"{found['variance']:.3f}",
                ]],
                texts=1,
            )
        )  # fmt: skip
    return made


PART = Part("updates", "Cost of learning row by row; ten thousand series.", runs, measure, tables)
