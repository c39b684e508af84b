"""Losses of models of series: squared error, the normal distribution's likelihood, and quantile losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssmn.errors import RangeError, ShapeError
from ssmn.layers.heads import Prediction
from ssmn.ops.common import shape_text


def gaussian_nll(output: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a normal distribution, in nats: ½ ln 2π + ln s + (target − mean)² / 2s².

    Args:
        output: [.., 2], mean and standard deviation s > 0.
        target: [..].

    Returns:
        [..].

    Raises:
        ShapeError: The two do not fit.

    Example:
        >>> import torch
        >>> from ssmn.training.losses import gaussian_nll
        >>> round(float(gaussian_nll(torch.tensor([0.0, 1.0]), torch.tensor(2.0))), 4)
        2.9189
    """
    _check("gaussian_nll", output, target, 2)
    mean, deviation = output.unbind(-1)
    return 0.5 * math.log(2 * math.pi) + deviation.log() + 0.5 * ((target - mean) / deviation).square()


def pinball(output: Tensor, target: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Quantile loss (Koenker & Bassett, 1978): max(τ e, (τ − 1) e) with e = target − output.

    Args:
        output: [.., Q].
        target: [..].
        quantiles: Q shares τ in (0, 1).

    Returns:
        [.., Q].

    Raises:
        ShapeError, RangeError: The arguments do not fit.

    Example:
        >>> import torch
        >>> from ssmn.training.losses import pinball
        >>> pinball(torch.tensor([0.0, 2.0]), torch.tensor(1.0), (0.25, 0.75)).tolist()
        [0.25, 0.25]
    """
    shares = _shares("pinball", output, target, quantiles)
    error = target.unsqueeze(-1) - output
    return torch.maximum(shares * error, (shares - 1) * error)


def crps(output: Tensor, target: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Continuous ranked probability score out of quantiles: 2 Σ w pinball, w the share of (0, 1) nearest to each τ.

    It is twice the integral of the quantile loss (Gneiting & Raftery, 2007), exact in the limit of many quantiles, and
    the absolute error of the median if that is the only one.

    Args:
        output: [.., Q].
        target: [..].
        quantiles: Q rising shares τ in (0, 1).

    Returns:
        [..], in the units of the target.

    Raises:
        ShapeError, RangeError: The arguments do not fit.

    Example:
        >>> import torch
        >>> from ssmn.training.losses import crps
        >>> float(crps(torch.tensor([3.0]), torch.tensor(1.0), (0.5,)))
        2.0
    """
    loss = pinball(output, target, quantiles)
    inner = [(low + high) / 2 for low, high in itertools.pairwise(quantiles)]
    weights = torch.tensor([0.0, *inner, 1.0], dtype=loss.dtype, device=loss.device).diff()
    return 2 * (loss * weights).sum(-1)


def prediction_loss(prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The head's loss in normalised units, in float32: squared error, Gaussian likelihood, or mean quantile loss.

    Steps whose statistics rest on fewer than eight values, and unknown targets, do not count; targets count within
    ± 10 deviations.

    Args:
        prediction: Of a model, from `SSMN.predict`.
        target: [B, T, O], in the units of the input; NaN = unknown.
        mask: [B, T] bool, the positions that count; None = all.

    Returns:
        The mean over what counts, a scalar; 0 if nothing does.

    Example:
        >>> import torch, ssmn
        >>> from ssmn.training.losses import prediction_loss
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=2, output_dim=2, head="quantile"))
        >>> x = torch.randn(1, 20, 2)
        >>> prediction, _ = model.predict(x[:, :-1])
        >>> prediction_loss(prediction, x[:, 1:]).shape
        torch.Size([])
    """
    known = target.isfinite()
    known = known if mask is None else known & mask.unsqueeze(-1)
    known = known if prediction.settled is None else known & prediction.settled
    values, config = prediction.values.float(), prediction.config
    wanted = torch.where(known, prediction.normalised(target.float()), 0.0)
    if config.head == "point":
        loss = (values - wanted).square()
    elif config.head == "gaussian":
        loss = gaussian_nll(values, wanted)
    else:
        loss = pinball(values, wanted, config.quantiles).mean(-1)
    if bool(known.all()) and known.numel():
        return loss.mean()
    return torch.where(known, loss, 0.0).sum() / known.sum().clamp(min=1)


def _check(name: str, output: Tensor, target: Tensor, parts: int) -> None:
    if output.shape != (*target.shape, parts):
        raise ShapeError(
            f"{name}: output has shape {shape_text(output)}; wanted the target's {shape_text(target)} and {parts} more."
        )


def _shares(name: str, output: Tensor, target: Tensor, quantiles: Sequence[float]) -> Tensor:
    if not quantiles or not all(0 < share < 1 for share in quantiles):
        raise RangeError(f"{name}: quantiles={tuple(quantiles)!r}; wanted shares in (0, 1).")
    _check(name, output, target, len(quantiles))
    return torch.tensor(quantiles, dtype=output.dtype, device=output.device)
