"""Drawings of measured numbers: colour-blind-safe, labelled with units, light or dark, wide or narrow.

Every function takes plain values (those of `ssmn.demo` and `ssmn.bench`) and returns a matplotlib
figure; `png` turns one into bytes. Nothing is drawn through pyplot, so there is no global state.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssmn.errors import MissingExtraError, RangeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Where a drawing is to be seen.

    The four series colours keep their order and stay apart for every kind of colour vision (Okabe and
    Ito, 2008); line styles and markers differ as well.
    """

    dark: bool = False
    narrow: bool = False

    @property
    def paper(self) -> str:
        """The background."""
        return "#161b22" if self.dark else "#ffffff"

    @property
    def ink(self) -> str:
        """Text and axes."""
        return "#e6edf3" if self.dark else "#1f2328"

    @property
    def faint(self) -> str:
        """Grid lines."""
        return "#30363d" if self.dark else "#e3e6ea"

    @property
    def muted(self) -> str:
        """What stands back: remarks, references."""
        return "#9aa4af" if self.dark else "#59636e"

    @property
    def colours(self) -> tuple[str, str, str, str]:
        """Blue, orange, green, purple."""
        if self.dark:
            return ("#56b4e9", "#e69f00", "#2fc79a", "#e08fbe")
        return ("#0072b2", "#c76b00", "#008a63", "#a8558a")


@contextmanager
def _figure(look: Look, height: float, panels: tuple[int, int] = (1, 1), **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of the look with its axes; tidied up at the end."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingExtraError("plots: matplotlib is not installed; type: pip install 'sparse-stream[viz]'") from error

    settings: dict[Any, Any] = {
        "font.size": 9.5 if look.narrow else 10.5,
        "axes.titlesize": 10 if look.narrow else 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": look.muted,
        "axes.labelcolor": look.ink,
        "axes.facecolor": look.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": look.faint,
        "grid.linewidth": 0.8,
        "text.color": look.ink,
        "xtick.color": look.muted,
        "ytick.color": look.muted,
        "xtick.labelcolor": look.ink,
        "ytick.labelcolor": look.ink,
        "lines.linewidth": 2.0,
        "legend.frameon": False,
        "figure.facecolor": look.paper,
        "savefig.facecolor": look.paper,
    }
    with rc_context(settings):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(4.1 if look.narrow else 8.4, height), dpi=200, layout=layout)
        axes = figure.subplots(*panels, squeeze=False, **grid)
        yield figure, axes


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, with a palette of 256 colours (a third of the size)."""
    from PIL import Image  # comes with matplotlib

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return packed.getvalue()


def _legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """The series of one panel, named below the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.4)


def _room(axes: Axes, share: float = 0.25) -> None:
    """Axis from zero, with room above the data."""
    axes.set_ylim(0, axes.dataLim.y1 * (1 + share))


