"""`ssmn bench`: measure this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmn.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from ssmn.bench.report import Table

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Keep the record (with machine and commit) here.")
]
Base = Annotated[
    Path | None, typer.Option("--base", metavar="FILE", help="Compare with this earlier record; worse ones are marked.")
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the figures against length, on log axes.")
]
Dark = Annotated[bool, typer.Option("--dark", help="Draw on a dark background.")]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables for a document here.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=options.MAX_THREADS, help="Threads to use; torch's choice if absent.")
]
Repeats = Annotated[int | None, typer.Option(min=1, help="Timed runs of each.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes and few runs: a try, not a measurement.")]
Lengths = Annotated[list[int] | None, typer.Option("--n", min=1, help="Tokens; may be given several times.")]
Dtypes = Annotated[
    list[str] | None, typer.Option("--dtype", help="float32 or bfloat16; may be given twice; both if absent.")
]
Footprint = Annotated[bool, typer.Option("--memory/--no-memory", help="Measure memory, in processes of their own.")]
Weights = Annotated[
    list[str] | None, typer.Option("--weights", help="float32, bfloat16, int8 or int4; may be repeated; all if absent.")
]
UseTorch = Annotated[bool, typer.Option("--torch/--no-torch", help="Run our model in torch, step by step.")]
UseLlama = Annotated[bool, typer.Option("--llama/--no-llama", help="Run llama.cpp, where it is installed.")]

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of finished runs; what is there is kept.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions of each run.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PATTERN", help="Runs to do, such as 'delta-*'; repeatable.")
]
Minutes = Annotated[float | None, typer.Option(min=0.0, help="Stop after so many; the next call goes on.")]
ReportOnly = Annotated[bool, typer.Option("--report", help="Only show what is finished.")]

QUICK_FLOORS = {"gemm_size": 512, "read_bytes": 64 * 2**20, "repeats": 3}


@app.command(epilog="Example: ssmn bench layers --n 10240 --json layers.json")
def layers(
    length: Lengths = None,
    heads: Annotated[
        list[str] | None, typer.Option("--heads", metavar="HxD", help="Heads x width; may be repeated; 4x64 if absent.")
    ] = None,
    dtype: Dtypes = None,
    mixer: Annotated[list[str] | None, typer.Option("--mixer", help="window or memory; both if absent.")] = None,
    window: Annotated[int, typer.Option("--w", min=1, help="Window.")] = 512,
    forward_only: Annotated[bool, typer.Option("--forward", help="Leaves out the backward passes.")] = False,
    flat: Annotated[bool, typer.Option("--flat/--no-flat", help="Cost per token from n = 8,192 to 1,048,576.")] = True,
    memory: Footprint = True,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """One mixer against torch's: time, share of the machine's matrix products, extra memory, cost per token."""
    settings: dict[str, Any] = {"window": window, "footprint": memory}
    settings |= {"repeats": 3, "lengths": (2_048,), "flat_lengths": (2_048, 8_192)} if quick else {}
    settings |= {"flat_lengths": ()} if not flat else {}
    settings |= {"passes": ("forward",)} if forward_only else {}
    settings |= _given(lengths=length, shapes=heads, dtypes=dtype, mixers=mixer, repeats=repeats)
    _measure("layers", settings, quick, threads, json, base, plot, dark, markdown)


@app.command(epilog="Example: ssmn bench scan --n 4096")
def scan(
    length: Lengths = None,
    batch: Annotated[int, typer.Option(min=1, help="Streams.")] = 1,
    channels: Annotated[int, typer.Option(min=1, help="Complex numbers per step.")] = 128,
    processor: Annotated[bool, typer.Option("--processor", help="Counts processor time, not wall time.")] = False,
    patience: Annotated[float, typer.Option(min=0, help="Seconds; what takes longer runs once.")] = 15.0,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """The scan of linear recurrent units against a loop over time in torch."""
    settings: dict[str, Any] = {"batch": batch, "channels": channels, "processor": processor, "patience": patience}
    settings |= {"repeats": 3, "lengths": (256,)} if quick else {}
    settings |= _given(lengths=length, repeats=repeats)
    _measure("scan", settings, quick, threads, json, base, plot, dark, markdown)


@app.command(epilog="Example: ssmn bench loss --n 4096 --dtype bfloat16")
def loss(
    length: Lengths = None,
    dtype: Dtypes = None,
    width: Annotated[int, typer.Option(min=1, help="Of the hidden vectors.")] = 192,
    vocabulary: Annotated[int, typer.Option(min=1, help="Tokens to choose from.")] = 4_096,
    processor: Annotated[bool, typer.Option("--processor", help="Counts processor time, not wall time.")] = False,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """The loss of a language model and its gradients, against torch's."""
    settings: dict[str, Any] = {"width": width, "vocab_size": vocabulary, "processor": processor}
    settings |= {"repeats": 3, "lengths": (256,)} if quick else {}
    settings |= _given(lengths=length, dtypes=dtype, repeats=repeats)
    _measure("loss", settings, quick, threads, json, base, plot, dark, markdown)


