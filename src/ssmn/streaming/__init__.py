"""Endless input through a model in constant memory: surprise of text, predictions for rows of numbers.

What `ssmn stream` does, for Python users. Input is taken as it arrives: whatever is there is read in
one go, and its results come out before the next wait.
"""

from ssmn.streaming.rows import RowPrediction, RowReader, output_names, row_predictions
from ssmn.streaming.source import PIECE, READ_BYTES, ByteSource, Lines
from ssmn.streaming.text import (
    ByteSurprise,
    LineSurprise,
    byte_surprise,
    line_surprise,
    surprise_bits,
    token_bits,
    token_pieces,
)

__all__ = [
    "PIECE",
    "READ_BYTES",
    "ByteSource",
    "ByteSurprise",
    "LineSurprise",
    "Lines",
    "RowPrediction",
    "RowReader",
    "byte_surprise",
    "line_surprise",
    "output_names",
    "row_predictions",
    "surprise_bits",
    "token_bits",
    "token_pieces",
]
