"""The plastic output memory on long documents: bits per byte with and without it, beside the caches that it must beat.

All methods start from the same hidden vectors of the same model, so they differ in nothing else. The settings of every
method are chosen on the long documents of the validation set; the held-out ones are read once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssmn import ops
from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.report import Table
from ssmn.config import Plasticity
from ssmn.errors import FileError
from ssmn.files import shipped_model
from ssmn.layers import OutputMemory
from ssmn.models import TextSSMN, load_model
from ssmn.training import Tokenizer
from ssmn.training.data import read_text, text_files

PIECE = 1_024
"""Steps of a call; has no influence on the figures."""

LONG = 50_000
"""Tokens that a document must have."""

READ = 8_192
"""Tokens of each that are predicted, from its beginning."""

METHODS: dict[str, list[dict[str, float]]] = {
    "output memory": [
        {"eta": eta, "decay": decay, "switch": switch}
        for eta, decay, switch in (
            (0.5, 0.0, 0.1),
            (1.0, 0.0, 0.01),
            (1.0, 0.0, 0.1),
            (1.0, 0.0, 0.3),
            (2.0, 0.0, 0.1),
            (1.0, 1e-5, 0.1),
        )
    ],
    "output bias alone": [{"eta": eta, "decay": 0.0, "switch": 0.1} for eta in (0.05, 0.1, 0.2)],
    "unigram cache": [{"share": share, "decay": decay} for share, decay in ((0.05, 1e-3), (0.1, 1e-3), (0.05, 2e-4))],
    "bigram cache": [{"share": share, "trust": trust} for share, trust in ((0.1, 2.0), (0.2, 2.0), (0.2, 8.0))],
    "neural cache": [{"share": share, "sharpness": sharp} for share, sharp in ((0.1, 20.0), (0.2, 20.0), (0.2, 10.0))],
}
"""The settings among which each method's are chosen. The neural cache's sharpness multiplies the cosine of two keys."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One document as the model saw it.

    Attributes:
        name: Of its file.
        tokens: [T + 1] int64.
        hidden: [T, D].
        weight: [V, D], the output's.
        byte_count: Bytes of the T tokens that are predicted.
    """

    name: str
    tokens: Tensor
    hidden: Tensor
    weight: Tensor
    byte_count: int

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Stretches of the document with their logits; all logits at once would not fit into memory."""
        for begin in range(0, len(self.hidden), PIECE):
            part = slice(begin, begin + PIECE)
            yield part, functional.linear(self.hidden[part], self.weight)

    def nats(self, part: slice, logits: Tensor) -> NDArray[np.float64]:
        """Losses of a stretch."""
        return functional.cross_entropy(logits, self.tokens[1:][part], reduction="none").double().numpy()

    def bits_per_byte(self, nats: NDArray[np.float64]) -> float:
        """Of the losses [T]."""
        return float(nats.sum()) / math.log(2) / self.byte_count


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Each method's choice on the validation set, then all methods on the held-out one, and the cost."""
    model = "shipped" if options.model == shipped_model() else str(options.model)
    settings = {"model": model, "tokens": READ, "quick": options.quick}
    best = {}
    for method, choices in METHODS.items():
        name = method.replace(" ", "-")
        found = yield Run(f"choose-{name}", {**settings, "method": method, "choices": choices})
        best[method] = None if found is None else found["best"]
    if None not in best.values():
        yield Run("held-out", {**settings, "settings": best})
    if best["output memory"] is not None:
        yield Run("cost", {**settings, "settings": best["output memory"]})


def measure(run: Run, place: Workplace) -> Result | None:
    """One run, see `runs`."""
    model, tokenizer = _load(place.options)
    if run.name == "cost":
        return _cost(model, run.settings["settings"], place.options.quick)
    part = "held-out" if run.name == "held-out" else "validation"
    files = text_files(place.options.text / part)
    documents = list(_long_documents(files, tokenizer, place.options.quick))
    if not documents:
        raise FileError(
            f"output-memory: {place.options.text / part} has no document of {LONG:,} tokens; see docs/corpus.md."
        )
    rows: list[Result] = []
    for number, (file, tokens) in enumerate(documents):
        reading = _read(model, tokenizer, file, tokens)
        base = np.concatenate([reading.nats(*piece) for piece in reading.pieces()])
        row: Result = {"document": reading.name, "tokens": len(base), "model": reading.bits_per_byte(base)}
        if run.name == "held-out":
            asked = {method: [chosen] for method, chosen in run.settings["settings"].items()}
        else:
            asked = {run.settings["method"]: run.settings["choices"]}
        for method, choices in asked.items():
            row[method] = [reading.bits_per_byte(_adapt(method, reading, base, choice)) for choice in choices]
        rows.append(row)
        if place.on_step(number + 1, len(documents), reading.name):
            return None
    if run.name == "held-out":
        return {"documents": rows}
    gains = [
        [_gain(row, method, number) for row in rows]
        for method, choices in asked.items()
        for number in range(len(choices))
    ]
    middle = [statistics.mean(gain) for gain in gains]
    return {"documents": rows, "mean_gain": middle, "best": run.settings["choices"][int(np.argmax(middle))]}


