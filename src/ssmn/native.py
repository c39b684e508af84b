"""The compiled kernels: finds the C library, declares its functions, and says why if there is none.

`csrc/include/ssmn.h` is the manual. Nothing here needs torch, and importing this module never fails for want of a
library.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Iterable
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import ssmn
from ssmn.errors import BackendError

CHUNK = 64
"""C, the steps of the memory that are worked on together, at most; the library must agree."""

MEMORY_WINDOW = 512
"""P, the steps between two states that the memory stores; the library must agree."""

INTERFACE = 3
"""The number of the interface that is declared here, `SSMN_INTERFACE` of `ssmn.h`; the library must have the same."""

KERNELS_VARIABLE = "SSMN_KERNELS"
"""The environment variable that names the kernels to use."""

_FILE_NAME = {"win32": "ssmn.dll", "darwin": "libssmn.dylib"}.get(sys.platform, "libssmn.so")
_REINSTALL = "reinstall from the source folder: pip install --force-reinstall --no-deps --no-cache-dir ."
_OK, _OUT_OF_MEMORY = 0, 1
_imported_by = os.getpid()

ENGINE_BUSY, NOT_FINITE, UNKNOWN_TOKEN = 3, 4, 5
"""What `ssmn_engine_run` returns when it refuses."""


class MemoryCall(Structure):
    """`ssmn_memory_call`."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "steps", "heads", "key_width", "value_width", "streams")),
        *((name, c_int32) for name in ("half", "rule", "mask_heads")),
    ]


class WindowSizes(Structure):
    """`ssmn_window_sizes`."""

    _fields_ = [(name, c_int64) for name in ("rows", "steps", "query_heads", "key_heads", "width", "streams", "window")]