def memory_and_speed(reading: Mapping[str, Any], look: Look = Look()) -> Figure:
    """Resident memory and speed against how much text has been read; both should be flat lines."""
    blue, orange, *_ = look.colours
    points = reading["points"]
    megabytes = [point["bytes"] / 1e6 for point in points]
    with _figure(look, 5.6 if look.narrow else 5.2, (2, 1), sharex=True) as (figure, axes):
        memory, speed = axes[:, 0]
        resident = [point["resident_bytes"] / 2**20 for point in points]
        memory.plot(megabytes, resident, color=blue, label="this process")
        _room(memory, 0.9)
        kept = [resident[0] + reading["cache_bytes_per_token"] * point["tokens"] / 2**20 for point in points]
        memory.plot(megabytes, kept, color=orange, linestyle="--", label="if it kept every key and value")
        memory.set_ylabel("resident memory\n(MiB)")
        memory.set_title("Memory while reading")
        memory.legend(loc="lower right", fontsize="small")
        rates = [point["tokens_per_second"] for point in points]
        speed.plot(megabytes, rates, color=blue, linewidth=0.9, alpha=0.55, label="each stretch")
        speed.plot(megabytes, _smooth(rates, max(3, len(rates) // 10)), color=blue, label="running median")
        _room(speed)
        speed.set_ylabel("speed\n(tokens per second)")
        speed.set_xlabel("text read (MB)")
        speed.set_title("Speed while reading")
        speed.legend(loc="lower right", fontsize="small", ncols=2)
        speed.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def _smooth(values: Sequence[float], width: int) -> list[float]:
    half = width // 2
    windows = (sorted(values[max(0, i - half) : i + half + 1]) for i in range(len(values)))
    return [window[len(window) // 2] for window in windows]


def bars(values: Mapping[str, float], look: Look = Look(), x_label: str = "", ours: str = "") -> Figure:
    """A bar for each value, the largest on top; those whose name begins with `ours` in the first colour.

    Args:
        values: By name.
        look: Where it is to be seen.
        x_label: Name and unit of the axis.
        ours: The beginning of our names.
    """
    blue, *_ = look.colours
    ordered = sorted(values.items(), key=lambda item: item[1])
    with _figure(look, 1.0 + 0.32 * len(ordered)) as (figure, axes):
        panel = axes[0, 0]
        colours = [blue if ours and name.startswith(ours) else look.muted for name, _ in ordered]
        drawn = panel.barh(range(len(ordered)), [value for _, value in ordered], color=colours, height=0.66)
        panel.bar_label(drawn, [f"{value:.1f}" for _, value in ordered], padding=3, fontsize="small")
        panel.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.1)
        panel.set_xlabel(x_label)
    return figure


def detections(
    columns: Mapping[str, Sequence[float]],
    scores: Sequence[float],
    flags: Sequence[int],
    threshold: float,
    look: Look = Look(),
    times: Sequence[Any] | None = None,
    windows: Sequence[tuple[Any, Any]] = (),
) -> Figure:
    """Series with their flagged rows marked, a panel for each, above the anomaly score and its threshold.

    Args:
        columns: The values of each series by name; NaN leaves a gap.
        scores: The anomaly score of each row.
        flags: Numbers of the flagged rows, from 0.
        threshold: The score from which on rows are flagged.
        look: Where it is to be seen.
        times: The time of each row; None numbers the rows.
        windows: First and last place (a time, or the number of a row from 1) of stretches to shade: labelled anomalies.
    """
    blue, orange, green, purple = look.colours
    place = range(1, len(scores) + 1) if times is None else times
    height = 1.6 * len(columns) + 2.4
    with _figure(look, height, (len(columns) + 1, 1), sharex=True) as (figure, axes):
        *series, score = axes[:, 0]
        for panel, (first, last) in itertools.product(axes[:, 0], windows):
            panel.axvspan(first, last, color=purple, alpha=0.22, linewidth=0, label="labelled as an anomaly")
        marked = [place[row] for row in flags]
        for panel, (name, values) in zip(series, columns.items(), strict=True):
            panel.plot(place, values, color=blue, linewidth=0.9)
            at = [values[row] for row in flags]
            panel.plot(marked, at, color=orange, linestyle="", marker="o", markersize=5, label="flagged")
            panel.set_title(name)
        if marked and not windows:
            series[0].legend(loc="upper right", fontsize="small")
        score.plot(place, scores, color=green, linewidth=0.9)
        score.axhline(threshold, color=orange, linestyle="--", linewidth=1.2, label=f"threshold {threshold:g}")
        score.set_ylim(0, 1.03)
        score.set_title("Anomaly score")
        if windows:
            found = {}
            for panel in axes[:, 0]:
                found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
            columns_below = 1 if look.narrow else 3
            figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=columns_below)
        else:
            score.legend(loc="upper right", fontsize="small")
        score.set_xlabel("row" if times is None else "")
        if times is not None:
            score.tick_params(axis="x", rotation=25)
    return figure


def watched(part: Mapping[str, Any], look: Look = Look()) -> Figure:
    """A sensor with what the detector flagged and what was labelled, above the score."""
    from datetime import datetime

    times = [datetime.fromisoformat(moment) for moment in part["times"]]
    windows = [(datetime.fromisoformat(first), datetime.fromisoformat(last)) for first, last in part["windows"]]
    columns = {"Temperature of the machine": part["values"]}
    figure = detections(columns, part["scores"], part["flags"], part["threshold"], look, times, windows)
    _concise_dates(figure.axes[-1])
    return figure


def _concise_dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(axis="x", rotation=0)


WAYS = {"learning": "learning", "frozen": "frozen after a week", "last": "last value"}
"""What is compared in `followed`, in drawing order."""


def followed(part: Mapping[str, Any], look: Look = Look()) -> Figure:
    """A disturbed series, the running error of those who predict it, and what they say around the level shift."""
    blue, orange, green, purple = look.colours
    styles = dict(zip(WAYS, ((blue, "-", 2.0), (orange, "--", 1.6), (green, "-.", 1.6)), strict=True))
    with _figure(look, 8.6 if look.narrow else 7.6, (3, 1), gridspec_kw={"height_ratios": [1, 1.15, 1.25]}) as (
        figure,
        axes,
    ):
        series, error, zoom = axes.flat
        values = [math.nan if value is None else value for value in part["series"]]
        series.plot(part["series_rows"], values, color=look.ink, linewidth=0.7)
        series.set_title("The sensor, disturbed")
        series.set_ylabel("temperature")
        for (first, last), name in ((part["gap"], "gap"), (part["lossy"], "⅓ lost")):
            series.axvspan(first, last, color=purple, alpha=0.3, linewidth=0)
            _note(series, (first + last) / 2, name, look)
        series.axvline(part["shift"], color=purple, linewidth=1.4)
        _note(series, part["shift"], f"+{part['shift_size']:.0f}", look)
        for name, (colour, style, width) in styles.items():
            points = [
                (row, value)
                for row, value in zip(part["points"], part["mean_error"][name], strict=True)
                if name != "frozen" or row >= part["learned"]
            ]
            look_of: dict[str, Any] = {
                "color": colour, "linestyle": style, "linewidth": width, "zorder": 3 if name == "learning" else 2,
            }  # fmt: skip
            error.plot(*zip(*points, strict=True), label=WAYS[name], **look_of)
            zoom.plot(part["zoom"]["rows"], part["zoom"][name], **look_of)
        error.set_yscale("log")
        low, high = error.get_ylim()
        error.set_yticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high])
        error.minorticks_off()
        error.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        error.set_ylabel("mean error")
        error.set_title("Error of the next reading, mean of a day")
        error.sharex(series)
        error.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        error.set_xlabel("row (5 minutes each)")
        zoom.plot(
            part["zoom"]["rows"], part["zoom"]["truth"], color=look.ink, linestyle="", marker="o", markersize=2.6,
            label="the reading", zorder=1,
        )  # fmt: skip
        zoom.axvline(0, color=purple, linewidth=1.4)
        everything = part["zoom"]["truth"]
        zoom.set_ylim(min(everything) - 12, max(everything) + 12)
        zoom.set_title("Expected and read, around the shift")
        zoom.set_xlabel("rows since the shift")
        zoom.set_ylabel("temperature")
        handles, labels = error.get_legend_handles_labels()
        more, names = zoom.get_legend_handles_labels()
        columns = 2 if look.narrow else 4
        figure.legend([*handles, *more], [*labels, *names], loc="outside lower left", ncols=columns, handlelength=2.4)
    return figure


def _note(axes: Axes, place: float, text: str, look: Look) -> None:
    """A word at the foot of a panel."""
    room = {"boxstyle": "round,pad=0.15", "facecolor": look.paper, "edgecolor": "none", "alpha": 0.85}
    axes.text(
        place, 0.04, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize="small",
        color=look.ink, bbox=room,
    )  # fmt: skip


def switched(part: Mapping[str, Any], look: Look = Look()) -> Figure:
    """Error by steps since the stream began and since the system was switched, on a log axis."""
    blue, orange, green, _ = look.colours
    panels = (2, 1) if look.narrow else (1, 2)
    with _figure(look, 6.6 if look.narrow else 4.3, panels, sharey=True) as (figure, axes):
        for panel, group, title in zip(
            axes.flat, ("fresh", "switched"), ("From the first step on", "After the switch"), strict=True
        ):
            curves = part[group]
            panel.plot(curves["textbook"], color=orange, linewidth=4.5, alpha=0.5, label="recursive least squares")
            panel.plot(curves["ssmn_rls"], color=blue, label="SSMN, rls read-out")
            panel.plot(curves["ssmn_delta"], color=green, linestyle="-.", label="SSMN, delta read-out")
            panel.axhline(
                part["noise"], color=look.muted, linestyle=":", linewidth=1.4, label="noise nobody can predict"
            )
            panel.axhline(
                part["known_below"],
                color=look.muted,
                linestyle="--",
                linewidth=1.0,
                label=f"known: {part['known_below']:g}",
            )
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            panel.set_xlabel("steps")
            panel.set_title(title)
        for panel in axes[:, 0]:
            panel.set_ylabel("squared error\n(1 = the signal's variance)")
        _legend_below(figure, axes.flat[0], 1 if look.narrow else 3)
    return figure


def futures(story: Mapping[str, Any], look: Look = Look()) -> Figure:
    """What one state, its reloaded copy and a fork say of the readings to come, with a level shift and without."""
    blue, orange, _, purple = look.colours
    with _figure(look, 4.4 if look.narrow else 4.0) as (figure, axes):
        panel = axes[0, 0]
        rows = range(1, len(story["original"]) + 1)
        panel.plot(rows, story["original"], color=orange, linewidth=4.5, alpha=0.45, label="the state that was saved")
        panel.plot(rows, story["reloaded"], color=orange, linestyle="--", label="the same, from the file")
        panel.plot(rows, story["fork"], color=blue, label="fork that never sees the shift")
        panel.axvline(story["shift_after"], color=purple, linewidth=1.4)
        panel.set_xlabel("rows since the state was saved")
        panel.set_ylabel("expected temperature")
        panel.set_title("One state, saved, reloaded and forked")
        _legend_below(figure, panel, 1 if look.narrow else 3)
    return figure


CONDITIONS = {
    "on": "memory on",
    "reset": "emptied at the start, then on",
    "frozen": "frozen as it was at the start",
    "off": "empty and frozen (window only)",
}
"""The four ways in which `surprise` reads the same passage, in drawing order."""


def surprise(passage: Mapping[str, Any], look: Look = Look()) -> Figure:
    """Surprise along one passage with the memory on, emptied, frozen and off: along the text, and on average."""
    styles = dict(zip(CONDITIONS, zip(look.colours, ("-", "--", "-.", ":"), strict=True), strict=True))
    panels = (2, 1) if look.narrow else (1, 2)
    ratios: dict[str, Any] = {"height_ratios": [1.5, 1]} if look.narrow else {"width_ratios": [1.75, 1]}
    with _figure(look, 6.4 if look.narrow else 4.3, panels, gridspec_kw=ratios) as (figure, axes):
        along, mean = axes.flat
        for name, label in CONDITIONS.items():
            colour, style = styles[name]
            along.plot(passage["kilobytes"], passage["bits_per_byte"][name], color=colour, linestyle=style, label=label)
        along.set_xlabel("passage read (kB)")
        along.set_ylabel("surprise (bits per byte)")
        along.set_title("The same passage, read in four ways")
        _legend_below(figure, along, 1 if look.narrow else 2)
        names = list(CONDITIONS)[::-1]
        means = [passage["mean"][name] for name in names]
        mean.barh(range(len(names)), means, color=[styles[name][0] for name in names], height=0.62)
        for index, value in enumerate(means):
            mean.text(value * 0.97, index, f"{value:.3f}", ha="right", va="center", color=look.paper, weight="bold")
        mean.set_yticks(range(len(names)), names)
        mean.grid(axis="y", visible=False)
        mean.set_xlabel("bits per byte")
        mean.set_title("Average over the passage")
    return figure


def second_reading(readings: Mapping[str, Any], look: Look = Look()) -> Figure:
    """Surprise of first and second readings against the length of the passage, and what the second one gains."""
    blue, orange, _, purple = look.colours
    rows = readings["rows"]
    lengths = [row["length"] for row in rows]
    panels = (2, 1) if look.narrow else (1, 2)
    with _figure(look, 7.0 if look.narrow else 4.4, panels) as (figure, axes):
        levels, gains = axes.flat
        series = (
            ("first", "first reading", orange, "--", "s"),
            ("second", "second reading", blue, "-", "o"),
            ("second_off", "second reading, memory off", purple, ":", "D"),
        )
        for name, label, colour, style, marker in series:
            values = [row[name] for row in rows]
            levels.plot(lengths, values, color=colour, linestyle=style, marker=marker, markersize=5, label=label)
        levels.set_ylabel("surprise (bits per byte)")
        levels.set_title("Reading a passage twice")
        gain = [100 * row["gain"] for row in rows]
        spread = [100 * row["gain_standard_error"] for row in rows]
        gains.axhline(0, color=look.muted, linewidth=1)
        gains.errorbar(
            lengths, gain, yerr=spread, color=blue, marker="o", markersize=5, capsize=3, label="second reading"
        )
        off = [100 * row["gain_off"] for row in rows]
        gains.plot(
            lengths, off, color=purple, linestyle=":", marker="D", markersize=5, label="second reading, memory off"
        )
        gains.set_ylabel("less surprise than at first (%)")
        gains.set_title("What the second reading gains")
        for panel in (levels, gains):
            panel.set_xscale("log", base=2)
            panel.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
            panel.set_xlabel("length of the passage (tokens)")
        _legend_below(figure, levels, 1 if look.narrow else 3)
    return figure


def fork(story: Mapping[str, Any], look: Look = Look()) -> Figure:
    """Running surprise over a passage for a saved state, its reloaded copy, and a fork that has read the passage."""
    blue, orange, green, _ = look.colours
    kilobytes = story["kilobytes"]
    with _figure(look, 4.4 if look.narrow else 4.0) as (figure, axes):
        panel = axes[0, 0]
        panel.plot(
            kilobytes, story["original"], color=orange, linewidth=4.5, alpha=0.45, label="the state that was saved"
        )
        panel.plot(kilobytes, story["reloaded"], color=orange, linestyle="--", label="the same, from the file")
        panel.plot(kilobytes, story["left"], color=blue, label="fork that has read this passage before")
        panel.plot(kilobytes, story["right"], color=green, linestyle="-.", label="fork that has read another one")
        panel.set_xlabel("passage read (kB)")
        panel.set_ylabel("surprise so far\n(bits per byte)")
        panel.set_title("One state, saved, reloaded and forked")
        _legend_below(figure, panel, 1 if look.narrow else 2)
    return figure


def seed_table(results: Mapping[str, Any], look: Look = Look()) -> Figure:
    """Time, kept bytes and multiply-adds of full attention and of the sparse stream, on log axes."""
    blue, orange, *_ = look.colours
    rows = results["rows"]
    names = [f"n = {row['length']:,}" for row in rows]
    groups = (
        ("Time (ms)", lambda r: r["milliseconds"]["full_attention"], lambda r: r["milliseconds"]["sparse_stream"]),
        (
            "Kept between steps (MiB)",
            lambda r: r["costs"]["full_cache_bytes"] / 2**20,
            lambda r: (r["costs"]["window_bytes"] + r["costs"]["memory_bytes"]) / 2**20,
        ),
        (
            "Multiply-adds (billions)",
            lambda r: r["costs"]["full_multiply_adds"] / 1e9,
            lambda r: (r["costs"]["window_multiply_adds"] + r["costs"]["memory_multiply_adds"]) / 1e9,
        ),
    )
    panels = (3, 1) if look.narrow else (1, 3)
    with _figure(look, 7.6 if look.narrow else 3.7, panels) as (figure, axes):
        for panel, (title, full, stream) in zip(axes.flat, groups, strict=True):
            for offset, values, colour, hatch, label in (
                (-0.2, [full(row) for row in rows], orange, "//", "full attention"),
                (0.2, [stream(row) for row in rows], blue, "", "sparse stream"),
            ):
                bars = panel.bar(
                    [index + offset for index in range(len(rows))], values, 0.38,
                    color=colour, hatch=hatch, edgecolor=look.paper, linewidth=0, label=label,
                )  # fmt: skip
                panel.bar_label(bars, [_short(value) for value in values], padding=2, fontsize="small")
            panel.set_yscale("log")
            everything = [value(row) for value in (full, stream) for row in rows]
            low, high = math.floor(math.log10(min(everything)) - 0.3), math.ceil(math.log10(max(everything)) + 0.3)
            panel.set_ylim(10.0**low, 10.0**high)
            panel.set_yticks([10.0**n for n in range(low, high + 1)])
            panel.minorticks_off()
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            panel.set_xticks(range(len(rows)), names)
            panel.grid(axis="x", visible=False)
            panel.set_title(title)
        _legend_below(figure, axes.flat[0], 2)
    return figure


def cost_against_length(figures: Sequence[Mapping[str, Any]], look: Look = Look()) -> Figure:
    """What a benchmark measured against the length of the sequence, on log axes: a panel for each kind of figure.

    Args:
        figures: Those of a record of `ssmn.bench`, as plain values. Panels with one length are left out, unless all
            are such.
        look: Where it is to be seen.

    Raises:
        RangeError: There is nothing to draw.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for figure in figures:
        panels.setdefault(figure["panel"], []).append(figure)
    several = {name: group for name, group in panels.items() if len({figure["length"] for figure in group}) > 1}
    panels = several or panels
    if not panels:
        raise RangeError("plots: the record has no figures; wanted one of a benchmark that measures against length.")
    columns = 1 if look.narrow or len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    names = dict.fromkeys(figure["who"] for group in panels.values() for figure in group)
    ours = {figure["who"] for group in panels.values() for figure in group if figure["ours"]}
    with _figure(look, 1.0 + 3.4 * rows, (rows, columns)) as (drawing, axes):
        styles = _series_styles(list(names), ours, look)
        for axis, (title, group) in zip(axes.flat, panels.items(), strict=False):
            for who in dict.fromkeys(figure["who"] for figure in group):
                points = sorted((f for f in group if f["who"] == who), key=lambda figure: figure["length"])
                lengths = [point["length"] for point in points]
                axis.plot(lengths, [point["median"] for point in points], **styles[who])
                low, high = [point["low"] for point in points], [point["high"] for point in points]
                axis.fill_between(lengths, low, high, color=styles[who]["color"], alpha=0.18, linewidth=0)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            axis.set_ylabel(group[0]["unit"])
            axis.set_title("\n".join(textwrap.wrap(title, 44)))
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("n (tokens)")
        found = {}
        for axis in axes.flat:
            found |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        drawing.legend(found.values(), found.keys(), loc="outside lower left", ncols=columns, handlelength=3.2)
    return drawing


def _series_styles(names: Sequence[str], ours: Collection[str], look: Look) -> dict[str, dict[str, Any]]:
    """Ours in the first colour with full lines, rivals in the others with broken ones; markers tell them apart."""
    blue, *others = look.colours
    styles, seen = {}, 0
    for index, name in enumerate(names):
        style: dict[str, Any] = {"label": name, "marker": "osD^vP*X"[index % 8], "markersize": 5}
        if name in ours:
            styles[name] = {**style, "color": blue, "linestyle": "-"}
        else:
            broken = ("--", "-.", ":")[seen % 3]
            styles[name] = {**style, "color": [*others, look.muted][seen % 4], "linestyle": broken}
            seen += 1
    return styles


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread_lines(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    look: Look = Look(),
    x_label: str = "",
    y_label: str = "",
    *,
    x_log: bool = True,
    y_range: tuple[float, float] | None = (0.0, 1.03),
) -> Figure:
    """Lines of medians over seeds, from the lowest to the highest seed shaded: a panel for each group.

    Args:
        panels: By title, then by the name of the line, the values of all seeds at each x.
        look: Where it is to be seen.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        x_log: Whether x is on a log axis.
        y_range: Ends of the vertical axis, the same for all panels; None = from the data.

    Raises:
        RangeError: There is nothing to draw.
    """
    if not any(panels.values()):
        raise RangeError("plots: there are no lines; wanted at least one with a value.")
    columns = 1 if look.narrow else min(2, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    styles = _series_styles(names, names[:1], look)
    with _figure(look, 1.3 + 3.3 * rows, (rows, columns), sharey=True) as (drawing, axes):
        for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
            for name, points in lines.items():
                at = sorted(points)
                middle = [sorted(points[x])[len(points[x]) // 2] for x in at]
                axis.plot(at, middle, **styles[name])
                low, high = [min(points[x]) for x in at], [max(points[x]) for x in at]
                axis.fill_between(at, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
            if x_log:
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            if y_range is not None:
                axis.set_ylim(*y_range)
            axis.set_title("\n".join(textwrap.wrap(title, 44)))
            axis.set_xlabel(x_label)
        for axis in axes[:, 0]:
            axis.set_ylabel(y_label)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        found = {}
        for axis in axes.flat:
            found |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        wanted = 1 if look.narrow else 3
        drawing.legend(found.values(), found.keys(), loc="outside lower left", ncols=wanted, handlelength=3.2)
    return drawing


def forecast(series: Sequence[Mapping[str, Any]], look: Look = Look()) -> Figure:
    """What was and what is expected: a panel for each column, with the band of the outermost quantiles.

    Args:
        series: For each column `name`, `times` and `values` of the past, `times_ahead`, `mean`, `low` and `high` of the
            rows to come, and `level`, the share of truths that the band should hold. Times are numbers or dates; the
            first four columns are drawn.
        look: Where it is to be seen.

    Raises:
        RangeError: There is nothing to draw.
    """
    if not series:
        raise RangeError("plots: there is no column to draw; wanted at least one.")
    shown = series[:4]
    with _figure(look, 1.0 + 2.4 * len(shown), (len(shown), 1), sharex=True) as (drawing, axes):
        blue, orange, *_ = look.colours
        for axis, column in zip(axes.flat, shown, strict=True):
            axis.plot(column["times"], column["values"], color=look.muted, linewidth=1.2, label="seen")
            band = f"{100 * column['level']:.0f} % interval"
            axis.fill_between(
                column["times_ahead"], column["low"], column["high"], color=blue, alpha=0.2, linewidth=0, label=band
            )
            axis.plot(column["times_ahead"], column["mean"], color=blue, label="forecast")
            axis.axvline(column["times_ahead"][0], color=orange, linewidth=1.0, linestyle="--")
            axis.set_title(column["name"])
        if isinstance(shown[0]["times"][0], (int, float)):
            axes.flat[-1].set_xlabel("row")
        else:
            _concise_dates(axes.flat[-1])
        _legend_below(drawing, axes.flat[0], 3)
    return drawing
