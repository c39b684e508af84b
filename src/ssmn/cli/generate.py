"""`ssmn generate`: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ssmn.cli import options
from ssmn.errors import FileError


def command(
    prompt: Annotated[str | None, typer.Argument(help="The text to go on from; standard input if absent.")] = None,
    model: options.Model = None,
    state: options.StateFile = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Below 1 is safer, 0 takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Choose among this many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest that hold this share.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Makes the same text again.")] = None,
    frozen: options.Frozen = False,
    eta: options.Eta = None,
    eta_scale: options.EtaScale = 1.0,
    decay: options.Decay = None,
    decay_scale: options.DecayScale = 1.0,
    output_memory: options.OutputMemory = False,
    threads: options.Threads = None,
) -> None:
    """Continue a text, from a fresh stream or from a saved one.

    With --state the stream goes on where the file left it and is saved again afterwards, so that the
    next call remembers what was read and written in this one.

    \b
    Example:
        ssmn generate "The memory" --seed 0
        cat notes.txt | ssmn generate --state monday.safetensors -n 40
    """
    options.use_threads(threads)
    settings = options.plasticity(frozen, eta, eta_scale, decay, decay_scale)
    text = sys.stdin.buffer.read() if prompt is None else prompt
    if not text:
        raise FileError("generate: the prompt is empty; give a text as argument or on standard input.")
    lm, tokenizer = options.load_text(model, output_memory)
    stream = options.open_stream(lm, state)

    from ssmn.generation import generate

    decoder = tokenizer.stream_decoder()
    tokens = generate(
        lm,
        tokenizer.encode(text),
        state=stream.state,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        plasticity=settings,
    )
    try:
        for token, stream.state in tokens:
            print(decoder.push(token), end="", flush=True)
        print(decoder.finish())
    finally:
        if state is not None:
            stream.save(state)
