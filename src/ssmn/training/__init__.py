"""Training and evaluation: tokenizer, data, tasks, settings, the loop, and the figures."""

from ssmn.training.datasets import Piece, StreamDataset, Window, WindowDataset
from ssmn.training.evaluate import StreamScore, evaluate_stream, evaluate_task
from ssmn.training.examine import Figure, examine
from ssmn.training.loop import Progress, TrainResult, build_model, train
from ssmn.training.settings import TrainConfig, load_settings, settings_for, shipped_configs
from ssmn.training.tasks import TASKS, Batch, Task
from ssmn.training.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "TASKS",
    "Batch",
    "Figure",
    "Piece",
    "Progress",
    "StreamDataset",
    "StreamDecoder",
    "StreamScore",
    "Task",
    "Tokenizer",
    "TrainConfig",
    "TrainResult",
    "Window",
    "WindowDataset",
    "build_model",
    "evaluate_stream",
    "evaluate_task",
    "examine",
    "load_settings",
    "settings_for",
    "shipped_configs",
    "train",
]
