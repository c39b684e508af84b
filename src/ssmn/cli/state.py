"""`ssmn state`: look into, copy, stack and compare saved stream states; no model is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ssmn.errors import FileError

if TYPE_CHECKING:
    from ssmn.state import StreamState

# The verbs import `ssmn.state`, and with it torch, when they run: `--help` then answers at once.

app = typer.Typer(help="Look into, fork, merge and compare saved stream states.", no_args_is_help=True)

StateFile = Annotated[Path, typer.Argument(metavar="FILE", help="A saved state.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]


@app.command()
def info(file: StateFile) -> None:
    """Show what a state holds, where its stream stands and which model it belongs to.

    \b
    Example:
        ssmn state info monday.safetensors
    """
    from ssmn.files import read_file
    from ssmn.state import read_state_file

    state, origin = read_state_file(file)
    _, header = read_file(file, kind="state")
    console = Console(markup=False, highlight=False)
    facts = Table(show_header=False, box=None)
    facts.add_row("file", f"{file} (format {header['format_version']}, ssmn {header['library_version']})")
    facts.add_row("position", _positions(state))
    facts.add_row("batch", str(state.batch_size))
    facts.add_row("size", _size(state.nbytes))
    facts.add_row("model", f"{origin.config.get('kind', 'unknown')}, fingerprint {origin.fingerprint[:16]}...")
    console.print(facts)
    console.print(_tensor_table(state))


@app.command()
def fork(
    file: StateFile,
    outputs: Annotated[list[Path], typer.Argument(metavar="OUT", help="One file per copy.")],
    force: Force = False,
) -> None:
    """Write independent copies of a state, checked on the way.

    \b
    Example:
        ssmn state fork monday.safetensors left.safetensors right.safetensors
    """
    from ssmn.state import read_state_file, write_state_file

    state, origin = read_state_file(file)
    _refuse_existing(outputs, force)
    for output in outputs:
        write_state_file(output, state, origin)
        typer.echo(f"{output}: position {_positions(state)}, {_size(state.nbytes)}")


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Saved states of one model.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    force: Force = False,
) -> None:
    """Stack the streams of several states, in the given order, into one batch.

    \b
    Example:
        ssmn state merge left.safetensors right.safetensors --out both.safetensors
    """
    from ssmn.state import StreamState, read_state_file, write_state_file

    states, origins = zip(*map(read_state_file, files), strict=True)
    for file, origin in zip(files, origins, strict=True):
        origins[0].require("merge", origin, names=(str(files[0]), str(file)), way_out="merge states of one model only")
    merged = StreamState.merge(states)
    _refuse_existing([out], force)
    write_state_file(out, merged, origins[0])
    typer.echo(f"{out}: {merged.batch_size} rows, position {_positions(merged)}, {_size(merged.nbytes)}")


@app.command()
def diff(first: StateFile, second: StateFile) -> None:
    """Show how far two states of the same shape are apart, tensor by tensor.

    \b
    Example:
        ssmn state diff monday.safetensors tuesday.safetensors
    """
    from ssmn.state import read_state_file

    (mine, origin), (theirs, other) = read_state_file(first), read_state_file(second)
    difference = mine.diff(theirs)
    console = Console(markup=False, highlight=False)
    if origin.fingerprint != other.fingerprint:
        console.print("The two belong to different weights or settings.")
    if difference.identical:
        console.print(f"identical ({len(difference)} tensors)")
        return
    table = Table("tensor", box=None)
    table.add_column("max |difference|", justify="right")
    table.add_column("relative", justify="right")
    for entry in difference.differing:
        table.add_row(entry.name, f"{entry.max_abs:.3g}", f"{entry.relative:.3g}")
    console.print(table)
    console.print(f"{len(difference.differing)} of {len(difference)} tensors differ")


def _tensor_table(state: StreamState) -> Table:
    table = Table("tensor", "kind", "shape", "dtype", box=None)
    table.add_column("bytes", justify="right")
    table.add_column("norm", justify="right")
    kinds = {prefix: child.kind for prefix, child in state.children()}
    for name, tensor in state.named_tensors().items():
        row: list[Any] = [name, kinds.get(name.rpartition(".")[0], ""), list(tensor.shape)]
        row += [str(tensor.dtype).removeprefix("torch."), tensor.nbytes]
        row.append(f"{tensor.norm().item():.4g}" if tensor.is_floating_point() else "")
        table.add_row(*map(str, row))
    return table


def _positions(state: StreamState) -> str:
    """All positions of a small batch, the range of a large one."""
    values = state.position.tolist()
    if len(values) <= 8:
        return ", ".join(map(str, values))
    return f"{min(values)} to {max(values)}"


def _size(nbytes: int) -> str:
    return f"{nbytes:,} bytes" if nbytes < 1 << 20 else f"{nbytes / (1 << 20):,.1f} MiB"


def _refuse_existing(outputs: list[Path], force: bool) -> None:
    for output in outputs:
        if output.exists() and not force:
            raise FileError(f"{output} exists; choose another name, or pass --force to replace it.")
