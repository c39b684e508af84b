"""`ssmn train`: train a model on text, on a table, or on a synthetic task."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmn.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from ssmn.probes import Recorder
    from ssmn.training import Progress, TrainConfig, TrainResult

_SECONDS_BETWEEN_LINES = 10.0


def command(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A TOML file, or the name of a shipped configuration.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model, the log and the checkpoint.")] = Path(
        "runs/model"
    ),
    text: Annotated[Path | None, typer.Option(help="Train on this text file, or on a folder of them.")] = None,
    series: Annotated[
        Path | None, typer.Option(help="Train on this CSV file of numbers, or on a folder of them.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Train on this synthetic task: copy, mqar, multi-hop, ...")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    compute_dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 matrix products, or auto.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    probe: Annotated[
        int | None,
        typer.Option(min=1, metavar="EVERY", help="Record what the layers hold every so many steps (probes.jsonl)."),
    ] = None,
    threads: options.Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train a model on text, on a table of numbers, or on a synthetic task.

    The folder holds the model, its tokenizer, the resolved settings (train.toml), a log (log.jsonl)
    and a checkpoint. Ctrl-C finishes the step and saves; --resume goes on as if nothing had happened.
    --probe records energy, effective rank, half-life, write rate and more of every layer beside the log.

    \b
    Example:
        ssmn train --text book.txt --out runs/book
        ssmn train --task mqar --out runs/mqar --set task.pairs=16
        ssmn train my.toml --out runs/mine --set train.steps=5000 --compute-dtype bfloat16
        ssmn train --out runs/book --resume --probe 50
    """
    from rich.console import Console

    from ssmn.training import TrainConfig, settings_for, train

    options.use_threads(threads)
    source = config
    if resume and (config, text, series, task) == (None, None, None, None):
        source = str(out / "train.toml")
    changes = list(overrides or ())
    if compute_dtype is not None:
        changes.append(f"train.compute_dtype={compute_dtype}")
    settings = TrainConfig.from_dict(settings_for(source, text=text, series=series, task=task, overrides=changes))

    console = Console(stderr=True)
    with Display(console, quiet=quiet) as display, contextlib.ExitStack() as stack:
        around = None if probe is None else stack.enter_context(_recorder(settings, out, probe, resume)).around
        result = train(settings, out, resume=resume, on_step=display.show, around_step=around)
    if result.interrupted:
        console.print(f"Stopped after step {result.step}; go on with: ssmn train --out {out} --resume", soft_wrap=True)
        raise typer.Exit(130)
    console.print(_summary(result), highlight=False, soft_wrap=True)


def _recorder(settings: TrainConfig, out: Path, every: int, resume: bool) -> Recorder:
    """Into the run's folder; for TensorBoard, too, where the run's own log goes there."""
    import importlib.util

    from ssmn.probes import Recorder

    has_board = settings.train.tensorboard is not False and importlib.util.find_spec("tensorboard") is not None
    board = [out / "tensorboard" / "probes"] if has_board else []
    return Recorder(out / "probes.jsonl", *board, every=every, append=resume)


def _summary(result: TrainResult) -> str:
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.figures.items())
    lines = [f"{result.model.num_parameters():,} parameters, {result.step:,} steps{': ' if figures else ''}{figures}."]
    lines.append(f"Saved in {result.folder}.")
    if result.tokenizer is not None:
        lines.append(f'Try: ssmn generate "Once" --model {result.folder}')
    return "\n".join(lines)


class Display:
    """A progress bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, console: Console, *, quiet: bool = False, title: str = "training"):
        self._console, self._quiet, self._title = console, quiet, title
        self._bar: Any = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._row = self._bar.add_task(self._title, total=None, figures="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Shows where the run stands."""
        if self._bar is not None:
            self._bar.update(self._row, completed=progress.step, total=progress.steps, figures=figures_of(progress))
            return
        now = time.monotonic()
        is_due = now - self._last_line >= _SECONDS_BETWEEN_LINES or progress.step == progress.steps
        if is_due and not self._quiet:
            self._last_line = now
            line = f"{self._title} {progress.step}/{progress.steps} {figures_of(progress)}"
            self._console.print(line, highlight=False, soft_wrap=True)


def figures_of(progress: Progress) -> str:
    """Loss, the task's figure, speed and time left, in one line."""
    parts = [f"loss {progress.loss:.4f}"]
    if progress.figure != "loss":
        parts.append(f"{progress.figure.replace('_', ' ')} {progress.value:.3f}")
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    parts += [f"{progress.tokens_per_second:,.0f} tokens/s", f"{minutes}:{seconds:02d} left"]
    return "  ".join(parts)
