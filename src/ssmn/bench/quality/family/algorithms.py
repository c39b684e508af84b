"""The Neural Turing Machine's own tasks: copy, repeat copy, associative recall, beside an LSTM of equal parameters.

Both are trained on the same episodes with the same optimiser and the same learning rates to choose from, and tested
within the trained sizes and far beyond. Where a task has a `growth`, both begin with its smallest episodes; a memory
that was trained with fewer rows is tested with more. The cost is that of the paper's curves (Graves et al., 2014):
cross-entropy in bits, summed over the answer of an episode; a coin costs one bit per bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.relatives import NTM
from ssmn.training.episodes import EPISODES, bits_per_episode
from ssmn.training.tasks import Batch, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

RATES = (3e-3, 1e-3)
CLIP = 1.0
"""Largest norm of a gradient."""
EVERY = 50
"""Batches that a point of the curve is the mean of."""
TESTED = 64
"""Episodes per size."""
TESTED_SLOTS = 128
"""Rows of the machine's memory when it is tested; it may be trained with fewer."""
SAFETY_SEEDS = 20


@dataclass(frozen=True)
class Setting:
    """A task, the machine for it, and the sizes that it is tested at: inside the training, then outside.

    Attributes:
        steps: Batches of the training.
        growth: Batches until the largest episodes are drawn; the range grows from the smallest ones evenly.
        machine: Settings of the Neural Turing Machine but for the task's channels.
        sizes: By name, the task's settings.
        doubled: The size that is twice the trained one.
    """

    steps: int
    growth: int
    machine: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, int]]
    doubled: str


def _lengths(*lengths: int) -> dict[str, dict[str, int]]:
    return {f"{length} vectors": {"shortest": length, "longest": length} for length in lengths}


