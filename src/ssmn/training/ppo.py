"""Proximal policy optimisation with a memory, small enough to read (needs `pip install "sparse-stream[rl]"`).

Rollouts are taken from many environments at once; the recurrent state is carried from one to the next and reset where
an episode begins. The update goes back through whole rollouts in one parallel pass. Schulman et al., 2017; generalised
advantage estimation: Schulman et al., 2016.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmn.engine import Engine
from ssmn.errors import BackendError, ConfigError, MissingExtraError, RangeError, TrainingError
from ssmn.files import read_file, write_file
from ssmn.models import SSMN
from ssmn.state import StreamState
from ssmn.training.agents import Agent, CoreBuilder, Observations, ssmn_core
from ssmn.training.cores import RecurrentCore
from ssmn.training.heap import kept_heap
from ssmn.training.loop import interruptible

try:
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.training.ppo: {error}; it needs gymnasium: pip install 'sparse-stream[rl]'"
    ) from error

__all__ = [
    "CHECKPOINT_FILE", "Agent", "CoreBuilder", "Observations", "PPOConfig", "PPOResult", "Progress", "evaluate",
    "figures_of", "load_agent", "progress_bar", "ssmn_core", "train",
]  # fmt: skip

CHECKPOINT_FILE = "ppo.safetensors"

_FORGET = 0.99
"""Share that is kept per rollout of the largest deviation of the advantages so far."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The recipe; what is annealed goes linearly with the steps that are done."""

    steps: int = 300_000
    """Environment steps in all, over all rows; whole rollouts are taken, so the last one may go beyond it."""
    rollout: int = 64
    """T, steps of every row between two updates: how far back-propagation reaches."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Updates per pass; each takes some of the rows over the whole rollout."""
    learning_rate: float = 1e-3
    """Of Adam at the start, annealed to a tenth of it."""
    discount: float = 0.99
    """γ per step."""
    gae_lambda: float = 0.95
    """λ of the advantages, in [0, 1]: 0 = one step, 1 = all that followed."""
    clip: float = 0.2
    """How far a probability may go from its old value before its gradient stops, as a share of it."""
    entropy: float = 0.01
    """Weight of the policy's entropy at the start, annealed to 0."""
    value_weight: float = 0.5
    """Weight of the squared error of the value."""
    clip_norm: float = 0.5
    """Largest norm of the gradient."""
    features: int = 64
    """Width of what the core hands to the two heads."""
    seed: int = 0
    """Of the weights, the actions, the order of the rows and the environments."""

    def __post_init__(self) -> None:
        for name in ("steps", "rollout", "epochs", "minibatches", "features"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"PPOConfig: {name}={value!r}; wanted a whole number of at least 1.")
        shares = ("discount", "gae_lambda")
        for name in ("learning_rate", "clip", "clip_norm", "entropy", "value_weight", *shares):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            positive = name in ("learning_rate", "clip", "clip_norm")
            if not is_number or value < 0 or (positive and value == 0) or (name in shares and value > 1):
                wanted = "a share in [0, 1]" if name in shares else f"a {'positive' if positive else 'finite'} number"
                raise ConfigError(f"PPOConfig: {name}={value!r}; wanted {wanted}.")


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a rollout and its update.

    Attributes:
        step: Environment steps done.
        steps: Environment steps in all.
        episodes: Episodes finished.
        mean_return: Mean return of the last 100 of them; NaN before the first.
        entropy: Of the policy, mean over the rollout, in nats.
        value_loss: Mean squared error of the value, in units of the scaled rewards.
        kl: Mean divergence of the new policy from the old one.
        steps_per_second: Environment steps, with the updates.
        collected_per_second: Environment steps while they were taken: environments and policy.
        seconds_left: At this speed.
    """

    step: int
    steps: int
    episodes: int
    mean_return: float
    entropy: float
    value_loss: float
    kl: float
    steps_per_second: float
    collected_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class PPOResult:
    """What a run left.

    Attributes:
        agent: The trained agent.
        step: Environment steps done.
        interrupted: Whether Ctrl-C or the callback ended it early.
        ends: [N] environment steps done when each episode ended.
        returns: [N] its return, undiscounted and unscaled.
        speeds: Environment steps of this call per second: `whole`, and `collected` (environments and policy alone,
            no updates); and both per second of processor time, all threads together, as `processor` and
            `processor_collected`.
    """

    agent: Agent
    step: int
    interrupted: bool
    ends: NDArray[np.int64]
    returns: NDArray[np.float64]
    speeds: dict[str, float]


def train(
    core: CoreBuilder,
    envs: VectorEnv[Any, Any, Any],
    config: PPOConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int = 20,
    on_rollout: Callable[[Progress], bool | None] | None = None,
) -> PPOResult:
    """Trains an agent in a vector of environments.

    Ctrl-C finishes the update, saves a checkpoint and returns; a second one stops at once. A resumed run has the
    weights, the optimizer, the statistics and the random numbers of the stopped one; the episodes that were under way
    are lost, and new ones begin.

    Args:
        core: Makes the core from (input_dim, output_dim), e.g. `ssmn_core()`.
        envs: Environments that reset themselves (in the step that ends an episode, or in the next one).
        config: The recipe; None = the defaults.
        out: Folder for checkpoints; None = none.
        resume: Goes on from the folder's checkpoint.
        checkpoint_every: Rollouts between two checkpoints.
        on_rollout: Called after each rollout and its update; if it returns True, the run stops as by Ctrl-C.

    Returns:
        The result; `interrupted` says whether it ended early.

    Raises:
        ConfigError: Spaces that an agent cannot take, or environments that do not reset themselves.
        TrainingError: A number is not finite; the folder holds another run, or none to resume.

    Example:
        >>> import gymnasium
        >>> from ssmn.training import ppo
        >>> envs = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync")
        >>> settings = ppo.PPOConfig(steps=64, rollout=8, epochs=1)
        >>> ppo.train(ppo.ssmn_core(width=16), envs, settings).step
        64
    """
    config = config or PPOConfig()
    if envs.num_envs < config.minibatches:
        raise ConfigError(
            f"ppo: num_envs={envs.num_envs} but minibatches={config.minibatches}; a minibatch takes whole rows."
        )
    path = None if out is None else Path(out) / CHECKPOINT_FILE
    if resume and (path is None or not path.exists()):
        raise TrainingError(f"ppo: {out} has no {CHECKPOINT_FILE} to resume; leave resume out to start there.")
    if path is not None and path.exists() and not resume:
        raise TrainingError(f"ppo: {out} already holds a run; pass resume=True to go on, or another out.")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with kept_heap(), torch.random.fork_rng(devices=[]), interruptible() as interrupted:
        torch.manual_seed(config.seed)
        agent = Agent(core, envs.single_observation_space, envs.single_action_space, config.features)
        run = _Run(agent, envs, config)
        if resume and path is not None:
            run.restore(path)
        run.begin()
        rollouts = 0
        while run.step < config.steps and not interrupted.is_set():
            progress = run.advance()
            rollouts += 1
            if on_rollout is not None and on_rollout(progress):
                interrupted.set()
            if path is not None and rollouts % checkpoint_every == 0:
                run.save(path)
        if path is not None:
            run.save(path)
        return PPOResult(
            agent, run.step, run.step < config.steps, np.array(run.ends, np.int64), np.array(run.returns), run.speeds()
        )  # fmt: skip


def evaluate(agent: Agent, envs: VectorEnv[Any, Any, Any], episodes: int, seed: int = 0) -> NDArray[np.float64]:
    """Returns of the first `episodes` episodes that end, the agent doing what it finds best.

    Raises:
        RangeError: `episodes` is below 1.
    """
    if episodes < 1:
        raise RangeError(f"ppo.evaluate: episodes={episodes!r}; wanted at least 1.")
    same_step = _resets_in_same_step(envs)
    seen, _ = envs.reset(seed=seed)
    first = np.ones(envs.num_envs, dtype=bool)
    void = np.zeros(envs.num_envs, dtype=bool)
    sums, finished, state = np.zeros(envs.num_envs), [], None
    while len(finished) < episodes:
        actions, state = agent.act(seen, state, first)
        seen, rewards, terminated, truncated, _ = envs.step(actions)
        ended = (terminated | truncated) & ~void
        sums += np.where(void, 0.0, rewards)
        finished += sums[ended].tolist()
        sums[ended] = 0
        first, void = (ended, void) if same_step else (void, ended)
    return np.array(finished[:episodes])


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A callback for `on_rollout` that shows the run as a bar of rich's.

    Example:
        >>> from ssmn.training import ppo
        >>> bar = ppo.progress_bar()  # with bar as show: ppo.train(..., on_rollout=show)
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("training"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
    with Bar(*columns) as bar:
        row = bar.add_task("", total=None, figures="")

        def show(progress: Progress) -> None:
            bar.update(row, completed=progress.step, total=progress.steps, figures=figures_of(progress))

        yield show


def figures_of(progress: Progress) -> str:
    """Return, entropy, speed and time left, in one line."""
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return (
        f"return {progress.mean_return:.3f}  entropy {progress.entropy:.2f}  "
        f"{progress.steps_per_second:,.0f} steps/s  {minutes}:{seconds:02d} left"
    )


def _resets_in_same_step(envs: VectorEnv[Any, Any, Any]) -> bool:
    mode = envs.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise ConfigError(
            f"ppo: envs.metadata['autoreset_mode']={mode!r}; wanted environments that reset themselves: "
            f"AutoresetMode.SAME_STEP or NEXT_STEP."
        )
    return mode == AutoresetMode.SAME_STEP


@dataclass(frozen=True, eq=False)
class _Rollout:
    """What was seen and done, [B, T] each; `x` [B, T, I], `actions` [B, T] or [B, T, A], `state` before the first."""

    x: Tensor
    first: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    void: Tensor
    """Steps in which an environment did nothing but reset: no action was taken."""
    last_value: Tensor
    """[B], of what comes after the last step."""
    state: Any

    def advantages(self, discount: float, decay: float) -> Tensor:
        """[B, T], generalised advantage estimates. At a truncated end the value of what was left counts."""
        values = torch.cat([self.values, self.last_value.unsqueeze(1)], 1)
        found, ahead = torch.zeros_like(self.rewards), torch.zeros_like(self.last_value)
        for t in reversed(range(self.rewards.shape[1])):
            error = self.rewards[:, t] + discount * values[:, t + 1] * ~self.terminated[:, t] - values[:, t]
            ahead = error + discount * decay * ahead * ~self.ended[:, t]
            found[:, t] = ahead
        return found


class _Steps:
    """The core one step at a time, in all rows, during a rollout."""

    def __init__(self, core: RecurrentCore, state: Any) -> None:
        self.core, self.state = core, state

    def __call__(self, x: Tensor, first: NDArray[np.bool_]) -> Tensor:
        """[B, input_dim] and [B] to [B, features]."""
        y, self.state = self.core(x.unsqueeze(1), self.state, reset=torch.from_numpy(first).unsqueeze(1))
        return y[:, 0]

    def last(self, x: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """[R, input_dim] to [R, features]: one more step of some rows, which must be fresh at the next."""
        y, _ = self.core(x.unsqueeze(1), self.state.select(rows.tolist()))
        return y[:, 0]

    def select(self, rows: NDArray[np.int64]) -> Any:
        """The states of some rows."""
        return self.state.select(rows.tolist())


class _EngineSteps(_Steps):
    """The same by the engine, in a tenth of the time; it has the weights as they are now."""

    def __init__(self, core: SSMN, state: StreamState) -> None:
        self.engine = Engine(core, streams=state.batch_size)
        self.engine.set_states(state)

    def __call__(self, x: Tensor, first: NDArray[np.bool_]) -> Tensor:
        for row in np.flatnonzero(first).tolist():
            self.engine.reset(row)
        return torch.from_numpy(self.engine.step(x.numpy()).copy())

    def last(self, x: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.engine.step(x.numpy(), streams=rows).copy())

    def select(self, rows: NDArray[np.int64]) -> StreamState:
        return self.engine.get_states(rows)


def _steps(core: RecurrentCore, state: Any) -> _Steps:
    """By the engine where it can run the core."""
    if isinstance(core, SSMN):
        with contextlib.suppress(BackendError, ConfigError):
            return _EngineSteps(core, state)
    return _Steps(core, state)


class _Run:
    """The agent, its optimizer, the environments and everything that a checkpoint holds."""

    def __init__(self, agent: Agent, envs: VectorEnv[Any, Any, Any], config: PPOConfig) -> None:
        self.agent, self.envs, self.config = agent, envs, config
        self.same_step = _resets_in_same_step(envs)
        self.optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.ends, self.returns = 0, [], []
        self.recent: deque[float] = deque(maxlen=100)
        self.advantage_unit = 0.0
        self.reward_scale = np.array([0.0, 0.0, 0.0])  # count, mean and variance of the discounted returns
        self.seconds = np.zeros((2, 2))  # of the rollouts and of everything; by the clock and of the processor
        self.first_step = 0

    def begin(self) -> None:
        """New episodes everywhere."""
        rows = self.envs.num_envs
        seed = int(np.random.SeedSequence([self.config.seed, self.step]).generate_state(1)[0] >> 1)
        self.seen, _ = self.envs.reset(seed=seed)
        self.first, self.void = np.ones(rows, dtype=bool), np.zeros(rows, dtype=bool)
        self.sums, self.discounted = np.zeros(rows), np.zeros(rows)
        self.state = self.agent.core.init_state(rows)
        self.first_step = self.step

    def advance(self) -> Progress:
        """A rollout and its update."""
        config, begun = self.config, _clocks()
        done = min(1.0, self.step / config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - 0.9 * done)
        rollout = self._collect()
        collected = _clocks()
        entropy, value_loss, kl = self._update(rollout, config.entropy * (1 - done))
        self.seconds += np.stack([collected - begun, _clocks() - begun])
        speeds = self.speeds()
        whole, alone = speeds["whole"], speeds["collected"]
        return Progress(
            self.step, config.steps, len(self.returns), float(np.mean(self.recent)) if self.recent else math.nan,
            entropy, value_loss, kl, whole, alone, max(0, config.steps - self.step) / whole,
        )  # fmt: skip

    def speeds(self) -> dict[str, float]:
        """As `PPOResult.speeds`."""
        names = ("collected", "processor_collected", "whole", "processor")
        seconds = self.seconds.flatten().clip(min=1e-9)
        return dict(zip(names, ((self.step - self.first_step) / seconds).tolist(), strict=True))

    @torch.no_grad()
    def _collect(self) -> _Rollout:
        agent, envs, before = self.agent, self.envs, self.state
        names = ("x", "first", "actions", "rewards", "terminated", "ended", "void")
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        steps, hidden, left = _steps(agent.core, before), [], []
        for _ in range(self.config.rollout):
            x = agent.observations(self.seen, self.first, learn=True)
            first = torch.from_numpy(self.first)
            hidden.append(steps(x, self.first))
            actions = agent.sample(agent.policy(hidden[-1]), self.generator)
            self.seen, rewards, terminated, truncated, info = envs.step(agent.to_environment(actions))
            ended = (terminated | truncated) & ~self.void
            rewards = np.where(self.void, 0.0, rewards)
            self._note(rewards, ended)
            self._measure(rewards, ended)
            cut = truncated & ~terminated
            left.append(self._left(info, cut, steps) if self.same_step and cut.any() else torch.zeros(len(cut)))
            # In the same step the next observation is of another episode; in the next step it is still of this one.
            is_over = ended if self.same_step else terminated & ~self.void
            step = (x, first, actions, rewards, is_over, ended, self.void)
            for column, value in zip(columns.values(), step, strict=True):
                column.append(value if isinstance(value, Tensor) else torch.from_numpy(value))
            none = np.zeros_like(ended)
            self.first, self.void = (ended, none) if self.same_step else (self.void, ended)
        self.state = steps.select(np.arange(envs.num_envs))
        hidden.append(steps(agent.observations(self.seen, self.first), self.first))
        taken = {name: torch.stack(column, 1) for name, column in columns.items()}
        unit = math.sqrt(self.reward_scale[2] + 1e-8)
        taken["rewards"] = (taken["rewards"] / unit).float() + self.config.discount * torch.stack(left, 1)
        output, values = agent.heads(torch.stack(hidden, 1))
        log_probs = agent.distribution(output[:, :-1]).log_prob(taken["actions"])
        return _Rollout(
            **taken, log_probs=log_probs, values=values[:, :-1], last_value=values[:, -1], state=before
        )  # fmt: skip

    def _note(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        self.step += len(rewards)
        self.sums += rewards
        finished = self.sums[ended].tolist()
        self.returns += finished
        self.ends += [self.step] * len(finished)
        self.recent.extend(finished)
        self.sums[ended] = 0

    def _measure(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        """Takes a step's rewards into the deviation of the discounted returns: a rollout is learned in units of it."""
        self.discounted = self.discounted * self.config.discount + rewards
        count, mean, variance = self.reward_scale
        new = len(rewards)
        shift, total = self.discounted.mean() - mean, count + new
        variance = (variance * count + self.discounted.var() * new + shift**2 * count * new / total) / total
        self.reward_scale = np.array([total, mean + shift * new / total, variance])
        self.discounted[ended] = 0

    def _left(self, info: dict[str, Any], rows: NDArray[np.bool_], steps: _Steps) -> Tensor:
        """[B], the value of where a truncated episode was stopped; 0 elsewhere."""
        chosen = np.flatnonzero(rows)
        final = np.stack([info["final_obs"][row] for row in chosen])
        x = self.agent.observations(final, np.zeros(len(chosen), dtype=bool))
        _, value = self.agent.heads(steps.last(x, chosen))
        return torch.zeros(len(rows)).index_put((torch.from_numpy(chosen),), value)

    def _update(self, rollout: _Rollout, entropy_weight: float) -> tuple[float, float, float]:
        config, counts = self.config, ~rollout.void
        advantages = rollout.advantages(config.discount, config.gae_lambda)
        targets = advantages + rollout.values
        taken = advantages[counts]
        # Of a solved task only noise and a rare mistake are left. In units of their own deviation the one mistake
        # would count as much as all that was learned; so the unit is the largest deviation, slowly forgotten.
        self.advantage_unit = max(float(taken.std()), _FORGET * self.advantage_unit, 1e-8)
        advantages = (advantages - taken.mean()) / self.advantage_unit
        figures = torch.zeros(3)
        for _ in range(config.epochs):
            order = torch.randperm(self.envs.num_envs, generator=self.generator)
            for rows in order.tensor_split(config.minibatches):
                output, values, _ = self.agent(rollout.x[rows], rollout.state.select(rows), rollout.first[rows])
                policy, valid = self.agent.distribution(output), counts[rows]
                change = policy.log_prob(rollout.actions[rows]) - rollout.log_probs[rows]
                ratio, gain = change.exp(), advantages[rows]
                gains = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain)
                entropy = policy.entropy()[valid].mean()
                value_loss = (values - targets[rows])[valid].square().mean()
                loss = config.value_weight * value_loss - gains[valid].mean() - entropy_weight * entropy
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self.agent.parameters(), config.clip_norm)
                if not math.isfinite(float(norm)):
                    raise TrainingError(
                        f"ppo: the gradient's norm is {float(norm)} after {self.step} steps; the last checkpoint is "
                        f"kept. Take a lower learning_rate."
                    )
                self.optimizer.step()
                kl = (ratio - 1 - change)[valid].mean()
                figures += torch.stack([entropy, value_loss, kl]).detach()
        return tuple((figures / (config.epochs * config.minibatches)).tolist())  # type: ignore[return-value]

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        arrays = {f"agent.{name}": tensor.numpy() for name, tensor in self.agent.state_dict().items()}
        for name, weight in self.agent.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                arrays[f"optimizer.{key}.{name}"] = value.numpy()
        arrays |= {
            "random": self.generator.get_state().numpy(), "reward_scale": self.reward_scale,
            "advantage_unit": np.array(self.advantage_unit),
            "ends": np.array(self.ends, np.int64), "returns": np.array(self.returns, np.float64),
        }  # fmt: skip
        write_file(path, arrays, {"kind": "checkpoint", "step": self.step, "settings": self._settings()})

    def restore(self, path: Path) -> None:
        """The reverse of `save`; only the number of steps may have changed."""
        arrays, header = read_file(path, kind="checkpoint")
        mine, theirs = self._settings(), header.get("settings")
        if not isinstance(theirs, dict) or {**theirs, "steps": 0} != {**mine, "steps": 0}:
            names = sorted(n for n in mine if n != "steps" and (theirs or {}).get(n, mine) != mine[n])
            raise TrainingError(f"ppo: {path} is of a run with other settings ({', '.join(names)}); use another out.")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.agent.load_state_dict(_under("agent.", tensors))
        for name, weight in self.agent.named_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{key}.{name}" in tensors]
            if keys:  # a frozen weight has none, nor has any before the first update
                self.optimizer.state[weight] = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
        self.generator.set_state(tensors["random"])
        self.reward_scale, self.advantage_unit = arrays["reward_scale"], float(arrays["advantage_unit"])
        self.ends, self.returns, self.step = arrays["ends"].tolist(), arrays["returns"].tolist(), header["step"]
        self.recent.extend(self.returns[-100:])

    def _settings(self) -> dict[str, Any]:
        rest = {"num_envs": self.envs.num_envs, "agent": _parts(self.agent)}
        return json.loads(json.dumps(dataclasses.asdict(self.config) | rest))


