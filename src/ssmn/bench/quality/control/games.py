"""Four environments of POPGym in numpy, many at a time (Morad et al., 2023; needs `pip install "sparse-stream[rl]"`).

The same draws and actions give the same observations, rewards and ends as POPGym's own, one by one
(`gymnasium.vector.SyncVectorEnv` with the same seed); a test holds them side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmn.errors import MissingExtraError, RangeError

try:
    from gymnasium import spaces
    from gymnasium.utils import seeding
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.bench.quality.control.games: {error}; it needs gymnasium: pip install 'sparse-stream[rl]'"
    ) from error

CARDS = 52
"""In a deck; card i is of suit i mod 4 and of colour i mod 2."""


class Game(VectorEnv, ABC):
    """What the games share: a random generator for each row, and a new episode in the step that ends one.

    Args:
        num_envs: Rows.
        observations: Space of one row's observation.
        actions: Space of one row's action.
    """

    def __init__(self, num_envs: int, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observations, actions
        self.observation_space = batch_space(observations, num_envs)
        self.action_space = batch_space(actions, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.generators: list[np.random.Generator] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[Any], dict[str, Any]]:  # type: ignore[override]
        """New episodes in all rows; row i draws as from `seed` + i."""
        if seed is not None or not self.generators:
            seeds = [None if seed is None else seed + row for row in range(self.num_envs)]
            self.generators = [seeding.np_random(row)[0] for row in seeds]
        self._begin(np.ones(self.num_envs, dtype=bool))
        return self._observe(), {}

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One step of every row; where one ends, the observation is the next episode's first."""
        rewards, terminated, truncated = self._play(np.asarray(actions))
        ended, seen, info = terminated | truncated, self._observe(), {}
        if ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ended):
                final[row] = seen[row]
            info = {"final_obs": final, "_final_obs": ended}
            self._begin(ended)
            seen = self._observe()
        return seen, rewards, terminated, truncated, info

    @abstractmethod
    def _begin(self, rows: NDArray[np.bool_]) -> None: ...

    @abstractmethod
    def _observe(self) -> NDArray[Any]: ...

    @abstractmethod
    def _play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]: ...


