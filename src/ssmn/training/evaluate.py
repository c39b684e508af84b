"""Figures of a trained model: bits per byte of a text, accuracy or squared error on a task."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssmn.config import Plasticity, SSMNConfig, StackConfig
from ssmn.errors import RangeError
from ssmn.layers.heads import Prediction
from ssmn.models import SSMN, TextSSMN
from ssmn.models.stack import Stack
from ssmn.state import StreamState
from ssmn.training.data import to_tensor
from ssmn.training.losses import prediction_loss
from ssmn.training.tasks import Batch, Task
from ssmn.training.tokenizer import Tokenizer

_ERROR_BINS = (0, 8, 16, 32, 64, math.inf)


@dataclass(frozen=True)
class StreamScore:
    """How well a model predicted one stream, read once from its start.

    Attributes:
        loss: Mean loss per step: nats for tokens, the head's loss in normalised units for vectors.
        steps: Predicted steps.
        target_bytes: Bytes that the predicted tokens stand for; 0 for vectors.
        seconds: Time taken.
    """

    loss: float
    steps: int
    target_bytes: int
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte of the text; NaN for vectors."""
        return self.loss * self.steps / math.log(2) / self.target_bytes if self.target_bytes else math.nan


def outputs_of(
    model: Stack, batch: Batch, state: StreamState | None = None, **options: Any
) -> tuple[Tensor | Prediction, StreamState]:
    """A batch through a model; of a text model only the logits that count, since the others cost the most.

    Args:
        model: The model.
        batch: Its inputs, and the mask of the positions that count.
        state: The streams so far; None = fresh.
        **options: The model's.

    Returns:
        (logits `[B, T, vocab]`, or `[N, vocab]` at the N counted positions in order, or the prediction of a model of
        series; state).
    """
    if isinstance(model, SSMN):
        return model.predict(batch.inputs, state, **options)
    if batch.mask is None or not isinstance(model, TextSSMN):
        return model(batch.inputs, state, **options)
    if model.output_memory is not None:  # it learns at every step
        output, after = model(batch.inputs, state, **options)
        return output[batch.mask], after
    hidden, after = model.hidden(batch.inputs, state, **options)
    return model.logits(hidden[batch.mask]), after


def loss_of(output: Tensor | Prediction, batch: Batch) -> Tensor:
    """Mean over the counted positions, in float32: cross-entropy in nats, squared error, or a prediction's own loss.

    Args:
        output: Logits `[B, T, vocab]` or vectors `[B, T, O]`, or either at the counted positions alone, `[N, O]`; or a
            prediction.
        batch: Its targets and mask.

    Returns:
        A scalar.
    """
    if isinstance(output, Prediction):
        return prediction_loss(output, batch.targets, batch.mask)
    output, targets = _counted(output, batch)
    if targets.is_floating_point():
        return functional.mse_loss(output.float(), targets)
    return functional.cross_entropy(output.float().flatten(0, -2), targets.flatten())


def measures_of(output: Tensor | Prediction, batch: Batch) -> dict[str, tuple[float, int]]:
    """Sums and counts behind a task's figures: right answers, or squared errors since the last switch."""
    output = output.points() if isinstance(output, Prediction) else output
    if not batch.targets.is_floating_point():
        output, targets = _counted(output, batch)
        right = output.argmax(-1) == targets
        return {"accuracy": (float(right.sum()), right.numel())}
    assert batch.elapsed is not None
    error = (output.float() - batch.targets).square().mean(-1)
    sums = {}
    for low, high in itertools.pairwise(_ERROR_BINS):
        chosen = error[(batch.elapsed >= low) & (batch.elapsed < high)]
        name = f"error_{low}-{high}" if math.isfinite(high) else f"error_{low}+"
        sums[name] = (float(chosen.sum()), chosen.numel())
    return sums


