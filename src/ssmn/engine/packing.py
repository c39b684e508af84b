"""A model's configuration and weights as the arena that `ssmn.h` describes."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
import struct
import zlib
from collections.abc import Mapping
from ctypes import byref
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmn import __version__
from ssmn.config import (
    LEAST_FORGET,
    OUTPUT_THRESHOLD,
    READ_FLOOR,
    THOUGHT_EPS,
    SSMNConfig,
    StackConfig,
    TextSSMNConfig,
    config_from_dict,
    middle_of,
)
from ssmn.errors import ConfigError, DtypeError, FileError, RangeError
from ssmn.files import BFLOAT16, Origin, PathLike, Tensors, load_weights, model_fingerprint, read_config
from ssmn.native import INTERFACE, EngineLayer, EngineSizes, Matrix, library

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
QUANTISED = ("int8", "int4")

PANEL = 16
"""Rows of a matrix that are stored together."""

_CHUNK, _SHORT_CHUNK = 96, 48
"""Rows that are computed at once; a small model's ring should not be much longer than its window."""

_ALIGNMENT = 64
_KINDS = ("static", "plastic")


HEADS, READOUTS, FEATURES = ("point", "gaussian", "quantile"), ("none", "delta", "rls"), ("hidden", "inputs", "both")
"""Choices of a model of vectors, in the order of the numbers that stand for them."""


@dataclass(frozen=True)
class Source:
    """What an engine is made of: a model's configuration and weights, as numpy arrays."""

    config: StackConfig
    weights: Tensors
    name: str
    """For error messages."""

    @classmethod
    def of_folder(cls, folder: PathLike, **changes: Any) -> Source:
        """A saved model, with settings changed that have no weights."""
        values = read_config(folder)
        return cls(config_from_dict({**values, **changes}), load_weights(folder, values), str(Path(folder)))

    @classmethod
    def of_model(cls, model: Any) -> Source:
        """An `SSMN` or a `TextSSMN`."""
        config = getattr(model, "config", None)
        if not isinstance(config, (SSMNConfig, TextSSMNConfig)) or not hasattr(model, "state_dict"):
            raise DtypeError(
                f"Engine: model is {type(model).__name__}; wanted an SSMN or a TextSSMN; "
                "of a saved model's folder: Engine.load(folder)."
            )
        from ssmn.state import to_numpy

        return cls(config, {name: to_numpy(w) for name, w in model.state_dict().items()}, type(model).__name__)

    def origin(self) -> Origin:
        """What state files are marked with: the same as by the model itself."""
        config = self.config.to_dict()
        return Origin(model_fingerprint(config, self.weights), json.loads(json.dumps(config)))


class Weights:
    """A model's weights as float32, each taken once and with its shape checked.

    Args:
        source: The model.
        finite: Whether NaN and infinite values are refused: as codes they would look like sound numbers.
    """

    def __init__(self, source: Source, finite: bool) -> None:
        self._name, self._left, self._finite = source.name, dict(source.weights), finite

    def take(self, name: str, *shape: int) -> NDArray[np.float32]:
        """The array of this name."""
        array = self._left.pop(name, None)
        if array is None:
            raise FileError(f"Engine: {self._name} has no weights {name!r}; use a folder written by save_pretrained.")
        if array.shape != shape:
            raise FileError(f"Engine: {self._name}: {name} has shape {list(array.shape)}; wanted {list(shape)}.")
        if array.dtype == BFLOAT16:
            array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif array.dtype not in (np.float32, np.float16):
            raise DtypeError(
                f"Engine: {self._name}: {name} is {array.dtype}; the engine computes in float32: "
                "convert the model with model.float()."
            )
        if self._finite and not np.isfinite(array).all():
            raise RangeError(f"Engine: {self._name}: {name} has NaN or infinite values; go back to an earlier model.")
        return np.ascontiguousarray(array, np.float32)

    def finish(self) -> None:
        """Refuses weights that nothing has asked for."""
        if self._left:
            raise FileError(f"Engine: {self._name} has weights {min(self._left)!r} that the model does not use.")


