"""Dictionaries in the format of the DICT server: `name.dict`, entries in alphabetical order."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence

from ssmn.training.corpus.cleaning import plain
from ssmn.training.corpus.documents import Document, Member

_LINK = re.compile(r"\{\s*([^{}\n]*(?:\n[^{}\n]*)?)\}")


def read_dictionary(members: Sequence[Member], *, begins: str, links: bool = False) -> list[Document]:
    """A document for each letter (what comes before the letters goes with the first).

    Args:
        members: The dictionary; a `.dz` file is unpacked.
        begins: The line at which the text begins, after the notes on the edition.
        links: Whether cross-references stand in braces, which are taken out.
    """
    documents = []
    for path, data in members:
        text = (gzip.decompress(data) if path.endswith(".dz") else data).decode("utf-8", "replace")
        text = text[text.index(begins) :] if begins in text else text
        if links:
            text = _LINK.sub(r"\1", text)
        letters: dict[str, list[str]] = {}
        letter = "a"
        for paragraph in re.split(r"\n\s*\n", plain(text)):
            initial = paragraph[:1].lower()
            # Entries begin at the left edge; the letter only goes on, so that a heading or a verse cannot turn it back.
            if "a" <= initial <= "z" and 0 <= ord(initial) - ord(letter) <= 1:
                letter = initial
            letters.setdefault(letter, []).append(paragraph)
        documents += [Document(letter, plain("\n\n".join(paragraphs))) for letter, paragraphs in letters.items()]
    return documents
