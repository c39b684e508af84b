"""Second reading: how much better a passage is predicted when it is read again.

By the shipped model, with its output memory and without, and by the models of the part `lm`.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace, finished
from ssmn.bench.quality.text import lm
from ssmn.bench.quality.text.language import GENRES, language, stretches
from ssmn.bench.quality.text.texts import bits_per_byte, losses, over_seeds
from ssmn.bench.report import Table
from ssmn.config import Plasticity
from ssmn.files import shipped_model
from ssmn.layers import SlidingWindowAttention
from ssmn.models import TextSSMN
from ssmn.training import Tokenizer
from ssmn.training.loop import TOKENIZER_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

PASSAGE, BETWEEN = 1_024, 4_096
LENGTHS = (64, 128, 256, 512, 1_024, 2_048, 4_096)
ROWS = 8
"""Passages of each genre."""


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Two runs for a trained model, then one for every model of the part `lm` whose weights are there."""
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    settings = {"lengths": lengths, "passage": lengths[-1] if options.quick else PASSAGE}
    model = "shipped" if options.model == shipped_model() else str(options.model)
    for output_memory in (False, True):
        name = f"shipped-{'output-memory' if output_memory else 'plain'}-0"
        yield Run(name, {**settings, "model": model, "output_memory": output_memory})
    done = finished(PART, options.out)
    for name in finished(lm.PART, options.out):
        is_there = (options.out / lm.PART.name / name / "model.safetensors").exists()
        if "-rate-" not in name and not name.startswith("short-") and (is_there or name in done):
            yield Run(name, settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Reads passages twice: at once, after other text, at several lengths, and with the memory frozen."""
    words, is_given = language(place.options), "model" in run.settings
    if is_given:
        folder = place.options.model
        model = TextSSMN.from_pretrained(folder, output_memory=run.settings["output_memory"])
        tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    else:
        model = TextSSMN.from_pretrained(place.options.out / lm.PART.name / run.name)
        tokenizer = words.tokenizer
    passage, quick = run.settings["passage"], place.options.quick
    between = 64 if quick else BETWEEN
    longest = max(*run.settings["lengths"], passage + between)
    wanted = 2 * longest if is_given else longest
    text = np.concatenate([stretches(words.held_out[genre], 1 if quick else ROWS, wanted) for genre in GENRES])
    text = _translated(text, words.tokenizer, tokenizer, longest) if is_given else text
    lengths, result = tokenizer.byte_lengths, {"by_length": {}}
    for done, length in enumerate(run.settings["lengths"]):
        result["by_length"][str(length)] = reread(model, text[:, :length], lengths)
        if place.on_step(done + 1, len(run.settings["lengths"]), f"passages of {length}"):
            return None
    result["at_once"] = result["by_length"][str(passage)]
    first, other = text[:, :passage], np.roll(text, 1, axis=0)[:, passage : passage + between]
    result["after_other_text"] = reread(model, first, lengths, other)
    assert model.config.layer_types is not None
    if "plastic" in model.config.layer_types:
        result["frozen"] = reread(model, first, lengths, plasticity=Plasticity(frozen=True))
    if set(model.config.layer_types) == {"static"} and model.config.window_size == lm.CONTEXT:
        for block in model.blocks:  # full attention: both readings are in view
            assert isinstance(block.mixer, SlidingWindowAttention)
            block.mixer.window_size = 2 * passage
        result["all_in_view"] = reread(model, first, lengths)
    return result


def _translated(rows: np.ndarray, told: Tokenizer, wanted: Tokenizer, length: int) -> np.ndarray:
    """Rows of one tokenizer's tokens as rows of another's, of at most `length`: [B, ..]."""
    texts = [wanted.encode(told.decode(row)) for row in rows]
    length = min(length, *map(len, texts))
    return np.stack([text[:length] for text in texts])


def reread(
    model: TextSSMN,
    passages: np.ndarray,
    byte_lengths: np.ndarray,
    between: np.ndarray | None = None,
    plasticity: Plasticity | None = None,
) -> dict[str, float]:
    """Bits per byte of the first and the second reading, and the share that is saved.

    Args:
        model: The model; it starts fresh.
        passages: [B, L] tokens. The first token is not scored, since nothing comes before it.
        byte_lengths: Bytes of each token.
        between: [B, N] other tokens between the readings.
        plasticity: How strongly to learn and forget.

    Returns:
        `first`, `second` and `gain` = 1 − second ÷ first.
    """
    length = passages.shape[1]
    parts = [passages, passages] if between is None else [passages, between, passages]
    nats, _ = losses(model, np.concatenate(parts, 1), plasticity=plasticity)
    first, second = (
        bits_per_byte(part, passages, byte_lengths) for part in (nats[:, : length - 1], nats[:, 1 - length :])
    )
    return {"first": first, "second": second, "gain": 1 - second / first}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """A row for each model over its seeds; and the gain by the length of the passage."""
    rows, gains, groups = [], [], _groups(finished)
    lengths = sorted({int(length) for group in groups.values() for result in group for length in result["by_length"]})
    for name, group in groups.items():
        at_once = [result["at_once"] for result in group]
        ways = ([result[way]["gain"] for result in group if way in result]
                for way in ("at_once", "after_other_text", "frozen", "all_in_view"))  # fmt: skip
        readings = (over_seeds([result[which] for result in at_once]) for which in ("first", "second"))
        ratio = statistics.mean(result["second"] / result["first"] for result in at_once)
        rows.append([name, *readings, f"{ratio:.3f}", *(_percent(found) for found in ways), str(len(group))])
        by_length = {length: [result["by_length"][str(length)]["gain"] for result in group
                              if str(length) in result["by_length"]] for length in lengths}  # fmt: skip
        gains.append([name, *(_percent(found) for found in by_length.values()), _end(by_length)])
    head = ["model", "first", "second", "second ÷ first", "gain", f"after {BETWEEN:,} other tokens", "memory frozen",
            "both readings in view", "seeds"]  # fmt: skip
    return [
        Table(f"second reading of passages of {PASSAGE:,} tokens, bits per byte", head, rows, texts=1),
        Table("gain of the second reading by the length of the passage",
              ["model", *(f"{length:,}" for length in lengths), "below 1 % from"], gains, texts=1),
    ]  # fmt: skip


def drawing(finished: Mapping[str, Result], look: Look) -> Figure:
    """The gain against the length of the passage."""
    from ssmn import plots

    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for name, group in _groups(finished).items():
        budget, _, model = name.partition("-")
        panel = f"{budget} budget" if budget in lm.BUDGETS else f"{budget} model"
        line = panels.setdefault(panel, {}).setdefault(model, {})
        for result in group:
            for length, read in result["by_length"].items():
                line.setdefault(float(length), []).append(100 * read["gain"])
    return plots.spread_lines(panels, look, "tokens of the passage", "gain of the second reading (%)", y_range=None)


def _groups(finished: Mapping[str, Result]) -> dict[str, list[Result]]:
    """Results of all seeds by budget and model."""
    groups: dict[str, list[Result]] = {}
    for key, run in finished.items():
        groups.setdefault(key.rpartition("-")[0], []).append(run["results"])
    return groups


def _percent(gains: list[float]) -> str:
    return f"{100 * statistics.mean(gains):.1f} %" if gains else ""


def _end(by_length: Mapping[int, list[float]]) -> str:
    """The shortest passage from which on the gain stays below 1 %."""
    end = ""
    for length, gains in sorted(by_length.items(), reverse=True):
        if gains and statistics.mean(gains) >= 0.01:
            return end or f"over {length:,}"
        end = f"{length:,}"
    return end


PART = Part(
    "second-reading",
    "What the shipped model, and those of the part `lm`, gain by reading again.",
    runs,
    measure,
    tables,
    drawing,
)
