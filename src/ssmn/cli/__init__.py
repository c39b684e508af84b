"""The command line: `ssmn VERB`. One module per verb, imported only when it is called.

A verb's module holds `command`, a typer function, or `app`, a `typer.Typer` with sub-verbs.
Exit codes: 0 done, 1 failure (one clear line on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

import typer

from ssmn.errors import SSMNError

VERBS: dict[str, str] = {
    "demo": "Stream a long real text, or a real sensor, and write an illustrated report.",
    "train": "Train a model on text or on a synthetic task.",
    "eval": "Measure a trained model: bits per byte on text, accuracy on a task.",
    "generate": "Continue a text, from a fresh stream or a saved one.",
    "chat": "Talk to a text model turn by turn; its state is what it remembers.",
    "stream": "Standard input to standard output: surprise per line or byte, or predictions per row.",
    "forecast": "Forecast the next rows of a table; go on learning from new ones without a refit.",
    "detect": "Find anomalies in a table, or in rows as they arrive: streaming scores and flags.",
    "inspect": "Look into a model while it reads: which tokens are written, and how firmly.",
    "watch": "Watch a memory at work in the terminal: its map, its numbers, its text, and the sliders of η and λ.",
    "dashboard": "The same in the browser: several sessions, forks side by side, on this machine only unless told.",
    "state": "Look into saved stream states; fork, merge and compare them.",
    "bench": "Measure this machine: mixers, training, decoding, prefill, the seed's table, the long soak.",
    "doctor": "Say what would run here, and why the rest would not.",
}

_DEBUG = "--debug"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ssmn {version('sparse-stream')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of a failure; works after any verb.")] = False,
) -> None:
    """SSMN: a sparse-stream memory network that learns while it reads, with constant memory.

    \b
    Example:
        ssmn demo
        ssmn stream < notes.txt
        ssmn generate "The memory" --state monday.safetensors
    """


def _listed(summary: str) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = summary
    return command


def app_for(verb: str | None) -> typer.Typer:
    """The application with every verb's name and summary, and only the module of `verb` imported."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, summary in VERBS.items():
        if name != verb:
            app.command(name)(_listed(summary))
            continue
        module = import_module(f"ssmn.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=summary)
        else:
            app.command(name)(module.command)
    return app


def _reflow(command: Any) -> None:
    """Joins the lines of every paragraph of the help, which are broken anew where it is shown; examples stay."""
    paragraphs = cleandoc(command.help or "").split("\n\n")
    joined = (part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)
    command.help = "\n\n".join(joined)
    for sub in getattr(command, "commands", {}).values():
        _reflow(sub)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: The words after `ssmn`; None takes them from the command line.

    Example:
        >>> from ssmn.cli import main
        >>> main(["--version"])  # doctest: +SKIP
        ssmn 0.1.0
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = _DEBUG in options
    if debug:
        words.remove(_DEBUG)
    verb = next((word for word in words if not word.startswith("-")), None)
    try:
        command: Any = typer.main.get_command(app_for(verb))
        _reflow(command)
        command(args=words, prog_name="ssmn")
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone; what is still buffered must not raise again when the interpreter closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        said = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            said = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}; check the name and the folder."
        elif not isinstance(error, SSMNError | OSError):
            said = f"{type(error).__name__}: {said} ({_DEBUG} shows where)"
        print(f"ssmn: {said}", file=sys.stderr)
        return 1
