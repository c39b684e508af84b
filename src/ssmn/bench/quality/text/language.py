"""The text of the part `lm`: the corpus in tokens, read once and kept."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmn.bench.quality.frame import Options
from ssmn.errors import FileError
from ssmn.training import Tokenizer
from ssmn.training.data import Corpus, read_text, shuffled, text_files

GENRES = ("code", "documentation", "prose")
VOCABULARY = 4_096


@dataclass(frozen=True, eq=False)
class Language:
    """The corpus in tokens.

    Attributes:
        train: All of `train/`, its documents in an order drawn once.
        validation: All of `validation/`, likewise.
        held_out: `held-out/` by genre.
    """

    train: Corpus
    validation: Corpus
    held_out: dict[str, np.ndarray]

    @property
    def tokenizer(self) -> Tokenizer:
        """Byte pairs that were learned from `train/`."""
        assert self.train.tokenizer is not None
        return self.train.tokenizer


def language(options: Options) -> Language:
    """The corpus of `options.text` in tokens; made at the first call and kept beside the runs.

    Raises:
        FileError: There is no such corpus.
    """
    if options.quick:
        return _read(options.text, options.out, 300, 20)
    return _read(options.text, options.out, VOCABULARY, None)


@functools.lru_cache(maxsize=1)
def _read(text: Path, out: Path, vocabulary: int, documents: int | None) -> Language:
    record = text / "licences.json"
    try:
        raw = record.read_bytes()
    except OSError as error:
        raise FileError(
            f"quality: {record} cannot be read ({error.strerror}); make the corpus by `make corpus`, or give its "
            "folder by --text."
        ) from None
    folder = out / f"tokens-{vocabulary}-{hashlib.sha256(raw).hexdigest()[:8]}"
    parts = ("train", "validation", *GENRES)
    if not all((folder / f"{part}.npy").exists() for part in parts):
        _make(text, json.loads(raw), folder, vocabulary, documents)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    steps = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in parts}
    corpora = {part: Corpus(steps[part], (text / part,), (0,), tokenizer) for part in parts[:2]}
    return Language(corpora["train"], corpora["validation"], {genre: steps[genre] for genre in GENRES})


def _make(
    text: Path, record: dict[str, list[dict[str, str]]], folder: Path, vocabulary: int, documents: int | None
) -> None:
    """Reads the corpus, or `documents` of each part of it, and writes its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: shuffled(text_files(text / part), seed=0) for part in ("train", "validation", "held-out")}
    files["train"], files["validation"] = files["train"][:documents], files["validation"][:documents]
    texts = (read_text(file, utf8=True).decode() for file in files["train"])
    tokenizer = Tokenizer.train_bpe(texts, vocabulary)
    tokenizer.save(folder / "tokenizer.json")
    genre_of = {source["name"]: source["genre"] for source in record["sources"]}
    chosen = {part: files[part] for part in ("train", "validation")}
    chosen |= {genre: [file for file in files["held-out"] if genre_of[file.parent.name] == genre] for genre in GENRES}
    for part, these in chosen.items():
        steps = Corpus.from_text(these, tokenizer).steps
        with_name = folder / f"{part}.partial.npy"
        np.save(with_name, steps)
        with_name.replace(folder / f"{part}.npy")


def stretches(stream: np.ndarray, rows: int, length: int) -> np.ndarray:
    """At most `rows` evenly spread stretches of at most `length` tokens: [rows, length]."""
    length = min(length, len(stream))
    rows = max(1, min(rows, len(stream) // length))
    space = len(stream) // rows
    return np.stack([stream[begin : begin + length] for begin in range(0, space * rows, space)])
