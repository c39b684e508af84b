"""What the semantic encoder is worth: bits per byte at equal size, and what a probe finds in its thought embeddings.

The probe is a linear map from a vector to the part of speech of the word that ends there, fitted on half of the Brown
corpus and tested on the other half. What a form is most often needs no context, so the words whose form has several
parts of speech are counted by themselves; so are words that the tokenizer has cut, of which the last token says little.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.peers import of_size
from ssmn.bench.quality.text import brown
from ssmn.bench.report import Table
from ssmn.config import TextSSMNConfig
from ssmn.files import shipped_model
from ssmn.models import TextSSMN
from ssmn.state import EncoderState
from ssmn.training import Tokenizer, TrainConfig, evaluate_stream, train
from ssmn.training.data import Corpus, read_text, shuffled, text_files
from ssmn.training.loop import CHECKPOINT_FILE

VOCABULARY, PARAMETERS = 2_048, 600_000
MODEL: dict[str, Any] = {"hidden_dim": 96, "num_layers": 5, "num_heads": 4, "num_kv_heads": 2, "window_size": 64}
TRAIN: dict[str, Any] = {
    "steps": 250, "batch_size": 16, "piece_length": 256, "learning_rate": 4e-3, "tensorboard": False,
    "checkpoint_every": 50,
}  # fmt: skip
TRAINED_BYTES, EVALUATED_BYTES = 6_000_000, 400_000
PROBED_WORDS = 60_000
"""Of each half of the corpus."""

SHIPPED = "probe-shipped"
"""The run that probes a trained model."""

AMBIGUOUS = 0.1
"""A form is ambiguous if this share of its occurrences has another part of speech than most."""


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """The probe of a trained model; with and without the encoder for each seed, then the probe of the former."""
    probe = {"words": PROBED_WORDS, "package": brown.PACKAGE}
    model = "shipped" if options.model == shipped_model() else str(options.model)
    yield Run(SHIPPED, {**probe, "model": model})
    for seed in range(options.seeds):
        for name, has_encoder in (("without", False), ("with", True)):
            yield Run(f"{name}-{seed}", _settings(has_encoder, seed, options.quick))
        yield Run(f"probe-{seed}", {**probe, "model": f"with-{seed}"})


def _settings(has_encoder: bool, seed: int, quick: bool) -> dict[str, Any]:
    model = {**MODEL, "semantic_encoder": has_encoder, **({"hidden_dim": 16, "num_heads": 2} if quick else {})}
    vocabulary = 300 if quick else VOCABULARY
    config = of_size(TextSSMNConfig(vocab_size=vocabulary, **model), 40_000 if quick else PARAMETERS)
    given = {name: value for name, value in config.to_dict().items() if name not in ("kind", "vocab_size")}
    return {
        "seed": seed,
        "data": {"text": "data/text/train", "tokenizer": "bpe", "vocab_size": vocabulary},
        "model": {name: "none" if value is None else value for name, value in given.items()},
        "train": {**TRAIN, **({"steps": 2, "batch_size": 2, "piece_length": 32} if quick else {})},
    }


def measure(run: Run, place: Workplace) -> Result | None:
    """Trains one model and reads the validation text, or probes one."""
    if "model" in run.settings and isinstance(run.settings["model"], str):
        own = place.options.out / PART.name / run.settings["model"]
        return _probe(place.options, place.options.model if run.name == SHIPPED else own)
    own = place.options.out / PART.name
    tokenizer = _tokenizer(place.options, own / "tokenizer.json", run.settings["data"]["vocab_size"])
    share = 50 if place.options.quick else 1
    begin = Corpus.from_text(_some(place.options.text / "train", TRAINED_BYTES // share), tokenizer)
    late = Corpus.from_text(_some(place.options.text / "validation", EVALUATED_BYTES // share), tokenizer)
    resume = (place.folder / CHECKPOINT_FILE).exists()

    def on_step(progress: Any) -> bool:
        return place.on_step(progress.step, progress.steps, f"loss {progress.loss:.3f}")

    config = TrainConfig.from_dict(run.settings)
    result = train(config, place.folder, resume=resume, on_step=on_step, corpora=(begin, late.split(0.0)[0]))
    if result.interrupted:
        return None
    score = evaluate_stream(result.model, late.steps, tokenizer=tokenizer)
    return {"bits_per_byte": score.bits_per_byte, "parameters": result.model.num_parameters()}


def _some(folder: Path, size: int) -> list[Path]:
    """Files of all kinds, of about so many bytes together."""
    found, total = [], 0
    for file in shuffled(text_files(folder), seed=0):
        if file.stat().st_size > max(size // 8, 50_000):
            continue  # or a single one would be most of it
        found.append(file)
        total += file.stat().st_size
        if total >= size:
            break
    return found


def _tokenizer(options: Options, path: Path, vocab_size: int) -> Tokenizer:
    if not path.exists():
        files = _some(options.text / "train", TRAINED_BYTES // (50 if options.quick else 2))
        texts = (read_text(file, utf8=True).decode() for file in files)
        Tokenizer.train_bpe(texts, vocab_size).save(path)
    return Tokenizer.load(path)


@dataclass(frozen=True)
class Words:
    """Words as the model reads them: the tokens of a text, and of each word where it ends.

    Attributes:
        tokens: [T] int64.
        ends: [N], the place of each word's last token.
        labels: [N], its part of speech.
        forms: The words in lower case.
        whole: [N] bool, whether the word is one token.
    """

    tokens: Tensor
    ends: Tensor
    labels: Tensor
    forms: list[str]
    whole: NDArray[np.bool_]


def _words(documents: list[list[brown.Word]], tokenizer: Tokenizer, most: int) -> Words:
    tokens: list[int] = []
    ends, labels, forms, whole = [], [], [], []
    for word in (word for document in documents for word in document):
        if len(ends) == most:
            break
        piece = tokenizer.encode(word.text).tolist()
        tokens += piece
        ends.append(len(tokens) - 1)
        labels.append(word.label)
        forms.append(word.text.strip().lower())
        whole.append(len(piece) == 1)
    return Words(torch.tensor(tokens), torch.tensor(ends), torch.tensor(labels), forms, np.array(whole))


def _ambiguous(documents: list[list[brown.Word]]) -> set[str]:
    """Forms that are often enough something else than they are most often."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for word in (word for document in documents for word in document):
        counts[word.text.strip().lower()][word.label] += 1
    return {
        form
        for form, seen in counts.items()
        if seen.total() >= 10 and seen.most_common(1)[0][1] <= (1 - AMBIGUOUS) * seen.total()
    }


