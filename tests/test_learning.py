"""The models learn what the shipped configurations promise, and only with their memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmn.training import TrainConfig, examine, load_settings, settings_for, shipped_configs
from ssmn.training.tasks import RecallInText

EXAMINED = [name for name in shipped_configs() if "evaluate" in load_settings(name)]


def assert_goals_are_met(config: TrainConfig, seed: int) -> None:
    figures = list(examine(config, [seed]))
    for figure in figures:
        print(f"{figure.name} {figure.measure} {figure.value:.4f} {figure.goal} ({figure.train_seconds:.0f} s)")
    assert [figure for figure in figures if not figure.met] == []


def test_recall_is_learnt_in_seconds_and_needs_the_memory() -> None:
    assert_goals_are_met(TrainConfig.from_dict(settings_for("mqar", overrides=["train.steps=40"])), seed=0)


def test_two_hops_need_the_chat() -> None:
    small = ["task.chains=5", "task.vocab_size=128", "train.batch_size=16", "train.steps=70"]
    config = TrainConfig.from_dict(settings_for("hop2", overrides=[*small, "evaluate.recall.at_least=0.9"]))
    assert_goals_are_met(config, seed=0)
    assert_goals_are_met(TrainConfig.from_dict(settings_for("hop2-no-chat", overrides=small)), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", EXAMINED)
def test_shipped_configurations_keep_their_promises(name: str, seed: int) -> None:
    config = TrainConfig.from_dict(load_settings(name))
    if isinstance(config.task, RecallInText) and not Path(config.task.text).is_dir():
        pytest.skip(f"needs the corpus in {config.task.text}: make corpus")
    assert_goals_are_met(config, seed)
