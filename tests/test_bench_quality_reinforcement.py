"""The part of the quality benchmark about reinforcement learning, and its games beside POPGym's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("popgym", reason='the extra "rl" is not installed')

from gymnasium.vector import AutoresetMode, SyncVectorEnv
from popgym import envs as popgym_envs

from ssmn.bench import report
from ssmn.bench.quality.control import games, reinforcement
from ssmn.bench.quality.frame import Options, Workplace, finished, work
from ssmn.errors import RangeError


@pytest.mark.parametrize("name", games.GAMES)
def test_a_game_is_popgyms_step_by_step(name: str) -> None:
    rows, steps = 3, 2 * (2 * 52) + 7
    kind: Any = getattr(popgym_envs, name)
    theirs = SyncVectorEnv([kind] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
    ours = games.make(name, rows)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    generator = np.random.default_rng(4)
    mine, _ = ours.reset(seed=11)
    want, _ = theirs.reset(seed=11)
    np.testing.assert_array_equal(mine, want)
    ended = 0
    for _ in range(steps):
        actions = generator.integers(ours.single_action_space.n, size=rows)  # type: ignore[attr-defined]
        mine, want = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine[:4], want[:4], strict=True):
            assert a.dtype == b.dtype or a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-6 if name.startswith("Position") else 0, atol=0)
        ends = mine[2] | mine[3]
        ended += int(ends.sum())
        for row in np.flatnonzero(ends):
            assert mine[4]["_final_obs"][row] and want[4]["_final_obs"][row]
            np.testing.assert_allclose(mine[4]["final_obs"][row], want[4]["final_obs"][row], rtol=1e-6)
    assert ended >= 2 * rows


def test_the_cart_is_stopped_at_its_length() -> None:
    envs = games.PositionOnlyCartPole(2, length=5)
    envs.reset(seed=0)
    for step in range(1, 6):
        _, rewards, terminated, truncated, _ = envs.step(np.array([0, 1]))
        assert truncated.tolist() == [step == 5] * 2
        assert not terminated.any()
        assert rewards.tolist() == [0.2, 0.2]


def test_an_unknown_game_is_refused() -> None:
    with pytest.raises(RangeError, match="name='Chess'; wanted one of RepeatPreviousEasy"):
        games.make("Chess", 3)


def test_means_and_the_point_where_it_is_solved() -> None:
    found = reinforcement.means(np.array([3, 10, 11, 25]), np.array([0.0, 1.0, 0.5, 0.75]), 10)
    assert found == {10: 0.5, 20: 0.5, 30: 0.75}
    curve = {str(step): value for step, value in found.items()}
    assert reinforcement.solved_at(curve, 0.6) == 30
    assert reinforcement.solved_at(curve, 0.8) is None
    assert reinforcement.solved_at(curve, None) is None


def test_cores_are_of_equal_size() -> None:
    (run,) = [run for run in reinforcement.runs(Options(seeds=1)) if run.name == "CountRecallEasy-ssmn-0.002-0"]
    counts = {}
    for core in reinforcement.CORES:
        made = reinforcement._builder({**run.settings, "core": core})(5, 64)
        counts[core] = sum(weight.numel() for weight in made.parameters())
    assert max(counts.values()) < 1.02 * min(counts.values())


def test_the_cores_of_a_game_have_one_recipe() -> None:
    for game in reinforcement.GAMES:
        for rate in reinforcement.RATES:
            runs = [reinforcement._run(game, core, rate, 1, Options()) for core in reinforcement.CORES]
            ours, *others = [{**run.settings, "core": ""} for run in runs]
            assert all({**other, **reinforcement.OURS} == ours for other in others)
            assert runs[0].settings["rows"] >= 32


def test_seeds_follow_the_better_finished_rate() -> None:
    games_of, names, last = reinforcement.runs(Options(seeds=2)), [], {"0.001": 0.3, "0.002": 0.5}
    run = next(games_of)
    while run.settings["game"] == "RepeatPreviousEasy":
        names.append(run.name)
        _, core, rate, seed = run.name.split("-")
        skipped = core == "lstm" or (core == "gru" and rate == "0.002")
        run = games_of.send(None if skipped or seed == "1" else {"last": last[rate]})
    assert [name.removeprefix("RepeatPreviousEasy-") for name in names] == [
        "ssmn-0.001-0", "ssmn-0.002-0", "ssmn-0.002-1", "gru-0.001-0", "gru-0.002-0", "gru-0.001-1", "lstm-0.001-0",
        "lstm-0.002-0",
    ]  # fmt: skip


def test_runs_measure_and_tabulate(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=2, quick=True)
    assert not work(reinforcement.PART, options, only=["RepeatFirstEasy-ssmn-*", "PositionOnlyCartPoleEasy-gru-*"])
    found = finished(reinforcement.PART, tmp_path)
    assert len(found) == 6
    assert {run["settings"]["recipe"]["seed"] for run in found.values()} == {0, 1}
    means, every = reinforcement.tables(found)
    assert [row[:2] for row in means.rows] == [["RepeatFirstEasy", "ssmn"], ["PositionOnlyCartPoleEasy", "gru"]]
    assert [row[5] for row in means.rows] == ["2", "2"]
    assert len(every.rows) == 6
    assert "| RepeatFirstEasy | ssmn |" in report.markdown_table(every)
    assert json.dumps(found)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=1, quick=True)
    run = next(reinforcement.runs(options))
    place = Workplace(options, tmp_path, lambda done, total, figures: True)
    settings = {**run.settings, "recipe": {**run.settings["recipe"], "steps": 1024}}
    longer = type(run)(run.name, settings)
    assert reinforcement.measure(longer, place) is None
    result = reinforcement.measure(longer, Workplace(options, tmp_path, lambda *_: False))
    assert result is not None and result["parameters"] > 0
