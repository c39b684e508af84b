"""Plays in Markdown: acts and scenes as headings, speakers in bold, directions in italics."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from ssmn.training.corpus.cleaning import plain
from ssmn.training.corpus.documents import Document, Member

_HEADING = re.compile(r"^(#+) +(.+)$", re.MULTILINE)
_SPEAKER = re.compile(r"^\*\*(.+?)\*\*\s*$", re.MULTILINE)
_DIRECTION = re.compile(r"(?<![\w_])_([^_]+)_(?![\w_])")


def read_plays(members: Sequence[Member]) -> list[Document]:
    """A document for each play: speakers on their own line, directions in square brackets."""

    def heading(match: re.Match[str]) -> str:
        title = match[2].strip()
        return f"{title}\n{'=' * len(title)}" if len(match[1]) == 1 else title

    documents = []
    for path, data in members:
        text = _HEADING.sub(heading, data.decode("utf-8", "replace").replace("\r\n", "\n"))
        text = _SPEAKER.sub(r"\1:", text)
        text = _DIRECTION.sub(r"[\1]", text)
        documents.append(Document(posixpath.splitext(posixpath.basename(path))[0], plain(text)))
    return documents
