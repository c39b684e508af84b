"""A pole is balanced from positions alone: the velocities are hidden, so an agent must remember what it saw.

CartPole of Gymnasium, 32 carts at once, PPO with a small SSMN as the agent's core (`pip install "sparse-stream[rl]"`).
Afterwards the same agent plays with its memory and with all of it wiped before every step.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers.vector import TransformObservation

from ssmn.training import ppo

POSITIONS = [0, 2]  # of the cart, and of the pole


def carts(rows: int) -> gymnasium.vector.VectorEnv:
    """Carts seen without their velocities."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=rows, vectorization_mode="vector_entry_point")
    assert isinstance(envs.single_observation_space, gymnasium.spaces.Box)
    high = envs.single_observation_space.high[POSITIONS]
    space = gymnasium.spaces.Box(-high, high)
    every = gymnasium.vector.utils.batch_space(space, rows)
    return TransformObservation(envs, lambda seen: seen[:, POSITIONS], every, space)


def steps_upright(agent: ppo.Agent, episodes: int, remembers: bool) -> float:
    """Mean length of the first episode of each cart, up to 500 steps."""
    envs = carts(episodes)
    seen, _ = envs.reset(seed=1)
    upright, state = np.ones(episodes, dtype=bool), None
    lengths = np.zeros(episodes)
    for step in range(500):
        fresh = np.full(episodes, step == 0 or not remembers)
        actions, state = agent.act(seen, state, fresh)
        seen, _, terminated, _, _ = envs.step(actions)
        lengths += upright
        upright &= ~terminated
        if not upright.any():
            break
    return float(lengths.mean())


def main(steps: int = 100_000) -> None:
    torch.set_num_threads(1)
    recipe = ppo.PPOConfig(steps=steps, rollout=64, minibatches=4, learning_rate=2e-3)
    with ppo.progress_bar() as show:
        result = ppo.train(ppo.ssmn_core(width=32, ffn_dim=32), carts(32), recipe, on_rollout=show)
    print(f"steps upright, with memory     {steps_upright(result.agent, 16, remembers=True):.0f}")
    print(f"steps upright, without memory  {steps_upright(result.agent, 16, remembers=False):.0f}")


if __name__ == "__main__":
    main()