def load_agent(
    folder: str | os.PathLike[str], core: CoreBuilder, observations: spaces.Space[Any], actions: spaces.Space[Any]
) -> Agent:
    """The agent of a checkpoint that `train` wrote, for the same core and spaces.

    Raises:
        FileError: The file is missing or damaged.
        TrainingError: The core or the spaces are not those of the run.
    """
    arrays, header = read_file(Path(folder) / CHECKPOINT_FILE, kind="checkpoint")
    agent = Agent(core, observations, actions, header["settings"]["features"])
    mine, theirs = json.loads(json.dumps(_parts(agent))), header["settings"]["agent"]
    if mine != theirs:
        name = min(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
        raise TrainingError(
            f"ppo.load_agent: {name} is {theirs.get(name)} in {folder} but {mine.get(name)} in this agent; build it "
            f"with the run's own core and spaces."
        )
    agent.load_state_dict(_under("agent.", {name: torch.from_numpy(array) for name, array in arrays.items()}))
    return agent


def _parts(agent: Agent) -> dict[str, Any]:
    """What an agent must have in common with a checkpoint's: the shapes of its weights, the settings of its core."""
    shapes = {name: list(tensor.shape) for name, tensor in agent.state_dict().items()}
    core = agent.core.config.to_dict() if isinstance(agent.core, SSMN) else {}
    return shapes | {f"core.{name}": value for name, value in core.items()}


def _clocks() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
