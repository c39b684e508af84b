"""What a session publishes: its updates, as plain values for viewers, and their places on the lines."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict, dataclass
from typing import Any

from ssmn.config import Plasticity
from ssmn.live.numbers import finite
from ssmn.live.reading import SETTINGS, Report


@dataclass(frozen=True)
class Update:
    """What a session publishes: how it stands, and a report."""

    number: int
    """From 1, without gaps."""
    status: str
    """`running`, `paused`, `waiting` (for input), `ended` (there is no more) or `failed`."""
    message: str
    """Why it failed, why its source broke off, or nothing."""
    report: Report
    plasticity: Plasticity
    speed: float | None
    """Steps a second at most; None = as fast as it goes."""
    pace: float
    """Steps a second that were read lately."""
    checkpoints: tuple[str, ...]
    missed: int
    """Steps of the source that were dropped before this session came to read them."""
    columns: tuple[str, ...]
    """Names of the columns, of rows; empty for text."""
    distance: float | None
    """How far its memory is from that of the session it was forked from: √Σ(A − B)² / √ΣB²; None if from none."""


def trail_point(update: Update) -> list[Any]:
    """An update's place on the lines: [position, surprise, distance, per layer [energy, update, rank, write rate]].

    Of several heads: energies and squared changes are summed, ranks and rates averaged. NaN for what a memory has not.
    """
    report = update.report
    layers = [
        [
            sum(layer.energy),
            math.sqrt(sum(change**2 for change in layer.update)),
            sum(layer.rank) / len(layer.rank),
            sum(layer.write_rate) / len(layer.write_rate) if layer.write_rate else math.nan,
        ]
        for layer in report.layers
    ]
    return [report.position, report.surprise, update.distance, layers]


def described(update: Update) -> dict[str, Any]:
    """An update as plain values for JSON; pictures as base64 of int8, numbers that are not finite as None."""
    report = update.report
    layers = []
    for layer in report.layers:
        cells = layer.picture.cells
        layers.append(
            {
                "layer": layer.layer,
                "title": layer.title,
                "axes": layer.axes,
                **{name: [_short(value) for value in getattr(layer, name)] for name in _PER_HEAD},
                "picture": {
                    "heads": cells.shape[0],
                    "height": cells.shape[1],
                    "width": cells.shape[2],
                    "rows": layer.picture.rows,
                    "columns": layer.picture.columns,
                    "peak": _short(layer.picture.peak),
                    "cells": base64.b64encode(cells.tobytes()).decode(),
                },
            }
        )
    pieces = [
        [piece.text, round(piece.importance, 3), _short(piece.surprise)]
        if not piece.values
        else [list(map(_short, piece.values)), list(map(_short, piece.expected)), round(piece.importance, 3)]
        for piece in report.pieces
    ]
    return finite(
        {
            "number": update.number,
            "status": update.status,
            "message": update.message,
            "position": report.position,
            "steps": report.steps,
            "surprise": _short(report.surprise),
            "pieces": pieces,
            "left_out": report.left_out,
            "layers": layers,
            "plasticity": {name: value for name, value in asdict(update.plasticity).items() if name in SETTINGS},
            "speed": update.speed,
            "pace": round(update.pace, 1),
            "checkpoints": list(update.checkpoints),
            "missed": update.missed,
            "columns": update.columns,
            "distance": None if update.distance is None else _short(update.distance),
            "point": trail_point(update),
        }
    )


_PER_HEAD = ("energy", "update", "rank", "write_rate", "importance")


def _short(value: float) -> float:
    return float(f"{value:.5g}")
