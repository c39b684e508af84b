"""What a model writes while it reads: the numbers behind `ssmn inspect --writes`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ssmn
from ssmn.config import Plasticity, TextSSMNConfig
from ssmn.errors import ConfigError
from ssmn.models import TextSSMN
from ssmn.probes import memories, read_writes, watch_importance

CONFIG = TextSSMNConfig(
    vocab_size=30, hidden_dim=12, num_layers=4, num_heads=2, window_size=5, memory_heads=3,
    layer_types=("static", "plastic", "plastic", "static"),
)  # fmt: skip


def test_pieces_are_the_whole_and_a_threshold_closes_exactly_what_is_below() -> None:
    model = TextSSMN(CONFIG)
    tokens = torch.randint(30, (1, 23))
    whole = read_writes(ssmn.Stream(model), tokens)
    assert whole.layers == (1, 2)
    assert whole.importance.shape == whole.written.shape == (23, 2, 3)
    assert whole.written.all()
    stream = ssmn.Stream(model)
    parts = [read_writes(stream, piece) for piece in tokens.split(7, 1)]
    np.testing.assert_allclose(np.concatenate([part.importance for part in parts]), whole.importance, atol=1e-6)
    assert stream.position.tolist() == [23]

    threshold = float(np.median(whole.importance[:, 0]))
    sparse = read_writes(ssmn.Stream(model), tokens, plasticity=Plasticity(write_threshold=threshold))
    np.testing.assert_array_equal(sparse.written, sparse.importance >= np.float32(threshold))
    np.testing.assert_allclose(sparse.strength, np.where(sparse.written, sparse.importance, 0).mean((1, 2)))
    frozen = read_writes(ssmn.Stream(model), tokens, plasticity=Plasticity(frozen=True))
    assert not frozen.written.any()


def test_what_is_not_written_leaves_the_memory_alone() -> None:
    model = TextSSMN(CONFIG)
    tokens = torch.randint(30, (1, 1))
    importance = read_writes(ssmn.Stream(model), tokens).importance[0, 0]
    threshold = float(np.sort(importance)[1])
    stream = ssmn.Stream(model)
    writes = read_writes(stream, tokens, plasticity=Plasticity(write_threshold=threshold))
    moved = stream.state.layers[1].memory.abs().amax((0, 2, 3)) > 0  # type: ignore[union-attr]
    # The first step has no vector before it: its key, and with it what is added, is zero. So read one more.
    assert not moved.any()
    writes = read_writes(stream, tokens, plasticity=Plasticity(write_threshold=threshold))
    moved = stream.state.layers[1].memory.abs().amax((0, 2, 3)) > 0  # type: ignore[union-attr]
    assert moved.tolist() == writes.written[0, 0].tolist()


def test_the_importance_of_a_batch_by_layer_and_call() -> None:
    model = TextSSMN(CONFIG)
    with watch_importance(model) as seen:
        model(torch.randint(30, (2, 4)))
        model(torch.randint(30, (2, 3)))
    assert {number: [tuple(call.shape) for call in calls] for number, calls in seen.items()} == {
        1: [(2, 4, 3), (2, 3, 3)], 2: [(2, 4, 3), (2, 3, 3)],
    }  # fmt: skip
    model(torch.randint(30, (2, 4)))
    assert len(seen[1]) == 2


def test_a_model_without_memory_is_refused() -> None:
    static = TextSSMN(TextSSMNConfig(vocab_size=9, hidden_dim=8, num_layers=1, num_heads=2, layer_types=("static",)))
    with pytest.raises(ConfigError, match="the model's layers are static: none has a synaptic memory"):
        memories(static)
