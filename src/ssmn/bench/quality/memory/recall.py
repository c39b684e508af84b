"""Multi-query recall against the bytes of state: Zoology's task, our layer and the field's in the same place.

Every model is the mixer under test, then a layer of window attention, in the same stack at the same width; full
attention and window attention alone have two layers of attention. The task has two sizes: the published one, which the
field's layers need many thousand steps to begin to learn, and a small one, which they learn here. One training with
4 pairs up to the most, in random order, is tested with each number of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import settings_of, trained
from ssmn.bench.quality.peers import PEERS
from ssmn.bench.report import Table
from ssmn.training.evaluate import evaluate_task
from ssmn.training.loop import LOG_FILE
from ssmn.training.tasks import SpreadRecall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

KINDS: dict[str, tuple[str, int]] = {
    "synaptic memory": ("plastic", 2),
    "Gated DeltaNet style": ("gated-delta", 1),
    "Mamba-2 style": ("ssd", 2),
    "retention style": ("retention", 1),
    "LSTM": ("lstm", 2),
    "window attention": ("static", 2),
    "full attention": ("static", 2),
}
"""Kind of the first layer, and heads: one where that gives the largest state, as ours has."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of the task, and how models are trained for it."""

    title: str
    length: int
    """Tokens of a row, and the window of full attention."""
    window: int
    """Window of the attention of all others."""
    pairs: tuple[int, ...]
    """Pairs that are tested; the last is the most there are in training."""
    widths: tuple[int, ...]
    """The first is that of the further seeds."""
    rates: tuple[float, ...]
    changes: tuple[str, ...] = ()
    """What is set beside `mqar-spread`."""


SIZES: dict[str, Size] = {
    "small": Size(
        title="64 tokens, vocabulary of 128, 800 steps of 64 rows",
        length=64, window=4, pairs=(4, 8, 16), widths=(16, 8, 32), rates=(5e-3, 1e-2, 2e-2),
        changes=("task.vocab_size=128", "task.length=64", "task.pairs=16", "train.steps=800", "train.batch_size=64"),
    ),
    "published": Size(
        title="256 tokens, vocabulary of 8,192, 600 steps of 32 rows",
        length=256, window=8, pairs=(4, 8, 16, 32, 64), widths=(64, 32, 128), rates=(2e-3, 5e-3),
    ),
}  # fmt: skip

_QUICK = ["train.steps=2", "train.batch_size=2", "task.pairs=4", "task.vocab_size=300"]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Each size and kind: every width with every learning rate, then the first width's best one with other seeds."""
    for size, settings in SIZES.items():
        for name in KINDS:
            found = {}
            for width, rate in itertools.product(settings.widths, settings.rates):
                found[width, rate] = yield _run(size, name, width, rate, 0, options)
            first = {rate: found[settings.widths[0], rate] for rate in settings.rates}
            if all(result is not None for result in first.values()):
                best = max(first, key=lambda rate: _mean(first[rate]))
                for seed in range(1, options.seeds):
                    yield _run(size, name, settings.widths[0], best, seed, options)


def _run(size: str, name: str, width: int, rate: float, seed: int, options: Options) -> Run:
    of, (kind, heads) = SIZES[size], KINDS[name]
    assert kind in ("plastic", "static", *PEERS)
    window = of.length if name == "full attention" else of.window
    changes = [
        f'model.layer_types=["{kind}", "static"]', f"model.window_size={window}", f"model.hidden_dim={width}",
        f"model.num_heads={heads}", f"train.learning_rate={rate}", *of.changes, *(_QUICK if options.quick else []),
    ]  # fmt: skip
    settings = {
        "kind": name, "width": width, "rate": rate, "config": "mqar-spread", "set": changes, "seed": seed,
        "pairs": [2, 4] if options.quick else list(of.pairs), "batches": 1 if options.quick else 4,
    }  # fmt: skip
    prefix = "" if size == "published" else f"{size}-"
    return Run(f"{prefix}{name.replace(' ', '-')}-{width}-{rate:g}-{seed}", settings)


