"""Sparse writes: how few tokens have to be written for recall and for text, and the time that it saves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssmn import ops
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import percent, settings_of, trained, written_share
from ssmn.bench.report import Table
from ssmn.config import Plasticity, TextSSMNConfig
from ssmn.models import TextSSMN
from ssmn.models.stack import Stack
from ssmn.probes import memories, watch_importance
from ssmn.training.data import text_files
from ssmn.training.evaluate import evaluate_stream, evaluate_task
from ssmn.training.loop import TOKENIZER_FILE
from ssmn.training.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

METHODS = ("penalty", "multiplier", "annealing")
THRESHOLDS = {"recall": 0.5, "text": 0.2}
"""Those of the training with a target: about where half of the writes of a free training are."""
RECALL_RATE = 0.15
"""Target for recall: 32 facts in 256 tokens are 12.5 %."""
TEXT_RATES = (0.5, 0.25)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Shares of written tokens to which a threshold is set after training without a target."""

_QUICK_RECALL = ["train.steps=2", "train.batch_size=2", "task.pairs=4", "task.vocab_size=300"]
_QUICK_TEXT = ["train.steps=2", "train.batch_size=2", "train.piece_length=16", "data.vocab_size=300"]


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Recall and text without a target and with one by every method; then the times."""
    for seed in range(options.seeds):
        quick = _QUICK_RECALL if options.quick else []
        for method in ("free", *METHODS):
            changes = ["task.pairs=32", "train.steps=200", *quick, *_target("recall", method, RECALL_RATE)]
            settings = {"of": "recall", "method": method, "rate": RECALL_RATE, "config": "mqar-spread", "set": changes,
                        "batches": 1 if options.quick else 8}  # fmt: skip
            yield Run(f"recall-{method}-{seed}", {**settings, "seed": seed})
    for seed in range(options.seeds):
        for method in ("free", *METHODS):
            for rate in TEXT_RATES if method in METHODS[:2] else TEXT_RATES[:1]:
                changes = [
                    f"data.text={options.text / 'train'}",
                    *(_QUICK_TEXT if options.quick else []),
                    *_target("text", method, rate),
                ]
                settings = {"of": "text", "method": method, "rate": rate, "config": "sparse-text", "set": changes}
                length = 64 if options.quick else 65536
                name = f"text-{method}-{seed}" if method in ("free", "annealing") else f"text-{method}-{rate:g}-{seed}"
                yield Run(name, {**settings, "length": length, "seed": seed})
    yield Run("time", {"of": "time", "repeats": 1 if options.quick else 7, "length": 256 if options.quick else 4096})


def _target(of: str, method: str, rate: float) -> list[str]:
    if method == "free":
        return []
    return [f"model.write_threshold={THRESHOLDS[of]}", f"train.write_rate={rate}", f"train.write_training={method}"]


def measure(run: Run, place: Workplace) -> Result | None:
    """Share of written tokens and what it costs; or the times."""
    settings = run.settings
    if settings["of"] == "time":
        return times(settings["length"], settings["repeats"])
    model = trained(settings, place)
    if model is None:
        return None
    score = _recall_score(model, settings) if settings["of"] == "recall" else _text_score(model, settings, place)
    with watch_importance(model) as seen:
        score(None)
    importance = torch.cat([call.flatten() for calls in seen.values() for call in calls])
    thresholds = [0.0] if settings["method"] == "free" else [THRESHOLDS[settings["of"]]]
    if settings["method"] == "free":
        thresholds += [threshold_for(importance, share) for share in SHARES[1:]]
    points = []
    for threshold in thresholds:
        with watch_importance(model) as seen:
            figure = score(threshold)
        points.append({"threshold": threshold, "written": written_share(seen, threshold), "figure": figure})
    return {"points": points, "parameters": model.num_parameters(), "layers": list(memories(model))}


def threshold_for(importance: Tensor, share: float) -> float:
    """The lowest threshold with which at most `share` (and 2 %) of these importances [N] are written.

    Equal ones stand or fall together: of many fillers in a row all are left out where only a part would fit.
    """
    threshold = importance.quantile(1 - share)
    if float((importance >= threshold).float().mean()) > share + 0.02:
        threshold = threshold.nextafter(threshold.new_tensor(torch.inf))
    return float(threshold)


def _recall_score(model: Stack, settings: Mapping[str, Any]) -> Callable[[float | None], float]:
    task = settings_of(settings).task
    assert task is not None

    def score(threshold: float | None) -> float:
        plasticity = Plasticity(write_threshold=threshold)
        return evaluate_task(model, task, batches=settings["batches"], seed=settings["seed"], plasticity=plasticity)[
            "accuracy"
        ]

    return score


def _text_score(model: Stack, settings: Mapping[str, Any], place: Workplace) -> Callable[[float | None], float]:
    tokenizer = Tokenizer.load(place.folder / "model" / TOKENIZER_FILE)
    tokens = held_out_tokens(place.options.text / "held-out", tokenizer, settings["length"])

    def score(threshold: float | None) -> float:
        plasticity = Plasticity(write_threshold=threshold)
        return evaluate_stream(model, tokens, tokenizer=tokenizer, plasticity=plasticity).bits_per_byte

    return score


def held_out_tokens(folder: Path, tokenizer: Tokenizer, length: int) -> np.ndarray:
    """About `length` tokens: the beginnings of all files, one after the other."""
    files = text_files(folder)
    most = 1 + 4 * length // len(files)
    texts = [file.read_text(encoding="utf-8")[:most] for file in files]
    pieces = [tokenizer.encode(text)[: 1 + length // len(files)] for text in texts]
    return np.concatenate(pieces)[:length]


@torch.no_grad()
def times(length: int, repeats: int) -> Result:
    """Milliseconds of the memory's operation and of a whole model at several shares of written tokens."""
    generator = torch.Generator().manual_seed(0)
    found: Result = {}
    for width in (64, 256):
        shape = (1, length, 1, width)
        q, k, v = (torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(3))
        eta, log_decay = torch.rand(shape[:3], generator=generator), torch.full(shape[:3], -1e-4)
        order = torch.rand(shape[:3], generator=generator)
        found[f"memory, width {width}, {length} tokens"] = {
            str(share): _median(
                lambda mask=order < share: ops.synaptic_memory(q, k, v, eta=eta, log_decay=log_decay, mask=mask),  # noqa: B023
                repeats,
            )
            for share in (*SHARES, 0.0)
        }
    config = TextSSMNConfig(
        vocab_size=1024, hidden_dim=96, num_layers=5, num_heads=4, window_size=64, semantic_encoder=False
    )
    model = TextSSMN(config).eval()
    tokens = torch.randint(1024, (1, length), generator=generator)
    with watch_importance(model) as seen:
        model(tokens)
    importance = torch.cat([call.flatten() for calls in seen.values() for call in calls])
    found[f"whole model, {length} tokens"] = {}
    for share in SHARES:
        plasticity = Plasticity(write_threshold=threshold_for(importance, share) if share < 1 else 0.0)
        found[f"whole model, {length} tokens"][str(share)] = _median(
            lambda p=plasticity: model(tokens, plasticity=p), repeats
        )
    return found


