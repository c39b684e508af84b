"""The King James Bible as a SQLite database of verses."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

from ssmn.training.corpus.cleaning import plain
from ssmn.training.corpus.documents import Document, Member

_VERSES = """
    SELECT LongName, ShortName, ChapterID, Passage1, Passage2 FROM Bible JOIN Books USING (TestamentID, BookID)
    ORDER BY TestamentID, BookID, ChapterID, VerseID
"""


def read_bible(members: Sequence[Member]) -> list[Document]:
    """A document for each book: its title, and a paragraph of numbered verses for each chapter."""
    books: dict[str, list[str]] = {}
    for member in members:
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(member.data)
            last = ("", 0)
            for title, name, chapter, *passages in database.execute(_VERSES):
                lines = books.setdefault(name, [title, "=" * len(title)])
                if (name, chapter) != last:
                    lines.append("")
                    last = (name, chapter)
                lines += [passage for passage in passages if passage]
    return [Document(name, plain("\n".join(lines))) for name, lines in books.items()]
