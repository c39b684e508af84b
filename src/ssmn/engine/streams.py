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

    def tensors(self, stream: int) -> Tensors:
        """A stream's state, named and shaped as in a state file."""
        found: Tensors = {}
        for name, view in self._views(stream).items():
            found[name] = view.astype(np.float32)[np.newaxis]  # a copy: the stream goes on, and a state is a value
        position = int(self.positions[stream])
        for number, kind in enumerate(self.layout["layers"]):
            if kind == "window":
                slots, places = self._slots(position)
                for name in ("keys", "values"):
                    ring = self._ring(stream, number, name)
                    state = np.zeros((self.config.window_size - 1, *ring.shape[1:]), np.float32)
                    state[slots] = ring[places]
                    found[f"layers.{number}.{name}"] = state[np.newaxis]
                found[f"layers.{number}.position"] = np.array([position])
        return {**found, "position": np.array([position])}

    def put(self, stream: int, tensors: Tensors, owner: str) -> None:
        """Replaces a stream's state by such tensors."""
        wanted = {name: array.shape for name, array in self.tensors(stream).items()}
        for name in sorted(wanted.keys() | tensors.keys()):
            came = list(tensors[name].shape) if name in tensors else "missing"
            want = list(wanted[name]) if name in wanted else "no such tensor"
            if came != want:
                raise StateError(
                    f"{owner}: {name} of the state is {came}; wanted {want}: one row, of a state of this model "
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
        position = int(tensors["position"][0])
        others = {name: int(array[0]) for name, array in tensors.items() if name.endswith(".position")}
        for name, other in others.items():
            if other != position or position < 0:
                raise StateError(
                    f"{owner}: {name} of the state is {other} and position {position}; wanted the same, from 0 on."
                )
        self.clear(stream)
        for name, view in self._views(stream).items():
            view[...] = tensors[name][0]
        slots, places = self._slots(position)
        for number, kind in enumerate(self.layout["layers"]):
            if kind == "window":
                for name in ("keys", "values"):
                    self._ring(stream, number, name)[places] = tensors[f"layers.{number}.{name}"][0, slots]
        self.positions[stream] = position

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

    def _slots(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Slots of the state's ring that are filled, and the engine's slots with the same steps."""
        held = min(position, self.config.window_size - 1)
        steps = np.arange(position - held, position)
        return steps % max(self.config.window_size - 1, 1), steps % self.packed.sizes.ring

    def _views(self, stream: int) -> Tensors:
        """Parts of a stream's numbers that are stored as in a state file."""
        width, heads = self.config.hidden_dim, self.packed.sizes.memory_heads
        numbers, views = self.numbers[stream], {}
        if self.packed.sizes.has_encoder:
            views["front.recent"] = numbers[: 3 * width].reshape(3, width)
        elif self.layout["front"] == "front":
            columns = self.packed.sizes.inputs if self.packed.sizes.is_normalised else 0
            parts = numbers[: 4 * columns].reshape(4, columns)
            views |= {f"front.{name}": parts[row] for row, name in enumerate(_STATISTICS)}
            views["front.pending"] = numbers[4 * columns : 4 * columns + 1].reshape(())
        for number, layer in enumerate(self.packed.layers):
            if layer.plastic:
                key, value = width // heads, -(-width // heads // PANEL) * PANEL
                end = layer.state + width * value
                memory = numbers[layer.state : end].reshape(heads, key, value)
                views[f"layers.{number}.memory"] = memory[:, :, :key]
                views[f"layers.{number}.previous"] = numbers[end : end + width]
        sizes = self.packed.sizes
        if sizes.has_output_memory:
            stride = -(-width // PANEL) * PANEL
            key, prediction = (sizes.head + rows * stride for rows in (sizes.outputs, sizes.outputs + 1))
            views["head.memory"] = numbers[sizes.head : key].reshape(sizes.outputs, stride)[:, :width]
            views["head.key"] = numbers[key : key + width]
            ratio, trust = prediction + sizes.outputs, prediction + 2 * sizes.outputs
            views["head.prediction"] = numbers[prediction:ratio]
            views["head.ratio"] = numbers[ratio:trust]
            views["head.trust"] = numbers[trust : trust + 1].reshape(())
        if sizes.readout:
            views |= self._readout(numbers[sizes.head :])
        return views

    def _readout(self, numbers: NDArray[np.float32]) -> Tensors:
        """The parts of a read-out's state; those of `rls` are float64."""
        config, sizes = self.config, self.packed.sizes
        assert isinstance(config, SSMNConfig)
        inputs, outputs = sizes.input.columns, config.output_dim
        read = {"hidden": config.hidden_dim, "inputs": inputs, "both": config.hidden_dim + inputs}
        width = read[config.readout_features] + 1
        prediction = -(-width // PANEL) * PANEL
        start = prediction + -(-outputs // PANEL) * PANEL
        views: Tensors = {"head.key": numbers[:width], "head.prediction": numbers[prediction : prediction + outputs]}
        if config.readout == "delta":
            memory = numbers[start : start + outputs * prediction].reshape(outputs, prediction)
        else:
            stride = -(-width // _DOUBLES) * _DOUBLES
            sums = numbers[start : start + 2 * (outputs + width) * stride].view(np.float64).reshape(-1, stride)
            memory = sums[:outputs]
            views["head.moment"] = sums[outputs:, :width]
        return {**views, "head.memory": memory[:, :width].T}

    def _ring(self, stream: int, layer: int, name: str) -> NDArray[np.float32]:
        """A view [slots, heads, width] of a layer's keys or values."""
        sizes, start = self.packed.sizes, self.packed.layers[layer].state
        head = self.config.hidden_dim // sizes.query_heads
        middle = start + sizes.key_heads * sizes.ring * head
        if name == "values":
            stride = -(-head // PANEL) * PANEL
            block = self.numbers[stream, middle : middle + sizes.key_heads * sizes.ring * stride]
            return block.reshape(sizes.key_heads, sizes.ring, stride)[:, :, :head].transpose(1, 0, 2)
        block = self.numbers[stream, start:middle].reshape(sizes.key_heads, -1, head, PANEL)
        return _KeyRing(block)  # type: ignore[return-value]


class _KeyRing:
    """Keys that lie [heads, slots / 16, width, 16], indexed as [slots, heads, width]."""

    def __init__(self, block: NDArray[np.float32]) -> None:
        self.block = block
        self.shape = (block.shape[1] * PANEL, block.shape[0], block.shape[2])

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.block[:, places // PANEL, :, places % PANEL]

    def __setitem__(self, places: NDArray[np.int64], keys: NDArray[np.float32]) -> None:
        self.block[:, places // PANEL, :, places % PANEL] = keys


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
