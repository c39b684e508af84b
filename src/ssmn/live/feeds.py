"""Where a live view's steps come from: a file, standard input, a socket, or what comes with the library.

What is named by the one who starts the program is the only thing that is ever opened. A feed is read by a thread of its
own into a buffer of bounded size, from which each session takes at its own pace; a fork goes on where its parent is.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ssmn.config import SSMNConfig
from ssmn.errors import FileError, RangeError, SSMNError
from ssmn.files import shipped_model
from ssmn.series import rows_from
from ssmn.streaming import ByteSource, token_pieces

if TYPE_CHECKING:
    from ssmn.training import Tokenizer

Steps = NDArray[Any]
"""Token numbers [T], or rows [T, input_dim] with NaN for what is missing."""

AHEAD = 4096
"""Steps that a feed reads ahead of the session that is furthest on."""
KEPT = 1 << 20
"""Tokens (or numbers of rows) that a feed keeps for sessions that are behind; what is older, they miss."""
CONNECT_SECONDS = 10.0
ROWS_AT_ONCE = 256
LONGEST_NAME = 40
"""Characters of a column's name that are shown."""


class Feed:
    """Steps of one source, read as they are wanted and shared by the sessions that follow it.

    Args:
        pieces: Opens the source: an iterator of steps, called and drawn from in the feed's own thread.
        closing: What wakes that thread when it waits for input and is no longer wanted.
        columns: Names of the columns, of rows; the list is the source's, which puts in what its header says.
        lasting: Whether it goes on when its last reader leaves, as what cannot be opened again must.

    Example:
        >>> import numpy
        >>> from ssmn.live.feeds import Feed
        >>> reader = Feed(lambda: iter([numpy.arange(5)])).reader()
        >>> reader.wait(1.0)
        True
        >>> reader.take(3).tolist(), reader.take(9).tolist()
        ([0, 1, 2], [3, 4])
    """

    def __init__(
        self,
        pieces: Callable[[], Iterator[Steps]],
        closing: Callable[[], None] | None = None,
        columns: Sequence[str] = (),
        *,
        lasting: bool = False,
    ) -> None:
        self._pieces, self._closing, self._lasting = pieces, closing, lasting
        self.columns = columns
        self._changed = threading.Condition()
        self._buffer: deque[Steps] = deque()
        self._start = self._end = 0
        self._readers: set[Reader] = set()
        self._thread: threading.Thread | None = None
        self._ended = self._closed = False
        self.trouble: str | None = None
        """Why the source broke off, if it did."""

    def reader(self) -> Reader:
        """A reader that begins with what comes next; the first one starts the feed."""
        return self._join(self._end)

    def close(self) -> None:
        """Stops reading."""
        with self._changed:
            self._closed = self._ended = True
            self._changed.notify_all()
        if self._closing is not None:
            self._closing()

    def _join(self, at: int) -> Reader:
        with self._changed:
            reader = Reader(self, at)
            self._readers.add(reader)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ssmn-feed", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return reader

    def _leave(self, reader: Reader) -> None:
        with self._changed:
            self._readers.discard(reader)
            last = not self._readers
            self._changed.notify_all()
        if last and not self._lasting:
            self.close()

    def _run(self) -> None:
        pieces: Iterator[Steps] = iter(())
        try:
            pieces = self._pieces()
            for piece in pieces:
                with self._changed:
                    self._put(piece)
                    while not self._closed and self._is_ahead():
                        self._changed.wait()
                    if self._closed:
                        return
        except (SSMNError, OSError, EOFError, lzma.LZMAError) as error:
            if not self._closed:
                self.trouble = " ".join(str(error).split())
        finally:
            if isinstance(pieces, Generator):
                pieces.close()  # closes what it reads
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_ahead(self) -> bool:
        return not self._readers or self._end - max(reader.at for reader in self._readers) > AHEAD

    def _put(self, piece: Steps) -> None:
        if not len(piece):
            return
        self._buffer.append(piece)
        self._end += len(piece)
        width = math.prod(piece.shape[1:])
        while self._end - self._start > max(AHEAD, KEPT // width) + len(self._buffer[0]):
            self._start += len(self._buffer.popleft())
        self._changed.notify_all()

    def _copy(self, at: int, most: int) -> Steps | None:
        """Steps from `at` on, which is inside the buffer or at its end."""
        taken: list[Steps] = []
        start, left = self._start, most
        for piece in self._buffer:
            if left and start + len(piece) > at:
                part = piece[max(0, at - start) :][:left]
                taken.append(part)
                left -= len(part)
            start += len(piece)
        return np.concatenate(taken) if taken else None


class Reader:
    """One session's place in a feed."""

    def __init__(self, feed: Feed, at: int) -> None:
        self.feed, self.at = feed, at
        self.missed = 0
        """Steps that had been dropped before they were read."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of rows, as far as they are known; empty for text."""
        return tuple(self.feed.columns)

    @property
    def waiting(self) -> int:
        """Steps that can be taken at once."""
        return max(0, self.feed._end - max(self.at, self.feed._start))

    @property
    def ended(self) -> bool:
        """Whether everything has been taken and nothing comes any more."""
        with self.feed._changed:
            return self.feed._ended and not self.waiting

    @property
    def trouble(self) -> str | None:
        """Why the source broke off, if it did."""
        return self.feed.trouble

    def take(self, most: int) -> Steps | None:
        """The next steps that are there, at most so many; None if there is none. Never waits."""
        with self.feed._changed:
            late = self.feed._start - self.at
            if late > 0:
                self.at += late
                self.missed += late
            steps = self.feed._copy(self.at, most)
            if steps is not None:
                self.at += len(steps)
                self.feed._changed.notify_all()
            return steps

    def wait(self, seconds: float) -> bool:
        """Waits until there is something to take, or the end is known; whether there is something to take."""
        with self.feed._changed:
            self.feed._changed.wait_for(lambda: self.waiting or self.feed._ended, seconds)
            return self.waiting > 0

    def fork(self) -> Reader:
        """A reader at the same place that goes on by itself."""
        return self.feed._join(self.at)

    def close(self) -> None:
        """Leaves the feed."""
        self.feed._leave(self)


@dataclass(frozen=True)
class Source:
    """What the one who started the program named; `reader()` gives a session its steps.

    A file or a built-in text begins anew for every session. What arrives by itself (standard input, a socket) is one
    feed that all sessions share: each sees what comes from its own start on.
    """

    name: str
    """What to call it."""
    live: bool
    """Whether it arrives by itself."""
    open: Callable[[], Feed]
    """The feed: a new one, or of a live source the one there is."""

    def reader(self) -> Reader:
        """A reader for a new session."""
        return self.open().reader()


def source_for(where: str | None, config: Any, tokenizer: Tokenizer | None) -> Source:
    """The source that a command line names, for a model.

    Args:
        where: A file, `-` (standard input), `tcp://host:port` (connects and reads), or None: the text, or the sensor's
            readings, that come with the library.
        config: The model's.
        tokenizer: Of a text model.

    Raises:
        RangeError: The address is none, or the built-in series does not fit the model.
        FileError: The file is not there; rows do not have the columns that the model takes.

    Example:
        >>> import ssmn
        >>> from ssmn.live.feeds import source_for
        >>> from ssmn.training import Tokenizer
        >>> config = ssmn.TextSSMNConfig(vocab_size=256, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> source_for("tcp://localhost:http", config, Tokenizer.for_bytes())
        Traceback (most recent call last):
            ...
        ssmn.errors.RangeError: source: 'tcp://localhost:http'; wanted tcp://HOST:PORT with a port from 1 to 65535.
    """
    columns: list[str] = []
    if isinstance(config, SSMNConfig):
        columns += (f"column {number}" for number in range(1, config.input_dim + 1))

    def named(names: Sequence[str]) -> None:
        if not all(map(str.isdecimal, names)):  # numbers stand for names that the input does not have
            columns[:] = (name[:LONGEST_NAME] for name in names)

    def pieces(opened: Callable[[], AbstractContextManager[Any]]) -> Iterator[Steps]:
        with opened() as source:
            yield from token_pieces(tokenizer, source) if tokenizer is not None else row_pieces(source, config, named)

    if where is None:
        name, path = _built_in(config)
        return Source(name, False, lambda: Feed(partial(pieces, partial(lzma.open, path)), columns=columns))
    if where == "-":
        feed = Feed(partial(pieces, lambda: nullcontext(sys.stdin.buffer)), columns=columns, lasting=True)
        return Source("standard input", True, lambda: feed)
    if where.startswith("tcp://"):
        line = _Line(*_address(where))
        feed = Feed(partial(pieces, line.open), line.close, columns, lasting=True)
        return Source(where, True, lambda: feed)
    path = Path(where)
    if not path.is_file():
        raise FileError(f"source: {where} is not there, or no file; wanted a file, - or tcp://HOST:PORT.")
    return Source(path.name, False, lambda: Feed(partial(pieces, partial(path.open, "rb")), columns=columns))


def row_pieces(
    source: ByteSource, config: SSMNConfig, named: Callable[[Sequence[str]], None] | None = None
) -> Iterator[Steps]:
    """Rows of comma-separated text for a Standard model, [T, input_dim] at a time.

    Rows that cannot be read are left out; so are rows with gaps, of a model that takes none. A column of dates is
    passed over. `named` is told the names of the columns ("1", "2", ... if there is no header).

    Raises:
        FileError: The rows have another number of columns than the model takes.
    """
    rows = rows_from(source, on_bad=lambda _: None)
    if rows.names and len(rows.names) != config.input_dim:
        raise FileError(
            f"line 1: {len(rows.names)} columns of numbers ({', '.join(rows.names)}); the model takes "
            f"{config.input_dim} (its input_dim)."
        )
    if named is not None and rows.names:
        named(rows.names)
    batch: list[tuple[float, ...]] = []
    for row in rows:
        if config.missing == "mask" or all(map(math.isfinite, row.values)):
            batch.append(row.values)
        if batch and (len(batch) == ROWS_AT_ONCE or rows.waiting):
            yield np.array(batch, np.float32)
            batch = []
    if batch:
        yield np.array(batch, np.float32)


def _built_in(config: Any) -> tuple[str, Path]:
    folder = shipped_model().parent
    if not isinstance(config, SSMNConfig):
        return "the demonstration's text", folder / "held-out.txt.xz"
    if config.input_dim != 1:
        raise RangeError(
            f"source: the built-in series has 1 column, but the model takes {config.input_dim}; name a file of rows, "
            f"- or tcp://HOST:PORT."
        )
    return "a machine's temperature", folder / "machine-temperature.csv.xz"


def _address(where: str) -> tuple[str, int]:
    host, _, port = where.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise RangeError(f"source: {where!r}; wanted tcp://HOST:PORT with a port from 1 to 65535.")
    return host.strip("[]"), int(port)


class _Line:
    """A connection that can be closed from another thread."""

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self._socket: socket.socket | None = None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        with socket.create_connection(self._where, CONNECT_SECONDS) as self._socket:
            self._socket.settimeout(None)
            with self._socket.makefile("rb") as arriving:
                yield arriving

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the other side has gone already
                self._socket.shutdown(socket.SHUT_RDWR)
