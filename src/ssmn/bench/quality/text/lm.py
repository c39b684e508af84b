"""Language modelling on real text at equal parameters and tokens: bits per byte on held-out files."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.peers import of_size
from ssmn.bench.quality.text.language import GENRES, VOCABULARY, language, stretches
from ssmn.bench.quality.text.texts import (
    best_rate,
    bits_per_byte,
    learning_rates,
    losses,
    over_seeds,
    train_run,
    training_speed,
)
from ssmn.bench.report import Table
from ssmn.config import TextSSMNConfig

CONTEXT, WINDOW = 1_024, 128
CARRIED_PIECES = 8
"""Pieces of 256 tokens through which a state is carried in training."""
READ_ROWS, READ_LENGTH = 8, 8_192
"""Stretches of each genre's held-out text that are read, and their tokens."""

_MEMORY = {"small": ("static", "plastic", "static", "static", "static"),
           "large": ("static", "static", "plastic", "static", "static", "static")}  # fmt: skip


def _places(kind: str, budget: str) -> dict[str, Any]:
    """Our layout with another kind of layer in place of the plastic one."""
    return {"layer_types": tuple(kind if name == "plastic" else name for name in _MEMORY[budget])}


def _only(kind: str, budget: str) -> dict[str, Any]:
    return {"layer_types": (kind,) * len(_MEMORY[budget])}


def _models(budget: str) -> dict[str, dict[str, Any]]:
    full = {**_only("static", budget), "window_size": CONTEXT}
    every = {
        "ssmn": {**_places("plastic", budget), "semantic_encoder": True},
        "transformer": full,
        "window": _only("static", budget),
    }
    if budget == "large":
        return every
    every |= {name: _only(kind, budget) for name, kind in FIELD.items()}
    every |= {f"hybrid-{name}": _places(kind, budget) for name, kind in FIELD.items() if name != "lstm"}
    # Our encoder in front of the others, to tell what it gains and what the memory gains.
    return every | {
        "transformer-encoder": {**full, "semantic_encoder": True},
        "window-encoder": {**_only("static", budget), "semantic_encoder": True},
    }


