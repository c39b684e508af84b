"""`ssmn bench`: measure this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Keep the record (with machine and commit) here.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; torch's choice if absent.")]


@app.command("seed-table", epilog="Example: ssmn bench seed-table --json seed-table.json")
def seed_table(
    length: Annotated[list[int] | None, typer.Option("--n", min=1, help="Tokens; may be given several times.")] = None,
    long: Annotated[bool, typer.Option("--long", help="Adds n = 100,000 (some minutes; one timed run).")] = False,
    window: Annotated[int, typer.Option("--w", min=1, help="Window of the window layers.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 5,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Operations, cache and time of full attention and of the sparse stream, at n = 1,000 and 10,000."""
    from rich.console import Console

    from ssmn import bench

    _use_threads(threads)
    console = Console()
    lengths = tuple(length or (1_000, 10_000))
    with console.status("measuring") as status:
        record = bench.run("seed-table", lengths=lengths, window=window, repeats=repeats, progress=status.update)
        if long:
            extra = bench.run("seed-table", lengths=(100_000,), window=window, repeats=1, progress=status.update)
            record["results"]["rows"] += extra["results"]["rows"]
    _print_seed_table(console, record)
    _keep(record, json)


@app.command(epilog="Example: ssmn bench soak --tokens 100000")
def soak(
    tokens: Annotated[int, typer.Option(min=10, help="Length of the stream.")] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, pieces and input.")] = 0,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """One long stream in odd pieces with zeros, constants, spikes and NaN: does anything grow, break or slow down?"""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ssmn import bench

    _use_threads(threads)
    console = Console()
    columns = (TextColumn("soak"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("soak", total=tokens)
        record = bench.run(
            "soak", tokens=tokens, seed=seed, progress=lambda position: bar.update(task, completed=position)
        )
    _print_soak(console, record)
    _keep(record, json)


def _print_seed_table(console: Console, record: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    results, machine = record["results"], record["machine"]
    for row in results["rows"]:
        counts, costs, times = row["counts"], row["costs"], row["milliseconds"]
        table = Table(box=SIMPLE_HEAD)
        table.add_column(f"n = {row['length']:,}, w = {results['window']:,}")
        table.add_column("full attention", justify="right")
        table.add_column("sparse stream", justify="right")
        for name, full, stream in (
            ("pairs of a layer, seed's count", counts["seed_full"], counts["seed_window"]),
            ("pairs of a layer, exact (causal)", counts["exact_full"], counts["exact_window"]),
            ("multiply-adds, attention", costs["full_multiply_adds"], costs["window_multiply_adds"]),
            ("multiply-adds, memory", 0, costs["memory_multiply_adds"]),
            ("global cache, bytes", costs["full_cache_bytes"], costs["global_cache_bytes"]),
            ("bounded state, bytes", 0, costs["window_bytes"] + costs["memory_bytes"]),
        ):
            table.add_row(name, f"{full:,}", f"{stream:,}")
        table.add_row("time", f"{times['full_attention']:,.1f} ms", f"{times['sparse_stream']:,.1f} ms")
        table.add_row("time, full ÷ stream", "", f"{row['speedup']:.2f}")
        console.print(table)
    console.print(
        f"Five layers of 4 heads × 64, float32. Timed: the mixers alone, one forward pass without gradients; torch "
        f"SDPA (causal) × 5 against window_attention × 4 + synaptic_memory × 1 (backend {results['backend']}), taking "
        f"turns, medians; {machine['threads']} threads, {machine['processor']}."
    )


def _print_soak(console: Console, record: dict[str, Any]) -> None:
    from rich.table import Table

    r = record["results"]
    tenths = [f"{value:.1f}" for value in r["microseconds_per_step_per_tenth"]]
    norms = [f"{value:.1f}" for value in r["largest_memory_norm_per_tenth"]]
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row(
        "stream", f"{r['tokens']:,} steps in {r['pieces']:,} pieces; state {r['state_bytes']:,} bytes throughout"
    )
    table.add_row(
        "resident memory",
        f"{_mebibytes(r['resident_bytes_per_tenth'][0])} at most in the first tenth (warm-up), "
        f"{r['resident_bytes_growth'] / 2**20:+.2f} MiB at most after it",
    )
    table.add_row("values", "all finite" if r["finite"] else "[red]not finite[/]")
    table.add_row("NaN", f"{r['nan_pieces_refused']} of {r['nan_pieces']} pieces refused, the stream unharmed")
    table.add_row("largest ‖S‖ per tenth", " ".join(norms))
    table.add_row("µs per step per tenth", " ".join(tenths))
    table.add_row("last tenth ÷ second", f"{r['last_to_second_tenth']:.3f}")
    console.print(table)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count else "0"


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _keep(record: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        from ssmn import bench

        bench.save(record, path)
