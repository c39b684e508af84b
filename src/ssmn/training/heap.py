"""Memory that a training step frees stays with the process, for the next step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3)."""
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
_USUAL = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 128 * 2**10}


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Within the block large blocks of memory come from the heap, and what is freed is not given back.

    glibc fetches every large tensor from the kernel and returns it when it is freed, and the kernel clears each page
    again: a fifth to a third of a training step. The process is as large as its largest step either way. Afterwards
    all of it is given back. Without glibc nothing changes.

    Example:
        >>> import torch
        >>> with kept_heap():
        ...     torch.ones(2**20).sum().item()
        1048576.0
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        yield
        return
    for parameter, value in _KEPT.items():
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            mallopt(parameter, value)
        trim(0)
