"""Numbers about the machine, the library and a running model; nothing here draws.

`machine` says what runs here, `writes` what is written, `measures` what a memory holds and `maps` what of it can be
looked at, `attribution` and `tracing` where a read comes from; a `Recorder` keeps the numbers while a model trains or
reads.
"""

from ssmn.probes.attribution import Attribution, Read, attribution_matrix
from ssmn.probes.machine import Check, check_backend, machine, resident_bytes
from ssmn.probes.maps import StateMap, state_map, state_maps
from ssmn.probes.measures import (
    Measures,
    effective_rank,
    energy,
    half_life,
    measure_blocks,
    measure_call,
    measure_state,
    spectral_radius,
    spectrum,
    transition,
)
from ssmn.probes.novelty import Novelty
from ssmn.probes.recorder import Record, RecordedStream, Recorder, flat
from ssmn.probes.tracing import Trace, Tracer, trace
from ssmn.probes.watch import BlockCall, MemoryCall, attention_entropy, watch_blocks, watch_memories
from ssmn.probes.writes import Writes, memories, read_writes, watch_importance, writers

__all__ = [
    "Attribution",
    "BlockCall",
    "Check",
    "Measures",
    "MemoryCall",
    "Novelty",
    "Read",
    "Record",
    "RecordedStream",
    "Recorder",
    "StateMap",
    "Trace",
    "Tracer",
    "Writes",
    "attention_entropy",
    "attribution_matrix",
    "check_backend",
    "effective_rank",
    "energy",
    "flat",
    "half_life",
    "machine",
    "measure_blocks",
    "measure_call",
    "measure_state",
    "memories",
    "read_writes",
    "resident_bytes",
    "spectral_radius",
    "spectrum",
    "state_map",
    "state_maps",
    "trace",
    "transition",
    "watch_blocks",
    "watch_importance",
    "watch_memories",
    "writers",
]
