"""The streams of an engine: one row of numbers each, and the way to and from the state files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmn.config import PLASTICITY_PER_ROW, Plasticity, SSMNConfig, StackConfig
from ssmn.engine.packing import PANEL, Packed, aligned
from ssmn.errors import FileError, RangeError, ShapeError, StateError
from ssmn.files import PathLike, Tensors, first_difference, read_file

_LEARNING = np.dtype(
    [
        (name, np.float32)
        for name in (
            "eta_scale", "decay_scale", "plasticity_eta", "decay_rate", "write_threshold", "output_eta", "output_rate",
        )
    ]
    + [("frozen", np.int32)]
)  # fmt: skip
"""`ssmn_engine_learning`."""


_STATISTICS = ("mean", "rest", "deviation", "count")
_DOUBLES = 8
"""Rows of float64 are padded to a multiple of this."""


class Streams:
    """Numbers, positions and learning of all streams; room for more is made by doubling."""

    def __init__(self, packed: Packed, config: StackConfig, count: int) -> None:
        self.config, self.packed, self.count = config, packed, 0
        self.numbers: NDArray[np.float32] = np.zeros((0, packed.sizes.stream_floats), np.float32)
        self.positions = np.zeros(0, np.int64)
        self.learning = np.zeros(0, _LEARNING)
        self.add(count)

    @property
    def layout(self) -> dict[str, Any]:
        """As in a state file's header."""
        assert self.config.layer_types is not None
        kinds = {"static": "window", "plastic": "plastic"}
        sizes = self.packed.sizes
        has_front = sizes.is_normalised or sizes.masks_missing
        front = "encoder" if sizes.has_encoder else "front" if has_front else None
        head = "output" if sizes.has_output_memory else "readout" if sizes.readout else None
        return {"front": front, "layers": [kinds[kind] for kind in self.config.layer_types], "head": head}

    def add(self, count: int) -> None:
        """Makes `count` more fresh streams."""
        wanted, room = self.count + count, len(self.positions)
        if wanted > room:
            room = wanted if not room else max(wanted, 2 * room)
            numbers = aligned(room * self.numbers.shape[1] * 4).view(np.float32).reshape(room, -1)
            positions, learning = np.zeros(room, np.int64), np.zeros(room, _LEARNING)
            numbers[: self.count] = self.numbers[: self.count]
            positions[: self.count] = self.positions[: self.count]
            learning[: self.count] = self.learning[: self.count]
            self.numbers, self.positions, self.learning = numbers, positions, learning
            sizes = self.packed.sizes
            sizes.streams, sizes.positions = numbers.ctypes.data, positions.ctypes.data
            sizes.learning = learning.ctypes.data
        self.learning[self.count : wanted] = _learning(Plasticity(), None, 1)
        self.count = wanted

    def copy(self, source: int, target: int) -> None:
        """Makes a stream the same as another."""
        self.numbers[target], self.positions[target] = self.numbers[source], self.positions[source]
        self.learning[target] = self.learning[source]

    def clear(self, stream: int) -> None:
        """Makes a stream fresh; how it learns stays."""
        self.numbers[stream], self.positions[stream] = 0.0, 0

    def set_learning(self, plasticity: Plasticity, stream: int | None) -> None:
        """How one stream or all of them learn."""
        if stream is None:
            self.learning[: self.count] = _learning(plasticity, stream, self.count)
        else:
            self.learning[stream] = _learning(plasticity, stream, 1)[0]

    def tensors(self, streams: NDArray[np.int64]) -> Tensors:
        """The state of some streams, a row each, named and shaped as in a state file."""
        numbers, positions = (
            self.numbers[streams],
            self.positions[streams],
        )  # copies: a stream goes on, a state is a value
        found: Tensors = {name: view.astype(np.float32) for name, view in self._views(numbers).items()}
        rows, slots, places = self._slots(positions)
        for name, ring in self._rings(numbers).items():
            found[name] = np.zeros(self._shape(ring), np.float32)
            found[name][rows, slots] = ring[rows, places]
        return found | {name: positions.copy() for name in self._position_names()}

    def put(self, streams: NDArray[np.int64], tensors: Tensors, owner: str) -> None:
        """Replaces the states of some streams, a row each, by such tensors."""
        numbers = np.zeros((len(streams), self.numbers.shape[1]), np.float32)
        views, rings = self._views(numbers), self._rings(numbers)
        wanted = {name: view.shape for name, view in views.items()}
        wanted |= {name: self._shape(ring) for name, ring in rings.items()}
        wanted |= dict.fromkeys(self._position_names(), streams.shape)
        for name in sorted(wanted.keys() | tensors.keys()):
            came = list(tensors[name].shape) if name in tensors else "missing"
            want = list(wanted[name]) if name in wanted else "no such tensor"
            if came != want:
                rows = "one row" if len(streams) == 1 else f"{len(streams)} rows"
                raise StateError(
                    f"{owner}: {name} of the state is {came}; wanted {want}: {rows}, of a state of this model "
                    "(of several rows: state.select([row]))."
                )
            kind = "iu" if name.endswith("position") else "f"
            if tensors[name].dtype.kind != kind[0] or tensors[name].itemsize != (8 if kind == "iu" else 4):
                raise StateError(
                    f"{owner}: {name} of the state is {tensors[name].dtype}; wanted "
                    f"{'int64' if kind == 'iu' else 'float32'} (state.to(torch.float32))."
                )
            if not np.isfinite(tensors[name]).all():
                raise StateError(f"{owner}: {name} of the state has NaN or infinite values; take an earlier one.")
        positions = tensors["position"]
        for name in self._position_names():
            wrong = (tensors[name] != positions) | (positions < 0)
            if wrong.any():
                row = int(wrong.argmax())
                raise StateError(
                    f"{owner}: {name} of the state is {tensors[name][row]} and position {positions[row]}; wanted the "
                    "same, from 0 on."
                )
        for name, view in views.items():
            view[...] = tensors[name]
        rows, slots, places = self._slots(positions)
        for name, ring in rings.items():
            ring[rows, places] = tensors[name][rows, slots]
        self.numbers[streams], self.positions[streams] = numbers, positions

    def read(self, path: PathLike) -> tuple[Tensors, dict[str, Any]]:
        """Tensors and header of a state file with this layout."""
        tensors, header = read_file(path, kind="state")
        difference = first_difference(header.get("layout"), self.layout, "layout")
        if difference is not None:
            where, came, wanted = difference
            raise StateError(f"load_state: {where} is {came} in {path}; wanted {wanted}, as in this engine's model.")
        if not isinstance(header.get("fingerprint"), str) or not isinstance(header.get("config"), dict):
            raise FileError(f"load_state: {path} lacks a fingerprint or config in its header; save the state again.")
        return tensors, header

    def _position_names(self) -> list[str]:
        """Tensors of a state file that hold a stream's position; the model's own comes last."""
        kinds = enumerate(self.layout["layers"])
        return [*(f"layers.{number}.position" for number, kind in kinds if kind == "window"), "position"]

    def _slots(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows, slots of the state's ring that are filled, and the engine's slots with the same steps."""
        width, last = max(self.config.window_size - 1, 1), positions[:, np.newaxis] - 1
        steps = last - (last - np.arange(self.config.window_size - 1)) % width
        rows, slots = np.nonzero(steps >= 0)
        return rows, slots, steps[rows, slots] % self.packed.sizes.ring

    def _views(self, numbers: NDArray[np.float32]) -> Tensors:
        """Parts of some streams' numbers [rows, floats] that are stored as in a state file, a row each."""
        width, heads, rows = self.config.hidden_dim, self.packed.sizes.memory_heads, len(numbers)
        views: Tensors = {}
        if self.packed.sizes.has_encoder:
            views["front.recent"] = numbers[:, : 3 * width].reshape(rows, 3, width)
        elif self.layout["front"] == "front":
            columns = self.packed.sizes.inputs if self.packed.sizes.is_normalised else 0
            parts = numbers[:, : 4 * columns].reshape(rows, 4, columns)
            views |= {f"front.{name}": parts[:, part] for part, name in enumerate(_STATISTICS)}
            views["front.pending"] = numbers[:, 4 * columns]
        for number, layer in enumerate(self.packed.layers):
            if layer.plastic:
                key, value = width // heads, -(-width // heads // PANEL) * PANEL
                end = layer.state + width * value
                memory = numbers[:, layer.state : end].reshape(rows, heads, key, value)
                views[f"layers.{number}.memory"] = memory[..., :key]
                views[f"layers.{number}.previous"] = numbers[:, end : end + width]
        sizes = self.packed.sizes
        if sizes.has_output_memory:
            stride = -(-width // PANEL) * PANEL
            key, prediction = (sizes.head + count * stride for count in (sizes.outputs, sizes.outputs + 1))
            memory = numbers[:, sizes.head : key].reshape(rows, sizes.outputs, stride)
            views["head.memory"] = memory[..., :width]
            views["head.key"] = numbers[:, key : key + width]
            ratio, trust = prediction + sizes.outputs, prediction + 2 * sizes.outputs
            views["head.prediction"] = numbers[:, prediction:ratio]
            views["head.ratio"] = numbers[:, ratio:trust]
            views["head.trust"] = numbers[:, trust]
        if sizes.readout:
            views |= self._readout(numbers[:, sizes.head :])
        return views

    def _readout(self, numbers: NDArray[np.float32]) -> Tensors:
        """The parts of a read-out's state; those of `rls` are float64."""
        config, sizes, rows = self.config, self.packed.sizes, len(numbers)
        assert isinstance(config, SSMNConfig)
        inputs, outputs = sizes.input.columns, config.output_dim
        read = {"hidden": config.hidden_dim, "inputs": inputs, "both": config.hidden_dim + inputs}
        width = read[config.readout_features] + 1
        prediction = -(-width // PANEL) * PANEL
        start = prediction + -(-outputs // PANEL) * PANEL
        views: Tensors = {
            "head.key": numbers[:, :width],
            "head.prediction": numbers[:, prediction : prediction + outputs],
        }
        if config.readout == "delta":
            memory = numbers[:, start : start + outputs * prediction].reshape(rows, outputs, prediction)
        else:
            stride = -(-width // _DOUBLES) * _DOUBLES
            end = start + 2 * (outputs + width) * stride
            sums = numbers[:, start:end].view(np.float64).reshape(rows, outputs + width, stride)
            memory = sums[:, :outputs]
            views["head.moment"] = sums[:, outputs:, :width]
        return {**views, "head.memory": memory[..., :width].swapaxes(1, 2)}

    def _shape(self, ring: Any) -> tuple[int, ...]:
        """Of the tensor in a state file that holds what is in a ring."""
        return (ring.shape[0], self.config.window_size - 1, *ring.shape[2:])

    def _rings(self, numbers: NDArray[np.float32]) -> dict[str, Any]:
        """Views [rows, slots, heads, width] of the keys and values of every window, by their name in a state file."""
        sizes, rows = self.packed.sizes, len(numbers)
        head, rings = self.config.hidden_dim // sizes.query_heads, {}
        for number, layer in enumerate(self.packed.layers):
            if not layer.plastic:
                middle, stride = layer.state + sizes.key_heads * sizes.ring * head, -(-head // PANEL) * PANEL
                keys = numbers[:, layer.state : middle].reshape(rows, sizes.key_heads, -1, head, PANEL)
                values = numbers[:, middle : middle + sizes.key_heads * sizes.ring * stride]
                values = values.reshape(rows, sizes.key_heads, sizes.ring, stride)[..., :head]
                rings[f"layers.{number}.keys"] = _KeyRing(keys)
                rings[f"layers.{number}.values"] = values.transpose(0, 2, 1, 3)
        return rings


class _KeyRing:
    """Keys that lie [rows, heads, slots / 16, width, 16], indexed as [rows, slots, heads, width]."""

    def __init__(self, block: NDArray[np.float32]) -> None:
        self.block = block
        self.shape = (block.shape[0], block.shape[2] * PANEL, block.shape[1], block.shape[3])

    def __getitem__(self, index: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.float32]:
        rows, places = index
        return self.block[rows, :, places // PANEL, :, places % PANEL]

    def __setitem__(self, index: tuple[NDArray[np.int64], NDArray[np.int64]], keys: NDArray[np.float32]) -> None:
        rows, places = index
        self.block[rows, :, places // PANEL, :, places % PANEL] = keys


def _learning(plasticity: Plasticity, stream: int | None, count: int) -> NDArray[Any]:
    """`count` rows of `ssmn_engine_learning`."""
    rows = np.zeros(count, _LEARNING)
    rates = {"decay_lambda": "decay_rate", "output_decay": "output_rate"}
    for name in PLASTICITY_PER_ROW:
        value = getattr(plasticity, name)
        if value is None:
            values = np.full(1, -1.0)
        else:
            values = np.asarray(value.tolist() if hasattr(value, "tolist") else value, np.float64)
            if values.ndim and (stream is not None or values.shape != (count,)):
                wanted = "a number" if stream is not None else f"a number or one per stream [{count}]"
                raise ShapeError(f"Plasticity: {name} has shape {list(values.shape)}; wanted {wanted}.")
        if name in rates:
            rows[rates[name]] = values if value is None else -np.log1p(-values)
        else:
            rows[name] = values
    rows["frozen"] = plasticity.frozen
    return rows


def check_stream(owner: str, stream: Any, count: int) -> int:
    """Refuses what is no stream's number."""
    if isinstance(stream, bool) or not isinstance(stream, (int, np.integer)) or not 0 <= stream < count:
        raise RangeError(f"{owner}: stream={stream!r}; wanted 0 to {count - 1} (this engine has {count}).")
    return int(stream)


def check_elapsed(owner: str, elapsed: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Times since the step before: a number, or one per step and stream."""
    try:
        times = np.asarray(elapsed, np.float32)
    except (TypeError, ValueError):
        times = np.full(1, math.nan, np.float32)
    if times.ndim and times.shape != shape:
        raise ShapeError(f"{owner}: elapsed has shape {list(times.shape)}; wanted a number or {list(shape)}.")
    if not (np.isfinite(times).all() and (times >= 0).all()):
        raise RangeError(f"{owner}: elapsed has negative or non-finite times; wanted finite times ≥ 0.")
    return np.ascontiguousarray(np.broadcast_to(times, shape))
