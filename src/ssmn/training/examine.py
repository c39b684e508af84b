"""Trains a configuration from scratch for several seeds and holds every figure against its goal."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ssmn.config import Plasticity
from ssmn.errors import ConfigError
from ssmn.models.stack import Stack
from ssmn.training.evaluate import evaluate_task
from ssmn.training.loop import Progress, build_model, train
from ssmn.training.settings import Examination, TrainConfig


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: The `[evaluate.NAME]` section that asked for it.
        seed: Seed of the weights and of the data.
        measure: What was measured: `accuracy`, or `error_64+` for the drifting system.
        value: The figure.
        goal: The goal in words; empty if there is none.
        met: Whether the goal is met.
        train_seconds: What the training before it took.
    """

    name: str
    seed: int
    measure: str
    value: float
    goal: str
    met: bool
    train_seconds: float


def examine(
    config: TrainConfig,
    seeds: Iterable[int] = (0,),
    *,
    out: str | os.PathLike[str] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[Figure]:
    """Trains the configuration once per seed and yields the figures of its `[evaluate.*]` sections.

    Args:
        config: Settings of a task, with at least one examination.
        seeds: Seeds to train with; each is reported, none is left out.
        out: Keeps the runs in `out/seed-N`; None = they are thrown away.
        on_step: Called after each training step.

    Yields:
        The figures, seed by seed.

    Raises:
        ConfigError: The settings ask for no figure.

    Example:
        >>> from ssmn.training import TrainConfig, examine
        >>> settings = {
        ...     "task": {"name": "copy", "length": 4},
        ...     "model": {"preset": "tiny"},
        ...     "train": {"steps": 1, "tensorboard": False},
        ...     "evaluate": {"recall": {"at_least": 0.0, "batches": 1}},
        ... }
        >>> [figure.met for figure in examine(TrainConfig.from_dict(settings))]
        [True]
    """
    if config.task is None or not config.evaluate:
        raise ConfigError("examine: the settings have no [evaluate.NAME] section; wanted a task with at least one.")
    for seed in seeds:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch if out is None else out) / f"seed-{seed}"
            result = train(dataclasses.replace(config, seed=seed), folder, on_step=on_step)
        seconds = time.perf_counter() - begun
        if result.interrupted:
            raise KeyboardInterrupt
        for name, examination in config.evaluate.items():
            value = measure(fresh_model(config, seed) if examination.untrained else result.model, config, name, seed)
            measured, met = config.examined_task(name, examination).measure, examination.is_met(value)
            yield Figure(name, seed, measured, value, _goal(examination), met, seconds)


def measure(model: Stack, config: TrainConfig, name: str, seed: int = 0) -> float:
    """The figure that one `[evaluate.NAME]` section asks for."""
    examination = config.evaluate[name]
    task = config.examined_task(name, examination)
    plasticity = Plasticity(
        frozen=examination.frozen,
        write_threshold=examination.write_threshold,
        decay_scale=examination.decay_scale,
    )
    figures = evaluate_task(
        model,
        task,
        batches=examination.batches,
        batch_size=examination.batch_size,
        seed=seed,
        plasticity=plasticity,
    )
    return figures[task.measure]


def fresh_model(config: TrainConfig, seed: int) -> Stack:
    """The weights that training with this seed starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config.model_config())


def _goal(examination: Examination) -> str:
    goals = []
    if examination.at_least is not None:
        goals.append(f"≥ {examination.at_least:g}")
    if examination.at_most is not None:
        goals.append(f"≤ {examination.at_most:g}")
    return " and ".join(goals)
