"""Reinforcement learning with a memory: POPGym's games, our core, a GRU and an LSTM under one recipe.

Every core has the same number of parameters, sees the same observations and is trained by `ssmn.training.ppo` with
the same settings on the same number of environment steps. Only the learning rate is chosen, for each core and game, out
of the same two by the first seed. A game's returns lie in [-1, 1] (the cart's in [0, 1]).
"""

from __future__ import annotations

import statistics
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

CORES = ("ssmn", "gru", "lstm")
RATES = (1e-3, 2e-3)
ROWS = 64
OURS = {"ffn": 62, "plasticity_eta": 0.1, "memory_heads": 4}
"""Of our core alone: gentle writes into four memories that forget at four rates, so that it can count. The narrower
feed-forward makes up for the weights of the further heads."""


class Task(NamedTuple):
    """What is asked in a game, of every core the same."""

    steps: int
    """Environment steps."""
    discount: float
    """γ: 0 where an action changes nothing of what comes, which would only be noise in its advantage."""
    solved: float | None = None
    """Mean return that counts as solved."""


GAMES = {
    "RepeatPreviousEasy": Task(150_000, 0.0, solved=0.99),
    "RepeatFirstEasy": Task(150_000, 0.0, solved=0.99),
    "PositionOnlyCartPoleEasy": Task(150_000, 0.99, solved=0.95),
    "CountRecallEasy": Task(300_000, 0.0),
    "RepeatPreviousMedium": Task(1_000_000, 0.0),
}
LONG_GAME = "RepeatPreviousMedium"
"""One seed and one rate."""

LAST = 256
"""Episodes at the end of the training whose mean return is its result."""

BIN = 10_000
"""Steps of one point of a curve."""


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every game and core: the first seed with both rates, the others with the better of those that are finished."""
    for game in GAMES:
        rates, seeds = (RATES[:1], 1) if game == LONG_GAME else (RATES, options.seeds)
        for core in CORES:
            found: dict[float, Result] = {}
            for rate in rates:
                result = yield _run(game, core, rate, 0, options)
                if result is not None:
                    found[rate] = result
            for seed in range(1, seeds) if found else ():
                yield _run(game, core, max(found, key=lambda rate: found[rate]["last"]), seed, options)


def _run(game: str, core: str, rate: float, seed: int, options: Options) -> Run:
    task = GAMES[game]
    passes = {"epochs": 1, "minibatches": 2} if options.quick else {"epochs": 4, "minibatches": 8}
    recipe = {
        "steps": 128 if options.quick else task.steps, "rollout": 64, **passes, "learning_rate": rate,
        "discount": task.discount, "gae_lambda": 0.95, "entropy": 0.01, "seed": seed,
    }  # fmt: skip
    settings = {
        "game": game, "core": core, "rows": 8 if options.quick else ROWS, "recipe": recipe,
        "width": 16 if options.quick else 64, "ffn": 16 if options.quick else 64, "layers": ["static", "plastic"],
        "window": 8,
        "episodes": 8 if options.quick else 256,
    } | (OURS if core == "ssmn" else {})  # fmt: skip
    return Run(f"{game}-{core}-{rate:g}-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Returns of the episodes as they were learned from, and afterwards of the agent's best actions."""
    import torch

    from ssmn.bench.quality.control import games
    from ssmn.training import ppo

    settings, threads = run.settings, torch.get_num_threads()
    recipe = ppo.PPOConfig(**settings["recipe"])

    def show(progress: ppo.Progress) -> bool:
        return place.on_step(progress.step, progress.steps, ppo.figures_of(progress))

    torch.set_num_threads(1)  # a core this small only loses by more
    try:
        envs = games.make(settings["game"], settings["rows"])
        result = ppo.train(
            _builder(settings), envs, recipe, out=place.folder,
            resume=(place.folder / ppo.CHECKPOINT_FILE).exists(), on_rollout=show,
        )  # fmt: skip
        if result.interrupted:
            return None
        greedy = ppo.evaluate(result.agent, games.make(settings["game"], settings["rows"]), settings["episodes"], 1000)
    finally:
        torch.set_num_threads(threads)
    rollout = settings["rows"] * recipe.rollout
    return {
        "last": _mean(result.returns[-LAST:]),
        "best": max(means(result.ends, result.returns, rollout).values(), default=float("nan")),
        "greedy": float(greedy.mean()),
        "curve": {str(step): value for step, value in means(result.ends, result.returns, BIN).items()},
        "parameters": sum(weight.numel() for weight in result.agent.core.parameters()),
        "state_bytes": result.agent.core.init_state(1).nbytes,
        "speeds": result.speeds,
    }


