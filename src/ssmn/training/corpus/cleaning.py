"""What every text goes through: one form of characters and spaces, and no licence notices at the head of files."""

from __future__ import annotations

import re
import textwrap

WIDTH = 78
"""Columns of re-flowed text."""

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "\u00a0": " ", "\u00ad": "", "\ufeff": ""})
# Tabs stay: they are the indentation of some code.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028\u2029]")
# Addresses of people stand behind their names; those of examples stand for nobody.
_ADDRESS = re.compile(r"\s?<[\w.+-]+@(?!example\.)[\w-]+(?:\.[\w-]+)+>")
_NOTICE = re.compile(r"copyright|licen[cs]e|all rights reserved|spdx-", re.IGNORECASE)


def plain(text: str, *, empty_lines: int = 1) -> str:
    """The text with plain quotes, no control characters, no spaces at line ends, and at most so many empty lines.

    Mail addresses in angle brackets are taken out as well.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_QUOTES)
    text = _ADDRESS.sub("", _CONTROL.sub("", text))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    most = "\n" * (empty_lines + 1)
    return re.sub(most + r"\n+", most, text).strip("\n") + "\n"


def wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """One paragraph, its lines filled anew: the first begins with `first`, the others with `rest`."""
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def without_notice(code: str, comment: str) -> str:
    """Source code without the licence notice in the comments before its first statement.

    Args:
        code: The file.
        comment: What a line comment begins with, `#` or `//`.

    Returns:
        The code without those comment blocks at its head that speak of copyright or licence, and
        without an interpreter or encoding line.
    """
    lines = code.split("\n")
    kept: list[str] = []
    block: list[str] = []
    for number, line in enumerate(lines):
        if line.startswith(comment):
            block.append(line)
            continue
        if not _NOTICE.search("\n".join(block)):
            kept += [each for each in block if not re.match(r"#!|#.*coding[:=]", each)]
        block = []
        if line.strip():
            return "\n".join(kept + lines[number:]).lstrip("\n")
        kept.append(line)
    return "\n".join(kept + block)
