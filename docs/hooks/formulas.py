"""Formulas in running text get their subscripts: h_t and S_{t−1} are written as one types them."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"(^```.*?^```$|^(?: {4}[^\n]*\n)+|`[^`]+`)", re.DOTALL | re.MULTILINE)
_SUBSCRIPT = re.compile(r"(?<![^\Wᵀ])(?<![/#.\-])(?<!\]\()([^\W\d_]̄?)_(?:\{([^{}]+)\}|([^\W_ᵀ]{1,2})(?=ᵀ|(?!\w)))")


def subscripted(markdown: str) -> str:
    """The text with a letter's index below the line; code stays as it is."""
    parts = _CODE.split(markdown)
    parts[::2] = [_SUBSCRIPT.sub(lambda m: f"{m[1]}<sub>{m[2] or m[3]}</sub>", part) for part in parts[::2]]
    return "".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for every page."""
    return subscripted(markdown)