@app.command(epilog="Example: ssmn bench train --n 8192 --dtype float32")
def train(
    length: Lengths = None,
    dtype: Dtypes = None,
    window: Annotated[int, typer.Option("--w", min=1, help="Window of our window layers.")] = 512,
    piece: Annotated[int, typer.Option(min=1, help="Tokens of a piece of our truncated back-propagation.")] = 2_048,
    memory: Footprint = True,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """Training a whole text model: tokens per second and peak memory, against a torch Transformer of its size."""
    settings: dict[str, Any] = {"window": window, "piece": piece, "footprint": memory}
    settings |= {"repeats": 1, "lengths": (1_024,), "piece": 512} if quick else {}
    settings |= _given(lengths=length, dtypes=dtype, repeats=repeats)
    _measure("train", settings, quick, threads, json, base, plot, dark, markdown)


@app.command(epilog="Example: ssmn bench decode --weights int4 --depth 128 --depth 8192")
def decode(
    depth: Annotated[
        list[int] | None, typer.Option("--depth", min=1, help="Position of the stream; may be repeated.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="smollm2-135m, control or tiny; may be repeated.")
    ] = None,
    weights: Weights = None,
    torch: UseTorch = True,
    llama: UseLlama = True,
    memory: Footprint = True,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """Decoding token by token: speed and resident memory against the position; a small controller's latency."""
    settings: dict[str, Any] = {"llama": llama, "footprint": memory, **({} if torch else {"eager": ()})}
    if quick:
        settings |= {"depths": (128, 1_000), "shapes": ("tiny", "control"), "repeats": 3, "control_steps": 200}
    settings |= _given(depths=depth, shapes=shape, weights=weights, repeats=repeats)
    _measure("decode", settings, quick, threads, json, base, plot, dark, markdown)


@app.command(epilog="Example: ssmn bench prefill --n 1024 --no-llama")
def prefill(
    length: Lengths = None,
    shape: Annotated[str | None, typer.Option("--shape", help="smollm2-135m or tiny.")] = None,
    weights: Weights = None,
    torch: UseTorch = True,
    llama: UseLlama = True,
    repeats: Repeats = None,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """Reading a prompt into a fresh stream: tokens per second by length."""
    settings: dict[str, Any] = {"llama": llama, **({} if torch else {"eager": ()})}
    settings |= {"lengths": (128, 512), "shape": "tiny"} if quick else {}
    settings |= _given(lengths=length, shape=shape, weights=weights, repeats=repeats)
    _measure("prefill", settings, quick, threads, json, base, plot, dark, markdown)


@app.command("seed-table", epilog="Example: ssmn bench seed-table --json seed-table.json")
def seed_table(
    length: Lengths = None,
    long: Annotated[bool, typer.Option("--long", help="Adds n = 100,000 (some minutes).")] = False,
    window: Annotated[int, typer.Option("--w", min=1, help="Window of the window layers.")] = 512,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each; what takes long runs once.")] = 5,
    quick: Quick = False,
    threads: Threads = None,
    json: Json = None,
    base: Base = None,
    plot: Plot = None,
    dark: Dark = False,
    markdown: Markdown = None,
) -> None:
    """Operations, cache and time of full attention and of the sparse stream, at n = 1,000 and 10,000."""
    lengths = tuple(length or ((100, 1_000) if quick else (1_000, 10_000))) + ((100_000,) if long else ())
    settings = {"lengths": lengths, "window": window, "dtype": dtype, "repeats": repeats}
    _measure("seed-table", settings, quick, threads, json, base, plot, dark, markdown)


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
    options.check_place(json)
    console = Console()
    columns = (TextColumn("soak"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("soak", total=tokens)
        record = bench.run(
            "soak", tokens=tokens, seed=seed, progress=lambda position: bar.update(task, completed=position)
        )
    _print_soak(console, record)
    if json is not None:
        bench.save(record, json)


@app.command(epilog="Example: ssmn bench quality --part lm --part recall --seeds 1 --minutes 30")
def quality(
    part: Annotated[list[str] | None, typer.Option("--part", help="May be repeated; all if absent.")] = None,
    out: Out = Path("runs/quality"),
    seeds: Seeds = 3,
    text: Annotated[Path, typer.Option(help="Folder of a corpus, as `make corpus` makes it.")] = Path("data/text"),
    shakespeare: Annotated[Path, typer.Option(metavar="FILE", help="The file tinyshakespeare.txt.")] = Path(
        "tinyshakespeare.txt"
    ),
    series: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with ETT/ETTh1.csv and NAB, the benchmarks of time series.")
    ] = Path("data/series"),
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="DIR", help="Trained text model to read with; the shipped one if absent."
        ),
    ] = None,
    only: Only = None,
    minutes: Minutes = None,
    report_only: ReportOnly = False,
    quick: Quick = False,
    threads: options.Threads = None,
    json: Json = None,
    markdown: Markdown = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="DIR", help="A drawing of each part, here.")] = None,
    dark: Dark = False,
) -> None:
    """What models of equal size learn and remember, ours beside the field's. Stopped and called again, it goes on."""
    from rich.console import Console

    from ssmn import bench
    from ssmn.bench import report
    from ssmn.bench.quality import tables

    options.use_threads(threads)
    for file in (json, markdown):
        options.check_place(file)
    console = Console()
    with _Runs(console) as runs:
        record = bench.run(
            "quality", parts=tuple(part or ()), out=str(out), seeds=seeds, text=str(text),
            shakespeare=str(shakespeare), series=str(series), model=model and str(model), quick=quick,
            only=tuple(only or ()), minutes=minutes, report_only=report_only, on_run=runs.begin, on_step=runs.step,
        )  # fmt: skip
    shown = tables(record["results"])
    for table in shown:
        _print_table(console, table)
    if report_only:
        console.print(f"Read from {out}, where each run's file names its machine and commit.", highlight=False)
    else:
        console.print(report.floors(record), highlight=False)
    if json is not None:
        bench.save(record, json)
    if markdown is not None:
        text_of = report.markdown(record, shlex.join(["ssmn", *sys.argv[1:]]), shown)
        markdown.write_text(text_of, encoding="utf-8")
    if plot is not None:
        _draw_parts(record["results"], plot, dark)
    if not record["results"]["complete"] and not report_only:
        console.print("Not all runs are finished; the same command goes on with them.")
        raise typer.Exit(130)


@app.command(epilog="Example: ssmn bench family --seeds 1 --minutes 30 --plot figures")
def family(
    out: Out = Path("runs/quality"),
    seeds: Seeds = 3,
    only: Only = None,
    minutes: Minutes = None,
    report_only: ReportOnly = False,
    quick: Quick = False,
    threads: options.Threads = None,
    json: Json = None,
    markdown: Markdown = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="DIR", help="The drawing, here.")] = None,
    dark: Dark = False,
) -> None:
    """AMN, LRU, Hopfield network, NTM, SSMN, LSTM and GRU in the same stack, on eight tasks (`--part family`)."""
    quality(
        part=["family"], out=out, seeds=seeds, only=only, minutes=minutes, report_only=report_only, quick=quick,
        threads=threads, json=json, markdown=markdown, plot=plot, dark=dark,
    )  # fmt: skip


