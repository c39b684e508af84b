"""Surprise of text as it arrives."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssmn.config import Plasticity
from ssmn.errors import FileError
from ssmn.stream import Stream
from ssmn.streaming.source import PIECE, ByteSource, Lines, batches

if TYPE_CHECKING:
    from ssmn.training.tokenizer import Tokenizer

LONGEST_PIECE = 2 * PIECE
"""Steps that the model takes at once at most."""


@dataclass(frozen=True)
class LineSurprise:
    """How surprising one line was."""

    line: int
    """Number of the line, from 1."""
    bytes: int
    """Its length, the line feed included."""
    bits: float
    """Σ −log2 p of its tokens, the line feed's included."""
    text: str
    """The line without its line feed; of a line longer than `READ_BYTES` the beginning."""

    @property
    def bits_per_byte(self) -> float:
        """Surprise per byte."""
        return self.bits / self.bytes


@dataclass(frozen=True)
class ByteSurprise:
    """How surprising one byte was; a token's bits are shared equally by its bytes."""

    offset: int
    """Position in the input, from 0."""
    byte: int
    """Its value, 0 to 255."""
    bits: float
    """Its share of −log2 p of the token it belongs to."""


def token_bits(
    stream: Stream, tokens: np.ndarray | Sequence[int], *, plasticity: Plasticity | None = None
) -> np.ndarray:
    """Surprise of tokens[1:], each predicted from all that came before it.

    The last token is predicted and not yet read, so the next call begins with it.

    Args:
        stream: A `Stream` over a text model, one row; it moves on by len(tokens) − 1 tokens.
        tokens: [T + 1] token numbers; the first was predicted before.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        −log2 p, [T] float64.

    Example:
        >>> import ssmn
        >>> from ssmn.streaming import token_bits
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> stream = ssmn.Stream(ssmn.TextSSMN(config))
        >>> token_bits(stream, [1, 2, 3, 4]).shape, stream.position.tolist()
        ((3,), [3])
    """
    numbers = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    bits = np.empty(max(0, len(numbers) - 1))
    for start in range(0, len(bits), LONGEST_PIECE):
        piece = numbers[start : start + LONGEST_PIECE + 1]
        logits = stream.push(piece[:-1].unsqueeze(0), plasticity=plasticity)
        bits[start : start + LONGEST_PIECE] = surprise_bits(logits[0], piece[1:]).numpy()
    return bits


def token_pieces(tokenizer: Tokenizer, source: ByteSource) -> Iterator[np.ndarray]:
    """The tokens of a text as it arrives, some thousand at a time, in constant memory.

    Args:
        tokenizer: What to encode with.
        source: UTF-8 text (any bytes for the byte tokenizer); read until it ends.

    Returns:
        An iterator of token numbers, [T] each.

    Raises:
        FileError: A line is not UTF-8; what came before it has been given.

    Example:
        >>> import io
        >>> from ssmn.streaming import token_pieces
        >>> from ssmn.training import Tokenizer
        >>> pieces = token_pieces(Tokenizer.for_bytes(), io.BytesIO(b"a\\nbc"))
        >>> [token for piece in pieces for token in piece.tolist()]
        [97, 10, 98, 99]
    """
    lines = Lines(source)
    for batch in batches(_encoded(lines, tokenizer), lines, lambda item: len(item[1])):
        yield np.concatenate([tokens for _, tokens in batch])


def surprise_bits(logits: Tensor, targets: Tensor) -> Tensor:
    """−log2 p of the targets: logits [.., vocabulary], targets [..] to [..]."""
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    return nats.view(targets.shape) / math.log(2.0)