def _builder(settings: Mapping[str, Any]) -> Any:
    """The core that the settings name; a rival is as large as ours would be."""
    from ssmn.training import ppo
    from ssmn.training.cores import GatedCore

    own = {name: settings[name] for name in ("plasticity_eta", "memory_heads") if name in settings}
    layers = tuple(settings["layers"])
    ours = ppo.ssmn_core(settings["width"], layers, settings["window"], ffn_dim=settings["ffn"], **own)
    if settings["core"] == "ssmn":
        return ours

    def rival(input_dim: int, output_dim: int) -> GatedCore:
        size = ours(input_dim, output_dim).num_parameters()
        return GatedCore.of_size(settings["core"], input_dim, output_dim, size)

    return rival


def means(ends: NDArray[np.int64], returns: NDArray[np.float64], width: int) -> dict[int, float]:
    """Mean return of the episodes that ended within every `width` steps, by the last of those steps."""
    numbers = (ends - 1) // width
    return {int(number + 1) * width: _mean(returns[numbers == number]) for number in np.unique(numbers)}


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def solved_at(curve: Mapping[str, float], target: float | None) -> int | None:
    """The first point of a curve that reaches the target."""
    reached = (int(step) for step, value in curve.items() if target is not None and value >= target)
    return min(reached, default=None)


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Every run, and the mean over the seeds of the better learning rate."""
    rows, groups = [], _groups(finished)
    for run in sorted(finished.values(), key=_place):
        settings, results = run["settings"], run["results"]
        solved = solved_at(results["curve"], GAMES[settings["game"]].solved)
        speeds = results["speeds"]
        rows.append([
            settings["game"], settings["core"], f"{settings['recipe']['learning_rate']:g}",
            str(settings["recipe"]["seed"]), f"{settings['recipe']['steps']:,}", f"{results['parameters']:,}",
            f"{results['last']:.3f}", f"{results['best']:.3f}", f"{results['greedy']:.3f}",
            "" if solved is None else f"{solved:,}", f"{speeds['processor']:,.0f}",
            f"{speeds['processor_collected']:,.0f}",
        ])  # fmt: skip
    head = [
        "game", "core", "rate", "seed", "steps", "parameters", "last", "best rollout", "greedy", "solved at",
        "steps/s", "collected/s",
    ]  # fmt: skip
    note = (
        "mean return: of the last 256 episodes of the training, of its best rollout (POPGym's MMER), of 256 fresh "
        "episodes with the likeliest actions; environment steps per second of processor time, with the updates and "
        "without"
    )
    means_of = []
    for (game, core), chosen in groups.items():
        cells = [_spread([run["results"][name] for run in chosen]) for name in ("last", "best", "greedy")]
        speed = statistics.mean(run["results"]["speeds"]["processor"] for run in chosen)
        means_of.append([game, core, *cells, str(len(chosen)), f"{speed:,.0f}"])
    titles = ["game", "core", "last", "best rollout", "greedy", "seeds", "steps/s"]
    return [
        Table("POPGym, mean over the seeds", titles, means_of, "mean return, lowest and highest", texts=2),
        Table("POPGym, every run", head, rows, note, texts=4),
    ]


def _groups(finished: Mapping[str, Result]) -> dict[tuple[str, str], list[Result]]:
    """The runs of each game and core with the learning rate that was better for the first seed."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for run in sorted(finished.values(), key=_place):
        groups.setdefault((run["settings"]["game"], run["settings"]["core"]), []).append(run)
    for name, found in groups.items():
        best = max(found, key=lambda run: (run["settings"]["recipe"]["seed"] == 0, run["results"]["last"]))
        rate = best["settings"]["recipe"]["learning_rate"]
        groups[name] = [run for run in found if run["settings"]["recipe"]["learning_rate"] == rate]
    return groups


def _place(run: Result) -> tuple[Any, ...]:
    settings = run["settings"]
    recipe = settings["recipe"]
    return ([*GAMES].index(settings["game"]), CORES.index(settings["core"]), recipe["seed"],
            RATES.index(recipe["learning_rate"]))  # fmt: skip


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Mean return against thousands of environment steps, a panel for each game."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for (game, core), chosen in _groups(finished).items():
        points = panels.setdefault(game, {}).setdefault(core, {})
        for run in chosen:
            for step, value in run["results"]["curve"].items():
                points.setdefault(float(step) / 1000, []).append(value)
    return plots.spread_lines(panels, look, "thousand environment steps", "mean return", x_log=False, y_range=None)


PART = Part("reinforcement", "POPGym's games by PPO: our core, a GRU and an LSTM.", runs, measure, tables, drawing)
