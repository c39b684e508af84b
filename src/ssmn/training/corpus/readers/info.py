"""Manuals in the info format of Texinfo."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ssmn.errors import FileError
from ssmn.training.corpus.cleaning import plain
from ssmn.training.corpus.documents import Document, Member

SHORTEST_CHAPTER = 200
TRAINING_ONLY = "Changelog"
"""A chapter that is split once more, and that is of little use for measuring."""

_SKIPPED = {"Index", "Python Module Index"}
_DEEP_PARTS = {"The Python Standard Library", "Python/C API Reference Manual"}
"""Parts of the document whose chapters are split once more, into modules."""

_HEADER = re.compile(r"\nFile: [^,]+,  Node: (?P<node>[^,]*),(?:  Next: [^,]*,)?(?:  Prev: [^,]*,)?  Up: (?P<up>.*)\n")
_NOTE = re.compile(
    r"\*note\s+(?P<label>[^:]+?):(?::|(?P<gap>\s+)[^.,:]+?(?P<stop>[.,]))(?P<space>\s*)(?=(?P<next>\S?))"
)
_QUOTED = re.compile(r"‘([^‘’\n]*)’")
_TITLE = re.compile(r"^(?:[A-Z]|\d+)(?:\.\d+)*\.? (.+)\n([*=\-.])\2+$", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_LOOSE_QUOTE = re.compile(r"(?<=\s)`\s+(?=Part of the )")
_UNIQUE = re.compile(r"<\d+>$")


@dataclass(frozen=True)
class Chapter:
    """One chapter or module of a manual."""

    part: str
    title: str
    text: str

    @property
    def size(self) -> int:
        """Length in bytes of UTF-8."""
        return len(self.text.encode())


def read_info(members: Sequence[Member]) -> list[Document]:
    """A document for each chapter or module, named by its part and title."""
    read = (chapters(member.data.decode("utf-8", errors="replace")) for member in members)
    return [
        Document(f"{chapter.part}/{chapter.title}", plain(_LOOSE_QUOTE.sub("`", chapter.text)))
        for group in read
        for chapter in group
    ]


def clean_node(text: str) -> str:
    """Plain text of one info node: no menu, no footnotes, no cross-reference marks, plain quotes."""
    text = text.split("\n* Menu:\n")[0]
    text, _, footnotes = text.partition("   ---------- Footnotes ----------")
    for number in range(1, len(re.findall(r"^   \(\d+\) ", footnotes, re.MULTILINE)) + 1):
        text = re.sub(rf"(?<=[^\s(])\({number}\)", "", text, count=1)

    def plain_note(match: re.Match[str]) -> str:
        # The format puts a stop after each reference; it belongs to the text only where a sentence could end.
        gap, space, stop = match["gap"] or "", match["space"], match["stop"] or ""
        sentence_ends = "\n\n" in space or not match["next"] or match["next"].isupper()
        kept = stop if stop == "," or sentence_ends else ""
        return match["label"] + kept + (gap if "\n" in gap and space == " " else space)

    text = _NOTE.sub(plain_note, text)
    text = _QUOTED.sub(r"`\1`", text)
    text = text.translate(str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "\u00a0": " "}))
    text = _CONTROL.sub("", text)
    text = _TITLE.sub(lambda match: f"{match[1]}\n{match[2] * len(match[1])}", text)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def chapters(info: str) -> list[Chapter]:
    """The chapters and modules of the info text, in document order."""
    bodies: list[tuple[str, str]] = []
    parent: dict[str, str] = {}
    for raw in info.split("\x1f"):
        header = _HEADER.match(raw)
        if header:
            parent[header["node"]] = header["up"].strip()
            bodies.append((header["node"], raw[header.end() :]))
    if not bodies:
        raise FileError(
            "corpus: the source has no info nodes; wanted the plain-text (info) edition of the documentation."
        )

    def key(node: str) -> tuple[str, str]:
        chain = [node]
        while chain[-1] in parent:
            chain.append(parent[chain[-1]])
        chain = [_UNIQUE.sub("", name) for name in reversed(chain)][2:]
        depth = 3 if chain and (chain[0] in _DEEP_PARTS or chain[1:2] == [TRAINING_ONLY]) else 2
        return (chain[0] if chain else "", " / ".join(chain[1:depth]) or (chain[0] if chain else ""))

    grouped: dict[tuple[str, str], list[str]] = {}
    for node, body in bodies:
        part, title = key(node)
        if part and part not in _SKIPPED:
            grouped.setdefault((part, title), []).append(clean_node(body))
    built = (Chapter(part, title, "\n\n".join(filter(None, texts)) + "\n") for (part, title), texts in grouped.items())
    return [chapter for chapter in built if chapter.size >= SHORTEST_CHAPTER]
