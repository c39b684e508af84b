"""What the language parts share: training a run with the library's own loop, and reading held-out text."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssmn.bench.quality.frame import Workplace
from ssmn.config import Plasticity
from ssmn.models import TextSSMN
from ssmn.state import StreamState
from ssmn.training import Progress, TrainConfig, train
from ssmn.training.data import Corpus, to_tensor
from ssmn.training.loop import CHECKPOINT_FILE

READ_PIECE = 1_024
"""Steps of a call while held-out text is read; has no influence on the figures."""


def train_run(settings: Mapping[str, Any], place: Workplace, corpora: tuple[Corpus, Corpus]) -> TextSSMN | None:
    """Trains the model of a run, from its checkpoint if there is one.

    Args:
        settings: Those of `TrainConfig`.
        place: Where the run works.
        corpora: The streams to train on and to look at in between.

    Returns:
        The model, or None if it was stopped; then a checkpoint is kept.
    """

    def on_step(progress: Progress) -> bool:
        figures = f"loss {progress.loss:.3f}, {progress.tokens_per_second:,.0f} tokens/s"
        return place.on_step(progress.step, progress.steps, figures)

    resume = (place.folder / CHECKPOINT_FILE).exists()
    config = TrainConfig.from_dict(settings)
    result = train(config, place.folder, resume=resume, on_step=on_step, corpora=corpora)
    assert isinstance(result.model, TextSSMN)
    return None if result.interrupted else result.model


def training_speed(place: Workplace) -> float:
    """Tokens per second of a run's training: the median over the lines of its log."""
    lines = [json.loads(line) for line in (place.folder / "log.jsonl").read_text().splitlines()]
    return float(np.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line]))


@torch.no_grad()
def losses(
    model: TextSSMN,
    tokens: np.ndarray,
    *,
    context: int | None = None,
    state: StreamState | None = None,
    plasticity: Plasticity | None = None,
) -> tuple[np.ndarray, StreamState | None]:
    """Nats of each token after the first, for rows that are read side by side.

    Args:
        model: The model.
        tokens: [B, T + 1].
        context: Starts afresh after so many steps; None = the state is carried through.
        state: The streams so far; None = fresh.
        plasticity: How strongly to learn and forget.

    Returns:
        ([B, T], the state after them, None with a context).
    """
    rows, found = to_tensor(tokens), []
    batch, time = rows.shape[0], rows.shape[1] - 1
    if context is not None:
        inputs, targets = (_cut(part, context) for part in (rows[:, :-1], rows[:, 1:]))
        together = max(batch, READ_PIECE // context)
        for begin in range(0, inputs.shape[0], together):
            part = slice(begin, begin + together)
            found.append(_nats(model(inputs[part])[0], targets[part]))
        whole = torch.cat(found).reshape(batch, -1)
        return whole[:, :time].numpy(), None
    for begin in range(0, time, READ_PIECE):
        end = min(begin + READ_PIECE, time)
        logits, state = model(rows[:, begin:end], state, plasticity=plasticity)
        found.append(_nats(logits, rows[:, begin + 1 : end + 1]))
    return torch.cat(found, 1).numpy(), state


def _cut(rows: Tensor, length: int) -> Tensor:
    """[B, T] to [B · pieces, length], the last piece of a row filled up with token 0."""
    return functional.pad(rows, (0, -rows.shape[1] % length)).unflatten(1, (-1, length)).flatten(0, 1)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")


def bits_per_byte(nats: np.ndarray, tokens: np.ndarray, byte_lengths: np.ndarray) -> float:
    """Bits per byte of rows [B, T + 1] with the nats [B, T] of all tokens but the first."""
    return float(nats.sum() / math.log(2) / byte_lengths[tokens[:, 1:]].sum())


def learning_rates(quick: bool = False) -> tuple[float, ...]:
    """The values among which every model's learning rate is chosen."""
    return (3e-3,) if quick else (4e-3, 8e-3, 1.6e-2, 3.2e-2)


def best_rate(found: Mapping[float, Mapping[str, Any] | None], figure: str) -> float | None:
    """The learning rate whose run has the lowest figure, or None if a run is missing."""
    results = {rate: result for rate, result in found.items() if result is not None}
    if len(results) < len(found):
        return None
    return min(results, key=lambda rate: results[rate][figure])


def over_seeds(values: list[float]) -> str:
    """The mean, and the values themselves if there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.3f}' for value in values)})"