def _load(options: Options) -> tuple[TextSSMN, Tokenizer]:
    model = load_model(options.model, output_memory=True).eval()
    assert isinstance(model, TextSSMN)
    return model, Tokenizer.load(options.model / "tokenizer.json")


def _long_documents(
    files: list[Path], tokenizer: Tokenizer, quick: bool
) -> Generator[tuple[Path, NDArray[np.integer]], None, None]:
    found = 0
    for file in files:
        if file.stat().st_size < LONG:  # a token has a byte at least
            continue
        tokens = tokenizer.encode(read_text(file, utf8=True))
        if len(tokens) <= LONG:
            continue
        found += 1
        if quick and found > 1:
            return
        yield file, tokens[: 400 if quick else READ + 1]


@torch.no_grad()
def _read(model: TextSSMN, tokenizer: Tokenizer, file: Path, tokens: NDArray[np.integer]) -> Reading:
    ids, state, found = torch.from_numpy(tokens.astype(np.int64)), None, []
    for begin in range(0, len(ids) - 1, PIECE):
        hidden, state = model.hidden(ids[begin : min(begin + PIECE, len(ids) - 1)].unsqueeze(0), state)
        found.append(hidden[0])
    hidden = torch.cat(found)
    weight = model.embedding.weight if model.output is None else model.output.weight
    byte_count = int(tokenizer.byte_lengths[tokens[1:]].sum())
    return Reading(f"{file.parent.name}/{file.name}", ids, hidden, weight.detach(), byte_count)


def _adapt(
    method: str, reading: Reading, base: NDArray[np.float64], settings: Mapping[str, float]
) -> NDArray[np.float64]:
    """The losses [T] of the model with a method; `base` are those without one."""
    if method == "output memory":
        return _output_memory(reading, settings)
    if method == "output bias alone":
        return _output_bias(reading, settings)
    cached, share = {"unigram cache": _unigram, "bigram cache": _bigram, "neural cache": _neural}[method](
        reading, settings
    )
    return -np.log((1 - share) * np.exp(-base) + share * cached + 1e-30)


@torch.no_grad()
def _output_memory(reading: Reading, settings: Mapping[str, float]) -> NDArray[np.float64]:
    vocab_size, hidden_dim = reading.weight.shape
    memory = OutputMemory(vocab_size, hidden_dim, settings["eta"], settings["decay"], settings["switch"])
    state, found = None, []
    for part, logits in reading.pieces():
        steps = (x.unsqueeze(0) for x in (logits, reading.hidden[part], reading.tokens[:-1][part]))
        adapted, state = memory(*steps, state)
        found.append(reading.nats(part, adapted[0]))
    return np.concatenate(found)


@torch.no_grad()
def _output_bias(reading: Reading, settings: Mapping[str, float]) -> NDArray[np.float64]:
    """Dynamic evaluation of a bias: the same memory with a key that is always 1."""
    state, found = None, []
    for part, logits in reading.pieces():
        tokens = reading.tokens[:-1][part].unsqueeze(0)
        ones = torch.ones_like(tokens, dtype=torch.float32)
        adapted, state = ops.output_memory(
            logits.unsqueeze(0), ones.unsqueeze(-1), tokens, eta=settings["eta"] * ones,
            log_decay=math.log1p(-settings["decay"]) * ones, switch=settings["switch"], initial_state=state,
        )  # fmt: skip
        found.append(reading.nats(part, adapted[0]))
    return np.concatenate(found)


def _unigram(reading: Reading, settings: Mapping[str, float]) -> tuple[NDArray[np.float64], float]:
    """A token's share of those read so far, older ones counting less; the share of the cache is fixed."""
    tokens, growth = reading.tokens.tolist(), 1 / (1 - settings["decay"])
    counts, total, weight, found = dict.fromkeys(range(len(reading.weight)), 0.0), 0.0, 1.0, []
    for now, following in itertools.pairwise(tokens):
        counts[now] += weight
        total += weight
        found.append(counts[following] / total)
        weight *= growth
        if weight > 1e200:
            counts = {token: count / weight for token, count in counts.items()}
            total, weight = total / weight, 1.0
    return np.array(found), settings["share"]


