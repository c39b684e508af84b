"""The PPO recipe: advantages, observations, cores, learning, resumption, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason='the extra "rl" is not installed')

import gymnasium
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from ssmn.errors import ConfigError, RangeError, TrainingError
from ssmn.training import ppo
from ssmn.training.cores import GatedCore, GatedKind

SMALL = ppo.ssmn_core(16, ("static", "plastic"), 3, ffn_dim=8)


class Recall(VectorEnv):
    """A number is shown at the first of `length` steps, and is the right action at the last; then all begin anew."""

    def __init__(self, rows: int, length: int = 3, kinds: int = 2) -> None:
        self.num_envs, self.length, self.kinds = rows, length, kinds
        self.single_observation_space = spaces.Discrete(kinds + 1)
        self.single_action_space = spaces.Discrete(kinds, start=5)
        self.observation_space = batch_space(self.single_observation_space, rows)
        self.action_space = batch_space(self.single_action_space, rows)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.generator = np.random.default_rng(seed)
        return self._begin(), {}

    def _begin(self) -> np.ndarray:
        self.shown, self.time = self.generator.integers(self.kinds, size=self.num_envs), 0
        return self.shown

    def step(self, actions: Any) -> Any:
        self.time += 1
        done = np.full(self.num_envs, self.time == self.length)
        rewards = np.where(done & (actions - 5 == self.shown), 1.0, 0.0)
        nothing = np.full(self.num_envs, self.kinds)
        seen = self._begin() if done.all() else nothing
        final = {"final_obs": np.array([*nothing], dtype=object), "_final_obs": done} if done.all() else {}
        return seen, rewards, done, np.zeros_like(done), final


class Clock(gymnasium.Env):
    """Shows how many steps have gone, and is cut off after `length` of them; each is worth 1."""

    observation_space, action_space = spaces.Box(0, 9, (1,)), spaces.Box(-1, 1, (2,))

    def __init__(self, length: int, truncates: bool) -> None:
        self.length, self.truncates = length, truncates

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.time += 1
        done = self.time == self.length
        seen = np.full(1, self.time, np.float32)
        return seen, 1.0, done and not self.truncates, done and self.truncates, {}


def clocks(mode: AutoresetMode, truncates: bool) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Clock(3, truncates), lambda: Clock(4, truncates)], autoreset_mode=mode)


def run_of(envs: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = ppo.PPOConfig(**{"rollout": 7, "minibatches": 2, "features": 6, **changes})
    agent = ppo.Agent(SMALL, envs.single_observation_space, envs.single_action_space, settings.features)
    run = ppo._Run(agent, envs, settings)
    run.begin()
    return run


def test_advantages_by_hand() -> None:
    rows = {"rewards": [[1.0, 2.0, 4.0]], "values": [[0.5, 1.0, 2.0]]}
    tensors = {name: torch.tensor(value) for name, value in rows.items()}
    no = torch.zeros(1, 3, dtype=torch.bool)
    second = torch.tensor([[False, True, False]])

    def advantages(terminated: torch.Tensor, ended: torch.Tensor, discount: float = 0.5) -> list[float]:
        made = ppo._Rollout(
            x=no, first=no, actions=no, log_probs=no, void=no, state=None, terminated=terminated, ended=ended,
            last_value=torch.tensor([8.0]), **tensors,
        )  # fmt: skip
        return made.advantages(discount, 0.5)[0].tolist()

    # errors 1 + .5 - .5 = 1;  2 + 1 - 1 = 2;  4 + 4 - 2 = 6
    assert advantages(no, no) == [1 + 0.25 * (2 + 0.25 * 6), 2 + 0.25 * 6, 6]
    assert advantages(second, second) == [1 + 0.25 * 1, 1, 6]
    assert advantages(no, second) == [1 + 0.25 * 2, 2, 6]
    assert advantages(no, no, discount=0.0) == [1 - 0.5, 2 - 1, 4 - 2]  # a reward is all that a step is worth


@pytest.mark.parametrize("truncates", [False, True])
def test_an_end_is_an_end_in_both_ways_of_resetting(truncates: bool) -> None:
    same = run_of(clocks(AutoresetMode.SAME_STEP, truncates))._collect()
    later = run_of(clocks(AutoresetMode.NEXT_STEP, truncates))._collect()
    # The first row, of 3 steps: in the next step, a step without an action stands between two episodes.
    assert same.first[0].tolist() == [True, False, False, True, False, False, True]
    assert later.first[0].tolist() == [True, False, False, False, True, False, False]
    assert later.void[0].tolist() == [False, False, False, True, False, False, False]
    assert not same.void.any()
    assert same.ended[0].tolist() == [False, False, True, False, False, True, False]
    assert later.ended[0].tolist() == [False, False, True, False, False, False, True]
    assert later.terminated.any() == (not truncates)
    assert later.rewards[0, 3] == 0


def test_a_truncated_episode_counts_what_was_left() -> None:
    run = run_of(clocks(AutoresetMode.SAME_STEP, True), rollout=3)
    rollout = run._collect()
    agent, seen = run.agent, torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    x = torch.cat([rollout.x[0], torch.tensor([[float("nan"), 0.0]])])
    scale = torch.rsqrt(agent.observations.variance.float() + 1e-8)
    x[3, 0] = ((seen[3] - agent.observations.mean.float()) * scale).clamp(-10, 10)
    _, values, _ = agent(x.unsqueeze(0), None, torch.tensor([[True, False, False, False]]))
    without = run_of(clocks(AutoresetMode.SAME_STEP, False), rollout=3)._collect()
    added = rollout.rewards[0, 2] - without.rewards[0, 2]
    torch.testing.assert_close(added, 0.99 * values[0, 3], rtol=1e-4, atol=1e-5)


def test_a_constant_reward_is_not_blown_up() -> None:
    run = run_of(clocks(AutoresetMode.SAME_STEP, False))
    rewards, unit = run._collect().rewards, run.reward_scale[2] ** 0.5
    torch.testing.assert_close(rewards, torch.full((2, 7), 1 / unit).float())  # of all seven steps the same
    sums = torch.tensor([1, 1.99, 2.9701, 3.940399])
    spread = torch.cat([sums[[0, 1, 2, 0, 1, 2, 0]], sums[[0, 1, 2, 3, 0, 1, 2]]]).std(correction=0)
    assert unit == pytest.approx(float(spread), rel=1e-5)


def test_the_update_sees_what_the_rollout_saw() -> None:
    run = run_of(Recall(5), rollout=7)
    run._collect()
    rollout = run._collect()  # from a carried state, with episodes that begin in the middle
    output, values, _ = run.agent(rollout.x, rollout.state, rollout.first)
    torch.testing.assert_close(values, rollout.values, rtol=1e-4, atol=1e-5)
    log_probs = run.agent.distribution(output).log_prob(rollout.actions)
    torch.testing.assert_close(log_probs, rollout.log_probs, rtol=1e-4, atol=1e-5)


def test_the_engine_takes_the_same_steps() -> None:
    core: Any = SMALL(3, 6)
    _, state = core(torch.randn(4, 5, 3))
    packed, plain = ppo._steps(core, state), ppo._Steps(core, state)
    if not isinstance(packed, ppo._EngineSteps):
        pytest.skip("there is no C library")
    for step in range(3):
        x, first = torch.randn(4, 3), np.array([False, step == 1, False, step == 2])
        torch.testing.assert_close(packed(x, first), plain(x, first), rtol=1e-4, atol=1e-5)
    rows = np.array([2, 1])
    for name, tensor in packed.select(rows).named_tensors().items():
        torch.testing.assert_close(tensor, plain.select(rows).named_tensors()[name], rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 3)
    torch.testing.assert_close(packed.last(x, rows), plain.last(x, rows), rtol=1e-4, atol=1e-5)


def test_a_quiet_rollout_is_not_made_loud() -> None:
    run = run_of(Recall(4), epochs=1)
    units = []
    for scale in (1.0, 0.01, 0.01, 2.0):
        rollout = run._collect()
        values = torch.linspace(-1, 1, rollout.values.numel()).reshape(rollout.values.shape) * scale
        quiet = {"rewards": torch.zeros_like(values), "values": values, "last_value": torch.zeros(4)}
        run._update(dataclasses.replace(rollout, **quiet), 0.0)
        units.append(run.advantage_unit)
    assert units[1:3] == pytest.approx([0.99 * units[0], 0.99**2 * units[0]])
    assert units[3] > 1.5 * units[0]


@pytest.mark.parametrize("kind", ["ssmn", "gru", "lstm"])
def test_it_learns_to_remember(kind: Any) -> None:
    def core(input_dim: int, output_dim: int) -> Any:
        return SMALL(input_dim, output_dim) if kind == "ssmn" else GatedCore(kind, input_dim, output_dim, 16)

    settings = ppo.PPOConfig(
        steps=3000, rollout=9, epochs=4, minibatches=2, learning_rate=1e-2, gae_lambda=0.5, features=16
    )
    result = ppo.train(core, Recall(16), settings)
    assert result.returns[-64:].mean() > 0.9
    assert ppo.evaluate(result.agent, Recall(16), 32).mean() > 0.95
    assert result.ends[-1] <= result.step
    assert len(result.returns) == len(result.ends) == result.step // (16 * 3) * 16


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_gated_core_obeys_cuts_and_resets(kind: GatedKind) -> None:
    core = GatedCore(kind, 3, 5, 7).double()
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    reset = torch.zeros(2, 11, dtype=torch.bool)
    reset[0, 4] = reset[1, 0] = reset[1, 9] = True
    state = core(torch.randn(2, 2, 3, dtype=torch.float64))[1]
    whole, last = core(x, state, reset=reset)
    carried, parts = state, []
    for t in range(11):
        y, carried = core(x[:, t : t + 1], carried, reset=reset[:, t : t + 1])
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    for name, tensor in last.named_tensors().items():
        torch.testing.assert_close(tensor, carried.named_tensors()[name])
    alone, _ = core(x[:1, 4:])
    torch.testing.assert_close(whole[:1, 4:], alone)
    empty, same = core(x[:, :0], state)
    assert empty.shape == (2, 0, 5) and same is state


def test_observations_become_vectors() -> None:
    first = np.array([True, False])
    kinds = ppo.Observations(spaces.MultiDiscrete([2, 3]))(np.array([[1, 0], [0, 2]]), first)
    assert kinds.tolist() == [[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]]
    numbers = ppo.Observations(spaces.Discrete(3, start=4))
    assert numbers(np.array([4, 6]), first).tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]
    box = ppo.Observations(spaces.Box(-9, 9, (2,)))
    rows = np.random.default_rng(0).normal(3.0, 2.0, (7, 5, 2))
    for piece in rows:
        box(piece, np.zeros(5, dtype=bool), learn=True)
    np.testing.assert_allclose(box.mean, rows.reshape(-1, 2).mean(0))
    np.testing.assert_allclose(box.variance, rows.reshape(-1, 2).var(0))


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    settings = ppo.PPOConfig(steps=84, rollout=7, minibatches=2, epochs=1, features=6)
    stopped = ppo.train(SMALL, Recall(4), settings, out=tmp_path, on_rollout=lambda progress: progress.step >= 28)
    assert stopped.interrupted and stopped.step == 28
    with pytest.raises(TrainingError, match="already holds a run; pass resume=True"):
        ppo.train(SMALL, Recall(4), settings, out=tmp_path)
    seen = []
    result = ppo.train(SMALL, Recall(4), settings, out=tmp_path, resume=True, on_rollout=seen.append)
    assert [progress.step for progress in seen] == [56, 84]
    assert not result.interrupted
    assert len(result.returns) == 8 + 16
    loaded = ppo.load_agent(tmp_path, SMALL, Recall(4).single_observation_space, Recall(4).single_action_space)
    for name, tensor in result.agent.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    with pytest.raises(TrainingError, match=r"other settings \(discount\)"):
        ppo.train(SMALL, Recall(4), ppo.PPOConfig(steps=84, rollout=7, minibatches=2, epochs=1, features=6,
                  discount=0.5), out=tmp_path, resume=True)  # fmt: skip
    with pytest.raises(TrainingError, match=r"core.input.weight is \[16, 4\] in .* but \[16, 8\] in this agent"):
        ppo.load_agent(tmp_path, SMALL, spaces.Discrete(7), Recall(4).single_action_space)
    gentle = ppo.ssmn_core(16, ("static", "plastic"), 3, ffn_dim=8, plasticity_eta=0.05)  # the same shapes
    with pytest.raises(TrainingError, match=r"core.plasticity_eta is 0.1 in .* but 0.05 in this agent"):
        ppo.load_agent(tmp_path, gentle, Recall(4).single_observation_space, Recall(4).single_action_space)
    with pytest.raises(TrainingError, match=r"other settings \(agent\)"):
        ppo.train(gentle, Recall(4), settings, out=tmp_path, resume=True)
    with pytest.raises(TrainingError, match=r"has no ppo\.safetensors to resume"):
        ppo.train(SMALL, Recall(4), settings, out=tmp_path / "other", resume=True)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_goes_on_from_before_its_first_update(frozen: bool, tmp_path: Path) -> None:
    def core(input_dim: int, output_dim: int) -> Any:
        made = SMALL(input_dim, output_dim)
        made.input.weight.requires_grad_(not frozen)
        return made

    envs, settings = Recall(4), ppo.PPOConfig(steps=56, rollout=7, minibatches=2, epochs=1, features=6)
    run = run_of(envs, epochs=1)
    path = tmp_path / ppo.CHECKPOINT_FILE
    run.save(path)
    ppo.train(core, envs, settings, out=tmp_path, resume=True, on_rollout=lambda _: True)  # one rollout
    result = ppo.train(core, envs, settings, out=tmp_path, resume=True)
    assert result.step == 56 and not result.interrupted
    assert torch.equal(result.agent.core.input.weight, run.agent.core.input.weight) == frozen  # pyright: ignore[reportAttributeAccessIssue]


def test_the_same_seed_gives_the_same_run() -> None:
    settings = ppo.PPOConfig(steps=56, rollout=7, minibatches=2, epochs=1, features=6)
    first, second = (ppo.train(SMALL, Recall(4), settings) for _ in range(2))
    assert first.returns.tolist() == second.returns.tolist()
    for mine, theirs in zip(first.agent.parameters(), second.agent.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_continuous_actions_stay_within_their_bounds() -> None:
    settings = ppo.PPOConfig(steps=28, rollout=7, minibatches=2, epochs=1, features=6)
    result = ppo.train(SMALL, clocks(AutoresetMode.NEXT_STEP, True), settings)
    assert set(result.returns) <= {3.0, 4.0}
    assert len(ppo.evaluate(result.agent, clocks(AutoresetMode.NEXT_STEP, True), 3)) == 3


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ppo.PPOConfig(steps=28, rollout=7, minibatches=2, epochs=1, features=6)
    with ppo.progress_bar() as show:
        ppo.train(SMALL, Recall(4), settings, on_rollout=show)
    assert "28/28" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0; wanted a whole number of at least 1"),
        ({"gae_lambda": 1.5}, r"gae_lambda=1.5; wanted a share in \[0, 1\]"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; wanted a positive number"),
        ({"entropy": float("nan")}, "entropy=nan; wanted a finite number"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ppo.PPOConfig(**change)


def test_what_an_agent_cannot_take_is_refused() -> None:
    box = spaces.Box(-1, 1, (2,))
    with pytest.raises(ConfigError, match=r"observations are Dict.*FlattenObservation"):
        ppo.Agent(SMALL, spaces.Dict(a=box), box)
    with pytest.raises(ConfigError, match="actions are MultiBinary"):
        ppo.Agent(SMALL, box, spaces.MultiBinary(2))
    with pytest.raises(ConfigError, match="num_envs=2 but minibatches=4; a minibatch takes whole rows"):
        ppo.train(SMALL, Recall(2), ppo.PPOConfig())
    envs = Recall(4)
    envs.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    with pytest.raises(ConfigError, match="wanted environments that reset themselves"):
        ppo.train(SMALL, envs, ppo.PPOConfig())
    agent = ppo.Agent(SMALL, Recall(2).single_observation_space, Recall(2).single_action_space)
    with pytest.raises(RangeError, match="episodes=0; wanted at least 1"):
        ppo.evaluate(agent, Recall(2), 0)
    with pytest.raises(ConfigError, match="kind='rnn'; wanted one of gru, lstm"):
        GatedCore("rnn", 1, 2, 3)  # type: ignore[arg-type]
