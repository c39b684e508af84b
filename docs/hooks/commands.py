"""The command-line reference, written from the commands themselves whenever the site is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from ssmn.cli import VERBS, app_for

MARK = "<!-- the commands -->"


def reference() -> str:
    """A section per verb, with a sub-section per sub-verb: what it does, an example, its arguments and options."""
    return "\n\n".join(part for verb in VERBS for part in _verb(verb)) + "\n"


def _verb(verb: str) -> Iterator[str]:
    command: Any = typer.main.get_command(app_for(verb))
    command = command.commands[verb]
    if not hasattr(command, "commands"):
        yield from _described(command, f"ssmn {verb}", "##")
        return
    yield f"## ssmn {verb}"
    yield VERBS[verb]
    for name, sub in command.commands.items():
        yield from _described(sub, f"ssmn {verb} {name}", "###")


def _described(command: Any, words: str, level: str) -> Iterator[str]:
    """Title, text, usage and the table of one command."""
    context = command.make_context(words, [], resilient_parsing=True)
    text, _, example = (command.help or "").partition("\b\nExample:\n")
    yield f"{level} {words}"
    yield text.strip()
    yield f"```text\n{words} {' '.join(command.collect_usage_pieces(context))}\n```"
    if example:
        lines = "\n".join(line.removeprefix("    ") for line in example.rstrip().splitlines())
        yield f"Example:\n\n```sh\n{lines}\n```"
    records = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    if records:
        rows = (f"| {_code(names)} | {_cell(meaning)} |" for names, meaning in records)
        yield "\n".join(["| argument or option | meaning |", "| --- | --- |", *rows])


def _code(names: str) -> str:
    return f"`{names}`" if "|" not in names else f"<code>{_cell(names)}</code>"


def _cell(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the reference where its mark stands; mkdocs calls it."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown
