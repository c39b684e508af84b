"""The Standard model: continuous vectors in, continuous vectors out."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssmn.config import Plasticity, SSMNConfig, StackConfig
from ssmn.errors import DtypeError, RangeError, ShapeError, StateError
from ssmn.layers.checks import check_dtype
from ssmn.layers.front import LIMIT, SETTLED, RunningFront
from ssmn.layers.heads import Prediction, points_of, spread_out
from ssmn.layers.memory import unit
from ssmn.layers.readout import PlasticReadout
from ssmn.models.stack import Stack
from ssmn.ops.common import shape_text
from ssmn.ops.segments import spread
from ssmn.state import FrontState, ReadoutState, State, StreamState


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
    per_step: ClassVar[tuple[str, ...]] = (*Stack.per_step, "target", "future")
    config: SSMNConfig

    def __init__(self, config: SSMNConfig) -> None:
        super().__init__(config)
        marks = config.input_dim if config.missing == "mask" else 0
        width = config.input_dim + marks + config.static_dim + config.future_dim
        self.input = nn.Linear(width, config.hidden_dim)
        self.output = nn.Linear(config.hidden_dim, config.output_dim * config.output_parts)
        rate = config.norm_rate if config.normalise == "running" else None
        has_front = rate is not None or config.missing == "mask"
        self.front = RunningFront(config.input_dim, rate, config.missing == "mask") if has_front else None
        features = {"hidden": config.hidden_dim, "inputs": width, "both": config.hidden_dim + width}
        self.readout = (
            None
            if config.readout == "none"
            else PlasticReadout(
                features[config.readout_features], config.output_dim, config.readout,
                config.readout_eta, config.readout_forget, config.readout_ridge,
            )
        )  # fmt: skip
        if self.readout is not None:  # what an untrained output says would only be noise for the read-out to undo
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def _init_front(self, batch_size: int) -> State | None:
        weight = self.input.weight
        return None if self.front is None else self.front.init_state(batch_size, weight.dtype, weight.device)

    def _init_head(self, batch_size: int) -> State | None:
        weight = self.output.weight
        return None if self.readout is None else self.readout.init_state(batch_size, weight.dtype, weight.device)

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
        target: Tensor | None = None,
        future: Tensor | None = None,
        static: Tensor | None = None,
    ) -> tuple[Tensor, StreamState]:
        """Reads the next T steps of B streams.

        Args:
            x: [B, T, input_dim], finite where open; with `missing="mask"` NaN is a missing value, and a row of nothing
                but NaN is absent.
            state: The streams so far; None = fresh. Never written into.
            mask: [B, T] bool, True = open. A closed step changes nothing and outputs 0.
            reset: [B, T] bool, True = the whole state is fresh before this step.
            cu_seqlens: [N + 1] boundaries of segments packed into one row (B = 1); the state then has N rows.
            elapsed: [B, T], time since the step before (1 by default).
            plasticity: How strongly to learn and forget in this call; None = as trained.
            target: [B, T, output_dim], for the plastic read-out: at each step the truth of what was predicted at the
                open step before; NaN = unknown; None = none is known.
            future: [B, T, future_dim], what is known of the step that is predicted; needed if the model has it.
            static: [B, static_dim] (N rows when packed), what holds for the whole stream; needed if the model has it.

        Returns:
            (y, state); y is in the units of x: [B, T, output_dim], with the Gaussian head [B, T, output_dim, 2] (mean
            and standard deviation), with quantiles [B, T, output_dim, Q].

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        prediction, state = self.predict(
            x, state, mask=mask, reset=reset, cu_seqlens=cu_seqlens, elapsed=elapsed, plasticity=plasticity,
            target=target, future=future, static=static,
        )  # fmt: skip
        return prediction.in_units(), state

    def predict(
        self,
        x: Tensor,
        state: StreamState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
        target: Tensor | None = None,
        future: Tensor | None = None,
        static: Tensor | None = None,
    ) -> tuple[Prediction, StreamState]:
        """As `forward`, with the output in normalised units and what maps it back: what losses are made of.

        Example:
            >>> import torch, ssmn
            >>> config = ssmn.SSMNConfig.preset("tiny", input_dim=3, output_dim=2, normalise="running")
            >>> prediction, state = ssmn.SSMN(config).predict(1000 + torch.randn(1, 10, 3))
            >>> prediction.values.shape, bool(prediction.centre[0, -1, 0] > 990)
            (torch.Size([1, 10, 2]), True)
        """
        config = self.config
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError(f"SSMN: x is {came}; wanted a floating tensor [B, T, {config.input_dim}].")
        if x.dim() != 3 or x.shape[-1] != config.input_dim:
            raise ShapeError(f"SSMN: x has shape {shape_text(x)}; wanted [B, T, input_dim={config.input_dim}].")
        check_dtype("SSMN", "x", x, self.input.weight)
        state = self._check_steps(x, state, mask, reset, cu_seqlens, elapsed, plasticity)
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), x, 0.0)
        self._check_finite(x)
        beside = self._beside(x, mask, cu_seqlens, state.batch_size, future, static)
        target = self._check_target(x, target)
        front, statistics = None, None
        if self.front is not None:
            if not isinstance(state.front, FrontState):
                raise StateError("SSMN: the state has no part for the front; use model.init_state.")
            fronted, front = self.front(
                x, state.front, mask=mask, reset=reset, cu_seqlens=cu_seqlens, elapsed=elapsed
            )  # fmt: skip
            x, mask, elapsed, statistics = fronted.x, fronted.mask, fronted.elapsed, fronted.statistics
            if fronted.absent is not None:
                beside.insert(0, fronted.absent.to(x.dtype))
        read = torch.cat([x, *beside], -1) if beside else x
        hidden, state = self._run(self.input(read), state, front, mask, reset, cu_seqlens, elapsed, plasticity)
        prediction = Prediction(config, spread_out(self.output(hidden), config))
        columns = list(config.target_columns)
        if statistics is not None and columns:
            prediction = dataclasses.replace(
                prediction,
                centre=statistics.mean[..., columns],
                scale=statistics.scale[..., columns],
                settled=statistics.count[..., columns] >= SETTLED,
            )
        if self.readout is not None:
            if not isinstance(state.head, ReadoutState):
                raise StateError("SSMN: the state has no part for the plastic read-out; use model.init_state.")
            if target is not None and statistics is not None and columns:
                before, scale = statistics.mean_before[..., columns], statistics.scale_before[..., columns]
                target = ((target - before) / scale).clamp(-LIMIT, LIMIT).to(target.dtype)
            own = points_of(prediction.values, config)
            corrected, head = self.readout(
                own, self._features(hidden, read), state.head,
                target=target, mask=mask, reset=reset, cu_seqlens=cu_seqlens, elapsed=elapsed, plasticity=plasticity,
            )  # fmt: skip
            prediction = prediction.shifted((corrected - own).detach())
            state = dataclasses.replace(state, head=head)
        return (prediction if mask is None else _closed(prediction, mask)), state

    def _features(self, hidden: Tensor, read: Tensor) -> Tensor:
        """What the read-out sees: the hidden vector at unit length, the inputs as they are, at 1/√their number."""
        inputs = read / math.sqrt(read.shape[-1])
        if self.config.readout_features == "inputs":
            return inputs
        return unit(hidden) if self.config.readout_features == "hidden" else torch.cat([unit(hidden), inputs], -1)

    def _check_finite(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        masks_missing = self.config.missing == "mask"
        wrong = x.isinf() if masks_missing else ~x.isfinite()
        if not bool(wrong.any()):
            return
        row, step = wrong.any(-1).nonzero()[0].tolist()
        way_out = "drop the step with mask=, or fill the value in"
        if masks_missing:
            raise RangeError(f"SSMN: x is infinite at row {row}, step {step}; a missing value is NaN; or {way_out}.")
        raise RangeError(
            f"SSMN: x is not finite at row {row}, step {step}; {way_out}; or make the model with missing='mask'."
        )

    def _beside(
        self,
        x: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        streams: int,
        future: Tensor | None,
        static: Tensor | None,
    ) -> list[Tensor]:
        """What is read beside x: static and future inputs [B, T, ..], checked."""
        config, read = self.config, []
        shapes = {"static": (streams, config.static_dim), "future": (*x.shape[:2], config.future_dim)}
        for name, value in (("static", static), ("future", future)):
            shape = shapes[name]
            if value is None and not shape[-1]:
                continue
            if value is not None and not shape[-1]:
                raise RangeError(f"SSMN: {name} is given, but the model has none; make it with {name}_dim.")
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                came = shape_text(value) if isinstance(value, Tensor) else type(value).__name__
                raise ShapeError(f"SSMN: {name} is {came}; wanted a tensor {list(shape)} ({name}_dim={shape[-1]}).")
            check_dtype("SSMN", name, value, self.input.weight)
            if name == "static":
                value = spread(value, x.shape[0], x.shape[1], cu_seqlens).expand(*x.shape[:2], -1)
            elif mask is not None:
                value = torch.where(mask.unsqueeze(-1), value, 0.0)
            if not torch.compiler.is_compiling() and not bool(value.isfinite().all()):
                raise RangeError(f"SSMN: {name} is not finite; wanted finite numbers: fill them in.")
            read.append(value)
        return read

    def _check_target(self, x: Tensor, target: Tensor | None) -> Tensor | None:
        if target is None:
            return None
        shape = [*x.shape[:2], self.config.output_dim]
        if self.readout is None:
            raise RangeError("SSMN: target is given, but nothing learns from it; make the model with readout=.")
        if not isinstance(target, Tensor) or not target.is_floating_point() or list(target.shape) != shape:
            came = f"{target.dtype} {shape_text(target)}" if isinstance(target, Tensor) else type(target).__name__
            raise ShapeError(f"SSMN: target is {came}; wanted a floating tensor [B, T, output_dim] = {shape}.")
        if not torch.compiler.is_compiling() and bool(target.isinf().any()):
            raise RangeError("SSMN: target is infinite; wanted finite numbers, or NaN for what is unknown.")
        return target


def _closed(prediction: Prediction, mask: Tensor) -> Prediction:
    """The prediction with 0 at closed steps, mapped back or not."""

    def opened(value: Tensor | None) -> Tensor | None:
        return None if value is None else torch.where(mask.reshape(*mask.shape, *[1] * (value.dim() - 2)), value, 0)

    values, centre = opened(prediction.values), opened(prediction.centre)
    settled = prediction.settled if prediction.settled is None else prediction.settled & mask.unsqueeze(-1)
    assert values is not None
    return dataclasses.replace(prediction, values=values, centre=centre, settled=settled)
