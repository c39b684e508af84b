"""Whole documents for training, for choosing settings, and for the last word."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ssmn.training.corpus.documents import Document
from ssmn.training.corpus.recipe import Source


@dataclass(frozen=True)
class SplitConfig:
    """How documents are told apart.

    Attributes:
        seed: The order in which documents are chosen.
        held_out: Share of each source that is held out in short documents.
        validation: Share of each source for choosing settings, in short documents.
        long_bytes: From this size on a document is long (more than 50,000 tokens of a vocabulary of 8,192).
        longest_bytes: Longer ones than this are only trained on.
        held_out_long: Long documents of each genre that are held out.
        validation_long: Long documents of each genre for choosing settings.
        long_share: No long document is taken that is more than this share of its source.
        short_share: No short document is taken that is more than this share of its source.
    """

    seed: int = 0
    held_out: float = 0.01
    validation: float = 0.005
    long_bytes: int = 190_000
    longest_bytes: int = 500_000
    held_out_long: int = 4
    validation_long: int = 1
    long_share: float = 0.25
    short_share: float = 0.03


@dataclass
class Split:
    """The documents of each source, by part."""

    train: dict[str, list[Document]] = field(default_factory=dict)
    validation: dict[str, list[Document]] = field(default_factory=dict)
    held_out: dict[str, list[Document]] = field(default_factory=dict)


def rank(seed: int, source: str, name: str) -> str:
    """The place of a document in the order of choice: the same whatever else is in the corpus."""
    return hashlib.sha256(f"{seed}\0{source}\0{name}".encode()).hexdigest()


def choose(source: Source, documents: Sequence[Document], seed: int) -> list[Document]:
    """As many documents as the source's limit has room for, in their own order."""
    if not source.limit:
        return list(documents)
    room, chosen = source.limit, set()
    for document in sorted(documents, key=lambda each: rank(seed, source.name, each.name)):
        if document.size <= room:
            room -= document.size
            chosen.add(document.name)
    return [document for document in documents if document.name in chosen]


def split(sources: Sequence[Source], documents: Mapping[str, Sequence[Document]], config: SplitConfig) -> Split:
    """Parts the documents of every source.

    First the long ones: for each genre, one source after the other gives a document, until there are
    enough. Then, from each source, short ones until its shares are reached. All in the seed's order.

    Args:
        sources: The sources.
        documents: The documents of each source, by its name.
        config: How many go where.
    """
    taken: dict[tuple[str, str], str] = {}
    for genre in dict.fromkeys(source.genre for source in sources):
        queue = _long_documents([source for source in sources if source.genre == genre], documents, config)
        for number, key in enumerate(queue[: config.held_out_long + config.validation_long]):
            taken[key] = "held_out" if number < config.held_out_long else "validation"
    for source in sources:
        total = sum(document.size for document in documents[source.name])
        largest = min(config.long_bytes, config.short_share * total)
        short = [document for document in documents[source.name] if document.size <= largest]
        short.sort(key=lambda each: rank(config.seed, source.name, each.name))
        for part, share in (("held_out", config.held_out), ("validation", config.validation)):
            room = share * total
            for document in short:
                key = (source.name, document.name)
                if room > 0 and key not in taken:
                    taken[key] = part
                    room -= document.size
    result = Split()
    for source in sources:
        parts: dict[str, list[Document]] = {"train": [], "validation": [], "held_out": []}
        for document in documents[source.name]:
            parts[taken.get((source.name, document.name), "train")].append(document)
        for part, chosen in parts.items():
            getattr(result, part)[source.name] = chosen
    return result


def _long_documents(
    sources: Sequence[Source], documents: Mapping[str, Sequence[Document]], config: SplitConfig
) -> list[tuple[str, str]]:
    """Source and name of the long documents, the sources in turn, each in the seed's order."""
    candidates = []
    for source in sources:
        total = sum(document.size for document in documents[source.name])
        largest = min(config.longest_bytes, config.long_share * total)
        fitting = [each for each in documents[source.name] if config.long_bytes <= each.size <= largest]
        fitting.sort(key=lambda each: rank(config.seed, source.name, each.name))
        candidates += [(turn, source.name, document.name) for turn, document in enumerate(fitting)]
    return [
        (source, name)
        for _, source, name in sorted(candidates, key=lambda each: (each[0], rank(config.seed, *each[1:])))
    ]
