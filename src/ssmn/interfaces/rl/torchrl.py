"""torchrl: an `SSMN` whose state travels in the TensorDict, as that of its `GRUModule` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from ssmn.errors import ConfigError, ShapeError
from ssmn.models import SSMN
from ssmn.state import StreamState


class SSMNModule(TensorDictModuleBase):
    """Reads `in_key`, writes `out_key`, and keeps the model's state in the TensorDict under `state_key`.

    One step at a time (collection): the state is read from `state_key`, reset in rows where `is_init` is true, and
    written to ("next", `state_key`). Within `torchrl.modules.set_recurrent_mode(True)` (training) the last axis of the
    batch is time: all steps are computed in parallel from the state of the first, `is_init` resets included; the states
    in between, which were collected, stay as they are.

    The environment needs `torchrl.envs.InitTracker()` for `is_init`, and `make_tensordict_primer()` for the state.

    Args:
        model: An `SSMN`.
        in_key: Where the input [*, input_dim] is.
        out_key: Where the output [*, output_dim] goes.
        state_key: Where the state is, a tensor for each part of it.
        default_recurrent_mode: Whether sequences are read where `set_recurrent_mode` says nothing.

    Raises:
        ConfigError: The model is no `SSMN`.

    Example:
        >>> import ssmn, torch
        >>> from tensordict import TensorDict
        >>> from ssmn.interfaces.rl import SSMNModule
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=3, output_dim=4))
        >>> module = SSMNModule(model, in_key="observation", out_key="features")
        >>> rows = TensorDict({"observation": torch.randn(5, 3), "is_init": torch.ones(5, 1, dtype=torch.bool)}, [5])
        >>> rows = module(rows)
        >>> rows["features"].shape, rows["next", "ssmn", "position"].tolist()
        (torch.Size([5, 4]), [1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        model: SSMN,
        *,
        in_key: str | tuple[str, ...] = "observation",
        out_key: str | tuple[str, ...] = "features",
        state_key: str = "ssmn",
        default_recurrent_mode: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, SSMN):
            raise ConfigError(f"SSMNModule: model is {type(model).__name__}; wanted an SSMN.")
        self.model = model
        self.state_key, self.default_recurrent_mode = state_key, default_recurrent_mode
        names = model.init_state(1).named_tensors()
        self._slots = {name: name.replace(".", "_") for name in names}
        states = [(state_key, slot) for slot in self._slots.values()]
        self.in_keys: list[Any] = [in_key, *states, "is_init"]
        self.out_keys: list[Any] = [out_key, *(("next", *state) for state in states)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that puts a fresh state into what an environment resets to."""
        specs = {
            (self.state_key, self._slots[name]): Unbounded(shape=tensor.shape[1:], dtype=tensor.dtype)
            for name, tensor in self.model.init_state(1).named_tensors().items()
        }
        return TensorDictPrimer(specs, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds the output, and one step at a time the next state, to the TensorDict.

        Raises:
            ShapeError: Sequences are to be read, and the TensorDict has no axis of time.
        """
        mode = recurrent_mode()
        is_sequence = self.default_recurrent_mode if mode is None else mode
        batch = tensordict.batch_size
        if is_sequence and not batch:
            raise ShapeError("SSMNModule: the TensorDict has no batch axis; wanted [.., T] in recurrent mode.")
        rows, time = (batch[:-1], batch[-1]) if is_sequence else (batch, 1)
        x = tensordict.get(self.in_keys[0])
        x = x.reshape(rows.numel(), time, x.shape[-1])
        init = tensordict.get("is_init", None)
        reset = None if init is None else init.reshape(rows.numel(), time)
        y, state = self.model(x, self._read(tensordict, rows, is_sequence), reset=reset)
        tensordict.set(self.out_keys[0], y.reshape((*batch, y.shape[-1])))
        if not is_sequence:
            for name, tensor in state.named_tensors().items():
                key = ("next", self.state_key, self._slots[name])
                tensordict.set(key, tensor.reshape((*batch, *tensor.shape[1:])))
        return tensordict

    def _read(self, tensordict: TensorDictBase, rows: Sequence[int], is_sequence: bool) -> StreamState | None:
        """The state before the first step; None if there is none, as before the first reset."""
        count = torch.Size(rows).numel()
        found: dict[str, Tensor] = {}
        for name, slot in self._slots.items():
            tensor = tensordict.get((self.state_key, slot), None)
            if tensor is None:
                return None
            if is_sequence:
                tensor = tensor.select(len(rows), 0)
            found[name] = tensor.reshape((count, *tensor.shape[len(rows) :]))
        return self.model.init_state(count).with_tensors(found)
