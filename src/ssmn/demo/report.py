"""The page of a demonstration: one HTML file without any outside request, a PNG of each drawing, the numbers."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmn import plots
from ssmn.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """One drawing, what to look for in it, and what came out."""

    name: str
    title: str
    draw: Callable[[Mapping[str, Any], plots.Look], Figure]
    part: str
    """Key of the numbers that it draws."""
    look_for: str
    outcome: Callable[[Mapping[str, Any]], str]
    extra: Callable[[Mapping[str, Any]], str] = lambda _: ""
    """HTML that follows it."""


@dataclass(frozen=True)
class Page:
    """What a demonstration's page says of its numbers."""

    title: str
    lead: Callable[[Mapping[str, Any]], str]
    highlights: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
    """A value each, and what it is."""
    sections: tuple[Section, ...]
    facts: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
    """What was measured, by name; `code` in backticks. How the page was made is added."""


def write(page: Page, numbers: Mapping[str, Any], folder: str | os.PathLike[str], command: str) -> Path:
    """Writes `index.html`, one PNG per section and `numbers.json`.

    Args:
        page: What to say of the numbers.
        numbers: What the demonstration's `run` returned.
        folder: Made if absent; files of the same names are replaced, each whole or not at all.
        command: The command that made it, for the page.

    Returns:
        The page's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        FileError: The folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for number, section in enumerate(page.sections, start=1):
        pictures = {
            (dark, narrow): plots.png(section.draw(numbers[section.part], plots.Look(dark=dark, narrow=narrow)))
            for dark in (False, True)
            for narrow in (False, True)
        }
        atomic_write(folder / f"{number}-{section.name}.png", pictures[False, False])
        blocks.append(_block(number, section, numbers[section.part], pictures))
    atomic_write(folder / "numbers.json", (json.dumps(numbers, indent=1) + "\n").encode())
    path = folder / "index.html"
    atomic_write(path, _html(page, numbers, "\n".join(blocks), command).encode())
    return path


def _block(number: int, section: Section, part: Mapping[str, Any], pictures: Mapping[tuple[bool, bool], bytes]) -> str:
    def source(dark: bool, narrow: bool) -> str:
        return "data:image/png;base64," + base64.b64encode(pictures[dark, narrow]).decode()

    return f"""<section id="{section.name}">
<h2><span>{number}</span>{html.escape(section.title)}</h2>
<figure>
<picture>
<source media="(prefers-color-scheme: dark) and (max-width: 600px)" srcset="{source(True, True)}">
<source media="(prefers-color-scheme: dark)" srcset="{source(True, False)}">
<source media="(max-width: 600px)" srcset="{source(False, True)}">
<img src="{source(False, False)}" alt="{html.escape(section.title)}: {html.escape(section.outcome(part))}">
</picture>
<figcaption><b>What to look for.</b> {html.escape(section.look_for)}</figcaption>
</figure>
<p><b>Measured.</b> {html.escape(section.outcome(part))}</p>
{section.extra(part)}
</section>"""


def _html(page: Page, numbers: Mapping[str, Any], blocks: str, command: str) -> str:
    style = (resources.files("ssmn.demo") / "assets" / "report.css").read_text(encoding="utf-8")
    commit = numbers["machine"]["commit"]
    made_by = ("Made by", f"`{command}` in {numbers['seconds']:.0f} s{f', commit {commit}' if commit else ''}")
    cards = "".join(f"<li><strong>{value}</strong>{html.escape(text)}</li>" for value, text in page.highlights(numbers))
    facts = "".join(
        f"<dt>{name}</dt><dd>{_code(html.escape(text))}</dd>" for name, text in [*page.facts(numbers), made_by]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>SSMN: {html.escape(page.title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">Sparse-Stream Memory Network</p>
<h1>{html.escape(page.title)}</h1>
<p class="lead">{html.escape(page.lead(numbers))}</p>
<ul class="cards">{cards}</ul>
</header>
<main>
{blocks}
</main>
<footer><dl>{facts}</dl></footer>
</body>
</html>
"""


def percent(share: float) -> str:
    """Such as +12 %."""
    return f"{100 * share:+.0f} %".replace("-", "−")


def _code(text: str) -> str:
    parts = text.split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
