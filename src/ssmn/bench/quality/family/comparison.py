"""The Memory-Native family side by side: the same stack with another memory in it, on eight tasks.

Every model is the memory under test, then a layer of window attention, both with their feed-forward layers, in the
same stack. Compared twice: with equal numbers of parameters (the same width, the feed-forward fills up), and with
equal bytes in the memory under test (each as wide as that allows). Everyone has the same batches, optimiser, steps and
learning rates to choose from.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ssmn.bench.quality.family.tasks import TASK_NAMES, FamilyTask, family_task
from ssmn.bench.quality.family.training import train
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.peers import PEERS, of_size
from ssmn.bench.report import Table
from ssmn.config import SSMNConfig
from ssmn.layers.blocks import build_block
from ssmn.models import SSMN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

MEMBERS: dict[str, str] = {
    "SSMN": "plastic",
    "AMN": "amn",
    "LRU": "lru",
    "Hopfield": "hopfield",
    "NTM": "ntm",
    "LSTM": "lstm",
    "GRU": "gru",
    "window alone": "static",
}
"""Kind of the first layer of each; the last one has no memory beyond the window."""
CLOCKS = {"plastic", "amn", "lru"}
"""Kinds that take the elapsed time as time."""

WIDTH, HEADS, WINDOW, SLOTS = 32, 2, 4, 32
PARAMETERS = 60_000
STATE_BYTES = 2_048
"""Of the memory under test, in the second comparison."""
WIDTHS, NARROW = range(8, 513, 4), 64
"""Widths to choose from there, and that of the feed-forward."""
RATES = (3e-3, 1e-2)
STEPS, ROWS = 400, 24
TEST_BATCHES, TEST_ROWS = 8, 64
"""Each batch has a length of its own, where a task has several."""
WARMUP = 30


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Equal parameters, then equal bytes: for each task and member every learning rate, then more seeds of the best."""
    names = TASK_NAMES[: 2 if options.quick else None]
    for equal in ("parameters", "bytes"):
        for task in names:
            for member in MEMBERS:
                if equal == "bytes" and MEMBERS[member] == "static":
                    continue  # its window is all that it has
                found = {}
                for rate in RATES[: 1 if options.quick else None]:
                    found[rate] = yield _run(equal, task, member, rate, 0, options)
                if any(result is None for result in found.values()):
                    continue
                best = min(found, key=lambda rate: _error(found[rate]))
                for seed in range(1, options.seeds):
                    yield _run(equal, task, member, best, seed, options)


def _run(equal: str, task: str, member: str, rate: float, seed: int, options: Options) -> Run:
    settings = {
        "equal": equal, "task": task, "member": member, "rate": rate, "seed": seed,
        "steps": 2 if options.quick else STEPS, "rows": 3 if options.quick else ROWS,
        "test_batches": 2 if options.quick else TEST_BATCHES, "test_rows": 4 if options.quick else TEST_ROWS,
    }  # fmt: skip
    name = f"{equal}-{task}-{member}-{rate:g}-{seed}".replace(" ", "-").lower()
    return Run(name, settings)


def _error(result: Result | None) -> float:
    return math.inf if result is None or not math.isfinite(result["error"]) else result["error"]


def model_of(member: str, task: FamilyTask, equal: str) -> SSMN:
    """The stack with this memory in it, of the size that the comparison asks for."""
    kind = MEMBERS[member]
    assert kind in ("plastic", "amn", "lru", "hopfield", "ntm", "static", *PEERS)
    config = SSMNConfig(
        input_dim=task.input_dim, output_dim=task.output_dim, hidden_dim=WIDTH, num_layers=2, num_heads=HEADS,
        layer_types=(kind, "static"), window_size=WINDOW, memory_slots=SLOTS, memory_heads=1,
    )  # fmt: skip
    if equal == "parameters":
        return SSMN(of_size(config, PARAMETERS))
    return SSMN(min((_of_width(config, width) for width in WIDTHS), key=lambda made: _distance(kind, made)))


def _of_width(config: SSMNConfig, width: int) -> SSMNConfig:
    slots = max(2, STATE_BYTES // (8 * width))  # a memory of slots is as long as the bytes allow
    return dataclasses.replace(config, hidden_dim=width, ffn_dim=NARROW, memory_slots=min(SLOTS, slots))


def _distance(kind: str, config: SSMNConfig) -> float:
    """How far the memory is from the bytes that are wanted; among equals the wider one."""
    return abs(math.log(memory_bytes(kind, config) / STATE_BYTES)) - 1e-6 * config.hidden_dim


def memory_bytes(kind: str, config: SSMNConfig) -> int:
    """Bytes that a layer of this kind keeps per stream."""
    with torch.device("meta"):  # sizes alone, no weights
        return build_block(kind, config).init_state(1).nbytes


def share_of(step: int, steps: int) -> float:
    """The part of the learning rate that a step takes: a warm-up, and a cosine to a fiftieth."""
    return min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)


