"""A whole model in one arena, stepped by one C call: numpy and the C library alone."""

from ssmn.engine.engine import Engine

__all__ = ["Engine"]
