"""Stable-Baselines3-contrib: `RecurrentPPO(SSMNPolicy, env)` with an `SSMN` where its LSTM would be."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ssmn.config import SSMNConfig
from ssmn.errors import ConfigError
from ssmn.models import SSMN
from ssmn.state import StreamState

Pair = tuple[Tensor, Tensor]


class FlatSSMN(nn.Module):
    """An `SSMN` with the face of an LSTM: its state as two float32 vectors per row, "hidden" and "cell".

    A rollout buffer made for LSTMs then carries it. Positions are exact up to 2^24 steps of an episode.

    Args:
        config: Of the model.
    """

    num_layers = 1

    def __init__(self, config: SSMNConfig) -> None:
        super().__init__()
        self.model = SSMN(config)
        template = self.model.init_state(1).named_tensors()
        self._parts = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in template.items()}
        self._sizes = [tensor.numel() for tensor in template.values()]
        self.input_size, self.hidden_size = config.input_dim, (sum(self._sizes) + 1) // 2

    def read(self, pair: Pair) -> StreamState:
        """Two vectors [1, B, hidden_size] as a state of B rows."""
        flat = torch.cat([pair[0][0], pair[1][0]], -1)
        pieces = flat[:, : sum(self._sizes)].split(self._sizes, -1)
        tensors = {
            name: piece.reshape(-1, *shape).to(dtype)
            for piece, (name, (shape, dtype)) in zip(pieces, self._parts.items(), strict=True)
        }
        return self.model.init_state(flat.shape[0]).with_tensors(tensors)

    def write(self, state: StreamState) -> Pair:
        """The reverse of `read`."""
        flat = torch.cat([tensor.reshape(tensor.shape[0], -1).float() for tensor in state.named_tensors().values()], -1)
        flat = nn.functional.pad(flat, (0, 2 * self.hidden_size - flat.shape[1]))
        hidden, cell = flat.unsqueeze(0).split(self.hidden_size, -1)
        return hidden.contiguous(), cell.contiguous()

    def forward(self, features: Tensor, pair: Pair, episode_starts: Tensor) -> tuple[Tensor, Pair]:
        """[B · T, input_size], state, [B · T] to ([B · T, output_dim], state); rows are whole, one after another."""
        rows = pair[0].shape[1]
        x, reset = features.reshape(rows, -1, self.input_size), episode_starts.reshape(rows, -1) > 0.5
        y, state = self.model(x, self.read(pair), reset=reset)
        return y.flatten(0, 1), self.write(state)


class SSMNPolicy(RecurrentActorCriticPolicy):
    """A policy of `sb3_contrib.RecurrentPPO` with one `SSMN` between the features and both heads.

    A minibatch's sequences are computed in parallel, where the LSTM policy goes step by step whenever an episode
    begins within them. The buffer holds the state of every step, twice: steps · rows · state bytes · 2.

    Args:
        observation_space: As for every policy.
        action_space: As for every policy.
        lr_schedule: As for every policy.
        core: Settings of `SSMNConfig`, other than `input_dim`; by default width 64, one static layer with a window of
            8 and one plastic layer; `output_dim` is what the heads see (64).
        more: What `RecurrentActorCriticPolicy` takes, other than its settings of the LSTM.

    Raises:
        ConfigError: A setting of the core is unknown or impossible, or one of the LSTM was given.

    Example:
        >>> from sb3_contrib import RecurrentPPO
        >>> from ssmn.interfaces.rl import SSMNPolicy
        >>> small = {"hidden_dim": 16, "num_heads": 2}
        >>> agent = RecurrentPPO(SSMNPolicy, "CartPole-v1", n_steps=16, policy_kwargs={"core": small}, device="cpu")
        >>> agent.policy.lstm_actor.model.config.layer_types
        ('static', 'plastic')
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        *args: Any,
        core: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        lstm = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")
        for name in lstm:
            if name in more:
                raise ConfigError(f"SSMNPolicy: {name} is a setting of the LSTM; set the memory with core={{...}}.")
        if not more.get("share_features_extractor", True):
            raise ConfigError("SSMNPolicy: share_features_extractor=False; wanted True: both heads see one memory.")
        defaults = {
            "hidden_dim": 64, "num_layers": 2, "num_heads": 2, "layer_types": ("static", "plastic"), "window_size": 8,
            "output_dim": 64,
        }  # fmt: skip
        settings = {**defaults, **(core or {})}
        super().__init__(
            observation_space, action_space, lr_schedule, *args,
            lstm_hidden_size=settings["output_dim"], shared_lstm=True, enable_critic_lstm=False, **more,
        )  # fmt: skip
        memory = FlatSSMN(SSMNConfig.from_dict({**settings, "input_dim": self.features_dim}))
        self.lstm_actor: Any = memory.to(self.device)
        self.lstm_hidden_state_shape = (1, 1, memory.hidden_size)
        make: Any = self.optimizer_class
        self.optimizer = make(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _latent(self, features: Tensor, pair: Any, episode_starts: Tensor) -> tuple[Tensor, Pair]:
        return self.lstm_actor(features, pair, episode_starts)

    def forward(
        self, obs: Tensor, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """(action, value, log-probability, states) of every row; see `RecurrentActorCriticPolicy.forward`."""
        latent, pair = self._latent(self._features(obs), lstm_states.pi, episode_starts)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        shape = self.action_space.shape or ()
        return actions.reshape((-1, *shape)), values, log_prob, RNNStates(pair, pair)

    def get_distribution(
        self, obs: Tensor, lstm_states: Any, episode_starts: Tensor
    ) -> tuple[Distribution, tuple[Tensor, ...]]:
        """The policy for every row, and the states."""
        latent, pair = self._latent(self._features(obs), lstm_states, episode_starts)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent)), pair

    def predict_values(self, obs: Tensor, lstm_states: Any, episode_starts: Tensor) -> Tensor:
        """The value of every row."""
        latent, _ = self._latent(self._features(obs), lstm_states, episode_starts)
        return self.value_net(self.mlp_extractor.forward_critic(latent))

    def evaluate_actions(
        self, obs: Tensor, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """(value, log-probability, entropy) of the actions of whole sequences."""
        latent, _ = self._latent(self._features(obs), lstm_states.pi, episode_starts)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values, distribution.log_prob(actions), distribution.entropy()

    def _features(self, obs: Any) -> Tensor:
        return super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
