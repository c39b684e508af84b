"""Commentaries in the SWORD format: compressed blocks of OSIS markup."""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Sequence

from ssmn.training.corpus.cleaning import plain, wrapped
from ssmn.training.corpus.documents import Document, Member

_ENTRY = struct.Struct("<III")  # offset, packed size, unpacked size

_DROPPED = re.compile(r"<note\b.*?</note>|<!--.*?-->", re.DOTALL)
_BREAK = re.compile(r"</?(?:title|div|chapter|p|table|row|lg|l|lb|list|item|verse)\b[^>]*>")
_TAG = re.compile(r"<[^>]*>")
_VERSE_MARK = re.compile(r"#\(([\d,\- ]+)\)")
_PLACE = re.compile(r'osisID="([^".]+)(?:\.(\d+))?')


def read_sword(members: Sequence[Member], *, unit: str) -> list[Document]:
    """A document for each book (`unit = "book"`) or chapter (`"chapter"`) of the Bible, in its order."""
    files = {member.path: member.data for member in members}
    texts: dict[str, list[str]] = {}
    for path in sorted(files, key=lambda each: "/nt." in each):  # the Old Testament comes first
        if not path.endswith("zs"):
            continue
        packed = files[path[:-1] + "z"]
        for offset, size, _ in _ENTRY.iter_unpack(files[path]):
            markup = zlib.decompress(packed[offset : offset + size]).decode("utf-8", "replace") if size else ""
            place = _PLACE.search(markup)
            if place:
                name = place[1] if unit == "book" else f"{place[1]} {place[2] or 0}"
                texts.setdefault(name, []).append(_text(markup))
    return [Document(name, plain("\n\n".join(parts))) for name, parts in texts.items()]


def _text(markup: str) -> str:
    markup = _BREAK.sub("\n", _DROPPED.sub("", markup.replace("\n", " ")))
    markup = _VERSE_MARK.sub(r"\1", re.sub(r"</cell>", " ", markup))
    lines = (html.unescape(_TAG.sub("", line)).strip() for line in markup.split("\n"))
    return "\n\n".join(wrapped(line) for line in lines if line)
