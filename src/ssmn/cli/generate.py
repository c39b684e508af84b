"""`ssmn generate`: continue a text, or every line of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmn.cli import options
from ssmn.errors import FileError

if TYPE_CHECKING:
    from ssmn.generation import Step


def command(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to go on from; standard input if absent.")
    ] = None,
    model: options.Model = None,
    state: options.StateFile = None,
    batch: Annotated[
        Path | None,
        typer.Option("--batch", metavar="FILE", help="Continue every line of this file, all at once, as JSON lines."),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = None,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    preset: options.Preset = None,
    frozen: options.Frozen = False,
    eta: options.Eta = None,
    eta_scale: options.EtaScale = 1.0,
    decay: options.Decay = None,
    decay_scale: options.DecayScale = 1.0,
    write_threshold: options.WriteThreshold = None,
    backend: options.Backend = "auto",
    output_memory: options.OutputMemory = False,
    threads: options.Threads = None,
) -> None:
    """Continue a text, from a fresh stream or from a saved one.

    With --state the stream goes on where the file left it and is saved again afterwards, so that the
    next call remembers what was read and written in this one. With --batch every line starts from it
    and it stays as it is.

    \b
    Example:
        ssmn generate "The memory" --seed 0
        cat notes.txt | ssmn generate --state monday.safetensors -n 40
        ssmn generate --batch prompts.txt --stop "\\n" > answers.jsonl
    """
    options.use_threads(threads)
    settings = options.plasticity(preset, frozen, eta, eta_scale, decay, decay_scale, write_threshold)
    if batch is not None and prompt is not None:
        raise typer.BadParameter("give a prompt or --batch, not both.")
    text = _lines(batch) if batch is not None else sys.stdin.buffer.read() if prompt is None else prompt
    if not text:
        raise FileError("generate: the prompt is empty; give a text as argument or on standard input.")
    lm, tokenizer = options.load_text(model, output_memory)
    stream = options.open_stream(lm, state)

    from ssmn.generation import generate

    rows = len(text) if isinstance(text, list) else 1
    steps = generate(
        lm,
        text,
        state=[stream.state] * rows,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=[options.unescaped(one) for one in stop or ()],
        seed=seed,
        plasticity=settings,
        tokenizer=tokenizer,
        backend=backend,
    )
    if isinstance(text, list):
        _write_rows(steps, text)
        return
    last = None
    try:
        for last in steps:
            print(last.text, end="", flush=True)
        print()
    finally:
        if state is not None and last is not None:
            stream.state = last.state
            stream.save(state)


def _lines(file: Path) -> list[str]:
    """The prompts of a file, one a line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FileError(f"{file}: byte {error.start} is not UTF-8; wanted a prompt a line.") from error
    empty = next((number for number, line in enumerate(lines, start=1) if not line), None)
    if empty is not None or not lines:
        raise FileError(f"{file}: line {empty or 1} is empty; wanted a prompt on every line.")
    return lines


def _write_rows(steps: Iterator[Step], prompts: list[str]) -> None:
    """Each answer as soon as it has ended, and all before it."""
    texts, counts, finished, next_row = [""] * len(prompts), [0] * len(prompts), {}, 0
    for step in steps:
        texts[step.row] += step.text
        counts[step.row] += 1
        if step.finish is not None:
            finished[step.row] = step.finish
        while next_row in finished:
            record = {
                "prompt": prompts[next_row],
                "text": texts[next_row],
                "tokens": counts[next_row],
                "finish": finished[next_row],
            }
            print(json.dumps(record, ensure_ascii=False), flush=True)
            next_row += 1
