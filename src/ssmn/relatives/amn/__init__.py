"""AMN and the linear recurrent unit in it."""

from __future__ import annotations

from torch import nn

from ssmn.config import StackConfig
from ssmn.layers.blocks import memory_settings
from ssmn.relatives.amn.associative import AMN, AMNState, AssociativeMixer
from ssmn.relatives.amn.lru import LRU, LinearRecurrentUnit, LRUState

__all__ = ["AMN", "LRU", "AMNState", "AssociativeMixer", "LRUState", "LinearRecurrentUnit", "build_amn", "build_lru"]


def build_lru(config: StackConfig) -> nn.Module:
    """The mixer of a block of kind `lru`."""
    return LinearRecurrentUnit(config.hidden_dim)


def build_amn(config: StackConfig) -> nn.Module:
    """The mixer of a block of kind `amn`; its manifold has the settings of the model's memories."""
    assert config.memory_heads is not None
    return AssociativeMixer(config.hidden_dim, memory_heads=config.memory_heads, **memory_settings(config))