class _Cards(Game):
    """Cards are dealt one at a time until the decks are empty: every row is at the same card."""

    def __init__(self, num_envs: int, decks: int, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        super().__init__(num_envs, observations, actions)
        self.count = decks * CARDS
        self.dealt = 0
        self.cards = self._empty()

    def _empty(self) -> NDArray[np.int64]:
        return np.zeros((self.num_envs, self.count), np.int64)

    def _shuffle(self, into: NDArray[np.int64], row: int) -> None:
        deck = np.arange(self.count)
        self.generators[row].shuffle(deck)
        into[row] = deck[::-1]  # dealt from the end

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(rows).tolist():
            self._shuffle(self.cards, row)
        self.dealt = 1

    def _observe(self) -> NDArray[np.int64]:
        return self.cards[:, self.dealt - 1] % 4

    def _judge(self, right: NDArray[np.bool_], answers: int) -> NDArray[np.float64]:
        return np.where(right, 1.0, -1.0) / answers

    def _ends(self, left: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.full(self.num_envs, self.count - self.dealt == left), np.zeros(self.num_envs, dtype=bool)


class RepeatPrevious(_Cards):
    """The answer is the suit of the card of `k` - 1 steps ago."""

    def __init__(self, num_envs: int, decks: int = 1, k: int = 4) -> None:
        super().__init__(num_envs, decks, spaces.Discrete(4), spaces.Discrete(4))
        self.k = k

    def _play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        rewards = np.zeros(self.num_envs)
        if self.dealt >= self.k:
            rewards = self._judge(actions == self.cards[:, self.dealt - self.k] % 4, self.count - self.k)
        ends = self._ends(1)
        self.dealt += 1
        return rewards, *ends


class RepeatFirst(_Cards):
    """The answer is the suit of the first card."""

    def __init__(self, num_envs: int, decks: int = 1) -> None:
        super().__init__(num_envs, decks, spaces.Discrete(4), spaces.Discrete(4))

    def _play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        rewards, ends = self._judge(actions == self.cards[:, 0] % 4, self.count - 1), self._ends(1)
        self.dealt += 1
        return rewards, *ends


class CountRecall(_Cards):
    """A card and a question are dealt; the answer is how many cards of the asked colour there have been."""

    def __init__(self, num_envs: int, decks: int = 1) -> None:
        actions = spaces.Discrete(decks * CARDS // 2 + 1)
        super().__init__(num_envs, decks, spaces.MultiDiscrete([2, 2]), actions)
        self.questions = self._empty()

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(rows).tolist():
            self._shuffle(self.cards, row)
            self._shuffle(self.questions, row)
        self.dealt = 1

    def _observe(self) -> NDArray[np.int64]:
        return np.stack([self.cards[:, self.dealt - 1], self.questions[:, self.dealt - 1]], 1) % 2

    def _play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        asked = self.questions[:, self.dealt - 1 : self.dealt] % 2
        rewards = self._judge(actions == (self.cards[:, : self.dealt] % 2 == asked).sum(1), self.count - 1)
        self.dealt += 1
        return rewards, *self._ends(0)


class PositionOnlyCartPole(Game):
    """Gymnasium's CartPole seen without its velocities; a step is worth 1 / `length` (Barto et al., 1983)."""

    def __init__(self, num_envs: int, length: int = 200) -> None:
        self.limits = np.array([2.4, 12 * 2 * math.pi / 360])
        high = (2 * self.limits).astype(np.float32)
        super().__init__(num_envs, spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(2))
        self.length = length
        self.state = np.zeros((4, num_envs))
        self.steps = np.zeros(num_envs, np.int64)

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(rows).tolist():
            self.state[:, row] = self.generators[row].uniform(-0.05, 0.05, size=4)
        self.steps[rows] = 0

    def _observe(self) -> NDArray[np.float32]:
        return self.state[[0, 2]].T.astype(np.float32)

    def _play(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        x, speed, angle, turning = self.state
        force = np.where(actions == 1, 10.0, -10.0)
        cosine, sine = np.cos(angle), np.sin(angle)
        push = (force + 0.05 * np.square(turning) * sine) / 1.1
        spin = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * np.square(cosine) / 1.1))
        gain = push - 0.05 * spin * cosine / 1.1
        self.state = np.stack([x + 0.02 * speed, speed + 0.02 * gain, angle + 0.02 * turning, turning + 0.02 * spin])
        self.steps += 1
        terminated = np.any(np.abs(self.state[[0, 2]]) > self.limits[:, None], axis=0)
        return np.full(self.num_envs, 1 / self.length), terminated, self.steps >= self.length


GAMES = {
    "RepeatPreviousEasy": RepeatPrevious,
    "RepeatFirstEasy": RepeatFirst,
    "PositionOnlyCartPoleEasy": PositionOnlyCartPole,
    "CountRecallEasy": CountRecall,
    "RepeatPreviousMedium": lambda num_envs: RepeatPrevious(num_envs, decks=2, k=32),
}
"""By POPGym's names."""


def make(name: str, num_envs: int) -> Game:
    """`num_envs` rows of the game of that name.

    Raises:
        RangeError: There is no such game.

    Example:
        >>> from ssmn.bench.quality.control import games
        >>> envs = games.make("RepeatFirstEasy", 3)
        >>> first, _ = envs.reset(seed=0)
        >>> _, rewards, *_ = envs.step(first)
        >>> (rewards * 51).tolist()
        [1.0, 1.0, 1.0]
    """
    if name not in GAMES:
        raise RangeError(f"games.make: name={name!r}; wanted one of {', '.join(GAMES)}.")
    return GAMES[name](num_envs)
