"""The text behind the demonstration model: the Python documentation, split into training and held-out chapters.

The source is the plain-text edition of Debian's `python3.11-doc` package (Python Software
Foundation licence), fetched with the ordinary package client or given as a file:

    python -m ssmn.demo.corpus --out data/demo
    python -m ssmn.demo.corpus --out data/demo --source python3.11-doc_3.11.2-6+deb12u9_all.deb

It writes `train/*.txt` (one file per chapter), `held-out.txt`, its packed form `held-out.txt.xz`
(what `ssmn demo` ships and reads) and `report.json`. Held-out are whole chapters and modules, spread
evenly over the document. Paragraphs that also stand in the held-out part, or share half of their
eight-word runs with it, are taken out of the training part.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ssmn.errors import FileError

PACKAGE = "python3.11-doc"
INFO_PATH = "usr/share/info/python3.11.info.gz"
HELD_OUT_BYTES = 4_200_000
SHORTEST_CHAPTER = 200
SHINGLE_WORDS = 8
NEAR_DUPLICATE_SHARE = 0.5

XZ_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 18}
"""A small dictionary: the preset's 64 MiB would fill up while the text is read, and look like growth of the model."""

_SKIPPED = {"Index", "Python Module Index"}
_DEEP_PARTS = {"The Python Standard Library", "Python/C API Reference Manual"}
"""Parts of the document whose chapters are split once more, into modules."""
_TRAINING_ONLY = "Changelog"