def _draw_parts(results: dict[str, Any], folder: Path, dark: bool) -> None:
    from ssmn import plots
    from ssmn.bench.quality import PARTS

    folder.mkdir(parents=True, exist_ok=True)
    for name, runs in results["parts"].items():
        figure = PARTS[name].drawing(runs, plots.Look(dark=dark)) if runs else None
        if figure is not None:
            (folder / f"{name}.png").write_bytes(plots.png(figure))


class _Runs:
    """A bar for the run that is going on; where there is no terminal, a line for each run that begins."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                   TextColumn("{task.fields[figures]}"), TimeRemainingColumn())  # fmt: skip
        self._console, self._bar = console, Progress(*columns, console=console, transient=True)
        self._row: Any = None

    def __enter__(self) -> _Runs:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, part: str, run: str) -> None:
        if self._row is not None:
            self._bar.remove_task(self._row)
        if not self._console.is_terminal:
            self._console.print(f"{part}: {run}", highlight=False)
        self._row = self._bar.add_task(f"{part}: {run}", total=None, figures="")

    def step(self, done: int, total: int, figures: str) -> None:
        self._bar.update(self._row, completed=done, total=total, figures=figures)


def _given(**settings: Any) -> dict[str, Any]:
    """Those that were typed."""
    return {name: value for name, value in settings.items() if value}


def _measure(
    name: str,
    settings: dict[str, Any],
    quick: bool,
    threads: int | None,
    json: Path | None,
    base: Path | None,
    plot: Path | None,
    dark: bool,
    markdown: Path | None,
) -> None:
    """Runs a benchmark, shows it, and writes what was asked for."""
    from rich.console import Console

    from ssmn import bench
    from ssmn.bench import compare, report

    _use_threads(threads)
    for file in (json, plot, markdown):
        options.check_place(file)
    before = None if base is None else compare.load(base)  # a wrong file is told before the minutes are spent
    console = Console()
    with console.status("measuring the machine's floors") as status:
        record = bench.run(name, floors=QUICK_FLOORS if quick else None, progress=status.update, **settings)
    if name == "seed-table":
        _print_seed_table(console, record)
    for table in report.tables(record):
        _print_table(console, table)
    for note in record["results"].get("notes", []):
        console.print(f"[yellow]![/] {note}", highlight=False)
    console.print(report.floors(record), highlight=False)
    extra = [] if before is None else [report.changes(before, record)]
    for table in extra:
        _print_table(console, table)
    if json is not None:
        bench.save(record, json)
    if markdown is not None:
        markdown.write_text(report.markdown(record, shlex.join(["ssmn", *sys.argv[1:]]), extra), encoding="utf-8")
    if plot is not None:
        from ssmn import plots

        plot.write_bytes(plots.png(plots.cost_against_length(record["results"]["figures"], plots.Look(dark=dark))))


def _print_table(console: Console, table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn

    from ssmn.bench import report

    width = max(1, console.width - 2)  # less the edges of the drawn table
    for part in report.fitting(table, width):
        if part.title:
            console.print(part.title, style="bold", markup=False, highlight=False)
        drawn = Drawn(box=SIMPLE_HEAD)
        for index, (name, taken) in enumerate(zip(part.head, report.column_widths(part, width), strict=True)):
            drawn.add_column(name, justify="left" if index < part.texts else "right", width=taken, overflow="fold")
        for whole, row in zip(table.rows, part.rows, strict=True):
            drawn.add_row(*row, style="bold red" if "WORSE" in whole else None)
        console.print(drawn)
    if table.caption:
        console.print(table.caption, style="italic", markup=False, highlight=False)
    console.print()


def _print_seed_table(console: Console, record: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    results = record["results"]
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
        table.add_row("time in memory updates, all plastic ÷ 80/20", "", f"{row['update_speedup']:.2f}")
        console.print(table)
    console.print(
        f"Five layers of 4 heads × 64, {results['dtype']}. Timed: the mixers alone, one forward pass without "
        "gradients; torch SDPA (causal) × 5 against window_attention × 4 + synaptic_memory × 1 (backend "
        f"{results['backend']}), and memory_write × 5 against × 1, taking turns, medians."
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
