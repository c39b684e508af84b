"""torch `Dataset`s over tables: windows with targets some steps ahead, and parallel streams for a carried state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ssmn.errors import RangeError, ShapeError


class Window(NamedTuple):
    """A stretch of a table and what comes after it."""

    x: Tensor
    """[context, inputs] float32."""
    y: Tensor
    """[horizon, targets] float32: the rows right after x."""


class Piece(NamedTuple):
    """The next piece of parallel streams."""

    x: Tensor
    """[streams, piece, inputs] float32."""
    y: Tensor
    """[streams, piece, targets] float32: at each step the targets of the step after it."""
    fresh: bool
    """Whether the streams begin with this piece, so that a state carried so far is to be dropped."""


class WindowDataset(Dataset[Window]):
    """All windows of a table: `context` rows, and the targets of the `horizon` rows after them.

    Nothing is copied until a window is asked for. Every place counts: the last window ends with the table.

    Args:
        table: [N, C] numbers, a row per step; a 1-d array is one column.
        context: Rows that a model sees.
        horizon: Rows that it is to forecast.
        targets: Columns to forecast; None = all.
        inputs: Columns to see; None = all.
        stride: Rows from one window to the next.

    Raises:
        ShapeError: The table is not one, or shorter than a window.
        RangeError: A size is below 1, or there is no such column.

    Example:
        >>> import numpy
        >>> from torch.utils.data import DataLoader
        >>> from ssmn.training import WindowDataset
        >>> windows = WindowDataset(numpy.arange(40.0).reshape(20, 2), context=6, horizon=3, targets=[1])
        >>> x, y = next(iter(DataLoader(windows, batch_size=4)))
        >>> len(windows), x.shape, y.shape, y[0].flatten().tolist()
        (12, torch.Size([4, 6, 2]), torch.Size([4, 3, 1]), [13.0, 15.0, 17.0])
    """

    def __init__(
        self,
        table: NDArray[Any] | Sequence[Sequence[float]],
        *,
        context: int,
        horizon: int = 1,
        targets: Sequence[int] | None = None,
        inputs: Sequence[int] | None = None,
        stride: int = 1,
    ) -> None:
        owner = type(self).__name__
        self._table = _table(owner, table)
        _require_counts(owner, context=context, horizon=horizon, stride=stride)
        self.context, self.horizon, self.stride = context, horizon, stride
        self._inputs = _columns(owner, "inputs", inputs, self._table.shape[1])
        self._targets = _columns(owner, "targets", targets, self._table.shape[1])
        if len(self._table) < context + horizon:
            raise ShapeError(
                f"{owner}: the table has {len(self._table)} rows; wanted at least context + horizon = "
                f"{context + horizon}."
            )

    def __len__(self) -> int:
        return (len(self._table) - self.context - self.horizon) // self.stride + 1

    def __getitem__(self, index: int) -> Window:
        if not -len(self) <= index < len(self):
            raise IndexError(f"WindowDataset: index={index}; wanted one of {len(self)} windows.")
        begin = index % len(self) * self.stride
        middle, end = begin + self.context, begin + self.context + self.horizon
        return Window(self._table[begin:middle, self._inputs], self._table[middle:end, self._targets])


class StreamDataset(IterableDataset[Piece]):
    """A table cut into parallel contiguous streams and these into pieces, in order.

    Row b of a piece goes on where row b of the piece before ended, so a state that is carried along has read its whole
    stream. Give it to a `DataLoader` with `batch_size=None`: the pieces are batches already; and without workers,
    which would each read all of it. Rows that do not fill the streams evenly, fewer than there are streams, are left
    out; the last piece may be shorter than the others.

    Args:
        table: [N, C] numbers, a row per step; a 1-d array is one column.
        streams: How many stretches are read side by side: the batch.
        piece: Steps that are read at once; gradients do not reach further.
        targets: Columns to predict one step ahead; None = all.
        inputs: Columns to see; None = all.

    Raises:
        ShapeError: The table is not one, or has less than one step for every stream.
        RangeError: A size is below 1, or there is no such column.

    Example:
        >>> import numpy, torch, ssmn
        >>> from torch.utils.data import DataLoader
        >>> from ssmn.training import StreamDataset
        >>> pieces = StreamDataset(numpy.random.default_rng(0).normal(size=(101, 3)), streams=4, piece=10)
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=3, output_dim=3))
        >>> for x, y, fresh in DataLoader(pieces, batch_size=None):
        ...     output, state = model(x, None if fresh else state.detach())
        ...     loss = (output - y).square().mean()
        >>> x.shape, state.position.tolist()
        (torch.Size([4, 5, 3]), [25, 25, 25, 25])
    """

    def __init__(
        self,
        table: NDArray[Any] | Sequence[Sequence[float]],
        *,
        streams: int,
        piece: int,
        targets: Sequence[int] | None = None,
        inputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self._table = _table(owner, table)
        _require_counts(owner, streams=streams, piece=piece)
        self.streams, self.piece = streams, piece
        self.steps = (len(self._table) - 1) // streams
        self._inputs = _columns(owner, "inputs", inputs, self._table.shape[1])
        self._targets = _columns(owner, "targets", targets, self._table.shape[1])
        if self.steps < 1:
            raise ShapeError(
                f"{owner}: the table has {len(self._table)} rows; wanted at least streams + 1 = {streams + 1}."
            )

    def __len__(self) -> int:
        """Pieces."""
        return -(-self.steps // self.piece)

    def __iter__(self) -> Iterator[Piece]:
        used = self.streams * self.steps
        x = self._table[:used, self._inputs].unflatten(0, (self.streams, self.steps))
        y = self._table[1 : used + 1, self._targets].unflatten(0, (self.streams, self.steps))
        for begin in range(0, self.steps, self.piece):
            yield Piece(x[:, begin : begin + self.piece], y[:, begin : begin + self.piece], begin == 0)


def _table(owner: str, table: NDArray[Any] | Sequence[Sequence[float]]) -> Tensor:
    array = np.asarray(table)
    if array.ndim == 1:
        array = array[:, np.newaxis]
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ShapeError(f"{owner}: table is {array.dtype} {list(array.shape)}; wanted numbers [N, C], a row per step.")
    return torch.from_numpy(np.array(array, np.float32))


def _columns(owner: str, name: str, chosen: Sequence[int] | None, count: int) -> list[int]:
    columns = list(range(count)) if chosen is None else [int(column) for column in chosen]
    if not columns or not all(0 <= column < count for column in columns):
        raise RangeError(f"{owner}: {name}={chosen!r}; wanted columns out of 0 to {count - 1}.")
    return columns


def _require_counts(owner: str, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RangeError(f"{owner}: {name}={value!r}; wanted a whole number of at least 1.")
