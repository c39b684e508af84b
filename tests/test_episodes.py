"""The algorithmic tasks: what is told, what has to be answered, and what an answer costs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from ssmn.errors import ConfigError
from ssmn.training.episodes import EPISODES, AssociativeRecall, CopyVectors, RepeatCopy, bits_per_episode


def test_copy() -> None:
    batch = CopyVectors(width=3, shortest=4, longest=4).batch(0, batch_size=5)
    assert batch.inputs.shape == (5, 9, 4)
    assert torch.equal(batch.targets[:, 5:], batch.inputs[:, :4, :3])
    assert not batch.inputs[:, 5:].any() and not batch.targets[:, :5].any()
    assert batch.inputs[:, :, 3].nonzero()[:, 1].tolist() == [4] * 5
    assert batch.mask is not None and batch.mask.tolist() == [[False] * 5 + [True] * 4] * 5


def test_repeat_copy() -> None:
    task = RepeatCopy(width=3, shortest=2, longest=2, fewest_repeats=4, most_repeats=4)
    batch = task.batch(0, batch_size=5)
    assert batch.inputs.shape == (5, 2 + 1 + 8 + 1, 5) and batch.targets.shape == (5, 12, 4)
    for repeat in range(4):
        assert torch.equal(batch.targets[:, 3 + 2 * repeat : 5 + 2 * repeat, :3], batch.inputs[:, :2, :3])
    assert batch.targets[:, :, 3].nonzero()[:, 1].tolist() == [11] * 5
    number = (4 - 5.5) / math.sqrt(99 / 12)
    assert batch.inputs[:, 2, 4].tolist() == pytest.approx([number] * 5)
    # With more repeats than in the training the number goes on in the same scale.
    more = dataclasses.replace(task, fewest_repeats=20, most_repeats=20).batch(0, batch_size=1)
    assert float(more.inputs[0, 2, 4]) == pytest.approx((20 - 5.5) / math.sqrt(99 / 12))


def test_associative_recall() -> None:
    task = AssociativeRecall(width=7, fewest_items=5, most_items=5)
    batch = task.batch(0, batch_size=30)
    assert batch.inputs.shape == (30, 5 * 4 + 5 + 3, 9)
    items = batch.inputs[:, :20].unflatten(1, (5, 4))
    assert (items[:, :, 0, 7] == 1).all() and not items[:, :, 1:, 7:].any() and not items[:, :, 0, :7].any()
    question, answer = batch.inputs[:, 21:24, :7], batch.targets[:, 25:]
    assert (batch.inputs[:, [20, 24], 8] == 1).all()
    asked = (items[:, :, 1:, :7] == question.unsqueeze(1)).flatten(2).all(2).int().argmax(1)
    assert asked.unique().tolist() == [0, 1, 2, 3]  # never the last, which nothing follows
    assert torch.equal(answer, items[torch.arange(30), asked + 1, 1:, :7])


@pytest.mark.parametrize("name", sorted(EPISODES))
def test_batches_are_a_function_of_seed_step_and_split(name: str) -> None:
    task = EPISODES[name]()
    first = task.batch(3, batch_size=4, seed=1)
    assert torch.equal(first.inputs, task.batch(3, batch_size=4, seed=1).inputs)
    others = [
        task.batch(4, batch_size=4, seed=1), task.batch(3, batch_size=4, seed=2),
        task.batch(3, batch_size=4, seed=1, split="test"),
    ]  # fmt: skip
    assert not any(other.inputs.shape == first.inputs.shape and torch.equal(other.inputs, first.inputs)
                   for other in others)  # fmt: skip
    lengths = {task.batch(step, batch_size=1).inputs.shape[1] for step in range(60)}
    assert len(lengths) >= 5
    assert first.inputs.shape[-1] == task.input_dim and first.targets.shape[-1] == task.output_dim
    assert task.model_settings()["input_dim"] == task.input_dim


def test_the_range_of_lengths_is_reached() -> None:
    task = CopyVectors(shortest=2, longest=4)
    assert {task.batch(step, batch_size=1).inputs.shape[1] for step in range(40)} == {5, 7, 9}


def test_bits() -> None:
    batch = CopyVectors(width=3, shortest=4, longest=4).batch(0, batch_size=5)
    sure = (2 * batch.targets - 1) * 50
    cost, wrong = bits_per_episode(sure, batch)
    assert cost.max() < 1e-6 and wrong.tolist() == [0] * 5
    sure[2, 6, 1] *= -1  # one answer is wrong, at 50 nats
    sure[3, 2] *= -1  # not asked
    cost, wrong = bits_per_episode(sure, batch)
    assert cost.tolist() == pytest.approx([0, 0, 50 / math.log(2), 0, 0], abs=1e-4)
    assert wrong.tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (CopyVectors, {"shortest": 9, "longest": 4}, "copy-vectors: shortest=9; wanted at most longest=4"),
        (CopyVectors, {"width": 0}, "copy-vectors: width=0; wanted at least 1"),
        (RepeatCopy, {"fewest_repeats": 11}, "fewest_repeats=11; wanted at most most_repeats=10"),
        (AssociativeRecall, {"fewest_items": 1}, "fewest_items=1; wanted at least 2"),
        (AssociativeRecall, {"most_items": 1, "fewest_items": 2}, "fewest_items=2; wanted at most most_items=1"),
    ],
)
def test_bad_settings(task: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)
