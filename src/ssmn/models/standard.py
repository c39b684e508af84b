"""The Standard model: continuous vectors in, continuous vectors out."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ssmn.config import Plasticity, SSMNConfig, StackConfig
from ssmn.errors import DtypeError, RangeError, ShapeError
from ssmn.layers.checks import check_dtype
from ssmn.models.stack import Stack
from ssmn.ops.common import shape_text
from ssmn.state import StreamState


class SSMN(Stack):
    """A sparse-stream memory network over vectors: sensors, series, observations.

    Args:
        config: An `SSMNConfig`.

    Example:
        >>> import torch, ssmn
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=3, output_dim=2))
        >>> y, state = model(torch.randn(1, 10, 3))
        >>> y_t, state = model.step(torch.randn(1, 3), state)
        >>> y.shape, y_t.shape, state.position
        (torch.Size([1, 10, 2]), torch.Size([1, 2]), tensor([11]))
    """

    config_class: ClassVar[type[StackConfig]] = SSMNConfig
    config: SSMNConfig

    def __init__(self, config: SSMNConfig) -> None:
        super().__init__(config)
        self.input = nn.Linear(config.input_dim, config.hidden_dim)
        self.output = nn.Linear(config.hidden_dim, config.output_dim)

    def forward(
        self,
        x: Tensor,
        state: StreamState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, StreamState]:
        """Reads the next T steps of B streams.

        Args:
            x: [B, T, input_dim], finite where open.
            state: The streams so far; None = fresh. Never written into.
            mask: [B, T] bool, True = open. A closed step changes nothing and outputs 0.
            reset: [B, T] bool, True = the whole state is fresh before this step.
            cu_seqlens: [N + 1] boundaries of segments packed into one row (B = 1); the state then has N rows.
            elapsed: [B, T], time since the step before (1 by default).
            plasticity: How strongly to learn and forget in this call; None = as trained.

        Returns:
            (y [B, T, output_dim], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError(f"SSMN: x is {came}; wanted a floating tensor [B, T, {self.config.input_dim}].")
        if x.dim() != 3 or x.shape[-1] != self.config.input_dim:
            raise ShapeError(f"SSMN: x has shape {shape_text(x)}; wanted [B, T, input_dim={self.config.input_dim}].")
        check_dtype("SSMN", "x", x, self.input.weight)
        state = self._check_steps(x, state, mask, reset, cu_seqlens, elapsed, plasticity)
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), x, 0.0)
        if not torch.compiler.is_compiling() and not bool(x.isfinite().all()):
            row, step = (~x.isfinite()).any(-1).nonzero()[0].tolist()
            raise RangeError(
                f"SSMN: x is not finite at row {row}, step {step}; drop the step with mask=, or fill the value in."
            )
        hidden, state = self._run(self.input(x), state, None, mask, reset, cu_seqlens, elapsed, plasticity)
        y = self.output(hidden)
        return (y if mask is None else torch.where(mask.unsqueeze(-1), y, 0.0)), state
