"""Hopfield networks against theory: capacity, energy, retrieval in one step, and a rare member of a set.

Classical networks of 1,000 units recall random patterns from noisy ones at growing load; the theory of Hebbian
learning puts the breakdown at 0.138 patterns per unit (Amit, Gutfreund and Sompolinsky, 1985).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ssmn import ops
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.relatives.hopfield import (
    BinaryNetwork,
    ClassicalNetwork,
    DenseNetwork,
    HebbianNetwork,
    HopfieldPooling,
    PseudoInverseNetwork,
    StorkeyNetwork,
    retrieve,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

RULES: dict[str, type[ClassicalNetwork]] = {
    "Hebbian": HebbianNetwork,
    "Storkey": StorkeyNetwork,
    "pseudo-inverse": PseudoInverseNetwork,
}
LOADS: dict[str, tuple[float, ...]] = {
    "Hebbian": (0.05, 0.1, 0.12, 0.13, 0.138, 0.145, 0.15, 0.16, 0.2),
    "Storkey": (0.1, 0.138, 0.2, 0.25, 0.3),
    "pseudo-inverse": (0.1, 0.3, 0.5, 0.7, 0.9),
}
THEORY = 0.138

NOISES = (0.0, 0.001, 0.05)
"""Shares of the bits of a pattern that are turned before recall; 0.001 is one bit of 1,000."""

TENTH = 0.1
"""The load, and the share of the bits turned, at which every stored pattern is a starting point."""

GOOD_BITS = 0.99
"""A pattern is recalled if so many of its bits are right after convergence."""

ENERGY_LOAD = 0.3
"""Beyond what Hebb's rule holds, so that runs are long and end anywhere."""

SYNAPTIC_LOADS = (0.1, 0.3, 0.5)
PRESENTATIONS = (1, 3, 10, 30, 100)

BETAS = (16.0, 32.0, 64.0, 128.0)
COLD = (128.0, 512.0)
"""Where a retrieval is all but the nearest neighbour."""
NEAR = 0.01
"""A retrieval succeeds if it ends so near to its pattern, in norms of a pattern; any other is far beyond that."""

