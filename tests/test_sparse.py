"""Training that makes a model write little: exact gates forwards, a target that is followed, exact resumption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmn.config import Plasticity, TextSSMNConfig
from ssmn.errors import ConfigError
from ssmn.layers.gates import SparseWriting
from ssmn.layers.memory import SynapticMemory
from ssmn.models import TextSSMN
from ssmn.training import Progress, TrainConfig, train
from ssmn.training.sparse import SparseTraining

SMALL: dict[str, Any] = {
    "task": {"name": "mqar", "pairs": 4, "vocab_size": 40},
    "model": {
        "hidden_dim": 16, "num_layers": 2, "num_heads": 2, "window_size": 4, "layer_types": ["plastic", "static"],
        "write_threshold": 0.45,
    },
    "train": {
        "steps": 12, "batch_size": 8, "tensorboard": False, "write_rate": 0.2, "write_rate_weight": 4.0, "log_every": 1,
        "checkpoint_every": 0, "warmup_steps": 0, "learning_rate": 1e-2,
    },
}  # fmt: skip


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.from_dict({**SMALL, "train": {**SMALL["train"], **changes}})


@pytest.mark.parametrize("rule", ["delta", "erase", "hebbian"])
def test_forwards_the_gate_is_a_skipped_write(rule: Any) -> None:
    memory = SynapticMemory(12, 3, update_rule=rule, write_threshold=0.5)
    hidden = torch.randn(2, 9, 12)
    mask = torch.rand(2, 9) < 0.8
    wanted, state = memory(hidden, mask=mask)
    memory.sparse = SparseWriting(0.5)
    came, after = memory(hidden, mask=mask)
    torch.testing.assert_close(came, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.memory, state.memory, rtol=0, atol=1e-6)
    memory.eval()
    torch.testing.assert_close(memory(hidden, mask=mask)[0], wanted, rtol=0, atol=0)


def test_a_closed_gate_has_a_gradient() -> None:
    gate = SparseWriting(0.5, temperature=0.1)
    importance = torch.tensor([[[0.4], [0.9], [0.2]]], requires_grad=True)
    opened = torch.tensor([[[True], [True], [False]]])
    out = gate(importance, opened)
    assert out.flatten().tolist() == [0.0, 1.0, 0.0]
    assert gate.rate is not None
    assert gate.rate.item() == 0.5
    gate.rate.backward()
    smooth = torch.sigmoid((importance.detach() - 0.5) / 0.1)
    wanted = smooth * (1 - smooth) / 0.1 / 2 * opened
    assert importance.grad is not None
    torch.testing.assert_close(importance.grad, wanted)


@pytest.mark.parametrize("method", ["penalty", "multiplier"])
def test_the_target_is_followed(method: str, tmp_path: Path) -> None:
    config = settings(write_training=method, steps=40, write_rate_weight=40.0 if method == "multiplier" else 4.0)
    result = train(config, tmp_path)
    rates = [json.loads(line)["write_rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()[:-1]]
    assert rates[0] > 0.45
    assert rates[-1] < 0.3
    assert result.model.blocks[0].mixer.sparse is None


def test_annealing_raises_the_threshold() -> None:
    config = settings(write_training="annealing")
    model = TextSSMN(TextSSMNConfig(**SMALL["model"], vocab_size=40))
    sparse = SparseTraining(model, config.train)
    seen = []
    for step in (0, 2, 5, 11):
        sparse.prepare(step)
        seen.append(model.blocks[0].mixer.sparse.threshold)
    assert seen == pytest.approx([0.45 / 6, 0.45 / 2, 0.45, 0.45])
    model(torch.zeros(1, 3, dtype=torch.int64))
    assert float(sparse.penalty()) == 0.0
    sparse.remove()
    assert model.blocks[0].mixer.sparse is None


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = settings(write_training="multiplier", write_rate_weight=40.0)
    whole = train(config, tmp_path / "whole").model.state_dict()

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(config, tmp_path / "parts", on_step=interrupt).step == 5
    parts = train(config, tmp_path / "parts", resume=True).model.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_needs_a_threshold_and_a_memory() -> None:
    free = TextSSMN(TextSSMNConfig(**{**SMALL["model"], "write_threshold": 0.0}, vocab_size=40))
    with pytest.raises(ConfigError, match=r"write_rate=0\.2 with model\.write_threshold=0\.0; wanted a threshold"):
        SparseTraining(free, settings().train)
    static = TextSSMN(TextSSMNConfig(**{**SMALL["model"], "layer_types": ("static", "static")}, vocab_size=40))
    with pytest.raises(ConfigError, match="no plastic layer"):
        SparseTraining(static, settings().train)
    with pytest.raises(ConfigError, match=r"write_rate=1\.5; wanted a share"):
        settings(write_rate=1.5)


def test_thresholds_of_a_call_still_work_after_training(tmp_path: Path) -> None:
    model = train(settings(), tmp_path).model
    tokens = torch.randint(40, (1, 30))
    default, _ = model(tokens)
    assert torch.equal(default, model(tokens, plasticity=Plasticity(write_threshold=0.45))[0])
    assert not torch.equal(default, model(tokens, plasticity=Plasticity(write_threshold=0.0))[0])
