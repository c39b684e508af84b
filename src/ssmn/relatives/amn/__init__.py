"""AMN and the linear recurrent unit in it."""

from __future__ import annotations

from torch import nn

from ssmn.config import StackConfig
from ssmn.layers.blocks import register_mixer
from ssmn.relatives.amn.associative import AMN, AMNState, AssociativeMixer
from ssmn.relatives.amn.lru import LRU, LinearRecurrentUnit, LRUState

__all__ = ["AMN", "LRU", "AMNState", "AssociativeMixer", "LRUState", "LinearRecurrentUnit"]


def _lru(config: StackConfig) -> nn.Module:
    return LinearRecurrentUnit(config.hidden_dim)


def _amn(config: StackConfig) -> nn.Module:
    assert config.memory_heads is not None and isinstance(config.decay_lambda, tuple)
    return AssociativeMixer(
        config.hidden_dim,
        memory_heads=config.memory_heads,
        update_rule=config.update_rule,
        pairing=config.pairing,
        plasticity_eta=config.plasticity_eta,
        decay_lambda=config.decay_lambda,
        write_threshold=config.write_threshold,
        chat_rounds=config.chat_rounds,
        initialisation=config.initialisation,
    )


def register() -> None:
    """Puts the block kinds `lru` and `amn` into the table of blocks."""
    register_mixer("lru", _lru)
    register_mixer("amn", _amn)
