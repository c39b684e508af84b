"""From the files of a package to documents: one reader for each kind of file."""

from __future__ import annotations

from collections.abc import Callable

from ssmn.training.corpus.documents import Document
from ssmn.training.corpus.readers.bible import read_bible
from ssmn.training.corpus.readers.code import read_code
from ssmn.training.corpus.readers.dictionary import read_dictionary
from ssmn.training.corpus.readers.html import read_html
from ssmn.training.corpus.readers.info import read_info
from ssmn.training.corpus.readers.mdoc import read_mdoc
from ssmn.training.corpus.readers.plays import read_plays
from ssmn.training.corpus.readers.rdata import read_rdata
from ssmn.training.corpus.readers.sword import read_sword

READERS: dict[str, Callable[..., list[Document]]] = {
    "bible": read_bible,
    "code": read_code,
    "dictionary": read_dictionary,
    "html": read_html,
    "info": read_info,
    "mdoc": read_mdoc,
    "plays": read_plays,
    "rdata": read_rdata,
    "sword": read_sword,
}
"""Each takes the files of a package and its own options, and returns documents."""
