"""A stack as a feature map: what estimators with a closed-form or a plastic read-out read from an SSMN.

The stack is a random or a given one; only what is read from it is fitted. Random recurrent features with a linear
read-out are echo-state networks (Jaeger, 2001), random convolutions with pooled responses and a ridge classifier are
ROCKET (Dempster et al., 2020); here the delayed inputs, the window and the plastic memory are the features' source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn.config import SSMNConfig
from ssmn.errors import ConfigError
from ssmn.models import SSMN

POOLS = ("mean", "deviation", "largest", "least", "share above 0")
"""What `pooled` keeps of each hidden unit's course, in this order; the shares above its levels follow."""
QUANTILES = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
"""Of a hidden unit's values: where its levels are."""

_STEPS_AT_ONCE = 65_536
_STEPS_FOR_LEVELS = 16_384


def random_stack(
    input_dim: int,
    *,
    hidden_dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    window_size: int = 16,
    seed: int = 0,
) -> SSMN:
    """A fresh stack whose output is its last hidden vector.

    Inputs of unit deviation reach every hidden unit with unit deviation and a bias drawn from [−1, 1], so that units
    differ in where they bend. torch's own random numbers are left as they were.

    Args:
        input_dim: Features per step.
        hidden_dim: D, and the number of outputs.
        num_layers: Blocks; one of two is plastic, the first.
        num_heads: Of the window attention.
        window_size: W in steps.
        seed: The same seed gives the same weights.

    Returns:
        A model [B, T, input_dim] to [B, T, D].
    """
    config = SSMNConfig(
        input_dim=input_dim, output_dim=hidden_dim, hidden_dim=hidden_dim, num_layers=num_layers, num_heads=num_heads,
        window_size=window_size, plastic_ratio=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = SSMN(config)
        model.input.weight.normal_(0.0, 1 / math.sqrt(input_dim))
        model.input.bias.uniform_(-1.0, 1.0)
    return _with_hidden_output(model)


def hidden_map(model: SSMN) -> SSMN:
    """A copy of a trained model whose output is its last hidden vector [B, T, D]; the model stays as it is.

    Its head and its plastic read-out are left out: what reads the hidden vector takes their place.

    Raises:
        ConfigError: `model` is no `SSMN`, or one that scales or masks its inputs itself, or wants further ones.
    """
    if not isinstance(model, SSMN):
        raise ConfigError(f"model is {type(model).__name__}; wanted an ssmn.SSMN, or None for a random one.")
    config = model.config
    for name, wanted in (("missing", "error"), ("normalise", "none"), ("static_dim", 0), ("future_dim", 0)):
        if getattr(config, name) != wanted:
            raise ConfigError(
                f"model has {name}={getattr(config, name)!r}; wanted {wanted!r}: inputs come here scaled and complete."
            )
    plain = dataclasses.replace(
        config, output_dim=config.hidden_dim, head="point", readout="none", targets=None
    )  # fmt: skip
    copy = SSMN(plain).to(model.input.weight.dtype)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("output.")}
    copy.load_state_dict(weights, strict=False)
    return _with_hidden_output(copy)


def _with_hidden_output(model: SSMN) -> SSMN:
    with torch.no_grad():
        model.output.weight.copy_(torch.eye(model.config.hidden_dim))
        model.output.bias.zero_()
    return model.eval()


