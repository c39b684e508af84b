"""Reinforcement learning under other libraries: `SSMNModule` for torchrl, `SSMNPolicy` for Stable-Baselines3-contrib.

Neither library is loaded before its name is used (both need `pip install "sparse-stream[rl]"`). A recipe without either
is `ssmn.training.ppo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ssmn.errors import MissingExtraError

if TYPE_CHECKING:
    from ssmn.interfaces.rl.sb3 import SSMNPolicy
    from ssmn.interfaces.rl.torchrl import SSMNModule

_HOMES = {"SSMNModule": "ssmn.interfaces.rl.torchrl", "SSMNPolicy": "ssmn.interfaces.rl.sb3"}

__all__ = ["SSMNModule", "SSMNPolicy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"ssmn.interfaces.rl.{name}: {error}; pip install 'sparse-stream[rl]'") from error
