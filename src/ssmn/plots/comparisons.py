"""Ours beside others: bars, lines over seeds, cost against the length of the sequence."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmn.errors import RangeError
from ssmn.plots.look import LIGHT, Look, figure_of, series_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(values: Mapping[str, float], look: Look = LIGHT, x_label: str = "", ours: str = "") -> Figure:
    """A bar for each value, the largest on top; those whose name begins with `ours` in the first colour.

    Args:
        values: By name.
        look: Where it is to be seen.
        x_label: Name and unit of the axis.
        ours: The beginning of our names.
    """
    blue, *_ = look.colours
    ordered = sorted(values.items(), key=lambda item: item[1])
    with figure_of(look, 1.0 + 0.32 * len(ordered)) as (figure, axes):
        panel = axes[0, 0]
        colours = [blue if ours and name.startswith(ours) else look.muted for name, _ in ordered]
        drawn = panel.barh(range(len(ordered)), [value for _, value in ordered], color=colours, height=0.66)
        panel.bar_label(drawn, [f"{value:.1f}" for _, value in ordered], padding=3, fontsize="small")
        panel.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.1)
        panel.set_xlabel(x_label)
    return figure


def ranked(panels: Mapping[str, Mapping[str, float]], look: Look = LIGHT, ours: str = "") -> Figure:
    """A panel for each group with a bar for each value, the smallest on top: errors, so shorter is better.

    Args:
        panels: By title, then by name.
        look: Where it is to be seen.
        ours: The beginning of our names; those bars have the first colour.

    Raises:
        RangeError: There is nothing to draw.
    """
    if not any(panels.values()):
        raise RangeError("plots: there are no bars; wanted at least one value.")
    blue, *_ = look.colours
    columns = 1 if look.narrow else 2
    rows, most = -(-len(panels) // columns), max(map(len, panels.values()))
    with figure_of(look, 0.6 + (0.9 + 0.26 * most) * rows, (rows, columns)) as (drawing, axes):
        for panel, (title, values) in zip(axes.flat, panels.items(), strict=False):
            ordered = sorted(values.items(), key=lambda item: -item[1])
            colours = [blue if ours and name.startswith(ours) else look.muted for name, _ in ordered]
            drawn = panel.barh(range(len(ordered)), [value for _, value in ordered], color=colours, height=0.66)
            panel.bar_label(drawn, [f"{value:.3f}" for _, value in ordered], padding=3, fontsize="small")
            panel.set_yticks(range(len(ordered)), [name for name, _ in ordered])
            panel.grid(axis="y", visible=False)
            panel.margins(x=0.15)
            panel.set_title("\n".join(textwrap.wrap(title, 30)))
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
    return drawing


def cost_against_length(figures: Sequence[Mapping[str, Any]], look: Look = LIGHT) -> Figure:
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
    with figure_of(look, 1.0 + 3.4 * rows, (rows, columns)) as (drawing, axes):
        styles = series_styles(list(names), ours, look)
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


def spread_lines(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    look: Look = LIGHT,
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
    styles = series_styles(names, names[:1], look)
    with figure_of(look, 1.3 + 3.3 * rows, (rows, columns), sharey=True) as (drawing, axes):
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