@torch.no_grad()
def _vectors(model: TextSSMN, words: Words) -> dict[str, Tensor]:
    """What stands at the end of every word: [N, ..] by name."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    assert model.encoder is not None
    state, carried = None, model.encoder.init_state(1)
    layers: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: layers.append(output[0])) for block in model.blocks]
    try:
        for piece in words.tokens.split(1_024):
            layers.clear()
            embedding = model.embedding(piece.unsqueeze(0))
            thought, after = model.encoder(embedding, carried)
            context = torch.cat([carried.recent, embedding], 1).unfold(1, 4, 1)
            _, state = model.hidden(piece.unsqueeze(0), state)
            assert isinstance(after, EncoderState)
            carried = after
            found["plain embedding"].append(embedding[0])
            found["thought embedding"].append(thought[0])
            found["the last four embeddings, side by side"].append(context[0].flatten(1))
            for number, layer in enumerate(layers):
                found[f"hidden state after block {number + 1} ({model.blocks[number].kind})"].append(layer[0])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts)[words.ends] for name, parts in found.items()}


def _probe(options: Options, folder: Path) -> Result:
    model, tokenizer = TextSSMN.from_pretrained(folder).eval(), Tokenizer.load(folder / "tokenizer.json")
    documents = brown.read(options.text.parent / "brown")
    halves, most = (documents[::2], documents[1::2]), 300 if options.quick else PROBED_WORDS
    fitted, tested = (_words(half, tokenizer, most) for half in halves)
    forms = _ambiguous(halves[0])
    several = np.array([form in forms for form in tested.forms])
    groups = {
        "all words": np.ones_like(several),
        "ambiguous forms": several,
        "words of one token": tested.whole,
        "words of several tokens": ~tested.whole,
        "ambiguous forms of one token": several & tested.whole,
    }
    right = {"most frequent part of speech of the form": _most_frequent(fitted, tested)}
    for kind, (x, y) in _pairs(_vectors(model, fitted), _vectors(model, tested)).items():
        right[kind] = _fit(x, fitted.labels, y) == tested.labels.numpy()
    accuracies = {
        kind: {group: float(hits[chosen].mean()) for group, chosen in groups.items() if chosen.any()}
        for kind, hits in right.items()
    }
    return {"accuracy": accuracies, "words": {group: int(chosen.sum()) for group, chosen in groups.items()}}


def _pairs(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (first[name], second[name]) for name in first}


def _most_frequent(fitted: Words, tested: Words) -> NDArray[np.bool_]:
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for form, label in zip(fitted.forms, fitted.labels.tolist(), strict=True):
        counts[form][label] += 1
    common = Counter(fitted.labels.tolist()).most_common(1)[0][0]
    guesses = [counts[form].most_common(1)[0][0] if form in counts else common for form in tested.forms]
    return np.array(guesses) == tested.labels.numpy()


def _fit(x: Tensor, labels: Tensor, y: Tensor, steps: int = 300) -> NDArray[np.int64]:
    """The classes of y by multinomial logistic regression on x, standardised."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / deviation, (y - mean) / deviation
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(len(brown.CLASSES), x.shape[1], requires_grad=True)
    bias = torch.zeros(len(brown.CLASSES), requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=1e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        rows = torch.randint(len(x), (4_096,), generator=generator)
        loss = functional.cross_entropy(functional.linear(x[rows], weight, bias), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return functional.linear(y, weight, bias).argmax(-1).numpy()


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Bits per byte with and without, and the probe's accuracy, means over seeds."""
    made = []
    trained = {
        kind: [run["results"]["bits_per_byte"] for name, run in finished.items() if name.startswith(f"{kind}-")]
        for kind in ("without", "with")
    }
    if all(trained.values()):
        base = statistics.mean(trained["without"])
        rows = [
            [kind, f"{statistics.mean(found):.4f}", ", ".join(f"{x:.4f}" for x in found),
             f"{100 * (1 - statistics.mean(found) / base):+.2f}"]
            for kind, found in trained.items()
        ]  # fmt: skip
        head = ["encoder", "bits per byte", "seeds", "gain, %"]
        title = "Semantic encoder: language modelling at equal size"
        made.append(Table(title, head, rows, "bits per byte of validation text", texts=1))
    for title, probes in (
        ("the shipped model", [run["results"] for name, run in finished.items() if name == SHIPPED]),
        ("the models above", [run["results"] for name, run in finished.items()
                              if name.startswith("probe-") and name != SHIPPED]),
    ):  # fmt: skip
        if probes:
            made.append(_probe_table(title, probes))
    return made


def _probe_table(title: str, probes: list[Result]) -> Table:
    groups, rows = list(probes[0]["words"]), []
    for kind in probes[0]["accuracy"]:
        means = [100 * statistics.mean(probe["accuracy"][kind].get(group, 0.0) for probe in probes) for group in groups]
        rows.append([kind, *(f"{mean:.1f}" for mean in means)])
    caption = "words tested: " + ", ".join(f"{group} {probes[0]['words'][group]:,}" for group in groups)
    return Table(f"Part of speech by a linear probe, {title}, % right", ["from", *groups], rows, caption, texts=1)


PART = Part(
    "encoder",
    "The semantic encoder: bits per byte at equal size, and a probe for parts of speech.",
    runs,
    measure,
    tables,
)
