"""Series: what was read, what was expected, and what was flagged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmn.errors import RangeError
from ssmn.plots.look import LIGHT, Look, concise_dates, figure_of, foot_note, legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def detections(
    columns: Mapping[str, Sequence[float]],
    scores: Sequence[float],
    flags: Sequence[int],
    threshold: float,
    look: Look = LIGHT,
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
    with figure_of(look, height, (len(columns) + 1, 1), sharex=True) as (figure, axes):
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


def watched(part: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """A sensor with what the detector flagged and what was labelled, above the score."""
    from datetime import datetime

    times = [datetime.fromisoformat(moment) for moment in part["times"]]
    windows = [(datetime.fromisoformat(first), datetime.fromisoformat(last)) for first, last in part["windows"]]
    columns = {"Temperature of the machine": part["values"]}
    figure = detections(columns, part["scores"], part["flags"], part["threshold"], look, times, windows)
    concise_dates(figure.axes[-1])
    return figure


WAYS = {"learning": "learning", "frozen": "frozen after a week", "last": "last value"}
"""What is compared in `followed`, in drawing order."""


def followed(part: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """A disturbed series, the running error of those who predict it, and what they say around the level shift."""
    blue, orange, green, purple = look.colours
    styles = dict(zip(WAYS, ((blue, "-", 2.0), (orange, "--", 1.6), (green, "-.", 1.6)), strict=True))
    with figure_of(look, 8.6 if look.narrow else 7.6, (3, 1), gridspec_kw={"height_ratios": [1, 1.15, 1.25]}) as (
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
            foot_note(series, (first + last) / 2, name, look)
        series.axvline(part["shift"], color=purple, linewidth=1.4)
        foot_note(series, part["shift"], f"+{part['shift_size']:.0f}", look)
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


def switched(part: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """Error by steps since the stream began and since the system was switched, on a log axis."""
    blue, orange, green, _ = look.colours
    panels = (2, 1) if look.narrow else (1, 2)
    with figure_of(look, 6.6 if look.narrow else 4.3, panels, sharey=True) as (figure, axes):
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
        legend_below(figure, axes.flat[0], 1 if look.narrow else 3)
    return figure


def futures(story: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """What one state, its reloaded copy and a fork say of the readings to come, with a level shift and without."""
    blue, orange, _, purple = look.colours
    with figure_of(look, 4.4 if look.narrow else 4.0) as (figure, axes):
        panel = axes[0, 0]
        rows = range(1, len(story["original"]) + 1)
        panel.plot(rows, story["original"], color=orange, linewidth=4.5, alpha=0.45, label="the state that was saved")
        panel.plot(rows, story["reloaded"], color=orange, linestyle="--", label="the same, from the file")
        panel.plot(rows, story["fork"], color=blue, label="fork that never sees the shift")
        panel.axvline(story["shift_after"], color=purple, linewidth=1.4)
        panel.set_xlabel("rows since the state was saved")
        panel.set_ylabel("expected temperature")
        panel.set_title("One state, saved, reloaded and forked")
        legend_below(figure, panel, 1 if look.narrow else 3)
    return figure


def forecast(series: Sequence[Mapping[str, Any]], look: Look = LIGHT) -> Figure:
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
    with figure_of(look, 1.0 + 2.4 * len(shown), (len(shown), 1), sharex=True) as (drawing, axes):
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
            concise_dates(axes.flat[-1])
        legend_below(drawing, axes.flat[0], 3)
    return drawing