def _bigram(reading: Reading, settings: Mapping[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What followed this token before; the share of the cache grows with how often it was seen."""
    after: dict[int, Counter[int]] = defaultdict(Counter)
    totals: Counter[int] = Counter()
    found, shares = [], []
    for now, following in itertools.pairwise(reading.tokens.tolist()):
        total = totals[now]
        found.append(after[now][following] / total if total else 0.0)
        shares.append(settings["share"] * total / (total + settings["trust"]))
        after[now][following] += 1
        totals[now] += 1
    return np.array(found), np.array(shares)


def _neural(reading: Reading, settings: Mapping[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What followed hidden vectors like this one (Grave et al., 2017), among as many as the memory has rows."""
    keys, following = functional.normalize(reading.hidden, dim=-1), reading.tokens[1:]
    room, found = len(reading.weight), []
    for begin in range(0, len(keys), PIECE):
        now = keys[begin : begin + PIECE]
        first = max(0, begin - room)
        scores = settings["sharpness"] * now @ keys[first : begin + len(now)].T
        age = torch.arange(begin, begin + len(now)).unsqueeze(1) - torch.arange(first, begin + len(now))
        weights = scores.masked_fill((age <= 0) | (age > room), -torch.inf).softmax(-1).nan_to_num()
        same = following[begin : begin + len(now)].unsqueeze(1) == following[first : begin + len(now)]
        found.append((weights * same).sum(-1).double().numpy())
    shares = np.full(len(keys), settings["share"])
    shares[0] = 0.0
    return np.concatenate(found), shares


def _gain(row: Result, method: str, number: int = 0) -> float:
    """Per cent of the bits that a method saves."""
    return 100 * (1 - row[method][number] / row["model"])


@torch.no_grad()
def _cost(model: TextSSMN, settings: Mapping[str, float], quick: bool) -> Result:
    """Microseconds per token that the memory adds, in pieces and step by step in the engine; bytes of its state."""
    from ssmn.engine import Engine

    memory, config = model.output_memory, model.config
    assert memory is not None
    generator = torch.Generator().manual_seed(0)
    pieces, length, steps = (1, 64, 20) if quick else (8, PIECE, 1000)
    tokens = torch.randint(config.vocab_size, (pieces, 1, length), generator=generator)
    asked = Plasticity(output_eta=settings["eta"], output_decay=settings["decay"])
    with_it, without, state = [], [], model.init_state(1)
    for piece in tokens:
        begun = time.perf_counter()
        hidden, state = model.hidden(piece, state)
        logits = functional.linear(hidden, model.embedding.weight)
        between = time.perf_counter()
        _, head = memory(logits, hidden, piece, state.head, plasticity=asked)  # type: ignore[arg-type]
        state = dataclasses.replace(state, head=head)
        without.append((between - begun) / length)
        with_it.append((time.perf_counter() - between) / length)
    stepped = {}
    for name, changed in (("without", False), ("with", True)):
        engine = Engine(_changed(model, changed))
        numbers = tokens.flatten().tolist()[:steps]
        times = []
        for token in numbers:
            begun = time.perf_counter()
            engine.step(token)
            times.append(time.perf_counter() - begun)
        stepped[name] = 1e6 * statistics.median(times)
    return {
        "pieces": {"model": 1e6 * statistics.median(without), "memory": 1e6 * statistics.median(with_it)},
        "engine": stepped,
        "state_bytes": memory.init_state(1).nbytes,
        "parameters": model.num_parameters(),
        "vocab_size": config.vocab_size,
        "hidden_dim": config.hidden_dim,
    }


def _changed(model: TextSSMN, output_memory: bool) -> TextSSMN:
    other = TextSSMN(dataclasses.replace(model.config, output_memory=output_memory))
    other.load_state_dict(model.state_dict())
    return other


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Bits per byte of every held-out document, the methods beside each other, and the cost."""
    made = []
    if "held-out" in finished:
        rows, chosen = finished["held-out"]["results"]["documents"], finished["held-out"]["settings"]["settings"]
        head = ["document", "tokens", "model", *(f"{method}, %" for method in METHODS)]
        cells = []
        for row in rows:
            gains = [f"{_gain(row, method):+.2f}" for method in METHODS]
            cells.append([row["document"], f"{row['tokens']:,}", f"{row['model']:.4f}", *gains])
        for name, summary in (("median", statistics.median), ("worst", min)):
            gains = [summary([_gain(row, method) for row in rows]) for method in METHODS]
            cells.append([name, "", "", *(f"{gain:+.2f}" for gain in gains)])
        named = (f"{method}: {', '.join(f'{k} {v:g}' for k, v in chosen[method].items())}" for method in METHODS)
        caption = f"bits per byte of the model, and how much lower they are with each method ({'; '.join(named)})"
        made.append(Table("Adaptation on long held-out documents", head, cells, caption, texts=1))
    if "cost" in finished:
        cost = finished["cost"]["results"]
        rows = [
            ["pieces of 1,024 in torch", f"{cost['pieces']['model']:.1f}", f"{cost['pieces']['memory']:.1f}"],
            [
                "steps of the engine",
                f"{cost['engine']['without']:.1f}",
                f"{cost['engine']['with'] - cost['engine']['without']:.1f}",
            ],
        ]
        caption = (
            f"microseconds per token; {cost['parameters']:,} parameters, vocabulary {cost['vocab_size']:,}, width "
            f"{cost['hidden_dim']}; {cost['state_bytes']:,} bytes of state per stream"
        )
        made.append(Table("Cost of the output memory", ["", "model", "memory"], rows, caption, texts=1))
    return made


PART = Part(
    "output-memory",
    "Bits per byte of long documents with the plastic output memory, and its cost.",
    runs,
    measure,
    tables,
)
