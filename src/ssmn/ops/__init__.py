"""The operations of an SSMN, each as a loop (`reference`), in chunks (`chunked`) and in C++ (`native`)."""

from ssmn.ops.common import MemoryTrace
from ssmn.ops.cross_entropy import linear_cross_entropy
from ssmn.ops.dispatch import (
    backend_status,
    choose_backend,
    memory_read,
    memory_write,
    synaptic_memory,
    use_backend,
    window_attention,
)
from ssmn.ops.output import output_memory
from ssmn.ops.scan import linear_scan

__all__ = [
    "MemoryTrace",
    "backend_status",
    "choose_backend",
    "linear_cross_entropy",
    "linear_scan",
    "memory_read",
    "memory_write",
    "output_memory",
    "synaptic_memory",
    "use_backend",
    "window_attention",
]
