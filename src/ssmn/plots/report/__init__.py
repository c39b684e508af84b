"""The report of `ssmn inspect`: one HTML file that opens from disk and asks the network for nothing."""

from ssmn.plots.report.page import About, write_report
from ssmn.plots.report.parting import Parting, part
from ssmn.plots.report.pictures import pictures
from ssmn.plots.report.reading import Head, Holdings, Part, Reading, Token, holdings, quoted, read, window_weights

__all__ = [
    "About",
    "Head",
    "Holdings",
    "Part",
    "Parting",
    "Reading",
    "Token",
    "holdings",
    "part",
    "pictures",
    "quoted",
    "read",
    "window_weights",
    "write_report",
]
