"""The page of finished runs: tables and drawings of `ssmn bench quality`, made whenever the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from ssmn import plots
from ssmn.bench.quality import PARTS
from ssmn.bench.quality.frame import finished
from ssmn.bench.report import markdown_table

RUNS = Path(__file__).parents[2] / "experiments" / "quality"
PAGE = "finished-runs.md"
LOOKS = {"light": plots.Look(), "dark": plots.Look(dark=True)}


def drawn(name: str, look: str) -> str:
    """Where a part's drawing stands within the site."""
    return f"assets/runs/{name}-{look}.png"


def report(runs: dict[str, Any], drawings: set[str]) -> Iterator[str]:
    """A section for each part that has finished runs: its command, its drawing, its tables."""
    for name, results in runs.items():
        yield f"## {PARTS[name].summary.removesuffix('.')}"
        yield f"`ssmn bench quality --part {name}`"
        if name in drawings:
            yield "\n".join(f"![{PARTS[name].summary}]({drawn(name, look)}#only-{look})" for look in LOOKS)
        yield from (markdown_table(table) for table in PARTS[name].tables(results))


def on_files(files: Any, config: Any) -> Any:
    """Adds the drawings, and the sections to the page that elsewhere.py has added; mkdocs calls it."""
    runs = {name: results for name, part in PARTS.items() if (results := finished(part, RUNS))}
    drawings = set()
    for name, results in runs.items():
        for look, settings in LOOKS.items():
            if figure := PARTS[name].drawing(results, settings):
                drawings.add(name)
                files.append(File.generated(config, drawn(name, look), content=plots.png(figure)))
    page = files.get_file_from_path(PAGE)
    page.content_string = "\n\n".join([page.content_string.rstrip(), *report(runs, drawings)]) + "\n"
    return files
