"""Sparse-Stream Memory Network: a window for the near past, a plastic memory for the far one.

The public names are loaded on first use, so `import ssmn` itself imports neither torch nor an extra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssmn import errors, layers, ops, relatives, training
    from ssmn.config import LONG_TERM, SHORT_TERM, Plasticity, SSMNConfig, TextSSMNConfig
    from ssmn.engine import Engine
    from ssmn.errors import SSMNError
    from ssmn.generation import generate
    from ssmn.models import SSMN, TextSSMN, load_model
    from ssmn.state import StreamState
    from ssmn.stream import Stream

__version__ = "0.1.0"

_HOMES = {
    "Engine": "ssmn.engine",
    "LONG_TERM": "ssmn.config",
    "Plasticity": "ssmn.config",
    "SHORT_TERM": "ssmn.config",
    "SSMN": "ssmn.models",
    "SSMNConfig": "ssmn.config",
    "SSMNError": "ssmn.errors",
    "Stream": "ssmn.stream",
    "StreamState": "ssmn.state",
    "TextSSMN": "ssmn.models",
    "TextSSMNConfig": "ssmn.config",
    "errors": "ssmn.errors",
    "generate": "ssmn.generation",
    "layers": "ssmn.layers",
    "load_model": "ssmn.models",
    "ops": "ssmn.ops",
    "relatives": "ssmn.relatives",
    "training": "ssmn.training",
}
"""Where every public name lives; a module is its own home."""

__all__ = [
    "LONG_TERM",
    "SHORT_TERM",
    "SSMN",
    "Engine",
    "Plasticity",
    "SSMNConfig",
    "SSMNError",
    "Stream",
    "StreamState",
    "TextSSMN",
    "TextSSMNConfig",
    "errors",
    "generate",
    "layers",
    "load_model",
    "ops",
    "relatives",
    "training",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmn' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = module if module.__name__ == f"ssmn.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
