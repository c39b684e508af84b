"""Tasks on tables and time series: reading tables, forecasting, anomalies."""

from ssmn.series.detect import Detection, Detections, Detector, DetectorConfig
from ssmn.series.forecast import Forecaster
from ssmn.series.forecasts import Backtest, Choice, Forecast, ForecasterConfig
from ssmn.series.tables import BadRow, Row, Table, TableRows, read_table, rows_from

__all__ = [
    "Backtest",
    "BadRow",
    "Choice",
    "Detection",
    "Detections",
    "Detector",
    "DetectorConfig",
    "Forecast",
    "Forecaster",
    "ForecasterConfig",
    "Row",
    "Table",
    "TableRows",
    "read_table",
    "rows_from",
]
