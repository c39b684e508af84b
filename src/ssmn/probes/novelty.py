"""How unexpected each step of a stream was, by what the model had said before it."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from ssmn.config import SSMNConfig, TextSSMNConfig
from ssmn.layers.heads import points_of
from ssmn.models.stack import Stack
from ssmn.streaming import surprise_bits


class Novelty:
    """The prediction error of one stream, step by step; keeps what the model said last.

    Args:
        model: The model that reads the stream.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import Novelty
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> model, tokens = ssmn.TextSSMN(config), torch.randint(16, (1, 5))
        >>> bits = Novelty(model).of(tokens, model(tokens)[0])
        >>> bits.shape, bits.isnan().tolist()
        (torch.Size([5]), [True, False, False, False, False])
    """

    def __init__(self, model: Stack) -> None:
        self.config = model.config
        self._said: Tensor | None = None

    @torch.no_grad()
    def of(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """How unexpected the next steps were.

        Args:
            x: What the model read, [1, T, ...].
            y: What it said, [1, T, ...].
            mask: [1, T] bool, True = open.

        Returns:
            [T] float64: bits, −log2 p of a token; or the root mean squared error over a row's predicted columns, in
            their units. NaN where nothing was said before or the step is closed. None if the model's outputs speak of
            no input.
        """
        is_text = isinstance(self.config, TextSSMNConfig)
        if not is_text and not (isinstance(self.config, SSMNConfig) and self.config.target_columns):
            return None
        said, came = (y[0] if is_text else points_of(y, self.config)[0]), x[0]  # type: ignore[arg-type]
        opened = torch.ones(len(came), dtype=torch.bool, device=came.device) if mask is None else mask[0]
        found = torch.full(opened.shape, torch.nan, dtype=torch.float64)
        said, came = said[opened], came[opened]
        if not len(said):
            return found
        first = torch.full_like(said[:1], torch.nan) if self._said is None else self._said
        before = torch.cat([first, said[:-1]])
        self._said = said[-1:].clone()  # a view would keep all of `said` alive
        if is_text:
            errors = surprise_bits(before, came.long())
        else:
            columns = list(self.config.target_columns)  # type: ignore[union-attr]
            errors = (before - came[:, columns]).square().mean(-1).sqrt()
        found[opened.cpu()] = errors.double().cpu()
        return found

    def clone(self) -> Self:
        """The same stream's, free to go its own way."""
        return copy.copy(self)
