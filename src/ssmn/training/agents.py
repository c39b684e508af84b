"""An agent with a memory: observations as vectors, a recurrent core, and two heads (needs `"sparse-stream[rl]"`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssmn.config import SSMNConfig
from ssmn.errors import ConfigError, MissingExtraError
from ssmn.models import SSMN
from ssmn.training.cores import RecurrentCore

try:
    from gymnasium import spaces
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.training.agents: {error}; it needs gymnasium: pip install 'sparse-stream[rl]'"
    ) from error

CoreBuilder = Callable[[int, int], Any]
"""Makes a `RecurrentCore` from (input_dim, output_dim)."""


def ssmn_core(
    width: int = 64, layers: tuple[str, ...] = ("static", "plastic"), window: int = 8, **settings: Any
) -> CoreBuilder:
    """A builder of an `SSMN` as an agent's core.

    Args:
        width: D.
        layers: Kinds of the layers.
        window: W of the static ones.
        settings: More of `SSMNConfig`. The memory writes at `plasticity_eta=0.1` unless told otherwise: at the usual
            0.5 three writes to a key all but replace what was there, so that nothing can be counted.

    Example:
        >>> from ssmn.training import ppo
        >>> ppo.ssmn_core(width=16, num_heads=2)(5, 8).config.layer_types
        ('static', 'plastic')
    """
    settings = {"num_heads": 2, "plasticity_eta": 0.1, **settings}
    values = {"hidden_dim": width, "num_layers": len(layers), "layer_types": layers, "window_size": window, **settings}

    def build(input_dim: int, output_dim: int) -> SSMN:
        return SSMN(SSMNConfig.from_dict({"input_dim": input_dim, "output_dim": output_dim, **values}))

    return build


class Observations(nn.Module):
    """Observations as vectors: numbers of kinds one-hot, measurements standardised by running statistics.

    The last feature is 1 at the first step of an episode: a core that has just been reset may not notice by itself.

    Args:
        space: Of one environment: `Discrete`, `MultiDiscrete` or `Box`.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.kinds: list[int] = []
        if isinstance(space, spaces.Discrete):
            self.kinds, self.start = [int(space.n)], int(space.start)
        elif isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
            self.kinds, self.start = [int(n) for n in space.nvec], 0
        elif not isinstance(space, spaces.Box):
            raise ConfigError(
                f"ppo: the observations are {space}; wanted Discrete, MultiDiscrete of one axis or Box; wrap the "
                f"environment (gymnasium.wrappers.FlattenObservation)."
            )
        size = sum(self.kinds) or math.prod(space.shape or ())
        self.input_dim = size + 1
        self.mean: Tensor
        self.variance: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, seen: NDArray[Any], first: NDArray[np.bool_], learn: bool = False) -> Tensor:
        """[B, ...] and [B] to [B, input_dim]; `learn` takes the measurements into the statistics before."""
        flag = torch.from_numpy(first.astype(np.float32)).unsqueeze(1)
        if self.kinds:
            columns = torch.from_numpy(np.asarray(seen, np.int64).reshape(len(first), -1) - self.start)
            parts = [functional.one_hot(columns[:, i], n).float() for i, n in enumerate(self.kinds)]
            return torch.cat([*parts, flag], 1)
        values = torch.from_numpy(np.asarray(seen, np.float64).reshape(len(first), -1))
        if learn:
            self._learn(values)
        scaled = (values - self.mean) * torch.rsqrt(self.variance + 1e-8)
        return torch.cat([scaled.clamp(-10, 10).float(), flag], 1)

    def _learn(self, values: Tensor) -> None:
        """Mean and variance of everything so far (Chan et al., 1979)."""
        new, total = values.shape[0], self.count + values.shape[0]
        shift = values.mean(0) - self.mean
        spread = self.variance * self.count + values.var(0, correction=0) * new
        self.variance.copy_((spread + shift.square() * self.count * new / total) / total)
        self.mean.add_(shift * new / total)
        self.count.copy_(total)


class Agent(nn.Module):
    """A recurrent core between the observations and two heads: what to do, and what it is worth.

    Args:
        core: Builder of the core.
        observations: Space of one environment's observation.
        actions: Space of one environment's action: `Discrete` or `Box`.
        features: Width of what the core hands to the heads.
    """

    def __init__(
        self, core: CoreBuilder, observations: spaces.Space[Any], actions: spaces.Space[Any], features: int = 64
    ) -> None:
        super().__init__()
        self.observations = Observations(observations)
        self.core: RecurrentCore = core(self.observations.input_dim, features)
        self.log_std: nn.Parameter | None = None
        self.low = self.high = np.zeros(0)
        self.start = 0
        if isinstance(actions, spaces.Discrete):
            size, self.start = int(actions.n), int(actions.start)
        elif isinstance(actions, spaces.Box) and len(actions.shape) == 1:
            size, self.low, self.high = actions.shape[0], actions.low, actions.high
            self.log_std = nn.Parameter(torch.zeros(size))
        else:
            raise ConfigError(f"ppo: the actions are {actions}; wanted Discrete, or Box of one axis.")
        self.policy, self.value = _head(features, size, 0.01), _head(features, 1, 1.0)

    def forward(self, x: Tensor, state: Any, first: Tensor) -> tuple[Tensor, Tensor, Any]:
        """[B, T, input_dim], state, [B, T] to (what `distribution` takes [B, T, A], value [B, T], state)."""
        hidden, state = self.core(x, state, reset=first)
        return *self.heads(hidden), state

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[..., features] to (what `distribution` takes [..., A], value [...])."""
        return self.policy(hidden), self.value(hidden).squeeze(-1)

    def distribution(self, output: Tensor) -> torch.distributions.Distribution:
        """The policy: categorical over `Discrete` actions, independent normal over `Box`."""
        if self.log_std is None:
            return torch.distributions.Categorical(logits=output, validate_args=False)
        normal = torch.distributions.Normal(output, self.log_std.exp().expand_as(output), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """An action of each row from the policy's output [B, A]; the generator decides."""
        if self.log_std is None:
            return torch.multinomial(output.softmax(-1), 1, generator=generator).squeeze(-1)
        return output + self.log_std.exp() * torch.randn(output.shape, generator=generator)

    def to_environment(self, actions: Tensor) -> NDArray[Any]:
        """Actions as the environments take them."""
        if self.log_std is None:
            return actions.numpy() + self.start
        return np.clip(actions.numpy(), self.low, self.high)

    @torch.no_grad()
    def act(self, seen: NDArray[Any], state: Any, first: NDArray[np.bool_]) -> tuple[NDArray[Any], Any]:
        """The most likely action of every row, and the state.

        Args:
            seen: [B, ...], the observations.
            state: What the last call returned; None = fresh.
            first: [B], whether the observation is the first of an episode.
        """
        x = self.observations(seen, np.asarray(first)).unsqueeze(1)
        output, _, state = self(x, state, torch.from_numpy(np.asarray(first)).unsqueeze(1))
        best = output[:, 0] if self.log_std is not None else output[:, 0].argmax(-1)
        return self.to_environment(best), state


def _head(features: int, size: int, gain: float) -> nn.Sequential:
    """A hidden layer and an output whose small start (`gain`) makes the first policy even."""
    head = nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, size))
    for layer, scale in ((head[0], math.sqrt(2)), (head[2], gain)):
        assert isinstance(layer, nn.Linear)
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return head
