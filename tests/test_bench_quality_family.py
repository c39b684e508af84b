"""The comparison of the family: its tasks, the sizes of its models, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ssmn.bench.quality.family import comparison as family
from ssmn.bench.quality.family.tasks import TASK_NAMES, FamilyTask, family_task
from ssmn.bench.quality.frame import Options, finished, work

TASKS = {name: family_task(name) for name in TASK_NAMES}


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_the_same_again_and_never_those_of_the_test(name: str) -> None:
    task = TASKS[name]
    first, again, later, test = (
        task.batch(step, 5, 3, split) for step, split in ((2, "train"), (2, "train"), (4, "train"), (2, "test"))
    )
    assert first.x.shape[0] == 5
    assert first.x.shape[-1] == task.input_dim
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.target, again.target)
    for other in (later, test):
        assert other.x.shape != first.x.shape or not torch.equal(other.x, first.x)
    assert first.asked.any(1).all()


def test_tasks_are_called_what_the_table_calls_them() -> None:
    assert all(task.name == name for name, task in TASKS.items())


def perfect(task: FamilyTask, episode: Any) -> torch.Tensor:
    if task.kind == "class":
        return 50 * torch.nn.functional.one_hot(episode.target, task.output_dim).float()
    return 50 * (2 * episode.target - 1) if task.kind == "bits" else episode.target


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answers_have_no_error_and_silence_has_one(name: str) -> None:
    task = TASKS[name]
    episode = task.batch(0, 64, 0, "test")
    answers = perfect(task, episode)
    assert task.error(answers, episode) == 0.0
    assert float(task.loss(answers, episode)) < 1e-6
    chance = task.error(torch.zeros_like(answers), episode)
    assert 0.3 < chance < 1.3


def test_the_answer_to_adding_is_the_sum_of_the_marked_numbers() -> None:
    episode = TASKS["adding"].batch(0, 7, 0, "train")
    total = (episode.x[..., 0] * episode.x[..., 1]).sum(1)
    assert torch.allclose(episode.target[:, -1, 0] / 6**0.5 + 1, total, atol=1e-6)
    assert (episode.x[..., 1].sum(1) == 2).all()


@pytest.mark.parametrize("member", family.MEMBERS)
def test_models_have_the_sizes_that_are_compared(member: str) -> None:
    task = TASKS["copy"]
    model = family.model_of(member, task, "parameters")
    assert abs(model.num_parameters() / family.PARAMETERS - 1) < 0.01
    if member != "window alone":
        memory = family.model_of(member, task, "bytes").blocks[0].init_state(1).nbytes
        assert abs(memory / family.STATE_BYTES - 1) < 0.2


def test_runs_tables_and_the_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ssmn.plots import Look

    options = Options(tmp_path, seeds=1, quick=True)
    assert not work(family.PART, options, only=["parameters-copy-*", "bytes-copy-ssmn-*"])
    runs = finished(family.PART, tmp_path)
    assert len(runs) == len(family.MEMBERS) + 1
    table, bytes_table = family.tables(runs)
    assert [row[0] for row in table.rows] == list(family.MEMBERS)
    assert all(row[1].endswith("(1)") for row in table.rows)
    assert [row[0] for row in bytes_table.rows] == ["SSMN"]
    figure = family.drawing(runs, Look())
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == ["copy (wrong bits)"]
