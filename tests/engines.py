"""Small models for the tests of the engine, one per option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssmn.config import SSMNConfig, StackConfig, TextSSMNConfig
from ssmn.engine import Engine
from ssmn.models import SSMN, TextSSMN
from ssmn.models.stack import Stack

BASE: dict[str, Any] = {
    "hidden_dim": 36, "num_layers": 4, "num_heads": 6, "window_size": 9, "ffn_dim": 40,
    "layer_types": ("static", "plastic", "static", "plastic"),
}  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {
    "delta": {},
    "hebbian-grouped": {"update_rule": "hebbian", "num_kv_heads": 2, "memory_heads": 3},
    "erase-sinks": {"update_rule": "erase", "attention_sinks": True, "num_kv_heads": 1, "memory_heads": 2},
    "same-chat": {"pairing": "same", "chat_rounds": 2, "memory_heads": 2},
    "erase-chat": {"update_rule": "erase", "chat_rounds": 1},
    "threshold-window-of-1": {"write_threshold": 0.5, "window_size": 1, "rope_theta": None},
    "no-decay": {"decay_lambda": 0.0, "plasticity_eta": 0.9},
    "wide-window": {"window_size": 130, "hidden_dim": 32, "num_heads": 2},
    "all-plastic": {"layer_types": ("plastic", "plastic"), "num_layers": 2},
    "all-static": {"layer_types": ("static", "static"), "num_layers": 2},
}
TEXT_OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "no-encoder": {"semantic_encoder": False},
    "untied-encoder": {"tie_embeddings": False, "semantic_encoder": True, "num_kv_heads": 3},
    "encoder-chat": {"semantic_encoder": True, "chat_rounds": 1, "update_rule": "hebbian"},
    "output-memory": {"output_memory": True, "output_eta": 1.5},
    "output-memory-decay": {"output_memory": True, "output_decay": 0.03, "tie_embeddings": False},
}


def vector_config(**options: Any) -> SSMNConfig:
    return SSMNConfig(input_dim=3, output_dim=5, **{**BASE, **options})


def text_config(**options: Any) -> TextSSMNConfig:
    return TextSSMNConfig(vocab_size=37, **{**BASE, **options})


CONFIGS = {
    **{name: vector_config(**options) for name, options in OPTIONS.items()},
    **{f"text-{name}": text_config(**options) for name, options in TEXT_OPTIONS.items()},
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def model_of(config: StackConfig, seed: int = 0) -> Stack:
    """A model none of whose weights is where it was initialised: gates that are zero hide mistakes."""
    torch.manual_seed(seed)
    model = SSMN(config) if isinstance(config, SSMNConfig) else TextSSMN(config)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model.eval()


def inputs_of(config: StackConfig, *axes: int) -> np.ndarray:
    if isinstance(config, SSMNConfig):
        return np.random.default_rng(1).standard_normal((*axes, config.input_dim), np.float32)
    assert isinstance(config, TextSSMNConfig)
    return np.random.default_rng(1).integers(config.vocab_size, size=axes)


def outputs_of(model: Stack, xs: np.ndarray, **options: Any) -> tuple[np.ndarray, Any]:
    """The model's [T, streams, output] for xs [T, streams, ...], and its state."""
    with torch.no_grad():
        y, state = model(torch.from_numpy(xs).transpose(0, 1), **options)
    return y.transpose(0, 1).numpy(), state


def steps(engine: Engine, xs: np.ndarray) -> np.ndarray:
    return np.stack([engine.step(x).copy() for x in xs])


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
