"""Synthetic tasks that show what the memory can do."""

from ssmn.training.tasks.base import Batch, Split, Task
from ssmn.training.tasks.recall import (
    Copy,
    MultiHopRecall,
    MultiQueryRecall,
    ReboundRecall,
    RecallAtDistance,
    RecallInText,
    SpreadRecall,
)
from ssmn.training.tasks.systems import DriftingSystem, LinearSystem

__all__ = [
    "TASKS",
    "Batch",
    "Copy",
    "DriftingSystem",
    "LinearSystem",
    "MultiHopRecall",
    "MultiQueryRecall",
    "ReboundRecall",
    "RecallAtDistance",
    "RecallInText",
    "Split",
    "SpreadRecall",
    "Task",
]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Copy,
        MultiQueryRecall,
        ReboundRecall,
        SpreadRecall,
        MultiHopRecall,
        RecallAtDistance,
        RecallInText,
        DriftingSystem,
        LinearSystem,
    )
}
"""Every task by the name that `ssmn train --task` takes."""
