"""Paragraphs that stand in more than one text: none of what is held out is trained on, and nothing often."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE_WORDS = 8
LEAK_SHARE = 0.5
REPEAT_SHARE = 0.8
REPEAT_SHINGLES = 24
"""Shorter paragraphs may stand in many documents of a part: the usual words of a manual's sections."""

_SHORT_PARAGRAPH = 40
_MULTIPLIER = 0x9E3779B97F4A7C15

_WORD = re.compile(r"\w+")


@dataclass
class Counts:
    """What was looked at and taken out.

    Attributes:
        paragraphs: Paragraphs of the documents that may lose some.
        exact_leaks: Paragraphs taken out because they stand in an earlier tier word for word.
        near_leaks: Paragraphs taken out because at least half of their shingles stand in an earlier tier.
        repeats: Paragraphs taken out because nearly all of their shingles, of many, stand in an earlier document.
        shingles: Shingles that are left.
        shared_shingles: How many of these stand in an earlier tier.
    """

    paragraphs: int = 0
    exact_leaks: int = 0
    near_leaks: int = 0
    repeats: int = 0
    shingles: int = 0
    shared_shingles: int = 0

    def add(self, other: Counts) -> None:
        """Adds the counts of another text."""
        for name, value in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def remove_duplicates(
    tiers: Sequence[Sequence[str]], *, repeats: bool = True
) -> tuple[list[list[str]], list[list[Counts]]]:
    """Takes paragraphs out of texts that stand, exactly or nearly, in texts before them.

    Args:
        tiers: Texts in tiers, what must stay whole first: held-out, validation, training. The first
            tier stays as it is; a later one loses what an earlier one holds. Paragraphs are parted by
            empty lines.
        repeats: Whether a text also loses what an earlier text of its own tier holds. Repetition
            within one text always stays.

    Returns:
        The texts, and counts for each, in the same tiers.
    """
    texts = [text for tier in tiers for text in tier]
    tier_of = [number for number, tier in enumerate(tiers) for _ in tier]
    paragraphs = [text.strip("\n").split("\n\n") for text in texts]
    index = _ShingleIndex(paragraphs)
    tier_of_document = np.array(tier_of, dtype=np.int64)
    known: set[str] = set()
    pending: list[str] = []
    cleaned: list[str] = []
    counts = [Counts() for _ in texts]
    row = 0
    for document, (text, parts) in enumerate(zip(texts, paragraphs, strict=True)):
        tier, count = tier_of[document], counts[document]
        if document and tier != tier_of[document - 1]:
            known.update(pending)
            pending = []
        kept = []
        for paragraph in parts:
            first = index.first_documents(row)
            row += 1
            same = " ".join(paragraph.split())
            if tier < tier_of[-1]:
                pending.append(same)
            if tier == 0:
                continue
            count.paragraphs += 1
            leaked = int((tier_of_document[first] < tier).sum())
            if len(paragraph) > _SHORT_PARAGRAPH and same in known:
                count.exact_leaks += 1
            elif len(first) and leaked >= LEAK_SHARE * len(first):
                count.near_leaks += 1
            elif repeats and len(first) >= REPEAT_SHINGLES and (first < document).sum() >= REPEAT_SHARE * len(first):
                count.repeats += 1
            else:
                kept.append(paragraph)
                count.shingles += len(first)
                count.shared_shingles += leaked
        cleaned.append(text if tier == 0 or len(kept) == len(parts) else "\n\n".join(kept) + "\n")
    edges = np.cumsum([0, *(len(tier) for tier in tiers)])
    spans = [slice(begin, end) for begin, end in itertools.pairwise(edges)]
    return [cleaned[span] for span in spans], [counts[span] for span in spans]


class _ShingleIndex:
    """For every run of eight words of every paragraph, the first document that holds it."""

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        numbers: dict[str, int] = {}
        words = array("Q")
        word_ends = array("q", [0])
        owners = array("q")
        for document, paragraphs in enumerate(documents):
            for paragraph in paragraphs:
                for word in _WORD.findall(paragraph.lower()):
                    number = numbers.get(word)
                    if number is None:
                        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                        number = numbers[word] = int.from_bytes(digest, "little")
                    words.append(number)
                word_ends.append(len(words))
                owners.append(document)
        ends = np.frombuffer(word_ends, dtype=np.int64)
        lengths = np.maximum(np.diff(ends) - SHINGLE_WORDS + 1, 0)
        self._ends = np.concatenate([[0], np.cumsum(lengths)])
        hashes = _rolling(np.frombuffer(words, dtype=np.uint64))
        # Runs that would go over the end of their paragraph do not count.
        starts = np.repeat(ends[:-1] - self._ends[:-1], lengths) + np.arange(self._ends[-1])
        hashes = hashes[starts]
        owner = np.repeat(np.frombuffer(owners, dtype=np.int64), lengths)
        # The paragraphs come in document order, so the first place of a run is in its first document.
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        self._first = owner[first][inverse]

    def first_documents(self, paragraph: int) -> np.ndarray:
        """For each shingle of the paragraph, the number of the first document that holds it."""
        return self._first[self._ends[paragraph] : self._ends[paragraph + 1]]


def _rolling(words: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each run of `SHINGLE_WORDS` words `[max(N - SHINGLE_WORDS + 1, 0)]`."""
    runs = max(len(words) - SHINGLE_WORDS + 1, 0)
    hashes = np.zeros(runs, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = hashes * np.uint64(_MULTIPLIER) + words[offset : offset + runs]
        hashes ^= hashes >> np.uint64(29)
    return hashes
