"""One training step, and everything that the next one depends on."""

from __future__ import annotations

import contextlib
import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ssmn import native
from ssmn.errors import TrainingError
from ssmn.layers.heads import Prediction
from ssmn.models import SSMN, TextSSMN
from ssmn.models.stack import Stack
from ssmn.ops import linear_cross_entropy
from ssmn.state import StreamState
from ssmn.training.evaluate import loss_of, outputs_of
from ssmn.training.muon import Muon
from ssmn.training.settings import OptimisationConfig
from ssmn.training.sparse import SparseTraining
from ssmn.training.tasks import Batch


class BfloatProducts(TorchFunctionMode):
    """Within it, products with weights are computed on bfloat16 copies; all else stays as it is.

    `torch.autocast` would also round the matrix products inside the memory's recurrence, and with
    them the state. What goes into several products after each other (queries, keys, values) is copied once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[Tensor, tuple[int, bool], Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.linear:
            return func(*args, **(kwargs or {}))
        x, *rest = args
        same = (x._version, torch.is_grad_enabled())
        if self.last is None or self.last[0] is not x or self.last[1] != same:
            self.last = (x, same, x.bfloat16())
        low = [item.bfloat16() if isinstance(item, Tensor) else item for item in rest]
        return func(self.last[2], *low, **(kwargs or {})).to(x.dtype)

    def __exit__(self, *raised: Any) -> None:
        self.last = None
        super().__exit__(*raised)


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16: in software its products are many times slower than in float32."""
    return "avx512-bf16" in native.status().runnable


_ADAM_KEYS, _MUON_KEYS = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
_LEAST_MUON = 8
"""Matrices with fewer rows or columns (gates, short convolutions) are left to AdamW."""


def _optimizers(
    named: dict[str, torch.nn.Parameter], settings: OptimisationConfig, dtype: torch.dtype | None
) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices alone, and Muon before it if it is wanted, its products in `dtype`."""
    turned: list[Tensor] = []
    if settings.optimizer == "muon":
        inner = [weight for name, weight in named.items() if name.startswith(("blocks.", "encoder."))]
        turned = [weight for weight in inner if weight.dim() == 2 and min(weight.shape) >= _LEAST_MUON]
    left = [weight for weight in named.values() if not any(weight is other for other in turned)]
    groups = [
        {"params": [weight for weight in left if weight.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in left if weight.dim() < 2], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)
    if not turned:
        return [adam]
    return [Muon(turned, lr=rate, weight_decay=settings.weight_decay, dtype=dtype), adam]


def _output_weight(model: Stack) -> Tensor | None:
    """What gives a text model's logits from its hidden vectors; None if that takes more than a product."""
    if not isinstance(model, TextSSMN) or model.output_memory is not None:
        return None
    if model.output is None:
        return model.embedding.weight
    return model.output.weight if type(model.output) is nn.Linear else None  # and not what took its place


class Trainer:
    """A model, its optimizer and the carried state: what one step changes and a checkpoint holds."""

    def __init__(self, model: Stack, settings: OptimisationConfig):
        self.model, self.settings = model, settings
        self.step = 0
        self.state: StreamState | None = None
        self.sparse = None if settings.write_rate is None else SparseTraining(model, settings)
        self.named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        is_low = settings.compute_dtype == "bfloat16" or (settings.compute_dtype == "auto" and _has_bfloat16())
        self.dtype = torch.bfloat16 if is_low else None
        self.products = BfloatProducts() if is_low else contextlib.nullcontext()
        self.optimizers = _optimizers(self.named, settings, self.dtype)

    def advance(self, batch: Batch) -> tuple[Tensor | Prediction | None, Tensor, float, float]:
        """One optimizer step; returns the output (None for plain text), the loss, the gradient's norm and the rate."""
        rate = self.settings.rate(self.step)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        self._check_data(batch)
        before = None if batch.fresh or self.state is None else self.state.detach()
        reset = None
        if before is not None and batch.fresh_rows is not None:
            reset = torch.zeros(batch.inputs.shape[:2], dtype=torch.bool)
            reset[:, 0] = batch.fresh_rows
        if self.sparse is not None:
            self.sparse.prepare(self.step)
        output, loss, state = self._read(batch, before, reset)
        self._check_finite("loss", loss.item(), batch)
        self.model.zero_grad(set_to_none=True)
        (loss if self.sparse is None else loss + self.sparse.penalty()).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.named.values(), self.settings.clip_norm))
        self._check_finite("gradient's norm", norm, batch)
        for optimizer in self.optimizers:
            optimizer.step()
        self.state = state.detach()
        self.step += 1
        return None if output is None else output.detach(), loss.detach(), norm, rate

    def _read(
        self, batch: Batch, before: StreamState | None, reset: Tensor | None
    ) -> tuple[Tensor | Prediction | None, Tensor, StreamState]:
        """(output, loss, state). Every token of plain text counts, and its logits are for the loss alone."""
        weight = _output_weight(self.model) if batch.mask is None else None
        if weight is None:
            with self.products:
                output, state = outputs_of(self.model, batch, before, reset=reset)
            return output, loss_of(output, batch), state
        with self.products:
            hidden, state = cast("TextSSMN", self.model).hidden(batch.inputs, before, reset=reset)
        return None, linear_cross_entropy(hidden.to(self.dtype), weight.to(self.dtype), batch.targets), state

    def _check_data(self, batch: Batch) -> None:
        if not batch.inputs.is_floating_point():
            return
        has_gaps = isinstance(self.model, SSMN) and self.model.config.missing == "mask"
        data = (batch.inputs, batch.targets)
        if not all(bool((~x.isinf() if has_gaps else x.isfinite()).all()) for x in data):
            raise TrainingError(
                f"train: the data of step {self.step + 1} is not finite (in {batch.source}); fill the gaps in, leave "
                f"the rows out, or let model.missing='mask' (for NaN). The last checkpoint is kept."
            )

    def _check_finite(self, what: str, value: float, batch: Batch) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"train: the {what} is {value} at step {self.step + 1} (data: {batch.source}). The last checkpoint is "
                f"kept: go on from it with --resume and a lower train.learning_rate."
            )

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on."""
        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for optimizer in self.optimizers:
            for name, weight in self.named.items():
                for key, value in optimizer.state.get(weight, {}).items():
                    tensors[f"optimizer.{key}.{name}"] = value
        if self.state is not None:
            tensors |= {f"stream.{name}": value for name, value in self.state.named_tensors().items()}
        if self.sparse is not None:
            tensors |= self.sparse.tensors()
        tensors["random"] = torch.get_rng_state()
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def load(self, arrays: dict[str, np.ndarray], step: int) -> None:
        """The reverse of `tensors`."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.model.load_state_dict(_under("model.", tensors))
        for optimizer in self.optimizers:
            mine = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
            keys = _ADAM_KEYS if isinstance(optimizer, torch.optim.AdamW) else _MUON_KEYS
            for name, weight in self.named.items():
                if id(weight) in mine:
                    optimizer.state[weight] = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
        if self.sparse is not None:
            self.sparse.load(tensors)
        stream = _under("stream.", tensors)
        if stream:
            batch_size = stream["position"].shape[0]
            self.state = self.model.init_state(batch_size).with_tensors(stream)
        torch.set_rng_state(tensors["random"])
        self.step = step


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
