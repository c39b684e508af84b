"""Tasks on tables and time series: reading tables, forecasting."""

from ssmn.series.tables import BadRow, Row, Table, TableRows, read_table, rows_from

__all__ = ["BadRow", "Row", "Table", "TableRows", "read_table", "rows_from"]
