"""What a memory holds and how long: its entries, its spectrum, how it forgets, how two of them part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmn.errors import RangeError, ShapeError
from ssmn.plots.look import LIGHT, SCALE, Look, caption, colour_map, figure_of, series_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def memory_maps(memories: Mapping[str, np.ndarray], look: Look = LIGHT, what: str = "memory_maps") -> Figure:
    """The entries of memories as signed heat maps, all on one scale with 0 in the colour of the paper.

    Args:
        memories: By name, such as "layer 2, head 0", S [K, V]: rows pre-synaptic, columns post-synaptic.
        look: Where it is to be seen.
        what: `memory_maps`, or `other_maps` for those of other layers, whose cells need not be squares.

    Returns:
        A panel for each memory, and the scale. The scale ends at the 99.5th percentile of |S|, so that one entry does
        not pale all others.

    Raises:
        RangeError: There is no memory.
        ShapeError: One has not two axes.

    Example:
        >>> import numpy as np
        >>> from ssmn import plots
        >>> figure = plots.memory_maps({"layer 2, head 0": np.eye(6, 4)})
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('value (column of S)', 'key (row of S)')
    """
    checked = {name: matrix("memory_maps", name, values) for name, values in memories.items()}
    if not checked:
        raise RangeError("memory_maps: there is no memory to draw; wanted at least one.")
    end = signed_end(list(checked.values()))
    columns = 1 if look.narrow else min(2 if len(checked) in (2, 4) else 3, len(checked))
    rows = -(-len(checked) // columns)
    with figure_of(look, 1.7 + rows * (3.6 if look.narrow else min(5.0, 8.4 / columns)), (rows, columns)) as (
        figure,
        axes,
    ):
        for axis, (name, values) in zip(axes.flat, checked.items(), strict=False):
            axis.grid(visible=False)
            drawn = axis.imshow(
                values, cmap=colour_map(look.signed), vmin=-end, vmax=end, interpolation="nearest",
                aspect="equal" if what == "memory_maps" else "auto",
            )  # fmt: skip
            axis.set_title(name)
            axis.set_xlabel("value (column of S)" if what == "memory_maps" else "column")
            axis.set_ylabel("key (row of S)" if what == "memory_maps" else "row")
        for axis in axes.flat[len(checked) :]:
            axis.set_visible(False)
        figure.colorbar(drawn, ax=list(axes.flat), label="entry (no unit)", location="bottom", **SCALE)
        caption(figure, what, look)
    return figure


def spectra(values: Mapping[str, Sequence[float]], look: Look = LIGHT) -> Figure:
    """Singular values of memories in falling order, each as a share of its largest.

    Args:
        values: By name, the singular values of S, falling.
        look: Where it is to be seen.

    Raises:
        RangeError: There is none, or one has no values.

    Example:
        >>> from ssmn import plots
        >>> figure = plots.spectra({"layer 2, head 0": [3.0, 1.5, 0.5]})
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('number of the singular value', 'share of the largest')
    """
    if not values or not all(len(falling) for falling in values.values()):
        raise RangeError("spectra: there are no singular values to draw; wanted at least one memory's.")
    with figure_of(look, 4.8 if look.narrow else 4.2) as (figure, axes):
        panel, styles = axes[0, 0], series_styles(list(values), list(values)[:1], look)
        for name, falling in values.items():
            style = {**styles[name], "markersize": 3, "markevery": max(1, len(falling) // 24)}
            panel.plot(range(1, len(falling) + 1), np.asarray(falling) / (max(falling) or 1.0), **style)
        panel.set_xlim(0.5, max(len(falling) for falling in values.values()) + 0.5)
        panel.set_ylim(0.0, 1.05)
        panel.set_xlabel("number of the singular value")
        panel.set_ylabel("share of the largest")
        panel.set_title("Singular values of the memory")
        panel.legend(loc="upper right", fontsize="small", ncols=1 if look.narrow or len(values) < 6 else 2)
        caption(figure, "spectra", look)
    return figure


def forgetting_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], look: Look = LIGHT) -> Figure:
    """How much is left of a write after so many further steps, for several settings of η and λ.

    Args:
        curves: By name, such as "λ = 0.01", the steps since the write and the share that is left of it.
        look: Where it is to be seen.

    Raises:
        RangeError: There is no curve.

    Example:
        >>> from ssmn import plots
        >>> curves = {f"λ = {rate}": ([1, 10, 100], [(1 - rate) ** n for n in (1, 10, 100)]) for rate in (0.1, 0.01)}
        >>> plots.forgetting_curves(curves).axes[0].get_xscale()
        'log'
    """
    if not curves:
        raise RangeError("forgetting_curves: there is no curve to draw; wanted at least one.")
    with figure_of(look, 5.2 if look.narrow else 4.4) as (figure, axes):
        panel, styles = axes[0, 0], series_styles(list(curves), list(curves)[:1], look)
        for name, (steps, left) in curves.items():
            panel.plot(steps, left, **{**styles[name], "markevery": max(1, len(steps) // 8)})
        panel.axhline(0.5, color=look.muted, linewidth=1, linestyle=":")
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:,.0f}k")
        panel.set_ylim(0.0, 1.05)
        panel.set_xlabel("steps since the write")
        panel.set_ylabel("share that is left")
        panel.set_title("Forgetting")
        panel.legend(loc="lower left", fontsize="small")
        caption(figure, "forgetting_curves", look)
    return figure


def memory_distance(
    positions: Sequence[float], distances: Mapping[str, Sequence[float]], fork: float, look: Look = LIGHT
) -> Figure:
    """How far the memories of two streams are apart that were one up to a fork.

    Args:
        positions: Steps of the stream.
        distances: By name, such as "layer 2", |S − S'| / (|S| + |S'|) at each position, in [0, 1].
        fork: The position at which the two parted.
        look: Where it is to be seen.

    Raises:
        RangeError: There is nothing to draw.
        ShapeError: A line has not one value for each position.

    Example:
        >>> from ssmn import plots
        >>> plots.memory_distance([0, 8, 16], {"layer 2": [0.0, 0.0, 0.3]}, fork=8).axes[0].get_xlabel()
        'position (tokens)'
    """
    if not distances or not len(positions):
        raise RangeError("memory_distance: there is nothing to draw; wanted positions and at least one line.")
    for name, values in distances.items():
        if len(values) != len(positions):
            raise ShapeError(
                f"memory_distance: {name!r} has {len(values)} values; wanted {len(positions)}, one a position."
            )
    with figure_of(look, 4.8 if look.narrow else 4.2) as (figure, axes):
        panel, styles = axes[0, 0], series_styles(list(distances), list(distances)[:1], look)
        for name, values in distances.items():
            panel.plot(positions, values, **{**styles[name], "markevery": max(1, len(values) // 12)})
        panel.axvline(fork, color=look.muted, linewidth=1.2, linestyle="--")
        panel.annotate(
            "fork", (fork, 1), (4, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", fontsize="small", color=look.muted,
        )  # fmt: skip
        panel.set_xlim(min(positions), max(positions))
        panel.set_ylim(0.0, 1.2 * max(max(values) for values in distances.values()) or 1.0)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.set_xlabel("position (tokens)")
        panel.set_ylabel("distance of the memories\n(0 = equal, 1 = opposite)")
        panel.set_title("Two streams after a fork")
        panel.legend(loc="upper left", fontsize="small")
        caption(figure, "memory_distance", look)
    return figure


def matrix(owner: str, name: str, values: Any) -> np.ndarray:
    """The values as [rows, columns].

    Raises:
        ShapeError: They have not two axes, or an empty one.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        shape = list(array.shape)
        raise ShapeError(f"{owner}: {name!r} has shape {shape}; wanted two axes, rows and columns, neither empty.")
    return array


def signed_end(matrices: Sequence[np.ndarray]) -> float:
    """Where a signed scale ends: the 99.5th percentile of |entry|, the largest if that is 0; 1 if all are 0."""
    sizes = np.abs(np.concatenate([values.ravel() for values in matrices]))
    return float(np.quantile(sizes, 0.995)) or float(sizes.max()) or 1.0
