"""What the members of the family share: a mixer between two projections, called like every model here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssmn.config import Plasticity
from ssmn.errors import DtypeError, RangeError, ShapeError
from ssmn.layers.checks import check_dtype, check_setting
from ssmn.ops.common import shape_text
from ssmn.state import State


class Member(nn.Module):
    """y = W_out mixer(W_in x): one memory of the family by itself, `(y, state) = module(x, state)`.

    The mixer maps [B, T, hidden_dim] and its state to the same; it is what `layer_types` puts into the blocks of a
    model. It holds no state: what it remembers goes in and comes out.

    Args:
        mixer: The memory; with `init_state(batch_size)` and the options of `forward`.
        input_dim: Features per step that come in.
        hidden_dim: D, the width of the mixer.
        output_dim: Features per step that go out.
    """

    def __init__(self, mixer: nn.Module, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        for name, value in (("input_dim", input_dim), ("output_dim", output_dim)):
            check_setting(type(self).__name__, name, value, isinstance(value, int) and value >= 1, "at least 1")
        self.input_dim, self.hidden_dim, self.output_dim = input_dim, hidden_dim, output_dim
        self.input = nn.Linear(input_dim, hidden_dim)
        self.mixer: Any = mixer
        self.output = nn.Linear(hidden_dim, output_dim)

    def init_state(self, batch_size: int) -> Any:
        """The mixer's fresh state for `batch_size` streams: all zeros.

        Raises:
            RangeError: `batch_size` is no whole number of at least 1.
        """
        if not isinstance(batch_size, (int, torch.SymInt)) or batch_size < 1:
            raise RangeError(f"init_state: batch_size={batch_size!r}; wanted a whole number of at least 1.")
        return self.mixer.init_state(batch_size)

    def state_size(self) -> int:
        """Numbers that one stream's state holds; the same at every position."""
        return sum(tensor.numel() for tensor in self.init_state(1).named_tensors().values())

    def num_parameters(self) -> int:
        """Number of weights; shared weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, Any]:
        """Reads a piece of every stream.

        Args:
            x: [B, T, input_dim].
            state: What came out of the call before; None = fresh.
            mask: [B, T] bool, True = open; a closed step changes nothing and gives 0.
            reset: [B, T] bool, True = fresh before this step.
            cu_seqlens: [N + 1] boundaries of packed segments (B = 1; the state has N rows).
            elapsed: [B, T], time since the step before (≥ 0, 1 by default).
            plasticity: How strongly to learn and forget in this call, as far as the mixer has such settings.

        Returns:
            (y [B, T, output_dim], state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError(f"{owner}: x is {came}; wanted a floating tensor [B, T, input_dim].")
        if x.dim() != 3 or x.shape[-1] != self.input_dim:
            raise ShapeError(f"{owner}: x has shape {shape_text(x)}; wanted [B, T, {self.input_dim}].")
        check_dtype(owner, "x", x, self.input.weight)
        steps = {"mask": mask, "reset": reset, "cu_seqlens": cu_seqlens, "elapsed": elapsed}
        hidden, state = self.mixer(self.input(x), state, plasticity=plasticity, **steps)
        y = self.output(hidden)
        return y if mask is None else torch.where(mask.unsqueeze(-1), y, 0.0), state

    def step(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        plasticity: Plasticity | None = None,
        **options: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """One step of every stream: the forward pass at T = 1.

        Args:
            x: [B, input_dim].
            state: The stream so far; None = fresh.
            plasticity: As in `forward`.
            options: `mask`, `reset`, `elapsed` as [B], as in `forward`.

        Returns:
            (y [B, output_dim], state).
        """
        given = {name: value.unsqueeze(1) for name, value in options.items() if value is not None}
        y, state = self(x.unsqueeze(1), state, plasticity=plasticity, **given)
        return y.squeeze(1), state
