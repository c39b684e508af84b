"""Where an answer came from: a passkey is found by attribution; and the probes' figures against theory.

The model is trained to recall eight pairs after up to 512 other tokens. A test states eight pairs, reads a long stretch
of noise, and asks for every key: each question is a trial, which is found if of all writes of the stream the one that
the read draws on most is that of the asked pair's value.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ssmn import ops
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import settings_of, trained
from ssmn.bench.report import Table
from ssmn.config import TextSSMNConfig
from ssmn.layers.memory import SynapticMemory, unit
from ssmn.models import TextSSMN
from ssmn.models.stack import Stack
from ssmn.probes import (
    MemoryCall,
    Tracer,
    attribution_matrix,
    effective_rank,
    half_life,
    measure_blocks,
    measure_call,
    spectrum,
    watch_blocks,
    watch_memories,
)
from ssmn.training.tasks import RecallAtDistance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

_QUICK = ["train.steps=2", "train.batch_size=2", "task.distance=20", "task.pairs=3"]

RATES = (1e-4, 1e-3, 1e-2, 3e-2)
"""λ of which the half-life is measured."""

WIDTH = 64
"""K of the memory that patterns are planted in."""


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """The passkeys with every seed; theory and cost once."""
    quick = options.quick
    yield Run("theory", {"kind": "theory", "steps": 60 if quick else 1000})
    yield Run(
        "cost", {"kind": "cost", "presets": ["tiny"] if quick else ["tiny", "small"], "steps": 96 if quick else 1024}
    )
    for seed in range(options.seeds):
        settings = {
            "kind": "passkey",
            "config": "distance",
            "set": _QUICK if quick else [],
            "seed": seed,
            "filler": ["noise"] if quick else ["noise", "pairs"],
            "distances": [40] if quick else [1000, 10_000],
            "rows": 2 if quick else 13,
        }
        yield Run(f"passkey-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """The figures of one run."""
    settings = run.settings
    if settings["kind"] == "theory":
        return {"half_life": _half_lives(), "sums": _sums(settings["steps"]), "planted": _planted()}
    if settings["kind"] == "cost":
        return {preset: _cost(preset, settings["steps"]) for preset in settings["presets"]}
    model = trained(settings, place)
    if model is None:
        return None
    task = settings_of(settings).task
    assert isinstance(task, RecallAtDistance)
    found = {}
    for filler, distance in itertools.product(settings["filler"], settings["distances"]):
        asked = dataclasses.replace(task, filler=filler, distance=distance)
        rows = settings["rows"]
        counts = [passkeys(model, asked, row, settings["seed"]) for row in range(rows)]
        found[f"{filler} {distance}"] = {name: sum(count[name] for count in counts) for name in counts[0]}
        place.on_step(1, 1, f"{filler} {distance:,}")
    return {"found": found, "parameters": model.num_parameters()}


@torch.no_grad()
def passkeys(model: Stack, task: RecallAtDistance, row: int, seed: int = 0) -> dict[str, float]:
    """One stream with `task.pairs` passkeys, each asked for once.

    Returns:
        `trials`; of them `right` (the model says the value), `first` (the value's write is the first of the trace) and
        `third` (among the first three); `share`, the sum of that write's |weight| / length of the read; `others`, the
        same of the strongest other write.
    """
    batch = task.batch(row, batch_size=1, seed=seed, split="test")
    assert batch.mask is not None
    tracer = Tracer(model, top=4)
    trace = tracer.push(batch.inputs)
    places = batch.mask[0].nonzero()[:, 0]
    logits = tracer.output[0, places]
    facts, layer = 2 * task.pairs, 0
    counts = {"trials": float(len(places)), "right": float((logits.argmax(-1) == batch.targets[0, places]).sum())}
    counts |= dict.fromkeys(("first", "third", "share", "others"), 0.0)
    keys = batch.inputs[0, 0:facts:2]
    for place in places.tolist():
        value = 2 * int((keys == batch.inputs[0, place]).nonzero()[0, 0]) + 1
        told, weights = trace.positions[place, layer].tolist(), (trace.weights / trace.reads[..., None])[place, layer]
        counts["first"] += told[0] == value
        counts["third"] += value in told[:3]
        counts["share"] += sum(abs(float(w)) for at, w in zip(told, weights, strict=True) if at == value)
        counts["others"] += max(abs(float(w)) for at, w in zip(told, weights, strict=True) if at != value)
    return counts


def _half_lives() -> dict[str, dict[str, float]]:
    """By λ: ln 2 / −ln(1 − λ), and what a layer of that λ shows: by the decay applied, and by what is left."""
    found = {}
    for rate in RATES:
        torch.manual_seed(0)
        rows = {}
        for name, rule, eta in (("read only", "delta", 0.0), ("hebbian", "hebbian", 0.5), ("delta", "delta", 0.05)):
            memory = SynapticMemory(WIDTH, update_rule=rule, plasticity_eta=eta, decay_lambda=(rate,))  # type: ignore[arg-type]
            call = _call(memory, torch.randn(1, 500, WIDTH))
            measured = measure_call(call)
            rows[name] = float(measured["half_life_probed"])
            rows["applied"] = float(measured["half_life"])
        found[f"{rate:g}"] = {"theory": half_life(rate), **rows}
    return found


@torch.no_grad()
def _call(memory: SynapticMemory, hidden: torch.Tensor) -> MemoryCall:
    with watch_memories(memory) as seen:
        memory(hidden)
    return seen[0][0]


def _sums(steps: int) -> dict[str, float]:
    """By rule: largest |Σ_j A_tj v_j + carried − read| of a model in float32, the read by the model's own kernels."""
    found = {}
    for rule in ("hebbian", "delta", "erase"):
        torch.manual_seed(0)
        config = TextSSMNConfig(
            vocab_size=97,
            hidden_dim=WIDTH,
            num_layers=3,
            num_heads=2,
            window_size=16,
            memory_heads=2,
            update_rule=rule,
            semantic_encoder=False,
        )
        model = TextSSMN(config)
        _, state = model(torch.randint(97, (1, 300)))
        tokens = torch.randint(97, (1, steps))
        told = attribution_matrix(model, tokens, state=state)
        with torch.no_grad(), watch_memories(model) as seen:
            model(tokens, state)
        call = seen[told.layer][0]
        read, _ = ops.synaptic_memory(
            call.queries[0], call.keys, call.values, eta=call.eta, log_decay=call.log_decay, erase=call.erase,
            rule=call.rule, initial_state=call.initial_state,
        )  # fmt: skip
        found[rule] = float((told.weights @ told.values + told.carried - read[0].transpose(0, 1)).abs().max())
    return found


def _planted() -> dict[str, dict[str, float]]:
    """By the number of pairs with random unit keys: the memory's effective rank, and how much of a value is read."""
    found = {}
    for rule, pairs in itertools.product(("hebbian", "delta"), (8, 16, 32, 64, 128)):
        torch.manual_seed(0)
        keys, values = unit(torch.randn(1, pairs, 1, WIDTH)), unit(torch.randn(1, pairs, 1, WIDTH))
        ones = torch.ones(1, pairs, 1)
        _, memory = ops.memory_write(keys, values, eta=ones, log_decay=0 * ones, rule=rule)  # type: ignore[arg-type]
        read = torch.einsum("bthk,bhkv->bthv", keys, memory)
        rank = float(effective_rank(spectrum(memory)))
        likeness = float(torch.nn.functional.cosine_similarity(read, values, dim=-1).mean())
        found[f"{rule} {pairs}"] = {"effective_rank": rank, "saturation": rank / WIDTH, "likeness": likeness}
    return found


@torch.no_grad()
def _cost(preset: str, steps: int) -> dict[str, float]:
    """Seconds of processor time, the least of five: reading, recording what was read, and tracing it."""
    torch.manual_seed(0)
    model = TextSSMN(TextSSMNConfig.preset(preset, vocab_size=1024, semantic_encoder=False)).eval()
    tokens = torch.randint(1024, (1, steps))
    _, state = model(tokens)
    tracer = Tracer(model, state)
    tracer.push(tokens)

    def recorded() -> None:
        with watch_blocks(model) as seen:
            model(tokens, state)
        measure_blocks(seen)

    tasks: dict[str, Any] = {
        "read": lambda: model(tokens, state),
        "recorded": recorded,
        "traced": lambda: tracer.fork().push(tokens),
    }
    least = dict.fromkeys(tasks, float("inf"))
    for _, (name, task) in itertools.product(range(5), tasks.items()):
        begun = time.process_time()
        task()
        least[name] = min(least[name], time.process_time() - begun)
    extra = max(0.0, least["recorded"] - least["read"])
    return {**least, "steps": float(steps), "steps_per_record": extra / least["read"] * steps}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Passkeys by distance; half-lives, sums and planted patterns beside theory; cost."""
    results = {name: run["results"] for name, run in finished.items()}
    made = []
    rows = [
        [
            name.removeprefix("passkey-"), *case.split(), f"{found['trials']:.0f}",
            *(f"{found[figure] / found['trials']:.3f}" for figure in ("first", "third", "right", "share", "others")),
        ]
        for name, result in results.items() if name.startswith("passkey-") for case, found in result["found"].items()
    ]  # fmt: skip
    if rows:
        head = [
            "seed",
            "between",
            "tokens",
            "trials",
            "found first",
            "in three",
            "answered right",
            "its share",
            "next share",
        ]
        made.append(Table("A passkey found by attribution", head, rows, "share of trials; |A v| / |read|", texts=3))
    if "theory" in results:
        made += _theory_tables(results["theory"])
    if "cost" in results:
        cells = [
            [preset, *(f"{1e3 * cost[name]:.0f}" for name in ("read", "recorded", "traced")),
             f"{cost['steps_per_record']:,.0f}", f"{20 * cost['steps_per_record']:,.0f}"]
            for preset, cost in results["cost"].items()
        ]  # fmt: skip
        head = ["preset", "read, ms", "recorded, ms", "traced, ms", "a record costs, steps", "every for 5 %"]
        steps = max(cost["steps"] for cost in results["cost"].values())
        title = f"What probes cost: {steps:,.0f} tokens in one piece"
        made.append(Table(title, head, cells, "processor time", texts=1))
    return made


def _theory_tables(theory: Result) -> list[Table]:
    lives = [[rate, *(f"{row[name]:.2f}" for name in ("theory", "applied", "read only", "hebbian", "delta"))]
             for rate, row in theory["half_life"].items()]  # fmt: skip
    planted = [[*name.split(), *(f"{row[figure]:.3f}" for figure in ("effective_rank", "saturation", "likeness"))]
               for name, row in theory["planted"].items()]  # fmt: skip
    sums = [[rule, f"{error:.2e}"] for rule, error in theory["sums"].items()]
    head = ["λ", "ln 2 / −ln(1 − λ)", "applied", "probed, η 0", "probed, hebbian", "probed, delta η 0.05"]
    return [
        Table("Half-life", head, lives, "steps", texts=1),
        Table("Attribution against the read", ["rule", "largest difference"], sums, "float32", texts=1),
        Table(
            f"Pairs planted in a memory of {WIDTH} x {WIDTH}",
            ["rule", "pairs", "effective rank", "saturation", "likeness of the read"], planted, texts=2,
        ),
    ]  # fmt: skip


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Saturation and how much of a value is read, against the number of planted pairs."""
    from ssmn import plots

    if "theory" not in finished:
        return None
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for name, row in finished["theory"]["results"]["planted"].items():
        rule, pairs = name.split()
        for title, figure in (("Effective rank / K", "saturation"), ("Likeness of the read", "likeness")):
            panels.setdefault(title, {}).setdefault(rule, {})[int(pairs)] = [row[figure]]
    return plots.spread_lines(panels, look, "planted pairs", "")


PART = Part(
    "attribution", "A passkey found by attribution; the probes' figures against theory.", runs, measure, tables, drawing
)
