"""`ssmn eval`: what a model can do, with its memory on and frozen."""

from __future__ import annotations

import codecs
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmn.cli import options
from ssmn.cli.train import Display
from ssmn.errors import ConfigError, FileError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ssmn.config import Plasticity
    from ssmn.models import SSMN, TextSSMN

Row = dict[str, Any]


def command(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="Folder of a trained model.")] = None,
    text: Annotated[Path | None, typer.Option(help="Bits per byte of this text file, or of a folder's.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Read only this many bytes of the text.")] = None,
    task: Annotated[str | None, typer.Option(help="Accuracy on this task; the model's own task if absent.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Train this configuration from scratch and hold its figures against its goals.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --config: how many seeds, from the configuration's own.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --config: keep the runs in this folder.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    preset: options.Preset = None,
    frozen: options.Frozen = False,
    eta: options.Eta = None,
    eta_scale: options.EtaScale = 1.0,
    decay: options.Decay = None,
    decay_scale: options.DecayScale = 1.0,
    write_threshold: options.WriteThreshold = None,
    output_memory: options.OutputMemory = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines in place of a table.")] = False,
    threads: options.Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure a trained model, or train a shipped configuration and check what it promises.

    Every figure comes with its control: the same model with the memory frozen, so that nothing is
    written while it reads. The options of plasticity change how the other one learns.

    \b
    Example:
        ssmn eval runs/book --text other-book.txt
        ssmn eval runs/book --text other-book.txt --plasticity long-term
        ssmn eval runs/mqar --task mqar --set task.pairs=64
        ssmn eval --config mqar --seeds 3
    """
    if (model is None) == (config is None):
        raise typer.BadParameter("give the folder of a model, or --config with settings to train.")
    options.use_threads(threads)
    if config is not None and options.plasticity(preset, frozen, eta, eta_scale, decay, decay_scale, write_threshold):
        raise typer.BadParameter(
            "--config trains and measures as configured; set model.plasticity_eta and so on by --set."
        )
    if config is not None:
        rows = list(_examine(config, seeds, out, overrides or [], quiet))
    else:
        assert model is not None
        settings = options.plasticity(preset, frozen, eta, eta_scale, decay, decay_scale, write_threshold)
        rows = _evaluate(model, text, limit, task, overrides or [], settings, output_memory)
    _print(rows, as_json)
    if any(row.get("met") is False for row in rows):
        raise typer.Exit(1)


def _examine(config: str, seeds: int, out: Path | None, overrides: list[str], quiet: bool) -> Iterable[Row]:
    from rich.console import Console

    from ssmn.training import TrainConfig, examine, settings_for

    settings = TrainConfig.from_dict(settings_for(config, overrides=overrides))
    for seed in range(settings.seed, settings.seed + seeds):
        with Display(Console(stderr=True), quiet=quiet, title=f"seed {seed}") as display:
            for figure in examine(settings, [seed], out=out, on_step=display.show):
                yield {
                    "seed": figure.seed,
                    "figure": figure.name,
                    "measure": figure.measure,
                    "value": figure.value,
                    "goal": figure.goal,
                    "met": figure.met if figure.goal else None,
                    "train_seconds": round(figure.train_seconds),
                }


def _evaluate(
    folder: Path,
    text: Path | None,
    limit: int | None,
    task: str | None,
    overrides: list[str],
    settings: Plasticity | None,
    output_memory: bool,
) -> list[Row]:
    from ssmn.config import Plasticity

    controls: dict[str, Plasticity | None] = {} if settings is not None and settings.frozen else {"on": settings}
    if output_memory and controls:
        without = dataclasses.replace(settings or Plasticity(), output_eta=0.0)
        controls = {"on, and of the output": settings, "on": without}
    controls["frozen"] = Plasticity(frozen=True)
    model = options.load(folder, output_memory)
    if text is not None:
        if model.config.kind != "text":
            raise ConfigError(f"eval: {folder} holds a Standard model; wanted a text model for --text.")
        return [_text_row(folder, model, text, limit, name, control) for name, control in controls.items()]
    return [
        row for name, control in controls.items() for row in _task_rows(folder, model, task, overrides, name, control)
    ]


def _text_row(folder: Path, model: Any, text: Path, limit: int | None, name: str, control: Any) -> Row:
    from ssmn.training import evaluate_stream

    tokenizer = options.load_tokenizer(folder, model)
    tokens = tokenizer.encode(_read(text, limit, utf8=tokenizer.kind != "bytes"))
    if len(tokens) < 2:
        raise FileError(f"eval: {text} gives {len(tokens)} tokens; wanted a text of at least 2.")
    score = evaluate_stream(model, tokens, tokenizer=tokenizer, plasticity=control)
    return {
        "memory": name,
        "bits_per_byte": score.bits_per_byte,
        "nats_per_token": score.loss,
        "tokens": score.steps,
        "bytes": score.target_bytes,
        "tokens_per_second": round(score.steps / score.seconds),
    }


def _read(path: Path, limit: int | None, *, utf8: bool) -> bytes | str:
    """The first `limit` bytes of a file or of a folder's files; whole characters if `utf8`."""
    from ssmn.training.data import text_files

    raw = b""
    for file in text_files(path):
        with file.open("rb") as handle:
            raw += handle.read(-1 if limit is None else limit - len(raw))
    if not utf8:
        return raw
    try:
        # A limit may cut the last character in two.
        return codecs.getincrementaldecoder("utf-8")().decode(raw, final=limit is None)
    except UnicodeDecodeError as error:
        raise FileError(
            f"eval: byte {error.start} of {path} is not UTF-8; this model's tokenizer wants UTF-8 text (one trained "
            f"with data.tokenizer='bytes' takes anything)."
        ) from error


def _task_rows(
    folder: Path, model: TextSSMN | SSMN, name: str | None, overrides: list[str], memory: str, control: Any
) -> list[Row]:
    from ssmn.training import TrainConfig, evaluate_task, settings_for

    own = folder / "train.toml"
    source = str(own) if own.is_file() else None
    settings = TrainConfig.from_dict(settings_for(source, task=name, overrides=overrides))
    if settings.task is None:
        raise ConfigError(f"eval: {folder} was not trained on a task; give --text FILE or --task NAME.")
    for key, wanted in settings.task.model_settings().items():
        if model.config.to_dict()[key] != wanted:
            raise ConfigError(
                f"eval: task {settings.task.name} wants a model of {key}={wanted!r}, but {folder} has "
                f"{model.config.to_dict()[key]!r}; set the task's sizes by --set, or train on it."
            )
    figures = evaluate_task(model, settings.task, plasticity=control)
    return [{"memory": memory, "measure": measure, "value": value} for measure, value in figures.items()]


def _print(rows: list[Row], as_json: bool) -> None:
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*[name.replace("_", " ") for name in rows[0]])
    for row in rows:
        table.add_row(*[_cell(value) for value in row.values()])
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
