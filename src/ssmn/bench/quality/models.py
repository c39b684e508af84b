"""What the parts about memory share: a model trained from a shipped configuration, and the share of written steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ssmn.bench.quality.frame import Workplace
from ssmn.models.stack import Stack
from ssmn.training.loop import CHECKPOINT_FILE, Progress, train
from ssmn.training.settings import TrainConfig, settings_for


def settings_of(settings: Mapping[str, Any]) -> TrainConfig:
    """The training that a run's `config` (name), `set` (overrides) and `seed` describe."""
    return TrainConfig.from_dict(
        settings_for(settings["config"], overrides=[*settings["set"], f"seed={settings['seed']}"])
    )


def trained(settings: Mapping[str, Any], place: Workplace) -> Stack | None:
    """The model of a run, trained in its folder; None if it was stopped (it goes on from its checkpoint)."""

    def step(progress: Progress) -> bool:
        return place.on_step(progress.step, progress.steps, f"{progress.figure} {progress.value:.3f}")

    folder = place.folder / "model"
    is_begun = (folder / CHECKPOINT_FILE).exists()
    result = train(settings_of(settings), folder, resume=is_begun, on_step=step)
    return None if result.interrupted else result.model.eval()


def written_share(importance: Mapping[int, Sequence[torch.Tensor]], threshold: float) -> float:
    """Share of steps, over all layers and heads, whose importance reaches the threshold."""
    reached = torch.cat([call.flatten() for calls in importance.values() for call in calls]) >= threshold
    return float(reached.float().mean())


def percent(value: float) -> str:
    """A share as a table shows it."""
    return f"{100 * value:.1f} %"
