"""Books in a package of the R language: character vectors in its lazy-loading data base."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence

from ssmn.errors import FileError
from ssmn.training.corpus.cleaning import plain
from ssmn.training.corpus.documents import Document, Member

_STRINGS = 16
_STRING = 9


def read_rdata(members: Sequence[Member]) -> list[Document]:
    """A document for each vector of lines, named by its first line.

    Raises:
        FileError: An object is not a vector of strings.
    """
    documents = []
    for member in members:
        for serialized in _objects(member.data):
            lines = _strings(serialized, member.path)
            text = plain("\n".join(lines))
            title = text.split("\n", 1)[0]
            documents.append(Document(re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"), text))
    return documents


def _objects(data: bytes) -> Iterator[bytes]:
    """The objects of a `.rdb` file: each its unpacked length in four bytes, then a zlib stream."""
    while data:
        stream = zlib.decompressobj()
        yield stream.decompress(data[4:])
        data = stream.unused_data


def _strings(data: bytes, path: str) -> list[str]:
    """The elements of a serialized vector of strings (R internals, section 1.8: XDR format, versions 2 and 3)."""
    magic, version = struct.unpack_from(">2si", data)
    position = 14
    if version == 3:
        position += 4 + struct.unpack_from(">i", data, position)[0]
    flags, count = struct.unpack_from(">ii", data, position)
    if magic != b"X\n" or flags & 0xFF != _STRINGS:
        raise FileError(f"corpus: {path} holds something else than vectors of strings.")
    position += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", data, position)
        position += 8
        if flags & 0xFF != _STRING:
            raise FileError(f"corpus: {path} holds something else than strings in a vector.")
        strings.append(data[position : position + max(length, 0)].decode("utf-8", "replace"))
        position += max(length, 0)
    return strings
