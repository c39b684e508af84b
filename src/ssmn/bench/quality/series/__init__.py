"""Parts about series: systems, forecasts, chaos, anomalies, classes, updates row by row."""
