"""The report of `ssmn inspect`: one HTML file that opens from disk and asks the network for nothing."""

from ssmn.plots.report.page import About, write_report
from ssmn.plots.report.reading import Head, Holdings, Reading, Token, holdings, read, window_weights

__all__ = ["About", "Head", "Holdings", "Reading", "Token", "holdings", "read", "window_weights", "write_report"]
