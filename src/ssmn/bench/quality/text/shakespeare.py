"""Characters of Shakespeare: tinyshakespeare, its last tenth held out, read as one stream."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.peers import of_size
from ssmn.bench.quality.text.texts import best_rate, learning_rates, losses, over_seeds, train_run, training_speed
from ssmn.bench.report import Table
from ssmn.config import TextSSMNConfig
from ssmn.errors import FileError
from ssmn.training import Tokenizer
from ssmn.training.data import Corpus

HELD_OUT, CHOOSING = 0.1, 0.05
"""Last shares of the file: what is held out, and before it what learning rates are chosen on."""
CONTEXT = 256
"""Characters after which a state is reset, where it is."""
CHARACTERS = 65
CARRIED_PIECES = 4
"""Pieces of 256 characters through which a state is carried in training."""

MODELS: dict[str, dict[str, Any]] = {
    "ssmn": {"plastic": 1, "window_size": 64, "semantic_encoder": True},
    "transformer": {"window_size": CONTEXT, "semantic_encoder": False},
    "transformer-encoder": {"window_size": CONTEXT, "semantic_encoder": True},
    "ssmn-no-encoder": {"plastic": 1, "window_size": 64, "semantic_encoder": False},
}
"""What differs between the models: `plastic` is the place of the one plastic layer. The Transformers read whole
contexts, each from a fresh state."""

BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "parameters": 800_000,
        "models": tuple(MODELS),
        "model": {"hidden_dim": 128, "num_layers": 5, "num_heads": 4},
        "train": {"steps": 2_000, "batch_size": 3, "piece_length": 256},
    },
    "large": {
        "parameters": 3_000_000,
        "models": ("ssmn", "transformer"),
        "model": {"hidden_dim": 208, "num_layers": 6, "num_heads": 4},
        "train": {"steps": 3_000, "batch_size": 8, "piece_length": 256},
    },
}
CHOOSING_STEPS = 500


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """The small budget: for each model the choice of its learning rate, then its seeds; the large one at that rate."""
    best: dict[str, float] = {}
    for name in MODELS:
        found = {}
        for rate in learning_rates(options.quick):
            settings = _settings("small", name, rate, 0, options.quick, choosing=True)
            found[rate] = yield Run(f"small-{name}-rate-{rate:g}", settings)
        chosen = best_rate(found, "reset" if name.startswith("transformer") else "carried")
        if chosen is not None:
            best[name] = chosen
    for budget, sizes in BUDGETS.items():
        for seed in range(options.seeds):
            for name in sizes["models"]:
                if name in best:
                    yield Run(f"{budget}-{name}-{seed}", _settings(budget, name, best[name], seed, options.quick))


def _settings(budget: str, name: str, rate: float, seed: int, quick: bool, *, choosing: bool = False) -> dict[str, Any]:
    sizes, own = BUDGETS[budget], dict(MODELS[name])
    kinds = ["static"] * sizes["model"]["num_layers"]
    if "plastic" in own:
        kinds[own.pop("plastic")] = "plastic"
    model = {**sizes["model"], **own, **({"hidden_dim": 16, "num_heads": 2} if quick else {})}
    config = TextSSMNConfig(vocab_size=CHARACTERS, layer_types=tuple(kinds), **model)
    config = of_size(config, 30_000 if quick else round(0.995 * sizes["parameters"]))
    train = {"learning_rate": rate, "optimizer": "muon", "compute_dtype": "auto", "tensorboard": False,
             "checkpoint_every": 0, **sizes["train"]}  # fmt: skip
    train |= {"steps": CHOOSING_STEPS} if choosing else {}
    train |= {"fresh_rate": 0.0, "carried_pieces": 1 if name.startswith("transformer") else CARRIED_PIECES}
    train |= {"steps": 2, "batch_size": 1, "piece_length": 32} if quick else {}
    return {
        "choosing": choosing,
        "run": {
            "seed": seed,
            "data": {"text": "tinyshakespeare.txt", "tokenizer": "characters"},
            "model": {name: value for name, value in config.to_dict().items() if name not in ("kind", "vocab_size")},
            "train": train,
        },
    }


def measure(run: Run, place: Workplace) -> Result | None:
    """Trains a model and reads what is held out: carried through, and reset every 256 characters."""
    begin, late = corpora(place.options.shakespeare, choosing=run.settings["choosing"])
    model = train_run(run.settings["run"], place, (begin, late.cut(2)))
    if model is None:
        return None
    tokens = late.steps[None, : 600 if place.options.quick else None]
    return {
        "parameters": model.num_parameters(),
        "carried": float(losses(model, tokens)[0].mean()),
        "reset": float(losses(model, tokens, context=CONTEXT)[0].mean()),
        "tokens_per_second": training_speed(place),
        "state_bytes": model.init_state(1).nbytes,
    }


def corpora(path: Path, *, choosing: bool) -> tuple[Corpus, Corpus]:
    """What to train on and what to read at the end, in characters.

    Args:
        path: The file.
        choosing: Whether it is for choosing settings: then what is held out is neither trained on nor read.

    Raises:
        FileError: The file is missing.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"quality: {path} cannot be read ({error.strerror}); give the file by --shakespeare (it is "
            "data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn)."
        ) from None
    tokenizer = character_tokenizer(raw.decode())
    steps = tokenizer.encode(raw)
    edge = len(steps) - round(len(steps) * HELD_OUT)
    if choosing:
        steps, edge = steps[:edge], edge - round(len(steps) * CHOOSING)
    return tuple(Corpus(part, (path,), (0,), tokenizer) for part in (steps[:edge], steps[edge:]))  # type: ignore[return-value]


def character_tokenizer(text: str) -> Tokenizer:
    """One token for each byte that occurs in a text."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    [(symbols, _)] = split.pre_tokenize_str("".join(sorted(set(text))))
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(set(symbols)))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = split
    return Tokenizer(backend)


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """A row for each model, over its seeds; and the choice of learning rates."""
    final, choices = [], []
    for budget, sizes in BUDGETS.items():
        for name in sizes["models"]:
            seeds = [run for key, run in finished.items() if key.rsplit("-", 1)[0] == f"{budget}-{name}"]
            if seeds:
                results = [run["results"] for run in seeds]
                train = seeds[0]["settings"]["run"]["train"]
                final.append([
                    budget, name, *(over_seeds([result[key] for result in results]) for key in ("carried", "reset")),
                    str(len(seeds)), f"{train['learning_rate']:g}", f"{results[0]['parameters']:,}",
                    f"{train['steps']:,} × {train['batch_size']} × {train['piece_length']}",
                    f"{statistics.median(result['tokens_per_second'] for result in results):,.0f}",
                    f"{results[0]['state_bytes']:,}",
                ])  # fmt: skip
        choices += [
            [key, f"{run['results']['carried']:.3f}", f"{run['results']['reset']:.3f}"]
            for key, run in finished.items()
            if key.startswith(budget) and "-rate-" in key
        ]
    head = ["budget", "model", "carried", "reset every 256", "seeds", "learning rate", "parameters", "steps",
            "characters/s", "state bytes"]  # fmt: skip
    made = [Table("tinyshakespeare, nats per character on the last tenth", head, final)] if final else []
    if choices:
        made.append(Table("choice of learning rates, on characters before the last tenth",
                          ["run", "carried", "reset every 256"], choices, texts=1))  # fmt: skip
    return made


PART = Part("shakespeare", "Characters of Shakespeare in a small budget.", runs, measure, tables)