def paces_for(length: int, lags: int) -> tuple[int, ...]:
    """Distances between the delayed values: 1, 2, 4, ... while the delays reach over half of the length at most."""
    if lags == 1:
        return (1,)
    most = max(1, (length // 2) // (lags - 1))
    return tuple(1 << power for power in range(most.bit_length()))


def delayed(x: Tensor, lags: int, pace: int) -> Tensor:
    """[B, T, C] to [B, T, lags · C]: each step with the values 1, 2, ... paces before it, 0 before the beginning."""
    shifted = [x]
    for lag in range(1, lags):
        past = min(lag * pace, x.shape[1])
        shifted.append(torch.nn.functional.pad(x[:, : x.shape[1] - past], (0, 0, past, 0)))
    return torch.cat(shifted, -1)


def pooled(hidden: Tensor, mask: Tensor, levels: Tensor | None = None) -> Tensor:
    """What is kept of a sequence.

    Args:
        hidden: [B, T, D].
        mask: [B, T] bool, True = a step of the sequence; every row has one at least.
        levels: [L, D], further values above which a unit's share of the steps is kept; None = none.

    Returns:
        [B, (5 + L) D]: for every unit the figures of `POOLS`, then the shares.
    """
    steps = mask.unsqueeze(-1)
    count = steps.sum(1)
    mean = (hidden * steps).sum(1) / count
    variance = ((hidden - mean.unsqueeze(1)).square() * steps).sum(1) / count
    outside = torch.finfo(hidden.dtype).max
    shares = [
        ((hidden > level) & steps).to(hidden.dtype).sum(1) / count
        for level in (hidden.new_zeros(()), *(() if levels is None else levels))
    ]
    return torch.cat([
        mean, (variance + 1e-8).sqrt(), hidden.masked_fill(~steps, -outside).amax(1),
        hidden.masked_fill(~steps, outside).amin(1), *shares,
    ], -1)  # fmt: skip


def _readings(model: SSMN, x: Tensor, mask: Tensor, lags: int, paces: Sequence[int]) -> Iterator[Tensor]:
    """Hidden vectors [B, T, D] of the stack that reads the sequences, at each pace."""
    opened = None if bool(mask.all()) else mask
    return (model(delayed(x, lags, pace), mask=opened)[0] for pace in paces)


def sequence_features(model: SSMN, x: Tensor, mask: Tensor, lags: int, paces: Sequence[int], levels: Tensor) -> Tensor:
    """Pooled hidden vectors of the stack that reads each sequence at every pace.

    Args:
        model: A hidden map of lags · C inputs.
        x: [B, T, C], 0 where closed.
        mask: [B, T] bool, as for `pooled`.
        lags: Values of each channel per step: the present one and lags − 1 earlier ones.
        paces: Distances between them.
        levels: [paces, L, D], of `levels_of`.

    Returns:
        [B, (5 + L) D · paces].
    """
    readings = _readings(model, x, mask, lags, paces)
    return torch.cat([pooled(hidden, mask, own) for hidden, own in zip(readings, levels, strict=True)], -1)


@torch.no_grad()
def levels_of(model: SSMN, x: Tensor, mask: Tensor, lags: int, paces: Sequence[int]) -> Tensor:
    """The `QUANTILES` of every hidden unit at every pace, over sequences spread evenly over those given.

    Where shares are counted above quantiles, every unit tells sequences apart, wherever its values lie (as the biases
    of MiniROCKET; Dempster et al., 2021).

    Args:
        model: As for `sequence_features`, and so are all others.
        x: See there.
        mask: See there.
        lags: See there.
        paces: See there.

    Returns:
        [paces, QUANTILES, D].
    """
    rows = torch.linspace(0, len(x) - 1, min(len(x), max(1, _STEPS_FOR_LEVELS // x.shape[1]))).round().long()
    x, mask = x[rows], mask[rows]
    found = []
    for hidden in _readings(model, x, mask, lags, paces):
        ordered = hidden[mask].sort(0).values
        found.append(ordered[(torch.tensor(QUANTILES) * (len(ordered) - 1)).long()])
    return torch.stack(found)


def step_features(model: SSMN, x: Tensor) -> Tensor:
    """Vectors [B, F] as sequences of one step: themselves beside what the stack makes of them, [B, F + D]."""
    return torch.cat([x, model(x.unsqueeze(1))[0].squeeze(1)], -1)


@torch.no_grad()
def in_pieces(compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """`compute(x, mask)` over pieces of the batch, so that memory stays small; [B, ...] float64."""
    rows = max(1, _STEPS_AT_ONCE // max(1, x.shape[1]))
    pieces = [compute(x[at : at + rows], mask[at : at + rows]) for at in range(0, len(x), rows)]
    return torch.cat(pieces).double().numpy()