def line_surprise(
    stream: Stream, tokenizer: Tokenizer, source: ByteSource, *, plasticity: Plasticity | None = None
) -> Iterator[LineSurprise]:
    """How surprising each line of a text is to a model that learns as it reads.

    A stream stands at the end of a line: the line feed before the input is read first, and one that
    ends the input is scored and left to the next call. So a text cut at line ends, each part going on
    from the state of the one before, gives the numbers of the whole text.

    Args:
        stream: A `Stream` over a text model, one row; it moves on as results are taken.
        tokenizer: The model's.
        source: UTF-8 text (any bytes for the byte tokenizer); read until it ends.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        An iterator of results, as the input arrives.

    Raises:
        FileError: A line is not UTF-8; what came before it has been read and answered.

    Example:
        >>> import io, ssmn
        >>> from ssmn.streaming import line_surprise
        >>> from ssmn.training import Tokenizer
        >>> config = ssmn.TextSSMNConfig(vocab_size=256, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> stream = ssmn.Stream(ssmn.TextSSMN(config))
        >>> source = io.BytesIO("one and\\ntwo".encode())
        >>> [(line.line, line.bytes) for line in line_surprise(stream, Tokenizer.for_bytes(), source)]
        [(1, 8), (2, 3)]
    """
    number, start, bits, length = 1, b"", 0.0, 0
    for line, _, piece_bits in _surprise(stream, tokenizer, source, plasticity):
        start = start or line
        bits += float(piece_bits.sum())
        length += len(line)
        if line.endswith(b"\n"):
            yield LineSurprise(number, length, bits, _readable(start))
            number, start, bits, length = number + 1, b"", 0.0, 0
    if length:
        yield LineSurprise(number, length, bits, _readable(start))


def byte_surprise(
    stream: Stream, tokenizer: Tokenizer, source: ByteSource, *, plasticity: Plasticity | None = None
) -> Iterator[ByteSurprise]:
    """How surprising each byte of a text is; otherwise as `line_surprise`.

    Args:
        stream: A `Stream` over a text model, one row; it moves on as results are taken.
        tokenizer: The model's.
        source: UTF-8 text (any bytes for the byte tokenizer); read until it ends.
        plasticity: How strongly to learn and forget while reading.

    Returns:
        An iterator of results, as the input arrives.

    Raises:
        FileError: A line is not UTF-8; what came before it has been read and answered.

    Example:
        See `line_surprise`.
    """
    offset = 0
    for _, tokens, bits in _surprise(stream, tokenizer, source, plasticity):
        lengths = tokenizer.byte_lengths[tokens]
        shares = np.repeat(bits / np.maximum(lengths, 1), lengths)
        for byte, share in zip(tokenizer.decode_bytes(tokens), shares.tolist(), strict=True):
            yield ByteSurprise(offset, byte, share)
            offset += 1


def _surprise(
    stream: Stream, tokenizer: Tokenizer, source: ByteSource, plasticity: Plasticity | None
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Each line (or piece of a very long one) with its tokens and their bits."""
    lines = Lines(source)
    last = tokenizer.line_end
    for batch in batches(_encoded(lines, tokenizer), lines, lambda item: len(item[1])):
        tokens = np.concatenate([last, *(piece for _, piece in batch)])
        bits = token_bits(stream, tokens, plasticity=plasticity)
        last = tokens[-1:]
        ends = np.cumsum([len(piece) for _, piece in batch])
        for (line, piece), piece_bits in zip(batch, np.split(bits, ends[:-1]), strict=True):
            yield line, piece, piece_bits


def _encoded(lines: Iterator[bytes], tokenizer: Tokenizer) -> Iterator[tuple[bytes, np.ndarray]]:
    """Each line (or piece of a very long one) with its tokens."""
    if tokenizer.kind == "bytes":
        yield from ((line, tokenizer.encode(line)) for line in lines)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    for line in lines:
        try:
            yield line, tokenizer.encode(decoder.decode(line))
        except UnicodeDecodeError as error:
            raise FileError(
                f"line {number}: byte {error.object[error.start]:#04x} is not UTF-8; wanted UTF-8 text, or a model "
                f"with the byte tokenizer."
            ) from error
        number += line.endswith(b"\n")
    if decoder.getstate()[0]:
        raise FileError(f"line {number}: the input ends inside a UTF-8 character; wanted whole UTF-8 text.")


def _readable(line: bytes) -> str:
    return line.removesuffix(b"\n").decode("utf-8", "replace")
