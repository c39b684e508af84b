"""From a recipe to a corpus on disk: fetch, read, choose, split, clean of duplicates, write, record."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ssmn.errors import FileError
from ssmn.files import atomic_write
from ssmn.training.corpus.archives import members
from ssmn.training.corpus.documents import Document
from ssmn.training.corpus.duplicates import Counts, remove_duplicates
from ssmn.training.corpus.fetch import Package, fetch
from ssmn.training.corpus.readers import READERS
from ssmn.training.corpus.recipe import Source
from ssmn.training.corpus.records import licence_page, source_record
from ssmn.training.corpus.splits import Split, SplitConfig, choose, split

PARTS = ("held-out", "validation", "train")
"""In the order in which a paragraph that stands in two of them is kept."""

DOWNLOADS = ".downloads"
_UNFINISHED = ".unfinished"
_SHORTEST_DOCUMENT = 200
_LONGEST_SLUG = 80


@dataclass(frozen=True)
class Reading:
    """What one source gave.

    Attributes:
        source: The source.
        package: The package that was read.
        documents: The documents, chosen within the source's limit.
        licences: File name and text of the licences in the package.
        bytes_read: Size of the files that were read, unpacked.
        bytes_found: Size of all documents, before the choice.
    """

    source: Source
    package: Package
    documents: list[Document]
    licences: dict[str, str]
    bytes_read: int
    bytes_found: int


def build_corpus(
    out: str | os.PathLike[str],
    sources: Sequence[Source],
    *,
    config: SplitConfig | None = None,
    cache: str | os.PathLike[str] | None = None,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Writes a corpus: `train/`, `validation/`, `held-out/`, `licences/`, `licences.json` and `LICENCES.md`.

    The same packages give the same bytes. What was fetched is kept, so a run that was stopped goes on
    where it was; until a run is through, what an earlier one wrote stays as it is.

    Args:
        out: Folder of the corpus; the parts named above are replaced.
        sources: What it is made of.
        config: How documents are split; None for the defaults.
        cache: Folder of the packages; None for `.downloads` in `out`.
        report: Called with a stage in words, how many of its steps are done, and how many there are.
        warn: Called with what the reader of the output should know.

    Returns:
        What `licences.json` holds.

    Raises:
        FileError: Packages cannot be had (every one is named), are damaged, or the corpus cannot be written.
    """
    folder = Path(out)
    config = config or SplitConfig()
    packages = _fetch_all(sources, Path(cache) if cache is not None else folder / DOWNLOADS, report, warn)
    readings = []
    for number, source in enumerate(sources):
        report(f"reading {source.name}", number, len(sources))
        readings.append(_read(source, packages[source.name], config.seed))
    report("reading", len(sources), len(sources))
    documents = {reading.source.name: reading.documents for reading in readings}
    parts = _parts(split(sources, documents, config))
    report("removing duplicates", 0, 1)
    parts, counts = _without_duplicates(parts)
    report("removing duplicates", 1, 1)
    records = {
        "seed": config.seed,
        "sources": [
            source_record(
                reading,
                {part: parts[part].get(reading.source.name, []) for part in PARTS},
                counts[reading.source.name],
            )
            for reading in readings
        ],
    }
    _write(folder, parts, readings, records, report)
    return records


def _fetch_all(
    sources: Sequence[Source], cache: Path, report: Callable[[str, int, int], None], warn: Callable[[str], None]
) -> dict[str, Package]:
    """All packages; if some cannot be had, the error names each of them."""
    packages, failures = {}, []
    for number, source in enumerate(sources):
        report(f"fetching {source.package}", number, len(sources))
        try:
            packages[source.name] = fetch(source, cache, warn)
        except FileError as error:
            failures.append(str(error))
    report("fetching", len(sources), len(sources))
    if failures:
        raise FileError("\n".join(failures))
    return packages


