"""System identification in context: random driven linear systems, followed from the first step and after a switch.

Every model reads x_t and u_t of a system that it has not seen and predicts x_{t+1} (the task `system`). What it knows
of the system it has learned from that stream alone. Errors are divided by the signal's variance; 0.01 of it is noise
that nobody can predict. Beside the trained models stand the textbook's: recursive least squares and normalised LMS,
with the rates that are best on other streams.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import settings_of, trained
from ssmn.bench.quality.peers import PEERS, of_size
from ssmn.bench.report import Table
from ssmn.config import Plasticity, SSMNConfig
from ssmn.models.stack import Stack
from ssmn.training.evaluate import outputs_of
from ssmn.training.settings import TrainConfig
from ssmn.training.tasks import Batch, LinearSystem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

LENGTH, SWITCH_AFTER = 512, 256
"""Tested streams: the first switch comes after 128 to 384 steps."""
BINS = (0, 8, 16, 32, 64, 128)
"""Edges of the steps since a system began, the last one open."""
RATES = (2e-3, 4e-3, 8e-3)
BATCHES, ROWS = 4, 32

_RLS = [
    'model.readout="rls"', 'model.readout_features="inputs"', "model.readout_forget=0.05", "model.readout_ridge=0.003",
]  # fmt: skip
_STATIC = 'model.layer_types=["static","static","static"]'

KINDS: dict[str, list[str]] = {
    "ssmn": [],
    "ssmn, rls read-out": _RLS,
    "rls read-out, no memory": [*_RLS, _STATIC, "train.steps=150"],
    "hebbian": ['model.update_rule="hebbian"'],
    "window only": [_STATIC],
    "full attention": [_STATIC, "model.window_size=512"],
    "GRU": ['model.layer_types=["static","gru","static"]'],
}
"""The trained models: changes of the shipped configuration `system`. All have as many parameters as the first."""

_QUICK = ["train.steps=2", "train.batch_size=2", "task.length=24", "task.switch_after=12"]

FORGETTING = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
RIDGES = (1e-3, 1e-2, 1e-1)
STEP_SIZES = (0.1, 0.2, 0.5, 1.0)


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """The textbook's methods; then of every model each learning rate, and the other seeds with the best one."""
    for name in ("recursive least squares", "normalised LMS"):
        yield Run(name.replace(" ", "-"), {"kind": name, "seed": 0, **_tests(options)})
    for name in KINDS:
        found = {}
        for rate in RATES[:1] if options.quick else RATES:
            found[rate] = yield _run(name, rate, 0, options)
        if any(result is None for result in found.values()):
            continue
        best = min(found, key=lambda rate: _score(found[rate]))
        for seed in range(1, options.seeds):
            yield _run(name, best, seed, options)


def _tests(options: Options) -> dict[str, Any]:
    if options.quick:
        return {"length": 40, "switch_after": 16, "batches": 1, "rows": 2}
    return {"length": LENGTH, "switch_after": SWITCH_AFTER, "batches": BATCHES, "rows": ROWS}


def _run(name: str, rate: float, seed: int, options: Options) -> Run:
    assert "gru" in PEERS
    changes = [*KINDS[name], f"train.learning_rate={rate}", *(_QUICK if options.quick else [])]
    size = _parameters([]) if name != "ssmn" else None
    if size is not None:
        changes.append(f"model.ffn_dim={of_size(_config(changes), size, 0.02).ffn_dim}")
    settings = {"kind": name, "config": "system", "set": changes, "seed": seed, "rate": rate, **_tests(options)}
    return Run(f"{name.replace(', ', '-').replace(' ', '-')}-{rate:g}-{seed}", settings)


def _config(changes: list[str]) -> SSMNConfig:
    config = _settings(changes).model_config()
    assert isinstance(config, SSMNConfig)
    return config


def _settings(changes: list[str]) -> TrainConfig:
    return settings_of({"config": "system", "set": changes, "seed": 0})


def _parameters(changes: list[str]) -> int:
    from ssmn.models import SSMN

    return SSMN(_config(changes)).num_parameters()


def _score(result: Result | None) -> float:
    """What a learning rate is chosen by: the validation streams' mean error."""
    return math.inf if result is None else result["chosen_by"]


def measure(run: Run, place: Workplace) -> Result | None:
    """Errors by steps since the beginning, and since a switch, of the run's model or method."""
    settings = run.settings
    task = LinearSystem(length=settings["length"], switch_after=settings["switch_after"])

    def errors(predict: Callable[[Batch], Tensor], seed: int) -> Result:
        batches = [
            task.batch(step, batch_size=settings["rows"], seed=seed, split="test")
            for step in range(settings["batches"])
        ]
        return by_steps(batches, [predict(batch) for batch in batches])

    if settings["kind"] in _TEXTBOOK:
        best = min(
            _TEXTBOOK[settings["kind"]],
            key=lambda method: _mean(errors(method[1], _VALIDATION)),
        )
        found = errors(best[1], settings["seed"])
        return {**found, "setting": best[0], "chosen_by": _mean(errors(best[1], _VALIDATION))}
    model = trained(settings, place)
    if model is None:
        return None
    result = {
        **errors(lambda batch: _predictions(model, batch), settings["seed"]),
        "chosen_by": _mean(errors(lambda batch: _predictions(model, batch), _VALIDATION)),
        "parameters": model.num_parameters(),
        "state_bytes": model.init_state(1).nbytes,
    }
    if any(kind == "plastic" for kind in model.config.layer_types or ()):
        frozen = Plasticity(frozen=True)
        result["frozen"] = errors(lambda batch: _predictions(model, batch, frozen), settings["seed"])
    return json.loads(json.dumps(result))


_VALIDATION = 1_000_003
"""Seed of the streams that choose learning rates and the textbook's settings."""