@torch.no_grad()
def evaluate_task(
    model: Stack,
    task: Task,
    *,
    batches: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    plasticity: Plasticity | None = None,
    piece_length: int = 4096,
) -> dict[str, float]:
    """Figures on test batches of a task, which are never among the training batches.

    Args:
        model: The model.
        task: The task.
        batches: Batches to average over.
        batch_size: Rows of each.
        seed: Which series of test batches.
        plasticity: How strongly to learn and forget; `Plasticity(frozen=True)` is the control.
        piece_length: Long rows are read in pieces of this length with the state carried.

    Returns:
        `{"accuracy": ...}`, or for the drifting system the squared error by steps since the switch.

    Example:
        >>> import ssmn
        >>> from ssmn.training import TASKS, evaluate_task
        >>> task = TASKS["mqar"](pairs=4, vocab_size=32)
        >>> lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=32))
        >>> list(evaluate_task(lm, task, batches=1, batch_size=2))
        ['accuracy']
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for step in range(batches):
        batch = task.batch(step, batch_size=batch_size, seed=seed, split="test")
        state = None
        for piece in _pieces(batch, piece_length):
            output, state = outputs_of(model, piece, state, plasticity=plasticity)
            for name, (total, count) in measures_of(output, piece).items():
                sums[name] += total
                counts[name] += count
    return {name: sums[name] / counts[name] if counts[name] else math.nan for name in sums}


@torch.no_grad()
def evaluate_stream(
    model: Stack,
    steps: np.ndarray,
    *,
    tokenizer: Tokenizer | None = None,
    plasticity: Plasticity | None = None,
    piece_length: int = 1024,
) -> StreamScore:
    """Reads a stream once from a fresh state and scores every prediction of the next step.

    Args:
        model: A text model for tokens, a Standard model for vectors.
        steps: Tokens `[N]` or vectors `[N, F]`, N at least 2.
        tokenizer: What the tokens stand for; without it there are no bits per byte.
        plasticity: How strongly to learn and forget; `Plasticity(frozen=True)` is the control.
        piece_length: Steps per call; has no influence on the figures.

    Returns:
        The score.

    Raises:
        RangeError: Fewer than two steps.

    Example:
        >>> import ssmn
        >>> from ssmn.training import Tokenizer, evaluate_stream
        >>> tokenizer = Tokenizer.for_bytes()
        >>> lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=tokenizer.vocab_size))
        >>> evaluate_stream(lm, tokenizer.encode("to be or not to be"), tokenizer=tokenizer).target_bytes
        17
    """
    if len(steps) < 2:
        raise RangeError(f"evaluate_stream: steps has {len(steps)} steps; wanted at least 2.")
    begun, state, total = time.perf_counter(), None, 0.0
    for start in range(0, len(steps) - 1, piece_length):
        piece = to_tensor(steps[start : start + piece_length + 1]).unsqueeze(0)
        batch = Batch(piece[:, :-1], targets_of(model.config, piece[:, 1:]), None, "stream")
        output, state = outputs_of(model, batch, state, plasticity=plasticity)
        total += loss_of(output, batch).item() * batch.inputs.shape[1]
    return StreamScore(
        loss=total / (len(steps) - 1),
        steps=len(steps) - 1,
        target_bytes=0 if tokenizer is None else int(tokenizer.byte_lengths[steps[1:]].sum()),
        seconds=time.perf_counter() - begun,
    )


def targets_of(config: StackConfig, steps: Tensor) -> Tensor:
    """What a model is to say about steps `[B, T]` or `[B, T, F]`: of vectors the columns that it speaks of."""
    if isinstance(config, SSMNConfig) and config.targets:
        return steps[..., list(config.targets)]
    return steps


def _counted(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.mask is None:
        return output, batch.targets
    return output if output.dim() == 2 else output[batch.mask], batch.targets[batch.mask]


def _pieces(batch: Batch, length: int) -> Iterator[Batch]:
    for start in range(0, batch.inputs.shape[1], length):
        cut = slice(start, start + length)
        yield Batch(
            batch.inputs[:, cut],
            batch.targets[:, cut],
            None if batch.mask is None else batch.mask[:, cut],
            batch.source,
            elapsed=None if batch.elapsed is None else batch.elapsed[:, cut],
        )
