"""`ssmn demo`: the library's main job on a real text, or on a real sensor, with a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmn.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from ssmn.demo.report import Page

STAGES = {
    "text": {
        "read": "reading the text, once, to the end",
        "compare": "one passage, read in four ways",
        "twice": "passages read twice",
        "story": "a state saved, reloaded, forked",
        "table": "full attention against the stream",
    },
    "standard": {
        "watch": "a sensor, watched for anomalies",
        "follow": "its next reading, with and without",
        "switch": "systems that are replaced",
        "story": "a state saved, reloaded, forked",
    },
}


class Demonstration(StrEnum):
    """What there is to see."""

    text = "text"
    standard = "standard"


FOLDERS = {Demonstration.text: "demo-report", Demonstration.standard: "demo-standard"}


def command(
    which: Annotated[
        Demonstration,
        typer.Argument(
            metavar="WHICH", help="text: a long text and its memory. standard: a sensor, watched and followed."
        ),
    ] = Demonstration.text,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the report (demo-report, or demo-standard)."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--bytes", min=20_000, help="text, a quick look: only so much of it, and n = 1,000 alone."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=2_000, help="standard, a quick look: only so many readings.")
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=1, max=options.MAX_THREADS, help="Threads for the small model; the seed's table takes all."),
    ] = 1,
) -> None:
    """Stream a long real text, or a real sensor, through a small model and write an illustrated report.

    Needs no network; the text takes about three minutes on two cores, the sensor less than one. The
    report (index.html, a PNG of each drawing, numbers.json) is written at the end; Ctrl-C before that
    leaves nothing behind.

    \b
    Example:
        ssmn demo
        ssmn demo --bytes 200000 --out quick-report
        ssmn demo standard
    """
    from rich.console import Console

    is_text = which is Demonstration.text
    for name, value, belongs in (("--bytes", size, is_text), ("--rows", rows, not is_text)):
        if value is not None and not belongs:
            raise typer.BadParameter(
                f"{name} is not for `ssmn demo {which}`; wanted {'--bytes' if is_text else '--rows'}."
            )
    console = Console()
    with console.status("loading the model"):
        from ssmn.demo import report

        if is_text:
            from ssmn.demo import text, text_page

            page = text_page.PAGE
            lengths = (1_000, 10_000) if size is None else (1_000,)
            run = partial(text.run, limit=size, lengths=lengths, threads=threads)
        else:
            from ssmn.demo import standard, standard_page

            page = standard_page.PAGE
            run = partial(standard.run, limit=rows, threads=threads)
    numbers = _measure(console, STAGES[which], run)
    words = [
        "ssmn",
        "demo",
        *([] if is_text else [which]),
        *(["--bytes", str(size)] if size else []),
        *(["--rows", str(rows)] if rows else []),
        *(["--out", str(out)] if out else []),
    ]
    with console.status("drawing the report"):
        path = report.write(page, numbers, out or FOLDERS[which], shlex.join(words))
    _summarise(console, page, numbers)
    console.print(f"\nThe report: [bold]{path.resolve().as_uri()}[/]")


def _measure(console: Console, stages: dict[str, str], run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[remark]}[/]"),
    )
    with Progress(*columns, console=console) as bar:
        tasks = {name: bar.add_task(text, total=None, start=False, remark="") for name, text in stages.items()}
        shown: set[str] = set()

        def progress(stage: str, done: float, total: float, remark: str = "") -> None:
            if stage not in shown:
                shown.add(stage)
                bar.start_task(tasks[stage])
            bar.update(tasks[stage], completed=done, total=total, remark=remark)

        return run(progress=progress)


def _summarise(console: Console, page: Page, numbers: dict[str, Any]) -> None:
    from rich.padding import Padding

    for number, section in enumerate(page.sections, start=1):
        console.print(f"\n[bold]{number}. {section.title}[/]")
        console.print(Padding(section.outcome(numbers[section.part]), (0, 0, 0, 3)), highlight=False)
