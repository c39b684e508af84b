"""Drawings for a browser: plain dictionaries that plotly.js draws, and plotly.js itself, which comes with the package.

Nothing here imports plotly's Python package, and nothing that is made here asks the network for anything.
"""

from __future__ import annotations

from importlib import resources


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