def _read(source: Source, package: Package, seed: int) -> Reading:
    files = members(package.path, source.include, source.exclude)
    found = READERS[source.reader](files, **source.options)
    found = [
        document
        for document in found
        if document.size >= _SHORTEST_DOCUMENT
        and not any(fnmatchcase(document.name, pattern) for pattern in source.without)
    ]
    if not found:
        raise FileError(
            f"corpus: {package.path} holds no text for source {source.name!r}; its layout has changed. Put "
            f"{source.file} in its place, or leave the source out with --without {source.name}."
        )
    notices = members(package.path, source.licence_files) if source.licence_files else []
    return Reading(
        source,
        package,
        choose(source, found, seed),
        {path.rsplit("/", 1)[-1]: data.decode("utf-8", "replace") for path, data in notices},
        sum(len(data) for _, data in files),
        sum(document.size for document in found),
    )


def _parts(chosen: Split) -> dict[str, dict[str, list[Document]]]:
    return {"held-out": chosen.held_out, "validation": chosen.validation, "train": chosen.train}


def _without_duplicates(
    parts: dict[str, dict[str, list[Document]]],
) -> tuple[dict[str, dict[str, list[Document]]], dict[str, Counts]]:
    """The parts without what stands in a part before, or nearly alike in a document before; counts by source."""
    rows = {part: [(name, each) for name, group in parts[part].items() for each in group] for part in PARTS}
    texts, tallies = remove_duplicates([[document.text for _, document in rows[part]] for part in PARTS])
    cleaned: dict[str, dict[str, list[Document]]] = {part: {} for part in PARTS}
    counts: dict[str, Counts] = {}
    for part, tier, tier_counts in zip(PARTS, texts, tallies, strict=True):
        for (name, document), text, count in zip(rows[part], tier, tier_counts, strict=True):
            total = counts.setdefault(name, Counts())
            total.add(count)
            # What is left of a document that repeats another is not worth a file.
            if part == "held-out" or len(text.encode()) >= _SHORTEST_DOCUMENT:
                cleaned[part].setdefault(name, []).append(Document(document.name, text))
    return cleaned, counts


def _write(
    folder: Path,
    parts: dict[str, dict[str, list[Document]]],
    readings: Sequence[Reading],
    records: dict[str, Any],
    report: Callable[[str, int, int], None],
) -> None:
    """Writes everything beside what is there, and only then puts it in its place."""
    fresh = folder / _UNFINISHED
    total = sum(len(group) for part in parts.values() for group in part.values())
    done = 0
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        for part, groups in parts.items():
            for name, documents in groups.items():
                place = fresh / part / name
                place.mkdir(parents=True)
                for slug, document in zip(_slugs(documents), documents, strict=True):
                    (place / f"{slug}.txt").write_text(document.text, encoding="utf-8")
                    done += 1
                report("writing", done, total)
        for reading in readings:
            place = fresh / "licences" / reading.source.name
            place.mkdir(parents=True)
            for name, text in reading.licences.items():
                (place / name).write_text(text, encoding="utf-8")
        for name in (*PARTS, "licences"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (fresh / name).mkdir(exist_ok=True)
            (fresh / name).rename(folder / name)
        atomic_write(folder / "LICENCES.md", licence_page(records).encode())
        atomic_write(folder / "licences.json", (json.dumps(records, indent=2, ensure_ascii=False) + "\n").encode())
        fresh.rmdir()
    except OSError as error:
        raise FileError(f"corpus: {folder} cannot be written ({error}); free space or choose another --out.") from error


def _slugs(documents: Sequence[Document]) -> list[str]:
    """A file name for each document: its name in small letters and hyphens, numbered where two are alike."""
    used: dict[str, int] = {}
    slugs = []
    for document in documents:
        slug = re.sub(r"[^a-z0-9]+", "-", document.name.lower()).strip("-")[:_LONGEST_SLUG].strip("-") or "text"
        used[slug] = used.get(slug, 0) + 1
        slugs.append(slug if used[slug] == 1 else f"{slug}-{used[slug]}")
    return slugs