def _median(call: Callable[[], object], repeats: int) -> float:
    call()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(taken)


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Every point of every seed for recall and text; the times."""
    made = []
    for of, title, figure in (
        ("recall", "Recall of 32 facts in 256 tokens", "right answers"),
        ("text", "Held-out text", "bits per byte"),
    ):
        rows = []
        for run in _of(finished, of):
            points = run["results"]["points"]
            base = _base(finished, of, run["settings"]["seed"])
            for point in points:
                change = "" if base is None else f"{100 * (point['figure'] / base - 1):+.2f} %"
                rows.append([
                    run["settings"]["method"], _goal(run), str(run["settings"]["seed"]), f"{point['threshold']:.3f}",
                    percent(point["written"]), f"{point['figure']:.4f}", change,
                ])  # fmt: skip
        if rows:
            head = ["training", "target", "seed", "threshold", "written", figure, "against all written"]
            made.append(Table(title, head, rows, texts=4))
    if "time" in finished:
        results = finished["time"]["results"]
        rows = [[name, *(f"{of.get(str(s), float('nan')):.2f}" if str(s) in of else "" for s in (*SHARES, 0.0))]
                for name, of in results.items()]  # fmt: skip
        head = ["", *map(percent, (*SHARES, 0.0))]
        made.append(Table("Milliseconds by share of written tokens", head, rows, texts=1))
    return made


def _of(finished: Mapping[str, Result], of: str) -> list[Result]:
    return [run for run in finished.values() if run["settings"]["of"] == of]


def _goal(run: Mapping[str, Any]) -> str:
    return "" if run["settings"]["method"] in ("free", "annealing") else percent(run["settings"]["rate"])


def _base(finished: Mapping[str, Result], of: str, seed: int) -> float | None:
    """The figure of the same seed trained without a target, with everything written."""
    for run in _of(finished, of):
        if run["settings"]["method"] == "free" and run["settings"]["seed"] == seed:
            return run["results"]["points"][0]["figure"]
    return None


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """What it costs against the share of written tokens."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for of, title in (("recall", "Recall: change of right answers (%)"), ("text", "Text: change of bits per byte (%)")):
        for run in _of(finished, of):
            base = _base(finished, of, run["settings"]["seed"])
            if base is None:
                continue
            lines = panels.setdefault(title, {}).setdefault(run["settings"]["method"], {})
            for point in run["results"]["points"]:
                # Seeds differ a little in what they write: to be drawn as one, they are rounded.
                written = round(100 * point["written"])
                lines.setdefault(written, []).append(100 * (point["figure"] / base - 1))
    if not panels:
        return None
    return plots.spread_lines(panels, look, "tokens written (%)", "change (%)", x_log=False, y_range=None)


PART = Part("sparse", "Few writes: recall, text and time by share of written tokens.", runs, measure, tables, drawing)
