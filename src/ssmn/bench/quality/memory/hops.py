"""Multi-hop recall: R rounds of internal chat answer questions of R + 1 hops."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import settings_of, trained
from ssmn.bench.report import Table
from ssmn.config import Plasticity
from ssmn.training.evaluate import evaluate_task

CASES: dict[str, tuple[str, list[str]]] = {
    "2 hops": ("hop2", []),
    "2 hops, no chat": ("hop2-no-chat", []),
    "3 hops": ("hop3", []),
    "3 hops, no chat": ("hop3", ["model.chat_rounds=0"]),
}
"""Shipped configuration and changes of each case."""

_QUICK = ["train.steps=2", "task.chains=3", "task.vocab_size=40"]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Every case with every seed."""
    for seed in range(options.seeds):
        for case, (config, changes) in CASES.items():
            changed = [*changes, *(_QUICK if options.quick else [])]
            settings = {"case": case, "config": config, "set": changed, "seed": seed}
            yield Run(f"{case.replace(', ', '-').replace(' ', '-')}-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Accuracy with every number of rounds up to the model's own."""
    model = trained(run.settings, place)
    if model is None:
        return None
    task, seed = settings_of(run.settings).task, run.settings["seed"]
    assert task is not None
    accuracy = {
        str(rounds): evaluate_task(model, task, seed=seed, plasticity=Plasticity(chat_rounds=rounds))["accuracy"]
        for rounds in range(model.config.chat_rounds + 1)
    }
    return {"rounds": model.config.chat_rounds, "accuracy": accuracy, "chance": 1 / task.model_settings()["vocab_size"]}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """A row for each case and number of rounds, a column for each seed."""
    seeds = sorted({run["settings"]["seed"] for run in finished.values()})
    rows = []
    for case in CASES:
        of_case = {run["settings"]["seed"]: run["results"] for run in finished.values() if _is_of(run, case)}
        rounds = {result["rounds"] for result in of_case.values()}
        for used in range(max(rounds, default=-1), -1, -1):
            found = [of_case[seed]["accuracy"][str(used)] if seed in of_case else None for seed in seeds]
            cells = ["" if value is None else f"{value:.4f}" for value in found]
            rows.append([case, str(max(rounds)), str(used), *cells])
    head = ["trained on", "rounds trained", "rounds used", *(f"seed {seed}" for seed in seeds)]
    return [Table("Multi-hop recall with one plastic layer", head, rows, "share of right answers", texts=3)]


def _is_of(run: Mapping[str, Any], case: str) -> bool:
    return run["settings"]["case"] == case


PART = Part("hops", "Multi-hop recall by rounds of internal chat.", runs, measure, tables)
