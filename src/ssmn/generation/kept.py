"""The engines that `generate` runs models on: packed once, kept as long as the model, packed again when it changes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn import native
from ssmn.engine import Engine
from ssmn.errors import BackendError
from ssmn.models import TextSSMN

_BLOCK = 64
"""Words that are summed up together to tell whether a weight has changed."""


@dataclass(frozen=True)
class _Kept:
    engine: Engine
    marks: dict[str, bytes]
    """What the weights were when they were packed."""


_KEPT: WeakKeyDictionary[TextSSMN, _Kept] = WeakKeyDictionary()
_LOCKS: WeakKeyDictionary[Engine, threading.RLock] = WeakKeyDictionary()
_GUARD = threading.Lock()


def engine_of(lm: TextSSMN) -> Engine:
    """The engine of a model, with the weights that the model has now.

    Raises:
        BackendError: The engine cannot run it; the message says why.
    """
    reason = why_not_engine(lm)
    if reason is not None:
        raise BackendError(f"generate: the engine cannot run this model: {reason}; use backend='torch'.")
    with _GUARD:
        marks = {name: _mark(tensor) for name, tensor in lm.state_dict().items()}
        kept = _KEPT.get(lm)
        if kept is None or kept.marks != marks:
            kept = _KEPT[lm] = _Kept(Engine(lm), marks)
        return kept.engine


def lock_of(engine: Engine) -> threading.RLock:
    """The lock with which generations on one engine take turns."""
    with _GUARD:
        return _LOCKS.setdefault(engine, threading.RLock())


def why_not_engine(lm: Any) -> str | None:
    """Why the engine would not do what the model itself does; None if it would."""
    if type(lm) is not TextSSMN:
        return f"it is {type(lm).__name__}, not a plain TextSSMN"
    assert lm.config.layer_types is not None
    unknown = set(lm.config.layer_types) - {"static", "plastic"}
    if unknown:
        return f"it has layers of the kind {min(unknown)!r}"
    tensors: Mapping[str, Tensor] = lm.state_dict()
    other = next(((name, tensor) for name, tensor in tensors.items() if tensor.dtype != torch.float32), None)
    if other is not None:
        return f"{other[0]} is {other[1].dtype}, and it computes in float32"
    if lm.device.type != "cpu":
        return f"the model is on {lm.device}"
    for name, module in lm.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has a forward hook"
    status = native.status()
    return None if status.available else status.reason


def _mark(tensor: Tensor) -> bytes:
    """A digest that two contents share by malice only: every word counts in the sum of its block and of its lane.

    Versions of tensors would be quicker, but writing through `.data` or numpy does not raise them. A cryptographic
    digest is a hundred times slower than the sums, which run at the speed of memory.
    """
    raw: NDArray[np.uint8] = tensor.detach().contiguous().numpy().reshape(-1).view(np.uint8)
    even = len(raw) // (8 * _BLOCK) * (8 * _BLOCK)
    blocks = raw[:even].view(np.uint64).reshape(-1, _BLOCK)
    return blocks.sum(1).tobytes() + blocks.sum(0).tobytes() + raw[even:].tobytes()
