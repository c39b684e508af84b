"""Multi-query recall against the bytes of state: Zoology's task, our layer and the field's in the same place.

Every model is the mixer under test, then a layer of window attention, in the same stack at the same width; full
attention and window attention alone have two layers of attention. One training with 4 to 64 pairs, in random
order, is tested with each number of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Mapping
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

LENGTH = 256
WINDOW = 8

KINDS: dict[str, tuple[str, int, int]] = {
    "synaptic memory": ("plastic", WINDOW, 2),
    "Gated DeltaNet style": ("gated-delta", WINDOW, 1),
    "Mamba-2 style": ("ssd", WINDOW, 2),
    "retention style": ("retention", WINDOW, 1),
    "LSTM": ("lstm", WINDOW, 2),
    "window attention": ("static", WINDOW, 2),
    "full attention": ("static", LENGTH, 2),
}
"""Kind of the first layer, window of the attention, and heads: one where that gives the largest state, as ours has."""

RATES = (2e-3, 5e-3)
WIDTHS = (64, 32, 128)
PAIRS = (4, 8, 16, 32, 64)

_QUICK = ["train.steps=2", "train.batch_size=2", "task.pairs=4", "task.vocab_size=300"]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every kind: the first width with every learning rate, then with the best one the other seeds and widths."""
    for name in KINDS:
        found = {}
        for rate in RATES:
            found[rate] = yield _run(name, WIDTHS[0], rate, 0, options)
        if any(result is None for result in found.values()):
            continue
        best = max(found, key=lambda rate: _mean(found[rate]))
        for seed in range(1, options.seeds):
            yield _run(name, WIDTHS[0], best, seed, options)
        for width in WIDTHS[1:]:
            yield _run(name, width, best, 0, options)


def _run(name: str, width: int, rate: float, seed: int, options: Options) -> Run:
    kind, window, heads = KINDS[name]
    assert kind in ("plastic", "static", *PEERS)
    changes = [
        f'model.layer_types=["{kind}", "static"]', f"model.window_size={window}", f"model.hidden_dim={width}",
        f"model.num_heads={heads}",        f"train.learning_rate={rate}", *(_QUICK if options.quick else []),
    ]  # fmt: skip
    settings = {
        "kind": name, "width": width, "rate": rate, "config": "mqar-spread", "set": changes, "seed": seed,
        "pairs": [2, 4] if options.quick else list(PAIRS), "batches": 1 if options.quick else 4,
    }  # fmt: skip
    return Run(f"{name.replace(' ', '-')}-{width}-{rate:g}-{seed}", settings)


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
    """Every run: accuracy by number of pairs beside the bytes of state."""
    order = list(KINDS)
    rows = []
    for run in sorted(
        finished.values(),
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
    pairs = next(iter(finished.values()))["settings"]["pairs"]
    head = ["first layer", "width", "rate", "seed", "state bytes", "parameters", *map(str, pairs), "half at step"]
    return [Table("Recall by number of pairs in 256 tokens", head, rows, "share of right answers", texts=4)]


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Accuracy against the bytes of state with the best learning rate of each: 16 pairs, and 64."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    shown = next(iter(finished.values()))["settings"]["pairs"]
    for pairs in dict.fromkeys((shown[len(shown) // 2], shown[-1])):
        lines = panels.setdefault(f"{pairs} pairs", {})
        for name in KINDS:
            chosen = [run for run in finished.values() if run["settings"]["kind"] == name]
            if not chosen:
                continue
            best = max(chosen, key=lambda run: (run["settings"]["width"] == WIDTHS[0], _mean(run["results"])))
            points = lines.setdefault(name, {})
            for run in chosen:
                if run["settings"]["rate"] == best["settings"]["rate"]:
                    points.setdefault(run["results"]["state_bytes"], []).append(run["results"]["accuracy"][str(pairs)])
    return plots.spread_lines(panels, look, "bytes of state", "right answers")


PART = Part("recall", "Multi-query recall against the bytes of state, all layers.", runs, measure, tables, drawing)
