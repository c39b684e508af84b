"""The training loop of the family's comparisons: the same for every model, whatever its task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLIP = 1.0
"""Largest norm of all gradients together."""


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    rate: float,
    steps: int,
    share: Callable[[int], float],
    on_step: Callable[[int, int, str], bool],
) -> list[float] | None:
    """AdamW (0.9, 0.98; decay 0.01) with clipped gradients.

    Args:
        model: Trained in place.
        loss_at: The loss on the batch of a step, 0 to `steps` − 1.
        rate: Learning rate.
        steps: How many.
        share: The part of the rate that a step takes.
        on_step: Called with (steps done, steps in all, a line of figures); True means: stop.

    Returns:
        The loss of every step, or None if it was stopped.
    """
    optimiser = torch.optim.AdamW(model.parameters(), rate, (0.9, 0.98), weight_decay=0.01)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * share(step)
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        losses.append(loss.item())
        if on_step(step + 1, steps, f"loss {losses[-1]:.3f}"):
            return None
    return losses
