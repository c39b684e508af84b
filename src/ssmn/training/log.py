"""How a run goes: figures since the last line of its log, and the log."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ssmn.errors import MissingExtraError
from ssmn.files import atomic_write
from ssmn.layers.heads import Prediction
from ssmn.training.evaluate import measures_of
from ssmn.training.tasks import Batch


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: Mean loss since the last log line: nats per token, or squared error.
        figure: Name of the figure beside the loss: `bits_per_byte`, `accuracy`, or `loss`.
        value: Its value, over the same steps (accuracy: on the last batch).
        learning_rate: Of this step.
        gradient_norm: Before clipping.
        tokens_per_second: Since the last log line.
        seconds_left: At that speed.
    """

    step: int
    steps: int
    loss: float
    figure: str
    value: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float


class Interval:
    """Means and speed since the last log line."""

    def __init__(self, first: int, steps: int):
        self.first, self.steps = first, steps
        self.begun = time.perf_counter()
        self.loss = self.nats = 0.0
        self.tokens = self.bytes = 0

    def add(
        self, step: int, batch: Batch, output: Tensor | Prediction | None, loss: float, norm: float, rate: float
    ) -> Progress:
        count = batch.inputs.shape[0] * batch.inputs.shape[1]
        self.loss += loss
        self.nats += loss * count
        self.tokens += count
        self.bytes += batch.target_bytes or 0
        seconds, done = time.perf_counter() - self.begun, step - self.first
        mean = self.loss / done
        if self.bytes:
            figure, value = "bits_per_byte", self.nats / math.log(2) / self.bytes
        elif batch.mask is not None and output is not None:
            total, answers = measures_of(output, batch)["accuracy"]
            figure, value = "accuracy", total / answers
        else:
            figure, value = "loss", mean
        speed = self.tokens / seconds
        return Progress(
            step, self.steps, mean, figure, value, rate, norm, speed, (self.steps - step) * seconds / done
        )  # fmt: skip


class Log:
    """A file of JSON lines, and TensorBoard's event file when it is wanted or installed."""

    def __init__(self, path: Path, step: int, tensorboard: bool | None):
        is_installed = importlib.util.find_spec("tensorboard") is not None
        if tensorboard and not is_installed:
            raise MissingExtraError('train: train.tensorboard=true needs: pip install "sparse-stream[train]"')
        if path.exists():
            # Lines after the checkpoint belong to steps that are about to be done again.
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            atomic_write(path, "".join(f"{line}\n" for line in lines).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        if is_installed and tensorboard is not False:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, line["step"])

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the process was killed
        return math.inf