FEATURES = 32
LOW_LOSS = 0.05
"""Training on bags ends when the running mean of the loss (over some ten steps) is below this."""
RATES = (3e-3, 1e-2)


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Energies, once; per seed recall by load of each rule, and retrieval; then pooling, at the better rate."""
    quick = options.quick
    yield Run("energy-0", {
        "what": "energy", "seed": 0, "units": 20 if quick else 100, "runs": 10 if quick else 1000,
        "load": ENERGY_LOAD,
    })  # fmt: skip
    for seed in range(options.seeds):
        for rule, loads in LOADS.items():
            settings = {
                "what": "load", "rule": rule, "seed": seed, "units": 60 if quick else 1000,
                "loads": loads[:2] if quick else loads, "noises": NOISES, "starts": 5 if quick else 40,
            }  # fmt: skip
            yield Run(f"load-{rule}-{seed}", settings)
            yield Run(f"tenth-{rule}-{seed}", {
                **settings, "what": "tenth", "loads": (TENTH,), "noises": (0.0, TENTH), "starts": 1000,
            })  # fmt: skip
        yield Run(f"synaptic-{seed}", {
            "what": "synaptic", "seed": seed, "units": 20 if quick else 100, "loads": SYNAPTIC_LOADS,
            "presentations": PRESENTATIONS,
        })  # fmt: skip
        yield Run(f"retrieval-{seed}", {
            "what": "retrieval", "seed": seed, "patterns": 100 if quick else 10_000, "features": 64, "betas": BETAS,
        })  # fmt: skip
        yield Run(f"ceiling-{seed}", {
            "what": "ceiling", "seed": seed, "patterns": 100 if quick else 10_000, "features": 64, "betas": COLD,
            "updates": (1, 2),
        })  # fmt: skip
    found = {}
    for rate in RATES:
        found[rate] = yield _pooling(rate, 0, quick)
    if all(result is not None for result in found.values()):
        best = max(found, key=lambda rate: found[rate]["accuracy"])
        for seed in range(1, options.seeds):
            yield _pooling(best, seed, quick)


def _pooling(rate: float, seed: int, quick: bool) -> Run:
    settings = {
        "what": "pooling", "pool": "Hopfield pooling", "rate": rate, "seed": seed, "members": 20 if quick else 500,
        "steps": 2 if quick else 800, "bags": 32, "until": LOW_LOSS, "tested": 20 if quick else 1000,
    }  # fmt: skip
    return Run(f"pooling-Hopfield-pooling-{rate:g}-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """One run, see `runs`."""
    kinds = {
        "load": _load, "tenth": _load, "energy": _energy, "synaptic": _synaptic, "retrieval": _retrieval,
        "ceiling": _ceiling, "pooling": _pool,
    }  # fmt: skip
    return kinds[run.settings["what"]](run.settings, place)


def _signs(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(2, shape, generator=generator).double().mul(2).sub(1)


def _load(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    """Recall by load and noise: overlaps, bits and patterns that are right, starting from some of the patterns."""
    generator = torch.Generator().manual_seed(settings["seed"])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, load in enumerate(settings["loads"]):
        patterns = _signs(generator, round(load * settings["units"]), settings["units"]).float()
        network = RULES[settings["rule"]].learn(patterns)
        wanted = patterns[: settings["starts"]].repeat(len(settings["noises"]), 1)
        share = torch.tensor(settings["noises"]).repeat_interleave(len(wanted) // len(settings["noises"]))
        bits = (share * settings["units"]).round().unsqueeze(-1)
        turned = torch.rand(wanted.shape, generator=generator).argsort(-1) < bits
        ended = network.recall(torch.where(turned, -wanted, wanted), seed=settings["seed"])
        row = found.setdefault(str(load), {"all": {"stable": float(network.stable(patterns).float().mean())}})
        for noise in settings["noises"]:
            chosen = share == noise
            overlap = ended.overlap(wanted)[chosen]
            right = (1 + overlap) / 2
            row[str(noise)] = {
                "overlap": float(overlap.mean()),
                "bits": float(right.mean()),
                "recalled": float((right >= GOOD_BITS - 1e-6).float().mean()),
                "exact": float((overlap == 1).float().mean()),
                "converged": float(ended.converged[chosen].float().mean()),
                "sweeps": float(ended.sweeps[chosen].float().mean()),
            }
        if place.on_step(number + 1, len(settings["loads"]), f"load {load}: overlap {row['0.0']['overlap']:.3f}"):
            return None
    return {"loads": found}


def _energy(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    """Random starts until rest, the energy computed anew after every single update of a unit."""
    generator = torch.Generator().manual_seed(settings["seed"])
    count, units = round(settings["load"] * settings["units"]), settings["units"]
    patterns = _signs(generator, count, units)
    networks: dict[str, BinaryNetwork] = {
        **{name: rule.learn(patterns) for name, rule in RULES.items()},
        "dense, n = 3": DenseNetwork.learn(patterns, "polynomial", 3),
        "dense, exponential": DenseNetwork.learn(patterns, "exponential"),
    }
    found: Result = {}
    for number, (name, network) in enumerate(networks.items()):
        state = _signs(generator, settings["runs"], units)
        energy = network.energy(state)
        start, largest, updates = energy, torch.full_like(energy, -torch.inf), 0
        rises = torch.zeros(len(state), dtype=torch.bool)
        while not bool(network.stable(state).all()):
            order = torch.rand(state.shape, generator=generator).argsort(-1)
            for unit in order.split(1, 1):
                state = network.update(state, unit)
                after = network.energy(state)
                # Rounding: a rise below 1e-9 of the energy is none.
                rises |= after > energy + 1e-9 * energy.abs().clamp(min=1)
                largest, energy = torch.maximum(largest, after - energy), after
            updates += units
        found[name] = {
            "runs": len(state), "monotone": int((~rises).sum()), "largest_rise": float(largest.max()),
            "updates_per_run": updates, "mean_fall": float((start - energy).mean()),
        }  # fmt: skip
        if place.on_step(number + 1, len(networks), f"{name}: {found[name]['monotone']} of {len(state)} monotone"):
            return None
    return found


def _synaptic(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    """How far a synaptic memory of patterns / √N (η 1, λ 0) is from the classical weights, in the largest entry."""
    generator = torch.Generator().manual_seed(settings["seed"])
    size, found = settings["units"], {}
    for number, load in enumerate(settings["loads"]):
        patterns = _signs(generator, round(load * size), size)
        classical = HebbianNetwork.learn(patterns).weights + len(patterns) / size * torch.eye(size).double()
        projector = PseudoInverseNetwork.learn(patterns).projector
        row = found[str(load)] = {"hebbian": float((_written(patterns, "hebbian", 1) - classical).abs().max())}
        for times in settings["presentations"]:
            row[str(times)] = float((_written(patterns, "delta", times) - projector).abs().max())
        if place.on_step(number + 1, len(settings["loads"]), f"load {load}"):
            return None
    return {"loads": found}


def _written(patterns: Tensor, rule: Literal["hebbian", "delta"], times: int) -> Tensor:
    steps = functional.normalize(patterns, dim=-1).repeat(times, 1)[None, :, None]
    ones = steps.new_ones(steps.shape[:3])
    return ops.memory_write(steps, steps, eta=ones, log_decay=torch.zeros_like(ones), rule=rule)[1][0, 0]


def _noisy(settings: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Random patterns on the sphere, and queries with two kinds of 20 % noise."""
    generator = torch.Generator().manual_seed(settings["seed"])
    number, features = settings["patterns"], settings["features"]

    def sphere() -> Tensor:
        return functional.normalize(torch.randn(number, features, generator=generator), dim=-1)

    stored = sphere()
    replaced = torch.rand(stored.shape, generator=generator).argsort(-1) < round(0.2 * features)
    queries = {
        "noise of a fifth of the norm": stored + 0.2 * sphere(),
        "a fifth of the entries replaced": torch.where(replaced, sphere(), stored),
    }
    return stored, queries


def _retrieval(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    """One update from two kinds of 20 % noise, also by torch's attention."""
    stored, queries = _noisy(settings)
    found: Result = {"success": {}, "farthest": {}}
    pieces = list(torch.arange(len(stored)).split(500))
    for done, (name, query) in enumerate(queries.items()):
        for beta in settings["betas"]:
            reads = (retrieve(query[rows], stored, beta=beta).pattern - stored[rows] for rows in pieces)
            distance = torch.cat([read.norm(dim=-1) for read in reads])
            found["success"].setdefault(name, {})[str(beta)] = float((distance <= NEAR).double().mean())
            found["farthest"].setdefault(name, {})[str(beta)] = float(distance.max())
        found.setdefault("nearest_neighbour", {})[name] = statistics.fmean(
            float(((query[rows] @ stored.T).argmax(-1) == rows).double().mean()) for rows in pieces
        )
        if place.on_step(done + 1, len(queries), name):
            return None
    query, differences = queries["noise of a fifth of the norm"][:500], {}
    for dtype in (torch.float32, torch.float64):
        asked, keys = query.to(dtype), stored.to(dtype)
        worst = 0.0
        for beta in settings["betas"]:
            same = functional.scaled_dot_product_attention(asked[None], keys[None], keys[None], scale=beta)[0]
            worst = max(worst, float((retrieve(asked, keys, beta=beta).pattern - same).abs().max()))
        differences[str(dtype).removeprefix("torch.")] = worst
    return {**found, "difference_from_attention": differences}


def _ceiling(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    """Replaced entries: large β, a second update, and similarity by city-block distance in place of the product.

    Of the entries that were not replaced every one is right, which a sum of absolute differences sees and a product
    does not (Millidge et al., 2022, on similarities for Hopfield networks).
    """
    stored, queries = _noisy(settings)
    query = queries["a fifth of the entries replaced"]
    pieces = list(torch.arange(len(stored)).split(500))

    def success(read: Callable[[Tensor], Tensor]) -> float:
        distances = torch.cat([(read(query[rows]) - stored[rows]).norm(dim=-1) for rows in pieces])
        return float((distances <= NEAR).double().mean())

    def product(asked: Tensor, beta: float, updates: int) -> Tensor:
        return retrieve(asked, stored, beta=beta, max_steps=updates).pattern

    def distance(asked: Tensor, beta: float) -> Tensor:
        return torch.softmax(-beta * torch.cdist(asked, stored, p=1), -1) @ stored

    def nearest(asked: Tensor) -> Tensor:
        return stored[(asked @ stored.T).argmax(-1)]

    found = {}
    for beta in settings["betas"]:
        for updates in settings["updates"]:
            found[f"product, β {beta:g}, updates {updates}"] = success(partial(product, beta=beta, updates=updates))
            if place.on_step(len(found), 6, f"β {beta:g}, updates {updates}"):
                return None
    beta = settings["betas"][0]
    found[f"city-block distance, β {beta:g}, updates 1"] = success(partial(distance, beta=beta))
    found["nearest neighbour by the product"] = success(nearest)
    return {"success": found}


def _bags(settings: Mapping[str, Any], signal: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Bags of noise, of which every other one has a single noisy copy of the signal; and which have."""
    members = torch.randn(number, settings["members"], FEATURES, generator=generator)
    has = torch.rand(number, generator=generator) < 0.5
    place = torch.randint(settings["members"], (number,), generator=generator)
    copy = signal + 0.3 * torch.randn(number, FEATURES, generator=generator)
    rows = torch.arange(number)[has]
    members[rows, place[has]] = copy[has]
    return members, has


def _pool(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    """Trains on fresh bags until the loss is low; the share of right answers on further ones."""
    torch.manual_seed(settings["seed"])
    generator = torch.Generator().manual_seed(1000 + settings["seed"])
    signal = torch.randn(FEATURES, generator=generator)
    model = HopfieldPooling(FEATURES, 32, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["rate"], betas=(0.9, 0.98))
    running, steps = 1.0, 0
    while steps < settings["steps"] and running >= settings["until"]:
        members, has = _bags(settings, signal, settings["bags"], generator)
        loss = functional.binary_cross_entropy_with_logits(model(members).flatten(), has.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running, steps = 0.9 * running + 0.1 * loss.item(), steps + 1
        if place.on_step(steps, settings["steps"], f"loss {running:.3f}"):
            return None
    right, asked = 0, 0
    with torch.no_grad():
        while asked < settings["tested"]:
            members, has = _bags(settings, signal, min(100, settings["tested"] - asked), generator)
            right += int(((model(members).flatten() > 0) == has).sum())
            asked += len(has)
    return {
        "accuracy": right / asked,
        "steps": steps,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def _of(finished: Mapping[str, Result], what: str) -> list[Result]:
    chosen = [run for run in finished.values() if run["settings"]["what"] == what]
    return sorted(chosen, key=lambda run: run["settings"]["seed"])


def _seeds(values: Sequence[float], digits: int = 3) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Recall by load, energies, retrieval by temperature, pooling; all seeds of each."""
    made = (
        _load_table, _tenth_table, _energy_table, _synaptic_table, _retrieval_table, _ceiling_table, _pool_table,
    )  # fmt: skip
    return [Table(*table) for table in (make(finished) for make in made) if table is not None]


def _load_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    return _recall_table(finished, "load", "Recall by load")


def _tenth_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    return _recall_table(finished, "tenth", "Recall of all patterns at a tenth of a pattern per unit")


def _recall_table(finished: Mapping[str, Result], what: str, title: str) -> tuple[Any, ...] | None:
    rows = []
    for rule in RULES:
        chosen = [run for run in _of(finished, what) if run["settings"]["rule"] == rule]
        for load in chosen[0]["results"]["loads"] if chosen else ():
            at = [run["results"]["loads"][load] for run in chosen]
            for noise in (str(value) for value in chosen[0]["settings"]["noises"]):
                rows.append([
                    rule, load, noise, *(_seeds([here[noise][figure] for here in at])
                    for figure in ("overlap", "bits", "recalled", "exact", "converged")),
                    _seeds([here["all"]["stable"] for here in at]),
                ])  # fmt: skip
    if not rows:
        return None
    head = [
        "rule", "patterns / units", "bits turned", "overlap", "bits right", "recalled", "exact", "at rest",
        "patterns at rest",
    ]  # fmt: skip
    caption = f"all seeds; recalled: at least {GOOD_BITS:.0%} of the bits of a pattern right after convergence"
    return title, head, rows, caption, 3


def _energy_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    chosen = _of(finished, "energy")
    if not chosen:
        return None
    rows = []
    for name in chosen[0]["results"]:
        at = [run["results"][name] for run in chosen]
        rows.append([
            name, f"{sum(here['monotone'] for here in at):,} of {sum(here['runs'] for here in at):,}",
            f"{max(here['largest_rise'] for here in at):.1g}",
            " ".join(f"{here['updates_per_run']:,}" for here in at), _seeds([here["mean_fall"] for here in at], 1),
        ])  # fmt: skip
    units = chosen[0]["settings"]["units"]
    head = ["network", "monotone runs", "largest rise", "updates of each run", "mean fall"]
    return f"Energy in asynchronous runs from random states, {units} units", head, rows, "all seeds", 1


def _synaptic_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    chosen = _of(finished, "synaptic")
    if not chosen:
        return None
    rows = []
    for load in chosen[0]["results"]["loads"]:
        at = [run["results"]["loads"][load] for run in chosen]
        rows.append([load, *(f"{max(here[column] for here in at):.1e}" for column in at[0])])
    times = [f"delta, {number} times" for number in chosen[0]["settings"]["presentations"]]
    title = f"The synaptic memory beside the classical weights, {chosen[0]['settings']['units']} units"
    caption = (
        "largest difference of all seeds: hebbian from Hebb's weights with their diagonal, delta from the projector"
    )
    return title, ["patterns / units", "hebbian", *times], rows, caption, 1


def _retrieval_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    chosen = _of(finished, "retrieval")
    if not chosen:
        return None
    rows = []
    for noise, by_beta in chosen[0]["results"]["success"].items():
        neighbour = _seeds([run["results"]["nearest_neighbour"][noise] for run in chosen], 4)
        for beta in by_beta:
            success = [run["results"]["success"][noise][beta] for run in chosen]
            farthest = max(run["results"]["farthest"][noise][beta] for run in chosen)
            rows.append([noise, beta, _seeds(success, 4), f"{farthest:.2g}", neighbour])
    worst = {
        dtype: max(run["results"]["difference_from_attention"][dtype] for run in chosen)
        for dtype in ("float32", "float64")
    }
    caption = (
        f"all seeds; success: within {NEAR:g} of the pattern. Largest difference from "
        f"scaled_dot_product_attention: {worst['float32']:.1g} in float32, {worst['float64']:.1g} in float64"
    )
    settings = chosen[0]["settings"]
    title = f"Retrieval in one update among {settings['patterns']:,} patterns of {settings['features']} features"
    return title, ["noise", "β", "success", "farthest", "nearest neighbour"], rows, caption, 2


def _ceiling_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    chosen = _of(finished, "ceiling")
    if not chosen:
        return None
    ways = chosen[0]["results"]["success"]
    rows = [[way, _seeds([run["results"]["success"][way] for run in chosen], 4)] for way in ways]
    caption = f"all seeds; success: within {NEAR:g} of the pattern"
    return "Retrieval when a fifth of the entries is replaced", ["similarity", "success"], rows, caption, 1


def _pool_table(finished: Mapping[str, Result]) -> tuple[Any, ...] | None:
    chosen, rows = _of(finished, "pooling"), []
    for rate in sorted({run["settings"]["rate"] for run in chosen}):
        at = [run["results"] for run in chosen if run["settings"]["rate"] == rate]
        steps = " ".join(str(here["steps"]) for here in at)
        rows.append([f"{rate:g}", f"{at[0]['parameters']:,}", steps, _seeds([here["accuracy"] for here in at])])
    if not rows:
        return None
    title = f"Hopfield pooling: is one of {chosen[0]['settings']['members']} members the signal?"
    return title, ["rate", "parameters", "steps", "right answers"], rows, "all seeds; chance is 0.5", 1


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Overlap after convergence against the load, from a pattern itself and from a noisy one."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for noise in (NOISES[0], NOISES[-1]):
        title = f"Started with {noise:.0%} of the bits turned"
        for rule in RULES:
            for run in _of(finished, "load"):
                if run["settings"]["rule"] == rule:
                    for load, here in run["results"]["loads"].items():
                        line = panels.setdefault(title, {}).setdefault(rule, {})
                        line.setdefault(float(load), []).append(here[str(noise)]["overlap"])
    if not panels:
        return None
    return plots.spread_lines(
        panels, look, f"patterns / units (theory: Hebbian {THEORY})", "overlap at rest", x_log=False
    )


PART = Part(
    "hopfield", "Hopfield networks: capacity, energy, retrieval in one step, pooling.", runs, measure, tables, drawing
)