@torch.no_grad()
def _predictions(model: Stack, batch: Batch, plasticity: Plasticity | None = None) -> Tensor:
    output, _ = outputs_of(model, batch, plasticity=plasticity)
    return output if isinstance(output, Tensor) else output.points()


def by_steps(batches: list[Batch], predictions: list[Tensor]) -> Result:
    """Mean squared error by steps since the stream began (`fresh`), and since the system was switched (`switched`).

    Args:
        batches: Of the task `system`.
        predictions: [B, T, O] for each.

    Returns:
        For both, the error by bin of `BINS`, such as `{"32-63": 0.04}`; NaN where there is no such step.
    """
    error = torch.cat([(y - batch.targets).square().mean(-1) for y, batch in zip(predictions, batches, strict=True)])
    elapsed = torch.cat([batch.elapsed for batch in batches if batch.elapsed is not None])
    is_first = elapsed == torch.arange(elapsed.shape[1])
    found: Result = {}
    for name, chosen in (("fresh", is_first), ("switched", ~is_first)):
        found[name] = {}
        for low, high in itertools.pairwise((*BINS, math.inf)):
            here = error[chosen & (elapsed >= low) & (elapsed < high)]
            label = f"{low}-{int(high) - 1}" if math.isfinite(high) else f"{low}+"
            found[name][label] = float(here.mean()) if len(here) else None
    return found


def _mean(found: Result) -> float:
    values = [value for group in ("fresh", "switched") for value in found[group].values() if value is not None]
    return statistics.mean(values)


@torch.no_grad()
def least_squares(batch: Batch, forget: float, ridge: float) -> Tensor:
    """Recursive least squares on the inputs, in float64: predictions [B, T, O], each before its target is seen."""
    x, y = batch.inputs.double(), batch.targets.double()
    keep, rows, width = 1 - forget, x.shape[0], x.shape[-1]
    inverse = torch.eye(width, dtype=torch.float64).expand(rows, -1, -1) / ridge
    weights, predictions = x.new_zeros(rows, width, y.shape[-1]), []
    for t in range(x.shape[1]):
        told = x[:, t].unsqueeze(1)
        predictions.append((told @ weights).squeeze(1))
        turned = told @ inverse
        gain = turned.mT / (keep + turned @ told.mT)
        weights = weights + gain @ (y[:, t] - predictions[-1]).unsqueeze(1)
        inverse = (inverse - gain @ turned) / keep
        inverse = (inverse + inverse.mT) / 2
    return torch.stack(predictions, 1).float()


@torch.no_grad()
def least_mean_squares(batch: Batch, step_size: float) -> Tensor:
    """Normalised LMS on the inputs: predictions [B, T, O]."""
    x, y = batch.inputs, batch.targets
    weights, predictions = x.new_zeros(x.shape[0], x.shape[-1], y.shape[-1]), []
    for t in range(x.shape[1]):
        told = x[:, t].unsqueeze(1)
        predictions.append((told @ weights).squeeze(1))
        error = (y[:, t] - predictions[-1]).unsqueeze(1)
        weights = weights + step_size * told.mT @ error / told.square().sum(-1, keepdim=True)
    return torch.stack(predictions, 1)


_TEXTBOOK: dict[str, list[tuple[dict[str, float], Callable[[Batch], Tensor]]]] = {
    "recursive least squares": [
        ({"forget": forget, "ridge": ridge}, lambda batch, f=forget, r=ridge: least_squares(batch, f, r))
        for forget, ridge in itertools.product(FORGETTING, RIDGES)
    ],
    "normalised LMS": [
        ({"step_size": size}, lambda batch, size=size: least_mean_squares(batch, size)) for size in STEP_SIZES
    ],
}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Error by steps since the beginning, and since a switch; the mean over the seeds of the best learning rate."""
    made = []
    for group, title in (
        ("fresh", "steps since the stream began"),
        ("switched", "steps since the system was switched"),
    ):
        rows, labels = [], None
        for name, results in _best(finished).items():
            for way in ("", "frozen"):
                found = [result[way][group] if way else result[group] for result in results if not way or way in result]
                if not found:
                    continue
                labels = list(found[0])
                cells = [_over(values) for values in zip(*(each.values() for each in found), strict=True)]
                rows.append([name if not way else f"{name}, memory frozen", *cells, str(len(found))])
        made.append(Table(f"Error by {title}", ["", *(labels or []), "seeds"], rows, "1 = signal's variance", texts=1))
    return made


def _best(finished: Mapping[str, Result]) -> dict[str, list[Result]]:
    """For each kind the results of all seeds with the learning rate that was best."""
    chosen: dict[str, list[Result]] = {}
    for name in ("recursive least squares", "normalised LMS", *KINDS):
        of_kind = [run for run in finished.values() if run["settings"]["kind"] == name]
        if of_kind:
            best = min(of_kind, key=lambda run: (run["settings"]["seed"], run["results"]["chosen_by"]))
            rate = best["settings"].get("rate")
            chosen[name] = [run["results"] for run in of_kind if run["settings"].get("rate") == rate]
    return chosen


def _over(values: tuple[float | None, ...]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.4f}" if known else ""


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Error by steps since a switch."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for group, title in (("fresh", "since the stream began"), ("switched", "since the system was switched")):
        lines = panels.setdefault(title, {})
        for name, results in _best(finished).items():
            for result in results:
                for low, value in zip(BINS, result[group].values(), strict=True):
                    if value is not None:
                        lines.setdefault(name, {}).setdefault(max(1, low), []).append(value)
    return plots.spread_lines(panels, look, "steps", "error / signal's variance", y_range=None)


PART = Part(
    "system-identification", "Unknown linear systems, followed online.", runs, measure, tables, drawing
)  # fmt: skip