@dataclass(frozen=True)
class Packed:
    """A model in its arena."""

    sizes: EngineSizes
    layers: Any
    arena: NDArray[np.uint8]

    def again(self) -> Packed:
        """The same arena under a structure of its own, for other streams; only one may run at a time."""
        return Packed(EngineSizes.from_buffer_copy(self.sizes), self.layers, self.arena)

    def image(self) -> list[bytes]:
        """What `examples/engine.c` reads: a header, the structs of `ssmn.h` without their addresses, the weights."""
        sizes = EngineSizes.from_buffer_copy(self.sizes)
        sizes.layers = sizes.arena = sizes.streams = sizes.positions = sizes.learning = None
        sizes.busy = 0
        parts = [bytes(sizes), bytes(self.layers), self.arena[: sizes.workspace].tobytes()]
        checksum = functools.reduce(lambda sum_, part: zlib.crc32(part, sum_), parts, 0)
        numbers = (INTERFACE, ctypes.sizeof(EngineSizes), ctypes.sizeof(EngineLayer), sizes.workspace)
        return [struct.pack("<8s24s5q", b"SSMNimg", __version__.encode(), *numbers, checksum), *parts]

    def vector(self, offset: int, count: int, dtype: Any = np.float32) -> NDArray[Any]:
        """A view of `count` numbers of the arena."""
        return self.arena[offset : offset + count * np.dtype(dtype).itemsize].view(dtype)


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeros that begin at a multiple of 64 bytes."""
    block = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + nbytes]


def pack(source: Source, dtype: str, threads: int) -> Packed:
    """Lays the arena out and fills it."""
    config = source.config
    assert config.layer_types is not None
    unknown = [kind for kind in config.layer_types if kind not in _KINDS]
    if unknown:
        raise ConfigError(f"Engine: layer_types has {unknown[0]!r}; the engine runs {' and '.join(_KINDS)} layers.")
    layers = (EngineLayer * config.num_layers)()
    sizes = _sizes(config, dtype, threads)
    sizes.layers = layers
    for layer, kind in zip(layers, config.layer_types, strict=True):
        layer.plastic = kind == "plastic"
    library().ssmn_engine_layout(byref(sizes))
    packed = Packed(sizes, layers, aligned(sizes.arena_bytes))
    weights = Weights(source, finite=dtype in QUANTISED)
    writer = _Writer(packed, weights, config)
    writer.front_and_head()
    for number, layer in enumerate(layers):
        writer.layer(layer, f"blocks.{number}.")
    weights.finish()
    sizes.arena = packed.arena.ctypes.data
    return packed


def _sizes(config: StackConfig, dtype: str, threads: int) -> EngineSizes:
    sizes = EngineSizes()
    if isinstance(config, TextSSMNConfig):
        sizes.is_text, sizes.has_encoder = True, config.semantic_encoder
        sizes.is_tied = config.tie_embeddings
        sizes.inputs = sizes.outputs = config.vocab_size
        sizes.has_output_memory, sizes.output_eta = config.output_memory, config.output_eta
        sizes.output_rate = -math.log1p(-config.output_decay)
        sizes.output_threshold, sizes.output_switch = OUTPUT_THRESHOLD, config.output_switch
    else:
        assert isinstance(config, SSMNConfig)
        sizes.inputs, sizes.outputs = config.input_dim, config.output_dim * config.output_parts
        _series_sizes(sizes, config)
    sizes.width, sizes.layer_count = config.hidden_dim, config.num_layers
    sizes.query_heads, sizes.key_heads = config.num_heads, config.num_kv_heads
    sizes.window, sizes.has_rotary, sizes.has_sinks = (
        config.window_size, config.rope_theta is not None, config.attention_sinks,
    )  # fmt: skip
    sizes.memory_heads, sizes.inner_width = config.memory_heads, config.ffn_dim
    sizes.has_erasure, sizes.is_hebbian = config.update_rule == "erase", config.update_rule == "hebbian"
    sizes.pairs_same, sizes.chat_rounds = config.pairing == "same", config.chat_rounds
    sizes.format, sizes.threads = FORMATS[dtype], threads
    sizes.chunk = _CHUNK if config.window_size > _CHUNK else _SHORT_CHUNK
    sizes.norm_epsilon, sizes.plasticity_eta = config.norm_eps, config.plasticity_eta
    sizes.write_threshold = config.write_threshold
    sizes.read_floor, sizes.chat_epsilon = READ_FLOOR, THOUGHT_EPS
    return sizes


def _gaps(quantiles: tuple[float, ...]) -> list[float]:
    """What is added to the numbers of each quantile; see `ssmn.layers.heads.spread_out`."""
    normal = [NormalDist().inv_cdf(share) for share in quantiles]
    gaps = [math.log(math.expm1(high - low)) for low, high in itertools.pairwise(normal)]
    middle = middle_of(quantiles)
    return [*gaps[:middle], normal[middle], *gaps[middle:]]


def _series_sizes(sizes: EngineSizes, config: SSMNConfig) -> None:
    """What a model of vectors has around its layers."""
    sizes.masks_missing, sizes.is_normalised = config.missing == "mask", config.normalise == "running"
    sizes.static_width, sizes.future_width = config.static_dim, config.future_dim
    sizes.head_kind, sizes.head_parts = HEADS.index(config.head), config.output_parts
    sizes.head_middle = middle_of(config.quantiles)
    sizes.has_columns = sizes.is_normalised and bool(config.target_columns)
    sizes.readout, sizes.readout_features = READOUTS.index(config.readout), FEATURES.index(config.readout_features)
    sizes.norm_rate, sizes.readout_ridge = config.norm_rate, config.readout_ridge
    sizes.readout_eta = config.readout_eta
    forget = max(config.readout_forget, LEAST_FORGET) if config.readout == "rls" else config.readout_forget
    sizes.readout_log_keep = math.log1p(-forget)


class _Writer:
    """Puts the weights where they belong."""

    def __init__(self, packed: Packed, weights: Weights, config: StackConfig) -> None:
        self.packed, self.sizes, self.weights, self.config = packed, packed.sizes, weights, config

    def vector(self, offset: int, name: str, count: int) -> None:
        self.packed.vector(offset, count)[:] = self.weights.take(name, count)

    def matrix(self, matrix: Matrix, array: NDArray[np.float32], first: int = 0, step: int = 1) -> None:
        """Packs an array [rows, columns] into panels first, first + step, ..."""
        address = self.packed.arena.ctypes.data + matrix.offset
        rows, columns = array.shape
        assert columns == matrix.columns
        library().ssmn_matrix_pack(matrix.format, rows, columns, array.ctypes.data, first, step, address)

    def parts(self, matrix: Matrix, names: Mapping[str, int]) -> None:
        """Packs several matrices, of so many rows each, one after the other."""
        first = 0
        for name, rows in names.items():
            self.matrix(matrix, self.weights.take(name, rows, matrix.columns), first)
            first += -(-rows // PANEL)

    def pairs(self, matrix: Matrix, prefix: str, rows: int) -> None:
        """Packs `gate` and `up`, panel by panel in turn."""
        for first, name in enumerate(("gate", "up")):
            self.matrix(matrix, self.weights.take(f"{prefix}{name}.weight", rows, matrix.columns), first, 2)

    def rows(self, matrix: Matrix, names: Mapping[str, int]) -> None:
        """Packs several matrices without a gap in between."""
        arrays = [self.weights.take(name, rows, matrix.columns) for name, rows in names.items()]
        self.matrix(matrix, np.concatenate(arrays))

    def front_and_head(self) -> None:
        config, sizes, width = self.config, self.sizes, self.config.hidden_dim
        if isinstance(config, TextSSMNConfig):
            self.matrix(sizes.input, self.weights.take("embedding.weight", config.vocab_size, width))
            if not config.tie_embeddings:
                self.matrix(sizes.output, self.weights.take("output.weight", config.vocab_size, width))
            if config.semantic_encoder:
                self.pairs(sizes.encoder_expand, "encoder.", width)
                self.matrix(sizes.encoder_contract, self.weights.take("encoder.down.weight", width, width))
        else:
            assert isinstance(config, SSMNConfig)
            self.matrix(sizes.input, self.weights.take("input.weight", width, sizes.input.columns))
            self.matrix(sizes.output, self.weights.take("output.weight", sizes.outputs, width))
            self.vector(sizes.input_bias, "input.bias", width)
            self.vector(sizes.output_bias, "output.bias", sizes.outputs)
            if sizes.has_columns:
                self.packed.vector(sizes.columns, config.output_dim, np.int64)[:] = config.target_columns
            if config.head == "quantile":
                self.packed.vector(sizes.gaps, config.output_parts)[:] = _gaps(config.quantiles)
        self.vector(sizes.norm, "norm.weight", width)
        if config.rope_theta is not None:
            half = width // config.num_heads // 2
            frequencies = config.rope_theta ** (np.arange(half) / -half)
            self.packed.vector(sizes.frequencies, half, np.float64)[:] = frequencies

    def layer(self, layer: EngineLayer, prefix: str) -> None:
        config, width = self.config, self.config.hidden_dim
        assert config.ffn_dim is not None
        self.vector(layer.mixer_norm, f"{prefix}mixer_norm.weight", width)
        self.vector(layer.ffn_norm, f"{prefix}ffn_norm.weight", width)
        self.pairs(layer.expand, f"{prefix}ffn.", config.ffn_dim)
        self.matrix(layer.contract, self.weights.take(f"{prefix}ffn.down.weight", width, config.ffn_dim))
        prefix += "mixer."
        self.matrix(layer.output, self.weights.take(f"{prefix}output.weight", width, width))
        if layer.plastic:
            self.memory(layer, prefix)
        else:
            self.attention(layer, prefix)

    def attention(self, layer: EngineLayer, prefix: str) -> None:
        config, width = self.config, self.config.hidden_dim
        assert config.num_kv_heads is not None
        narrow = width // config.num_heads * config.num_kv_heads
        names = {"query": width, "key": narrow, "value": narrow}
        self.parts(layer.input, {f"{prefix}{name}.weight": rows for name, rows in names.items()})
        if config.attention_sinks:
            self.vector(layer.sinks, f"{prefix}sinks", config.num_heads)

    def memory(self, layer: EngineLayer, prefix: str) -> None:
        config, width = self.config, self.config.hidden_dim
        heads, rounds = config.memory_heads, config.chat_rounds
        assert heads is not None
        self.parts(layer.input, {f"{prefix}{name}.weight": width for name in ("query", "value", "gate")})
        self.matrix(layer.key, self.weights.take(f"{prefix}key.weight", width, width))
        gates = ("importance", "erasure") if config.update_rule == "erase" else ("importance",)
        present = {f"{prefix}{name}.present.weight": heads for name in (*gates, "decay")}
        if rounds:
            present[f"{prefix}chat.mix.weight"] = rounds + 1
            self.vector(layer.chat_keep, f"{prefix}chat.keep", rounds)
            self.vector(layer.chat_add, f"{prefix}chat.add", rounds)
        self.rows(layer.gate, present)
        self.rows(layer.key_gate, {f"{prefix}{name}.previous.weight": heads for name in gates})
        self.vector(layer.gate_bias, f"{prefix}gate.bias", width)
        self.vector(layer.importance_bias, f"{prefix}importance.present.bias", heads)
        if config.update_rule == "erase":
            self.vector(layer.erasure_bias, f"{prefix}erasure.present.bias", heads)
        log_rate = self.weights.take(f"{prefix}decay.log_rate", heads)
        self.packed.vector(layer.decay_rate, heads)[:] = np.exp(log_rate)
        self.vector(layer.read_norm, f"{prefix}read_norm", width // heads)
