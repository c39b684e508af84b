"""A minute model with the protocol of the real ones, so that states and streams are tested alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmn.state import EncoderState, PlasticState, StreamState, WindowState


@dataclass(frozen=True)
class FakeConfig:
    width: int = 6
    heads: int = 2
    window: int = 4
    decay: float = 0.9

    def to_dict(self) -> dict[str, object]:
        return {"kind": "fake", **dataclasses.asdict(self)}


class FakeModel(nn.Module):
    """Echoes its window's mean and a decaying sum of outer products."""

    def __init__(self, config: FakeConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config or FakeConfig()
        weight = torch.randn(self.config.width, self.config.width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight / 4)

    def init_state(self, batch_size: int) -> StreamState:
        c, options = self.config, {"dtype": self.weight.dtype, "device": self.weight.device}
        size = c.width // c.heads
        slots = (batch_size, c.window - 1, c.heads, size)
        position = torch.zeros(batch_size, dtype=torch.int64, device=self.weight.device)
        window = WindowState(torch.zeros(slots, **options), torch.zeros(slots, **options), position)
        memory = torch.zeros(batch_size, c.heads, size, size + 1, **options)
        plastic = PlasticState(memory, torch.zeros(batch_size, c.width, **options))
        encoder = EncoderState(torch.zeros(batch_size, 3, c.width, **options))
        return StreamState(encoder, (window, plastic), None, position)

    def forward(self, x: Tensor, state: StreamState | None = None, *, gain: float = 1.0) -> tuple[Tensor, StreamState]:
        state = state or self.init_state(x.shape[0])
        outputs = []
        for x_t in x.unbind(1):
            if not torch.compiler.is_compiling() and not torch.isfinite(x_t).all():
                raise ValueError("x is not finite")
            y_t, state = self._advance(gain * x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, 1) if outputs else x, state

    def step(self, x_t: Tensor, state: StreamState, *, gain: float = 1.0) -> tuple[Tensor, StreamState]:
        y, state = self(x_t[:, None], state, gain=gain)
        return y[:, 0], state

    def _advance(self, x_t: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        encoder, (window, plastic) = state.front, state.layers
        assert isinstance(encoder, EncoderState)
        assert isinstance(window, WindowState)
        assert isinstance(plastic, PlasticState)
        rows, heads = torch.arange(len(x_t)), (len(x_t), self.config.heads, -1)
        hidden = x_t @ self.weight
        slots = window.keys.shape[1]
        keys, values = window.keys.clone(), window.values.clone()
        if slots:
            keys[rows, window.position % slots] = x_t.view(heads)
            values[rows, window.position % slots] = hidden.view(heads)
        write = torch.nn.functional.pad(hidden.view(heads), (0, 1), value=1.0)
        memory = self.config.decay * plastic.memory + plastic.previous.view(heads)[..., None] * write[..., None, :]
        read = (hidden.view(heads)[..., None, :] @ memory)[..., 0, :-1].reshape(x_t.shape)
        y_t = read + values.sum(1).reshape(x_t.shape) + encoder.recent.sum(1)
        return y_t, StreamState(
            EncoderState(torch.cat([encoder.recent[:, 1:], x_t[:, None]], 1)),
            (WindowState(keys, values, window.position + 1), PlasticState(memory, hidden)),
            None,
            state.position + 1,
        )


def random_state(model: FakeModel, batch_size: int = 3, length: int = 7, seed: int = 1) -> StreamState:
    """The state after `length` random steps."""
    x = torch.randn(batch_size, length, model.config.width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(x.to(model.weight.dtype))[1]
