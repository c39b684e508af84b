"""Source code, a folder at a time."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from ssmn.training.corpus.cleaning import plain, without_notice
from ssmn.training.corpus.documents import Document, Member

LARGEST_FOLDER = 700_000
_SHORTEST_FILE = 200
_DIGITS_OF_A_TABLE = 0.15


def read_code(members: Sequence[Member], *, root: str = "", comment: str = "#") -> list[Document]:
    """A document for each folder: its files one after the other, each under its path.

    The files of a folder that is larger than `LARGEST_FOLDER` are documents of their own. Files that
    are mostly numbers (tables), nearly empty or not UTF-8 are left out, and licence notices at their
    heads are taken off.

    Args:
        members: The files.
        root: What to cut off the front of the paths.
        comment: What a line comment begins with.
    """
    folders: dict[str, dict[str, str]] = {}
    for path, data in members:
        try:
            code = without_notice(data.decode("utf-8").replace("\r\n", "\n"), comment)
        except UnicodeDecodeError:
            continue
        digits = sum(character.isdigit() for character in code)
        if len(code) < _SHORTEST_FILE or digits > _DIGITS_OF_A_TABLE * len(code):
            continue
        name = path.removeprefix(root)
        folders.setdefault(posixpath.dirname(name), {})[name] = f"{comment} {name}\n\n{plain(code, empty_lines=2)}"
    documents = []
    for folder, files in sorted(folders.items()):
        if sum(map(len, files.values())) <= LARGEST_FOLDER:
            files = {folder or "top": "\n\n".join(files.values())}
        documents += [Document(name, text) for name, text in files.items()]
    return documents
