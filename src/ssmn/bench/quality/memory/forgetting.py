"""Forgetting: how recall falls with the age of a fact, what rehearsal saves, and whether a million tokens fill it up.

One endless stream of real text with a fact every few tokens. Most facts bind a key to a new value, so the newest
statement of a key is the one to recall; every fourth is one of a few that are stated again and again, unchanged.
At some positions the stream is asked about everything, each question put to a copy of the state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.models import settings_of, trained
from ssmn.bench.report import Table
from ssmn.config import Plasticity
from ssmn.models.stack import Stack
from ssmn.state import StreamState
from ssmn.training.evaluate import outputs_of
from ssmn.training.filler import text_filler
from ssmn.training.tasks import Batch, RecallInText

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

POSITIONS = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)
RECENT = 16
"""Facts since the statement, below which one is recent."""
_SLOT = 16
"""Tokens from one fact to the next, the fact's three included."""
_EVERY = 4
"""Every so manyth fact is one of the rehearsed."""
_REHEARSED = 8
"""So each of them is stated every 32 facts, or 512 tokens."""

_QUICK = ["train.steps=2", "train.batch_size=2", "task.distance=20", "task.pairs=4", "task.text_bytes=20000"]


@dataclass
class FactStream:
    """The stream, and what has been stated in it.

    Attributes:
        task: Says how facts and questions look, and where the text is from.
        seed: Which facts and which text.
    """

    task: RecallInText
    seed: int
    slot: int = 0
    """Facts stated so far."""
    values: dict[int, int] = field(default_factory=dict)
    """The newest value of each key."""
    stated: dict[int, int] = field(default_factory=dict)
    """The slot in which each key was stated last."""

    def __post_init__(self) -> None:
        task = self.task
        self._random = np.random.default_rng([self.seed, 1])
        text = text_filler(task.text, task.vocab_size - 2, task.text_bytes).tokens["held-out"].numpy()
        self._text, self._at = text, int(self._random.integers(len(text)))
        keys = self._random.permutation(task.vocab_size - 2)
        self.rehearsed, self._others = keys[:_REHEARSED].tolist(), keys[_REHEARSED:]
        self._fixed = self._random.integers(task.vocab_size - 2, size=_REHEARSED).tolist()

    def read(self, tokens: int) -> np.ndarray:
        """The next tokens, a multiple of a slot."""
        pieces = []
        for _ in range(tokens // _SLOT):
            if self.slot % _EVERY == 0:
                number = self.slot // _EVERY % _REHEARSED
                key, value = self.rehearsed[number], self._fixed[number]
            else:
                key = int(self._random.choice(self._others))
                value = int(self._random.integers(self.task.vocab_size - 2))
            self.values[key], self.stated[key] = value, self.slot
            words = self._text[np.arange(self._at, self._at + _SLOT - 3) % len(self._text)]
            self._at += _SLOT - 3
            pieces += [np.array([self.task.fact, key, value]), words]
            self.slot += 1
        return np.concatenate(pieces)


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """A run for each seed."""
    for seed in range(options.seeds):
        settings = {
            "config": "text-facts",
            "set": [f"task.text={options.text}", *(_QUICK if options.quick else [])],
            "seed": seed,
            "positions": [64, 256] if options.quick else list(POSITIONS),
            "rows": 1 if options.quick else 2,
        }
        yield Run(f"stream-{seed}", settings)


def measure(run: Run, place: Workplace) -> Result | None:
    """Recall by age at every position, for facts stated once and for rehearsed ones."""
    model, settings = trained(run.settings, place), run.settings
    if model is None:
        return None
    task = settings_of(settings).task
    assert isinstance(task, RecallInText)
    streams = [FactStream(task, 1000 * settings["seed"] + row) for row in range(settings["rows"])]
    found = {str(position): ages for position, ages in recall_by_age(model, streams, settings["positions"])}
    return {"recall": found, "state_bytes": model.init_state(1).nbytes}


@torch.no_grad()
def recall_by_age(
    model: Stack,
    streams: list[FactStream],
    positions: list[int],
    plasticity: Plasticity | None = None,
    piece_length: int = 4096,
) -> Iterator[tuple[int, dict[str, dict[str, tuple[float, int]]]]]:
    """Reads the streams side by side; at each position (a multiple of a slot) recall as (share, questions).

    By `once` and `rehearsed`, then by age: facts since the last statement, rounded down to a power of two.
    """
    state, read = None, 0
    for position in positions:
        while read < position:
            length = min(piece_length, position - read)
            piece = torch.from_numpy(np.stack([stream.read(length) for stream in streams]))
            silent = Batch(piece, piece, torch.zeros_like(piece, dtype=torch.bool), "facts")
            _, state = outputs_of(model, silent, state, plasticity=plasticity)
            read += length
        assert state is not None
        yield position, _ask(model, streams, state, plasticity)


def _ask(
    model: Stack, streams: list[FactStream], state: StreamState, plasticity: Plasticity | None
) -> dict[str, dict[str, tuple[float, int]]]:
    right: dict[tuple[str, int], float] = defaultdict(float)
    count: dict[tuple[str, int], int] = defaultdict(int)
    for row, stream in enumerate(streams):
        keys = list(stream.values)
        inputs = torch.tensor([[stream.task.ask, key] for key in keys])
        targets = torch.tensor([[0, stream.values[key]] for key in keys])
        questions = Batch(inputs, targets, torch.tensor([[False, True]]).expand_as(inputs), "facts")
        output, _ = outputs_of(model, questions, state.select([row] * len(keys)), plasticity=plasticity)
        assert isinstance(output, torch.Tensor)  # logits, as of every text model
        is_right = (output.argmax(-1) == targets[:, 1]).tolist()
        rehearsed = set(stream.rehearsed)
        for key, good in zip(keys, is_right, strict=True):
            age = stream.slot - 1 - stream.stated[key]
            bin_of = ("rehearsed" if key in rehearsed else "once", 1 << int(math.log2(age)) if age else 0)
            right[bin_of] += good
            count[bin_of] += 1
    found: dict[str, dict[str, tuple[float, int]]] = {"once": {}, "rehearsed": {}}
    for kind, age in sorted(count):
        found[kind][str(age)] = (right[kind, age] / count[kind, age], count[kind, age])
    return found


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Recall by age at the last position, and recall of recent facts at every position."""
    runs = sorted(finished.values(), key=lambda run: run["settings"]["seed"])
    seeds = [f"seed {run['settings']['seed']}" for run in runs]
    last = str(runs[0]["settings"]["positions"][-1])
    ages = sorted({int(age) for run in runs for kind in run["results"]["recall"][last].values() for age in kind})
    by_age = []
    for kind in ("once", "rehearsed"):
        for age in ages:
            found = [run["results"]["recall"][last][kind].get(str(age)) for run in runs]
            if any(found):
                asked = sum(cell[1] for cell in found if cell)
                cells = ["" if cell is None else f"{cell[0]:.3f}" for cell in found]
                by_age.append([kind, f"{age:,} to {max(age, 2 * age - 1):,}", *cells, f"{asked:,}"])
    recent = []
    for position in runs[0]["settings"]["positions"]:
        found = [run["results"]["recall"][str(position)] for run in runs]
        for kind in ("once", "rehearsed"):
            recent.append([kind, f"{position:,}", *(f"{_recent(ages[kind], kind):.3f}" for ages in found)])
    return [
        Table(
            f"Recall at position {int(last):,} by facts since the last statement",
            ["stated", "age (facts)", *seeds, "questions"], by_age, f"a fact every {_SLOT} tokens",
        ),
        Table(
            "Recall by position",
            ["stated", "position (tokens)", *seeds], recent,
            f"once: facts of the last {RECENT}; rehearsed: all, each stated every {_EVERY * _REHEARSED} facts",
        ),
    ]  # fmt: skip


def _recent(ages: Mapping[str, tuple[float, int]], kind: str) -> float:
    """Recall over the recent ages, or over all ages of what is rehearsed."""
    chosen = [cell for age, cell in ages.items() if kind == "rehearsed" or int(age) < RECENT]
    return sum(share * count for share, count in chosen) / max(1, sum(count for _, count in chosen))


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """Recall against the time since a fact was first stated, and against the position."""
    from ssmn import plots

    age: dict[str, dict[float, list[float]]] = {"stated once": {}, "stated every 512 tokens": {}}
    place: dict[str, dict[float, list[float]]] = {"stated once": {}, "stated every 512 tokens": {}}
    for run in finished.values():
        positions = run["settings"]["positions"]
        for position in positions:
            at = run["results"]["recall"][str(position)]
            place["stated once"].setdefault(position, []).append(_recent(at["once"], "once"))
            for table in (age, place):
                table["stated every 512 tokens"].setdefault(position, []).append(_recent(at["rehearsed"], "rehearsed"))
        for facts, (share, count) in run["results"]["recall"][str(positions[-1])]["once"].items():
            if count >= RECENT:
                age["stated once"].setdefault(max(1, int(facts)) * _SLOT, []).append(share)
    panels = {"By tokens since a fact was first stated": age, "Recent facts, by position in the stream": place}
    return plots.spread_lines(panels, look, "tokens", "right answers")


PART = Part("forgetting", "Recall by age, rehearsal, and a million tokens.", runs, measure, tables, drawing)
