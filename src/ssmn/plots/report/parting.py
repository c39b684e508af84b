"""How far the memories of two streams drift apart that were one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssmn.config import Plasticity
from ssmn.errors import RangeError
from ssmn.models.text import TextSSMN
from ssmn.state import PlasticState, StreamState


@dataclass(frozen=True, eq=False)
class Parting:
    """Two forks of one stream that read different texts; N places."""

    fork: int
    """Position at which they parted."""
    positions: np.ndarray
    """[N], from the fork on."""
    distances: dict[str, np.ndarray]
    """By the name of the head, [N]: ‖S − S'‖ / (‖S‖ + ‖S'‖), 0 = equal; 0 if both are empty."""


@torch.no_grad()
def part(
    model: TextSSMN,
    left: np.ndarray,
    right: np.ndarray,
    *,
    state: StreamState | None = None,
    places: int = 96,
    plasticity: Plasticity | None = None,
) -> Parting:
    """Lets two forks of a stream read different texts, as far as the shorter one goes.

    Args:
        model: A text model.
        left: Token numbers [T] of one text.
        right: Those of the other.
        state: Where the stream stands; None = fresh.
        places: Places to compare at, about evenly spaced, the fork and the end among them.
        plasticity: How strongly to learn and forget.

    Raises:
        RangeError: A text is empty.

    Example:
        >>> import ssmn, numpy as np
        >>> from ssmn.plots.report import part
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> found = part(ssmn.TextSSMN(config), np.array([1, 2, 3, 4]), np.array([1, 2, 5, 4, 6]), places=5)
        >>> found.positions.tolist(), (found.distances["layer 1, head 0"] > 1e-4).tolist()
        ([0, 1, 2, 3, 4], [False, False, False, True, True])
    """
    length = min(len(left), len(right))
    if not length:
        raise RangeError(f"part: the texts have {len(left)} and {len(right)} tokens; wanted at least one in each.")
    rows = torch.from_numpy(np.stack([left[:length], right[:length]]).astype(np.int64))
    start = model.init_state(1) if state is None else state
    both, fork = StreamState.merge(start.fork(2)), int(start.position[0])
    cuts = np.unique(np.linspace(0, length, places).round().astype(int))
    found: dict[str, list[float]] = {}
    for before, stop in zip([0, *cuts], cuts, strict=False):
        if stop > before:
            _, both = model.hidden(rows[:, before:stop], both, plasticity=plasticity)
        for number, layer in enumerate(both.layers):
            if isinstance(layer, PlasticState):
                for head, distance in enumerate(_distance(*layer.memory).tolist()):
                    found.setdefault(f"layer {number}, head {head}", []).append(distance)
    return Parting(fork, fork + cuts, {name: np.array(row) for name, row in found.items()})


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """[H, K, V] twice to [H]."""
    sizes = left.norm(dim=(-2, -1)) + right.norm(dim=(-2, -1))
    return torch.where(sizes > 0, (left - right).norm(dim=(-2, -1)) / sizes.clamp(min=1e-30), 0.0)
