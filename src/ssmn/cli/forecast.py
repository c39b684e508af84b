"""`ssmn forecast`: fit a forecaster on a table, test it, go on learning from new rows, and forecast."""

from __future__ import annotations

import csv
import io
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmn.cli import options
from ssmn.errors import FileError, RangeError

if TYPE_CHECKING:
    from rich.console import Console

    from ssmn.series import Backtest, Forecast, Forecaster, Table

_TESTED_SHARE = 0.2
_PAST_DRAWN = 3
"""Horizons of the past that a plot shows."""


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A CSV or Parquet file, a row per time.")],
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Column to forecast; may be repeated; all if absent.")
    ] = None,
    horizon: Annotated[int, typer.Option("--horizon", "-n", min=1, help="Rows ahead.")] = 96,
    model: Annotated[Path, typer.Option("--model", "-m", metavar="FILE", help="Where the forecaster is saved.")] = Path(
        "forecaster.safetensors"
    ),
    update: Annotated[
        bool, typer.Option("--update", help="Learn from new rows with the saved forecaster, without a refit.")
    ] = False,
    exogenous: Annotated[
        list[str] | None, typer.Option("--exogenous", "-x", help="Column that helps but is not forecast.")
    ] = None,
    calendar: Annotated[bool, typer.Option("--calendar", help="Read the time of day and week, or of year.")] = False,
    context: Annotated[
        list[int] | None, typer.Option("--context", min=2, help="Rows read; several are chosen from by validation.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Training steps of the network; 0 = no network; by the data if absent.")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of times; found if absent.")] = None,
    backtest: Annotated[bool, typer.Option("--backtest/--no-backtest", help="Test on the last fifth first.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The forecast as CSV; standard output if absent.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the forecast.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw on a dark background.")] = False,
    threads: options.Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Forecast the next rows of a table, with intervals.

    Fits on the first four fifths, tests on the last (frozen, and learning from each row), learns from
    it too, saves, and writes the forecast of what comes next. With --update a saved forecaster reads
    the rows that are new to it, at a constant cost per row. Ctrl-C loses nothing: the training of the
    network has a checkpoint, and the same command goes on from it.

    \b
    Example:
        ssmn forecast data.csv --target OT --horizon 96 --plot forecast.png
        ssmn forecast new.csv --update --out forecast.csv
    """
    from rich.console import Console

    from ssmn.series import Forecaster, ForecasterConfig, read_table

    options.use_threads(threads)
    for path in (model, out, plot):
        options.check_place(path)
    console = Console(stderr=True, quiet=quiet)
    if update:
        given = {"--target": target, "--exogenous": exogenous, "--context": context, "--steps": steps}
        for name, value in given.items():
            if value is not None:
                raise RangeError(f"forecast: {name} is decided when fitting; leave it out with --update.")
        forecaster = Forecaster.load(model)
        table = read_table(data, columns=list(forecaster.recent.names), time=time or forecaster.recent.time_name)
        _require_rising(table, data)
        new = _new_rows(forecaster, table, data)
        with _bar(console, "learning", len(new)) as show:
            for start in range(0, len(new), 100):
                forecaster.update(new[start : start + 100])
                show(min(len(new), start + 100), len(new))
        forecaster.save(model)
        console.print(f"Learned from {len(new):,} new rows, without a refit; saved in {model}.", highlight=False)
    else:
        table = _fitted_table(data, time, console)
        wanted = {"contexts": context and tuple(context), "targets": target and tuple(target), "steps": steps}
        settings: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        if context is None:
            settings["contexts"] = _contexts(len(table), horizon, table.season)
        settings |= {"horizon": horizon, "exogenous": tuple(exogenous or ()), "calendar": calendar}
        forecaster = Forecaster(ForecasterConfig(**settings))
        _fit(forecaster, table, model, console, backtest=backtest, quiet=quiet)
    ahead = forecaster.predict()
    text = _csv(ahead, forecaster.recent.time_name)
    if plot is not None:
        from ssmn import plots
        from ssmn.files import atomic_write

        shown = _drawn(forecaster, ahead)
        atomic_write(plot, plots.png(plots.forecast(shown, plots.Look(dark=dark))))
        console.print(f"Drawn in {plot}.", highlight=False)
    if out is None:
        sys.stdout.write(text)
    else:
        from ssmn.files import atomic_write

        atomic_write(out, text.encode())
        console.print(f"The next {len(ahead.mean)} rows are in {out}.", highlight=False)


def _fitted_table(data: Path, time: str | None, console: Console) -> Table:
    """The table to fit on."""
    from ssmn.series import read_table

    table = read_table(data, time=time)
    if not len(table):
        raise FileError(f"{data}: there is no row of numbers; wanted a line of names and a row per time.")
    if table.times is None:
        console.print(
            "There is no column of dates such as 2016-07-01 05:00 (--time names one): rows count as equally far apart.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    _require_rising(table, data)
    return table


def _require_rising(table: Table, data: Path) -> None:
    try:
        table.require_rising()
    except FileError as error:
        raise FileError(f"{data}: {error}") from error


def _contexts(rows: int, horizon: int, season: int) -> tuple[int, ...]:
    """Lengths to choose from: up to 512 rows as the table allows, and for a short table one to three seasons."""
    room = (rows - 2 * horizon) // 2
    lengths = [length for length in (96, 192, 336, 512) if length <= room]
    lengths += [season * count for count in (1, 2, 3) if season > 1 and season * count <= min(room, 512)]
    return tuple(sorted(set(lengths))) or (max(2, min(24, room)),)


def _fit(forecaster: Forecaster, table: Table, model: Path, console: Console, *, backtest: bool, quiet: bool) -> None:
    """Fits on the first rows, saves, and goes through the others: first as a test, then to learn."""
    from ssmn.cli.train import Display

    horizon = forecaster.config.horizon
    tested = max(2 * horizon, round(_TESTED_SHARE * len(table))) if backtest else 0
    if tested and len(table) - tested < 4 * horizon:
        console.print("Too few rows for a test beside the fit; fitting on all of them.", highlight=False)
        tested = 0
    first, last = table[: len(table) - tested], table[len(table) - tested :]
    training = model.with_name(f"{model.name}.training")
    names = ", ".join(forecaster.config.targets or table.names)
    console.print(f"Fitting on {len(first):,} rows for {names}.", highlight=False, soft_wrap=True)
    try:
        with Display(console, quiet=quiet, title="network") as display:
            forecaster.fit(first, folder=training, on_step=display.show)
    except KeyboardInterrupt:
        console.print(f"Stopped; the same command goes on from {training}.", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    forecaster.save(model)
    shutil.rmtree(training, ignore_errors=True)
    choice = forecaster.choice
    network = "no network" if choice.network_mse is None else "the network helps"
    if choice.network_mse is not None and choice.summary_ridge is None:
        network = "the network does not help and is left out"
    context = str(choice.context) if choice.averaged is None else f"{choice.context} and {choice.averaged}, averaged"
    console.print(f"Context {context}, freed of its {choice.shift}; {network}.", highlight=False)
    if tested:
        for learn, name in ((False, "frozen"), (True, "learning")):
            with _bar(console, f"test, {name}", len(last)) as show:
                result = forecaster.backtest(last, learn=learn, on_step=show)
            console.print(f"{name:>8}: {_told(result)}", highlight=False, soft_wrap=True)
        forecaster.update(last)
        forecaster.save(model)
    console.print(f"Saved in {model}.", highlight=False)


def _told(result: Backtest) -> str:
    known = [float(mase) for mase in result.mase if not math.isnan(mase)]
    scaled = f"MASE {sum(known) / len(known):.3f}, " if known else ""
    return (
        f"{result.windows:,} windows, mean squared error {result.mse:.4f}, absolute {result.mae:.4f} (in deviations), "
        f"{scaled}{100 * result.coverage:.0f} % of truths in the {100 * result.level:.0f} % "
        "interval"
    )


def _new_rows(forecaster: Forecaster, table: Table, data: Path) -> Table:
    """The rows after the last one that the forecaster has read; all of them if there are no times."""
    known = forecaster.recent.times
    if known is None or table.times is None:
        return table
    new = table[int((table.times <= known[-1]).sum()) :]
    if not len(new):
        raise FileError(
            f"{data}: all rows are up to {known[-1].astype('datetime64[s]')}, which the forecaster has read."
        )
    return new


@contextmanager
def _bar(console: Console, title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; elsewhere nothing."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(title, total=total)
        yield lambda done, all_of_them: bar.update(row, completed=done, total=all_of_them)


def _csv(ahead: Forecast, time_name: str | None) -> str:
    """A line per row and, for each column, its mean and its quantiles."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{name}{suffix}" for name in ahead.names for suffix in ("", *(f"_q{level:g}" for level in ahead.levels))]
    writer.writerow([time_name or "step", *heads])
    for step in range(len(ahead.mean)):
        first = (
            str(step + 1) if ahead.times is None else str(ahead.times[step].astype("datetime64[s]")).replace("T", " ")
        )
        cells = []
        for column in range(len(ahead.names)):
            cells += [ahead.mean[step, column], *ahead.quantiles[step, column]]
        writer.writerow([first, *(f"{value:.6g}" for value in cells)])
    return text.getvalue()


def _drawn(forecaster: Forecaster, ahead: Forecast) -> list[dict[str, Any]]:
    """What the drawing needs, column by column."""
    past = forecaster.recent[-_PAST_DRAWN * len(ahead.mean) :]
    before: Any = list(range(1 - len(past), 1))
    after: Any = list(range(1, len(ahead.mean) + 1))
    if past.times is not None and ahead.times is not None:
        before, after = past.times.astype("datetime64[us]"), ahead.times.astype("datetime64[us]")
    return [
        {
            "name": name, "times": before, "values": past.column(name), "times_ahead": after,
            "mean": ahead.mean[:, number], "low": ahead.quantiles[:, number, 0],
            "high": ahead.quantiles[:, number, -1], "level": ahead.levels[-1] - ahead.levels[0],
        }
        for number, name in enumerate(ahead.names)
    ]  # fmt: skip
