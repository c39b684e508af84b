"""Bytes as they arrive: lines, and what is there of them without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from ssmn.errors import FileError

T = TypeVar("T")

READ_BYTES = 1 << 16
"""Bytes read at once; a longer line is taken in pieces of this size."""
PIECE = 1024
"""Steps that are gathered before the model takes them, if that many are there."""


class ByteSource(Protocol):
    """A binary stream such as `sys.stdin.buffer`, `open(path, "rb")` or `io.BytesIO(data)`."""

    def read1(self, size: int, /) -> bytes: ...


class Waits(Protocol):
    """Items that may have to be waited for."""

    @property
    def waiting(self) -> bool:
        """Whether the next item would have to be waited for."""
        ...


class Lines:
    """Lines of a byte source, and how many of them are there without waiting."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._ready: deque[bytes] = deque()
        self._rest = b""
        self._ended = False

    @property
    def waiting(self) -> bool:
        """Whether the next line would have to be waited for."""
        return not self._ready

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._ready:
            if self._ended:
                raise StopIteration
            chunk = self._source.read1(READ_BYTES)
            self._ended = not chunk
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._ready.extend(line + b"\n" for line in lines)
            if self._rest and (self._ended or len(self._rest) >= READ_BYTES):
                self._ready.append(self._rest)
                self._rest = b""
        return self._ready.popleft()


def batches(items: Iterator[T], source: Waits, steps: Callable[[T], int]) -> Iterator[list[T]]:
    """Groups what is there without waiting; a failure is raised after the group that came before it."""
    ended, failure = False, None
    while not ended:
        batch: list[T] = []
        taken = 0
        try:
            while taken < PIECE and not (batch and source.waiting):
                batch.append(next(items))
                taken += steps(batch[-1])
        except StopIteration:
            ended = True
        except FileError as error:
            ended, failure = True, error
        if batch:
            yield batch
    if failure is not None:
        raise failure