_HEADER = re.compile(r"\nFile: [^,]+,  Node: (?P<node>[^,]*),(?:  Next: [^,]*,)?(?:  Prev: [^,]*,)?  Up: (?P<up>.*)\n")
_NOTE = re.compile(
    r"\*note\s+(?P<label>[^:]+?):(?::|(?P<gap>\s+)[^.,:]+?(?P<stop>[.,]))(?P<space>\s*)(?=(?P<next>\S?))"
)
_QUOTED = re.compile(r"‘([^‘’\n]*)’")
_TITLE = re.compile(r"^(?:[A-Z]|\d+)(?:\.\d+)*\.? (.+)\n([*=\-.])\2+$", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_UNIQUE = re.compile(r"<\d+>$")


@dataclass(frozen=True)
class Document:
    """One chapter or module of the documentation."""

    part: str
    title: str
    text: str

    @property
    def size(self) -> int:
        """Length in bytes of UTF-8."""
        return len(self.text.encode())


def fetch_info(folder: Path) -> tuple[bytes, str]:
    """Downloads the documentation package with apt and returns the unpacked info file and the package's name."""
    client = ["apt-get", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
    try:
        subprocess.run(client, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise FileError(
            f"corpus: `apt-get download {PACKAGE}` failed ({detail}); run `apt-get update` first, "
            f"or pass --source with the .deb or the .info file."
        ) from error
    package = next(folder.glob("*.deb"))
    return read_source(package), package.name


def read_source(path: Path) -> bytes:
    """The info text out of a `.deb`, an `.info.gz` or an `.info` file."""
    if path.suffix == ".deb":
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", str(path), folder], check=True)
            return gzip.decompress((Path(folder) / INFO_PATH).read_bytes())
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def clean_node(text: str) -> str:
    """Plain text of one info node: no menu, no footnotes, no cross-reference marks, plain quotes."""
    text = text.split("\n* Menu:\n")[0]
    text, _, footnotes = text.partition("   ---------- Footnotes ----------")
    for number in range(1, len(re.findall(r"^   \(\d+\) ", footnotes, re.MULTILINE)) + 1):
        text = re.sub(rf"(?<=[^\s(])\({number}\)", "", text, count=1)

    def plain_note(match: re.Match[str]) -> str:
        # The format puts a stop after each reference; it belongs to the text only where a sentence could end.
        gap, space, stop = match["gap"] or "", match["space"], match["stop"] or ""
        sentence_ends = "\n\n" in space or not match["next"] or match["next"].isupper()
        kept = stop if stop == "," or sentence_ends else ""
        return match["label"] + kept + (gap if "\n" in gap and space == " " else space)

    text = _NOTE.sub(plain_note, text)
    text = _QUOTED.sub(r"`\1`", text)
    text = text.translate(str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "\u00a0": " "}))
    text = _CONTROL.sub("", text)
    text = _TITLE.sub(lambda match: f"{match[1]}\n{match[2] * len(match[1])}", text)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def documents(info: str) -> list[Document]:
    """The chapters and modules of the info text, in document order."""
    bodies: list[tuple[str, str]] = []
    parent: dict[str, str] = {}
    for raw in info.split("\x1f"):
        header = _HEADER.match(raw)
        if header:
            parent[header["node"]] = header["up"].strip()
            bodies.append((header["node"], raw[header.end() :]))
    if not bodies:
        raise FileError(
            "corpus: the source has no info nodes; wanted the plain-text (info) edition of the documentation."
        )

    def key(node: str) -> tuple[str, str]:
        chain = [node]
        while chain[-1] in parent:
            chain.append(parent[chain[-1]])
        chain = [_UNIQUE.sub("", name) for name in reversed(chain)][2:]
        depth = 3 if chain and (chain[0] in _DEEP_PARTS or chain[1:2] == [_TRAINING_ONLY]) else 2
        return (chain[0] if chain else "", " / ".join(chain[1:depth]) or (chain[0] if chain else ""))

    grouped: dict[tuple[str, str], list[str]] = {}
    for node, body in bodies:
        part, title = key(node)
        if part and part not in _SKIPPED:
            grouped.setdefault((part, title), []).append(clean_node(body))
    built = (Document(part, title, "\n\n".join(filter(None, texts)) + "\n") for (part, title), texts in grouped.items())
    return [document for document in built if document.size >= SHORTEST_CHAPTER]


def split(chapters: Iterable[Document], held_out_bytes: int) -> tuple[list[Document], list[Document]]:
    """Spreads whole chapters evenly: (training, held-out), the latter at least `held_out_bytes` long."""
    chapters = list(chapters)
    eligible = sum(chapter.size for chapter in chapters if not chapter.title.startswith(_TRAINING_ONLY))
    if eligible < 2 * held_out_bytes:
        raise FileError(f"corpus: only {eligible:,} bytes of chapters; wanted at least {2 * held_out_bytes:,}.")
    share = held_out_bytes / eligible
    training: list[Document] = []
    held_out: list[Document] = []
    owed = 0.0
    for chapter in chapters:
        if chapter.title.startswith(_TRAINING_ONLY):
            training.append(chapter)
            continue
        owed += share * chapter.size
        if owed >= chapter.size / 2:
            held_out.append(chapter)
            owed -= chapter.size
        else:
            training.append(chapter)
    while sum(chapter.size for chapter in held_out) < held_out_bytes:
        training_only = [chapter for chapter in training if not chapter.title.startswith(_TRAINING_ONLY)]
        smallest = min(training_only, key=lambda chapter: chapter.size)
        training.remove(smallest)
        held_out.append(smallest)
    position = {id(chapter): index for index, chapter in enumerate(chapters)}
    return training, sorted(held_out, key=lambda chapter: position[id(chapter)])


def _shingles(paragraph: str) -> Iterator[int]:
    words = re.findall(r"\w+", paragraph.lower())
    for start in range(len(words) - SHINGLE_WORDS + 1):
        yield hash(tuple(words[start : start + SHINGLE_WORDS]))


def decontaminate(training: Iterable[Document], held_out: Iterable[Document]) -> tuple[list[Document], dict[str, int]]:
    """Takes out of `training` the paragraphs that stand, exactly or nearly, in `held_out`."""
    known_paragraphs: set[str] = set()
    known_shingles: set[int] = set()
    for chapter in held_out:
        for paragraph in chapter.text.split("\n\n"):
            known_paragraphs.add(" ".join(paragraph.split()))
            known_shingles.update(_shingles(paragraph))
    counts = {"training_paragraphs": 0, "exact_duplicates_removed": 0, "near_duplicates_removed": 0, "shingles_left": 0}
    kept: list[Document] = []
    total = 0
    for chapter in training:
        paragraphs = []
        for paragraph in chapter.text.strip("\n").split("\n\n"):
            counts["training_paragraphs"] += 1
            shingles = list(_shingles(paragraph))
            shared = sum(shingle in known_shingles for shingle in shingles)
            if len(paragraph) > 40 and " ".join(paragraph.split()) in known_paragraphs:
                counts["exact_duplicates_removed"] += 1
            elif shingles and shared >= NEAR_DUPLICATE_SHARE * len(shingles):
                counts["near_duplicates_removed"] += 1
            else:
                paragraphs.append(paragraph)
                counts["shingles_left"] += shared
                total += len(shingles)
        kept.append(Document(chapter.part, chapter.title, "\n\n".join(paragraphs) + "\n"))
    counts["training_shingles"] = total
    return kept, counts


def build(out: Path, *, source: Path | None = None, held_out_bytes: int = HELD_OUT_BYTES) -> dict[str, object]:
    """Writes the corpus into `out` and returns what `report.json` holds.

    Args:
        out: Folder; `train/`, `held-out.txt` and `report.json` in it are replaced.
        source: A `.deb`, `.info` or `.info.gz` file; None downloads the package with apt.
        held_out_bytes: The held-out part is at least this long.

    Raises:
        FileError: The package cannot be fetched or is not the documentation.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, name = fetch_info(Path(folder)) if source is None else (read_source(source), source.name)
    chapters = documents(data.decode("utf-8", errors="replace"))
    training, held_out = split(chapters, held_out_bytes)
    training, counts = decontaminate(training, held_out)

    train_folder = out / "train"
    train_folder.mkdir(parents=True, exist_ok=True)
    for stale in train_folder.glob("*.txt"):
        stale.unlink()
    for index, chapter in enumerate(training):
        slug = re.sub(r"[^a-z0-9]+", "-", chapter.title.lower()).strip("-")[:60]
        (train_folder / f"{index:04d}-{slug}.txt").write_text(chapter.text, encoding="utf-8")
    text = "\n\n".join(chapter.text for chapter in held_out)
    (out / "held-out.txt").write_text(text, encoding="utf-8")
    (out / "held-out.txt.xz").write_bytes(lzma.compress(text.encode(), filters=[XZ_FILTER]))
    report: dict[str, object] = {
        "source": name,
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "held_out_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "held_out_bytes": len(text.encode()),
        "held_out_chapters": len(held_out),
        "training_bytes": sum(chapter.size for chapter in training),
        "training_chapters": len(training),
        **counts,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the corpus into.")],
    source: Annotated[
        Path | None, typer.Option(help="The .deb, .info or .info.gz file; downloaded with apt if absent.")
    ] = None,
) -> None:
    """Builds the training and held-out text of the demonstration model."""
    try:
        report = build(out, source=source)
    except FileError as error:
        sys.exit(str(error))
    typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