FIELD = {"mamba-2": "ssd", "retention": "retention", "gated-deltanet": "gated-delta", "lstm": "lstm"}
"""The field's recurrent models, and their layers."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "hebbian": {"update_rule": "hebbian"},
    "standard-init": {"initialisation": "standard"},
    "same-pairing": {"pairing": "same"},
    "no-encoder": {"semantic_encoder": False},
    "chat-1": {"chat_rounds": 1},
    "four-heads": {"memory_heads": 4},
}
"""Ours with one change, at the small budget and our own learning rate."""

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "parameters": 600_000,
        "model": {"hidden_dim": 64, "num_layers": 5, "num_heads": 2},
        "tokens": 5_000_000,
        "choosing_tokens": 500_000,
        "step_tokens": 2_048,
        "piece_length": 256,
    },
    "large": {
        "parameters": 3_000_000,
        "model": {"hidden_dim": 192, "num_layers": 6, "num_heads": 3},
        "tokens": 20_000_000,
        "step_tokens": 4_096,
        "piece_length": 256,
    },
}


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """The small budget, then the large one.

    The small one: for each model the choice of its learning rate and a seed; ours with one change each, in runs as
    short as those of the choice; more seeds, and ours with one change in whole runs.
    """
    best: dict[str, float] = {}
    for name in _models("small"):
        found = {}
        for rate in learning_rates(options.quick):
            settings = _settings("small", name, rate, 0, options.quick, choosing=True)
            found[rate] = yield Run(f"small-{name}-rate-{rate:g}", settings)
        chosen = best_rate(found, "bits_per_byte")
        if chosen is not None and chosen == max(found) and not options.quick:
            # Not for the choice, which is among the same rates for all: it tells whether they end too early for it.
            settings = _settings("small", name, 2 * chosen, 0, options.quick, choosing=True)
            yield Run(f"small-{name}-rate-{2 * chosen:g}", settings)
        if chosen is not None:
            best[name] = chosen
            yield Run(f"small-{name}-0", _settings("small", name, chosen, 0, options.quick))
    for seed, name in itertools.product(range(options.seeds), ("", *ABLATIONS) if "ssmn" in best else ()):
        if seed or name:  # ours without a change and with seed 0 is a run of the choice
            settings = _settings("small", f"ssmn {name}", best["ssmn"], seed, options.quick, choosing=True)
            yield Run(_short(name, seed), settings)
    for seed in range(options.seeds):
        for name in best if seed else ():
            yield Run(f"small-{name}-{seed}", _settings("small", name, best[name], seed, options.quick))
        for name in ABLATIONS if "ssmn" in best else ():
            settings = _settings("small", f"ssmn {name}", best["ssmn"], seed, options.quick)
            yield Run(f"small-ssmn-{name}-{seed}", settings)
    for name in _models("large"):
        if name in best:
            yield Run(f"large-{name}-0", _settings("large", name, best[name], 0, options.quick))


def _short(ablation: str, seed: int) -> str:
    """Name of a run of ours as short as those of the choice."""
    return f"short-ssmn-{ablation}-{seed}" if ablation else f"short-ssmn-{seed}"


def _settings(budget: str, name: str, rate: float, seed: int, quick: bool, *, choosing: bool = False) -> dict[str, Any]:
    sizes, (name, _, ablation) = BUDGETS[budget], name.partition(" ")
    own = {**_models(budget)[name], **ABLATIONS.get(ablation, {})}
    model = {
        **sizes["model"],
        "window_size": WINDOW,
        "semantic_encoder": False,
        **({"hidden_dim": 16} if quick else {}),
    }
    if quick:
        model["num_heads"] = 2
    config = of_size(TextSSMNConfig(vocab_size=300 if quick else VOCABULARY, **{**model, **own}),
                     40_000 if quick else sizes["parameters"])  # fmt: skip
    length = CONTEXT if name.startswith("transformer") else sizes["piece_length"]
    tokens = sizes["choosing_tokens"] if choosing else sizes["tokens"]
    train = {
        "steps": -(-tokens // sizes["step_tokens"]), "batch_size": sizes["step_tokens"] // length,
        "piece_length": length, "fresh_rate": 0.0, "learning_rate": rate,
        "carried_pieces": 1 if name.startswith("transformer") else CARRIED_PIECES,
        "optimizer": "muon", "compute_dtype": "auto", "checkpoint_every": 0, "log_every": 20, "tensorboard": False,
    }  # fmt: skip
    train |= {"steps": 2, "batch_size": 2, "piece_length": 16} if quick else {}
    return {
        "choosing": choosing,
        "run": {
            "seed": seed,
            "data": {"text": "train", "tokenizer": "bpe", "vocab_size": VOCABULARY},
            "model": {key: value for key, value in config.to_dict().items() if key not in ("kind", "vocab_size")},
            "train": train,
        },
    }


def measure(run: Run, place: Workplace) -> Result | None:
    """Trains a model and reads held-out text, or the validation text if it is for choosing."""
    words = language(place.options)
    model = train_run(run.settings["run"], place, (words.train, words.validation.cut(2)))
    if model is None:
        return None
    result: Result = {
        "parameters": model.num_parameters(),
        "state_bytes": model.init_state(1).nbytes,
        "tokens_per_second": training_speed(place),
    }
    lengths, context = words.tokenizer.byte_lengths, CONTEXT
    if run.settings["choosing"]:
        resets = run.settings["run"]["train"]["carried_pieces"] == 1
        tokens = stretches(words.validation.steps, READ_ROWS, READ_LENGTH + 1)
        nats, _ = losses(model, tokens, context=context if resets else None)
        return {**result, "bits_per_byte": bits_per_byte(nats, tokens, lengths)}
    rows, length = (1, 40) if place.options.quick else (READ_ROWS, READ_LENGTH + 1)
    texts = {genre: stretches(words.held_out[genre], rows, length) for genre in GENRES}
    for name, after in (("carried", None), ("reset", context)):
        nats = {genre: losses(model, tokens, context=after)[0] for genre, tokens in texts.items()}
        result[name] = {genre: bits_per_byte(nats[genre], texts[genre], lengths) for genre in GENRES}
        together = np.concatenate([nats[genre].ravel() for genre in GENRES])
        count = sum(int(lengths[tokens[:, 1:]].sum()) for tokens in texts.values())
        result[name]["all"] = float(together.sum() / np.log(2) / count)
    return result


def figure(result: Result) -> float:
    """The better of carried and reset: how a model is best read."""
    return min(result["carried"]["all"], result["reset"]["all"])


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """For each budget a row for each model, over its seeds; the ratios of ours; the choice of learning rates."""
    made = []
    for budget in BUDGETS:
        names = [*_models(budget), *(f"ssmn-{name}" for name in ABLATIONS)]
        groups = {name: [run for key, run in finished.items() if key.rpartition("-")[0] == f"{budget}-{name}"]
                  for name in names}  # fmt: skip
        groups = {name: group for name, group in groups.items() if group}
        if not groups:
            continue
        ours = statistics.mean(figure(run["results"]) for run in groups["ssmn"]) if "ssmn" in groups else None
        rows = [_row(name, [run["results"] for run in group], ours, group[0]) for name, group in groups.items()]
        head = ["model", "carried", "reset every 1,024", *GENRES, "ssmn ÷", "seeds", "rate", "parameters",
                "state bytes", "tokens/s"]  # fmt: skip
        sizes = BUDGETS[budget]
        title = (
            f"{budget}: {sizes['parameters'] / 1e6:g} M parameters, {sizes['tokens'] / 1e6:g} M tokens, bits per byte"
        )
        caption = "genres as the model is best read; ssmn ÷: ours over this one, both as they are best read"
        made.append(Table(title, head, rows, caption, texts=1))
    if short := _short_rows(finished):
        head = ["change", "seed", "ssmn", "with the change", "more bits"]
        made.append(Table("ours with one change, 500,000 tokens: bits per byte on validation/", head, short, texts=2))
    choices = [[key, f"{run['results']['bits_per_byte']:.3f}"] for key, run in finished.items() if "-rate-" in key]
    if choices:
        made.append(Table("choice of learning rates: bits per byte on validation/", ["run", ""], choices, texts=1))
    return made


def _short_rows(finished: Mapping[str, Result]) -> list[list[str]]:
    """Change, seed, ours, ours with the change, and the difference; for the seeds that both have."""
    rows = []
    for name in ABLATIONS:
        for key, run in finished.items():
            if key.startswith(f"short-ssmn-{name}-"):
                settings = run["settings"]["run"]
                seed, rate = settings["seed"], settings["train"]["learning_rate"]
                base = _short("", seed) if seed else f"small-ssmn-rate-{rate:g}"
                if base in finished:
                    ours, theirs = (finished[one]["results"]["bits_per_byte"] for one in (base, key))
                    change = f"{100 * (theirs / ours - 1):+.1f} %"
                    rows.append([name, str(seed), f"{ours:.3f}", f"{theirs:.3f}", change])
    return rows


def _row(name: str, results: list[Result], ours: float | None, run: Result) -> list[str]:
    mean = statistics.mean(figure(result) for result in results)
    best = ["carried" if result["carried"]["all"] <= result["reset"]["all"] else "reset" for result in results]
    genres = [
        statistics.mean(result[way][genre] for result, way in zip(results, best, strict=True)) for genre in GENRES
    ]
    return [
        name,
        *(over_seeds([result[way]["all"] for result in results]) for way in ("carried", "reset")),
        *(f"{value:.3f}" for value in genres),
        "" if ours is None else f"{ours / mean:.3f}",
        str(len(results)),
        f"{run['settings']['run']['train']['learning_rate']:g}",
        f"{results[0]['parameters']:,}",
        f"{results[0]['state_bytes']:,}",
        f"{statistics.median(result['tokens_per_second'] for result in results):,.0f}",
    ]


PART = Part("lm", "Language modelling at equal parameters and tokens.", runs, measure, tables)
