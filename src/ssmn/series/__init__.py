"""Tasks on tables and time series: reading tables, forecasting, anomalies."""

from ssmn.series.detect import Detection, Detections, Detector, DetectorConfig
from ssmn.series.tables import BadRow, Row, Table, TableRows, read_table, rows_from

__all__ = [
    "BadRow",
    "Detection",
    "Detections",
    "Detector",
    "DetectorConfig",
    "Row",
    "Table",
    "TableRows",
    "read_table",
    "rows_from",
]
