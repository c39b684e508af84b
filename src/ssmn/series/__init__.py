"""Tasks on tables and time series: reading tables, forecasting."""

from ssmn.series.forecast import Backtest, Choice, Forecast, Forecaster, ForecasterConfig
from ssmn.series.tables import BadRow, Row, Table, TableRows, read_table, rows_from

__all__ = [
    "Backtest",
    "BadRow",
    "Choice",
    "Forecast",
    "Forecaster",
    "ForecasterConfig",
    "Row",
    "Table",
    "TableRows",
    "read_table",
    "rows_from",
]
