"""Where every text came from, under which licence, and what was done to it: for programs and for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmn.training.corpus.documents import Document
from ssmn.training.corpus.duplicates import Counts

if TYPE_CHECKING:
    from ssmn.training.corpus.build import Reading


def source_record(reading: Reading, parts: Mapping[str, Sequence[Document]], counts: Counts) -> dict[str, Any]:
    """What `licences.json` holds about one source; sizes are in bytes."""
    source, package = reading.source, reading.package
    return {
        "name": source.name,
        "title": source.title,
        "genre": source.genre,
        "licence": source.licence,
        "attribution": source.attribution,
        "licence_files": sorted(reading.licences),
        "client": source.client,
        "package": source.package,
        "version": package.version,
        "file": package.path.name,
        "sha256": package.sha256,
        "command": package.command,
        "is_pinned": package.is_pinned,
        "files": list(source.include),
        "files_left_out": [*source.exclude, *source.without],
        "bytes_package": package.path.stat().st_size,
        "bytes_read": reading.bytes_read,
        "bytes_cleaned": reading.bytes_found,
        "bytes_chosen": sum(document.size for document in reading.documents),
        "bytes": {part: sum(document.size for document in documents) for part, documents in parts.items()},
        "documents": {part: len(documents) for part, documents in parts.items()},
        "duplicates": dataclasses.asdict(counts),
    }


def licence_page(records: Mapping[str, Any]) -> str:
    """The same as a page in Markdown."""
    rows = [
        f"| {record['name']} | {record['genre']} | {record['licence']} | "
        + " | ".join(f"{record['bytes'][part] / 1e6:.2f}" for part in ("train", "validation", "held-out"))
        + " |"
        for record in records["sources"]
    ]
    sums = [sum(record["bytes"][part] for record in records["sources"]) for part in ("train", "validation", "held-out")]
    rows.append("| all | | | " + " | ".join(f"{total / 1e6:.2f}" for total in sums) + " |")
    table = "\n".join(rows)
    return _PAGE.format(table=table, sources="\n".join(map(_section, records["sources"])))


_PAGE = """# The texts of this corpus

Written by `python -m ssmn.training.corpus`; `licences.json` holds the same and more. Sizes in MB (10^6 bytes) of clean
text, by part.

| source | genre | licence | train | validation | held-out |
| --- | --- | --- | ---: | ---: | ---: |
{table}

Changes made to every text: brought to UTF-8 with plain quotes; markup, page furniture (navigation, indexes, anchors)
and the licence notices at the heads of source files taken out, since they are kept here and in `licences/`; lines of
prose filled anew where they came as markup. From `train/` and `validation/`, paragraphs were taken out that stand in a
part that is kept from them, or nearly alike in a document before. The documents of `held-out/` are whole.

{sources}"""


def _section(record: Mapping[str, Any]) -> str:
    pinned = "" if record["is_pinned"] else ", which is not the version of the recipe"
    notices = (
        ", ".join(f"`licences/{record['name']}/{name}`" for name in record["licence_files"]) or "none in the package"
    )
    return f"""## {record["name"]}

{record["title"]}.

- Licence: {record["licence"]}. {record["attribution"]} Full text: {notices}.
- Package: {record["package"]} {record["version"]} ({record["client"]}{pinned}), `{record["file"]}`, SHA-256
  `{record["sha256"]}`, fetched by `{record["command"]}`.
- Taken: {", ".join(f"`{pattern}`" for pattern in record["files"])}; of {record["bytes_read"]:,} bytes, \
{record["bytes_cleaned"]:,} when clean, {record["bytes_chosen"]:,} chosen, {sum(record["bytes"].values()):,} written.
"""
