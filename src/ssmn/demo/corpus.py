"""The text that `ssmn demo` reads: the long held-out documents of the text corpus, packed into one stream.

    python -m ssmn.training.corpus --out data/text
    python -m ssmn.demo.corpus --text data/text --out data/demo

It writes `held-out.txt.xz` (what `ssmn demo` ships and reads: a document of each genre in turn) and
`TEXT-LICENCES.md` (where every document comes from, with the licences in full).
"""

from __future__ import annotations

import json
import lzma
import sys
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from ssmn.errors import FileError
from ssmn.files import atomic_write

LONG = 150_000
"""Bytes from which on a held-out document is long; the corpus has four of each genre."""

XZ_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 18}
"""A small dictionary: the preset's 64 MiB would fill up while the text is read, and look like growth of the model."""


def pack(text: Path, out: Path) -> list[Path]:
    """Packs the long held-out documents of a corpus, and writes their licences.

    Args:
        text: The corpus, as `python -m ssmn.training.corpus` writes it.
        out: Folder for the two files.

    Returns:
        The documents in the order of the stream.

    Raises:
        FileError: `text` is no such corpus, or has no long held-out document.
    """
    try:
        listed: list[dict[str, Any]] = json.loads((text / "licences.json").read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, KeyError) as error:
        raise FileError(
            f"demo corpus: {text} is no text corpus ({error}); make it with python -m ssmn.training.corpus --out {text}"
        ) from error
    sources = {source["name"]: source for source in listed}
    found = sorted(file for file in (text / "held-out").glob("*/*.txt") if file.stat().st_size >= LONG)
    if not found:
        raise FileError(f"demo corpus: {text / 'held-out'} has no document of {LONG:,} bytes or more.")
    by_genre: dict[str, list[Path]] = {}
    for file in found:
        by_genre.setdefault(sources[file.parent.name]["genre"], []).append(file)
    documents = [file for file in chain.from_iterable(zip_longest(*by_genre.values())) if file is not None]

    out.mkdir(parents=True, exist_ok=True)
    stream = "\n\n".join(file.read_text(encoding="utf-8").strip("\n") for file in documents) + "\n"
    atomic_write(out / "held-out.txt.xz", lzma.compress(stream.encode(), filters=[XZ_FILTER]))
    atomic_write(out / "TEXT-LICENCES.md", _licences(text, documents, sources).encode())
    return documents


def _licences(text: Path, documents: list[Path], sources: dict[str, dict[str, Any]]) -> str:
    """Titles, licences and attributions of the documents, then every licence once, in full."""
    used = sorted({file.parent.name for file in documents})
    lines = [
        "# The text of the demonstration",
        "",
        "`held-out.txt.xz` holds these documents, in this order; `python -m ssmn.demo.corpus` packed them. They were",
        "cleaned as `python -m ssmn.training.corpus` does it: markup, page furniture and licence heads taken out.",
        "",
        *(f"{number}. {sources[file.parent.name]['title']}: {file.stem}" for number, file in enumerate(documents, 1)),
        "",
    ]
    full: dict[str, list[str]] = {}
    for name in used:
        source = sources[name]
        lines += [f"## {name}", "", f"{source['title']}. Licence: {source['licence']}. {source['attribution']}", ""]
        for file in sorted((text / "licences" / name).glob("*")):
            full.setdefault(file.read_text(encoding="utf-8").strip("\n"), []).append(f"{name}/{file.name}")
    for words, files in full.items():
        lines += [f"## Full text: {', '.join(files)}", "", "````text", words, "````", ""]
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    text: Annotated[Path, typer.Option(help="The text corpus.")] = Path("data/text"),
) -> None:
    """Packs the text of the demonstration."""
    try:
        documents = pack(text, out)
    except FileError as error:
        sys.exit(str(error))
    for file in documents:
        typer.echo(f"{file.stat().st_size:>9,} bytes  {file}")


if __name__ == "__main__":
    typer.run(main)
