"""Manual pages in the mdoc language of BSD, as filled plain text."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from ssmn.training.corpus.cleaning import plain, wrapped
from ssmn.training.corpus.documents import Document, Member

_SHORTEST_PAGE = 400
_PERMISSIVE = re.compile(r"Redistribution and use|Permission (?:to use|is hereby granted)|public domain", re.IGNORECASE)
_RESTRICTED = re.compile(
    r"GNU (?:\w+ )?General Public|GNU Free Documentation|\bL?GPL|\bCDDL\b|reprinted", re.IGNORECASE
)

_ENCLOSED = {
    "Aq": "<>", "Bq": "[]", "Brq": "{}", "Dq": '""', "Op": "[]", "Pq": "()", "Ql": "`'", "Qq": '""', "Sq": "''",
}  # fmt: skip
_OPENED = {"Ao": "<", "Bo": "[", "Bro": "{", "Do": '"', "Oo": "[", "Po": "(", "Qo": '"', "So": "'"}
_CLOSED = {"Ac": ">", "Bc": "]", "Brc": "}", "Dc": '"', "Oc": "]", "Pc": ")", "Qc": '"', "Sc": "'"}
_SYSTEMS = {"At": "AT&T UNIX", "Bsx": "BSD/OS", "Bx": "BSD", "Dx": "DragonFly", "Fx": "FreeBSD", "Nx": "NetBSD",
            "Ox": "OpenBSD", "Ux": "UNIX"}  # fmt: skip
_WORDS = {
    "Ad", "An", "Ar", "Cd", "Cm", "Dv", "Em", "Er", "Ev", "Fa", "Fr", "Ft", "Ic", "Li", "Lk", "Ms", "Mt", "No", "Pa",
    "St", "Sx", "Sy", "Tn", "Va", "Vt",
}  # fmt: skip
_INLINE = {
    *_ENCLOSED,
    *_OPENED,
    *_CLOSED,
    *_SYSTEMS,
    *_WORDS,
    "Ap",
    "Fl",
    "Fn",
    "In",
    "Nm",
    "Ns",
    "Pf",
    "Xo",
    "Xc",
    "Xr",
}
_STRINGS = {
    "Ba": "|", "Ge": ">=", "Gt": ">", "If": "infinity", "Le": "<=", "Lq": '"', "Lt": "<", "Na": "NaN", "Ne": "!=",
    "Pm": "+-", "Rq": '"', "Am": "&", "q": '"', "lq": '"', "rq": '"', "ua": "^", "Pi": "pi",
}  # fmt: skip
_CHARACTERS = {
    "em": "--", "en": "-", "lq": '"', "rq": '"', "oq": "'", "cq": "'", "aq": "'", "dq": '"', "bu": "*", "ba": "|",
    "co": "(C)", "rs": "\\", "ti": "~", "ha": "^", "ga": "`", "mu": "x", "<=": "<=", ">=": ">=", "!=": "!=", "->": "->",
    "<-": "<-", "pl": "+", "+-": "+-", "mi": "-", "at": "@", "sh": "#", "Do": "$", "hy": "-", "Fo": '"', "Fc": '"',
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:\*\((?P<string2>..)|\*\[(?P<string>[^\]]*)\]|\*(?P<string1>.)|\((?P<char2>..)|\[(?P<char>[^\]]*)\]"
    r"|f(?:\(..|\[[^\]]*\]|.)|s[+-]?\d+|[hvw]'[^']*'|k.|(?P<single>.))"
)
_WORD = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_BLOCKS = {
    "Bd", "Bl", "Cd", "D1", "Dl", "Ed", "El", "Ex", "Fc", "Fn", "Fo", "Ft", "In", "It", "Lb", "Lp", "Pp", "Re",
    "Rs", "Rv", "Sh", "Ss", "br", "sp",
}  # fmt: skip
"""Macros with a method of their own."""
_NAMES_OF_PEOPLE = {"AUTHOR", "AUTHORS"}
"""Sections that are left out."""
_CLOSING = set(".,:;)]?!") | {"'s"}
_OPENING = set("([")


def read_mdoc(members: Sequence[Member]) -> list[Document]:
    """A document for each page.

    Only pages whose own comments give a permissive licence are taken; those that speak of a copyleft
    licence or reprint a standard are left out, and so are twins of other pages, pages of tables and
    pages in another language than mdoc.
    """
    documents = []
    seen: set[bytes] = set()
    for path, data in members:
        source = data.decode("utf-8", "replace")
        if data in seen or ".Dd " not in source or "\n.TS" in source or not _is_permissive(source):
            continue
        seen.add(data)
        page, section = posixpath.basename(path).split(".")[:2]
        text = plain(_Page(f"{page}({re.sub('[^0-9]', '', section)})").render(source))
        if len(text) >= _SHORTEST_PAGE:
            documents.append(Document(f"{posixpath.basename(posixpath.dirname(path))}/{page}", text))
    return documents


def _is_permissive(source: str) -> bool:
    comments = " ".join(line[3:].strip() for line in source.split("\n") if line.startswith(('.\\"', "'\\\"")))
    return bool(_PERMISSIVE.search(comments)) and not _RESTRICTED.search(source)


def _escaped(match: re.Match[str]) -> str:
    string = match["string2"] or match["string"] or match["string1"]
    if string is not None:
        return _STRINGS.get(string, "")
    character = match["char2"] or match["char"]
    if character is not None:
        return _CHARACTERS.get(character, "")
    return {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", "\\": "\\", ".": "."}.get(
        match["single"] or "", ""
    )


def _plain(text: str) -> str:
    return _ESCAPE.sub(_escaped, text)


class _Page:
    """Renders one page, line by line."""

    def __init__(self, title: str) -> None:
        self._out = [title, "=" * len(title)]
        self._name = ""
        self._words: list[str] = []
        self._is_glued = False
        self._lists: list[tuple[str, int]] = []
        self._margin = 0
        self._marker = ""
        self._verbatim: list[bool] = []
        self._call: list[str] | None = None
        self._is_synopsis = False
        self._reference: list[str] | None = None
        self._skips = False
        self._is_hidden = False

    def render(self, source: str) -> str:
        """The text of the page."""
        source = source.replace("\\\n", " ")
        for line in source.split("\n"):
            if line.startswith((".ig", ".de")):
                self._skips = True
            elif self._skips:
                self._skips = not line.startswith("..")
            elif self._is_hidden and not line.startswith(".Sh"):
                continue
            elif line.startswith((".", "'")) and not line.startswith(("...", "'\\\"", '.\\"', "'.")):
                self._macro(line[1:].strip())
            elif not line.startswith(('.\\"', "'\\\"", '\\"')):
                self._text_line(re.sub(r'\\".*', "", line))
        self._paragraph()
        return "\n".join(self._out)

    def _text_line(self, line: str) -> None:
        if any(self._verbatim):
            self._out.append(("    " + " " * self._margin + _plain(line).expandtabs()).rstrip())
        elif line.strip():
            if self._is_glued and self._words:
                self._words[-1] += _plain(line.strip())
            else:
                self._words.append(_plain(line.strip()))
            self._is_glued = False
        else:
            self._break()

    def _macro(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        arguments = [quoted.replace('""', '"') if word == "" else word for quoted, word in _WORD.findall(rest)]
        if arguments and '\\"' in rest:
            arguments = [quoted if word == "" else word for quoted, word in _WORD.findall(rest.split('\\"')[0])]
        block = getattr(self, f"_do_{name.lower()}") if name in _BLOCKS else None
        if self._call is not None and name == "Fa":
            self._call += [_plain(argument) for argument in arguments if argument not in _CLOSING]
        elif block is not None:
            block(arguments)
        elif name.startswith("%"):
            (self._reference if self._reference is not None else self._words).append(_plain(" ".join(arguments)))
        elif name in _INLINE or name == "Nd":
            if name == "Nm" and self._is_synopsis:
                self._paragraph()
            self._inline([name, *arguments])

    def _inline(self, tokens: list[str]) -> None:
        """Appends the words of one macro line to the paragraph."""
        line = _Line(self._name)
        line.read(tokens)
        self._name = line.name
        text = line.text()
        if not text:
            return
        if any(self._verbatim):
            self._out.append("    " + " " * self._margin + text)
        elif self._words and (self._is_glued or line.is_glued_before):
            self._words[-1] += text
        else:
            self._words.append(text)
        self._is_glued = line.is_glued_after

    def _paragraph(self) -> None:
        """Writes the words since the last one."""
        text = " ".join(self._words)
        self._words, self._is_glued = [], False
        if text.strip():
            indent = " " * (4 + self._margin)
            first = indent
            if self._marker:
                first = indent[: max(len(indent) - len(self._marker), 0)] + self._marker
                self._marker = ""
            self._out.append(wrapped(re.sub(r" ([.,;:)\]])(?= |$)", r"\1", text), first, indent))

    def _break(self) -> None:
        self._paragraph()
        if self._out[-1]:
            self._out.append("")

    def _do_sh(self, arguments: list[str]) -> None:
        self._break()
        self._margin, self._lists, self._verbatim = 0, [], []
        title = _plain(" ".join(arguments))
        self._is_synopsis = title == "SYNOPSIS"
        self._is_hidden = title in _NAMES_OF_PEOPLE
        if not self._is_hidden:
            self._out.append(title)

    def _do_ss(self, arguments: list[str]) -> None:
        self._break()
        self._out.append("  " + _plain(" ".join(arguments)))

    def _do_pp(self, _: list[str]) -> None:
        if any(self._verbatim):
            self._out.append("")
        else:
            self._break()

    _do_lp = _do_sp = _do_pp

    def _do_br(self, _: list[str]) -> None:
        self._paragraph()

    def _do_bd(self, arguments: list[str]) -> None:
        self._break()
        self._verbatim.append("-literal" in arguments or "-unfilled" in arguments)

    def _do_ed(self, _: list[str]) -> None:
        self._paragraph()
        if self._verbatim:
            self._verbatim.pop()
        self._break()

    def _do_dl(self, arguments: list[str]) -> None:
        self._break()
        line = _Line(self._name)
        line.read(arguments if arguments and arguments[0] in _INLINE else ["Li", *arguments])
        self._out.append(" " * (8 + self._margin) + line.text())
        self._break()

    _do_d1 = _do_dl

    def _do_bl(self, arguments: list[str]) -> None:
        self._break()
        kind = arguments[0] if arguments else ""
        self._lists.append((kind, self._margin))

    def _do_el(self, _: list[str]) -> None:
        self._paragraph()
        if self._lists:
            self._margin = self._lists.pop()[1]
        self._break()

    def _do_it(self, arguments: list[str]) -> None:
        self._paragraph()
        kind, margin = self._lists[-1] if self._lists else ("", 0)
        self._margin = margin
        if kind in ("-bullet", "-dash", "-hyphen", "-enum"):
            self._margin, self._marker = margin + 2, "- "
        elif kind == "-column":
            cells = " ".join(arguments).split(" Ta ")
            self._out.append(" " * (4 + margin) + " | ".join(self._tag(cell.split()) for cell in cells))
        else:
            self._out.append(" " * (4 + margin) + self._tag(arguments))
            self._margin = margin + 4

    def _tag(self, arguments: list[str]) -> str:
        line = _Line(self._name)
        line.read(arguments if arguments and arguments[0] in _INLINE else ["No", *arguments])
        return line.text()

    def _do_fo(self, arguments: list[str]) -> None:
        self._call = []
        if self._is_synopsis:
            self._paragraph()
        self._words.append(_plain(" ".join(arguments)))

    def _do_fc(self, arguments: list[str]) -> None:
        call, self._call = self._call or [], None
        if self._words:
            self._words[-1] += f"({', '.join(call)})" + _plain("".join(arguments))
        if self._is_synopsis:
            self._paragraph()

    def _do_ft(self, arguments: list[str]) -> None:
        if self._is_synopsis:
            self._paragraph()
        self._inline(["Ft", *arguments])
        if self._is_synopsis:
            self._paragraph()

    def _do_cd(self, arguments: list[str]) -> None:
        self._inline(["Cd", *arguments])
        if self._is_synopsis:
            self._paragraph()

    def _do_fn(self, arguments: list[str]) -> None:
        self._inline(["Fn", *arguments])
        if self._is_synopsis:
            self._paragraph()

    def _do_in(self, arguments: list[str]) -> None:
        if self._is_synopsis:
            self._paragraph()
            self._out.append("    #include <" + _plain("".join(arguments)) + ">")
        else:
            self._inline(["In", *arguments])

    def _do_rs(self, _: list[str]) -> None:
        self._paragraph()
        self._reference = []

    def _do_re(self, _: list[str]) -> None:
        parts, self._reference = self._reference or [], None
        if parts:
            self._words.append(", ".join(parts) + ".")
            self._paragraph()

    def _do_lb(self, arguments: list[str]) -> None:
        self._words.append(f"library {_plain(' '.join(arguments))}")

    def _do_ex(self, _: list[str]) -> None:
        self._words.append(f"The {self._name} utility exits 0 on success, and >0 if an error occurs.")

    def _do_rv(self, arguments: list[str]) -> None:
        names = " and ".join(f"{name}()" for name in arguments if not name.startswith("-")) or f"{self._name}()"
        self._words.append(
            f"The {names} function returns the value 0 if successful; otherwise the value -1 is returned and the "
            f"global variable errno is set to indicate the error."
        )


class _Line:
    """The words of one line of macros, put together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_glued_before = False
        self.is_glued_after = False
        self._parts: list[str] = []
        self._is_glued = False

    def text(self) -> str:
        """The line so far."""
        return "".join(self._parts).strip()

    def read(self, tokens: list[str]) -> None:
        """Reads macros and their arguments up to the end of the line."""
        position = 0
        ends: list[str] = []
        while position < len(tokens):
            macro, position = tokens[position], position + 1
            if macro in _ENCLOSED:
                opening, closing = _ENCLOSED[macro]
                self._add(opening)
                self._is_glued = True
                ends.append(closing)
                if position < len(tokens) and tokens[position] not in _INLINE:
                    position = self._arguments(tokens, position, "No")
            elif macro in _INLINE or macro == "Nd":
                position = self._arguments(tokens, position, macro)
            else:
                self._word(macro)
        trailing = ""
        while ends and self._parts and self._parts[-1].strip() in _CLOSING and len(self._parts) > 1:
            trailing = self._parts.pop().strip() + trailing
        for closing in reversed(ends):
            self._glue(closing)
        if trailing:
            self._glue(trailing)
        self.is_glued_after = self._is_glued

    def _arguments(self, tokens: list[str], position: int, macro: str) -> int:
        """Reads what belongs to one macro: up to the next one, or the end."""
        words = []
        while position < len(tokens) and tokens[position] not in _INLINE:
            words.append(tokens[position])
            position += 1
        tail = []
        while words and words[-1] in _CLOSING:
            tail.insert(0, words.pop())
        while words and words[0] in _OPENING:
            self._add(words.pop(0))
            self._is_glued = True
        self._one(macro, words)
        for mark in tail:
            self._glue(mark)
        return position

    def _one(self, macro: str, words: list[str]) -> None:
        if macro in _OPENED:
            self._add(_OPENED[macro])
            self._is_glued = True
            for word in words:
                self._word(word)
        elif macro in _CLOSED:
            self._glue(_CLOSED[macro])
            self.is_glued_before = self.is_glued_before or len(self._parts) == 1
            for word in words:
                self._word(word)
        elif macro in ("Ns", "Ap"):
            self.is_glued_before = self.is_glued_before or not self._parts
            if macro == "Ap":
                self._glue("'")
            self._is_glued = True
            for word in words:
                self._word(word)
        elif macro == "Pf":
            self._word("".join(words[:1]))
            self._is_glued = True
            for word in words[1:]:
                self._word(word)
        elif macro == "Fl":
            for word in words or [""]:
                self._add("-" + _plain(word))
            self._is_glued = not words
        elif macro == "Nm":
            self.name = self.name or _plain(" ".join(words))
            self._add(_plain(" ".join(words)) or self.name)
        elif macro == "Nd":
            self._add("- " + _plain(" ".join(words)))
        elif macro == "Fn":
            self._add(f"{_plain(words[0]) if words else ''}({', '.join(map(_plain, words[1:]))})")
        elif macro == "In":
            self._add(f"<{_plain(' '.join(words))}>")
        elif macro == "Xr":
            self._add(_plain(words[0]) + (f"({_plain(words[1])})" if len(words) > 1 else "") if words else "")
        elif macro in _SYSTEMS:
            self._add(" ".join([_SYSTEMS[macro], *map(_plain, words)]))
        elif macro == "Ar" and not words:
            self._add("file ...")
        elif macro == "St":
            self._add({"-p1003.1-2001": "IEEE Std 1003.1-2001", "-p1003.1-2008": "IEEE Std 1003.1-2008",
                       "-isoC": "ISO/IEC 9899:1990", "-isoC-99": "ISO/IEC 9899:1999",
                       "-isoC-2011": "ISO/IEC 9899:2011"}.get("".join(words), "IEEE Std 1003.1"))  # fmt: skip
        elif macro == "An" and words[:1] in (["-split"], ["-nosplit"]):
            return
        else:
            for word in words:
                self._word(word)

    def _word(self, word: str) -> None:
        if word in _CLOSING:
            self._glue(word)
        else:
            self._add(_plain(word))

    def _add(self, text: str) -> None:
        if text:
            self._parts.append(text if self._is_glued or not self._parts else " " + text)
            self._is_glued = False

    def _glue(self, text: str) -> None:
        self._parts.append(text)
        self._is_glued = False