class OutputCall(Structure):
    """`ssmn_output_call`."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "steps", "tokens", "width", "streams")),
        *((name, c_float) for name in ("threshold", "switch")),
    ]


class CrossEntropyCall(Structure):
    """`ssmn_cross_entropy_call`."""

    _fields_ = [("rows", c_int64), ("classes", c_int64), ("format", c_int32), ("scale", c_float)]


class ScanCall(Structure):
    """`ssmn_scan_call`."""

    _fields_ = [*((name, c_int64) for name in ("rows", "steps", "channels", "streams")), ("shared", c_int32)]


class NtmCall(Structure):
    """`ssmn_ntm_call`."""

    _fields_ = [
        *[(name, c_int64) for name in (
            "streams", "steps", "slots", "width", "controls", "read_heads", "write_heads", "shift_range",
        )],
        *[(name, c_int32) for name in ("is_lstm", "frozen")],
    ]  # fmt: skip


class Matrix(Structure):
    """`ssmn_matrix`."""

    _fields_ = [(name, c_int64) for name in ("rows", "columns", "format", "offset")]


class EngineLayer(Structure):
    """`ssmn_engine_layer`."""

    _fields_ = [
        ("plastic", c_int64),
        *[(name, Matrix) for name in ("input", "key", "gate", "key_gate", "output", "expand", "contract")],
        *[(name, c_int64) for name in (
            "mixer_norm", "ffn_norm", "sinks", "gate_bias", "importance_bias", "erasure_bias", "decay_rate",
            "read_norm", "chat_keep", "chat_add", "state",
        )],
    ]  # fmt: skip


class EngineSizes(Structure):
    """`ssmn_engine`."""

    _fields_ = [
        *[(name, c_int64) for name in (
            "is_text", "has_encoder", "is_tied", "inputs", "outputs", "width", "layer_count", "query_heads",
            "key_heads", "window", "has_rotary", "has_sinks", "memory_heads", "has_erasure", "is_hebbian",
            "pairs_same", "chat_rounds", "inner_width", "has_output_memory", "format", "chunk", "threads",
        )],
        *[(name, c_float) for name in (
            "norm_epsilon", "plasticity_eta", "write_threshold", "read_floor", "chat_epsilon", "output_eta",
            "output_rate", "output_threshold", "output_switch",
        )],
        *[(name, c_int64) for name in (
            "masks_missing", "is_normalised", "static_width", "future_width", "head_kind", "head_parts", "head_middle",
            "has_columns", "readout", "readout_features",
        )],
        ("norm_rate", c_double),
        *[(name, c_float) for name in ("readout_eta", "readout_log_keep")],
        ("readout_ridge", c_double),
        ("layers", POINTER(EngineLayer)),
        *[(name, Matrix) for name in ("input", "output", "encoder_expand", "encoder_contract")],
        *[(name, c_int64) for name in (
            "input_bias", "output_bias", "norm", "frequencies", "columns", "gaps", "workspace", "arena_bytes", "ring",
            "front", "head", "stream_floats",
        )],
        *[(name, c_void_p) for name in ("arena", "streams", "positions", "learning")],
        ("busy", c_int32),
    ]  # fmt: skip


class EngineCall(Structure):
    """`ssmn_engine_call`."""

    _fields_ = [
        ("streams", c_int64),
        ("steps", c_int64),
        *[(name, c_void_p) for name in ("which", "x", "elapsed", "y")],
        ("last_only", c_int64),
        *[(name, c_void_p) for name in ("target", "future", "fixed")],
    ]


def _pointers(count: int) -> list[type]:
    return [c_void_p] * count


_KERNELS: dict[str, list[type]] = {
    "ssmn_memory": [POINTER(MemoryCall), *_pointers(14), c_int32],
    "ssmn_memory_backward": [POINTER(MemoryCall), *_pointers(21), c_int32],
    "ssmn_window_attention": [
        POINTER(WindowSizes), c_int32, *_pointers(10), c_float, c_double, *_pointers(5), c_int32
    ],
    "ssmn_window_attention_backward": [
        POINTER(WindowSizes), c_int32, *_pointers(10), c_float, c_double, *_pointers(11), c_int32
    ],
    "ssmn_output_memory": [POINTER(OutputCall), *_pointers(19), c_int32],
    "ssmn_cross_entropy": [POINTER(CrossEntropyCall), *_pointers(3), c_int32],
    "ssmn_scan": [POINTER(ScanCall), *_pointers(8), c_int32],
    "ssmn_scan_backward": [POINTER(ScanCall), *_pointers(11), c_int32],
    "ssmn_ntm": [POINTER(NtmCall), *_pointers(21), c_int32],
    "ssmn_ntm_backward": [POINTER(NtmCall), *_pointers(21), c_int32],
    "ssmn_matrix_product": [c_int64, c_int64, c_int64, c_void_p, c_int64, *_pointers(2), c_int32],
    "ssmn_engine_run": [POINTER(EngineSizes), POINTER(EngineCall)],
}  # fmt: skip

_LAYOUT: dict[str, tuple[list[type], type | None]] = {
    "ssmn_matrix_bytes": ([c_int64] * 3, c_int64),
    "ssmn_matrix_pack": ([c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p], None),
    "ssmn_matrix_unpack": ([c_int64, c_int64, c_int64, *_pointers(2)], None),
    "ssmn_engine_layout": ([POINTER(EngineSizes)], None),
}
"""Functions that cannot fail, and what they return."""


@dataclass(frozen=True)
class NativeStatus:
    """Whether the compiled kernels can run, and what they are or why not."""

    available: bool
    reason: str
    """One sentence: what was loaded, or why nothing was and the way out."""
    path: Path | None = None
    version: str | None = None
    instruction_set: str | None = None
    compiler: str | None = None
    kernels: str | None = None
    """The kernels in use, one of `runnable`; the environment variable SSMN_KERNELS chooses."""
    runnable: tuple[str, ...] = ()
    """The kernels that this machine can run, best first."""


def status() -> NativeStatus:
    """What became of the C library in this process. Never raises.

    Example:
        >>> from ssmn import native
        >>> native.status().reason != ""
        True
    """
    return _loaded()[1]


def library() -> ctypes.CDLL:
    """The C library with its signatures declared.

    Raises:
        BackendError: There is none; the message says why.
    """
    loaded, found = _loaded()
    if loaded is None:
        raise BackendError(f"native: {found.reason}")
    return loaded


def call(kernel: str, *arguments: object) -> None:
    """Runs one kernel of `ssmn.h` (without the GIL).

    Raises:
        BackendError: There is no library.
        MemoryError: The kernel could not allocate its workspace.
    """
    code = getattr(library(), kernel)(*arguments)
    if code == _OUT_OF_MEMORY:
        raise MemoryError(f"native: {kernel} could not allocate its workspace.")
    assert code == _OK, f"{kernel} returned {code}"


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, NativeStatus]:
    return load(Path(folder) for folder in ssmn.__path__)


def load(package_folders: Iterable[Path]) -> tuple[ctypes.CDLL | None, NativeStatus]:
    """Loads the library from the first of `package_folders` that has one (an editable install has two)."""
    path = next((path for folder in package_folders if (path := folder / "_lib" / _FILE_NAME).is_file()), None)
    if path is None:
        reason = (
            f"no compiled library (_lib/{_FILE_NAME}) in the package: its C++ build failed or was skipped. "
            f"Install a C++17 compiler, then {_REINSTALL}"
        )
        return None, NativeStatus(False, reason)
    try:
        loaded = ctypes.CDLL(str(path))
        for name in ("version", "compiler", "instruction_set", "kernel_path", "kernel_paths"):
            getattr(loaded, f"ssmn_{name}").restype = c_char_p
        loaded.ssmn_use_kernel_path.argtypes = [c_char_p]
        loaded.ssmn_loaded_after_fork.restype = None
        if os.getpid() != _imported_by:
            loaded.ssmn_loaded_after_fork()
        loaded.ssmn_chunk_size.restype = loaded.ssmn_memory_window.restype = c_int64
        version = loaded.ssmn_version().decode()
        interface = loaded.ssmn_interface()
        steps = loaded.ssmn_chunk_size(), loaded.ssmn_memory_window()
        for name, argument_types in _KERNELS.items():
            getattr(loaded, name).argtypes = argument_types
            getattr(loaded, name).restype = c_int32
        for name, (argument_types, result_type) in _LAYOUT.items():
            getattr(loaded, name).argtypes = argument_types
            getattr(loaded, name).restype = result_type
    except (OSError, AttributeError) as error:
        return None, NativeStatus(False, f"{path} cannot be loaded ({error}); {_REINSTALL}", path)
    if (version, interface, *steps) != (ssmn.__version__, INTERFACE, CHUNK, MEMORY_WINDOW):
        reason = (
            f"{path} is version {version} with interface {interface}, but the package is {ssmn.__version__} with "
            f"{INTERFACE}; {_REINSTALL}"
        )
        return None, NativeStatus(False, reason, path, version)
    instruction_set, compiler = loaded.ssmn_instruction_set().decode(), loaded.ssmn_compiler().decode()
    kernels, runnable = loaded.ssmn_kernel_path().decode(), tuple(loaded.ssmn_kernel_paths().decode().split())
    reason = f"version {version}, kernels {kernels}: {instruction_set}, built with {compiler}"
    asked = os.environ.get(KERNELS_VARIABLE)
    if asked and asked not in runnable:
        reason += f"; {KERNELS_VARIABLE}={asked} is not one of those that run here ({', '.join(runnable)})"
        warnings.warn(f"native: {reason}", stacklevel=2)
    return loaded, NativeStatus(True, reason, path, version, instruction_set, compiler, kernels, runnable)


def use_kernels(name: str | None) -> None:
    """Uses another set of kernels from now on, e.g. to compare them; not while one is running.

    Args:
        name: One of `status().runnable`; None = what SSMN_KERNELS says, else the best.

    Raises:
        BackendError: There is no library, or it has no such kernels for this machine.
    """
    if library().ssmn_use_kernel_path(None if name is None else name.encode()) != _OK:
        raise BackendError(f"native: kernels {name!r} do not run here; wanted one of {', '.join(status().runnable)}.")
    _loaded.cache_clear()
