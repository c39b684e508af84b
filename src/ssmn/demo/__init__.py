"""The demonstrations: real streams through small shipped models, with a report that opens from disk."""
