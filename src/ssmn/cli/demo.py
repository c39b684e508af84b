"""`ssmn demo`: the library's main job on a real text, with a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

STAGES = {
    "read": "reading the text, once, to the end",
    "compare": "one passage, read in four ways",
    "twice": "passages read twice",
    "story": "a state saved, reloaded, forked",
    "table": "full attention against the stream",
}


def command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the report.")] = Path("demo-report"),
    limit: Annotated[
        int | None,
        typer.Option("--bytes", min=20_000, help="A quick look: only this much of the text, and n = 1,000 alone."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for the small model; the seed's table takes all.")] = 1,
) -> None:
    """Stream a long real text through a small model and write an illustrated report.

    Needs no network and about three minutes on two cores. The report (index.html, a PNG of each
    drawing, numbers.json) is written at the end; Ctrl-C before that leaves nothing behind.

    \b
    Example:
        ssmn demo
        ssmn demo --bytes 200000 --out quick-report
    """
    from rich.console import Console

    console = Console()
    with console.status("loading the model"):
        from ssmn.demo import report, text
    numbers = _measure(console, text, limit, threads)
    words = [
        "ssmn",
        "demo",
        *(["--bytes", str(limit)] if limit else []),
        *(["--out", str(out)] if str(out) != "demo-report" else []),
    ]
    with console.status("drawing the report"):
        page = report.write(numbers, out, shlex.join(words))
    _summarise(console, report, numbers)
    console.print(f"\nThe report: [bold]{page.resolve().as_uri()}[/]")


def _measure(console: Console, text: Any, limit: int | None, threads: int) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[remark]}[/]"),
    )
    with Progress(*columns, console=console) as bar:
        tasks = {name: bar.add_task(text, total=None, start=False, remark="") for name, text in STAGES.items()}
        shown: set[str] = set()

        def progress(stage: str, done: float, total: float, remark: str = "") -> None:
            if stage not in shown:
                shown.add(stage)
                bar.start_task(tasks[stage])
            bar.update(tasks[stage], completed=done, total=total, remark=remark)

        lengths = (1_000, 10_000) if limit is None else (1_000,)
        return text.run(limit=limit, lengths=lengths, threads=threads, progress=progress)


def _summarise(console: Console, report: Any, numbers: dict[str, Any]) -> None:
    from rich.padding import Padding

    for number, section in enumerate(report.SECTIONS, start=1):
        console.print(f"\n[bold]{number}. {section.title}[/]")
        console.print(Padding(section.outcome(numbers[section.part]), (0, 0, 0, 3)), highlight=False)
