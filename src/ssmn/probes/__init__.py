"""Numbers about the machine, the library and a running model; nothing here draws.

`machine` says what runs here, `writes` what is written, `measures` what a memory holds, `attribution` where a read
comes from; `Recorder` keeps the numbers while a model trains or reads.
"""

from ssmn.probes.attribution import Attribution, Read, attribution_matrix
from ssmn.probes.machine import Check, check_backend, machine, resident_bytes
from ssmn.probes.novelty import Novelty
from ssmn.probes.tracing import Trace, Tracer, trace
from ssmn.probes.watch import MemoryCall, watch_memories
from ssmn.probes.writes import Writes, memories, read_writes, watch_importance

__all__ = [
    "Attribution",
    "Check",
    "MemoryCall",
    "Novelty",
    "Read",
    "Trace",
    "Tracer",
    "Writes",
    "attribution_matrix",
    "check_backend",
    "machine",
    "memories",
    "read_writes",
    "resident_bytes",
    "trace",
    "watch_importance",
    "watch_memories",
]
