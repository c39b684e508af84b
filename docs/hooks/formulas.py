"""Formulas in running text are set: h_t, S_{t−1} and (1 − λ)^g are written as one types them."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"(^```.*?^```$|^(?: {4}[^\n]*\n)+|`[^`]+`)", re.DOTALL | re.MULTILINE)
_SUBSCRIPT = re.compile(r"(?<![^\Wᵀ])(?<![/#.\-])(?<!\]\()([^\W\d_]̄?)_(?:\{([^{}]+)\}|([^\W_ᵀ]{1,2})(?=ᵀ|(?!\w)))")

_POWER = re.compile(r"(?<=\))\^([^\W\d_])(?!\w)")


def subscripted(markdown: str) -> str:
    """The text with a letter's index below the line and a power above it; code stays as it is."""
    parts = _CODE.split(markdown)
    for number in range(0, len(parts), 2):
        below = _SUBSCRIPT.sub(lambda m: f"{m[1]}<sub>{m[2] or m[3]}</sub>", parts[number])
        parts[number] = _POWER.sub(r"<sup>\1</sup>", below)
    return "".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for every page."""
    return subscripted(markdown)
