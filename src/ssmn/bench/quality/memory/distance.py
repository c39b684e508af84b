"""Recall at a distance: eight facts, then up to 262,144 tokens of real text, then the questions.

The model is trained on rows of a thousand tokens. A test reads one long row with the state carried on and asks
at each distance from a copy of the state, so that the questions leave no trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import percent, settings_of, trained, written_share
from ssmn.bench.report import Table
from ssmn.config import LONG_TERM, SHORT_TERM, Plasticity
from ssmn.models.stack import Stack
from ssmn.probes import watch_importance
from ssmn.training.evaluate import measures_of, outputs_of
from ssmn.training.tasks import Batch, RecallInText

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

DISTANCES = (256, 1024, 4096, 16384, 65536, 262144)
_NEAR = 16384

RECIPES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "free": ([], ()),
    "sparse": (["model.write_threshold=0.5", "train.write_rate=0.05"], ("as trained", "frozen")),
}
"""Trained to recall alone; and with a target for the share of written tokens as well. The calls tried: () = all."""

CALLS: dict[str, tuple[Plasticity, int]] = {
    "as trained": (Plasticity(), DISTANCES[-1]),
    "threshold 0.1": (Plasticity(write_threshold=0.1), 65536),
    "threshold 0.3": (Plasticity(write_threshold=0.3), DISTANCES[-1]),
    "threshold 0.5": (Plasticity(write_threshold=0.5), 65536),
    "LONG_TERM": (LONG_TERM, 65536),
    "SHORT_TERM": (SHORT_TERM, _NEAR),
    "decay_lambda 1e-3": (Plasticity(decay_lambda=1e-3), _NEAR),
    "decay_lambda 1e-4": (Plasticity(decay_lambda=1e-4), _NEAR),
    "eta_scale 0.25": (Plasticity(eta_scale=0.25), _NEAR),
    "frozen": (Plasticity(frozen=True), 256),
}
"""How the memory is set while it reads, and how far that is followed."""

_QUICK = ["train.steps=2", "train.batch_size=2", "task.distance=20", "task.pairs=2", "task.text_bytes=20000"]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every recipe with every seed."""
    for seed in range(options.seeds):
        for recipe, (changes, calls) in RECIPES.items():
            text = [f"task.text={options.text}"]
            settings = {
                "recipe": recipe,
                "config": "text-recall",
                "set": [*changes, *text, *(_QUICK if options.quick else [])],
                "seed": seed,
                "calls": calls or tuple(CALLS),
                "distances": [16, 64] if options.quick else list(DISTANCES),
                "rows": 2 if options.quick else 8,
                "pairs": 2 if options.quick else 8,
            }
            yield Run(f"{recipe}-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Accuracy by setting and distance, and how strongly facts and text ask to be written."""
    model, settings = trained(run.settings, place), run.settings
    if model is None:
        return None
    task = settings_of(settings).task
    assert isinstance(task, RecallInText)
    task = dataclasses.replace(task, pairs=settings["pairs"])
    recall = {}
    for name in settings["calls"]:
        plasticity, farthest = CALLS[name]
        distances = [d for d in settings["distances"] if d <= farthest]
        found = recall_at(model, task, distances, settings["rows"], settings["seed"], plasticity)
        recall[name] = {str(distance): value for distance, value in found.items()}
    return {
        "recall": recall,
        "writes": write_shares(model, task, settings["rows"], settings["seed"], min(4096, settings["distances"][-1])),
        "parameters": model.num_parameters(),
        "state_bytes": model.init_state(1).nbytes,
    }


@torch.no_grad()
def recall_at(
    model: Stack,
    task: RecallInText,
    distances: Sequence[int],
    rows: int,
    seed: int = 0,
    plasticity: Plasticity | None = None,
    piece_length: int = 4096,
) -> dict[int, float]:
    """Share of right answers after each of `distances` tokens of held-out text, in one pass.

    Args:
        model: The model.
        task: Its task; the facts stand at the beginning.
        distances: Tokens of text between facts and questions, rising.
        rows: Streams, with facts of their own each.
        seed: Which facts and which text.
        plasticity: How strongly to learn and forget, also while the questions are asked.
        piece_length: Tokens that are read at once; has no influence on the figures.
    """
    batch = dataclasses.replace(task, distance=distances[-1]).batch(0, batch_size=rows, seed=seed, split="test")
    facts, asked = 3 * task.pairs, 2 * task.pairs
    questions = Batch(
        batch.inputs[:, -asked:], batch.targets[:, -asked:], batch.mask[:, -asked:], batch.source  # type: ignore[index]
    )  # fmt: skip
    state, read, found = None, 0, {}
    for distance in distances:
        while read < facts + distance:
            until = min(read + piece_length, facts + distance)
            piece = batch.inputs[:, read:until]
            silent = Batch(piece, piece, torch.zeros_like(piece, dtype=torch.bool), batch.source)
            _, state = outputs_of(model, silent, state, plasticity=plasticity)
            read = until
        output, _ = outputs_of(model, questions, state, plasticity=plasticity)
        right, count = measures_of(output, questions)["accuracy"]
        found[distance] = right / count
    return found


@torch.no_grad()
def write_shares(model: Stack, task: RecallInText, rows: int, seed: int, length: int) -> dict[str, float]:
    """Mean importance of the values of facts and of the text, and the shares of the text that thresholds let in."""
    batch = dataclasses.replace(task, distance=length).batch(1, batch_size=rows, seed=seed, split="test")
    silent = Batch(batch.inputs, batch.inputs, torch.zeros_like(batch.inputs, dtype=torch.bool), batch.source)
    with watch_importance(model) as seen:
        outputs_of(model, silent)
    facts = 3 * task.pairs
    values = [call[:, 2:facts:3] for calls in seen.values() for call in calls]
    text = {number: [call[:, facts : facts + length] for call in calls] for number, calls in seen.items()}
    return {
        "fact_importance": float(torch.cat([value.flatten() for value in values]).mean()),
        "text_importance": float(torch.cat([call.flatten() for calls in text.values() for call in calls]).mean()),
        **{f"text_above_{threshold}": written_share(text, threshold) for threshold in (0.1, 0.5)},
    }


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Every seed by recipe, setting and distance; and the gates."""
    distances = sorted({int(d) for run in finished.values() for d in run["results"]["recall"]["as trained"]})
    rows, gates = [], []
    for run in sorted(finished.values(), key=lambda run: (run["settings"]["recipe"], run["settings"]["seed"])):
        recipe, seed, results = run["settings"]["recipe"], str(run["settings"]["seed"]), run["results"]
        for name, found in results["recall"].items():
            cells = [f"{found[str(d)]:.3f}" if str(d) in found else "" for d in distances]
            rows.append([recipe, name, seed, *cells])
        writes = results["writes"]
        gates.append([
            recipe, seed, f"{writes['fact_importance']:.3f}", f"{writes['text_importance']:.4f}",
            percent(writes["text_above_0.1"]), percent(writes["text_above_0.5"]),
            f"{results['parameters']:,}", f"{results['state_bytes']:,}",
        ])  # fmt: skip
    head = ["training", "memory set to", "seed", *(f"{distance:,}" for distance in distances)]
    titles = ["training", "seed", "η of facts", "η of text", "text above 0.1", "above 0.5", "parameters", "state bytes"]
    return [
        Table("Eight facts after so many tokens of real text", head, rows, "share of right answers", texts=3),
        Table("How strongly they are written", titles, gates, texts=2),
    ]


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Accuracy against distance: a panel for the thresholds and one for η and λ."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for run in finished.values():
        recipe = run["settings"]["recipe"]
        for name, found in run["results"]["recall"].items():
            label = name if recipe == "free" else f"trained {recipe}"
            for panel in _panels_of(recipe, name):
                line = panels.setdefault(panel, {}).setdefault(label, {})
                for distance, value in found.items():
                    line.setdefault(int(distance), []).append(value)
    return plots.spread_lines(panels, look, "tokens of real text between facts and questions", "right answers")


def _panels_of(recipe: str, call: str) -> list[str]:
    gates, rates = "Write threshold", "η and λ, no threshold"
    if call == "frozen":
        return []
    if call == "as trained":
        return [gates, rates] if recipe == "free" else [gates]
    return [gates] if call.startswith("threshold") else [rates]


PART = Part("distance", "Eight facts after up to 262,144 tokens of real text.", runs, measure, tables, drawing)
