"""Drawings by their structure: panels, labels, ranges; for files and for browsers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ssmn import plots
from ssmn.errors import RangeError, ShapeError
from ssmn.plots import interactive
from ssmn.plots.look import CAPTIONS

LOOKS = [plots.Look(), plots.Look(dark=True, narrow=True)]
PIECES = ["The", " mem", "ory", "\n", "$5", " 記", ""]
MAP = np.tril(np.linspace(-0.3, 1.0, 49).reshape(7, 7))
STEPS, LEFT = [1, 10, 100], [0.9, 0.4, 0.01]


def captions(figure: Any) -> str:
    return figure.get_supxlabel().replace("\n", " ")


DRAWINGS: dict[str, Callable[[plots.Look], Any]] = {
    "memory_maps": lambda look: plots.memory_maps({"layer 2, head 0": np.eye(6, 4), "layer 2, head 1": -MAP}, look),
    "spectra": lambda look: plots.spectra({"layer 2, head 0": [4.0, 2.0, 1.0], "layer 2, head 1": [0.0, 0.0]}, look),
    "along_text": lambda look: plots.along_text(PIECES, {"surprise (bits)": [np.nan, *range(6)]}, look),
    "attention_maps": lambda look: plots.attention_maps({"memory": MAP, "window": np.abs(MAP)}, PIECES, look),
    "forgetting_curves": lambda look: plots.forgetting_curves({"λ = 0.1": (STEPS, LEFT)}, look),
    "memory_distance": lambda look: plots.memory_distance([0, 5, 9], {"layer 2": [0, 0, 0.4]}, 5, look),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_has_labels_with_units_and_says_what_to_look_for(name: str, look: plots.Look) -> None:
    figure = DRAWINGS[name](look)
    assert captions(figure) == f"What to look for: {CAPTIONS[name]}"
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>" and axes.get_visible()]
    assert panels
    assert all(axes.get_ylabel() for axes in panels)
    assert panels[-1].get_xlabel() or name == "along_text"
    assert figure.get_facecolor()[:3] == pytest.approx(
        tuple(int(look.paper[n : n + 2], 16) / 255 for n in (1, 3, 5)), abs=1e-6
    )
    if look.narrow:
        assert plots.png(figure).startswith(b"\x89PNG")


def test_zero_has_the_colour_of_the_paper_and_the_scale_is_symmetric() -> None:
    for look in LOOKS:
        (image,) = plots.memory_maps({"one": np.array([[0.0, 3.0], [-1.0, 0.5]])}, look).axes[0].get_images()
        low, high = image.get_clim()
        assert low == -high
        assert image.cmap(image.norm(np.array(0.0)))[:3] == pytest.approx(
            tuple(int(look.paper[n : n + 2], 16) / 255 for n in (1, 3, 5)), abs=0.01
        )
        lightness = [sum(image.cmap(image.norm(value))[:3]) for value in np.linspace(low, high, 9)]
        one_way = np.sign(np.diff(lightness))
        assert set(one_way[:4]) == {-one_way[-1]} and set(one_way[4:]) == {one_way[-1]}


def test_one_large_entry_does_not_pale_the_rest() -> None:
    memory = np.full((40, 30), 0.1)
    memory[3, 4] = 100.0
    (image,) = plots.memory_maps({"one": memory}).axes[0].get_images()
    assert image.get_clim() == (pytest.approx(-0.1), pytest.approx(0.1))
    (empty,) = plots.memory_maps({"empty": np.zeros((3, 2))}).axes[0].get_images()
    assert empty.get_clim() == (-1.0, 1.0)


def test_the_text_is_the_axis() -> None:
    figure = plots.along_text(PIECES, {"surprise (bits)": range(7), "importance (0 to 1)": [0.2] * 7}, first=40)
    surprise, importance = figure.axes
    # What the font lacks is a box, a token without a character ∅; $ starts no formula.
    assert [label.get_text() for label in importance.get_xticklabels()] == ["The", "·mem", "ory", "↵", "$5", "·▯", "∅"]
    assert not any(label.get_parse_math() for label in importance.get_xticklabels())
    assert (surprise.get_title(loc="left"), surprise.get_ylabel()) == ("Surprise", "bits")
    assert surprise.get_ylim() == (0.0, pytest.approx(6 * 1.08))
    assert len(surprise.patches) == 7
    long = plots.along_text(["word "] * 300, {"surprise (bits)": range(300)}, first=40).axes[0]
    assert not long.patches and len(long.lines) == 1
    ticks = [label.get_text() for label in long.get_xticklabels()]
    assert ticks[:2] == ["40 word·word·wor…", "62 word·word·wor…"] and len(ticks) <= 14


def test_a_map_with_negative_weights_is_signed_and_one_without_rises() -> None:
    memory, window = plots.attention_maps({"memory": MAP, "window": np.abs(MAP)}, PIECES).axes[:2]
    low, high = memory.get_images()[0].get_clim()
    assert low == -high < 0
    assert window.get_images()[0].get_clim()[0] == 0


def test_distance_and_forgetting_mark_what_matters() -> None:
    panel = plots.memory_distance([0, 5, 9], {"layer 2": [0, 0, 0.4]}, 5).axes[0]
    assert [np.asarray(line.get_xdata())[0] for line in panel.lines if line.get_linestyle() == "--"] == [5]
    assert panel.get_ylim() == (0.0, pytest.approx(0.48))
    half = plots.forgetting_curves({"a": (STEPS, LEFT)}).axes[0].lines[-1]
    assert np.asarray(half.get_ydata())[0] == 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.memory_maps({}), RangeError, "memory_maps: there is no memory to draw"),
        (lambda: plots.memory_maps({"a": np.zeros(3)}), ShapeError, r"'a' has shape \[3\]; wanted two axes"),
        (lambda: plots.spectra({"a": []}), RangeError, "spectra: there are no singular values"),
        (lambda: plots.along_text([], {}), RangeError, "along_text: there is nothing to draw"),
        (lambda: plots.along_text(PIECES, {"a": [1]}), ShapeError, "'a' has 1 values; wanted one for each of 7"),
        (lambda: plots.attention_maps({}, []), RangeError, "there is no map to draw"),
        (lambda: plots.attention_maps({"a": MAP}, ["x"]), ShapeError, r"'a' has shape \[7, 7\]; wanted \[1, 1\]"),
        (lambda: plots.forgetting_curves({}), RangeError, "there is no curve to draw"),
        (lambda: plots.memory_distance([], {}, 0), RangeError, "memory_distance: there is nothing to draw"),
        (lambda: plots.memory_distance([1, 2], {"a": [0]}, 0), ShapeError, "'a' has 1 values; wanted 2"),
        (lambda: interactive.memory_distance([], {}, 0), RangeError, "memory_distance: there is nothing to draw"),
        (lambda: interactive.along_text([], {}), RangeError, "along_text: there is nothing to draw"),
        (lambda: interactive.along_text(PIECES, {"a": [1]}), ShapeError, "'a' has 1 values"),
        (lambda: interactive.attention_map(MAP, ["x"]), ShapeError, r"weights has shape \[7, 7\]; wanted \[1, 1\]"),
        (lambda: interactive.spectra({}), RangeError, "spectra: there are no singular values"),
        (lambda: interactive.forgetting_curves({}), RangeError, "there is no curve to draw"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_drawings_for_a_browser_are_plain_values_without_colours() -> None:
    drawings = [
        interactive.memory_map(np.eye(5, 3)),
        interactive.attention_map(MAP, PIECES),
        interactive.attention_map(np.abs(MAP), PIECES),
        interactive.along_text(PIECES, {"surprise (bits)": [np.nan, *range(6)], "energy": range(7)}),
        interactive.spectra({"a": [2, 1], "b": [0, 0]}, chosen="b"),
        interactive.forgetting_curves({"a": (STEPS, LEFT)}),
        interactive.memory_distance([0, 5, 9], {"layer 2": [0, 0, 0.4]}, 5),
    ]
    for drawing in drawings:
        text = json.dumps(drawing, allow_nan=False)
        assert set(drawing) == {"data", "layout"}
        assert "http" not in text
        # A grey line at one half is the same in light and dark.
        assert set(re.findall(r'"#\w{6}"', text)) <= {'"#808890"'}
    assert drawings[0]["layout"]["coloraxis"] == {"cmin": -1.0, "cmax": 1.0}
    signed, rising = drawings[1:3]
    assert signed["data"][0]["coloraxis"] == "coloraxis"
    assert rising["layout"]["coloraxis2"]["cmin"] == 0
    assert drawings[3]["data"][0]["y"] == [None, 0, 1, 2, 3, 4, 5]
    assert drawings[3]["data"][1]["yaxis"] == "y2" and "yaxis2" in drawings[3]["layout"]


def test_packed_numbers_come_back() -> None:
    values = np.arange(6, dtype=np.float64).reshape(2, 3) / 7
    packed = interactive.packed(values)
    assert (packed["dtype"], packed["shape"]) == ("f4", "2,3")
    back = np.frombuffer(base64.b64decode(packed["bdata"]), "<f4").reshape(2, 3)
    np.testing.assert_array_equal(back, values.astype(np.float32))


def test_a_token_is_text_on_an_axis_and_no_two_labels_are_equal() -> None:
    assert interactive.labels(["<b>", "&", " a\n", "a very long token"], first=1234) == [
        "1,234 &lt;b&gt;", "1,235 &amp;", "1,236 ·a↵", "1,237 a·very·long…",
    ]  # fmt: skip
    assert len(set(interactive.labels(["x"] * 50))) == 50


def test_plotly_comes_along_with_its_licence() -> None:
    source = interactive.plotly_js()
    assert "plotly.js (cartesian - minified) v4.1.1" in source[:200]
    assert len(source) < 2_000_000
    assert "</script" not in source and "<!--" not in source
