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

import dataclasses
import hashlib
import json
import lzma
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ssmn.errors import FileError
from ssmn.training.corpus import load_recipe
from ssmn.training.corpus.archives import members
from ssmn.training.corpus.build import DOWNLOADS
from ssmn.training.corpus.duplicates import Counts, remove_duplicates
from ssmn.training.corpus.fetch import fetch
from ssmn.training.corpus.readers.info import TRAINING_ONLY, Chapter, chapters

SOURCE = "python-manual"
"""The documentation's name in the recipe of the text corpus."""
INFO_FILE = "*python3.11.info*"
HELD_OUT_BYTES = 4_200_000

XZ_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 18}
"""A small dictionary: the preset's 64 MiB would fill up while the text is read, and look like growth of the model."""


def read_source(path: Path) -> bytes:
    """The info text out of a `.deb`, an `.info.gz` or an `.info` file.

    Raises:
        FileError: The file cannot be read or holds no such text.
    """
    found = members(path, (INFO_FILE,))
    if len(found) != 1:
        raise FileError(f"corpus: {path} holds {len(found)} files {INFO_FILE}; wanted one, the info edition.")
    return found[0].data


def _fetched(cache: Path) -> Path:
    (source,) = (source for source in load_recipe() if source.name == SOURCE)
    return fetch(source, cache, warn=lambda message: print(f"note: {message}", file=sys.stderr)).path


def split(chapters: Iterable[Chapter], held_out_bytes: int) -> tuple[list[Chapter], list[Chapter]]:
    """Spreads whole chapters evenly: (training, held-out), the latter at least `held_out_bytes` long."""
    chapters = list(chapters)
    eligible = sum(chapter.size for chapter in chapters if not chapter.title.startswith(TRAINING_ONLY))
    if eligible < 2 * held_out_bytes:
        raise FileError(f"corpus: only {eligible:,} bytes of chapters; wanted at least {2 * held_out_bytes:,}.")
    share = held_out_bytes / eligible
    training: list[Chapter] = []
    held_out: list[Chapter] = []
    owed = 0.0
    for chapter in chapters:
        if chapter.title.startswith(TRAINING_ONLY):
            training.append(chapter)
            continue
        owed += share * chapter.size
        if owed >= chapter.size / 2:
            held_out.append(chapter)
            owed -= chapter.size
        else:
            training.append(chapter)
    while sum(chapter.size for chapter in held_out) < held_out_bytes:
        training_only = [chapter for chapter in training if not chapter.title.startswith(TRAINING_ONLY)]
        smallest = min(training_only, key=lambda chapter: chapter.size)
        training.remove(smallest)
        held_out.append(smallest)
    position = {id(chapter): index for index, chapter in enumerate(chapters)}
    return training, sorted(held_out, key=lambda chapter: position[id(chapter)])


def decontaminate(training: Iterable[Chapter], held_out: Iterable[Chapter]) -> tuple[list[Chapter], dict[str, int]]:
    """Takes out of `training` the paragraphs that stand, exactly or nearly, in `held_out`."""
    training = list(training)
    tiers = [[chapter.text for chapter in part] for part in (held_out, training)]
    (_, texts), (_, tallies) = remove_duplicates(tiers, repeats=False)
    total = Counts()
    for tally in tallies:
        total.add(tally)
    kept = [dataclasses.replace(chapter, text=text) for chapter, text in zip(training, texts, strict=True)]
    return kept, {
        "training_paragraphs": total.paragraphs,
        "exact_duplicates_removed": total.exact_leaks,
        "near_duplicates_removed": total.near_leaks,
        "shingles_left": total.shared_shingles,
        "training_shingles": total.shingles,
    }


def build(out: Path, *, source: Path | None = None, held_out_bytes: int = HELD_OUT_BYTES) -> dict[str, object]:
    """Writes the corpus into `out` and returns what `report.json` holds.

    Args:
        out: Folder; `train/`, `held-out.txt` and `report.json` in it are replaced.
        source: A `.deb`, `.info` or `.info.gz` file; None downloads the package with apt, once.
        held_out_bytes: The held-out part is at least this long.

    Raises:
        FileError: The package cannot be fetched or is not the documentation.
    """
    package = source if source is not None else _fetched(out / DOWNLOADS)
    data = read_source(package)
    training, held_out = split(chapters(data.decode("utf-8", errors="replace")), held_out_bytes)
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
        "source": package.name,
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