def _of_size(finished: Mapping[str, Result]) -> dict[str, list[Result]]:
    """The runs of each size that has any."""
    small = [run for key, run in finished.items() if key.startswith("small-")]
    published = [run for key, run in finished.items() if not key.startswith("small-")]
    return {size: of for size, of in (("small", small), ("published", published)) if of}


def _mean(result: Result | None) -> float:
    return -1.0 if result is None else sum(result["accuracy"].values()) / len(result["accuracy"])


def measure(run: Run, place: Workplace) -> Result | None:
    """Accuracy by number of pairs, bytes of state after a row, and the training's own accuracy as it went."""
    model, settings = trained(run.settings, place), run.settings
    if model is None:
        return None
    task = settings_of(settings).task
    assert isinstance(task, SpreadRecall)
    accuracy = {}
    for pairs in settings["pairs"]:
        asked = dataclasses.replace(task, pairs=pairs)
        figures = evaluate_task(model, asked, batches=settings["batches"], seed=settings["seed"])
        accuracy[str(pairs)] = figures["accuracy"]
    return {
        "accuracy": accuracy,
        "state_bytes": model.init_state(1).nbytes,
        "parameters": model.num_parameters(),
        "first_step_above_half": _first_above_half(place),
    }


def _first_above_half(place: Workplace) -> int | None:
    """The first logged step at which half of the answers of a training batch were right."""
    for line in (place.folder / "model" / LOG_FILE).read_text().splitlines():
        entry = json.loads(line)
        if entry.get("figure") == "accuracy" and entry["value"] >= 0.5:
            return entry["step"]
    return None


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Of each size every run: accuracy by number of pairs beside the bytes of state."""
    return [_table(SIZES[size], of) for size, of in _of_size(finished).items()]


def _table(size: Size, finished: list[Result]) -> Table:
    order = list(KINDS)
    rows = []
    for run in sorted(
        finished,
        key=lambda run: (
            order.index(run["settings"]["kind"]), run["settings"]["width"], run["settings"]["rate"],
            run["settings"]["seed"],
        ),
    ):  # fmt: skip
        settings, results = run["settings"], run["results"]
        first = results["first_step_above_half"]
        rows.append([
            settings["kind"], str(settings["width"]), f"{settings['rate']:g}", str(settings["seed"]),
            f"{results['state_bytes']:,}", f"{results['parameters']:,}",
            *(f"{results['accuracy'][str(pairs)]:.3f}" for pairs in settings["pairs"]),
            "never" if first is None else str(first),
        ])  # fmt: skip
    pairs = finished[0]["settings"]["pairs"]
    head = ["first layer", "width", "rate", "seed", "state bytes", "parameters", *map(str, pairs), "half at step"]
    return Table(f"Recall by number of pairs: {size.title}", head, rows, "share of right answers", texts=4)


def _best(runs: list[Result]) -> list[Result]:
    """Those with the learning rate that is best at their kind and width, with all seeds."""
    rates: dict[tuple[str, int], float] = {}
    for run in sorted(runs, key=lambda run: _mean(run["results"])):
        settings = run["settings"]
        if settings["seed"] == 0:
            rates[settings["kind"], settings["width"]] = settings["rate"]
    return [
        run for run in runs
        if run["settings"]["rate"] == rates.get((run["settings"]["kind"], run["settings"]["width"]))
    ]  # fmt: skip


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Accuracy against the bytes of state, each width with its best learning rate: half of the most pairs, and all.

    Of the small size if it has been run, since there the layers differ in what they hold and not in when they begin to
    learn.
    """
    from ssmn import plots

    runs = next(iter(_of_size(finished).values()))
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    shown = runs[0]["settings"]["pairs"]
    for pairs in dict.fromkeys((shown[len(shown) // 2], shown[-1])):
        lines = panels.setdefault(f"{pairs} pairs", {})
        for run in sorted(_best(runs), key=lambda run: list(KINDS).index(run["settings"]["kind"])):
            points = lines.setdefault(run["settings"]["kind"], {})
            points.setdefault(run["results"]["state_bytes"], []).append(run["results"]["accuracy"][str(pairs)])
    return plots.spread_lines(panels, look, "bytes of state", "right answers")


PART = Part("recall", "Multi-query recall against the bytes of state, all layers.", runs, measure, tables, drawing)