def _repeated(*sizes: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {
        f"{length} vectors {repeats} times": {
            "shortest": length, "longest": length, "fewest_repeats": repeats, "most_repeats": repeats,
        }
        for length, repeats in sizes
    }  # fmt: skip


def _items(*counts: int) -> dict[str, dict[str, int]]:
    return {f"{count} items": {"fewest_items": count, "most_items": count} for count in counts}


SETTINGS: dict[str, Setting] = {
    "copy-vectors": Setting(
        1800,
        0,
        {"hidden_dim": 100, "controller": "feedforward", "memory_slots": 32},
        _lengths(10, 20, 40, 100),
        "40 vectors",
    ),
    "repeat-copy": Setting(
        6000,
        400,
        {"hidden_dim": 100, "controller": "feedforward", "memory_slots": 16},
        _repeated((5, 5), (10, 10), (20, 10), (10, 20)),
        "20 vectors 10 times",
    ),
    "associative-recall": Setting(
        1600,
        400,
        {"hidden_dim": 100, "controller": "feedforward", "memory_slots": 32},
        _items(4, 6, 12, 20),
        "12 items",
    ),
}
MODELS = ("NTM", "LSTM")
RANGES = (("shortest", "longest"), ("fewest_repeats", "most_repeats"), ("fewest_items", "most_items"))
"""What a task draws between, by the names of its settings."""


class LstmReader(nn.Module):
    """Torch's LSTM between the channels of a task, as wide as it takes to have a number of parameters.

    Args:
        input_dim: Channels that come in.
        output_dim: Channels that go out.
        parameters: How many there shall be; the nearest width is taken.
    """

    def __init__(self, input_dim: int, output_dim: int, parameters: int) -> None:
        super().__init__()
        # 4 w (i + w + 2) for the LSTM, (w + 1) o for what is behind it.
        linear = 4 * input_dim + 8 + output_dim
        width = round((math.sqrt(linear**2 + 16 * (parameters - output_dim)) - linear) / 8)
        self.cell = nn.LSTM(input_dim, width, batch_first=True)
        self.output = nn.Linear(width, output_dim)
        with torch.no_grad():  # the forget gate begins open
            for name, value in (("bias_hh_l0", 1.0), ("bias_ih_l0", 0.0)):
                getattr(self.cell, name)[width : 2 * width] = value

    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """[B, T, input_dim] to ([B, T, output_dim], state)."""
        hidden, state = self.cell(x)
        return self.output(hidden), state


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every task and model: each learning rate with seed 0, the best one with the other seeds; then the safety run."""
    for task in SETTINGS:
        for model in MODELS:
            found = {}
            for rate in RATES:
                result = yield _run(task, model, rate, 0, options)
                if result is not None:
                    found[rate] = result
            if not found:
                continue
            best = min(found, key=lambda rate: _cost_at_the_end(found[rate]))
            for seed in range(1, options.seeds):
                yield _run(task, model, best, seed, options)
    seeds, steps = (2, 2) if options.quick else (SAFETY_SEEDS, 30)
    yield Run("safety", {"seeds": seeds, "steps": steps, "rate": 3e-2, "batch_size": 4})


def _run(task: str, model: str, rate: float, seed: int, options: Options) -> Run:
    setting = SETTINGS[task]
    settings = {
        "task": task, "model": model, "machine": dict(setting.machine), "rate": rate, "seed": seed,
        "steps": 2 if options.quick else setting.steps, "growth": setting.growth,
        "batch_size": 2 if options.quick else 16, "episodes": 2 if options.quick else TESTED,
        "tested_slots": TESTED_SLOTS,
        "sizes": {name: dict(size) for name, size in setting.sizes.items()},
    }  # fmt: skip
    return Run(f"{task}-{model.lower()}-{rate:g}-{seed}", settings)


def _cost_at_the_end(result: Result) -> float:
    """The cost of the training's last episodes, by which the learning rate is chosen: hundreds, each of them new."""
    return result["curve"][-1][1]


def measure(run: Run, place: Workplace) -> Result | None:
    """The training's curve, and cost and wrong bits by size; a stopped run begins anew."""
    return _safety(run, place) if run.name == "safety" else _trained(run, place)


def _model(settings: Mapping[str, Any]) -> NTM | LstmReader:
    task = EPISODES[settings["task"]]()
    torch.manual_seed(settings["seed"])
    machine = NTM(input_dim=task.input_dim, output_dim=task.output_dim, **settings["machine"])
    if settings["model"] == "NTM":
        return machine
    torch.manual_seed(settings["seed"])
    return LstmReader(task.input_dim, task.output_dim, machine.num_parameters())


def _trained(run: Run, place: Workplace) -> Result | None:
    settings, model = run.settings, _model(run.settings)
    task, steps = EPISODES[settings["task"]](), settings["steps"]
    optimiser = torch.optim.Adam(model.parameters(), settings["rate"], fused=True)
    # The full rate for the first half, then in a straight line to nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / steps)))
    begun, worked, curve, recent = time.monotonic(), time.process_time(), [], []
    for step in range(steps):
        drawn = _grown(task, step / settings["growth"]) if step < settings["growth"] else task
        batch = drawn.batch(step, batch_size=settings["batch_size"], seed=settings["seed"])
        recent.append(_learn(model, optimiser, batch))
        schedule.step()
        if len(recent) == EVERY or step + 1 == steps:
            curve.append([(step + 1) * settings["batch_size"], sum(recent) / len(recent)])
            recent = []
        if place.on_step(step + 1, steps, f"bits {curve[-1][1] if curve else math.nan:.3f}"):
            return None
    spent = {"seconds": time.monotonic() - begun, "processor_seconds": time.process_time() - worked}
    tested = model.with_memory_slots(settings["tested_slots"]) if isinstance(model, NTM) else model
    sizes = {}
    for name, size in settings["sizes"].items():
        batch = dataclasses.replace(task, **size).batch(
            0, batch_size=settings["episodes"], seed=settings["seed"], split="test"
        )
        with torch.no_grad():
            cost, wrong = bits_per_episode(tested(batch.inputs)[0], batch)
        assert batch.mask is not None
        sizes[name] = {
            "cost": cost.mean().item(),
            "wrong": wrong.double().mean().item(),
            "bits": int(batch.mask[0].sum()) * task.output_dim,
        }
    return {"parameters": model.num_parameters(), "training": spent, "curve": curve, "sizes": sizes}


def _grown(task: Task, share: float) -> Task:
    """The task with a share of its range, from the smallest value on."""
    names = {field.name for field in dataclasses.fields(task)}
    largest = {}
    for low, high in RANGES:
        if high in names:
            least, most = getattr(task, low), getattr(task, high)
            largest[high] = least + int(share * (most - least + 1))
    return dataclasses.replace(task, **largest)


def _learn(model: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    """One step on the mean cost of a bit of the answer; returns the mean cost of an episode in bits."""
    cost, _ = bits_per_episode(model(batch.inputs)[0], batch)
    assert batch.mask is not None
    loss = cost.sum() / (batch.mask.sum() * batch.targets.shape[-1])
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    return cost.mean().item()


def _safety(run: Run, place: Workplace) -> Result | None:
    """Short trainings at ten times the learning rate: how many seeds met a value that is not finite."""
    settings, failed = run.settings, {}
    task = EPISODES["copy-vectors"]()
    for controller in ("feedforward", "lstm"):
        failed[controller] = []
        for seed in range(settings["seeds"]):
            torch.manual_seed(seed)
            model = NTM(task.input_dim, 100, task.output_dim, controller=controller)
            optimiser = torch.optim.Adam(model.parameters(), settings["rate"])
            costs = [
                _learn(model, optimiser, task.batch(step, batch_size=settings["batch_size"], seed=seed))
                for step in range(settings["steps"])
            ]
            weights = all(bool(weight.isfinite().all()) for weight in model.parameters())
            if not weights or not all(map(math.isfinite, costs)):
                failed[controller].append(seed)
            if place.on_step(seed + 1, settings["seeds"], f"{controller}, not finite {len(failed[controller])}"):
                return None
    return {"not_finite": failed}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Every run: cost and wrong bits by size, a table for each task; the factor at twice the trained size; safety."""
    found = []
    for task, setting in SETTINGS.items():
        chosen = [run for run in finished.values() if run["settings"].get("task") == task]
        if not chosen:
            continue
        rows = []
        for run in sorted(chosen, key=_order):
            settings, results = run["settings"], run["results"]
            rows.append([
                settings["model"], f"{settings['rate']:g}", str(settings["seed"]), f"{results['parameters']:,}",
                f"{settings['steps'] * settings['batch_size']:,}", f"{results['training']['seconds'] / 60:.1f}",
                f"{results['curve'][-1][1]:.3g}",
                *(f"{size['cost']:.3g} ({size['wrong']:.3g})" for size in results["sizes"].values()),
            ])  # fmt: skip
        names = [f"{name} ({size['bits']} bits)" for name, size in chosen[0]["results"]["sizes"].items()]
        head = ["model", "rate", "seed", "parameters", "episodes", "minutes", "at the end", *names]
        title = f"{task.replace('-', ' ').capitalize()}: bits per episode"
        caption = "cost in bits (wrong bits), at the end of the training and by size; the LSTM's cost ÷ the NTM's "
        caption += f"at {setting.doubled}: {_factors(chosen, setting.doubled)}"
        found.append(Table(title, head, rows, caption, texts=3))
    if "safety" in finished:
        rows = [[name, str(len(seeds))] for name, seeds in finished["safety"]["results"]["not_finite"].items()]
        settings = finished["safety"]["settings"]
        caption = f"{settings['seeds']} seeds, {settings['steps']} steps at a rate of {settings['rate']:g}"
        found.append(Table("Not a number", ["controller", "seeds"], rows, caption, texts=1))
    return found


def _order(run: Result) -> tuple[int, float, int]:
    settings = run["settings"]
    return MODELS.index(settings["model"]), settings["rate"], settings["seed"]


def _best(chosen: list[Result], model: str) -> list[Result]:
    """The runs of a model with the learning rate that was best at the end of the training."""
    own = [run for run in chosen if run["settings"]["model"] == model]
    if not own:
        return []
    first = min(own, key=lambda run: (run["settings"]["seed"], _cost_at_the_end(run["results"])))
    return [run for run in own if run["settings"]["rate"] == first["settings"]["rate"]]


def _factors(chosen: list[Result], size: str) -> str:
    """How many times the LSTM's mean cost is the machine's."""
    costs = []
    for model in MODELS:
        own = [run["results"]["sizes"][size]["cost"] for run in _best(chosen, model)]
        if not own:
            return "not measured"
        costs.append(sum(own) / len(own))
    return f"{costs[1] / costs[0]:.3g}"


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """The curves of the trainings with the best learning rate of each."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for task in SETTINGS:
        chosen = [run for run in finished.values() if run["settings"].get("task") == task]
        for model in MODELS:
            for run in _best(chosen, model):
                lines = panels.setdefault(task.replace("-", " "), {})
                for episodes, cost in run["results"]["curve"]:
                    lines.setdefault(model, {}).setdefault(episodes, []).append(cost)
    if not panels:
        return None
    return plots.spread_lines(panels, look, "episodes", "bits per episode", y_range=None)


PART = Part(
    "algorithms",
    "Copy, repeat copy, associative recall: the Neural Turing Machine and an LSTM.",
    runs,
    measure,
    tables,
    drawing,
)
