"""What a corpus is made of: documents, and the files of the packages that they are read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Member(NamedTuple):
    """One file of a package: its path in the package and its bytes."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Document:
    """One text that belongs together, and stays together: a book, a chapter, a folder of code.

    Attributes:
        name: Path-like name, unique within its source.
        text: The cleaned text; it ends with one line feed.
    """

    name: str
    text: str

    @property
    def size(self) -> int:
        """Length in bytes of UTF-8."""
        return len(self.text.encode())
