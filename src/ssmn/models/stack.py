"""The stack of static and plastic blocks, and what both models share: state, steps, files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ssmn.config import Plasticity, StackConfig
from ssmn.errors import ConfigError, DtypeError, FileError, RangeError, StateError
from ssmn.files import CONFIG_FILE, WEIGHTS_FILE, atomic_write, load_weights, read_config, save_model_file
from ssmn.layers.attention import SlidingWindowAttention
from ssmn.layers.blocks import Block, build_block
from ssmn.layers.checks import check_learning, check_streams
from ssmn.layers.memory import SynapticMemory
from ssmn.ops.common import shape_text
from ssmn.ops.segments import count_open
from ssmn.state import State, StreamState, from_numpy, to_numpy


class Stack(nn.Module):
    """Front, blocks, head: everything a model needs except what goes in and what comes out."""

    config_class: ClassVar[type[StackConfig]]
    per_step: ClassVar[tuple[str, ...]] = ("mask", "reset", "elapsed")
    """Options of `forward` that have a time axis, which `step` takes without it."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__}: config is {type(config).__name__}; wanted {self.config_class.__name__}."
            )
        assert config.layer_types is not None
        self.config = config
        blocks = [build_block(kind, config) for kind in config.layer_types]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.RMSNorm(config.hidden_dim, eps=config.norm_eps)
        for block in blocks:
            self._scale_residual(block)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    def _scale_residual(self, block: Block) -> None:
        """Output projections start at 0.5/√(fan-in · L), so that the residual stream keeps its size."""
        outputs, mixer = [block.ffn.down], block.mixer
        associative = self.config.initialisation == "associative"
        if isinstance(mixer, SlidingWindowAttention) or (isinstance(mixer, SynapticMemory) and not associative):
            outputs.append(mixer.output)
        for layer in outputs:
            nn.init.normal_(layer.weight, std=0.5 / math.sqrt(layer.in_features * self.config.num_layers))

    def init_state(self, batch_size: int) -> StreamState:
        """The fresh state of `batch_size` streams: all zeros.

        Raises:
            RangeError: `batch_size` is no whole number of at least 1.
        """
        if not isinstance(batch_size, (int, torch.SymInt)) or batch_size < 1:
            raise RangeError(f"init_state: batch_size={batch_size!r}; wanted a whole number of at least 1.")
        layers = tuple(block.init_state(batch_size) for block in self.blocks)
        position = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return StreamState(self._init_front(batch_size), layers, self._init_head(batch_size), position)

    def num_parameters(self) -> int:
        """Number of weights; shared weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def freeze_static(self) -> Self:
        """Freezes the cortex: only the plastic blocks' weights stay trainable. Returns the model."""
        self.requires_grad_(False)
        for block in self.blocks:
            if block.plastic:
                block.mixer.requires_grad_(True)
                block.mixer_norm.requires_grad_(True)
        return self

    def with_chat_rounds(self, rounds: int) -> Self:
        """A copy with fewer rounds of internal chat: the first ones, as `Plasticity(chat_rounds=...)` uses them.

        For where there is no such setting: the engine, the Hugging Face adapter, files. States of the two
        models fit each other, but for the fingerprint in a file.

        Args:
            rounds: 0 to the model's own.

        Raises:
            ConfigError: The model has fewer.
        """
        most = self.config.chat_rounds
        if not 0 <= rounds <= most:
            raise ConfigError(f"with_chat_rounds: rounds={rounds!r}; wanted 0 to the model's {most}.")
        model = type(self)(dataclasses.replace(self.config, chat_rounds=rounds))
        wanted, own = model.state_dict(), self.state_dict()
        model.to(self.norm.weight).load_state_dict({name: own[name][: len(wanted[name])] for name in wanted})
        return model.train(self.training)

    def step(self, x: Tensor, state: StreamState | None = None, **options: Any) -> tuple[Tensor, StreamState]:
        """One step of every stream: the forward pass at T = 1.

        Args:
            x: [B, input_dim], or token numbers [B].
            state: The stream so far; None = fresh.
            options: `mask`, `reset`, `elapsed` as [B], and `plasticity`, as in `forward`.

        Returns:
            (y [B, output], state).
        """
        per_step = {name: options[name] for name in self.per_step if options.get(name) is not None}
        for name, value in {"x": x, **per_step}.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                came = "a tensor without axes" if isinstance(value, Tensor) else type(value).__name__
                raise DtypeError(f"{type(self).__name__}.step: {name} is {came}; wanted a tensor with axis B first.")
        options |= {name: value.unsqueeze(1) for name, value in per_step.items()}
        y, after = self(x.unsqueeze(1), state, **options)
        return y.squeeze(1), after

    def _init_front(self, batch_size: int) -> State | None:
        return None

    def _init_head(self, batch_size: int) -> State | None:
        return None

    def _check_steps(
        self,
        x: Tensor,
        state: StreamState | None,
        mask: Tensor | None,
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
        elapsed: Tensor | None,
        plasticity: Plasticity | None,
    ) -> StreamState:
        """Checks everything but the input itself; returns the state to start from."""
        owner = type(self).__name__
        streams = check_streams(owner, x, mask, reset, cu_seqlens)
        check_learning(owner, x, elapsed, plasticity)
        if state is None:
            return self.init_state(streams)
        if not isinstance(state, StreamState):
            came = type(state).__name__
            raise StateError(f"{owner}: state is {came}; wanted a StreamState, or None for a fresh one.")
        if state.position.shape[0] != streams:
            raise StateError(
                f"{owner}: the state holds {state.position.shape[0]} streams but the input {streams}; "
                "use state.select, state.merge or model.init_state."
            )
        if len(state.layers) != len(self.blocks):
            raise StateError(
                f"{owner}: the state has {len(state.layers)} layers, the model {len(self.blocks)}; "
                "use the model that made the state, or model.init_state."
            )
        return state

    def _run(
        self,
        x: Tensor,
        state: StreamState,
        front: State | None,
        mask: Tensor | None,
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
        elapsed: Tensor | None,
        plasticity: Plasticity | None,
    ) -> tuple[Tensor, StreamState]:
        layers = []
        for block, layer in zip(self.blocks, state.layers, strict=True):
            x, layer = block(
                x, layer, mask=mask, reset=reset, cu_seqlens=cu_seqlens, elapsed=elapsed, plasticity=plasticity
            )
            layers.append(layer)
        position = count_open(state.position, x.shape[0], x.shape[1], mask, reset, cu_seqlens)
        return self.norm(x), StreamState(front, tuple(layers), state.head, position)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` (with checksum, atomically) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.to_dict()
        weights = {name: to_numpy(tensor) for name, tensor in self.state_dict().items()}
        save_model_file(folder / WEIGHTS_FILE, config, weights)
        atomic_write(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """Reads what `save_pretrained` wrote, in the dtype it was saved in; nothing in the files is executed.

        Args:
            folder: The model's.
            changes: Settings to change that have no weights, such as `output_memory=True`.

        Raises:
            FileError: A file is missing, damaged, or of another kind of model.
            ConfigError: The configuration is not one of this class.
        """
        values, path = read_config(folder), Path(folder) / WEIGHTS_FILE
        config = cls.config_class.from_dict({**values, **changes})
        arrays = load_weights(folder, values)
        model = cls(config)
        tensors = {name: from_numpy(array) for name, array in arrays.items()}
        wanted = model.state_dict()
        for name in sorted(wanted.keys() | tensors.keys()):
            came = shape_text(tensors[name]) if name in tensors else "missing"
            want = shape_text(wanted[name]) if name in wanted else "no such tensor"
            if came != want:
                raise FileError(f"{path}: {name} is {came}; {CONFIG_FILE} wants {want}.")
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
            came = ", ".join(sorted(map(str, dtypes)))
            raise FileError(f"{path}: holds weights of {came}; wanted one floating dtype.")
        model.to(dtypes.pop()).load_state_dict(tensors)
        return model
