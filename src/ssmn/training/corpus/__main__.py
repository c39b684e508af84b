"""`python -m ssmn.training.corpus`: the text corpus as a command."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ssmn.errors import ConfigError, SSMNError
from ssmn.training.corpus import SplitConfig, build_corpus, load_recipe


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the corpus into.")],
    only: Annotated[list[str] | None, typer.Option(help="Take only this source (can be repeated).")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave this source out (can be repeated).")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe of your own, in TOML.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the packages; OUT/.downloads if absent.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which documents are held out.")] = 0,
) -> None:
    """Fetches, cleans and splits permissively licensed text, and records where it came from.

    Stop it with Ctrl-C at any time: the same command goes on from the packages that are there.
    """
    screen = Console(stderr=True)
    begin = time.monotonic()
    try:
        sources = load_recipe(recipe)
        known = [source.name for source in sources]
        for name in [*(only or []), *(without or [])]:
            if name not in known:
                raise ConfigError(f"corpus: there is no source {name!r}; the recipe has {', '.join(known)}.")
        sources = [each for each in sources if each.name in (only or known) and each.name not in (without or [])]
        if not sources:
            raise ConfigError("corpus: no source is left; leave out fewer.")
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
            task = progress.add_task("", total=len(sources))
            records = build_corpus(
                out,
                sources,
                config=SplitConfig(seed=seed),
                cache=cache,
                report=lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total),
                warn=lambda message: screen.print(f"note: {message}", highlight=False, markup=False),
            )
    except SSMNError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped; what was fetched is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)
    Console().print(_table(records))
    print(f"{out}: written in {time.monotonic() - begin:.0f} s; licences in {out / 'LICENCES.md'}")


def _table(records: dict[str, Any]) -> Table:
    table = Table("source", "licence", *(f"{part} MB" for part in ("train", "validation", "held-out")), box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    totals = dict.fromkeys(("train", "validation", "held-out"), 0)
    for record in records["sources"]:
        table.add_row(record["name"], record["licence"], *(f"{record['bytes'][part] / 1e6:.2f}" for part in totals))
        totals = {part: total + record["bytes"][part] for part, total in totals.items()}
    table.add_row("all", "", *(f"{total / 1e6:.2f}" for total in totals.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
