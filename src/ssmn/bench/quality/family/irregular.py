"""Uneven times: AMN beside GRU, LSTM, a GRU whose state decays by the clock, and CfC, at equal parameters.

Three tasks of `ssmn.training.irregular`: damped sines at random times, digits with half of the pixels dropped, and
ETTh1 with half of the rows dropped. Every model is given the time since the step before as a feature; those with a
clock of their own (AMN, LRU, the decaying GRU, CfC) are given it as that too. Widths are chosen for equal weights;
optimiser, schedule, batches and the learning rates to choose from are the same for all. The rate is chosen by the
validation streams of the first seed, and no figure of the test streams is looked at before.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmn.bench.quality.family.training import train
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.errors import MissingExtraError
from ssmn.relatives import AMN, LRU
from ssmn.training.irregular import DroppedDigits, DroppedRows, IrregularTask, Split, Waves

TASKS: dict[str, tuple[int, int]] = {"digits": (32, 400), "waves": (48, 200), "rows": (48, 150)}
"""Steps of a stream, and steps of training."""
MODELS = ("AMN", "LSTM", "GRU", "CfC")
OTHERS = ("GRU, decaying", "AMN, not liquid", "AMN, no manifold", "LRU")
RATES = (3e-3, 1e-2, 3e-2)
PARAMETERS = 5_000
BATCH = 32
TEST = 1_024
"""Streams of the validation and of the test part."""


class Plain(nn.Module):
    """A GRU or an LSTM of torch and a linear layer, the elapsed time a feature.

    Args:
        cell: `nn.GRU` or `nn.LSTM`.
        input_dim, width, output_dim: Sizes.
    """

    def __init__(self, cell: Callable[..., nn.Module], input_dim: int, width: int, output_dim: int) -> None:
        super().__init__()
        self.cell = cell(input_dim, width, batch_first=True)
        self.output = nn.Linear(width, output_dim)

    def forward(self, x: Tensor, elapsed: Tensor) -> tuple[Tensor, None]:
        """[B, T, F] and [B, T] to ([B, T, O], None)."""
        return self.output(self.cell(x)[0]), None


class Decaying(nn.Module):
    """A GRU whose state decays between steps by exp(−relu(w Δt + b)) (the hidden decay of GRU-D: Che et al., 2018).

    Args:
        input_dim, width, output_dim: Sizes.
    """

    def __init__(self, input_dim: int, width: int, output_dim: int) -> None:
        super().__init__()
        self.width = width
        self.decay = nn.Linear(1, width)
        self.cell = nn.GRUCell(input_dim, width)
        self.output = nn.Linear(width, output_dim)

    def forward(self, x: Tensor, elapsed: Tensor) -> tuple[Tensor, None]:
        """[B, T, F] and [B, T] to ([B, T, O], None)."""
        keep = torch.exp(-torch.relu(self.decay(elapsed.unsqueeze(-1))))
        h, states = x.new_zeros(len(x), self.width), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], keep[:, t] * h)
            states.append(h)
        return self.output(torch.stack(states, 1)), None


class ClosedForm(nn.Module):
    """The cell of CfC (Hasani et al., 2022) from the package `ncps`, with as many backbone units as hidden ones.

    The loop over time is ours: that of the package broadcasts the elapsed times of a batch over the hidden units.

    Args:
        input_dim, width, output_dim: Sizes.

    Raises:
        MissingExtraError: `ncps` is not installed.
    """

    def __init__(self, input_dim: int, width: int, output_dim: int) -> None:
        super().__init__()
        try:
            from ncps.torch import CfCCell
        except ImportError as error:
            raise MissingExtraError(f"irregular: {error}; CfC is in the package ncps: pip install ncps") from error
        self.width = width
        self.cell = CfCCell(input_dim, width, backbone_units=width)
        self.output = nn.Linear(width, output_dim)

    def forward(self, x: Tensor, elapsed: Tensor) -> tuple[Tensor, None]:
        """[B, T, F] and [B, T] to ([B, T, O], None)."""
        h, states = x.new_zeros(len(x), self.width), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, elapsed[:, t : t + 1])[1]
            states.append(h)
        return self.output(torch.stack(states, 1)), None


_BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "AMN": AMN,
    "LSTM": lambda *sizes: Plain(nn.LSTM, *sizes),
    "GRU": lambda *sizes: Plain(nn.GRU, *sizes),
    "GRU, decaying": Decaying,
    "CfC": ClosedForm,
    "AMN, not liquid": lambda *sizes: AMN(*sizes, liquid=False),
    "AMN, no manifold": lambda *sizes: AMN(*sizes, manifold=False),
    "LRU": LRU,
}


def build(model: str, input_dim: int, output_dim: int, parameters: int) -> nn.Module:
    """The widest model of the name with at most so many weights."""
    low, high = 2, 1_024

    def count(width: int) -> int:
        with torch.device("meta"):
            return sum(weight.numel() for weight in _BUILDERS[model](input_dim, width, output_dim).parameters())

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return _BUILDERS[model](input_dim, low, output_dim)


def task_of(settings: Mapping[str, Any], series: Path) -> IrregularTask:
    """The task that a run's settings name."""
    length = settings["length"]
    if settings["task"] == "waves":
        return Waves(length)
    return DroppedDigits(length) if settings["task"] == "digits" else DroppedRows(series / "ETT" / "ETTh1.csv", length)


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every task and model with each learning rate, and the other seeds with the best one."""
    pairs = [(task, model) for models in (MODELS, OTHERS) for task in TASKS for model in models]
    for task, model in pairs:
        found = {}
        for rate in RATES[:1] if options.quick else RATES:
            found[rate] = yield _run(task, model, rate, 0, options)
        if any(result is None for result in found.values()):
            continue
        best = min(found, key=lambda rate: _score(found[rate]))
        for seed in range(1, options.seeds):
            yield _run(task, model, best, seed, options)


def _score(result: Result | None) -> float:
    """What a learning rate is chosen by."""
    return math.inf if result is None else result["validation"]


def _run(task: str, model: str, rate: float, seed: int, options: Options) -> Run:
    length, steps = TASKS[task]
    settings = {
        "task": task, "length": 16 if options.quick else length, "model": model, "rate": rate, "seed": seed,
        "parameters": 600 if options.quick else PARAMETERS, "steps": 3 if options.quick else steps, "batch": BATCH,
        "streams": 64 if options.quick else TEST,
    }  # fmt: skip
    name = model.replace(", ", "-").replace(" ", "-")
    return Run(f"{task}-{name}-{rate:g}-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Trains the run's model; its errors on validation and test streams."""
    settings = run.settings
    task = task_of(settings, place.options.series)
    steps, generator = settings["steps"], torch.Generator().manual_seed(settings["seed"])
    begun = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        model = build(settings["model"], task.input_dim + 1, task.output_dim, settings["parameters"])

    def loss_at(step: int) -> Tensor:
        episodes = task.episodes("train", settings["batch"], generator)
        return task.loss(model(episodes.features(), elapsed=episodes.elapsed)[0], episodes)

    if train(model, loss_at, settings["rate"], steps, partial(share_of, steps=steps), place.on_step) is None:
        return None
    return {
        **{split: error_of(model, task, split, settings["streams"]) for split in ("validation", "test")},
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "cpu_seconds": time.process_time() - begun,
    }


def share_of(step: int, steps: int) -> float:
    """The part of the learning rate that a step takes: 20 steps of warm-up, and a cosine to a tenth."""
    return min(1.0, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / steps))


@torch.no_grad()
def error_of(model: nn.Module, task: IrregularTask, split: Split, streams: int) -> float:
    """The error on streams that are the same for every model and seed."""
    seed = {"train": 1_000_001, "validation": 1_000_002, "test": 1_000_003}[split]
    episodes = task.episodes(split, streams, torch.Generator().manual_seed(seed))
    model.eval()
    return task.error(model(episodes.features(), elapsed=episodes.elapsed)[0], episodes)


def _best(finished: Mapping[str, Result], task: str, model: str) -> list[Result]:
    """The runs of all seeds with the learning rate that was best on the validation streams of the first seed."""
    of_model = [
        run for run in finished.values() if (run["settings"]["task"], run["settings"]["model"]) == (task, model)
    ]
    if not of_model:
        return []
    first = min(of_model, key=lambda run: (run["settings"]["seed"], run["results"]["validation"]))
    return [run for run in of_model if run["settings"]["rate"] == first["settings"]["rate"]]


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """The test error by task and model."""
    rows = []
    for task in TASKS:
        for model in (*MODELS, *OTHERS):
            found = _best(finished, task, model)
            if found:
                errors = [run["results"]["test"] for run in found]
                seconds = statistics.mean(run["results"]["cpu_seconds"] for run in found)
                rows.append([
                    task, model, f"{statistics.mean(errors):.4f}", " ".join(f"{error:.4f}" for error in errors),
                    f"{found[0]['settings']['rate']:g}", f"{found[0]['results']['parameters']:,}", f"{seconds:.0f}",
                ])  # fmt: skip
    caption = "waves, rows: mean squared error; digits: share of wrong answers; smaller is better"
    head = ["task", "model", "error, mean", "by seed", "rate", "parameters", "CPU seconds"]
    return [Table("Uneven times", head, rows, caption)]


PART = Part("irregular", "Uneven times: AMN, GRU, LSTM and CfC.", runs, measure, tables)
