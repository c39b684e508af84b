"""What happens along a text: surprise, importance and energy with the text as axis, and what each token read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmn.errors import RangeError, ShapeError
from ssmn.plots.look import LIGHT, SCALE, Look, caption, colour_map, figure_of
from ssmn.plots.memory import matrix, signed_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CUT = 14
"""Characters of a token on an axis."""


def along_text(
    pieces: Sequence[str], values: Mapping[str, Sequence[float]], look: Look = LIGHT, *, first: int = 0
) -> Figure:
    """Numbers of each token, a panel for each kind, with the text itself as axis.

    Args:
        pieces: The text of each token.
        values: By name with unit, such as "surprise (bits)", a number for each token; NaN leaves a gap.
        look: Where it is to be seen.
        first: Position of the first token in its stream.

    Returns:
        Bars while every token has room for its name (96 of them, 40 in a narrow drawing), else lines, with a tick where
        a stretch of the text begins.

    Raises:
        RangeError: There is nothing to draw.
        ShapeError: A panel has not one number for each token.

    Example:
        >>> from ssmn import plots
        >>> figure = plots.along_text(["so", " it", "\\n"], {"surprise (bits)": [7.5, 2.0, 0.5]})
        >>> [label.get_text() for label in figure.axes[-1].get_xticklabels()]
        ['so', '·it', '↵']
    """
    if not pieces or not values:
        raise RangeError("along_text: there is nothing to draw; wanted tokens and at least one number for each.")
    for name, row in values.items():
        if len(row) != len(pieces):
            raise ShapeError(
                f"along_text: {name!r} has {len(row)} values; wanted one for each of {len(pieces)} tokens."
            )
    colours, place = look.colours, np.arange(len(pieces))
    single = len(pieces) <= (40 if look.narrow else 96)
    with figure_of(look, 1.9 + 1.55 * len(values), (len(values), 1), sharex=True) as (figure, axes):
        for number, (axis, (name, row)) in enumerate(zip(axes[:, 0], values.items(), strict=True)):
            colour = colours[number % len(colours)]
            title, _, unit = name.partition(" (")
            if single:
                axis.bar(place, row, color=colour, width=0.8)
            else:
                axis.plot(place, row, color=colour, linewidth=1.0)
            axis.set_title(title[:1].upper() + title[1:])
            axis.set_ylabel(unit.rstrip(")") or "no unit")
            axis.set_ylim(0, (np.nanmax(row) if np.isfinite(row).any() else 0) * 1.08 or 1.0)
            axis.grid(axis="x", visible=False)
        last = axes[-1, 0]
        last.set_xlim(-0.6, len(pieces) - 0.4)
        _text_axis(last, pieces, first, "x", 96 if single else 7 if look.narrow else 14)
        caption(figure, "along_text", look)
    return figure


def attention_maps(maps: Mapping[str, Any], pieces: Sequence[str], look: Look = LIGHT, *, first: int = 0) -> Figure:
    """What each token (a row) took from each earlier one (a column), a panel for each map.

    A map that has negative entries, such as the memory's, is drawn on a signed scale; one that has none, such as the
    window's, on a rising one.

    Args:
        maps: By name, [T, T] weights: reader by source.
        pieces: The text of the T tokens.
        look: Where it is to be seen.
        first: Position of the first token in its stream.

    Raises:
        RangeError: There is no map.
        ShapeError: One is not [T, T].

    Example:
        >>> import numpy as np
        >>> from ssmn import plots
        >>> figure = plots.attention_maps({"window, layer 0": np.tril(np.ones((3, 3)))}, ["a", " b", " c"])
        >>> figure.axes[0].get_ylabel()
        'reading token'
    """
    checked = {name: matrix("attention_maps", name, values) for name, values in maps.items()}
    if not checked:
        raise RangeError("attention_maps: there is no map to draw; wanted at least one.")
    wanted = (len(pieces), len(pieces))
    for name, values in checked.items():
        if values.shape != wanted:
            raise ShapeError(f"attention_maps: {name!r} has shape {list(values.shape)}; wanted {list(wanted)}.")
    columns = 1 if look.narrow else min(2, len(checked))
    rows = -(-len(checked) // columns)
    room = (24 if look.narrow else 40) if columns == 1 or len(pieces) <= 40 else 40
    with figure_of(look, 1.4 + rows * (4.4 if look.narrow else 4.2 if columns == 2 else 6.4), (rows, columns)) as (
        figure,
        axes,
    ):
        for axis, (name, values) in zip(axes.flat, checked.items(), strict=False):
            signed, end = bool((values < 0).any()), signed_end([np.tril(values)])
            axis.grid(visible=False)
            drawn = axis.imshow(
                values, cmap=colour_map(look.signed if signed else look.rising), vmin=-end if signed else 0, vmax=end,
                interpolation="nearest", aspect="equal",
            )  # fmt: skip
            axis.set_title(name)
            axis.set_xlabel("token that was read")
            axis.set_ylabel("reading token")
            shown = room if len(pieces) <= room else 8
            _text_axis(axis, pieces, first, "x", shown)
            _text_axis(axis, pieces, first, "y", shown)
            figure.colorbar(drawn, ax=axis, label="weight (no unit)", location="bottom", **SCALE)
        for axis in axes.flat[len(checked) :]:
            axis.set_visible(False)
        caption(figure, "attention_maps", look)
    return figure


def visible(piece: str) -> str:
    """A token with its blanks and line ends as signs; ∅ for one that ends no character."""
    return piece.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"


def _text_axis(axis: Axes, pieces: Sequence[str], first: int, which: str, room: int) -> None:
    """The text as an axis: each token, or, where there is no room for all, how the text goes on at a few of them."""
    if len(pieces) <= room:
        ticks, labels = range(len(pieces)), [_cut(visible(piece)) for piece in pieces]
    else:
        step = -(-len(pieces) // room)
        ticks = range(0, len(pieces), step)
        labels = [f"{first + tick:,} {_cut(visible(''.join(pieces[tick : tick + step])))}" for tick in ticks]
    size = "x-small" if len(pieces) <= 48 or len(pieces) > room else "xx-small"
    rotation = 90 if which == "x" else 0
    setter = axis.set_xticks if which == "x" else axis.set_yticks
    setter(ticks, [_drawable(label) for label in labels], rotation=rotation, fontsize=size, parse_math=False)
    axis.tick_params(axis=which, length=2)  # type: ignore[arg-type]


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


def _drawable(text: str) -> str:
    """The text with a box for what the font of the drawing does not have."""
    return "".join(character if ord(character) in _glyphs() else "▯" for character in text)


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont("DejaVu Sans")).get_charmap())
