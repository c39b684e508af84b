"""Documentation in HTML, as filled plain text."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from html.parser import HTMLParser

from ssmn.training.corpus.cleaning import plain, wrapped
from ssmn.training.corpus.documents import Document, Member

_SHORTEST_PAGE = 400
_INDENT = "  "

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_HIDDEN = {"button", "form", "head", "math", "nav", "script", "select", "style", "svg", "template", "textarea"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li",
    "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}  # fmt: skip
_LITERAL = {"code", "tt"}
_INDENTED = {"blockquote", "dd", "ol", "ul"}
_UNDERLINES = {"h1": "=", "h2": "=", "h3": "-"}
_SPACED = {"p", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "dl", "blockquote"}


def read_html(
    members: Sequence[Member],
    *,
    root: str = "",
    main: str = "body",
    skip: Sequence[str] = (),
    unit: str = "page",
) -> list[Document]:
    """Documents of HTML pages.

    Args:
        members: The pages.
        root: What to cut off the front of the paths.
        main: The element that holds the text.
        skip: Classes of elements that are furniture: navigation, indexes, anchors.
        unit: What is one document: a `page`, a `folder`, or all pages of a folder whose names begin
            alike, up to a hyphen (`prefix`).
    """
    grouped: dict[str, list[str]] = {}
    for path, data in members:
        renderer = _Renderer(main, frozenset(skip))
        renderer.feed(data.decode("utf-8", "replace"))
        text = renderer.text()
        if len(text) < _SHORTEST_PAGE:
            continue
        page = posixpath.splitext(path.removeprefix(root))[0]
        folder, _, name = page.rpartition("/")
        prefix = posixpath.join(folder, re.split(r"[-.]", name)[0])
        grouped.setdefault({"page": page, "folder": folder or "top", "prefix": prefix}[unit], []).append(text)
    return [Document(name, plain("\n\n".join(texts))) for name, texts in grouped.items()]


class _Renderer(HTMLParser):
    """Turns one page into paragraphs, lists, tables and verbatim blocks."""

    def __init__(self, main: str, skip: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self._main = main
        self._skip = skip
        self._open: list[tuple[str, bool, bool]] = []  # element, whether it is hidden, whether it is the text
        self._hidden = 0
        self._inside = 0
        self._verbatim = 0
        self._literal = 0
        self._depth = 0
        self._marker = ""
        self._lists: list[int | None] = []
        self._rows: list[list[str]] = []
        self._inline: list[str] = []
        self._out: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag == "br":
                self._inline.append("\n" if self._verbatim else "\0")
            elif tag == "hr":
                self._flush()
            return
        if tag in ("p", "li", "dt", "dd", "tr", "td", "th"):
            self._close_implied(tag)
        classes = next((value or "" for name, value in attrs if name == "class"), "").split()
        hides = tag in _HIDDEN or not self._skip.isdisjoint(classes)
        is_main = tag == self._main
        self._open.append((tag, hides, is_main))
        self._hidden += hides
        self._inside += is_main
        self._begin(tag)

    def handle_endtag(self, tag: str) -> None:
        if all(element != tag for element, _, _ in self._open):
            return
        while self._open:
            if self._end() == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._inside and not self._hidden:
            self._inline.append(data)

    def text(self) -> str:
        """What was read so far."""
        while self._open:
            self._end()
        self._flush()
        return "\n".join(self._out).strip("\n")

    def _close_implied(self, tag: str) -> None:
        """Ends the element that this one ends without saying so, such as the item before an item."""
        ended = {"dt": {"dt", "dd", "p"}, "dd": {"dt", "dd", "p"}, "td": {"td", "th"}, "th": {"td", "th"},
                 "tr": {"td", "th", "tr"}, "li": {"li", "p"}, "p": {"p"}}[tag]  # fmt: skip
        while self._open and self._open[-1][0] in ended:
            self._end()

    def _begin(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._flush()
            self._depth += tag in _INDENTED
            if tag in _SPACED and not (self._rows or self._marker):
                self._gap()
        if tag == "pre":
            self._verbatim += 1
        elif tag in ("ol", "ul"):
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li" and self._lists:
            number = self._lists[-1]
            self._marker = "- " if number is None else f"{number + 1}. "
            self._lists[-1] = None if number is None else number + 1
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._inline = []
        elif tag in _LITERAL:
            self._literal += 1
            if self._literal == 1:
                self._mark("`")
        elif tag == "sup":
            self._mark("^")

    def _end(self) -> str:
        tag, hides, is_main = self._open.pop()
        if tag in _LITERAL:
            self._literal -= 1
            if self._literal == 0:
                self._mark("`")
        elif tag in ("td", "th") and self._rows:
            self._rows[-1].append(" ".join("".join(self._inline).replace("\0", " ").split()))
            self._inline = []
        elif tag == "tr" and self._rows:
            cells = [cell for cell in self._rows.pop() if cell]
            if cells and self._inside and not self._hidden:
                self._out.append(_INDENT * self._depth + " | ".join(cells))
        if tag in _BLOCKS:
            self._flush(tag)
            self._depth -= tag in _INDENTED
            if tag in _SPACED and not self._rows:
                self._gap()
        if tag == "pre":
            self._verbatim -= 1
        elif tag in ("ol", "ul") and self._lists:
            self._lists.pop()
        elif tag == "li":
            self._marker = ""
        self._hidden -= hides
        self._inside -= is_main
        return tag

    def _mark(self, character: str) -> None:
        if self._inside and not self._hidden and not self._verbatim:
            self._inline.append(character)

    def _gap(self) -> None:
        if self._out and self._out[-1]:
            self._out.append("")

    def _flush(self, tag: str = "") -> None:
        """Writes the words since the last block."""
        if self._rows:
            return  # blocks within a cell are one line of a row
        raw = "".join(self._inline)
        self._inline = []
        if not raw.strip():
            return
        margin = _INDENT * self._depth
        if self._verbatim:
            lines = raw.replace("\0", "\n").strip("\n").split("\n")
            self._out += [(margin + _INDENT + line).rstrip() for line in lines]
        elif tag in _UNDERLINES:
            title = " ".join(raw.replace("\0", " ").split()).replace("`", "")
            self._out += [title, _UNDERLINES[tag] * len(title)]
        else:
            first = margin[: -len(self._marker)] + self._marker if self._marker else margin
            for part in filter(str.strip, raw.split("\0")):
                self._out.append(wrapped(part.replace("``", ""), first, margin))
                first = margin
            self._marker = ""
