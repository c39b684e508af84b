"""Small models of series for the tests of the engine: every setting of the front, the heads and the read-out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engines import BASE
from ssmn.config import SSMNConfig
from ssmn.models.stack import Stack

SMALL: dict[str, Any] = {**BASE, "num_layers": 2, "layer_types": ("plastic", "static")}

OPTIONS: dict[str, dict[str, Any]] = {
    "normalised": {"normalise": "running", "norm_rate": 0.03},
    "masked": {"missing": "mask"},
    "masked-normalised": {"missing": "mask", "normalise": "running", "norm_rate": 0.2, "targets": (2, 0)},
    "gaussian": {"head": "gaussian"},
    "gaussian-normalised": {"head": "gaussian", "normalise": "running"},
    "quantiles": {"head": "quantile", "quantiles": (0.05, 0.3, 0.45, 0.8, 0.95)},
    "one-quantile-masked": {"head": "quantile", "quantiles": (0.7,), "missing": "mask", "normalise": "running"},
    "static-future": {"static_dim": 4, "future_dim": 2},
    "everything-beside": {
        "static_dim": 4, "future_dim": 5, "missing": "mask", "normalise": "running", "head": "gaussian",
    },
    "lms": {"readout": "delta", "readout_forget": 0.01},
    "lms-of-no-column": {"readout": "delta", "targets": (), "normalise": "running", "readout_features": "both"},
    "lms-masked": {
        "readout": "delta", "missing": "mask", "normalise": "running", "head": "quantile", "readout_features": "both",
        "future_dim": 2,
    },
    "squares": {"readout": "rls", "readout_forget": 0.02},
    "squares-of-inputs": {
        "readout": "rls", "readout_features": "inputs", "readout_forget": 0.0, "readout_ridge": 3.0, "targets": (1, 1),
    },
    "squares-masked": {
        "readout": "rls", "missing": "mask", "normalise": "running", "head": "gaussian", "readout_features": "both",
        "static_dim": 4, "readout_forget": 0.3, "readout_ridge": 0.01,
    },
}  # fmt: skip
CONFIGS = {name: SSMNConfig(input_dim=3, output_dim=2, **{**SMALL, **options}) for name, options in OPTIONS.items()}
every_series = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def series_of(config: SSMNConfig, steps: int, streams: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What a model of series reads, `[steps, streams, ...]`: an offset, outliers, gaps, clocks and targets.

    The truth follows from the inputs alone and changes half way, so that a read-out has something to learn.
    """
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, streams, config.input_dim)) * [1.0, 5.0, 0.2] + [0.0, 300.0, -2.0]
    x[random.random(x.shape) < 0.01] *= 50.0
    if config.missing == "mask":
        x[random.random(x.shape) < 0.2] = np.nan
        for stream in range(streams):
            for start in random.integers(0, steps, steps // 12):
                x[start : start + random.integers(1, 4), stream] = np.nan
    found = {"xs": x, "elapsed": random.uniform(0.0, 4.0, (steps, streams))}
    if config.readout != "none":
        columns = list(config.target_columns) or [0, 1]
        target = np.nan_to_num(x, nan=1.0)[..., columns].copy()
        target[steps // 2 :] *= -0.5
        target[random.random(target.shape) < 0.1] = np.nan
        found["target"] = target
    if config.future_dim:
        found["future"] = random.standard_normal((steps, streams, config.future_dim))
    if config.static_dim:
        found["static"] = random.standard_normal((streams, config.static_dim))
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def part(series: dict[str, np.ndarray], steps: slice, streams: Any = slice(None)) -> dict[str, np.ndarray]:
    """Some steps of some streams, the axis of streams kept."""
    return {name: array[streams] if name == "static" else array[steps][:, streams] for name, array in series.items()}


def one(series: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """What `Engine.step` takes."""
    named = {name: array if name == "static" else array[step] for name, array in series.items()}
    return {"x": named.pop("xs"), **named}


def answers(model: Stack, series: dict[str, np.ndarray], **options: Any) -> tuple[np.ndarray, Any]:
    """The model's own [steps, streams, ...], and its state."""
    tensors = {
        name: torch.from_numpy(array) if name == "static" else torch.from_numpy(array).transpose(0, 1)
        for name, array in series.items()
    }
    with torch.no_grad():
        y, state = model(tensors.pop("xs"), **tensors, **options)
    return y.transpose(0, 1).numpy(), state
