"""Windows and streams of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ssmn.errors import RangeError, ShapeError
from ssmn.training import StreamDataset, WindowDataset

TABLE = np.random.default_rng(0).normal(size=(29, 4))


def test_every_window_is_there_and_none_sees_its_targets() -> None:
    windows = WindowDataset(TABLE, context=7, horizon=3, targets=[2, 0], inputs=[1, 2, 3], stride=2)
    assert len(windows) == 10  # begins at 0, 2, ..., 18; the next would need row 30
    found = DataLoader(windows, batch_size=4)
    x, y = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    for number in range(10):
        begin = 2 * number
        np.testing.assert_array_equal(x[number], TABLE[begin : begin + 7, 1:].astype(np.float32))
        np.testing.assert_array_equal(y[number], TABLE[begin + 7 : begin + 10][:, [2, 0]].astype(np.float32))
    last = WindowDataset(TABLE, context=7, horizon=3)[-1]
    np.testing.assert_array_equal(last.y, TABLE[-3:].astype(np.float32))


def test_streams_go_on_from_piece_to_piece() -> None:
    pieces = list(DataLoader(StreamDataset(TABLE, streams=3, piece=4, targets=[1]), batch_size=None))
    assert [piece.fresh for piece in pieces] == [True, False, False]
    x, y = torch.cat([piece.x for piece in pieces], 1), torch.cat([piece.y for piece in pieces], 1)
    assert x.shape == (3, 9, 4) and y.shape == (3, 9, 1)
    for row in range(3):
        np.testing.assert_array_equal(x[row], TABLE[9 * row : 9 * row + 9].astype(np.float32))
        np.testing.assert_array_equal(y[row], TABLE[9 * row + 1 : 9 * row + 10, [1]].astype(np.float32))
    assert len(StreamDataset(TABLE, streams=3, piece=4)) == 3


def test_a_series_is_one_column() -> None:
    assert WindowDataset(np.arange(9), context=2)[6].x.tolist() == [[6.0], [7.0]]
    with pytest.raises(IndexError, match="index=7; wanted one of 7 windows"):
        WindowDataset(np.arange(9), context=2)[7]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WindowDataset(TABLE, context=28, horizon=2), ShapeError, "29 rows; wanted at least .* = 30"),
        (lambda: WindowDataset(TABLE, context=0), RangeError, "context=0; wanted a whole number"),
        (
            lambda: WindowDataset(TABLE, context=2, targets=[4]),
            RangeError,
            r"targets=\[4\]; wanted columns out of 0 to 3",
        ),
        (lambda: WindowDataset(TABLE[None], context=2), ShapeError, r"float64 \[1, 29, 4\]; wanted numbers \[N, C\]"),
        (lambda: StreamDataset(TABLE, streams=29, piece=2), ShapeError, "wanted at least streams [+] 1 = 30"),
        (lambda: StreamDataset(TABLE, streams=2, piece=True), RangeError, "piece=True; wanted a whole number"),
    ],
)
def test_what_does_not_fit(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
