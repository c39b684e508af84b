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
"""C, the steps between two stored states of the memory; the library must agree."""

KERNELS_VARIABLE = "SSMN_KERNELS"
"""The environment variable that names the kernels to use."""

_FILE_NAME = {"win32": "ssmn.dll", "darwin": "libssmn.dylib"}.get(sys.platform, "libssmn.so")
_REINSTALL = "reinstall from the source folder: pip install --force-reinstall --no-deps --no-cache-dir ."
_OK, _OUT_OF_MEMORY = 0, 1


class MemorySizes(Structure):
    """`ssmn_memory_sizes`."""

    _fields_ = [(name, c_int64) for name in ("rows", "steps", "heads", "key_width", "value_width", "streams")]


class WindowSizes(Structure):
    """`ssmn_window_sizes`."""

    _fields_ = [(name, c_int64) for name in ("rows", "steps", "query_heads", "key_heads", "width", "streams", "window")]


def _pointers(count: int) -> list[type]:
    return [c_void_p] * count


_KERNELS: dict[str, list[type]] = {
    "ssmn_memory_write": [POINTER(MemorySizes), *_pointers(11), c_int32],
    "ssmn_memory_write_backward": [POINTER(MemorySizes), *_pointers(19), c_int32],
    "ssmn_memory_read": [POINTER(MemorySizes), *_pointers(8), c_int32],
    "ssmn_memory_read_backward": [POINTER(MemorySizes), *_pointers(14), c_int32],
    "ssmn_window_attention": [
        POINTER(WindowSizes), c_int32, *_pointers(10), c_float, c_double, *_pointers(5), c_int32
    ],
    "ssmn_window_attention_backward": [
        POINTER(WindowSizes), c_int32, *_pointers(10), c_float, c_double, *_pointers(11), c_int32
    ],
}  # fmt: skip


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


@functools.cache
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
        loaded.ssmn_chunk_size.restype = c_int64
        version, chunk = loaded.ssmn_version().decode(), loaded.ssmn_chunk_size()
        for name, argument_types in _KERNELS.items():
            getattr(loaded, name).argtypes = argument_types
            getattr(loaded, name).restype = c_int32
    except (OSError, AttributeError) as error:
        return None, NativeStatus(False, f"{path} cannot be loaded ({error}); {_REINSTALL}", path)
    if (version, chunk) != (ssmn.__version__, CHUNK):
        reason = f"{path} is version {version}, but the package is {ssmn.__version__}; {_REINSTALL}"
        return None, NativeStatus(False, reason, path, version)
    instruction_set, compiler = loaded.ssmn_instruction_set().decode(), loaded.ssmn_compiler().decode()
    kernels, runnable = loaded.ssmn_kernel_path().decode(), tuple(loaded.ssmn_kernel_paths().decode().split())
    reason = f"version {version}, kernels {kernels}: {instruction_set}, built with {compiler}"
    asked = os.environ.get(KERNELS_VARIABLE)
    if asked and asked != kernels:
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
