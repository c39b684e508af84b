"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ssmn.config import LONG_TERM, SHORT_TERM, Plasticity
from ssmn.errors import FileError, RangeError
from ssmn.files import read_config, shipped_model

if TYPE_CHECKING:
    from ssmn.models import SSMN, TextSSMN
    from ssmn.stream import Stream
    from ssmn.training import Tokenizer

PRESETS = {"long-term": LONG_TERM, "short-term": SHORT_TERM}

Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", metavar="DIR", help="Folder of a trained model; the shipped text model if absent."),
]
StateFile = Annotated[
    Path | None,
    typer.Option(
        "--state", "-s", metavar="FILE", help="Start from this state if the file exists, and save to it at the end."
    ),
]
Frozen = Annotated[bool, typer.Option("--frozen", help="Close every gate: nothing is learned or forgotten.")]
Eta = Annotated[
    float | None,
    typer.Option(
        "--eta", metavar="[0, 1]", help="Base write strength η in place of the model's; 0 stops writing, not decay."
    ),
]
EtaScale = Annotated[float, typer.Option("--eta-scale", help="Factor on η: above 1 learns faster.")]
Decay = Annotated[
    float | None, typer.Option("--decay", metavar="[0, 1)", help="Base decay λ per step in place of the model's.")
]
DecayScale = Annotated[float, typer.Option("--decay-scale", help="Factor on the decay: below 1 remembers longer.")]
WriteThreshold = Annotated[
    float | None,
    typer.Option(
        "--write-threshold",
        metavar="[0, 1]",
        help="Steps whose η is below it write nothing, in place of the model's.",
    ),
]
Preset = Annotated[
    Literal["long-term", "short-term"] | None,
    typer.Option(
        "--plasticity",
        help="long-term: η 0.05, λ 0.0001. short-term: η 0.001, λ 0.01. As trained if absent; the options below "
        "change single values of it.",
    ),
]

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Below 1 is safer, 0 takes the likeliest.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Choose among this many likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest that hold this share.")]
MinP = Annotated[float | None, typer.Option(help="Choose among tokens at least this share as likely as the likeliest.")]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, tokens of the last 256 read or written are less likely.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text (\\n is a new line); may be repeated."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes the same text again.")]
Backend = Annotated[
    Literal["auto", "engine", "torch"],
    typer.Option(help="What computes; auto is the engine wherever it can run the model."),
]
OutputMemory = Annotated[
    bool,
    typer.Option("--output-memory", help="Also learn from every prediction's error in a plastic memory of the output."),
]

MAX_THREADS = 1024

Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=MAX_THREADS,
        help="Threads; if absent OMP_NUM_THREADS, else 1: a small model on a busy machine is slower on more.",
    ),
]


def use_threads(threads: int | None) -> None:
    """Sets torch's threads, which the kernels use too."""
    import torch

    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or 1)


def plasticity(
    preset: str | None,
    frozen: bool,
    eta: float | None,
    eta_scale: float,
    decay: float | None,
    decay_scale: float,
    write_threshold: float | None,
) -> Plasticity | None:
    """The settings that the options ask for; None if they ask for nothing."""
    base = PRESETS[preset] if preset is not None else Plasticity()
    asked = dataclasses.replace(
        base,
        frozen=frozen,
        plasticity_eta=base.plasticity_eta if eta is None else eta,
        eta_scale=eta_scale,
        decay_lambda=base.decay_lambda if decay is None else decay,
        decay_scale=decay_scale,
        write_threshold=write_threshold,
    )
    return None if asked == Plasticity() else asked


def unescaped(text: str) -> str:
    r"""A text as typed on a command line, with \n and \t as what they stand for."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def load(folder: Path | None, output_memory: bool = False) -> TextSSMN | SSMN:
    """The model in a folder (None = the shipped one), with an output memory if it is asked for.

    Raises:
        RangeError: An output memory is asked of a model that reads no text.
    """
    from ssmn.models import load_model

    folder = folder or shipped_model()
    if not output_memory:
        return cast("TextSSMN | SSMN", load_model(folder).eval())
    if read_config(folder).get("kind") != "text":
        raise RangeError(f"{folder}: holds a Standard model, and --output-memory is for text models; leave it out.")
    return cast("TextSSMN", load_model(folder, output_memory=True).eval())


def load_tokenizer(folder: Path | None, model: TextSSMN) -> Tokenizer:
    """The tokenizer that was saved with a text model.

    Raises:
        FileError: There is none, or it has more tokens than the model.
    """
    from ssmn.training import Tokenizer

    path = (folder or shipped_model()) / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise FileError(
            f"{path}: {tokenizer.vocab_size} tokens, but the model has vocab_size={model.config.vocab_size}; "
            f"wanted the tokenizer that was saved with the model."
        )
    return tokenizer


def load_text(folder: Path | None, output_memory: bool = False) -> tuple[TextSSMN, Tokenizer]:
    """A text model and its tokenizer.

    Raises:
        FileError: The folder holds no text model, or no tokenizer that fits it.
    """
    model = load(folder, output_memory)
    if model.config.kind != "text":
        raise FileError(f"{folder}: holds a Standard model; wanted a text model, such as `ssmn train` makes from text.")
    model = cast("TextSSMN", model)
    return model, load_tokenizer(folder, model)


def check_place(file: Path | None) -> None:
    """Refuses a file that could not be written at the end, before the work whose result it would hold."""
    if file is None:
        return
    if file.is_dir():
        raise FileError(f"{file}: is a folder; wanted the name of a file.")
    folder = Path(os.path.realpath(file)).parent
    if not folder.is_dir():
        raise FileError(f"{file}: the folder {folder} does not exist; make it first (mkdir -p {folder}).")
    if not os.access(folder, os.W_OK):
        raise FileError(f"{file}: nothing can be written in {folder}; choose another place.")


def open_stream(
    model: TextSSMN | SSMN, state: Path | None, backend: Literal["auto", "engine", "torch"] = "torch"
) -> Stream:
    """A stream of one row: from the state file if it is there, else fresh."""
    from ssmn.stream import Stream

    check_place(state)
    stream = Stream(model, backend=backend)
    if state is not None and state.exists():
        stream.load(state)
        if stream.state.batch_size != 1:
            raise FileError(
                f"{state}: holds {stream.state.batch_size} streams; wanted one (StreamState.select takes one out)."
            )
    return stream
