"""Drawings for a browser: plain dictionaries that plotly.js draws, and plotly.js itself, which comes with the package.

Nothing here imports plotly's Python package, and nothing that is made here asks the network for anything. A drawing is
`{"data": [...], "layout": {...}}` without colours; those are in `theme`, so that one drawing serves light and dark:
a page calls `Plotly.newPlot(place, drawing.data, {...drawing.layout, ...theme})`.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from ssmn.errors import RangeError, ShapeError
from ssmn.plots.look import Look
from ssmn.plots.memory import matrix, signed_end
from ssmn.plots.readings import visible

Drawing = dict[str, Any]
"""`data` and `layout`, as plotly.js takes them; JSON as it is."""

_CUT = 12
"""Characters of a token on an axis."""


def plotly_js() -> str:
    """The source of plotly.js (cartesian bundle 4.1.1, MIT licence), to be put into a page's own `<script>`.

    The licence is in the source's first lines and in `ssmn/plots/assets/plotly-LICENSE.txt`.

    Example:
        >>> from ssmn.plots.interactive import plotly_js
        >>> source = plotly_js()
        >>> "MIT license" in source[:300], "</script" in source
        (True, False)
    """
    return (resources.files("ssmn.plots") / "assets" / "plotly-cartesian-4.1.1.min.js").read_text(encoding="utf-8")


def theme(look: Look) -> Drawing:
    """The part of a layout that depends on where it is to be seen: type, colours of lines, scales, axes.

    Signed heat maps take their colours from `coloraxis`, rising ones from `coloraxis2`.

    Example:
        >>> from ssmn.plots import Look
        >>> from ssmn.plots.interactive import theme
        >>> theme(Look(dark=True))["coloraxis"]["colorscale"][2]
        [0.5, '#161b22']
    """
    axis = {
        "gridcolor": look.faint, "linecolor": look.muted, "tickcolor": look.muted, "zerolinecolor": look.faint,
    }  # fmt: skip
    bar = {
        "orientation": "h", "thickness": 9, "len": 0.7, "x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom",
        "outlinewidth": 0, "ticks": "", "nticks": 5, "tickfont": {"size": 11},
    }  # fmt: skip
    return {
        "paper_bgcolor": look.paper,
        "plot_bgcolor": look.paper,
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": look.ink},
        "colorway": [*look.colours, look.muted],
        "hoverlabel": {"bgcolor": look.paper, "bordercolor": look.muted, "font": {"color": look.ink, "size": 12}},
        "coloraxis": {"colorscale": _stops(look.signed), "colorbar": bar},
        "coloraxis2": {"colorscale": _stops(look.rising), "colorbar": bar},
        "axis": axis,
    }


def memory_map(
    values: np.ndarray, *, entry: str = "entry of S", axes: tuple[str, str] = ("key (row of S)", "value (column of S)")
) -> Drawing:
    """The entries of one memory as a signed heat map.

    Args:
        values: S [K, V]: rows pre-synaptic, columns post-synaptic.
        entry: What an entry is, for the note under the pointer.
        axes: What a row and a column are. Few rows are drawn as strips, else cells are squares.

    Example:
        >>> import numpy as np
        >>> from ssmn.plots.interactive import memory_map
        >>> memory_map(np.eye(3, 2))["data"][0]["z"]["shape"]
        '3,2'
    """
    checked = matrix("memory_map", "values", values)
    end = signed_end([checked])
    row, column = (axis.split(" (")[0] for axis in axes)
    is_strip = 4 * checked.shape[0] < checked.shape[1]
    trace = {
        "type": "heatmap", "z": packed(checked), "coloraxis": "coloraxis",
        "hovertemplate": f"{row} %{{y}}, {column} %{{x}}<br>{entry} %{{z:.4g}}<extra></extra>",
    }  # fmt: skip
    layout = {
        "height": 230 if is_strip else 460,
        "margin": {"l": 48, "r": 8, "t": 34, "b": 44},
        "coloraxis": {"cmin": -end, "cmax": end},
        "xaxis": {"title": {"text": axes[1]}, "constrain": "domain", "showgrid": False},
        "yaxis": {
            "title": {"text": axes[0]}, "autorange": "reversed", "showgrid": False,
            **({"nticks": checked.shape[0] + 1} if is_strip else {"scaleanchor": "x", "constrain": "domain"}),
        },
    }  # fmt: skip
    return {"data": [trace], "layout": layout}


def attention_map(weights: np.ndarray, pieces: Sequence[str], *, first: int = 0) -> Drawing:
    """What each token (a row) took from each earlier one (a column): signed if any weight is negative, else rising.

    Args:
        weights: [T, T], reader by source.
        pieces: The text of the T tokens.
        first: Position of the first token in its stream.

    Raises:
        ShapeError: `weights` is not [T, T].

    Example:
        >>> import numpy as np
        >>> from ssmn.plots.interactive import attention_map
        >>> attention_map(np.tril(np.ones((2, 2))), ["so", " it"], first=7)["data"][0]["x"]
        ['7 so', '8 ·it']
    """
    checked, wanted = matrix("attention_map", "weights", weights), [len(pieces)] * 2
    if list(checked.shape) != wanted:
        raise ShapeError(f"attention_map: weights has shape {list(checked.shape)}; wanted {wanted}, tokens by tokens.")
    signed, end = bool((checked < 0).any()), signed_end([np.tril(checked)])
    names, colours = labels(pieces, first), "coloraxis" if signed else "coloraxis2"
    trace = {
        "type": "heatmap", "z": packed(checked), "x": names, "y": names, "coloraxis": colours,
        "hovertemplate": "<b>%{y}</b><br>read %{x}<br>weight %{z:.4g}<extra></extra>",
    }  # fmt: skip
    axis = {"type": "category", "nticks": 12, "showgrid": False, "constrain": "domain", "tickfont": {"size": 10}}
    # Plotly would set the name of the axis across its upright labels: it stands below the longest.
    below = round(6 * max(map(len, names)) + 14)
    layout = {
        "height": 420 + below,
        "margin": {"l": 92, "r": 8, "t": 34, "b": below + 22},
        colours: {"cmin": -end if signed else 0, "cmax": end},
        "xaxis": {**axis, "tickangle": 90},
        "yaxis": {
            **axis, "title": {"text": "reading token", "standoff": 6}, "autorange": "reversed", "scaleanchor": "x",
        },
        "annotations": [
            {
                "text": "token that was read", "showarrow": False, "xref": "x domain", "x": 0.5, "xanchor": "center",
                "yref": "y domain", "y": 0, "yanchor": "top", "yshift": -below, "font": {"size": 13},
            }
        ],
    }  # fmt: skip
    return {"data": [trace], "layout": layout}


def along_text(pieces: Sequence[str], values: Mapping[str, Sequence[float]], *, first: int = 0) -> Drawing:
    """Numbers of each token, a panel for each kind, over one axis of text: zoomed in, every tick is a token.

    Args:
        pieces: The text of each token.
        values: By name with unit, such as "surprise (bits)", a number for each token; NaN leaves a gap.
        first: Position of the first token in its stream.

    Raises:
        RangeError: There is nothing to draw.
        ShapeError: A panel has not one number for each token.

    Example:
        >>> from ssmn.plots.interactive import along_text
        >>> drawing = along_text(["so", " it"], {"surprise (bits)": [7.5, float("nan")]})
        >>> drawing["data"][0]["y"], drawing["layout"]["annotations"][0]["text"]
        ([7.5, None], '<b>surprise (bits)</b>')
    """
    if not pieces or not values:
        raise RangeError("along_text: there is nothing to draw; wanted tokens and at least one number for each.")
    names, count = labels(pieces, first), len(values)
    traces: list[Drawing] = []
    layout: Drawing = {
        "height": 90 + 145 * count,
        "margin": {"l": 48, "r": 12, "t": 8, "b": 96},
        "hovermode": "x",
        "showlegend": False,
        "annotations": [],
        "xaxis": {
            "type": "category", "nticks": 24, "tickangle": 90, "tickfont": {"size": 10}, "showgrid": False,
            "range": [-0.5, len(pieces) - 0.5], "title": {"text": "position and token", "standoff": 8},
            "anchor": _axis("y", count - 1),
        },
    }  # fmt: skip
    for number, (name, row) in enumerate(values.items()):
        if len(row) != len(pieces):
            raise ShapeError(
                f"along_text: {name!r} has {len(row)} values; wanted one for each of {len(pieces)} tokens."
            )
        top = 1 - number / count
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": names,
                "y": rounded(row),
                "name": name,
                "yaxis": _axis("y", number),
                "line": {"width": 1.4},
                "hovertemplate": "%{y:.3g}",
            }
        )
        layout[_axis("yaxis", number)] = {
            "domain": [max(0.0, top - 0.74 / count), top - 0.1 / count], "rangemode": "tozero", "nticks": 4,
            "tickformat": ",.10~g",
        }  # fmt: skip
        layout["annotations"].append(
            {
                "text": f"<b>{name}</b>", "xref": "paper", "x": 0, "xanchor": "left", "yref": "paper",
                "y": top - 0.1 / count, "yanchor": "bottom", "showarrow": False,
            }
        )  # fmt: skip
    return {"data": traces, "layout": layout}


def spectra(values: Mapping[str, Sequence[float]], *, chosen: str | None = None) -> Drawing:
    """Singular values of memories in falling order, each as a share of its largest.

    Args:
        values: By name, the singular values of S, falling.
        chosen: The one to draw strong; None = all.

    Raises:
        RangeError: There is none.

    Example:
        >>> from ssmn.plots.interactive import spectra
        >>> spectra({"layer 2, head 0": [3.0, 1.5]})["data"][0]["y"]
        [1.0, 0.5]
    """
    if not values or not all(len(falling) for falling in values.values()):
        raise RangeError("spectra: there are no singular values to draw; wanted at least one memory's.")
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": list(range(1, len(falling) + 1)),
            "y": rounded(np.asarray(falling) / (max(falling) or 1.0)),
            "line": {"width": 2.4 if chosen in (None, name) else 1.2},
            "opacity": 1.0 if chosen in (None, name) else 0.45, "hovertemplate": "%{y:.3f}",
        }
        for name, falling in values.items()
    ]  # fmt: skip
    longest = max(len(falling) for falling in values.values())
    layout = {
        "height": 460,
        "margin": {"l": 52, "r": 12, "t": 34, "b": 44},
        "hovermode": "x unified",
        "showlegend": len(values) > 1,
        "legend": {"x": 1, "xanchor": "right", "y": 1, "bgcolor": "rgba(0,0,0,0)"},
        "xaxis": {"title": {"text": "number of the singular value"}, "range": [0.5, longest + 0.5], "showgrid": False},
        "yaxis": {"title": {"text": "share of the largest"}, "range": [0, 1.05]},
    }
    return {"data": traces, "layout": layout}


def forgetting_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Drawing:
    """How much is left of a write after so many further steps, for several settings of η and λ.

    Args:
        curves: By name, the steps since the write and the share that is left of it.

    Raises:
        RangeError: There is no curve.

    Example:
        >>> from ssmn.plots.interactive import forgetting_curves
        >>> forgetting_curves({"λ = 0.1": ([1, 2], [0.9, 0.81])})["layout"]["xaxis"]["type"]
        'log'
    """
    if not curves:
        raise RangeError("forgetting_curves: there is no curve to draw; wanted at least one.")
    dashes = ("solid", "dash", "dashdot", "dot", "longdash")
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": rounded(steps), "y": rounded(left),
            "line": {"width": 2.2, "dash": dashes[number % 5]}, "hovertemplate": "%{y:.3f}",
        }
        for number, (name, (steps, left)) in enumerate(curves.items())
    ]  # fmt: skip
    layout = {
        "height": 400,
        "margin": {"l": 52, "r": 12, "t": 12, "b": 44},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {
            "type": "log", "title": {"text": "steps since the write"}, "dtick": 1, "tickformat": ",d",
            "showgrid": False,
        },
        "yaxis": {"title": {"text": "share that is left"}, "rangemode": "tozero"},
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5, "opacity": 0.6,
                "line": {"width": 1, "dash": "dot", "color": "#808890"},
            }
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def memory_distance(positions: Sequence[float], distances: Mapping[str, Sequence[float]], fork: float) -> Drawing:
    """How far the memories of two streams are apart that were one up to a fork.

    Args:
        positions: Steps of the stream.
        distances: By name, |S − S'| / (|S| + |S'|) at each position, in [0, 1].
        fork: The position at which the two parted.

    Raises:
        RangeError: There is no line.

    Example:
        >>> from ssmn.plots.interactive import memory_distance
        >>> memory_distance([8, 16], {"layer 2, head 0": [0.0, 0.3]}, fork=8)["layout"]["shapes"][0]["x0"]
        8
    """
    if not distances:
        raise RangeError("memory_distance: there is nothing to draw; wanted positions and at least one line.")
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": rounded(positions), "y": rounded(row),
            "line": {"width": 2.2}, "hovertemplate": "%{y:.3f}",
        }
        for name, row in distances.items()
    ]  # fmt: skip
    layout = {
        "height": 380,
        "margin": {"l": 52, "r": 12, "t": 12, "b": 44},
        "hovermode": "x unified",
        "showlegend": len(distances) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {"title": {"text": "position (tokens)"}, "tickformat": ",d", "showgrid": False},
        "yaxis": {"title": {"text": "distance of the memories"}, "rangemode": "tozero"},
        "shapes": [
            {
                "type": "line", "yref": "paper", "x0": fork, "x1": fork, "y0": 0, "y1": 1,
                "line": {"width": 1, "dash": "dash", "color": "#808890"},
            }
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def labels(pieces: Sequence[str], first: int = 0) -> list[str]:
    """A name for each token on an axis, its position before it, so that no two are the same."""
    shown = (visible(piece) for piece in pieces)
    cut = (text if len(text) <= _CUT else text[: _CUT - 1] + "…" for text in shown)
    # plotly.js reads tags in its labels; with the signs escaped a token is only text.
    return [f"{first + number:,} {html.escape(text, quote=False)}" for number, text in enumerate(cut)]


def packed(values: np.ndarray) -> Drawing:
    """Numbers as plotly.js takes them in little room: little-endian float32 in base64."""
    data = np.ascontiguousarray(values, dtype="<f4")
    shape = ",".join(map(str, data.shape))
    return {"dtype": "f4", "bdata": base64.b64encode(data.tobytes()).decode("ascii"), "shape": shape}


def rounded(values: Any) -> list[float | None]:
    """Numbers with four digits; what is no number becomes None."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in map(float, values)]


def _stops(colours: Sequence[str]) -> list[list[Any]]:
    return [[number / (len(colours) - 1), colour] for number, colour in enumerate(colours)]


def _axis(letter: str, number: int) -> str:
    return letter if number == 0 else f"{letter}{number + 1}"