def measure(run: Run, place: Workplace) -> Result | None:
    """Trains on batches drawn afresh and tests on others; a stopped run begins anew."""
    settings = run.settings
    task = family_task(settings["task"], place.options.quick)
    torch.manual_seed(settings["seed"])
    model, kind = model_of(settings["member"], task, settings["equal"]), MEMBERS[settings["member"]]
    steps = settings["steps"]

    def answers(step: int, rows: int, split: str) -> Any:
        episode = task.batch(step, rows, settings["seed"], split)
        elapsed = episode.elapsed if kind in CLOCKS else None
        return model(episode.x, elapsed=elapsed)[0], episode

    begun, worked = time.monotonic(), time.process_time()
    losses = train(
        model, lambda step: task.loss(*answers(step, settings["rows"], "train")), settings["rate"], steps,
        partial(share_of, steps=steps), place.on_step,
    )  # fmt: skip
    if losses is None:
        return None
    spent = {"seconds": time.monotonic() - begun, "processor_seconds": time.process_time() - worked}
    with torch.no_grad():
        tests = (answers(number, settings["test_rows"], "test") for number in range(settings["test_batches"]))
        errors = [task.error(given, episode) for given, episode in tests]
    return {
        "error": sum(errors) / len(errors), "measure": task.measure,
        "curve": [[number, loss] for number, loss in enumerate(losses, 1) if number % 50 == 0 or number == steps],
        "parameters": model.num_parameters(), "hidden_dim": model.config.hidden_dim,
        "state_bytes": model.init_state(1).nbytes, "memory_bytes": model.blocks[0].init_state(1).nbytes,
        "training": spent,
    }  # fmt: skip


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """For each comparison a row for each member, with its error on every task; then what it costs."""
    made = []
    for equal, title in (("parameters", f"Equal parameters ({PARAMETERS:,})"),
                         ("bytes", f"Equal bytes in the memory ({STATE_BYTES:,})")):  # fmt: skip
        chosen = [run for run in finished.values() if run["settings"]["equal"] == equal]
        if not chosen:
            continue
        measures = {run["settings"]["task"]: run["results"]["measure"] for run in chosen}
        shown = [task for task in TASK_NAMES if task in measures]
        rows = []
        for member in MEMBERS:
            own = [run for run in chosen if run["settings"]["member"] == member]
            if own:
                cells = [_cell([run for run in own if run["settings"]["task"] == task]) for task in shown]
                rows.append([member, *cells, *_costs(own)])
        head = ["memory", *shown, "parameters", "bytes of memory", "width", "ms per step"]
        caption = "; ".join(f"{task}: {measures[task]}" for task in shown)
        caption += ". Mean over seeds (their number), the better learning rate"
        made.append(Table(title, head, rows, caption, texts=1))
    return made


def _cell(own: list[Result]) -> str:
    best = _best(own)
    if not best:
        return ""
    mean = sum(run["results"]["error"] for run in best) / len(best)
    return f"{mean:.3f} ({len(best)})"


def _best(own: list[Result]) -> list[Result]:
    """The runs with the learning rate that was best with seed 0."""
    first = [run for run in own if run["settings"]["seed"] == 0]
    if not first:
        return []
    rate = min(first, key=lambda run: _error(run["results"]))["settings"]["rate"]
    return [run for run in own if run["settings"]["rate"] == rate]


def _costs(own: list[Result]) -> list[str]:
    results = [run["results"] for run in own]
    low, high = (pick(result["parameters"] for result in results) for pick in (min, max))
    spent = sorted(run["results"]["training"]["processor_seconds"] / run["settings"]["steps"] for run in own)
    return [
        f"{low:,}" if high - low < 0.02 * high else f"{low:,} to {high:,}",
        f"{results[0]['memory_bytes']:,}",
        str(results[0]["hidden_dim"]),
        f"{1e3 * spent[len(spent) // 2]:.1f}",
    ]


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """A panel for each task: the error of every member at equal parameters, the smallest on top."""
    from ssmn import plots

    panels: dict[str, dict[str, float]] = {}
    for task in TASK_NAMES:
        for member in MEMBERS:
            own = [
                run for run in finished.values()
                if (run["settings"]["equal"], run["settings"]["task"], run["settings"]["member"])
                == ("parameters", task, member)
            ]  # fmt: skip
            best = _best(own)
            if best:
                error = sum(run["results"]["error"] for run in best) / len(best)
                panels.setdefault(f"{task} ({best[0]['results']['measure']})", {})[member] = error
    return plots.ranked(panels, look, ours="SSMN") if panels else None


PART = Part(
    "family", "The Memory-Native family, SSMN, LSTM and GRU on eight tasks.", runs, measure, tables, drawing
)  # fmt: skip
