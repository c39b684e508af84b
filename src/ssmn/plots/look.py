"""Where a drawing is to be seen: colours, type, the frame of a figure, and what several drawings share."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssmn.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
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

    @property
    def signed(self) -> tuple[str, ...]:
        """Five stops from the most negative (blue) over 0, which is the paper itself, to the most positive (orange).

        Away from 0 the lightness changes one way on both sides, so the scale also reads without colour.
        """
        if self.dark:
            return ("#c4e8ff", "#3f93c4", self.paper, "#c47d12", "#ffe2ad")
        return ("#023d61", "#4698cb", self.paper, "#dd8a33", "#6b3600")

    @property
    def rising(self) -> tuple[str, ...]:
        """Three stops from 0, which is the paper itself, to the most (blue)."""
        return (self.paper, "#3f93c4", "#c4e8ff") if self.dark else (self.paper, "#4698cb", "#023d61")


LIGHT = Look()
"""On white paper, wide."""

SCALE: dict[str, Any] = {"shrink": 0.6, "aspect": 34, "pad": 0.02}
"""How the bar of a colour scale stands below its maps."""

CAPTIONS = {
    "memory_maps": "Bright rows and columns: what is written often. A map without structure holds many patterns laid "
    "over each other; an empty one has forgotten. Blue is negative, orange positive.",
    "other_maps": "What changes from one state to another, and what is empty: slots and rows in which nothing was "
    "stored have the colour of the paper. Blue is negative, orange positive.",
    "spectra": "How far the line stays up. Each step is one direction that the memory can tell apart: a line that "
    "falls at once holds few patterns, one that stays level to the right edge is full.",
    "along_text": "Peaks: surprising tokens are new to the model, important ones are written firmly. The energy rises "
    "where much is new and levels off where writing and forgetting balance.",
    "attention_maps": "How far from the diagonal each map reaches: the window sees a band of fixed width and nothing "
    "before it, the memory draws on any earlier token. Blue takes away: a later write corrected it.",
    "forgetting_curves": "Where a line crosses one half: that is the half-life. A larger λ moves it to the left, a "
    "larger η overwrites sooner.",
    "memory_distance": "How soon the lines rise after the fork: the two streams are equal up to it, and their memories "
    "part as they read different things.",
}
"""By the name of the drawing: what to look for in it."""


@contextmanager
def figure_of(look: Look, height: float, panels: tuple[int, int] = (1, 1), **grid: Any) -> Iterator[tuple[Figure, Any]]:
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


def colour_map(stops: Sequence[str]) -> Colormap:
    """A scale of colours from evenly spaced stops."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ssmn", list(stops), N=257)  # odd, so that 0 has a colour of its own


def caption(figure: Figure, name: str, look: Look) -> None:
    """What to look for, below the figure."""
    text = "\n".join(textwrap.wrap("What to look for: " + CAPTIONS[name], 58 if look.narrow else 124))
    figure.supxlabel(text, x=0.015, ha="left", fontsize="small", color=look.muted, linespacing=1.35)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, with a palette of 256 colours (a third of the size)."""
    from PIL import Image  # comes with matplotlib

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return packed.getvalue()


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """The series of one panel, named below the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.4)


def room_above(axes: Axes, share: float = 0.25) -> None:
    """Axis from zero, with room above the data."""
    axes.set_ylim(0, axes.dataLim.y1 * (1 + share))


def running_median(values: Sequence[float], width: int) -> list[float]:
    half = width // 2
    windows = (sorted(values[max(0, i - half) : i + half + 1]) for i in range(len(values)))
    return [window[len(window) // 2] for window in windows]


def foot_note(axes: Axes, place: float, text: str, look: Look) -> None:
    """A word at the foot of a panel."""
    room = {"boxstyle": "round,pad=0.15", "facecolor": look.paper, "edgecolor": "none", "alpha": 0.85}
    axes.text(
        place, 0.04, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize="small",
        color=look.ink, bbox=room,
    )  # fmt: skip


def concise_dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(axis="x", rotation=0)


def series_styles(names: Sequence[str], ours: Collection[str], look: Look) -> dict[str, dict[str, Any]]:
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


def short_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
